//! A kernel stack to what the kernel did there: it stopped the thread, froze it, or worked on memory for it.

use crate::frame::Frame;

/// What a thread was kept in the kernel for, where its system call does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activity {
    /// Stopped by a signal (SIGSTOP, SIGTSTP, …).
    SignalStop,
    /// Stopped for a debugger or another tracer.
    Traced,
    /// Frozen with its control group.
    Frozen,
    /// It had to free memory before it got some.
    Reclaim,
    /// It had to move pages about before it got a large one.
    Compaction,
    /// It waited for a page that had been swapped out.
    SwapIn,
    /// It waited for a page that the kernel was moving.
    Migration,
    /// It waited for the lock of its process's address space.
    MmapLock,
}

/// The beginnings of the names of kernel functions that tell: compilers add endings such as
/// `.constprop.0`. Looked up in mainline 5.15, 6.1, 6.6, 6.12 and 6.18; each name is of some of them.
const TELLING: [(&str, Activity); 30] = [
    // kernel/signal.c
    ("ptrace_stop", Activity::Traced),
    ("do_signal_stop", Activity::SignalStop),
    ("do_freezer_trap", Activity::Frozen),
    // kernel/freezer.c
    ("__refrigerator", Activity::Frozen),
    // mm/vmscan.c; `shrink_` alone would be the file systems' caches, too
    ("try_to_free_pages", Activity::Reclaim),
    ("do_try_to_free_pages", Activity::Reclaim),
    ("try_to_free_mem_cgroup_pages", Activity::Reclaim),
    ("shrink_node", Activity::Reclaim),
    ("shrink_lruvec", Activity::Reclaim),
    ("shrink_many", Activity::Reclaim),
    ("shrink_one", Activity::Reclaim),
    ("shrink_slab", Activity::Reclaim),
    ("shrink_inactive_list", Activity::Reclaim),
    ("shrink_active_list", Activity::Reclaim),
    ("shrink_page_list", Activity::Reclaim),
    ("shrink_folio_list", Activity::Reclaim),
    ("evict_folios", Activity::Reclaim),
    ("reclaim_throttle", Activity::Reclaim),
    ("throttle_direct_reclaim", Activity::Reclaim),
    // mm/memcontrol.c: over memory.high
    ("mem_cgroup_handle_over_high", Activity::Reclaim),
    ("__mem_cgroup_handle_over_high", Activity::Reclaim),
    // mm/page_alloc.c, mm/compaction.c
    ("__alloc_pages_direct_compact", Activity::Compaction),
    ("try_to_compact_pages", Activity::Compaction),
    ("compact_zone", Activity::Compaction),
    // mm/migrate.c, mm/filemap.c: `do_swap_page` calls them
    ("migration_entry_wait", Activity::Migration),
    ("__migration_entry_wait", Activity::Migration),
    ("pmd_migration_entry_wait", Activity::Migration),
    // mm/memory.c, mm/shmem.c
    ("do_swap_page", Activity::SwapIn),
    ("shmem_swapin", Activity::SwapIn),
    // mm/mmap_lock.c, include/linux/mmap_lock.h: a writer waits for the page faults in one mapping (6.4)
    ("__vma_enter_locked", Activity::MmapLock),
];

/// What `do_swap_page` calls for an entry that stands for something else than a swapped page: one that a
/// userfaultfd watches, or whose page a device has (mm/memory.c, fs/userfaultfd.c). Beginnings.
const NOT_SWAPPED: [&str; 4] =
    ["handle_pte_marker", "do_pte_missing", "handle_userfault", "remove_device_exclusive_entry"];

/// Where a thread takes its signals. Compilers put `do_freezer_trap` into it (seen in 6.1 and 6.18): then it
/// is what sleeps while version 2's freezer holds the thread.
const SIGNALS: &str = "get_signal";

