//! Pools of Python threads: whether a thread waits there for work, by its Python frames, and which work it has in hand.

use std::path::Path;

use profiler_ebpf::python::PythonWalk;
use profiler_ebpf::record::Registers;
use profiler_ebpf::turn::{FUTEX, wait, wait_of};

use super::capture::{Named, PythonFrames};
use super::names::{FrameKind, NamedFrame};
use crate::frame::{Frame, Language};
use crate::process::frozen::is_of_a_loop;
use crate::runtime::park::{ParkState, Pool, Sleeper, Word};
use crate::unwind::merge::NamedNativeStack;

/// Threads that are handed work through a queue: gunicorn's gthread, `run_in_executor`.
pub const THREAD_POOL: Pool =
    Pool { name: "thread-pool", may_take_its_time: true, has_queue: true, waits_in_epoll: false };

/// uWSGI's threads take turns at the listening socket, under a lock.
pub const UWSGI: Pool =
    Pool { name: "uwsgi", may_take_its_time: false, has_queue: false, waits_in_epoll: false };

/// Where the loops of these pools wait: the end of the file's path, and the function.
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

/// What a thread is about by its Python frames, or by the interpreter's own functions. None: they do not tell.
pub fn park_state(sleeper: &Sleeper<'_>) -> Option<ParkState> {
    let Sleeper { registers, named, frames, .. } = sleeper;
    let python = frames.of::<PythonFrames>();
    if is_finalizing(named, python) {
        return Some(ParkState::OffDuty);
    }
    let Some(PythonFrames::Named(Named { frames, walk: PythonWalk::Complete, .. })) = python else {
        return None;
    };
    if let Some(of_uwsgi) = of_uwsgi(named, frames) {
        return Some(of_uwsgi);
    }
    match of_python(frames)? {
        // Who does not sleep on a futex cannot have parked.
        ParkState::Parked(..) if registers.syscall != FUTEX => Some(ParkState::Unknown),
        ParkState::Looping { .. } => Some(ParkState::Looping { idle: is_epoll_wait(registers) }),
        state => Some(state),
    }
}

/// Whether the thread ends its interpreter. Its last loop is over, though it may not have been closed: what
/// is waited for now (threads to be joined, exit handlers) holds up no loop, unless one runs in a handler.
fn is_finalizing(named: &NamedNativeStack, python: Option<&PythonFrames>) -> bool {
    let frames = match python {
        Some(PythonFrames::Named(named)) => named.frames.as_slice(),
        Some(PythonFrames::Missing(_)) | None => &[],
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

fn of_python(frames: &[NamedFrame]) -> Option<ParkState> {
    let shown = frames.iter().filter(|frame| frame.kind == FrameKind::Shown);
    let mut outwards = shown.skip_while(|frame| ends_with_any(frame, &PYTHON_WAITS));
    let first = outwards.next()?;
    if is_python_loop(first) {
        return Some(ParkState::Parked(THREAD_POOL, Word::InnermostFrame(frames.first()?.address)));
    }
    let mut loops = is_event_loop(first);
    for frame in outwards {
        if is_python_loop(frame) {
            let looping = ParkState::Looping { idle: false };
            return Some(if loops { looping } else { ParkState::Working(THREAD_POOL) });
        }
        loops |= is_event_loop(frame);
    }
    None
}

/// The frame of the call with which a pool's loop does one piece of work, as long as the thread is inside.
/// Its first variable is that work: another object for every piece.
pub fn work_frame(frames: &[NamedFrame]) -> Option<u64> {
    let mut shown = frames.iter().filter(|frame| frame.kind == FrameKind::Shown);
    let mut within = None;
    let is_loop = |frame: &NamedFrame| {
        let found = is_python_loop(frame);
        if !found {
            within = Some(frame.address);
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

fn of_uwsgi(named: &NamedNativeStack, frames: &[NamedFrame]) -> Option<ParkState> {
    let is_of_uwsgi = |frame: &Frame| {
        let file = frame.module.as_deref().map(Path::new).and_then(Path::file_name);
        file.and_then(|file| file.to_str()).is_some_and(|file| file.starts_with("uwsgi"))
    };
    if !named.frames.iter().flatten().any(is_of_uwsgi) {
        return None;
    }
    Some(match frames {
        [] => ParkState::Parked(UWSGI, Word::InnermostFrame(0)),
        _ => ParkState::Working(UWSGI),
    })
}
