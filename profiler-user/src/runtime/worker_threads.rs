//! Node's worker threads by their own frames: that a thread is one, and whether it waits for its pool's next work.
//!
//! There is nothing to read in the target: the native stack tells it. Node exports the function in which
//! such a thread runs from its beginning to its end, also where its own symbols were stripped.

use profiler_ebpf::turn::FUTEX;

use super::Runtime;
use super::park::{ParkState, Pool, Sleeper, Word};
use crate::frame::{Frame, Language};
use crate::unwind::merge::NamedNativeStack;

/// Each has an event loop of its own, by which it is handed messages.
pub const POOL: Pool = Pool {
    name: "worker_threads",
    may_take_its_time: true,
    has_queue: false,
    waits_in_epoll: true,
};

/// In whose call a worker thread runs.
const RUN: &str = "node::worker::Worker::Run(";

/// In what it sleeps in `Atomics.wait`.
const ATOMICS_WAIT: &str = "v8::internal::FutexEmulation::Wait";

/// What sleeps on behalf of its caller.
const SLEEP: [&str; 4] = ["v8::base::", "std::", "uv_cond_", "uv_sem_"];

/// Their row in the table of runtimes: it holds as well where Node's V8 cannot be read.
#[derive(Debug)]
pub struct WorkerThreadsRow;

impl Runtime for WorkerThreadsRow {
    fn name(&self) -> &'static str {
        "worker threads"
    }

    fn park_state(&self, sleeper: &Sleeper<'_>) -> Option<ParkState> {
        park_state(sleeper)
    }
}

/// A worker thread waits for messages in epoll, which is hooked as any loop's wait. Pools of them wait for
/// their work with `Atomics.wait`. None: the thread is none of them.
fn park_state(sleeper: &Sleeper<'_>) -> Option<ParkState> {
    let Sleeper { registers, native, named, .. } = sleeper;
    if !runs_in(named) {
        return None;
    }
    if registers.syscall != FUTEX {
        return Some(ParkState::Working(POOL));
    }
    let word = atomics_wait(named).and_then(|frame| Word::return_to(native, frame));
    Some(match word {
        Some(word) => ParkState::Parked(POOL, word),
        None if sleeps_namelessly(named) => ParkState::OffDuty,
        None => ParkState::Working(POOL),
    })
}

/// Whether the stack is a worker thread's.
fn runs_in(named: &NamedNativeStack) -> bool {
    named.frames.iter().flatten().any(|frame| begins_with(frame, RUN))
}

/// Which frame of the stack is inside `Atomics.wait`, innermost first.
fn atomics_wait(named: &NamedNativeStack) -> Option<usize> {
    named.frames.iter().position(|inlined| inlined.iter().any(|it| begins_with(it, ATOMICS_WAIT)))
}

/// Whether nothing tells on whose behalf a thread sleeps: V8's functions have no names where symbols were
/// stripped.
fn sleeps_namelessly(named: &NamedNativeStack) -> bool {
    let sleeps = |frame: &&Frame| {
        let module = frame.module.as_deref().unwrap_or_default();
        let of_libc = module.contains("/libc.so") || module.contains("/ld-musl");
        of_libc || SLEEP.iter().any(|beginning| begins_with(frame, beginning))
    };
    let caller = named.frames.iter().flatten().find(|frame| !sleeps(frame));
    caller.is_none_or(|frame| frame.function.as_deref().unwrap_or_default().is_empty())
}

fn begins_with(frame: &Frame, beginning: &str) -> bool {
    let function = frame.function.as_deref().unwrap_or_default();
    frame.language == Language::Native && function.starts_with(beginning)
}
