//! Whether a sleeping thread is a worker that waits for work, or one inside its work, by its named stack.
//!
//! A worker of a pool waits for work in the same syscall as for a lock inside its work. What tells
//! them apart is who called: the pool's own loop, or the work. Each pool that is known has its rule
//! here; of any other thread nothing is said.

use std::path::Path;

use profiler_ebpf::python::{PythonFrame, PythonWalk};
use profiler_ebpf::record::Registers;
use profiler_ebpf::turn::{FUTEX, wait, wait_of};

use crate::frame::{Frame, Language};
use crate::process::frozen::is_of_a_loop;
use crate::runtime::cpython::capture::PythonFrames;
use crate::runtime::cpython::{FrameKind, NamedFrame};
use crate::runtime::{tokio, worker_threads};
use crate::unwind::merge::NamedNativeStack;
use crate::unwind::native::NativeStack;

/// The pools that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// Python threads that are handed work through a queue: gunicorn's gthread, `run_in_executor`.
    Python,
    /// uWSGI's threads take turns at the listening socket, under a lock.
    Uwsgi,
    /// tokio's workers park on a futex, all but the one that waits in epoll.
    Tokio,
    /// Node's worker threads: each has an event loop of its own, by which it is handed messages.
    Node,
}

impl Posture {
    /// The thread is not in a turn, whatever the probes know of it.
    pub fn is_idle(self) -> bool {
        matches!(self, Self::Parked(..) | Self::OffDuty | Self::Looping { idle: true })
    }
}

impl Pool {
    /// As a report's `thread.loop` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Python => "thread-pool",
            Self::Uwsgi => "uwsgi",
            Self::Tokio => "tokio",
            Self::Node => "worker_threads",
        }
    }

    /// What its threads are handed may take its time: nobody but who asked for it waits meanwhile.
    pub fn may_take_its_time(self) -> bool {
        matches!(self, Self::Python | Self::Node)
    }
}

/// What a sleeping thread is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posture {
    /// It waits for work; the word is there whenever it does.
    Parked(Pool, Word),
    /// It sleeps inside its work.
    Working(Pool),
    /// The work that it was handed is an event loop, which may be waiting.
    Looping { idle: bool },
    /// It has handed its work over, was started for what may block, or ends its interpreter: nobody waits
    /// for it.
    OffDuty,
    /// It is no worker that we know.
    Unknown,
}

/// One word that a parked thread has in its memory, and one that works has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// The return address into the pool's own code.
    ReturnAddress { at: u64, value: u64 },
    /// The interpreter's innermost frame; 0 where no Python code runs in the thread.
    PythonFrame(u64),
}

/// Where the loops of Python's pools wait: the end of the file's path, and the function.
const PYTHON_LOOPS: [(&str, &str); 3] = [
    ("/concurrent/futures/thread.py", "_worker"),
    ("/anyio/_backends/_asyncio.py", "run"),
    ("/waitress/task.py", "handler_thread"),
];

/// What ends an interpreter, as its library exports or names it.
const FINALIZERS: [&str; 4] =
    ["Py_FinalizeEx", "Py_Finalize", "_Py_Finalize", "wait_for_thread_shutdown"];

/// What an interpreter that ends calls, each from no Python code: to join threads, and exit handlers.
const LAST_CALLS: [(&str, &str); 4] = [
    ("/threading.py", "_shutdown"),
    ("/concurrent/futures/thread.py", "_python_exit"),
    ("/multiprocessing/util.py", "_exit_function"),
    ("/logging/__init__.py", "shutdown"),
];

/// What those loops wait with, where it is written in Python.
const PYTHON_WAITS: [&str; 2] = ["/threading.py", "/queue.py"];

