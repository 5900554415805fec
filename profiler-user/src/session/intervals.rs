//! How loops fare, also without stalls: at each interval the probes' sums are read, and what came since
//! the last time is handed to the analyst.

use std::time::Duration;

use profiler_ebpf::turn::Loop;

use super::acceptors::Acceptors;
use super::attachment::Session;
use super::statistics::Statistics;
use crate::gap::Gap;
use crate::interval::{LoopInterval, Sums};
use crate::job::Job;
use crate::process::TargetMemory;
use crate::source::{EventSource, Slot};

impl<S: EventSource, M: TargetMemory> Session<S, M> {
    /// From now on, a line's worth is handed over at every interval. `accepts_unseen` says what of them
    /// cannot be counted.
    pub fn keep_statistics(&mut self, every: Duration, accepts_unseen: Vec<Gap>, now_ns: u64) {
        let mut acceptors = Acceptors::new(self.target.pid(), accepts_unseen);
        acceptors.search_at_once(&mut self.source, now_ns);
        self.statistics = Some(Statistics::new(every, acceptors, now_ns));
        // What was counted while we attached belongs to no interval.
        for slot in self.source.loops() {
            self.sum_up(slot, now_ns);
        }
    }

    /// Hands over what is due. Returns when the next will be.
    pub fn tell_statistics(&mut self, slots: &[Slot], now_ns: u64, jobs: &mut Vec<Job>) -> u64 {
        let Some(statistics) = &mut self.statistics else { return u64::MAX };
        statistics.acceptors.search(&mut self.source, now_ns);
        let due_ns = statistics.due_after(statistics.since_ns());
        if now_ns < due_ns {
            return due_ns;
        }
        let next_ns = statistics.due_after(now_ns);
        self.tell_rest(slots, now_ns, jobs);
        next_ns
    }

    /// Hands over what came since the last time.
    pub fn tell_rest(&mut self, slots: &[Slot], now_ns: u64, jobs: &mut Vec<Job>) {
        let Some(since_ns) = self.statistics.as_ref().map(Statistics::since_ns) else { return };
        let mut loops = Vec::new();
        for slot in slots {
            loops.extend(self.sum_up(*slot, now_ns).filter(|_| self.is_of_interest(&slot.state)));
        }
        for of_loop in &loops {
            self.tell_name(of_loop.tid, since_ns, jobs);
        }
        let Some(statistics) = &mut self.statistics else { return };
        let interval = statistics.tell(&mut self.source, loops, now_ns);
        jobs.push(Job::Statistics(Box::new(interval)));
    }

    /// The thread in a slot has exited: its slot will serve another.
    pub fn sum_up_gone(&mut self, slot: Slot, now_ns: u64) {
        let since = self.sum_up(slot, now_ns).filter(|_| self.is_of_interest(&slot.state));
        if let Some(statistics) = &mut self.statistics {
            statistics.exited(slot.state.tid, since);
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
        Some(self.statistics.as_mut()?.since(state.tid, sums))
    }

    /// Threads of pools are of no interest where nobody asked for workers.
    fn is_of_interest(&self, state: &Loop) -> bool {
        !self.workers.is_unwanted(state)
    }
}
