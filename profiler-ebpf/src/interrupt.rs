//! Where this kernel keeps the registers of what an interrupt came upon: set by the daemon before the probes are loaded.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The way from a task to `__irq_regs` of the CPU that it runs on. The kernel tells where in a CPU's own
/// area a variable lies, but not where that area is: a task points into it, at its CPU's `runqueues`.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct InterruptPlaces {
    /// 1 where the others are known.
    pub known: u64,
    /// Offset in bytes of `task_struct.se.cfs_rq`.
    pub task_queue: u64,
    /// Offset in bytes of `cfs_rq.rq`.
    pub queue_owner: u64,
    /// Bytes from `runqueues` to `__irq_regs`, the sum wrapping around.
    pub registers_from_owner: u64,
}
