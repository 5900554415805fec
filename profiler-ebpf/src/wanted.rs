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
    /// Where the interpreter keeps the thread state of its lock's holder.
    pub gil_holder_at: u64,
    /// Where it keeps whether the lock is held: an `int`.
    pub gil_locked_at: u64,
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

#[cfg(test)]
mod tests {
    use super::{EXIT, ends_wait};
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

    /// Another process wakes by futexes that both have said to share.
    #[test]
    fn across_processes() {
        assert!(ends_wait(&futex(0x7000, 0), &futex(0x9000, 1), false));
        assert!(!ends_wait(&futex(0x7000, 128), &futex(0x9000, 1), false));
        assert!(!ends_wait(&futex(0x7000, 0), &futex(0x9000, 129), false));
    }
}
