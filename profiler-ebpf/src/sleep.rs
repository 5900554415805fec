//! What the kernel's word for a thread's sleep tells of what it waits for.

/// `TASK_UNINTERRUPTIBLE` (include/linux/sched.h).
const UNINTERRUPTIBLE: u64 = 0x2;

/// Whether a thread that gave up its CPU with this `__state` waits for something of the kernel's own (a
/// disk, memory, a lock), so that its system call does not tell what.
#[inline(always)]
pub const fn sleeps_for_the_kernel(task_state: u64) -> bool {
    task_state & UNINTERRUPTIBLE != 0
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
    use super::{may_lock_memory, sleeps_for_the_kernel};

    /// Only a sleep that the kernel imposes, in a page fault or a call that maps, may be for the address
    /// space.
    #[test]
    fn waits_for_the_address_space() {
        assert!(may_lock_memory(0x102, 9) && may_lock_memory(2, -1));
        assert!(!may_lock_memory(1, 9) && !may_lock_memory(2, 0));
        assert!(sleeps_for_the_kernel(2) && !sleeps_for_the_kernel(1));
    }
}