/// What lies above the sleeper in a stack that was taken as it gave up its CPU: the probe and the scheduler.
const SWITCH: [&str; 4] = ["bpf_", "__traceiter_sched_switch", "__schedule", "schedule"];

/// Where a thread sleeps for a semaphore of readers and writers (kernel/locking/rwsem.c), and what lies
/// between that and whoever wants the semaphore.
const RWSEM: [&str; 2] = ["rwsem_down_read_slowpath", "rwsem_down_write_slowpath"];
const RWSEM_CALLS: [&str; 7] = [
    "down_read",
    "down_write",
    "__down_read",
    "__down_write",
    "mmap_read_lock",
    "mmap_write_lock",
    "rwsem_",
];

/// Who wants the address space's semaphore: the function that calls `mmap_read_lock` or
/// `mmap_write_lock`, which are inlined. The other semaphores in the same system calls and page faults
/// (of a file, of reverse mappings) are wanted by others. Left out is who takes several: `dup_mmap` also
/// a file's mappings', `exec_mmap` the one that keeps `ptrace` out, `do_shmat` the IPC namespace's.
const MMAP_LOCK_TAKERS: [&str; 31] = [
    // Page faults: mm/memory.c or mm/mmap_lock.c since 6.5, arch/x86/mm/fault.c before.
    "lock_mm_and_find_vma",
    "do_user_addr_fault",
    "exc_page_fault",
    // mm/util.c, mm/mmap.c, mm/vma.c
    "vm_mmap_pgoff",
    "__vm_munmap",
    "__x64_sys_munmap",
    "__do_sys_munmap",
    "vm_brk_flags",
    "__x64_sys_brk",
    "__do_sys_brk",
    "__x64_sys_mremap",
    "__do_sys_mremap",
    "do_mremap",
    "__x64_sys_remap_file_pages",
    "vma_start_write",
    "__vma_start_write",
    // mm/mprotect.c, mm/madvise.c, mm/mlock.c, mm/msync.c, mm/mincore.c
    "do_mprotect_pkey",
    "do_madvise",
    "madvise_lock",
    "__x64_sys_madvise",
    "do_mlock",
    "__x64_sys_munlock",
    "__x64_sys_mlockall",
    "__x64_sys_munlockall",
    "__x64_sys_msync",
    "__do_sys_mincore",
    "__x64_sys_mincore",
    // mm/gup.c: a system call that pins its buffers; kernel/futex: a fault on the futex's word
    "__gup_longterm_locked",
    "get_user_pages_unlocked",
    "faultin_page_range",
    "fault_in_user_writeable",
];

/// Calls that take the semaphore of another process's address space, by the same functions
/// (mm/process_vm_access.c, mm/madvise.c, mm/gup.c). Beginnings.
const OF_ANOTHER_PROCESS: [&str; 6] = [
    "process_vm_rw",
    "vector_madvise",
    "__x64_sys_process_",
    "__do_sys_process_",
    "pin_user_pages_remote",
    "get_user_pages_remote",
];

impl Activity {
    /// By a kernel stack, innermost first. The innermost function that tells decides: memory that is
    /// freed on behalf of a page that comes back from swap is reclaim.
    pub fn of(kernel: &[Frame]) -> Option<Self> {
        let activity = |(depth, name): (usize, &str)| {
            if is_rwsem(name) {
                let rest = kernel.get(depth + 1..).unwrap_or_default();
                return wants_mmap_lock(rest).then_some(Self::MmapLock);
            }
            let known = TELLING.iter().find(|(beginning, _)| name.starts_with(beginning));
            let (_, activity) = known?;
            let inner = kernel.get(..depth).unwrap_or_default();
            let is_other = *activity == Self::SwapIn && calls_any(inner, &NOT_SWAPPED);
            (!is_other).then_some(*activity)
        };
        names(kernel).enumerate().find_map(activity)
    }