/// Says it of a thread by its stack, which was taken while it slept, or ran: a thread that does not sleep
/// on a futex cannot have parked.
pub fn posture(
    registers: &Registers,
    native: &NativeStack,
    named: &NamedNativeStack,
    raw: &[PythonFrame],
    python: &PythonFrames,
) -> Posture {
    if worker_threads::runs_in(named) {
        return of_node(registers, native, named);
    }
    let tokio = || of_tokio(registers, native, named);
    if is_finalizing(named, python) {
        return Posture::OffDuty;
    }
    let posture = match python {
        PythonFrames::Named { frames, walk: PythonWalk::Complete, .. } => {
            if let Some(posture) = of_uwsgi(named, frames) {
                return posture;
            }
            of_python(raw, frames).or_else(tokio).unwrap_or(Posture::Unknown)
        }
        _ => tokio().unwrap_or(Posture::Unknown),
    };
    match posture {
        Posture::Parked(..) if registers.syscall != FUTEX => Posture::Unknown,
        Posture::Looping { .. } => Posture::Looping { idle: is_epoll_wait(registers) },
        posture => posture,
    }
}

/// Whether the thread ends its interpreter. Its last loop is over, though it may not have been closed: what
/// is waited for now (threads to be joined, exit handlers) holds up no loop, unless one runs in a handler.
fn is_finalizing(named: &NamedNativeStack, python: &PythonFrames) -> bool {
    let frames = match python {
        PythonFrames::Named { frames, .. } => frames.as_slice(),
        PythonFrames::NotPython | PythonFrames::Missing(_) => &[],
    };
    if frames.iter().any(is_event_loop) {
        return false;
    }
    // What the interpreter calls as it ends, for where the compiler has put its own function elsewhere.
    let outermost = frames.iter().rev().find(|frame| frame.kind == FrameKind::Shown);
    let is_last = |frame: &NamedFrame| is_one_of(frame, &LAST_CALLS);
    let is_end = |frame: &Frame| {
        let name = frame.function.as_deref().unwrap_or_default();
        frame.language == Language::Native && FINALIZERS.contains(&name)
    };
    outermost.is_some_and(is_last) || named.frames.iter().flatten().any(is_end)
}

fn is_epoll_wait(registers: &Registers) -> bool {
    let [a, b, c, d, ..] = registers.args;
    let syscall = u64::try_from(registers.syscall).ok();
    syscall
        .and_then(|syscall| wait_of(syscall, [a, b, c, d]))
        .is_some_and(|(kind, _)| kind == wait::EPOLL)
}

fn of_python(raw: &[PythonFrame], frames: &[NamedFrame]) -> Option<Posture> {
    let shown = frames.iter().filter(|frame| frame.kind == FrameKind::Shown);
    let mut outwards = shown.skip_while(|frame| ends_with_any(frame, &PYTHON_WAITS));
    let first = outwards.next()?;
    if is_python_loop(first) {
        return Some(Posture::Parked(Pool::Python, Word::PythonFrame(raw.first()?.frame)));
    }
    let mut loops = is_event_loop(first);
    for frame in outwards {
        if is_python_loop(frame) {
            let looping = Posture::Looping { idle: false };
            return Some(if loops { looping } else { Posture::Working(Pool::Python) });
        }
        loops |= is_event_loop(frame);
    }
    None
}

/// The frame of the call with which a pool's loop does one piece of work, as long as the thread is inside.
/// Its first variable is that work: another object for every piece.
pub fn work_frame(raw: &[PythonFrame], frames: &[NamedFrame]) -> Option<u64> {
    let outwards = raw.iter().zip(frames);
    let mut shown = outwards.filter(|(_, frame)| frame.kind == FrameKind::Shown);
    let mut within = None;
    let is_loop = |(raw, frame): (&PythonFrame, &NamedFrame)| {
        let found = is_python_loop(frame);
        if !found {
            within = Some(raw.frame);
        }
        found
    };
    shown.any(is_loop).then_some(within).flatten()
}

fn is_event_loop(frame: &NamedFrame) -> bool {
    frame.file.as_deref().is_some_and(is_of_a_loop)
}

