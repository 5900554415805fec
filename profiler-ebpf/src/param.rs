//! The values that the daemon sets before the probes are loaded, and never after.
//!
//! They lie in frozen read-only data, so the verifier sees constants: a load through a BTF pointer
//! at such an offset needs no `probe_read`, and branches that a kernel cannot take are not verified.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Whom to watch, from when on, and where this kernel keeps its fields.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Params {
    /// The process to watch, as the kernel numbers it in the first PID namespace.
    pub tgid: u64,
    /// A turn this long is a stall, ns.
    pub threshold_ns: u64,
    /// A turn this long is suspected: stacks are taken from here on, ns.
    pub suspect_ns: u64,
    /// 1 where poll and select may be an idle wait (the process has no epoll instance).
    pub poll_waits: u64,
    /// 1 where `sched_switch` has a fourth argument, the previous state (since 5.18).
    pub switch_has_state: u64,
    /// 1 where statistics are wanted.
    pub stats: u64,
    /// Where the kernel's structures have their fields, from its BTF.
    pub field: Fields,
}

/// Where a field lies within its structure, and how wide it is: a later kernel may have made it narrower
/// (`on_cpu` is one byte since 7.2), and the verifier refuses a load past a field's end.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Field {
    /// In bytes.
    pub offset: u32,
    /// 1, 2, 4 or 8; 0: this kernel has no such field.
    pub bytes: u32,
}

/// Fields of the kernel's structures, resolved from its BTF.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Fields {
    /// `task_struct.pid`
    pub task_pid: Field,
    /// `task_struct.tgid`
    pub task_tgid: Field,
    /// `task_struct.__state`, before 5.14 `state`
    pub task_state: Field,
    /// `task_struct.mm`
    pub task_mm: Field,
    /// `task_struct.files`
    pub task_files: Field,
    /// `task_struct.thread.fsbase`
    pub task_fsbase: Field,
    /// `mm_struct.start_stack`
    pub mm_start_stack: Field,
    /// `mm_struct.mmap_lock.count`; 0 where that lock has none (PREEMPT_RT)
    pub mm_lock_count: Field,
    /// `files_struct.fdt`
    pub files_fdt: Field,
    /// `fdtable.max_fds`
    pub fdtable_max_fds: Field,
    /// `fdtable.fd`
    pub fdtable_fd: Field,
    /// `file.f_op`
    pub file_f_op: Field,
    /// `task_struct.nvcsw`
    pub task_nvcsw: Field,
    /// `task_struct.nivcsw`
    pub task_nivcsw: Field,
    /// `task_struct.on_cpu`
    pub task_on_cpu: Field,
    /// `task_struct.thread_info.cpu`, before 5.16 `cpu`: the CPU that it runs on or is queued on
    pub task_cpu: Field,
    /// `task_struct.min_flt`
    pub task_min_flt: Field,
    /// `task_struct.maj_flt`
    pub task_maj_flt: Field,
    /// `task_struct.flags`
    pub task_flags: Field,
    /// `task_struct.sched_info.run_delay`: ns that it has waited on CPUs' queues and left them, by
    /// running there or by moving to another's
    pub task_run_delay: Field,
    /// `task_struct.se.nr_migrations`
    pub task_migrations: Field,
    /// `task_struct.jobctl`
    pub task_jobctl: Field,
}
