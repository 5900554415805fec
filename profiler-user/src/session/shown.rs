//! Threads that sleep in a wait, and whose stacks have not been looked at yet.

use std::collections::BTreeSet;

use profiler_ebpf::record::ThreadSnapshot;

use crate::process::frozen::{polls, waits};
use crate::source::{EventSource, Slot};

/// Between two searches for loops that are asleep.
const SHOW_EVERY_NS: u64 = 500_000_000;

/// Threads whose stacks are looked at in one search; as many as there are slots.
const MAX_SHOWN: usize = 64;

/// Who has been shown.
#[derive(Debug, Default)]
pub struct Shown {
    tids: BTreeSet<u32>,
    next_ns: u64,
}

impl Shown {
    /// Those to be looked at now, once each: what loop it is does not change. The others come when they are found asleep.
    /// Nothing is looked for where no slot has a thread that is new, but for `main`.
    pub fn next(
        &mut self,
        source: &mut impl EventSource,
        slots: &[Slot],
        main: Option<u32>,
        now_ns: u64,
    ) -> Vec<ThreadSnapshot> {
        let is_new = |slot: &Slot| {
            let tid = slot.state.tid;
            Some(tid) != main && !self.tids.contains(&tid)
        };
        if now_ns < self.next_ns || !slots.iter().any(is_new) {
            return Vec::new();
        }
        self.next_ns = now_ns + SHOW_EVERY_NS;
        // Without them, loops are called by how they wait.
        let threads = source.threads().unwrap_or_default();
        let present: BTreeSet<u32> = threads.iter().map(|thread| thread.tid).collect();
        self.tids.retain(|tid| present.contains(tid));
        let waiting = threads.into_iter().filter(|thread| waits(thread) || polls(thread));
        waiting.filter(|thread| self.tids.insert(thread.tid)).take(MAX_SHOWN).collect()
    }
}
