//! One of the things that a turn's time went into: how long, and which stacks were taken in it.

use super::same_wait::SameWait;
use crate::report::schema::stall::MemoryActivity;
use crate::turn::Sampled;

/// One thing that the turn's time went into.
#[derive(Debug)]
pub struct Component<'a> {
    pub nature: Nature<'a>,
    pub time_ns: u64,
    /// The stacks that were taken in it, heaviest first.
    pub stacks: Vec<&'a Sampled>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Nature<'a> {
    Running,
    Waiting(SameWait<'a>),
    /// Blocked, and no stack says in what.
    Unseen,
    /// The kernel got memory for it, or a lock of the address space: running or blocked.
    Memory(MemoryActivity),
    Runnable,
    /// Ready, and the quota was used up.
    Throttled,
    Stopped,
}

impl Component<'_> {
    /// The part of its time that lies in short waits for which others' stacks stand.
    pub fn inferred_ns(&self) -> u64 {
        let others = self.stacks.iter().map(|sampled| sampled.waits.others_ns);
        others.fold(0, u64::saturating_add)
    }

    pub fn is_mostly_inferred(&self) -> bool {
        self.inferred_ns() > self.time_ns / 2
    }
}
