//! The stacks that carry a cause to the one frame to look at first.

use super::application::{CodeOwner, Origin, inside_callback};
use super::foreign::is_waiter;
use super::portion::Portion;
use super::schema::stall::Culprit;
use crate::frame::{Frame, Language};
use crate::turn::Sampled;
use crate::unwind::merge::is_eval;

/// The frame to look at first: of each stack the innermost of the application, else the innermost
/// named; of these the one for which most time was seen. A stack that was cut off counts with one that
/// begins like it and is whole. `None` where no frame has a name, or where for most of the time only
/// plumbing is to be seen, below callers that are missing.
pub fn find(evidence: &[&Sampled], owner: &CodeOwner<'_>, portion: Portion) -> Option<Culprit> {
    let mut weighed: Vec<(&Frame, u64)> = Vec::new();
    let mut unknown_ns: u64 = 0;
    for sampled in evidence {
        let stack = &whole(sampled, evidence).stack;
        let Some(frame) = of_stack(&stack.frames, owner) else { continue };
        // A name that says no more than the system call, or than what an interpreter has inside.
        let says_nothing = owner.of(frame) == Origin::Plumbing || says_only_call(frame, owner);
        if stack.truncated.is_some() && says_nothing {
            unknown_ns = unknown_ns.saturating_add(sampled.time_ns);
            continue;
        }
        // One function that kept the CPU is seen at several of its lines.
        match weighed.iter_mut().find(|(seen, _)| is_same_function(seen, frame)) {
            Some((_, time_ns)) => *time_ns = time_ns.saturating_add(sampled.time_ns),
            None => weighed.push((frame, sampled.time_ns)),
        }
    }
    // Among equals the first: stacks come heaviest first.
    let heaviest = weighed.into_iter().rev().max_by_key(|(_, time_ns)| *time_ns);
    heaviest.filter(|(_, time_ns)| *time_ns >= unknown_ns).map(|(frame, _)| Culprit {
        function: frame.function.as_deref().map(str::to_owned),
        file: frame.file.as_deref().map(str::to_owned),
        line: frame.line,
        module: frame.module.as_deref().map(str::to_owned),
        language: frame.language.into(),
        thread: portion.tid,
        time_ns: portion.time_ns,
        part: portion.part,
    })
}

/// Whether the frame to look at first rests on stacks that may be wrong there: on native frames that
/// were searched for, or on a stack that is cut before the application's. An interpreter's frames are its
/// own word.
pub fn is_unsure(evidence: &[&Sampled], owner: &CodeOwner<'_>) -> bool {
    let mut unsure_ns: u64 = 0;
    let mut sure_ns: u64 = 0;
    for sampled in evidence {
        let stack = &whole(sampled, evidence).stack;
        let Some(frame) = of_stack(&stack.frames, owner) else { continue };
        let place = |address| stack.frames.iter().position(|frame| frame.address == Some(address));
        let is_searched = frame.language == Language::Native
            && stack.searched_from.and_then(place).is_some_and(|from| {
                stack.frames.iter().skip(from).any(|outer| std::ptr::eq(outer, frame))
            });
        let is_cut = stack.truncated.is_some() && owner.of(frame) != Origin::Application;
        let part = if is_searched || is_cut { &mut unsure_ns } else { &mut sure_ns };
        *part = part.saturating_add(sampled.time_ns);
    }
    unsure_ns > sure_ns
}

/// Callers that tell one use of the same function from another.
const CALLERS: usize = 3;

/// The culprit's nearest callers in the application, inside the loop's callback: what called the loop is the same for
/// all. A recursion counts once, however deep it was, and what a compiler has put into its caller not at all: only
/// debug information tells of it.
pub fn callers<'a>(
    culprit: &Culprit,
    evidence: &[&'a Sampled],
    owner: &CodeOwner<'_>,
) -> Vec<&'a Frame> {
    let Some(seen) = evidence.iter().find(|sampled| is_in(culprit, sampled, owner)) else {
        return Vec::new();
    };
    let frames = &whole(seen, evidence).stack.frames;
    let inside = frames.get(..inside_callback(frames)).unwrap_or_default();
    let is_it = |frame: &Frame| {
        frame.function.as_deref() == culprit.function.as_deref()
            && frame.file.as_deref() == culprit.file.as_deref()
            && frame.module.as_deref() == culprit.module.as_deref()
    };
    let Some(place) = inside.iter().position(is_it) else { return Vec::new() };
    let mut callers: Vec<&Frame> = Vec::new();
    for frame in inside.iter().skip(place) {
        let is_own = owner.of(frame) == Origin::Application && frame.function.is_some();
        let is_again = callers.last().is_some_and(|last| is_same_function(last, frame));
        if callers.is_empty() || is_own && !frame.inlined && !is_again {
            callers.push(frame);
        }
    }
    callers.into_iter().skip(1).take(CALLERS).collect()
}

