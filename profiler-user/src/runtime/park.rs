//! Where a thread of a pool parks: whether one that sleeps waits for work there, or is inside its work.
//!
//! A worker of a pool waits for work in the same syscall as for a lock inside its work. What tells
//! them apart is who called: the pool's own loop, or the work. Each runtime has the rules of the pools
//! that it knows; of any other thread nothing is said.

use profiler_ebpf::record::Registers;

use super::frames::Frames;
use super::names::last_segment;
use crate::frame::{Frame, Language};
use crate::unwind::merge::NamedNativeStack;
use crate::unwind::native::NativeStack;

/// A kind of threads that are handed work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// As a report's `thread.loop` has it.
    pub name: &'static str,
    /// What its threads are handed may take its time: nobody but who asked for it waits meanwhile.
    pub may_take_its_time: bool,
    /// They are handed their work through a queue: no wait in epoll is their own.
    pub has_queue: bool,
    /// They wait for their work in epoll, as a loop does: their turns end there.
    pub waits_in_epoll: bool,
}

/// A thread by its stack, which was taken while it slept, or ran.
#[derive(Debug, Clone, Copy)]
pub struct Sleeper<'a> {
    pub registers: &'a Registers,
    pub native: &'a NativeStack,
    pub named: &'a NamedNativeStack,
    pub frames: &'a Frames,
}

/// What a thread is about that sleeps, or slept a moment ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParkState {
    /// It waits for work; the word is there whenever it does.
    Parked(Pool, Word),
    /// It sleeps inside its work.
    Working(Pool),
    /// The work that it was handed is an event loop, which may be waiting.
    Looping { idle: bool },
    /// It has handed its work over, was started for what may block, or ends its interpreter: nobody waits
    /// for it.
    OffDuty,
    /// It is no worker that we know.
    Unknown,
}

impl ParkState {
    /// The thread is not in a turn, whatever the probes know of it.
    pub fn is_idle(self) -> bool {
        matches!(self, Self::Parked(..) | Self::OffDuty | Self::Looping { idle: true })
    }

    /// The pool whose worker the thread is.
    pub fn pool(self) -> Option<Pool> {
        match self {
            Self::Parked(pool, _) | Self::Working(pool) => Some(pool),
            Self::Looping { .. } | Self::OffDuty | Self::Unknown => None,
        }
    }
}

/// One word that a parked thread has in its memory, and one that works has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// The return address into the pool's own code.
    ReturnAddress { at: u64, value: u64 },
    /// The interpreter's innermost frame; 0 where none of its code runs in the thread.
    InnermostFrame(u64),
}

impl Word {
    /// The return address to a native frame: it stands where the frame's part of the stack begins.
    pub fn return_to(native: &NativeStack, frame: usize) -> Option<Self> {
        let at = native.frames.get(frame)?;
        Some(Self::ReturnAddress { at: at.stack_pointer.checked_sub(8)?, value: at.address })
    }
}

/// Whether nothing on the stack of a thread that sleeps on a futex tells whether it parks or works: no
/// interpreter's frame, and no lock's. It may be the worker of a pool that is stripped or not known (asio's
/// wait on a condition, as work may), and where others serve its epoll instance, most of them park.
pub fn is_untold(frames: &[Frame]) -> bool {
    // Of the function itself: C++ names the types of parameters, too.
    const LOCKS: [&str; 5] =
        ["mutex_lock", "lll_lock", "rwlock", "read_contended", "write_contended"];
    let is_lock = |name: &str| {
        name.starts_with("lock")
            || name.starts_with("Lock")
            || LOCKS.iter().any(|lock| name.contains(lock))
    };
    let tells = |frame: &Frame| {
        frame.language != Language::Native || last_segment(frame).is_some_and(is_lock)
    };
    !frames.iter().any(tells)
}
