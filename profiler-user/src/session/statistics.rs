//! How loops fare, also without stalls: at each interval the probes' sums are read, and what came since
//! the last time is handed to the analyst.

use std::collections::BTreeMap;
use std::time::Duration;

use profiler_ebpf::turn::Loop;

use super::Session;
use super::acceptors::Acceptors;
use crate::gap::Gap;
use crate::interval::{Interval, LoopInterval, Sums};
use crate::job::Job;
use crate::process::TargetMemory;
use crate::source::{EventSource, Slot};

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
    acceptors: Acceptors,
}

impl<S: EventSource, M: TargetMemory> Session<S, M> {
    /// From now on, a line's worth is handed over at every interval. `accepts_unseen` says what of them
    /// cannot be counted.
    pub fn keep_statistics(&mut self, every: Duration, accepts_unseen: Vec<Gap>, now_ns: u64) {
        let mut statistics = Statistics {
            every_ns: u64::try_from(every.as_nanos()).unwrap_or(u64::MAX),
            since_ns: now_ns,
            told: BTreeMap::new(),
            gone: Vec::new(),
            untold: 0,
            acceptors: Acceptors::new(self.target.pid(), accepts_unseen),
        };
        statistics.acceptors.search_at_once(&mut self.source, now_ns);
        self.statistics = Some(statistics);
        // What was counted while we attached belongs to no interval.
        for slot in self.source.loops() {
            self.sum_up(slot, now_ns);
        }
    }

    /// Hands over what is due. Returns when the next will be.
    pub fn tell_statistics(&mut self, slots: &[Slot], now_ns: u64, jobs: &mut Vec<Job>) -> u64 {
        let Some(statistics) = &mut self.statistics else { return u64::MAX };
        statistics.acceptors.search(&mut self.source, now_ns);
        let due_ns = statistics.since_ns.saturating_add(statistics.every_ns);
        if now_ns < due_ns {
            return due_ns;
        }
        let every_ns = statistics.every_ns;
        self.tell_rest(slots, now_ns, jobs);
        now_ns.saturating_add(every_ns)
    }

    /// Hands over what came since the last time.
    pub fn tell_rest(&mut self, slots: &[Slot], now_ns: u64, jobs: &mut Vec<Job>) {
        if self.statistics.is_none() {
            return;
        }
        let mut loops = Vec::new();
        for slot in slots {
            loops.extend(self.sum_up(*slot, now_ns).filter(|_| self.is_of_interest(&slot.state)));
        }
        let since_ns = self.statistics.as_ref().map_or(0, |statistics| statistics.since_ns);
        for of_loop in &loops {
            self.tell_name(of_loop.tid, since_ns, jobs);
        }
        let Some(statistics) = &mut self.statistics else { return };
        loops.append(&mut statistics.gone);
        let mut gaps = Vec::new();
        if statistics.untold > 0 {
            let why = format!("{} more came and went than are kept", statistics.untold);
            gaps.push(Gap::new("loops", why));
            statistics.untold = 0;
        }
        let accepts = statistics.acceptors.tell(&mut self.source, &mut gaps);
        let duration_ns = now_ns.saturating_sub(statistics.since_ns);
        statistics.since_ns = now_ns;
        let losses = self.source.losses();
        jobs.push(Job::Statistics(Box::new(Interval {
            duration_ns,
            loops,
            accepts,
            gaps,
            losses,
        })));
    }

    /// The thread in a slot has exited: its slot will serve another.
    pub fn sum_up_gone(&mut self, slot: Slot, now_ns: u64) {
        let since = self.sum_up(slot, now_ns).filter(|_| self.is_of_interest(&slot.state));
        let Some(statistics) = &mut self.statistics else { return };
        statistics.told.remove(&slot.state.tid);
        let Some(since) = since.filter(LoopInterval::has_worked) else { return };
        if statistics.gone.len() < MAX_GONE {
            statistics.gone.push(since);
        } else {
            statistics.untold += 1;
        }
    }

    /// What a loop did since the last time.
    fn sum_up(&mut self, slot: Slot, now_ns: u64) -> Option<LoopInterval> {
        self.statistics.as_ref()?;
        let (state, reading) = self.source.take_reading(slot)?;
        if state.tid != slot.state.tid {
            // The thread has exited, and its sums were told then.
            return None;
        }
        let is_idle = self.followed(state.tid).is_parked(&state);
        let sums = Sums::new(&state, reading, is_idle, now_ns);
        let statistics = self.statistics.as_mut()?;
        let earlier = statistics.told.insert(state.tid, sums.clone());
        Some(sums.since(earlier.as_ref()))
    }

    /// Threads of pools are of no interest where nobody asked for workers.
    fn is_of_interest(&self, state: &Loop) -> bool {
        !self.workers.is_unwanted(state)
    }
}
