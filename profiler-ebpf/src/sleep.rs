//! What the kernel's word for a thread's sleep tells of what it waits for.

use self::task::{FROZEN, INTERRUPTIBLE, STOPPED, TRACED, UNINTERRUPTIBLE};

/// The bits of `task_struct.__state` that matter here (include/linux/sched.h, unchanged since 4.14
/// but for `FROZEN`, which is new in 6.1).
pub mod task {
    /// A signal wakes it.
    pub const INTERRUPTIBLE: u64 = 0x1;
    /// No signal does.
    pub const UNINTERRUPTIBLE: u64 = 0x2;
    /// By a signal.
    pub const STOPPED: u64 = 0x4;
    /// By a debugger.
    pub const TRACED: u64 = 0x8;
    /// It has exited.
    pub const DEAD: u64 = 0x80;
    /// By the freezer.
    pub const FROZEN: u64 = 0x8000;
}

/// `JOBCTL_TRAP_FREEZE` (include/linux/sched/jobctl.h), since 5.2: its control group freezes the thread.
const TRAP_FREEZE: u64 = 1 << 23;

/// The state in which a thread leaves its CPU, by what the scheduler was told (`announced`), its `__state`
/// by now, and `task_struct.jobctl`.
///
/// A pending signal keeps a thread awake that had announced to sleep. The second version's freezer lets it
/// sleep as if it waited for something; that is said as the first version's freezer does.
#[inline(always)]
pub const fn left_in(announced: u64, state: u64, jobctl: u64) -> u64 {
    if state == 0 {
        0
    } else if announced & INTERRUPTIBLE != 0 && jobctl & TRAP_FREEZE != 0 {
        announced | FROZEN
    } else {
        announced
    }
}

/// Whether a thread that gave up its CPU with this `__state` waits for something of the kernel's own (a
/// disk, memory, a lock), so that its system call does not tell what.
#[inline(always)]
pub const fn sleeps_for_the_kernel(task_state: u64) -> bool {
    task_state & UNINTERRUPTIBLE != 0
}

/// Whether a thread that gave up its CPU with this `__state` may wait for events: a signal stops one that has come
/// out of its wait in the same system call, on its way back to the program.
#[inline(always)]
pub const fn waits_for_events(task_state: u64) -> bool {
    task_state & INTERRUPTIBLE != 0 && task_state & (STOPPED | TRACED | FROZEN) == 0
}

/// Whether such a thread may wait for the lock of its address space, by its system call: to map, unmap
/// or protect, or none, which is a page fault. Its memory cannot be read from outside meanwhile.
#[inline(always)]
pub const fn may_lock_memory(task_state: u64, syscall: i64) -> bool {
    let maps = matches!(syscall, 9 | 10 | 11 | 12 | 25 | 28);
    sleeps_for_the_kernel(task_state) && (maps || syscall < 0)
}

#[cfg(test)]
mod tests {
    use super::{TRAP_FREEZE, left_in, may_lock_memory, sleeps_for_the_kernel, waits_for_events};

    /// Who is stopped on the way out of a wait waits no more, and a disk is no event.
    #[test]
    fn waits() {
        assert!(waits_for_events(0x1));
        for task_state in [0x2, 0x4, 0x104, 0x8, 0x8001] {
            assert!(!waits_for_events(task_state), "{task_state:#x}");
        }
    }

    /// Who does not sleep after all is ready; who sleeps because its group is frozen waits for nothing.
    #[test]
    fn what_was_announced_and_what_came_of_it() {
        assert_eq!(left_in(1, 1, 0), 1);
        assert_eq!(left_in(1, 0, TRAP_FREEZE), 0, "a signal keeps it awake");
        assert_eq!(left_in(0x2001, 0x2001, TRAP_FREEZE | 0x20), 0xa001);
        assert_eq!(left_in(2, 2, TRAP_FREEZE), 2, "it is not there yet");
        assert_eq!(left_in(0x80, 0x80, TRAP_FREEZE), 0x80);
    }

    /// Only a sleep that the kernel imposes, in a page fault or a call that maps, may be for the address
    /// space.
    #[test]
    fn waits_for_the_address_space() {
        assert!(may_lock_memory(0x102, 9) && may_lock_memory(2, -1));
        assert!(!may_lock_memory(1, 9) && !may_lock_memory(2, 0));
        assert!(sleeps_for_the_kernel(2) && !sleeps_for_the_kernel(1));
    }
}