fn ends_with_any(frame: &NamedFrame, ends: &[&str]) -> bool {
    frame.file.as_deref().is_some_and(|file| ends.iter().any(|end| file.ends_with(end)))
}

fn is_python_loop(frame: &NamedFrame) -> bool {
    is_one_of(frame, &PYTHON_LOOPS)
}

fn is_one_of(frame: &NamedFrame, known: &[(&str, &str)]) -> bool {
    let (Some(file), Some(function)) = (&frame.file, &frame.function) else { return false };
    // From 3.11 on it is the qualified name.
    let function = function.rsplit('.').next().unwrap_or_default();
    known.iter().any(|(end, name)| file.ends_with(end) && function == *name)
}

/// A worker thread waits for messages in epoll, which is hooked as any loop's wait. Pools of them wait for
/// their work with `Atomics.wait`.
fn of_node(registers: &Registers, native: &NativeStack, named: &NamedNativeStack) -> Posture {
    if registers.syscall != FUTEX {
        return Posture::Working(Pool::Node);
    }
    let place = || {
        let at = native.frames.get(worker_threads::atomics_wait(named)?)?;
        Some(Word::ReturnAddress { at: at.stack_pointer.checked_sub(8)?, value: at.address })
    };
    match place() {
        Some(word) => Posture::Parked(Pool::Node, word),
        None if worker_threads::sleeps_namelessly(named) => Posture::OffDuty,
        None => Posture::Working(Pool::Node),
    }
}

fn of_uwsgi(named: &NamedNativeStack, frames: &[NamedFrame]) -> Option<Posture> {
    let is_of_uwsgi = |frame: &Frame| {
        let file = frame.module.as_deref().map(Path::new).and_then(Path::file_name);
        file.and_then(|file| file.to_str()).is_some_and(|file| file.starts_with("uwsgi"))
    };
    if !named.frames.iter().flatten().any(is_of_uwsgi) {
        return None;
    }
    Some(match frames {
        [] => Posture::Parked(Pool::Uwsgi, Word::PythonFrame(0)),
        _ => Posture::Working(Pool::Uwsgi),
    })
}

fn of_tokio(
    registers: &Registers,
    native: &NativeStack,
    named: &NamedNativeStack,
) -> Option<Posture> {
    let all = || named.frames.iter().flatten();
    if !all().any(tokio::may_be_of) {
        return None;
    }
    if tokio::is_off_duty(all()) {
        return Some(Posture::OffDuty);
    }
    let of_runtime = |inlined: &Vec<Frame>| inlined.iter().any(tokio::is_runtime);
    let index = named.frames.iter().position(of_runtime)?;
    if !tokio::is_worker(all()) {
        return None;
    }
    // Where names lack the small functions, what lies within the runtime's innermost tells.
    let within = named.frames.iter().take(index).flatten();
    let inlined = named.frames[index].iter().take_while(|frame| !tokio::is_runtime(frame));
    // A lock may be inlined into the task that takes it.
    let in_task = named.frames[index].iter().any(tokio::polls_task);
    let sleeps = || index > 0 && !in_task && within.chain(inlined).all(is_of_parking);
    if registers.syscall != FUTEX || !(tokio::is_parked(all()) || sleeps()) {
        return Some(Posture::Working(Pool::Tokio));
    }
    let at = native.frames.get(index)?;
    let word = Word::ReturnAddress { at: at.stack_pointer.checked_sub(8)?, value: at.address };
    Some(Posture::Parked(Pool::Tokio, word))
}

