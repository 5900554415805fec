//! Which system calls are waits, of what kind and on what, by their numbers and arguments (x86-64).

/// The kinds of wait. A greater one takes over from a smaller: whoever uses epoll is an epoll loop,
/// and its `poll()` inside a callback (a socket with a timeout) is blocking, not idleness.
pub mod wait {
    /// None seen yet.
    pub const NONE: u32 = 0;
    /// `poll`, `ppoll`, `select`, `pselect6`.
    pub const POLL: u32 = 1;
    /// `io_uring_enter` that asks for completions.
    pub const IO_URING: u32 = 2;
    /// A worker that parks on a futex, or takes its turn at epoll (tokio, uWSGI).
    pub const PARK: u32 = 3;
    /// `epoll_wait`, `epoll_pwait`, `epoll_pwait2`.
    pub const EPOLL: u32 = 4;
}

/// The wait that a syscall makes on x86-64, as (kind, descriptor), if it is one. A poll of no
/// descriptors is a sleep, and a ring that asks for no completion does not wait.
#[inline(always)]
pub const fn wait_of(syscall: u64, args: [u64; 4]) -> Option<(u32, u32)> {
    const GETEVENTS: u64 = 1;
    match syscall {
        232 | 281 | 441 => Some((wait::EPOLL, args[0] as u32)),
        426 if args[2] > 0 && args[3] & GETEVENTS != 0 => Some((wait::IO_URING, args[0] as u32)),
        7 | 271 if args[1] > 0 => Some((wait::POLL, 0)),
        23 | 270 if args[0] > 0 => Some((wait::POLL, 0)),
        _ => None,
    }
}

/// Whether a syscall can be a wait at all: asked where its arguments are not at hand.
#[inline(always)]
pub const fn may_be_wait(syscall: u64) -> bool {
    matches!(syscall, 232 | 281 | 441 | 426 | 7 | 271 | 23 | 270)
}

/// Whether a wait is on a file that tells its instance apart: `poll` and `select` have none, and a ring may be
/// named by a number that is no descriptor (`IORING_ENTER_REGISTERED_RING`).
#[inline(always)]
pub const fn has_instance(kind: u32, args: [u64; 4]) -> bool {
    const REGISTERED_RING: u64 = 16;
    kind == wait::EPOLL || kind == wait::IO_URING && args[3] & REGISTERED_RING == 0
}

/// `ERESTART_RESTARTBLOCK` (include/linux/errno.h): the wait was interrupted by a stop, and the kernel goes on
/// with it by itself, in [`RESTART`].
pub const INTERRUPTED: i64 = -516;

/// `restart_syscall` (x86-64).
pub const RESTART: u64 = 219;

/// A wait, as a system call asks for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WaitCall {
    /// One of [`wait`].
    pub kind: u32,
    /// The descriptor of the instance; 0 where the kind has none.
    pub fd: u32,
    /// Which instance that is now, as the address of its file in the kernel; 0 where that is not known.
    pub file: u64,
    /// The system call's number.
    pub syscall: u64,
}

impl WaitCall {
    /// Any wait of this kind, for threads that have not been seen to wait.
    pub const fn any(kind: u32) -> Self {
        Self { kind, fd: u32::MAX, file: 0, syscall: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::{may_be_wait, wait, wait_of};

    /// Sleeping by a poll of nothing is no idle wait, nor is submitting to a ring.
    #[test]
    fn sleeps_and_submissions_are_no_waits() {
        assert_eq!(wait_of(232, [5, 0, 0, 0]), Some((wait::EPOLL, 5)));
        assert_eq!(wait_of(7, [0, 0, 100, 0]), None);
        assert_eq!(wait_of(270, [4, 0, 0, 0]), Some((wait::POLL, 0)));
        assert_eq!(wait_of(426, [9, 1, 0, 1]), None);
        assert_eq!(wait_of(426, [9, 0, 1, 1]), Some((wait::IO_URING, 9)));
        assert_eq!(wait_of(0, [9, 0, 1, 1]), None);
    }

    /// What is taken for a wait by its number can be one by its arguments, and nothing else can.
    #[test]
    fn numbers_of_waits() {
        for syscall in 0..512 {
            let is_one = wait_of(syscall, [1, 1, 1, 1]).is_some();
            assert_eq!(may_be_wait(syscall), is_one, "{syscall}");
        }
    }
}
