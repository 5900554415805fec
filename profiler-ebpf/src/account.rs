//! One turn's account: how its time divides, and what was counted in it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The turn's beginning was not seen: its duration is a lower bound.
pub const START_UNKNOWN: u32 = 1;

/// The turn began at the thread's birth: it is one only if the thread turns out to be handed work.
pub const SINCE_BIRTH: u32 = 2;

/// One turn's account. Times in ns of `CLOCK_MONOTONIC`.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Turn {
    /// When the wait returned. Names the turn: unique within a thread.
    pub start_ns: u64,
    /// On a CPU.
    pub running_ns: u64,
    /// Off the CPU until something wakes it.
    pub blocked_ns: u64,
    /// Ready, without a CPU.
    pub runnable_ns: u64,
    /// Stopped, traced or frozen.
    pub stopped_ns: u64,
    /// The part of `runnable_ns` in which its CPU had been taken from it. In the rest it had been
    /// woken, and waited for one.
    pub preempted_ns: u64,
    /// Times it gave up the CPU.
    pub voluntary: u32,
    /// Times the CPU was taken from it.
    pub preempted: u32,
    /// [`START_UNKNOWN`], [`SINCE_BIRTH`], or 0.
    pub flags: u32,
    /// Waits inside callbacks that are not the loop's own.
    pub nested_waits: u32,
    /// Page faults that needed no disk, up to the thread's last switch or the turn's end.
    pub minor_faults: u32,
    /// Page faults that waited for a disk, likewise.
    pub major_faults: u32,
}

/// A thread's page faults since it began, as the kernel counts them.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Faults {
    /// `task_struct.min_flt`
    pub minor: u64,
    /// `task_struct.maj_flt`
    pub major: u64,
}

impl Turn {
    /// The sum of all four states: the turn's duration up to the last booking.
    pub const fn booked_ns(&self) -> u64 {
        self.running_ns + self.blocked_ns + self.runnable_ns + self.stopped_ns
    }
}