    /// The same of a thread that sleeps. /proc/TID/stack leaves out the scheduler's functions, and the
    /// semaphore's are among them: what is innermost then is what sleeps.
    pub fn of_sleep(kernel: &[Frame]) -> Option<Self> {
        let locked = || wants_mmap_lock(kernel).then_some(Self::MmapLock);
        // Nothing else sleeps there: whoever stops for a signal or a tracer is not asleep.
        let is_switch = |name: &&str| SWITCH.iter().any(|known| name.starts_with(known));
        let sleeper = || names(kernel).find(|name| !is_switch(name));
        let trapped = || (sleeper() == Some(SIGNALS)).then_some(Self::Frozen);
        Self::of(kernel).or_else(locked).or_else(trapped)
    }

    /// Whether the thread was kept from running by somebody outside.
    pub fn is_stop(self) -> bool {
        matches!(self, Self::SignalStop | Self::Traced | Self::Frozen)
    }
}

fn names(kernel: &[Frame]) -> impl Iterator<Item = &str> {
    kernel.iter().map(|frame| frame.function.as_deref().unwrap_or_default())
}

fn is_rwsem(name: &str) -> bool {
    RWSEM.iter().any(|rwsem| name.starts_with(rwsem))
}

/// Whether a function with one of these beginnings is among them.
fn calls_any(kernel: &[Frame], beginnings: &[&str]) -> bool {
    names(kernel).any(|name| beginnings.iter().any(|beginning| name.starts_with(beginning)))
}

/// Whether the first that is not a semaphore's own function is one that takes that of the thread's own
/// address space.
fn wants_mmap_lock(kernel: &[Frame]) -> bool {
    let is_call = |name: &&str| RWSEM_CALLS.iter().any(|call| name.starts_with(call));
    let taker = names(kernel).find(|name| !is_call(name));
    taker.is_some_and(|taker| MMAP_LOCK_TAKERS.iter().any(|known| taker.starts_with(known)))
        && !calls_any(kernel, &OF_ANOTHER_PROCESS)
}

#[cfg(test)]
mod tests {
    use super::Activity;
    use crate::frame::Frame;
    use crate::process::kernel_stack;

    fn parsed(functions: &[&str]) -> Vec<Frame> {
        let lines = functions.iter().map(|function| format!("[<0>] {function}+0x1/0x2\n"));
        kernel_stack::frames(&lines.collect::<String>())
    }

    fn of(functions: &[&str]) -> Option<Activity> {
        Activity::of(&parsed(functions))
    }

    /// Stacks as kernels from 5.15 to 6.18 print them.
    #[test]
    fn stacks_of_kernels() {
        let table: [(&[&str], Option<Activity>); 16] = [
            (
                &["do_signal_stop", "get_signal", "arch_do_signal_or_restart"],
                Some(Activity::SignalStop),
            ),
            (&["ptrace_stop.part.0", "do_jobctl_trap", "get_signal"], Some(Activity::Traced)),
            (&["ptrace_stop", "do_signal_stop", "get_signal"], Some(Activity::Traced)),
            (&["do_freezer_trap", "get_signal"], Some(Activity::Frozen)),
            (&["__refrigerator", "get_signal"], Some(Activity::Frozen)),
            (
                &[
                    "folio_wait_bit_common",
                    "shrink_folio_list",
                    "try_to_free_pages",
                    "do_swap_page",
                ],
                Some(Activity::Reclaim),
            ),
            (&["io_schedule", "folio_wait_bit_common", "do_swap_page"], Some(Activity::SwapIn)),
            (
                &["migration_entry_wait_on_locked", "migration_entry_wait", "do_swap_page"],
                Some(Activity::Migration),
            ),
            (
                &["put_and_wait_on_page_locked", "__migration_entry_wait", "do_swap_page"],
                Some(Activity::Migration),
            ),
            (&["handle_userfault", "do_swap_page", "handle_mm_fault"], None),
            (&["filemap_fault", "do_pte_missing", "handle_pte_marker", "do_swap_page"], None),
            (&["compact_zone_order", "try_to_compact_pages"], Some(Activity::Compaction)),
            (&["msleep", "shrink_dcache_parent", "vfs_rmdir"], None),
            (&["wait_woken", "sk_wait_data", "tcp_recvmsg"], None),
            (&[], None),
            (&["hrtimer_nanosleep", "__x64_sys_clock_nanosleep"], None),
        ];
        for (functions, expected) in table {
            assert_eq!(of(functions), expected, "{functions:?}");
        }
    }

