//! Which threads were inside a turn of their event loop when we came: they have not been seen to wait.

use profiler_ebpf::record::{CaptureHead, RecordHead, Registers, ThreadSnapshot, kind, reason};
use profiler_ebpf::turn::{FUTEX, Loop, START_UNKNOWN, WaitCall, phase, state, wait, wait_of};

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

/// Whether a thread runs an event loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The interpreter's frames show one.
    LoopOnStack,
    /// They show none, or it waits for the end of another thread: whatever it does, it is no turn of a loop.
    NoLoop,
    /// There is no interpreter to ask.
    Unknown,
}

/// A thread to watch from now on as inside a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InTurn {
    pub thread: ThreadSnapshot,
    pub certainty: Certainty,
}

/// How sure it is that the turn is one of a loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certainty {
    /// It is.
    Sure,
    /// It is told, until another thread turns out to serve the loop.
    Likely,
    /// It may be: it is told once it ends by a wait.
    Possible,
}

/// Threads watched at most because one of them may run the loop.
const MAX_POSSIBLE: usize = 16;

/// The threads to watch from now on as inside a turn. Threads in a wait are not among them. Without an interpreter to ask, and where the process has an epoll instance that
/// nobody waits on, it is one of those that do not wait for another's end: likely the main thread, or the only
/// one.
pub fn in_turn(candidates: &[Candidate], has_epoll: bool) -> Vec<InTurn> {
    let somebody_waits = candidates.iter().any(|candidate| waits(&candidate.thread));
    let sure = candidates.iter().filter(|it| it.evidence == Evidence::LoopOnStack);
    let sure = sure.filter(|it| !waits(&it.thread));
    let mut found: Vec<InTurn> =
        sure.map(|it| InTurn { thread: it.thread, certainty: Certainty::Sure }).collect();
    if !has_epoll || somebody_waits || !found.is_empty() {
        return found;
    }
    let unknown = || candidates.iter().filter(|it| it.evidence == Evidence::Unknown);
    let is_only = unknown().count() == 1;
    found.extend(unknown().take(MAX_POSSIBLE).map(|it| {
        let is_likely = is_only || it.thread.is_main == 1;
        let certainty = if is_likely { Certainty::Likely } else { Certainty::Possible };
        InTurn { thread: it.thread, certainty }
    }));
    found
}

/// The thread whose end this one waits for, by the number that it has for itself: `pthread_join` sleeps on the
/// word that the kernel clears as the thread exits, with its number as the value, shared as the kernel's wake is.
pub fn joins(thread: &ThreadSnapshot) -> Option<u32> {
    const WAIT: u64 = 0;
    const WAIT_BITSET: u64 = 9;
    const PRIVATE: u64 = 128;
    const COMMAND: u64 = 127;
    let Registers { syscall, args: [_, operation, value, ..], .. } = thread.registers;
    let is_wait = matches!(operation & COMMAND, WAIT | WAIT_BITSET) && operation & PRIVATE == 0;
    let sleeps = thread.task_state != 0 && syscall == FUTEX;
    (sleeps && is_wait).then_some(value as u32)
}

/// What the probes are told about a thread that waits for events: no hook sees it return, where that is fexit. One in
/// `poll` or `select` may be no loop: its next such wait shows.
pub fn waiting(thread: &ThreadSnapshot, now_ns: u64) -> Option<Loop> {
    let [a, b, c, d, ..] = thread.registers.args;
    let syscall = u64::try_from(thread.registers.syscall).ok()?;
    let (kind, fd) = wait_of(syscall, [a, b, c, d])?;
    if !waits(thread) {
        return None;
    }
    let mut watched = Loop { tid: thread.tid, phase: phase::WAITING, ..Loop::default() };
    watched.adopt(&WaitCall { kind, fd, file: thread.wait_file, syscall });
    watched.home_operations = thread.wait_operations;
    watched.wait_syscall = syscall;
    watched.entered_ns = now_ns;
    Some(watched)
}

