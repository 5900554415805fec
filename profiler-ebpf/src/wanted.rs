//! What the daemon asks of threads that are in no suspected turn themselves, and the rule that tells who ended a wait.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::record::Registers;
use crate::turn::FUTEX;

/// Which of the target's other threads are to be captured when a tick finds them. All zero: none.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Wanted {
    /// 1 where the thread that holds the interpreter's lock is.
    pub gil: u32,
    /// 1 where every thread is.
    pub everyone: u32,
    /// A thread that is, because it owns a lock that a loop waits for; 0: none.
    pub owner: u32,
    /// Always 0.
    pub reserved: u32,
    /// Where the interpreter keeps the thread state of its lock's holder, if that is known: a suspected
    /// loop's ticks tell whether it is the loop's thread.
    pub gil_holder_at: u64,
    /// Where it keeps whether the lock is held: an `int`.
    pub gil_locked_at: u64,
    /// Where it keeps whether garbage is being collected, if that is known: an `int`, too.
    pub collecting_at: u64,
}

/// `exit`: the kernel itself wakes whoever waits for the thread's end, or for a robust lock that it held.
const EXIT: i64 = 60;

/// `FUTEX_PRIVATE_FLAG`: the futex is of this address space alone.
const PRIVATE: u64 = 128;

/// Whether a futex call is one that wakes: `WAKE`, `REQUEUE`, `CMP_REQUEUE`, `WAKE_OP`, `UNLOCK_PI`,
/// `WAKE_BITSET`, `CMP_REQUEUE_PI` (include/uapi/linux/futex.h).
#[inline(always)]
const fn is_wake(operation: u64) -> bool {
    const WAKES: u64 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 10 | 1 << 12;
    let command = operation & 0x7f;
    command < 16 && WAKES >> (command & 15) & 1 == 1
}

/// Whether the system call that a waker is in explains the end of a wait on a futex. A timeout or a
/// signal ends a wait, too, in the context of whoever happens to be on that CPU: to be believed, the
/// call must be one that wakes, and on the same futex.
#[inline(always)]
pub const fn ends_wait(wait: &Registers, call: &Registers, same_process: bool) -> bool {
    if call.syscall == EXIT {
        return same_process;
    }
    if call.syscall != FUTEX || !is_wake(call.args[1]) {
        return false;
    }
    if same_process {
        // The fifth argument is the second futex of `WAKE_OP`.
        return call.args[0] == wait.args[0] || call.args[4] == wait.args[0];
    }
    // Another process may have mapped the same futex anywhere.
    wait.args[1] & PRIVATE == 0 && call.args[1] & PRIVATE == 0
}

/// The system calls that a wait may be ended by, as one kind of wait (x86-64).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndedBy {
    /// A timer, a device, or what is not known here.
    Nobody,
    /// The end of a child.
    Exit,
    /// That, or that the child runs another program: `vfork`.
    Exec,
    /// Somebody who writes, connects or closes the other end.
    Writer,
    /// Somebody who makes room at the other end, or closes it.
    Reader,
    /// Somebody who opens the other end of a named pipe.
    Opener,
    /// Somebody who gives back a lock on a file.
    Unlocker,
    /// Somebody at the same System V queue or semaphore.
    Ipc,
    /// Somebody at the same POSIX queue.
    MessageQueue,
}

impl EndedBy {
    #[inline(always)]
    const fn of(wait: &Registers) -> Self {
        match wait.syscall {
            61 | 247 => Self::Exit,
            56 | 58 | 435 => Self::Exec,
            // Without a descriptor to look at, only the time ends it.
            7 | 271 if wait.args[1] == 0 => Self::Nobody,
            23 | 270 if wait.args[0] == 0 => Self::Nobody,
            0 | 19 | 45 | 47 | 299 | 327 | 43 | 288 | 42 | 7 | 271 | 23 | 270 | 232 | 281 | 441
            | 275 | 276 => Self::Writer,
            1 | 20 | 44 | 46 | 307 | 328 | 40 | 278 => Self::Reader,
            2 | 257 | 85 => Self::Opener,
            72 | 73 => Self::Unlocker,
            65 | 220 | 69 | 70 => Self::Ipc,
            242 | 243 => Self::MessageQueue,
            _ => Self::Nobody,
        }
    }
}

