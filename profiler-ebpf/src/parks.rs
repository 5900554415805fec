//! How to recognise a worker that has parked, and is idle, by where it sleeps.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Ways to park that are known of one thread. A worker's loop has few: one a place in its code.
pub const MAX_PARKS: usize = 4;

/// How to recognise a thread that has parked, which is idle, from one that waits for a lock inside its
/// work: both sleep in the same syscall. It sleeps at the same depth of its stack, and one word in
/// its memory (a return address, the interpreter's current frame) has the same value.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Park {
    /// The stack pointer. 0: no park.
    pub sp: u64,
    /// The instruction pointer.
    pub ip: u64,
    /// Where the word lies in the target.
    pub word_address: u64,
    /// What it must be.
    pub word: u64,
}

impl Park {
    /// The word is left to the caller: it lies in the target's memory.
    #[inline(always)]
    pub const fn is_at(&self, sp: u64, ip: u64) -> bool {
        self.sp != 0 && self.sp == sp && self.ip == ip
    }
}

/// One thread's ways to park. Written by the daemon, read by the probes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Parks {
    /// When the thread went into a sleep that was only later found to be a park, ns.
    pub found_ns: u64,
    /// In no order.
    pub known: [Park; MAX_PARKS],
}