/// Whether this is the frame that a stack has to look at first, or another line of its function.
pub fn is_in(culprit: &Culprit, sampled: &Sampled, owner: &CodeOwner<'_>) -> bool {
    of_stack(&sampled.stack.frames, owner).is_some_and(|frame| {
        frame.function.as_deref() == culprit.function.as_deref()
            && frame.file.as_deref() == culprit.file.as_deref()
            && frame.module.as_deref() == culprit.module.as_deref()
    })
}

/// The heaviest whole stack whose innermost functions are all those of a stack that was cut off: what
/// called them is on it. Else the stack itself.
pub fn whole<'a>(sampled: &'a Sampled, evidence: &[&'a Sampled]) -> &'a Sampled {
    let cut = &sampled.stack;
    if cut.truncated.is_none() || cut.frames.is_empty() {
        return sampled;
    }
    let begins_like = |other: &&&Sampled| {
        let frames = &other.stack.frames;
        other.stack.truncated.is_none()
            && frames.len() > cut.frames.len()
            && cut
                .frames
                .iter()
                .zip(frames)
                .all(|(one, other)| one.function.is_some() && is_same_function(one, other))
    };
    let whole = evidence.iter().filter(begins_like).rev().max_by_key(|other| other.time_ns);
    whole.copied().unwrap_or(sampled)
}

fn is_same_function(one: &Frame, other: &Frame) -> bool {
    one.function == other.function && one.file == other.file && one.module == other.module
}

/// The innermost frame of the application inside the loop's callback, where it has no name: the reason
/// why nobody can be blamed.
pub fn nameless<'a>(evidence: &[&'a Sampled], owner: &CodeOwner<'_>) -> Option<&'a Frame> {
    let mut frames = evidence.iter().filter_map(|sampled| {
        let frames = &sampled.stack.frames;
        let inside = frames.get(..inside_callback(frames))?;
        inside.iter().find(|frame| owner.of(frame) == Origin::Application)
    });
    frames.find(|frame| frame.function.is_none())
}

/// Whether Python code ran, and none of its frames has a name: they could not be read.
fn is_unread(frames: &[Frame]) -> bool {
    let is_python = |frame: &&Frame| frame.language == Language::Python;
    let is_named = |frame: &Frame| frame.function.is_some();
    !frames.iter().filter(is_python).any(is_named)
        && frames.iter().any(|frame| is_python(&frame) || is_eval(frame))
}

/// Whether nobody can be blamed because Python code could not be read.
pub fn hides_python(evidence: &[&Sampled]) -> bool {
    evidence.iter().any(|sampled| is_unread(&sampled.stack.frames))
}

/// Whether a frame's name says no more than the system call does.
fn says_only_call(frame: &Frame, owner: &CodeOwner<'_>) -> bool {
    let is_of_kernel = frame.module.as_deref().is_some_and(|module| module.starts_with('['));
    owner.is_of_system(frame) || is_waiter(frame) || is_of_kernel
}

/// A stack's innermost named frame: of the application, else of a library that it called, else any.
fn of_stack<'a>(frames: &'a [Frame], owner: &CodeOwner<'_>) -> Option<&'a Frame> {
    let inside = frames.get(..inside_callback(frames)).unwrap_or_default();
    let innermost = |frames: &'a [Frame], origin| {
        frames.iter().find(|frame| frame.function.is_some() && owner.of(frame) == origin)
    };
    // No library's function is to blame for what an interpreter's code calls that is on no stack. What a
    // compiler has listed as it made it (a perf map) is that code.
    if owner.is_unread() || is_unread(frames) {
        let is_made =
            |frame: &&Frame| frame.module.is_none() || owner.of(frame) == Origin::Application;
        return inside.iter().find(|frame| frame.function.is_some() && is_made(frame));
    }
    // Where the application's frames have no names, what called them is not to blame: a library's
    // event loop calls all there is. What they called may be.
    if let Some(own) = inside.iter().position(|frame| owner.of(frame) == Origin::Application) {
        return innermost(inside, Origin::Application)
            .or_else(|| innermost(inside.get(..own).unwrap_or_default(), Origin::Library));
    }
    innermost(inside, Origin::Library)
        // The loop's own work between two callbacks.
        .or_else(|| innermost(frames, Origin::Library))
        .or_else(|| innermost(frames, Origin::Application))
        .or_else(|| innermost(frames, Origin::Plumbing))
}

