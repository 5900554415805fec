//! How loops fared since the last line: what has been told of their sums, and what is still to be told.

use std::collections::BTreeMap;
use std::time::Duration;

use super::acceptors::Acceptors;
use crate::gap::Gap;
use crate::interval::{Interval, LoopInterval, Sums};
use crate::source::EventSource;

/// Loops told in one line whose threads have exited in its interval; as many as there are slots.
const MAX_GONE: usize = 64;

/// What has been told, and what is still to be told.
#[derive(Debug)]
pub struct Statistics {
    every_ns: u64,
    since_ns: u64,
    /// By thread.
    told: BTreeMap<u32, Sums>,
    gone: Vec<LoopInterval>,
    /// Loops that were too many for `gone`.
    untold: u64,
    pub acceptors: Acceptors,
}

impl Statistics {
    /// From now on, for a line every so often.
    pub fn new(every: Duration, acceptors: Acceptors, now_ns: u64) -> Self {
        Self {
            every_ns: u64::try_from(every.as_nanos()).unwrap_or(u64::MAX),
            since_ns: now_ns,
            told: BTreeMap::new(),
            gone: Vec::new(),
            untold: 0,
            acceptors,
        }
    }

    /// When the line before was told.
    pub fn since_ns(&self) -> u64 {
        self.since_ns
    }

    /// When the next line is due, if the one before was told then.
    pub fn due_after(&self, ns: u64) -> u64 {
        ns.saturating_add(self.every_ns)
    }

    /// What a thread did since the last time, by its sums so far.
    pub fn since(&mut self, tid: u32, sums: Sums) -> LoopInterval {
        let earlier = self.told.insert(tid, sums.clone());
        sums.since(earlier.as_ref())
    }

    /// A thread has exited. `since` is what it did since the last line, where that is of interest.
    pub fn exited(&mut self, tid: u32, since: Option<LoopInterval>) {
        self.told.remove(&tid);
        let Some(since) = since.filter(LoopInterval::has_worked) else { return };
        if self.gone.len() < MAX_GONE {
            self.gone.push(since);
        } else {
            self.untold += 1;
        }
    }

    /// One line's worth: these loops, those whose threads have exited, and the accepts.
    pub fn tell(
        &mut self,
        source: &mut impl EventSource,
        mut loops: Vec<LoopInterval>,
        now_ns: u64,
    ) -> Interval {
        loops.append(&mut self.gone);
        let mut gaps = Vec::new();
        if self.untold > 0 {
            let why = format!("{} more came and went than are kept", self.untold);
            gaps.push(Gap::new("loops", why));
            self.untold = 0;
        }
        let accepts = self.acceptors.tell(source, &mut gaps);
        let duration_ns = now_ns.saturating_sub(self.since_ns);
        self.since_ns = now_ns;
        Interval { duration_ns, loops, accepts, gaps, losses: source.losses() }
    }
}
