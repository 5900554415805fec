//! A stall's stacks to the task that it is about: its name, and the application's outermost code in it.

use super::application::{CodeOwner, Origin};
use super::cause::verdict::Conclusion;
use super::culprit;
use super::schema::stall::{CauseKind, Culprit, ReportedTask};
use crate::frame::{Frame, Language};
use crate::gap::Gap;
use crate::task::{Share, Task as Proved};
use crate::turn::{Awaited, Sampled, Stall, ThreadState};

/// What a task must have of the time that is measured, sampled, or neither.
const HALF_PERCENT: u64 = 50;
const MOST_PERCENT: u64 = 66;
const ALMOST_ALL_PERCENT: u64 = 90;

/// Files of web frameworks and servers that call handlers and middleware: what lies further out
/// belongs to every request alike, and so does the application's own middleware there.
const DISPATCHERS: [&str; 14] = [
    "/starlette/routing.py",
    "/starlette/applications.py",
    "/starlette/middleware/",
    "/starlette/_exception_handler.py",
    "/fastapi/routing.py",
    "/fastapi/applications.py",
    "/uvicorn/",
    "/aiohttp/web_",
    "/django/core/handlers/",
    "/quart/app.py",
    "/sanic/app.py",
    "/tornado/web.py",
    "/litestar/_asgi/",
    "/litestar/routes/",
];

/// The task that most of the culprit's time was spent in. None where that was a plain callback's, and
/// with a gap where it cannot be told.
pub fn find(
    stall: &Stall,
    verdict: &Conclusion<'_>,
    culprit: Option<&Culprit>,
    owner: &CodeOwner<'_>,
    gaps: &mut Vec<Gap>,
) -> Option<ReportedTask> {
    if matches!(verdict.cause.kind, CauseKind::Saturated { .. }) {
        gaps.push(Gap::new("task", "many callbacks ran, none of them for most of the time"));
        return None;
    }
    let carriers = carriers(stall, verdict, culprit, owner);
    let whole: u64 = carriers.iter().map(|sampled| weight(sampled.time_ns, sampled.samples)).sum();
    let mut groups: Vec<Group<'_>> = Vec::new();
    for &sampled in &carriers {
        for share in &sampled.shares {
            let who = who(stall, share);
            let weight = weight(share.time_ns, share.samples);
            match groups.iter_mut().find(|group| group.who.is_same(&who)) {
                Some(group) => group.weight += weight,
                // Stacks come heaviest first: the first one's lines are those to show.
                None => groups.push(Group { who, sampled, weight }),
            }
        }
    }
    let how_many = groups.len();
    let heaviest = groups.into_iter().rev().max_by_key(|group| group.weight)?;
    // Somebody's, perhaps another's.
    let whole = whole.saturating_add(unseen_ns(stall, &carriers));
    if u128::from(heaviest.weight) * 100 < u128::from(whole) * u128::from(sure(verdict)) {
        let why = format!("{how_many} ran what is to blame, none of them for most of the time");
        gaps.push(Gap::new("task", why));
        return None;
    }
    match heaviest.who {
        Who::Callback => None,
        Who::Unproved(gap) => {
            gaps.push(gap.clone());
            None
        }
        Who::Task(task) => {
            gaps.extend(task.name.as_ref().err().cloned());
            Some(described(task, heaviest.sampled, owner))
        }
    }
}

/// Which share of the culprit's time a task must have been seen for.
fn sure(verdict: &Conclusion<'_>) -> u64 {
    match verdict.cause.kind {
        // Nobody saw whose turn it was for the greater part.
        CauseKind::RunQueue { .. } => ALMOST_ALL_PERCENT,
        // The beginning of a turn is not sampled.
        CauseKind::Cpu { .. } | CauseKind::Unknown => MOST_PERCENT,
        _ => HALF_PERCENT,
    }
}

/// The time for which the thread was blocked as these stacks are, and no stack was taken.
fn unseen_ns(stall: &Stall, carriers: &[&Sampled]) -> u64 {
    if carriers.iter().any(|sampled| sampled.state != ThreadState::Blocked) {
        return 0;
    }
    let blocked = stall.stacks.iter().filter(|sampled| sampled.state == ThreadState::Blocked);
    let seen_ns = blocked.map(|sampled| sampled.time_ns).fold(0, u64::saturating_add);
    stall.turn.blocked_ns.saturating_sub(seen_ns)
}