#[cfg(test)]
mod tests {
    use super::{find, hides_python, is_unsure, nameless};
    use crate::frame::Frame;
    use crate::gap::Gap;
    use crate::report::application::CodeOwner;
    use crate::report::facts::ProcessFacts;
    use crate::report::portion::Portion;
    use crate::report::sample::{javascript, native, on_cpu, python};
    use crate::report::schema::stall::{Culprit, PartOfStall};
    use crate::turn::Sampled;

    const LIB: &str = "/usr/lib/python3.11";
    const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";
    const REDIS: &str = "/usr/bin/redis-server";

    fn culprit(exe: &str, stacks: &[Sampled]) -> Option<(String, Option<u32>)> {
        let process = ProcessFacts { exe: Some(exe.to_owned()), ..ProcessFacts::default() };
        let evidence: Vec<&Sampled> = stacks.iter().collect();
        let portion = Portion::of(&evidence, 42, 9, true);
        let culprit = find(&evidence, &CodeOwner::new(&process), portion)?;
        let Culprit { thread, time_ns, part, .. } = culprit;
        assert_eq!((thread, time_ns, part), (42, 9, PartOfStall::Running));
        Some((culprit.function?, culprit.line))
    }

    fn of_frames(exe: &str, frames: Vec<Frame>) -> Option<String> {
        culprit(exe, &[on_cpu(frames, 10)]).map(|(function, _)| function)
    }

    /// The innermost frame of the application is the culprit, through libraries inside of it.
    #[test]
    fn application_under_libraries() {
        let frames = vec![
            native("recv", LIBC),
            native("sock_recv", "/usr/bin/python3.11"),
            python("SocketIO.readinto", &format!("{LIB}/socket.py"), 706),
            python("get", "/v/lib/python3.11/site-packages/requests/api.py", 73),
            python("charge_payment", "/srv/app.py", 31),
            python("handler", "/srv/app.py", 12),
            python("Handle._run", &format!("{LIB}/asyncio/events.py"), 80),
            python("<module>", "/srv/app.py", 99),
        ];
        assert_eq!(of_frames("/usr/bin/python3.11", frames).as_deref(), Some("charge_payment"));
    }

    /// Callers are the application's own inside the callback, the nearest three, each of a recursion once.
    #[test]
    fn nearest_callers() {
        let file = "/srv/app.py";
        let frames = vec![
            native("recv", LIBC),
            python("pay", file, 31),
            python("retry", "/v/lib/python3.11/site-packages/tenacity/__init__.py", 3),
            python("walk", file, 12),
            python("walk", file, 13),
            python("checkout", file, 14),
            Frame { inlined: true, ..python("inlined", file, 15) },
            python("handler", file, 16),
            python("middleware", file, 17),
            python("Handle._run", &format!("{LIB}/asyncio/events.py"), 80),
            python("<module>", file, 99),
        ];
        let process =
            ProcessFacts { exe: Some("/usr/bin/python3.11".to_owned()), ..ProcessFacts::default() };
        let owner = CodeOwner::new(&process);
        let sampled = on_cpu(frames, 10);
        let evidence = [&sampled];
        let culprit = find(&evidence, &owner, Portion::of(&evidence, 42, 9, true)).unwrap();
        let callers = super::callers(&culprit, &evidence, &owner);
        let names: Vec<_> = callers.iter().filter_map(|frame| frame.function.as_deref()).collect();
        assert_eq!(names, ["walk", "checkout", "handler"]);
    }

    /// What called the loop is never the culprit while anything inside has a name.
    #[test]
    fn caller_of_the_loop_is_innocent() {
        let frames = vec![
            native("clock_nanosleep", LIBC),
            python("Pool._reap", "/v/lib/python3.11/site-packages/pool.py", 7),
            python("Handle._run", &format!("{LIB}/asyncio/events.py"), 80),
            python("<module>", "/srv/app.py", 99),
        ];
        assert_eq!(of_frames("/usr/bin/python3.11", frames).as_deref(), Some("Pool._reap"));
        let frames = vec![
            python("Handle._run", &format!("{LIB}/asyncio/events.py"), 80),
            python("<module>", "/srv/app.py", 99),
        ];
        assert_eq!(of_frames("/usr/bin/python3.11", frames).as_deref(), Some("Handle._run"));
    }

    /// In a native program it is the program's own frame, not the C library's.
    #[test]
    fn native_program() {
        let frames = vec![
            native("clock_nanosleep", LIBC),
            native("debugCommand", REDIS),
            native("call", REDIS),
            native("main", REDIS),
        ];
        assert_eq!(of_frames(REDIS, frames).as_deref(), Some("debugCommand"));
    }

