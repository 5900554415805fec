//! The runtimes that are known, and what is asked of all of them.

use super::park::{ParkState, Sleeper};
use super::runtimes::Runtimes;
use super::{
    Found, Process, Runtime, RuntimeIdentity, cpython, go, ruby, tokio, v8, worker_threads,
};
use crate::frame::Frame;
use crate::gap::Gap;
use crate::process::executables::interpreter;
use crate::process::maps::Region;
use crate::process::target::WaitDescriptors;
use crate::turn::{Awaited, Lock};

/// Where two of them know an answer, the first one's counts: a worker thread of Node's is one whatever else its stack
/// shows, libuv is uvloop's where that runs it, and a program that embeds Python may be made by Go.
const KNOWN: [&dyn Runtime; 6] = [
    &worker_threads::WorkerThreadsRow,
    &cpython::PythonRow,
    &v8::V8Row,
    &go::GoRow,
    &ruby::RubyRow,
    &tokio::TokioRow,
];

/// What a process was found to run.
#[derive(Debug, Default)]
pub struct Detection {
    pub identity: Option<RuntimeIdentity>,
    /// What of it cannot be had.
    pub gap: Option<Gap>,
    /// Whether a look a moment later may tell more of it.
    pub is_early: bool,
    pub runtimes: Runtimes,
}

/// Looks for a runtime in a process, and attaches to the first.
pub fn detect(process: &Process<'_>) -> Detection {
    let family = process.exe.and_then(|exe| exe.to_str()).and_then(interpreter);
    let mut gap = None;
    for runtime in KNOWN {
        let found = match runtime.attach(process) {
            Ok(None) => continue,
            Ok(Some(found)) => found,
            Err(why) => {
                gap = gap.or(Some(why));
                continue;
            }
        };
        let Found { identity, gap: missing, is_early, attached } = found;
        let foreign =
            || (!runtime.reads_frames()).then(|| not_read(family.unwrap_or(identity.name)));
        let gap = gap.or(missing).or_else(foreign);
        let mut runtimes = Runtimes::default();
        if let Some(attached) = attached {
            runtimes.add(runtime.name(), attached);
        }
        return Detection { identity: Some(identity), gap, is_early, runtimes };
    }
    Detection { gap: gap.or_else(|| family.map(not_read)), ..Detection::default() }
}

/// What is missing of a process that runs an interpreter of this name, which nobody reads.
fn not_read(name: &str) -> Gap {
    let read = KNOWN.iter().filter(|runtime| runtime.reads_frames());
    let names: Vec<&str> = read.map(|runtime| runtime.name()).collect();
    let why = format!("only those of {} are read", names.join(" and "));
    Gap::new(&format!("frames that {name} interprets"), why)
}

/// What a program has open to wait on: without what its runtime has open for itself.
pub fn without_their_own(found: WaitDescriptors, regions: &[Region]) -> WaitDescriptors {
    KNOWN.iter().fold(found, |found, runtime| runtime.without_its_own(found, regions))
}

/// A runtime that is known by its frames alone.
pub fn recognise(frames: &[Frame]) -> Option<RuntimeIdentity> {
    KNOWN.iter().find_map(|runtime| runtime.recognise(frames))
}

/// Which event loop's code the stack runs in, by its own frames.
pub fn loop_kind(frames: &[Frame]) -> Option<&'static str> {
    let of = |frame: &Frame| KNOWN.iter().find_map(|runtime| runtime.loop_kind(frame));
    // uvloop's frames lie inside libuv's and those of asyncio's runner around both.
    frames.iter().find_map(of)
}

/// Whether a frame is one of a garbage collector.
pub fn collects(frame: &Frame) -> bool {
    KNOWN.iter().any(|runtime| runtime.collects(frame))
}

/// What a thread is about, by its stack.
pub fn park_state(sleeper: &Sleeper<'_>) -> ParkState {
    let known = KNOWN.iter().find_map(|runtime| runtime.park_state(sleeper));
    known.unwrap_or(ParkState::Unknown)
}

/// What a thread waits for that was blocked: its stack may tell more than was known of its futex.
pub fn awaited(awaited: Awaited, frames: &[Frame]) -> Awaited {
    let by_stack = || KNOWN.iter().find_map(|runtime| runtime.awaited(frames));
    match awaited {
        Awaited::Futex => by_stack().unwrap_or(awaited),
        other => other,
    }
}

