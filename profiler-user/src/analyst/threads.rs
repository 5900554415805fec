//! A loop's thread to what reports say of it and of those away with it, and whether anybody wants to hear of it.

use profiler_ebpf::turn::SINCE_BIRTH;

use super::Analyst;
use crate::gap::Gap;
use crate::report::facts::ThreadFacts;
use crate::stall_builder::StallBuilder;
use crate::turn::Away;
use crate::turn::tracker::{AwayThread, Due};

impl Analyst {
    /// Work that a pool was handed may take its time, unless the user says otherwise.
    pub(super) fn is_wanted(&self, tid: u32) -> bool {
        let pool = self.loops.get(&tid).and_then(|builder| builder.pool);
        let may_take_its_time = pool.is_some_and(|pool| pool.may_take_its_time);
        self.config.watch_workers || !may_take_its_time
    }

    pub(super) fn thread_facts(&self, tid: u32) -> (ThreadFacts, Vec<Gap>) {
        let name = self.target.thread_name(tid);
        let mut gaps = Vec::new();
        if name.is_none() {
            gaps.push(Gap::new("thread.name", "the thread has exited"));
        }
        let builder = self.loops.get(&tid);
        let kind = builder.and_then(StallBuilder::kind).unwrap_or("epoll");
        let is_worker = builder.is_some_and(|builder| builder.pool.is_some());
        let (own_name, nameless) = builder.map(StallBuilder::own_name).unwrap_or_default();
        gaps.extend(nameless);
        let thread = ThreadFacts {
            tid,
            tid_in_container: self.target.tid_in_container(tid),
            name,
            python_name: own_name,
            is_main: tid == self.target.pid(),
            loop_kind: kind.to_owned(),
            is_worker,
        };
        (thread, gaps)
    }

    /// Who else was away from the loop's instance, with where they were.
    pub(super) fn away(&self, threads: &[AwayThread], now_ns: u64) -> Vec<Away> {
        let away = |away: &AwayThread| {
            let AwayThread { tid, turn, state } = *away;
            let builder = self.loops.get(&tid);
            let builder = builder.filter(|it| it.turn_start_ns() == turn.start_ns);
            let stacks = builder.map(|it| it.samples.stacks_of(&turn, now_ns));
            let name = self.target.thread_name(tid);
            // Nobody came back before the stall was over.
            let time_ns = now_ns.saturating_sub(turn.start_ns);
            Away { tid, name, state, time_ns, stacks: stacks.unwrap_or_default() }
        };
        threads.iter().map(away).collect()
    }

    /// Whether a turn is one of a loop, or a piece of work: a thread that was born, and has never been seen to wait or to be handed work, may
    /// do what it likes.
    pub(super) fn is_turn(&self, tid: u32, due: &Due) -> bool {
        let is_known = || self.loops.get(&tid).is_some_and(|builder| builder.pool.is_some());
        !self.facts.has_no_loops() && (due.turn.flags & SINCE_BIRTH == 0 || is_known())
    }
}
