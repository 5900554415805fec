//! What happened in one interval to its line: the loops' threads are named, and their stalls counted.

use profiler_ebpf::turn::wait;

use super::Analyst;
use crate::interval::{Interval, LoopInterval};
use crate::report::Report;
use crate::report::facts::ThreadFacts;
use crate::report::stats::{Measured, StatsContext};
use crate::runtime::frames::Frames;
use crate::runtime::table::loop_kind;
use crate::source::Captured;
use crate::stall_builder::StallBuilder;

impl Analyst {
    pub(super) fn statistics(&mut self, interval: &Interval, now_ns: u64) -> std::io::Result<()> {
        let stalls = std::mem::take(&mut self.stalls);
        let mut gaps = interval.gaps.clone();
        let mut loops = Vec::new();
        for interval in interval.loops.iter().filter(|interval| self.is_wanted(interval.tid)) {
            let (thread, missing) = self.facts_of(interval);
            gaps.extend(missing);
            let stalls = stalls.get(&interval.tid).copied().unwrap_or_default();
            loops.push(Measured { thread, interval, stalls });
        }
        let context = StatsContext {
            session: &self.facts,
            now_ns,
            duration_ns: interval.duration_ns,
            accepts: &interval.accepts,
            losses: &interval.losses,
            gaps: &gaps,
        };
        self.sink.accept(&Report::stats(&loops, &context))
    }

    /// A loop that has not stalled yet is recognised by the stack of its wait.
    pub(super) fn show(&mut self, captured: &Captured, frames: &Frames) {
        let (stack, park_state) = self.stack(captured, frames);
        self.tell(captured, park_state);
        let builder = self.loops.entry(captured.head.head.tid).or_default();
        builder.loop_kind = builder.loop_kind.or(loop_kind(&stack.frames));
    }

    /// A loop that has shown no stack to be recognised by is called by how it waits.
    fn facts_of(&self, interval: &LoopInterval) -> (ThreadFacts, Vec<crate::gap::Gap>) {
        let (thread, gaps) = self.thread_facts(interval.tid);
        let is_recognised = self.loops.get(&interval.tid).and_then(StallBuilder::kind).is_some();
        let by_wait = match interval.home_kind {
            wait::POLL => "poll",
            wait::IO_URING => "io_uring",
            wait::PARK => "worker",
            _ => "epoll",
        };
        let loop_kind = if is_recognised { thread.loop_kind } else { by_wait.to_owned() };
        (ThreadFacts { loop_kind, ..thread }, gaps)
    }
}