/// Whether a wait is of a kind that another task's system call may end. Not for futexes.
#[inline(always)]
pub const fn may_be_ended(wait: &Registers) -> bool {
    !matches!(EndedBy::of(wait), EndedBy::Nobody)
}

/// Whether a system call is of the kind that ends a wait like this one, which is none on a futex. It
/// need not have: an interrupt that ends the wait may have come upon a task in any system call.
#[inline(always)]
pub const fn is_of_kind(wait: &Registers, call: i64) -> bool {
    // close, dup2, dup3, close_range, exit, exit_group: the other end is closed.
    let closes = matches!(call, 3 | 33 | 292 | 436 | EXIT | 231);
    match EndedBy::of(wait) {
        EndedBy::Nobody => false,
        EndedBy::Exit => matches!(call, EXIT | 231),
        EndedBy::Exec => matches!(call, EXIT | 231 | 59 | 322),
        // write, writev, pwritev2, send*, sendfile, splice, tee, vmsplice, shutdown, connect, accept*.
        EndedBy::Writer => {
            closes
                || matches!(call, 1 | 20 | 328 | 44 | 46 | 307 | 40 | 275 | 276 | 278 | 48 | 42)
                || matches!(call, 43 | 288)
        }
        // read, readv, preadv2, recv*, sendfile, splice, tee, shutdown.
        EndedBy::Reader => {
            closes || matches!(call, 0 | 19 | 327 | 45 | 47 | 299 | 40 | 275 | 276 | 48)
        }
        EndedBy::Opener => matches!(call, 2 | 257 | 85 | 437),
        EndedBy::Unlocker => closes || matches!(call, 72 | 73),
        // semop, semtimedop, semctl, msgsnd, msgrcv, msgctl.
        EndedBy::Ipc => closes || matches!(call, 65 | 220 | 66 | 69 | 70 | 71),
        EndedBy::MessageQueue => matches!(call, 242 | 243),
    }
}

/// What a waker counts as being in: a task that exits is in `exit`, also one that was killed in
/// another call; a task of the kernel's own is in none.
#[inline(always)]
pub const fn call_of(syscall: i64, task_flags: u32) -> i64 {
    // PF_EXITING, PF_IO_WORKER and PF_KTHREAD of include/linux/sched.h, the same since 5.12.
    const EXITING: u32 = 0x4;
    const KERNEL: u32 = 0x10 | 0x20_0000;
    if task_flags & KERNEL != 0 {
        -1
    } else if task_flags & EXITING != 0 && syscall != 231 {
        EXIT
    } else {
        syscall
    }
}

#[cfg(test)]
mod tests {
    use super::{EXIT, call_of, ends_wait, is_of_kind, may_be_ended};
    use crate::record::Registers;
    use crate::turn::FUTEX;

    fn futex(address: u64, operation: u64) -> Registers {
        let args = [address, operation, 1, 0, 0, 0];
        Registers { syscall: FUTEX, args, ..Registers::default() }
    }

    /// Only a call that wakes, on the same futex, ends a wait.
    #[test]
    fn who_ends_a_wait() {
        const WAIT_BITSET: u64 = 9;
        let wait = futex(0x7000, WAIT_BITSET | 128);
        assert!(ends_wait(&wait, &futex(0x7000, 1 | 128), true));
        assert!(ends_wait(&wait, &futex(0x7000, 7), true));
        assert!(!ends_wait(&wait, &futex(0x7010, 1 | 128), true), "another futex");
        assert!(!ends_wait(&wait, &futex(0x7000, WAIT_BITSET), true), "a wait wakes nobody");
        assert!(!ends_wait(&wait, &futex(0x7000, 17), true), "no such command");
        let interrupted = Registers { syscall: -1, ..futex(0x7000, 1) };
        assert!(!ends_wait(&wait, &interrupted, true), "a timer's interrupt");
    }