    /// Frames without a name are passed over; where there is no other, there is no culprit.
    #[test]
    fn names_are_needed() {
        let unnamed = Frame { function: None, ..native("", REDIS) };
        let frames = vec![unnamed.clone(), native("call", REDIS)];
        assert_eq!(of_frames(REDIS, frames).as_deref(), Some("call"));
        assert_eq!(of_frames(REDIS, vec![unnamed]), None);
        assert_eq!(of_frames(REDIS, Vec::new()), None);
        assert_eq!(of_frames(REDIS, vec![native("memcpy", LIBC)]).as_deref(), Some("memcpy"));
    }

    /// A library's loop is not blamed for the callback that it called, only because that has no name;
    /// a library that the callback called is.
    #[test]
    fn nameless_application() {
        let (events, regex) = ("/usr/lib/libevent-2.1.so.7", "/usr/lib/libpcre2-8.so.0");
        let unnamed = Frame { function: None, ..native("", REDIS) };
        let frames = vec![unnamed.clone(), native("event_base_loop", events)];
        assert_eq!(of_frames(REDIS, frames.clone()), None);
        let frames = [vec![native("write", LIBC)], frames].concat();
        assert_eq!(of_frames(REDIS, frames.clone()), None);
        let process = ProcessFacts { exe: Some(REDIS.to_owned()), ..ProcessFacts::default() };
        let owner = CodeOwner::new(&process);
        assert_eq!(nameless(&[&on_cpu(frames.clone(), 1)], &owner), Some(&unnamed));
        let frames = [vec![native("pcre2_match_8", regex)], frames].concat();
        assert_eq!(of_frames(REDIS, frames).as_deref(), Some("pcre2_match_8"));
        assert_eq!(nameless(&[&on_cpu(vec![native("call", REDIS)], 1)], &owner), None);
    }

    /// A function seen at several lines, or with several inner frames, is weighed as one.
    #[test]
    fn weighed_by_function() {
        let stacks = [
            on_cpu(vec![python("other", "/srv/app.py", 5)], 40),
            on_cpu(vec![native("match", LIBC), python("parse", "/srv/app.py", 17)], 35),
            on_cpu(vec![python("parse", "/srv/app.py", 18)], 25),
        ];
        let expected = Some(("parse".to_owned(), Some(17)));
        assert_eq!(culprit("/usr/bin/python3", &stacks), expected);
    }

    /// What called a function whose caller could not be found is told by other stacks of it, and by those
    /// alone.
    #[test]
    fn cut_stacks() {
        let hash = || native("sha512_block", "/usr/bin/node");
        let mut cut = on_cpu(vec![hash()], 90);
        cut.stack.truncated = Some("no table".to_owned());
        let called = on_cpu(vec![hash(), javascript("sign", "/srv/app.js", 5)], 10);
        let other = on_cpu(vec![native("memcpy", LIBC), javascript("copy", "/srv/app.js", 9)], 20);
        let blamed = |stacks: &[Sampled]| culprit("/usr/bin/node", stacks).map(|(name, _)| name);
        let stacks = [cut.clone(), other.clone(), called];
        assert_eq!(blamed(&stacks).as_deref(), Some("sign"));
        assert_eq!(blamed(&[cut.clone(), other.clone()]), None, "nobody knows who had most of it");
        cut.time_ns = 15;
        assert_eq!(blamed(&[cut, other]).as_deref(), Some("copy"));
    }

    /// A culprit is unsure where it was searched for on the stack or the stack is cut before the
    /// application's frames, and sure where the registers or a table led there; Python's always is. Of a
    /// cut stack the C library's function is none.
    #[test]
    fn unsure_stacks() {
        let at = |address, frame: Frame| Frame { address: Some(address), ..frame };
        let frames = || {
            let (wait, cancel) = (native("nanosleep", LIBC), native("sccp", LIBC));
            vec![
                at(1, cancel),
                at(2, wait),
                at(3, native("call", REDIS)),
                at(4, native("main", REDIS)),
            ]
        };
        let process = ProcessFacts { exe: Some(REDIS.to_owned()), ..ProcessFacts::default() };
        let owner = CodeOwner::new(&process);
        let unsure = |frames, searched_from, truncated: Option<&str>| {
            let mut sampled = on_cpu(frames, 10);
            sampled.stack.searched_from = searched_from;
            sampled.stack.truncated = truncated.map(str::to_owned);
            is_unsure(&[&sampled], &owner)
        };
        assert!(unsure(frames(), Some(2), None) && unsure(frames(), Some(3), Some("no table")));
        assert!(!unsure(frames(), None, None));
        assert!(!unsure(frames(), Some(4), None), "it was searched for further out");
        assert!(!unsure(frames(), None, Some("deeper than 1024 frames")));
        let library = vec![native("inflate", "/usr/lib/libz.so.1"), native("main", LIBC)];
        assert!(unsure(library.clone(), None, Some("no table")) && !unsure(library, None, None));
        let python = vec![at(1, native("recv", LIBC)), python("pay", "/srv/app.py", 3)];
        assert!(!unsure(python, Some(1), None));

        let mut cut = on_cpu(frames()[..2].to_vec(), 10);
        assert_eq!(culprit(REDIS, &[cut.clone()]), Some(("sccp".to_owned(), None)));
        cut.stack.truncated = Some("no table".to_owned());
        assert_eq!(culprit(REDIS, &[cut]), None);
    }