/// Whether a thread that ran while another waited for this lock may have it.
pub fn may_have(lock: Lock, frames: &[Frame]) -> bool {
    !KNOWN.iter().any(|runtime| runtime.cannot_have(lock, frames))
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::python::PythonWalk;
    use profiler_ebpf::record::Registers;
    use profiler_ebpf::turn::FUTEX;

    use super::{loop_kind, park_state};
    use crate::frame::{Frame, Language};
    use crate::report::sample::{native, python as python_frame};
    use crate::runtime::cpython::capture::{Named, PythonFrames};
    use crate::runtime::cpython::pools::{THREAD_POOL, UWSGI};
    use crate::runtime::cpython::{FrameKind, NamedFrame};
    use crate::runtime::frames::{Frames, RuntimeFrames};
    use crate::runtime::park::{ParkState, Sleeper, Word, is_untold};
    use crate::runtime::{tokio, worker_threads};
    use crate::unwind::merge::NamedNativeStack;
    use crate::unwind::native::{NativeFrame, NativeStack, Reached};

    const ON_FUTEX: Registers = Registers { ip: 1, sp: 2, bp: 3, syscall: FUTEX, args: [0; 6] };

    /// Frames of (function, file), innermost first, the n-th at 0x100 + n.
    fn python(frames: &[(&str, &str)]) -> Frames {
        let named = (0x100..).zip(frames).map(|(address, (function, file))| NamedFrame {
            address,
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
        let named = Named::new(named.collect(), PythonWalk::Complete);
        let frames: Box<dyn RuntimeFrames> = Box::new(PythonFrames::Named(named));
        Frames::from_iter([frames])
    }

    fn of(
        registers: &Registers,
        native: &NativeStack,
        named: &NamedNativeStack,
        frames: &Frames,
    ) -> ParkState {
        park_state(&Sleeper { registers, native, named, frames })
    }

    fn of_python(frames: &[(&str, &str)]) -> ParkState {
        of(&ON_FUTEX, &NativeStack::default(), &NamedNativeStack::default(), &python(frames))
    }

    /// A native stack of (function, module), innermost first, the n-th at address and stack pointer
    /// 0x1000 * (n + 1).
    fn of_native(functions: &[(&str, &str)], frames: &Frames) -> ParkState {
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
        of(&ON_FUTEX, &native, &named, frames)
    }

    const POOL: (&str, &str) = ("_worker", "/usr/lib/python3.11/concurrent/futures/thread.py");

    /// A pool's loop that waits is parked, also where the waiting is written in Python; the same loop
    /// further out means that the thread works.
    #[test]
    fn python_pool() {
        let parked = ParkState::Parked(THREAD_POOL, Word::InnermostFrame(0x100));
        assert_eq!(of_python(&[POOL, ("Thread.run", "/lib/threading.py")]), parked);
        let get = ("Queue.get", "/lib/queue.py");
        assert_eq!(of_python(&[("Condition.wait", "/lib/threading.py"), get, POOL]), parked);
        let work = ("handle", "/srv/app.py");
        assert_eq!(of_python(&[get, work, POOL]), ParkState::Working(THREAD_POOL));
        let select = ("EpollSelector.select", "/lib/selectors.py");
        let event_loop = ("BaseEventLoop._run_once", "/lib/asyncio/base_events.py");
        let looping = of_python(&[select, event_loop, work, POOL]);
        assert_eq!(looping, ParkState::Looping { idle: false });
        assert_eq!(of_python(&[get, work]), ParkState::Unknown);
        assert_eq!(of_python(&[]), ParkState::Unknown);
        let frames = python(&[POOL]);
        let asleep = Registers { syscall: 230, ..ON_FUTEX };
        let (native, named) = (NativeStack::default(), NamedNativeStack::default());
        assert_eq!(of(&asleep, &native, &named, &frames), ParkState::Unknown);
    }

    /// A thread that ends its interpreter is in no turn, whatever it waits for: by Python's own functions
    /// that only then stand outermost, or by the interpreter's; but for a loop in an exit handler.
    #[test]
    fn the_interpreter_ends() {
        let join = ("Thread.join", "/lib/threading.py");
        let shutdown = ("_shutdown", "/lib/threading.py");
        assert_eq!(of_python(&[join, shutdown]), ParkState::OffDuty);
        let app = ("close", "/srv/app.py");
        assert_eq!(of_python(&[join, app]), ParkState::Unknown);
        assert_eq!(of_python(&[shutdown, app]), ParkState::Unknown, "not from the interpreter");
        let stack =
            [("pthread_cond_wait", "/lib/libc.so.6"), ("Py_FinalizeEx", "/usr/bin/python3")];
        assert_eq!(of_native(&stack, &python(&[app])), ParkState::OffDuty);
        let event_loop = ("BaseEventLoop._run_once", "/lib/asyncio/base_events.py");
        assert_eq!(of_native(&stack, &python(&[app, event_loop])), ParkState::Unknown);
        assert_eq!(of_native(&stack, &Frames::default()), ParkState::OffDuty);
    }

    /// The piece of work is found in the frame that the pool's loop called.
    #[test]
    fn work_in_hand() {
        let named = |calls: &[(&str, &str)]| python(calls).work().map(|place| place.at);
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
        let idle = of_native(&stack, &python(&[]));
        assert_eq!(idle, ParkState::Parked(UWSGI, Word::InnermostFrame(0)));
        let busy = of_native(&stack, &python(&[("application", "/srv/app.py")]));
        assert_eq!(busy, ParkState::Working(UWSGI));
        let elsewhere = of_native(&stack[..1], &python(&[]));
        assert_eq!(elsewhere, ParkState::Unknown);
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
            of_native(&stack, &Frames::default())
        };
        let cond = ("pthread_cond_wait", LIBC);
        let base = ("v8::base::ConditionVariable::Wait(v8::base::Mutex*)", NODE);
        let atomics = ("v8::internal::FutexEmulation::WaitJs32(v8::internal::Isolate*)", NODE);
        let builtin = ("Builtins_AtomicsWait", NODE);
        assert_eq!(of(&[("uv_run", NODE)]), ParkState::Working(worker_threads::POOL));
        let word = Word::ReturnAddress { at: 0x3000 - 8, value: 0x3000 };
        assert_eq!(
            of(&[cond, base, atomics, builtin]),
            ParkState::Parked(worker_threads::POOL, word)
        );
        let mutex = ("napi_call_threadsafe_function", NODE);
        assert_eq!(of(&[cond, mutex, builtin]), ParkState::Working(worker_threads::POOL));
        assert_eq!(of(&[cond, ("", NODE), builtin]), ParkState::OffDuty);
        let main = [cond, ("", NODE), ("node::NodeMainInstance::Run()", NODE)];
        assert_eq!(of_native(&main, &Frames::default()), ParkState::Unknown);
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
        let not_python = Frames::default();
        assert_eq!(
            of_native(&[syscall, condvar, park, run, pool], &not_python),
            ParkState::Parked(tokio::POOL, Word::ReturnAddress { at: 0x3000 - 8, value: 0x3000 })
        );
        let mutex = ("std::sys::sync::mutex::futex::Mutex::lock_contended", APP);
        let task = ("shop::handler::{{closure}}", APP);
        let poll = ("tokio::runtime::task::raw::poll", APP);
        let working = ParkState::Working(tokio::POOL);
        assert_eq!(of_native(&[syscall, mutex, task, poll, run], &not_python), working);
        assert_eq!(of_native(&[syscall, mutex, poll, run], &not_python), working);
        let off_duty = ParkState::OffDuty;
        assert_eq!(of_native(&[syscall, condvar, pool], &not_python), off_duty);
        assert_eq!(of_native(&[syscall, condvar, task], &not_python), ParkState::Unknown);
    }

    /// Each loop is known by its own code, and the inner one's name holds where it runs inside another's.
    #[test]
    fn loops_by_their_code() {
        let lib = |file: &str| format!("/v/lib/python3.11/site-packages/{file}");
        let asyncio = python_frame(
            "BaseEventLoop._run_once",
            "/usr/lib/python3.11/asyncio/base_events.py",
            9,
        );
        let trio = python_frame("unrolled_run", &lib("trio/_core/_run.py"), 2760);
        let greenlet = native("Greenlet_run", &lib("gevent/_gevent_cgreenlet.cpython-311.so"));
        let hub = python_frame("Hub.run", &lib("gevent/hub.py"), 647);
        let green = python_frame("GreenThread.main", &lib("eventlet/greenthread.py"), 272);
        let uvloop = native("__pyx_f_6uvloop_4loop_4Loop__run", &lib("uvloop/loop.so"));
        let reactor = |function| python_frame(function, &lib("twisted/internet/base.py"), 690);
        let table = [
            (vec![asyncio.clone()], Some("asyncio")),
            (
                vec![uvloop, native("uv_run", "/usr/lib/libuv.so.1"), asyncio.clone()],
                Some("uvloop"),
            ),
            (vec![trio], Some("trio")),
            (vec![greenlet], Some("gevent")),
            (vec![hub], Some("gevent")),
            (vec![green], Some("eventlet")),
            (vec![reactor("_SignalReactorMixin.mainLoop")], Some("twisted")),
            (vec![reactor("ReactorBase.runUntilCurrent"), asyncio], Some("asyncio")),
            (vec![python_frame("handle", "/srv/gevent/app.py", 1)], None),
        ];
        for (frames, expected) in table {
            assert_eq!(loop_kind(&frames), expected, "{:?}", frames[0].function);
        }
    }
}