/// The loop's stacks that the culprit is in; where another thread is to blame, those that waited for it.
fn carriers<'a>(
    stall: &'a Stall,
    verdict: &Conclusion<'a>,
    culprit: Option<&Culprit>,
    owner: &CodeOwner<'_>,
) -> Vec<&'a Sampled> {
    let all = || stall.stacks.iter();
    if matches!(verdict.cause.kind, CauseKind::Gil { .. }) {
        return all().filter(|sampled| sampled.awaited == Awaited::Gil).collect();
    }
    let own = verdict.blamed == stall.tid;
    let evidence = verdict.evidence.iter().copied().filter(|_| own);
    let carries =
        |sampled: &&Sampled| culprit.is_some_and(|culprit| culprit::is_in(culprit, sampled, owner));
    let mut found: Vec<_> = evidence.filter(carries).collect();
    // The culprit may be of another part than the cause.
    if found.is_empty() && culprit.is_some_and(|culprit| culprit.thread == stall.tid) {
        found = all().filter(carries).collect();
    }
    if found.is_empty() { all().collect() } else { found }
}

/// Time, and where none is known yet, samples.
fn weight(time_ns: u64, samples: u64) -> u64 {
    time_ns.saturating_add(samples)
}

struct Group<'a> {
    who: Who<'a>,
    sampled: &'a Sampled,
    weight: u64,
}

/// Whose time a share is.
enum Who<'a> {
    Callback,
    Unproved(&'a Gap),
    Task(&'a Proved),
}

impl Who<'_> {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Callback, Self::Callback) | (Self::Unproved(_), Self::Unproved(_)) => true,
            (Self::Task(one), Self::Task(other)) => {
                one.frame == other.frame && one.name == other.name
            }
            _ => false,
        }
    }
}

/// What could not be proved of one sample may be known from others of the same coroutines: from all
/// alike, as tasks that are started eagerly may follow each other at one address.
fn who<'a>(stall: &'a Stall, share: &'a Share) -> Who<'a> {
    let Some(running) = &share.running else { return Who::Callback };
    let gap = match &running.task {
        Ok(task) => return Who::Task(task),
        Err(gap) => gap,
    };
    let shares = stall.stacks.iter().flat_map(|sampled| &sampled.shares);
    let others = shares.filter_map(|share| share.running.as_ref());
    let alike = others.filter(|other| other.coroutines == running.coroutines);
    let mut known = alike.filter_map(|other| other.task.as_ref().ok()).map(Who::Task);
    match known.next() {
        Some(task) if known.all(|other| other.is_same(&task)) => task,
        _ => Who::Unproved(gap),
    }
}

fn described(task: &Proved, sampled: &Sampled, owner: &CodeOwner<'_>) -> ReportedTask {
    let python = sampled.stack.frames.iter().filter(|frame| frame.language == Language::Python);
    let inside: Vec<&Frame> = python.take(task.root + 1).collect();
    let own = handler(&inside, &task.middleware, owner);
    let place = own.or_else(|| called_last(&inside)).or(inside.last().copied());
    ReportedTask {
        name: task.name.clone().ok(),
        function: place.and_then(|frame| frame.function.as_deref()).map(str::to_owned),
        file: place.and_then(|frame| frame.file.as_deref()).map(str::to_owned),
        line: place.and_then(|frame| frame.line),
    }
}

/// The application's outermost frame, of those that the framework called last; middleware only where
/// nothing else is.
fn handler<'a>(
    inside: &[&'a Frame],
    middleware: &[usize],
    owner: &CodeOwner<'_>,
) -> Option<&'a Frame> {
    let is_application = |frame: &Frame| owner.of(frame) == Origin::Application;
    let innermost = inside.iter().position(|frame| is_application(frame))?;
    let outwards = inside.iter().enumerate().skip(innermost);
    let called = outwards.take_while(|(_, frame)| !is_dispatcher(frame));
    let own = called.filter(|(_, frame)| is_application(frame));
    let (outer, handlers): (Vec<_>, Vec<_>) = own.partition(|(at, _)| middleware.contains(at));
    handlers.last().or(outer.last()).map(|(_, frame)| **frame)
}

