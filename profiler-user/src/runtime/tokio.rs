//! tokio by its own frames: that it runs, which version, and whether a worker is at work.
//!
//! There is nothing to read in the target: the native stack tells it. With debug information the
//! files tell most, because it need not spell out of which module an inlined function is; where there
//! are only symbols, their paths do.

use profiler_ebpf::turn::FUTEX;

use super::names::last_segment;
use super::park::{ParkState, Pool, Sleeper, Word};
use super::{Runtime, RuntimeIdentity};
use crate::frame::{Frame, Language};

/// Its workers park on a futex, all but the one that waits in epoll.
pub const POOL: Pool =
    Pool { name: "tokio", may_take_its_time: false, has_queue: false, waits_in_epoll: false };

/// tokio's row in the table of runtimes.
#[derive(Debug)]
pub struct TokioRow;

impl Runtime for TokioRow {
    fn name(&self) -> &'static str {
        "tokio"
    }

    fn recognise(&self, frames: &[Frame]) -> Option<RuntimeIdentity> {
        recognise(frames)
    }

    fn loop_kind(&self, frame: &Frame) -> Option<&'static str> {
        is_runtime(frame).then_some("tokio")
    }

    fn park_state(&self, sleeper: &Sleeper<'_>) -> Option<ParkState> {
        park_state(sleeper)
    }
}

/// tokio, if its runtime is on the stack, with its version as far as its files tell.
fn recognise(frames: &[Frame]) -> Option<RuntimeIdentity> {
    let mut of_runtime = frames.iter().filter(|frame| is_of(frame, "")).peekable();
    of_runtime.peek()?;
    let version = of_runtime.find_map(|frame| Some(source(frame)?.0?.to_owned()));
    Some(RuntimeIdentity { name: "tokio", version })
}

/// Whether a frame may have to do with the runtime, at the price of one look: most processes have no such frame.
pub fn may_be_of(frame: &Frame) -> bool {
    let mentions = |text: Option<&str>| text.is_some_and(|text| text.contains("tokio"));
    frame.language == Language::Native
        && (mentions(frame.file.as_deref()) || mentions(frame.function.as_deref()))
}

/// Whether a frame is the runtime's own, rather than of what it runs.
pub fn is_runtime(frame: &Frame) -> bool {
    is_of(frame, "")
}

/// Whether a frame is the part of the runtime that runs tasks: what lies further in is the task's.
pub fn runs_tasks(frame: &Frame) -> bool {
    let named = |names: &[&str]| {
        last_segment(frame).is_some_and(|name| names.iter().any(|begin| name.starts_with(begin)))
    };
    (is_of(frame, "task/") && named(&["poll"]))
        || (is_of(frame, "scheduler/") && named(&["run", "block_on"]))
}

/// What the workers of the multi-threaded scheduler run, and how they sleep; in tokio to 1.20, too.
const WORKER: [&str; 4] = [
    "scheduler/multi_thread/park",
    "scheduler/multi_thread/worker",
    "thread_pool/park",
    "thread_pool/worker",
];

/// In the type of the task that a worker is.
const LAUNCHES: [&str; 2] = ["multi_thread::worker::Launch", "thread_pool::worker::Launch"];

/// In the type of tasks that may block: what `spawn_blocking` was given, and the workers.
const BLOCKING_TASK: &str = "blocking::task::BlockingTask<";

/// In the type of what a thread of the blocking pool is started with, where the pool's loop is inlined
/// into the standard library's beginning of a thread.
const POOL_THREAD: &str = "tokio::runtime::blocking::pool::Spawner>::spawn_thread";

/// Where `block_on` sleeps, and polls the main future.
const BLOCK_ON: [&str; 1] = ["park"];

/// Whether a thread runs tasks, or would if there were any: a worker, or one inside `block_on`.
pub fn is_worker<'a>(frames: impl Iterator<Item = &'a Frame> + Clone) -> bool {
    is_of_scheduler(frames.clone()) || calls(frames, &BLOCK_ON, "block_on")
}

/// Whether a thread is a worker of the scheduler. The compiler may have put `run` into what polls the task
/// that a worker is started with, and that task's type tells it.
fn is_of_scheduler<'a>(frames: impl Iterator<Item = &'a Frame> + Clone) -> bool {
    calls(frames.clone(), &WORKER, "run")
        || calls(frames.clone(), &WORKER, "park")
        || frames.clone().any(starts_worker)
}