    /// Where an interpreter's frames cannot be read, no frame of the C library, the interpreter or a library
    /// stands for them; a program that has the interpreter inside, and code that a compiler has listed, do.
    #[test]
    fn unread_interpreters() {
        let exe = "/usr/bin/python3.16";
        let module = "/usr/lib/python3.16/lib-dynload/_asyncio.cpython-316-x86_64-linux-gnu.so";
        let frames = || {
            vec![native("clock_nanosleep", LIBC), native("task_step", module), native("main", exe)]
        };
        let unread = Some(Gap::new("Python frames", "CPython 3.16 is not known"));
        let blamed = |exe: &str, frames| {
            let unread = unread.clone();
            let process =
                ProcessFacts { exe: Some(exe.to_owned()), unread, ..ProcessFacts::default() };
            find(&[&on_cpu(frames, 10)], &CodeOwner::new(&process), Portion::of(&[], 42, 0, true))?
                .function
        };
        assert_eq!(blamed(exe, frames()), None);
        assert_eq!(of_frames(exe, frames()).as_deref(), Some("task_step"), "if they could be read");
        let embedding = [frames(), vec![native("on_message", "/opt/app")]].concat();
        assert_eq!(blamed("/opt/app", embedding).as_deref(), Some("on_message"));
        let listed = Frame { module: None, ..native("LPay;::charge", "") };
        let frames = vec![native("recv", LIBC), listed, native("main", "/usr/bin/java")];
        assert_eq!(blamed("/usr/bin/java", frames).as_deref(), Some("LPay;::charge"));
    }

    /// The same holds of one stack whose Python frames could not be read, though others could.
    #[test]
    fn unread_stack() {
        let exe = "/usr/bin/python3.15";
        let eval = native("_PyEval_EvalFrameDefault.cold", exe);
        let nameless = Frame { function: None, ..python("", "", 1) };
        for hidden in [eval.clone(), nameless] {
            let frames =
                vec![native("clock_nanosleep", LIBC), hidden.clone(), native("_start", exe)];
            assert_eq!(of_frames(exe, frames.clone()), None, "{hidden:?}");
            assert!(hides_python(&[&on_cpu(frames, 1)]));
        }
        let frames = vec![native("recv", LIBC), eval, python("pay", "/srv/app.py", 3)];
        assert_eq!(of_frames(exe, frames.clone()).as_deref(), Some("pay"));
        assert!(!hides_python(&[&on_cpu(frames, 1)]));
    }

    /// In node it is the application's function, not node's own and not a package's.
    #[test]
    fn node() {
        let exe = "/usr/bin/node";
        let frames = vec![
            native("epoll_pwait", LIBC),
            native("uv_run", exe),
            native("node::SyncProcessRunner::Spawn", exe),
            javascript("spawnSync", "node:child_process", 832),
            javascript("convert", "/srv/node_modules/gm/lib/index.js", 7),
            javascript("thumbnail", "/srv/app.js", 31),
            javascript("handler", "/srv/app.js", 12),
            native("Builtins_JSEntry", exe),
            native("uv_run", exe),
            native("main", exe),
        ];
        assert_eq!(of_frames(exe, frames).as_deref(), Some("thumbnail"));
    }

    /// Where nothing was timed, the first stack decides.
    #[test]
    fn first_among_equals() {
        let stacks = [
            on_cpu(vec![python("one", "/srv/app.py", 1)], 0),
            on_cpu(vec![python("two", "/srv/app.py", 2)], 0),
        ];
        assert_eq!(culprit("/usr/bin/python3", &stacks), Some(("one".to_owned(), Some(1))));
    }
}