/// What a framework called last, in a task without code of the application.
fn called_last<'a>(inside: &[&'a Frame]) -> Option<&'a Frame> {
    let dispatcher = inside.iter().position(|frame| is_dispatcher(frame))?;
    inside.get(dispatcher.checked_sub(1)?).copied()
}

fn is_dispatcher(frame: &Frame) -> bool {
    let file = frame.file.as_deref().unwrap_or_default();
    DISPATCHERS.iter().any(|part| file.contains(part)) && file.contains("-packages/")
}

#[cfg(test)]
mod tests {
    use super::find;
    use crate::frame::Frame;
    use crate::gap::Gap;
    use crate::report::application::CodeOwner;
    use crate::report::facts::ProcessFacts;
    use crate::report::portion::Portion;
    use crate::report::sample::{blocked_in, native, on_cpu, python};
    use crate::report::{cause, culprit, sample};
    use crate::task::{Running, Share, Task as Proved};
    use crate::turn::{Awaited, Sampled, Stall, ThreadState};

    const PACKAGES: &str = "/v/lib/python3.11/site-packages";

    /// What is said of a turn with these stacks: the task's name, function and line, and the gaps.
    fn said(stacks: Vec<Sampled>) -> (Option<(String, String, u32)>, Vec<String>) {
        let mut stall = Stall { stacks, ..sample::stall() };
        let blocked = stall.stacks.iter().any(|it| it.registers.syscall >= 0);
        let whole_ns = stall.stacks.iter().map(|sampled| sampled.time_ns).sum();
        (stall.turn.running_ns, stall.turn.blocked_ns) =
            if blocked { (0, whole_ns) } else { (whole_ns, 0) };
        stall.turn.runnable_ns = 0;
        of_stall(&stall)
    }

    fn of_stall(stall: &Stall) -> (Option<(String, String, u32)>, Vec<String>) {
        let process = ProcessFacts::default();
        let owner = CodeOwner::new(&process);
        let verdict = cause::judge(stall, &std::collections::BTreeMap::new());
        let portion = Portion::of(&verdict.evidence, verdict.blamed, 9, true);
        let culprit = culprit::find(&verdict.evidence, &owner, portion);
        let mut gaps = Vec::new();
        let task = find(stall, &verdict, culprit.as_ref(), &owner, &mut gaps);
        let told = task.map(|task| {
            let function = task.function.unwrap_or_default();
            (task.name.unwrap_or_default(), function, task.line.unwrap_or_default())
        });
        (told, gaps.into_iter().map(|gap| gap.0).collect())
    }

    fn place(stacks: Vec<Sampled>) -> Option<String> {
        said(stacks).0.map(|(_, function, _)| function)
    }

    fn proved(name: &str, frame: u64, root: usize) -> Proved {
        Proved { name: Ok(name.to_owned()), frame, root, middleware: Vec::new() }
    }

    fn share(samples: u64, time_ns: u64, task: Result<Proved, Gap>) -> Share {
        let coroutines = task.as_ref().map_or_else(|_| vec![1], |task| vec![task.frame]);
        Share { running: Some(Running { coroutines, task }), samples, time_ns }
    }

    fn callback(time_ns: u64) -> Share {
        Share { running: None, samples: 1, time_ns }
    }

    /// A stack on a CPU that one task was seen in, its coroutine the outermost of these frames.
    fn of_task(frames: Vec<Frame>, name: &str, time_ns: u64) -> Sampled {
        let root = frames.len() - 1;
        let shares = vec![share(1, time_ns, Ok(proved(name, 1, root)))];
        Sampled { shares, ..on_cpu(frames, time_ns) }
    }

    fn app(function: &str, line: u32) -> Frame {
        python(function, "/srv/app.py", line)
    }

    fn library(function: &str, file: &str) -> Frame {
        python(function, &format!("{PACKAGES}/{file}"), 1)
    }

    /// The application's outermost frame inside the task, past library code further in and further
    /// out; what is outside of the task belongs to others.
    #[test]
    fn outermost_of_the_application() {
        let frames = vec![
            native("clock_nanosleep", "/usr/lib/libc.so.6"),
            app("charge", 31),
            library("retry", "tenacity/__init__.py"),
            app("pay", 12),
            library("coro", "anyio/_backends/_asyncio.py"),
            app("creator", 99),
        ];
        let shares = vec![share(1, 10, Ok(proved("billing", 1, 3)))];
        let (told, gaps) = said(vec![Sampled { shares, ..on_cpu(frames, 10) }]);
        assert_eq!(told, Some(("billing".to_owned(), "pay".to_owned(), 12)));
        assert!(gaps.is_empty(), "{gaps:?}");
    }

