//! Which threads were inside a turn of their event loop when we came: they have not been seen to wait.

use profiler_ebpf::record::{CaptureHead, RecordHead, ThreadSnapshot, kind, reason};
use profiler_ebpf::turn::{Loop, START_UNKNOWN, state, wait, wait_of};

/// Files whose frames on a stack show that the thread runs an event loop.
const LOOP_FILES: [&str; 5] = [
    "/asyncio/base_events.py",
    "/asyncio/runners.py",
    "/gevent/hub.py",
    "/trio/_core/_run.py",
    "/tornado/ioloop.py",
];

/// Whether a frame of this source file shows that its thread runs an event loop.
pub fn is_of_a_loop(file: &str) -> bool {
    LOOP_FILES.iter().any(|known| file.ends_with(known))
}

/// A thread, and what else speaks for its running an event loop.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    pub thread: ThreadSnapshot,
    pub evidence: Evidence,
}

/// Whether the frames on a thread's stack show an event loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The interpreter's frames show one.
    LoopOnStack,
    /// They show none: whatever the thread does, it is no turn of a loop.
    NoLoopOnStack,
    /// There is no interpreter to ask.
    Unknown,
}

/// The threads to watch from now on as inside a turn. Threads in a wait are not among them: the
/// return of that wait will tell. Without an interpreter to ask, the main thread is taken where the
/// process has an epoll instance that nobody waits on.
pub fn in_turn(candidates: &[Candidate], has_epoll: bool) -> Vec<ThreadSnapshot> {
    let somebody_waits = candidates.iter().any(|candidate| waits(&candidate.thread));
    let is_in_turn = |candidate: &&Candidate| {
        let thread = &candidate.thread;
        match candidate.evidence {
            _ if waits(thread) => false,
            Evidence::LoopOnStack => true,
            Evidence::NoLoopOnStack => false,
            Evidence::Unknown => thread.is_main == 1 && has_epoll && !somebody_waits,
        }
    };
    candidates.iter().filter(is_in_turn).map(|candidate| candidate.thread).collect()
}

/// What the probes are told about such a thread: a turn that began at the latest now, and where the
/// thread is if it is blocked.
pub fn seed(thread: &ThreadSnapshot, now_ns: u64) -> (Loop, CaptureHead) {
    let mut watched = Loop { tid: thread.tid, ..Loop::default() };
    // The first epoll wait ends the turn, on whatever instance; a poll before it is a callback's.
    watched.adopt(wait::EPOLL, u32::MAX);
    watched.begin(now_ns, START_UNKNOWN);
    if thread.task_state == 0 {
        watched.state = match thread.on_cpu {
            0 if thread.registers.syscall < 0 => state::PREEMPTED,
            // It may as well have been woken.
            0 => state::RUNNABLE,
            _ => state::RUNNING,
        };
        return (watched, CaptureHead::default());
    }
    watched.state = state::of_sleep(thread.task_state);
    let capture = CaptureHead {
        head: RecordHead { kind: kind::CAPTURE, tid: thread.tid },
        at_ns: now_ns,
        turn_start_ns: now_ns,
        reason: reason::SWITCH_OUT,
        state: watched.state,
        task_state: thread.task_state,
        registers: thread.registers,
        stack_top: thread.stack_top,
        fsbase: thread.fsbase,
        ..CaptureHead::default()
    };
    (watched, capture)
}

/// Whether the thread sleeps in a wait of the kind that loops use.
pub fn waits(thread: &ThreadSnapshot) -> bool {
    let registers = &thread.registers;
    let [a, b, c, d, ..] = registers.args;
    thread.task_state != 0
        && u64::try_from(registers.syscall)
            .ok()
            .and_then(|syscall| wait_of(syscall, [a, b, c, d]))
            .is_some_and(|(kind, _)| kind != wait::POLL)
}

/// Whether the thread sleeps in a poll or select, as the loops of processes without epoll do.
pub fn polls(thread: &ThreadSnapshot) -> bool {
    let [a, b, c, d, ..] = thread.registers.args;
    thread.task_state != 0
        && u64::try_from(thread.registers.syscall)
            .ok()
            .and_then(|syscall| wait_of(syscall, [a, b, c, d]))
            .is_some_and(|(kind, _)| kind == wait::POLL)
}

#[cfg(test)]
mod tests {
    use super::{Candidate, Evidence, in_turn, is_of_a_loop, seed};
    use profiler_ebpf::record::{Registers, ThreadSnapshot};
    use profiler_ebpf::turn::{FUTEX, START_UNKNOWN, phase, state};

    const EPOLL_WAIT: i64 = 232;

    fn thread(tid: u32, syscall: i64, evidence: Evidence) -> Candidate {
        let registers = Registers { syscall, ..Registers::default() };
        let is_main = u32::from(tid == 1);
        let thread =
            ThreadSnapshot { tid, is_main, task_state: 1, registers, ..ThreadSnapshot::default() };
        Candidate { thread, evidence }
    }

    fn tids(candidates: &[Candidate], has_epoll: bool) -> Vec<u32> {
        in_turn(candidates, has_epoll).iter().map(|thread| thread.tid).collect()
    }

    /// A main thread that waits for nothing of its loop is inside a turn, unless another thread is
    /// the loop.
    #[test]
    fn native_main_thread() {
        let main = thread(1, FUTEX, Evidence::Unknown);
        let pool = thread(2, FUTEX, Evidence::Unknown);
        assert_eq!(tids(&[main, pool], true), [1]);
        assert!(tids(&[main, pool], false).is_empty());
        assert!(tids(&[main, thread(3, EPOLL_WAIT, Evidence::Unknown)], true).is_empty());
    }

    /// A file is a loop's by where it ends, not by its name alone.
    #[test]
    fn files_of_loops() {
        assert!(is_of_a_loop("/usr/lib/python3.11/asyncio/base_events.py"));
        assert!(!is_of_a_loop("/srv/app/base_events.py"));
    }

    /// The interpreter's frames decide, whichever thread it is.
    #[test]
    fn python_threads() {
        let main = thread(1, FUTEX, Evidence::NoLoopOnStack);
        let worker = thread(2, FUTEX, Evidence::LoopOnStack);
        let idle = thread(3, EPOLL_WAIT, Evidence::LoopOnStack);
        assert_eq!(tids(&[main, worker, idle], true), [2]);
    }

    /// A thread that sleeps is seeded as blocked where it is; one that runs, or could, has no place yet.
    #[test]
    fn seeds() {
        let (blocked, capture) = seed(&thread(1, FUTEX, Evidence::Unknown).thread, 500);
        assert_eq!((blocked.phase, blocked.state), (phase::TURN, state::BLOCKED));
        assert_eq!((blocked.turn.start_ns, blocked.turn.flags), (500, START_UNKNOWN));
        assert_eq!((capture.at_ns, capture.registers.syscall), (500, FUTEX));
        for (on_cpu, syscall, expected) in
            [(1, -1, state::RUNNING), (0, -1, state::PREEMPTED), (0, FUTEX, state::RUNNABLE)]
        {
            let registers = Registers { syscall, ..Registers::default() };
            let ready = ThreadSnapshot { on_cpu, registers, ..ThreadSnapshot::default() };
            let (ready, capture) = seed(&ready, 500);
            assert_eq!((ready.state, capture.at_ns), (expected, 0));
        }
    }
}