    /// The second futex of a call counts, and a thread's end wakes its own process's threads alone.
    #[test]
    fn other_ways_to_wake() {
        let wait = futex(0x7000, 0);
        let mut call = futex(0x5000, 5);
        call.args[4] = 0x7000;
        assert!(ends_wait(&wait, &call, true));
        let exit = Registers { syscall: EXIT, ..Registers::default() };
        assert!(ends_wait(&wait, &exit, true));
        assert!(!ends_wait(&wait, &exit, false));
    }

    fn wait(syscall: i64, args: [u64; 6]) -> Registers {
        Registers { syscall, args, ..Registers::default() }
    }

    /// Each kind of wait has the calls that end it, and no others.
    #[test]
    fn kinds_of_ends() {
        const READ: i64 = 0;
        const WRITE: i64 = 1;
        const CLOSE: i64 = 3;
        const POLL: i64 = 7;
        const SENDTO: i64 = 44;
        const EXECVE: i64 = 59;
        const WAIT4: i64 = 61;
        const FLOCK: i64 = 73;
        const NANOSLEEP: i64 = 230;
        const EXIT_GROUP: i64 = 231;
        let descriptor = [5, 1, 0, 0, 0, 0];
        let table: [(i64, &[i64], &[i64]); 6] = [
            (READ, &[WRITE, SENDTO, CLOSE, EXIT_GROUP], &[READ, FLOCK, -1, NANOSLEEP]),
            (POLL, &[WRITE, SENDTO, CLOSE], &[READ, FLOCK, -1]),
            (WRITE, &[READ, CLOSE, EXIT], &[WRITE, SENDTO, -1]),
            (WAIT4, &[EXIT, EXIT_GROUP], &[WRITE, CLOSE, -1]),
            (58, &[EXECVE, EXIT_GROUP], &[WRITE, -1]),
            (FLOCK, &[FLOCK, CLOSE, EXIT_GROUP], &[WRITE, READ, -1]),
        ];
        for (syscall, enders, others) in table {
            let wait = wait(syscall, descriptor);
            assert!(may_be_ended(&wait));
            assert!(enders.iter().all(|call| is_of_kind(&wait, *call)), "{syscall}");
            assert!(!others.iter().any(|call| is_of_kind(&wait, *call)), "{syscall}");
        }
    }

    /// What only the time ends has no waker: a sleep, and a poll or select of nothing.
    #[test]
    fn sleeps_end_by_themselves() {
        for (syscall, args) in [(35, [9, 0]), (230, [1, 0]), (7, [0, 0]), (23, [0, 9])] {
            let [a, b] = args;
            let wait = wait(syscall, [a, b, 0, 0, 0, 0]);
            assert!(!may_be_ended(&wait), "{syscall}");
            assert!(!is_of_kind(&wait, 1), "{syscall}");
        }
    }

    /// Who was killed exits, whatever it was killed in; the kernel's own tasks are in no system call.
    #[test]
    fn what_wakers_are_in() {
        assert_eq!(call_of(1, 0), 1);
        assert_eq!(call_of(35, 0x4), EXIT);
        assert_eq!(call_of(-1, 0x4), EXIT);
        assert_eq!(call_of(231, 0x4), 231);
        assert_eq!(call_of(0, 0x20_0000), -1);
        assert_eq!(call_of(0, 0x10), -1);
    }

    /// Another process wakes by futexes that both have said to share.
    #[test]
    fn across_processes() {
        assert!(ends_wait(&futex(0x7000, 0), &futex(0x9000, 1), false));
        assert!(!ends_wait(&futex(0x7000, 128), &futex(0x9000, 1), false));
        assert!(!ends_wait(&futex(0x7000, 0), &futex(0x9000, 129), false));
    }
}