    /// Of a web framework it is the handler, below middleware of the application's own; and where the
    /// middleware itself is what runs, it is that.
    #[test]
    fn handlers() {
        let outside = [
            app("CountRequests.__call__", 5),
            library("ServerErrorMiddleware.__call__", "starlette/middleware/errors.py"),
            library("RequestResponseCycle.run_asgi", "uvicorn/protocols/http/h11_impl.py"),
        ];
        let mut frames = vec![
            app("charge", 31),
            app("pay", 12),
            library("run_endpoint_function", "fastapi/routing.py"),
            library("Router.app", "starlette/routing.py"),
        ];
        frames.extend(outside.clone());
        assert_eq!(place(vec![of_task(frames, "t", 10)]).as_deref(), Some("pay"));
        let middleware = vec![of_task(outside.to_vec(), "t", 10)];
        assert_eq!(place(middleware).as_deref(), Some("CountRequests.__call__"));
        // A file of the application may be called like one of a framework.
        let frames = vec![app("charge", 3), python("run", "/srv/uvicorn/app.py", 9)];
        assert_eq!(place(vec![of_task(frames, "t", 10)]).as_deref(), Some("run"));
    }

    /// Middleware that calls the handler itself is told by the interpreter's word.
    #[test]
    fn middleware_without_a_frame_between() {
        let frames =
            || vec![app("pay", 12), app("auth", 8), library("_handle", "aiohttp/web_app.py")];
        for (middleware, expected) in [(vec![1], "pay"), (vec![0, 1], "auth"), (vec![], "auth")] {
            let mut stack = of_task(frames(), "t", 10);
            let task = Proved { middleware: middleware.clone(), ..proved("t", 1, 2) };
            stack.shares = vec![share(1, 10, Ok(task))];
            assert_eq!(place(vec![stack]).as_deref(), Some(expected), "{middleware:?}");
        }
    }

    /// A task of library code alone is placed at what a framework called, else at its own coroutine.
    #[test]
    fn library_task() {
        let frames = vec![library("loads", "msgpack/x.py"), library("worker", "pool/x.py")];
        assert_eq!(place(vec![of_task(frames, "t", 10)]).as_deref(), Some("worker"));
        let mut frames = vec![
            library("collect", "prometheus_client/registry.py"),
            library("metrics", "prometheus_client/asgi.py"),
            library("Route.handle", "starlette/routing.py"),
            library("RequestResponseCycle.run_asgi", "uvicorn/protocols/http/h11_impl.py"),
        ];
        assert_eq!(place(vec![of_task(frames.clone(), "t", 10)]).as_deref(), Some("metrics"));
        frames.drain(..2);
        let server = place(vec![of_task(frames, "t", 10)]);
        assert_eq!(server.as_deref(), Some("RequestResponseCycle.run_asgi"));
    }

    /// Of several tasks in a turn it is the one of the culprit, and not the one of most time at all.
    #[test]
    fn of_the_culprit() {
        let one = of_task(vec![app("slow", 1), app("one", 2)], "one", 25);
        let again = of_task(vec![app("slow", 3), app("again", 4)], "one", 15);
        let two = of_task(vec![app("quick", 5), app("two", 6)], "two", 30);
        let more = of_task(vec![app("other", 7), app("two", 8)], "two", 30);
        let (told, gaps) = said(vec![two, more, one, again]);
        assert_eq!(told, Some(("one".to_owned(), "one".to_owned(), 2)), "{gaps:?}");
    }

    /// Where several tasks ran the same and none has half, none is picked.
    #[test]
    fn none_of_several() {
        let shares = (1..=3).map(|at| share(1, 10, Ok(proved(&format!("t{at}"), at, 0)))).collect();
        let (told, gaps) = said(vec![Sampled { shares, ..on_cpu(vec![app("score", 1)], 30) }]);
        assert_eq!(told, None);
        assert_eq!(gaps, ["task: 3 ran what is to blame, none of them for most of the time"]);
    }