    /// As 6.1 and 6.18 print it of a thread that version 2's freezer keeps.
    #[test]
    fn freezer_without_a_function_of_its_own() {
        let trapped = [
            "get_signal",
            "arch_do_signal_or_restart",
            "exit_to_user_mode_loop",
            "do_syscall_64",
            "entry_SYSCALL_64_after_hwframe",
        ];
        assert_eq!(Activity::of_sleep(&parsed(&trapped)), Some(Activity::Frozen));
        let switch =
            ["bpf_prog_125367fbf361ad4d_take_stacks", "bpf_trace_run4", "__schedule", "schedule"];
        let taken = parsed(&[&switch[..], &trapped].concat());
        assert_eq!(Activity::of_sleep(&taken), Some(Activity::Frozen));
        assert_eq!(of(&trapped), None, "it runs");
        let dumping = ["wait_for_completion_state", "vfs_coredump", "get_signal"];
        assert_eq!(Activity::of_sleep(&parsed(&dumping)), None);
    }

    /// Only whoever takes the address space's own semaphore waits for it: a page fault that waits for
    /// its file's does not.
    #[test]
    fn lock_of_the_address_space() {
        let fault = ["do_user_addr_fault", "exc_page_fault", "asm_exc_page_fault"];
        let wait = ["rwsem_down_read_slowpath", "down_read_killable"];
        let with = |middle: &[&'static str]| of(&[&wait[..], middle, &fault[..]].concat());
        assert_eq!(with(&["lock_mm_and_find_vma"]), Some(Activity::MmapLock));
        assert_eq!(with(&[]), Some(Activity::MmapLock));
        assert_eq!(with(&["filemap_fault", "__do_fault", "handle_mm_fault"]), None);
        let unmapping = ["rwsem_down_write_slowpath", "down_write_killable", "__vm_munmap"];
        assert_eq!(of(&unmapping), Some(Activity::MmapLock));
        let sleeps = |functions: &[&str]| Activity::of_sleep(&parsed(functions));
        assert_eq!(sleeps(&["vm_mmap_pgoff", "do_syscall_64"]), Some(Activity::MmapLock));
        assert_eq!(sleeps(&["do_user_addr_fault", "exc_page_fault"]), Some(Activity::MmapLock));
        assert_eq!(sleeps(&["folio_wait_bit_common", "filemap_fault", "exc_page_fault"]), None);
        assert_eq!(of(&["do_user_addr_fault", "exc_page_fault"]), None, "it runs");
        let renaming = ["rwsem_down_write_slowpath", "down_write", "lock_rename", "do_renameat2"];
        assert_eq!(of(&renaming), None);
    }

    /// Who takes several semaphores, or that of another process, tells nothing.
    #[test]
    fn other_locks_of_the_same_functions() {
        let writing =
            |taker| of(&["rwsem_down_write_slowpath", "down_write", taker, "do_syscall_64"]);
        assert_eq!(writing("do_mlock"), Some(Activity::MmapLock));
        for taker in ["dup_mmap", "dup_mm.constprop.0", "exec_mmap", "do_shmat"] {
            assert_eq!(writing(taker), None, "{taker}");
        }
        let read_elsewhere = ["rwsem_down_read_slowpath", "__gup_longterm_locked", "process_vm_rw"];
        assert_eq!(of(&read_elsewhere), None);
        assert_eq!(Activity::of_sleep(&parsed(&["do_madvise", "vector_madvise"])), None);
    }
}