/// What the probes are told about such a thread: a turn that began at the latest now, and where the
/// thread is if it is blocked.
pub fn seed(thread: &ThreadSnapshot, now_ns: u64) -> (Loop, CaptureHead) {
    let mut watched = Loop { tid: thread.tid, ..Loop::default() };
    // The first epoll wait ends the turn, on whatever instance; a poll before it is a callback's.
    watched.adopt(&WaitCall::any(wait::EPOLL));
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
    use super::{Candidate, Certainty, Evidence, in_turn, is_of_a_loop, joins, seed, waiting};
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

    fn found(candidates: &[Candidate], has_epoll: bool) -> Vec<(u32, Certainty)> {
        let found = in_turn(candidates, has_epoll);
        found.iter().map(|it| (it.thread.tid, it.certainty)).collect()
    }

    /// A main thread that waits for nothing of its loop is likely inside a turn, unless another thread is the loop;
    /// where it waits for another's end, the other one is.
    #[test]
    fn native_threads() {
        let main = thread(1, FUTEX, Evidence::Unknown);
        let pool = thread(2, FUTEX, Evidence::Unknown);
        let both = [(1, Certainty::Likely), (2, Certainty::Possible)];
        assert_eq!(found(&[main, pool], true), both);
        assert!(found(&[main, pool], false).is_empty());
        assert!(found(&[main, thread(3, EPOLL_WAIT, Evidence::Unknown)], true).is_empty());
        let joining = Candidate { evidence: Evidence::NoLoop, ..main };
        assert_eq!(found(&[joining, pool], true), [(2, Certainty::Likely)]);
        let other = thread(3, FUTEX, Evidence::Unknown);
        let either = [(2, Certainty::Possible), (3, Certainty::Possible)];
        assert_eq!(found(&[joining, pool, other], true), either);
    }

    /// Who waits for a thread's end sleeps on that thread's number; who waits for a lock does not.
    #[test]
    fn joining_threads() {
        let sleeping = |operation, value| {
            let args = [0x7f00, operation, value, 0, 0, 0];
            let registers = Registers { syscall: FUTEX, args, ..Registers::default() };
            joins(&ThreadSnapshot { task_state: 1, registers, ..ThreadSnapshot::default() })
        };
        assert_eq!(sleeping(9 | 256, 4711), Some(4711));
        assert_eq!(sleeping(128, 2), None, "a mutex");
        assert_eq!(sleeping(1, 1), None, "it wakes others");
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
        let main = thread(1, FUTEX, Evidence::NoLoop);
        let worker = thread(2, FUTEX, Evidence::LoopOnStack);
        let idle = thread(3, EPOLL_WAIT, Evidence::LoopOnStack);
        assert_eq!(found(&[main, worker, idle], true), [(2, Certainty::Sure)]);
    }

    /// A thread in epoll is watched from there, on its very instance; one that polls, or does anything else, is not.
    #[test]
    fn waiting_threads() {
        let thread = |syscall, task_state| ThreadSnapshot {
            tid: 7,
            task_state,
            registers: Registers { syscall, args: [5, 1, 2, 0, 0, 0], ..Registers::default() },
            wait_file: 0xf000,
            wait_operations: 0xe000,
            ..ThreadSnapshot::default()
        };
        let state = waiting(&thread(232, 1), 900).unwrap();
        assert_eq!((state.phase, state.wait_syscall, state.entered_ns), (phase::WAITING, 232, 900));
        assert_eq!((state.home_fd, state.home_file, state.home_operations), (5, 0xf000, 0xe000));
        assert!(state.is_in_first_wait() && state.may_have_left_ns().is_none());
        for other in [thread(232, 0), thread(7, 1), thread(FUTEX, 1)] {
            assert!(waiting(&other, 900).is_none(), "{other:?}");
        }
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
