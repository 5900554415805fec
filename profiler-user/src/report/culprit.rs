//! The stacks that carry a cause to the one frame to look at first.

use super::application::{Origin, Owner, inside_callback};
use super::schema::stall::Culprit;
use crate::frame::Frame;
use crate::turn::Sampled;

/// The frame to look at first: of each stack the innermost of the application, else the innermost
/// named; of these the one for which most time was seen. A stack that was cut off counts with one that
/// begins like it and is whole. `None` where no frame has a name.
pub fn find(evidence: &[&Sampled], owner: &Owner<'_>, tid: u32) -> Option<Culprit> {
    let mut weighed: Vec<(&Frame, u64)> = Vec::new();
    for sampled in evidence {
        let frames = &whole(sampled, evidence).stack.frames;
        let Some(frame) = of_stack(frames, owner) else { continue };
        // One function that kept the CPU is seen at several of its lines.
        match weighed.iter_mut().find(|(seen, _)| is_same_function(seen, frame)) {
            Some((_, time_ns)) => *time_ns = time_ns.saturating_add(sampled.time_ns),
            None => weighed.push((frame, sampled.time_ns)),
        }
    }
    // Among equals the first: stacks come heaviest first.
    let heaviest = weighed.into_iter().rev().max_by_key(|(_, time_ns)| *time_ns);
    heaviest.map(|(frame, _)| Culprit {
        function: frame.function.clone(),
        file: frame.file.clone(),
        line: frame.line,
        module: frame.module.clone(),
        language: frame.language.into(),
        thread: tid,
    })
}

/// Whether this is the frame that a stack has to look at first, or another line of its function.
pub fn is_in(culprit: &Culprit, sampled: &Sampled, owner: &Owner<'_>) -> bool {
    of_stack(&sampled.stack.frames, owner).is_some_and(|frame| {
        frame.function == culprit.function
            && frame.file == culprit.file
            && frame.module == culprit.module
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
pub fn nameless<'a>(evidence: &[&'a Sampled], owner: &Owner<'_>) -> Option<&'a Frame> {
    let mut frames = evidence.iter().filter_map(|sampled| {
        let frames = &sampled.stack.frames;
        let inside = frames.get(..inside_callback(frames))?;
        inside.iter().find(|frame| owner.of(frame) == Origin::Application)
    });
    frames.find(|frame| frame.function.is_none())
}

/// A stack's innermost named frame: of the application, else of a library that it called, else any.
fn of_stack<'a>(frames: &'a [Frame], owner: &Owner<'_>) -> Option<&'a Frame> {
    let inside = frames.get(..inside_callback(frames)).unwrap_or_default();
    let innermost = |frames: &'a [Frame], origin| {
        frames.iter().find(|frame| frame.function.is_some() && owner.of(frame) == origin)
    };
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
    use super::{find, nameless};
    use crate::frame::Frame;
    use crate::report::application::Owner;
    use crate::report::facts::ProcessFacts;
    use crate::report::sample::{javascript, native, on_cpu, python};
    use crate::turn::Sampled;

    const LIB: &str = "/usr/lib/python3.11";
    const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";
    const REDIS: &str = "/usr/bin/redis-server";

    fn culprit(exe: &str, stacks: &[Sampled]) -> Option<(String, Option<u32>)> {
        let process = ProcessFacts { exe: Some(exe.to_owned()), ..ProcessFacts::default() };
        let evidence: Vec<&Sampled> = stacks.iter().collect();
        let culprit = find(&evidence, &Owner::new(&process), 42)?;
        assert_eq!(culprit.thread, 42);
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
        let owner = Owner::new(&process);
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
        assert_eq!(blamed(&[cut, other]).as_deref(), Some("sha512_block"));
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