    /// Sampled time must be two thirds one task's, measured time half, what was not seen included; and
    /// where the thread waited for a CPU, nearly all.
    #[test]
    fn how_sure() {
        let of = |state, parts: [u64; 2], unseen_ns, runnable_ns| {
            let time_ns = parts.iter().sum();
            let shares = [1, 2].into_iter().zip(parts);
            let shares = shares.map(|(at, ns)| share(1, ns, Ok(proved(&format!("t{at}"), at, 0))));
            let sleeping = blocked_in(230, [0; 6], time_ns);
            let sampled = Sampled {
                stack: on_cpu(vec![app("f", 1)], 0).stack,
                shares: shares.collect(),
                state,
                ..sleeping
            };
            let mut stall = Stall { stacks: vec![sampled], ..sample::stall() };
            stall.turn.runnable_ns = runnable_ns;
            let part_ns = time_ns + unseen_ns;
            (stall.turn.running_ns, stall.turn.blocked_ns) =
                if state == ThreadState::Blocked { (0, part_ns) } else { (part_ns, 0) };
            of_stall(&stall).0.is_some()
        };
        let running = ThreadState::RunningUser;
        assert!(of(running, [67_000, 33_000], 0, 0) && !of(running, [65_000, 35_000], 0, 0));
        let blocked = ThreadState::Blocked;
        assert!(of(blocked, [51_000, 49_000], 0, 0) && !of(blocked, [51_000, 49_000], 9_000, 0));
        assert!(of(running, [91_000, 9_000], 0, 200_000));
        assert!(!of(running, [88_000, 12_000], 0, 200_000));
    }

    /// A callback has no task, and that is no gap; what cannot be proved is one.
    #[test]
    fn callbacks_and_doubt() {
        let of =
            |shares: Vec<Share>| said(vec![Sampled { shares, ..on_cpu(vec![app("f", 1)], 9) }]);
        assert_eq!(of(vec![callback(9)]), (None, Vec::new()));
        let doubt = || Err(Gap::new("task", "the turn was over"));
        let (told, gaps) = of(vec![share(1, 9, doubt())]);
        assert_eq!((told, gaps), (None, vec!["task: the turn was over".to_owned()]));
        // Another sample of the same coroutines tells.
        let (told, gaps) = of(vec![share(5, 8, doubt()), share(1, 1, Ok(proved("t", 1, 0)))]);
        assert_eq!(told.map(|(name, ..)| name).as_deref(), Some("t"));
        assert!(gaps.is_empty(), "{gaps:?}");
        // Unless they tell of several.
        let eager = [share(1, 1, Ok(proved("t", 1, 0))), share(1, 1, Ok(proved("u", 1, 0)))];
        let shares = eager.into_iter().chain([share(5, 8, doubt())]).collect();
        assert_eq!(of(shares).0, None);
    }

    /// A task whose name could not be read is told without it, and why.
    #[test]
    fn nameless() {
        let name = Err(Gap::new("task.name", "it is neither a text nor a number"));
        let task = Proved { name, ..proved("", 1, 0) };
        let shares = vec![share(1, 9, Ok(task))];
        let (told, gaps) = said(vec![Sampled { shares, ..on_cpu(vec![app("f", 1)], 9) }]);
        assert_eq!(told, Some((String::new(), "f".to_owned(), 1)));
        assert_eq!(gaps, ["task.name: it is neither a text nor a number"]);
    }

    /// Where another thread holds the interpreter's lock, it is the task that waited for it.
    #[test]
    fn waiting_for_the_lock() {
        let waiting = blocked_in(202, [0; 6], 80);
        let shares = vec![share(1, 80, Ok(proved("waits", 1, 0)))];
        let stack = crate::frame::Stack { frames: vec![app("f", 1)], ..waiting.stack.clone() };
        let waiting = Sampled { stack, shares, awaited: Awaited::Gil, ..waiting };
        let elsewhere = |syscall| {
            let shares = vec![callback(60)];
            Sampled { shares, ..blocked_in(syscall, [0; 6], 60) }
        };
        let stacks = vec![waiting, elsewhere(230), elsewhere(45)];
        assert_eq!(said(stacks).0.map(|(name, ..)| name).as_deref(), Some("waits"));
    }
}