/// Whether a frame polls the task that is a worker.
fn starts_worker(frame: &Frame) -> bool {
    let name = frame.function.as_deref().unwrap_or_default();
    is_of(frame, "task") && LAUNCHES.iter().any(|launch| name.contains(launch))
}

/// Whether a frame polls a task, as far as its name tells: any but the one that a worker is.
pub fn polls_task(frame: &Frame) -> bool {
    is_of(frame, "task") && last_segment(frame) == Some("poll") && !starts_worker(frame)
}

/// Whether a worker that sleeps on a futex does so for want of work. While it holds the driver, it may
/// wait for locks of the driver's.
pub fn is_parked<'a>(frames: impl Iterator<Item = &'a Frame> + Clone) -> bool {
    (calls(frames.clone(), &WORKER, "park") || calls(frames.clone(), &BLOCK_ON, "park"))
        && !calls(frames, &WORKER, "park_driver")
}

/// Whether nobody waits for what a thread does now: one of the blocking pool, or a worker that was about
/// to block, said so, and has handed its tasks over.
pub fn is_off_duty<'a>(frames: impl Iterator<Item = &'a Frame> + Clone) -> bool {
    let may_block = |frame: &Frame| {
        let name = frame.function.as_deref().unwrap_or_default();
        is_of(frame, "blocking/pool")
            || (is_of(frame, "task") && name.contains(BLOCKING_TASK))
            || (frame.language == Language::Native && name.contains(POOL_THREAD))
    };
    let in_pool = frames.clone().any(may_block);
    (in_pool && !is_of_scheduler(frames.clone())) || calls(frames, &WORKER, "block_in_place")
}

/// What a thread of the runtime's is about. None: it is none that runs tasks.
fn park_state(sleeper: &Sleeper<'_>) -> Option<ParkState> {
    let Sleeper { registers, native, named, .. } = sleeper;
    let all = || named.frames.iter().flatten();
    if !all().any(may_be_of) {
        return None;
    }
    if is_off_duty(all()) {
        return Some(ParkState::OffDuty);
    }
    let of_runtime = |inlined: &Vec<Frame>| inlined.iter().any(is_runtime);
    let index = named.frames.iter().position(of_runtime)?;
    if !is_worker(all()) {
        return None;
    }
    // Where names lack the small functions, what lies within the runtime's innermost tells.
    let within = named.frames.iter().take(index).flatten();
    let inlined = named.frames[index].iter().take_while(|frame| !is_runtime(frame));
    // A lock may be inlined into the task that takes it.
    let in_task = named.frames[index].iter().any(polls_task);
    let sleeps = || index > 0 && !in_task && within.chain(inlined).all(is_of_parking);
    if registers.syscall != FUTEX || !(is_parked(all()) || sleeps()) {
        return Some(ParkState::Working(POOL));
    }
    Some(ParkState::Parked(POOL, Word::return_to(native, index)?))
}

/// Whether this function is of how a thread sleeps until it is unparked: a condition variable, and
/// not a mutex, which a task could hold up its worker with.
fn is_of_parking(frame: &Frame) -> bool {
    const LOCKS: [&str; 4] = ["Mutex", "mutex", "RwLock", "rwlock"];
    const SLEEP: [&str; 4] = ["std::", "core::", "parking_lot", "<parking_lot"];
    let name = frame.function.as_deref().unwrap_or_default();
    let of_libc = frame.module.as_deref().is_some_and(|module| module.contains("/libc"));
    (of_libc || SLEEP.iter().any(|start| name.starts_with(start)))
        && !LOCKS.iter().any(|lock| name.contains(lock))
}

/// Whether a function of these parts of the runtime is on the stack whose name begins so.
fn calls<'a>(mut frames: impl Iterator<Item = &'a Frame>, parts: &[&str], begins: &str) -> bool {
    frames.any(|frame| {
        parts.iter().any(|part| is_of(frame, part))
            && last_segment(frame).is_some_and(|name| name.starts_with(begins))
    })
}