/// Whether nothing on the stack of a thread that sleeps on a futex tells whether it parks or works: no
/// interpreter's frame, and no lock's. It may be the worker of a pool that is stripped or not known (asio's
/// wait on a condition, as work may), and where others serve its epoll instance, most of them park.
pub fn is_untold(frames: &[Frame]) -> bool {
    // Of the function itself: C++ names the types of parameters, too.
    const LOCKS: [&str; 5] =
        ["mutex_lock", "lll_lock", "rwlock", "read_contended", "write_contended"];
    let is_lock = |name: &str| {
        name.starts_with("lock")
            || name.starts_with("Lock")
            || LOCKS.iter().any(|lock| name.contains(lock))
    };
    let tells = |frame: &Frame| {
        frame.language != Language::Native || tokio::last_segment(frame).is_some_and(is_lock)
    };
    !frames.iter().any(tells)
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

#[cfg(test)]
mod tests {
    use profiler_ebpf::python::{PythonFrame, PythonWalk};
    use profiler_ebpf::record::Registers;
    use profiler_ebpf::turn::FUTEX;

    use super::{Pool, Posture, Word, is_untold, posture, work_frame};
    use crate::frame::{Frame, Language};
    use crate::report::sample::{native, python as python_frame};
    use crate::runtime::cpython::capture::PythonFrames;
    use crate::runtime::cpython::{FrameKind, NamedFrame};
    use crate::unwind::merge::NamedNativeStack;
    use crate::unwind::native::{NativeFrame, NativeStack, Reached};

    const ON_FUTEX: Registers = Registers { ip: 1, sp: 2, bp: 3, syscall: FUTEX, args: [0; 6] };

    fn python(frames: &[(&str, &str)]) -> (Vec<PythonFrame>, PythonFrames) {
        let raw = (0..frames.len() as u64)
            .map(|at| PythonFrame { frame: 0x100 + at, ..PythonFrame::default() });
        let named = frames.iter().map(|(function, file)| NamedFrame {
            address: 0,
            is_resumable: false,
            function: Some((*function).into()),
            file: Some((*file).into()),
            line: Some(1),
            first_line: Some(1),
            is_coroutine: false,
            kind: FrameKind::Shown,
            ends_eval: true,
            gap: None,
        });
        let (frames, walk) = (named.collect(), PythonWalk::Complete);
        let frames = PythonFrames::Named { frames, walk, running: None, call: None };
        (raw.collect(), frames)
    }

    fn of_python(frames: &[(&str, &str)]) -> Posture {
        let (raw, frames) = python(frames);
        posture(&ON_FUTEX, &NativeStack::default(), &NamedNativeStack::default(), &raw, &frames)
    }

    /// A native stack of (function, module), innermost first, the n-th at address and stack pointer
    /// 0x1000 * (n + 1).
    fn of_native(functions: &[(&str, &str)], frames: &PythonFrames) -> Posture {
        let mut native = NativeStack::default();
        let mut named = NamedNativeStack::default();
        for (index, (function, module)) in functions.iter().enumerate() {
            let address = 0x1000 * (index as u64 + 1);
            native.frames.push(NativeFrame {
                address,
                stack_pointer: address,
                reached: Reached::Registers,
                frame_pointer: 0,
                is_return_address: index > 0,
                module: None,
                file_offset: None,
            });
            named.frames.push(vec![Frame {
                function: Some((*function).into()),
                file: None,
                line: None,
                module: Some((*module).into()),
                language: Language::Native,
                inlined: false,
                address: Some(address),
                module_offset: None,
            }]);
        }
        posture(&ON_FUTEX, &native, &named, &[], frames)
    }

    const POOL: (&str, &str) = ("_worker", "/usr/lib/python3.11/concurrent/futures/thread.py");

    /// A pool's loop that waits is parked, also where the waiting is written in Python; the same loop
    /// further out means that the thread works.
    #[test]
    fn python_pool() {
        let parked = Posture::Parked(Pool::Python, Word::PythonFrame(0x100));
        assert_eq!(of_python(&[POOL, ("Thread.run", "/lib/threading.py")]), parked);
        let get = ("Queue.get", "/lib/queue.py");
        assert_eq!(of_python(&[("Condition.wait", "/lib/threading.py"), get, POOL]), parked);
        let work = ("handle", "/srv/app.py");
        assert_eq!(of_python(&[get, work, POOL]), Posture::Working(Pool::Python));
        let select = ("EpollSelector.select", "/lib/selectors.py");
        let event_loop = ("BaseEventLoop._run_once", "/lib/asyncio/base_events.py");
        let looping = of_python(&[select, event_loop, work, POOL]);
        assert_eq!(looping, Posture::Looping { idle: false });
        assert_eq!(of_python(&[get, work]), Posture::Unknown);
        assert_eq!(of_python(&[]), Posture::Unknown);
        let (raw, frames) = python(&[POOL]);
        let asleep = Registers { syscall: 230, ..ON_FUTEX };
        let (native, named) = (NativeStack::default(), NamedNativeStack::default());
        assert_eq!(posture(&asleep, &native, &named, &raw, &frames), Posture::Unknown);
    }

    /// A thread that ends its interpreter is in no turn, whatever it waits for: by Python's own functions
    /// that only then stand outermost, or by the interpreter's; but for a loop in an exit handler.
    #[test]
    fn the_interpreter_ends() {
        let join = ("Thread.join", "/lib/threading.py");
        let shutdown = ("_shutdown", "/lib/threading.py");
        assert_eq!(of_python(&[join, shutdown]), Posture::OffDuty);
        let app = ("close", "/srv/app.py");
        assert_eq!(of_python(&[join, app]), Posture::Unknown);
        assert_eq!(of_python(&[shutdown, app]), Posture::Unknown, "not from the interpreter");
        let stack =
            [("pthread_cond_wait", "/lib/libc.so.6"), ("Py_FinalizeEx", "/usr/bin/python3")];
        assert_eq!(of_native(&stack, &python(&[app]).1), Posture::OffDuty);
        let event_loop = ("BaseEventLoop._run_once", "/lib/asyncio/base_events.py");
        assert_eq!(of_native(&stack, &python(&[app, event_loop]).1), Posture::Unknown);
        assert_eq!(of_native(&stack, &PythonFrames::NotPython), Posture::OffDuty);
    }

    /// The piece of work is found in the frame that the pool's loop called.
    #[test]
    fn work_in_hand() {
        let named = |calls: &[(&str, &str)]| match python(calls) {
            (raw, PythonFrames::Named { frames, .. }) => work_frame(&raw, &frames),
            _ => None,
        };
        let thread = ("Thread.run", "/lib/threading.py");
        let run = ("_WorkItem.run", "/usr/lib/python3.11/concurrent/futures/thread.py");
        assert_eq!(named(&[("handle", "/srv/app.py"), run, POOL, thread]), Some(0x101));
        assert_eq!(named(&[POOL, thread]), None);
        assert_eq!(named(&[("handle", "/srv/app.py"), run, thread]), None);
    }

    /// A stack without a name outside of the C library tells nothing, and neither does a condition; a
    /// lock's frame or Python's does.
    #[test]
    fn what_tells() {
        let libc = native("syscall", "/usr/lib/x86_64-linux-gnu/libc.so.6");
        let stripped = Frame { function: None, ..native("", "/v/granian/_granian.so") };
        let frames = [libc.clone(), stripped.clone(), libc.clone()];
        assert!(is_untold(&frames) && is_untold(&frames[..1]));
        let wait = native("pthread_cond_wait", "/usr/lib/x86_64-linux-gnu/libc.so.6");
        let run = native(
            "asio::detail::scheduler::do_run_one(asio::detail::scoped_lock&)",
            "/srv/server",
        );
        assert!(is_untold(&[wait, run]));
        assert!(!is_untold(&[libc.clone(), stripped, native("Ledger::lock", "/srv/ledger")]));
        assert!(!is_untold(&[libc, python_frame("pay", "/srv/app.py", 3)]));
    }

    /// uWSGI's thread is idle where no Python runs in it.
    #[test]
    fn uwsgi() {
        let stack =
            [("pthread_mutex_lock", "/lib/libc.so.6"), ("uwsgi_lock", "/usr/bin/uwsgi-core")];
        let idle = of_native(&stack, &python(&[]).1);
        assert_eq!(idle, Posture::Parked(Pool::Uwsgi, Word::PythonFrame(0)));
        let busy = of_native(&stack, &python(&[("application", "/srv/app.py")]).1);
        assert_eq!(busy, Posture::Working(Pool::Uwsgi));
        let elsewhere = of_native(&stack[..1], &python(&[]).1);
        assert_eq!(elsewhere, Posture::Unknown);
    }

    /// Node's worker thread works wherever it is, but where it waits for its pool's next piece of work; where
    /// the names of V8's functions are gone, nobody can tell whether it does.
    #[test]
    fn node() {
        const NODE: &str = "/usr/bin/node";
        const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";
        let run = ("node::worker::Worker::Run()", NODE);
        let of = |inner: &[(&str, &str)]| {
            let stack: Vec<_> =
                inner.iter().copied().chain([run, ("start_thread", LIBC)]).collect();
            of_native(&stack, &PythonFrames::NotPython)
        };
        let cond = ("pthread_cond_wait", LIBC);
        let base = ("v8::base::ConditionVariable::Wait(v8::base::Mutex*)", NODE);
        let atomics = ("v8::internal::FutexEmulation::WaitJs32(v8::internal::Isolate*)", NODE);
        let builtin = ("Builtins_AtomicsWait", NODE);
        assert_eq!(of(&[("uv_run", NODE)]), Posture::Working(Pool::Node));
        let word = Word::ReturnAddress { at: 0x3000 - 8, value: 0x3000 };
        assert_eq!(of(&[cond, base, atomics, builtin]), Posture::Parked(Pool::Node, word));
        let mutex = ("napi_call_threadsafe_function", NODE);
        assert_eq!(of(&[cond, mutex, builtin]), Posture::Working(Pool::Node));
        assert_eq!(of(&[cond, ("", NODE), builtin]), Posture::OffDuty);
        let main = [cond, ("", NODE), ("node::NodeMainInstance::Run()", NODE)];
        assert_eq!(of_native(&main, &PythonFrames::NotPython), Posture::Unknown);
    }

    /// tokio's worker is parked where the runtime waits on a condition variable; a mutex that a task
    /// waits for is work, and a thread for blocking calls is nobody's concern.
    #[test]
    fn tokio() {
        const APP: &str = "/srv/app";
        let syscall = ("syscall", "/lib/x86_64-linux-gnu/libc.so.6");
        let park = ("tokio::runtime::scheduler::multi_thread::worker::Context::park_internal", APP);
        let run = ("tokio::runtime::scheduler::multi_thread::worker::run", APP);
        let pool = ("tokio::runtime::blocking::pool::Inner::run", APP);
        let condvar = ("std::sys::sync::condvar::futex::Condvar::wait", APP);
        let not_python = PythonFrames::NotPython;
        assert_eq!(
            of_native(&[syscall, condvar, park, run, pool], &not_python),
            Posture::Parked(Pool::Tokio, Word::ReturnAddress { at: 0x3000 - 8, value: 0x3000 })
        );
        let mutex = ("std::sys::sync::mutex::futex::Mutex::lock_contended", APP);
        let task = ("shop::handler::{{closure}}", APP);
        let poll = ("tokio::runtime::task::raw::poll", APP);
        let working = Posture::Working(Pool::Tokio);
        assert_eq!(of_native(&[syscall, mutex, task, poll, run], &not_python), working);
        assert_eq!(of_native(&[syscall, mutex, poll, run], &not_python), working);
        let off_duty = Posture::OffDuty;
        assert_eq!(of_native(&[syscall, condvar, pool], &not_python), off_duty);
        assert_eq!(of_native(&[syscall, condvar, task], &not_python), Posture::Unknown);
    }
}