/// Whether a frame is of a part of `tokio::runtime`: a path below its folder.
fn is_of(frame: &Frame, part: &str) -> bool {
    if frame.language != Language::Native {
        return false;
    }
    if let Some((_, path)) = source(frame) {
        return path.strip_prefix("runtime/").is_some_and(|path| path.starts_with(part));
    }
    let path = frame.function.as_deref().map(|name| name.trim_start_matches('<'));
    let path = path.and_then(|name| name.strip_prefix("tokio::runtime::"));
    path.is_some_and(|path| starts_with_path(path, part))
}

/// Whether a path of modules begins with a path of files: `task::raw` with `task/`.
fn starts_with_path(modules: &str, part: &str) -> bool {
    let mut modules = modules.split("::");
    part.split('/').filter(|name| !name.is_empty()).all(|name| modules.next() == Some(name))
}

/// Of a file of tokio's: the version, where its folder bears one, and the path below `src`.
fn source(frame: &Frame) -> Option<(Option<&str>, &str)> {
    let mut rest = frame.file.as_deref()?;
    while let Some(at) = rest.find("/tokio") {
        rest = rest.get(at + "/tokio".len()..)?;
        let (folder, path) = rest.split_once("/src/").unwrap_or((rest, ""));
        let version = folder.strip_prefix('-').filter(|version| {
            version.starts_with(|first: char| first.is_ascii_digit()) && !version.contains('/')
        });
        // A vendored copy stands in a folder without a version; `tokio-util-0.7` is another crate.
        if !path.is_empty() && (folder.is_empty() || version.is_some()) {
            return Some((version, path));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGISTRY: &str = "/home/dev/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f";

    fn frame(function: &str, file: Option<&str>) -> Frame {
        Frame {
            function: Some(function.into()),
            file: file.map(|file| format!("{REGISTRY}/{file}").into()),
            line: None,
            module: Some("/srv/server".into()),
            language: Language::Native,
            inlined: false,
            address: None,
            module_offset: None,
        }
    }

    /// The version is the folder's; without files the paths of functions tell that it is tokio.
    #[test]
    fn recognised() {
        let version = |frames: &[Frame]| recognise(frames).map(|tokio| tokio.version);
        let poll = frame("poll<app::serve>", Some("tokio-1.54.1/src/runtime/task/core.rs"));
        assert_eq!(version(&[poll]), Some(Some("1.54.1".to_owned())));
        let symbol = frame("tokio::runtime::task::raw::poll", None);
        assert_eq!(version(&[symbol]), Some(None));
        let method = frame("<tokio::runtime::park::CachedParkThread>::block_on", None);
        assert_eq!(version(&[method]), Some(None));
        let other = frame("poll_write_buf", Some("tokio-util-0.7.1/src/runtime/x.rs"));
        let lock = frame("lock", Some("tokio-1.54.1/src/sync/mutex.rs"));
        let ours = frame("tokio_target::tokio::runtime::poll", None);
        assert_eq!(version(&[other, lock, ours]), None);
        let vendored = Frame {
            file: Some("/build/vendor/tokio/src/runtime/task/raw.rs".into()),
            ..frame("poll", None)
        };
        assert_eq!(version(&[vendored]), Some(None));
    }

    /// A worker waits for work below its park; not when it wakes others, nor in a lock of the driver's.
    #[test]
    fn parked() {
        let parks = |frames: &[Frame]| is_parked(frames.iter());
        let park = "tokio-1.54.1/src/runtime/scheduler/multi_thread/park.rs";
        let worker = "tokio-1.54.1/src/runtime/scheduler/multi_thread/worker.rs";
        assert!(parks(&[frame("park_condvar", Some(park)), frame("park_internal", Some(worker))]));
        let name = "tokio::runtime::scheduler::multi_thread::worker::Context::park_internal";
        assert!(parks(&[frame(name, None)]));
        let name = "<tokio::runtime::scheduler::multi_thread::worker::Context>::park_internal";
        assert!(parks(&[frame(name, None)]));
        assert!(parks(&[frame("park", Some("tokio-1.54.1/src/runtime/park.rs"))]));
        let name = "tokio::runtime::scheduler::multi_thread::park::Unparker::unpark";
        assert!(!parks(&[frame(name, None)]));
        assert!(!parks(&[frame("park_driver", Some(park)), frame("park", Some(worker))]));
        assert!(!parks(&[frame("run_task", Some(worker))]));
        assert!(!parks(&[frame("parking_lot::park", None)]));
    }

    /// Symbols of a release build: `run` is inlined into what polls the task that the worker is, and
    /// parking may be, too. What `spawn_blocking` was given is told from it.
    #[test]
    fn inlined_run() {
        let closure =
            "<tokio::runtime::scheduler::multi_thread::worker::Launch>::launch::{closure#0}";
        let poll = |what: &str| {
            let schedule = "tokio::runtime::blocking::schedule::BlockingSchedule";
            let task = format!("tokio::runtime::blocking::task::BlockingTask<{what}>");
            frame(&format!("tokio::runtime::task::raw::poll::<{task}, {schedule}>"), None)
        };
        let worker = poll(closure);
        assert!(is_worker([worker.clone()].iter()) && !is_off_duty([worker.clone()].iter()));
        assert!(!polls_task(&worker));
        let blocking = poll("shop::resize::{closure#0}");
        assert!(!is_worker([blocking.clone()].iter()) && is_off_duty([blocking].iter()));
        let begin = "std::sys::backtrace::__rust_begin_short_backtrace::\
                     <<tokio::runtime::blocking::pool::Spawner>::spawn_thread::{closure#0}, ()>";
        let begin = frame(begin, None);
        let wait = frame("<std::sys::sync::condvar::futex::Condvar>::wait_timeout", None);
        assert!(is_off_duty([wait.clone(), begin.clone()].iter()));
        assert!(!is_off_duty([wait, worker.clone(), begin].iter()));
        let task = frame("tokio::runtime::task::raw::poll::<shop::pay::{closure#0}, S>", None);
        assert!(polls_task(&task));
        assert!(is_worker([task, worker].iter()));
    }

    /// Whoever runs tasks is a worker, the thread inside `block_on` too.
    #[test]
    fn workers() {
        let run = "tokio::runtime::scheduler::multi_thread::worker::run";
        assert!(is_worker([frame(run, None)].iter()));
        let block_on = "tokio::runtime::park::CachedParkThread::block_on";
        assert!(is_worker([frame(block_on, None)].iter()));
        let pool = "tokio::runtime::blocking::pool::Inner::run";
        assert!(!is_worker([frame(pool, None)].iter()));
    }

    /// Workers are threads of the blocking pool, in which all else may block.
    #[test]
    fn blocking_pool() {
        let worker = "tokio-1.54.1/src/runtime/scheduler/multi_thread/worker.rs";
        let pool = frame("run", Some("tokio-1.54.1/src/runtime/blocking/pool.rs"));
        let handler = frame("shop::pay::{{closure}}", None);
        let run = frame("run", Some(worker));
        let works = [handler.clone(), run.clone(), pool.clone()];
        assert!(!is_off_duty(works.iter()));
        assert!(is_off_duty([handler.clone(), pool.clone()].iter()));
        let handed_over = frame("block_in_place<shop::pay::{closure_env#0}>", Some(worker));
        assert!(is_off_duty([handler, handed_over, run, pool].iter()));
    }

    /// Tasks are run by the scheduler; the rest of the runtime may be called by them.
    #[test]
    fn what_runs_tasks() {
        assert!(runs_tasks(&frame("tokio::runtime::task::raw::poll", None)));
        assert!(runs_tasks(&frame(
            "run",
            Some("tokio-1.54.1/src/runtime/scheduler/current_thread/mod.rs")
        )));
        assert!(!runs_tasks(&frame("tokio::runtime::handle::Handle::spawn", None)));
        assert!(!runs_tasks(&frame("tokio::task::spawn::spawn", None)));
        // A task that lets go of another's future runs the code of that.
        let drops = "tokio::runtime::task::harness::Harness<T,S>::drop_join_handle_slow";
        assert!(!runs_tasks(&frame(drops, None)));
    }

    /// A function's own name, however its path is written.
    #[test]
    fn own_names() {
        for (name, expected) in [
            ("park", "park"),
            ("park<a::B, c::D>", "park"),
            ("a::b::park(c::d&)", "park"),
            ("a::b::park", "park"),
            ("<a::B>::park", "park"),
            ("<a::B<c::D> as e::F>::park", "park"),
            ("a::b::park::<c::D>", "park"),
        ] {
            assert_eq!(last_segment(&frame(name, None)), Some(expected), "{name}");
        }
    }
}
