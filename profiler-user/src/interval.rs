//! Two copies of what the probes count of a loop to what happened between them: the data of a `stats` line.

use profiler_ebpf::histogram::Histogram;
use profiler_ebpf::loop_counters::{Accepts, LoopCounters};
use profiler_ebpf::turn::{Loop, Turn, phase};

use crate::gap::Gap;

/// Time in turns by what the thread did, ns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimeInTurns {
    pub running_ns: u64,
    pub blocked_ns: u64,
    pub runnable_ns: u64,
    pub stopped_ns: u64,
}

impl TimeInTurns {
    pub const fn sum_ns(&self) -> u64 {
        self.running_ns + self.blocked_ns + self.runnable_ns + self.stopped_ns
    }

    const fn plus(self, turn: &Turn) -> Self {
        Self {
            running_ns: self.running_ns + turn.running_ns,
            blocked_ns: self.blocked_ns + turn.blocked_ns,
            runnable_ns: self.runnable_ns + turn.runnable_ns,
            stopped_ns: self.stopped_ns + turn.stopped_ns,
        }
    }

    const fn since(self, earlier: Self) -> Self {
        Self {
            running_ns: self.running_ns.saturating_sub(earlier.running_ns),
            blocked_ns: self.blocked_ns.saturating_sub(earlier.blocked_ns),
            runnable_ns: self.runnable_ns.saturating_sub(earlier.runnable_ns),
            stopped_ns: self.stopped_ns.saturating_sub(earlier.stopped_ns),
        }
    }
}

/// Everything that one loop has done up to a moment.
#[derive(Debug, Clone)]
pub struct Sums {
    tid: u32,
    home_kind: u32,
    time: TimeInTurns,
    counters: LoopCounters,
}

impl Sums {
    /// The sums of what has ended, and the turn that goes on. `is_idle` says that this is none: the
    /// thread waits for work, although the probes do not know that.
    pub fn new(state: &Loop, counters: LoopCounters, is_idle: bool, now_ns: u64) -> Self {
        let LoopCounters { running_ns, blocked_ns, runnable_ns, stopped_ns, .. } = counters;
        let ended = TimeInTurns { running_ns, blocked_ns, runnable_ns, stopped_ns };
        let goes_on = state.phase == phase::TURN && !is_idle;
        let time = if goes_on { ended.plus(&state.account(now_ns)) } else { ended };
        Self { tid: state.tid, home_kind: state.home_kind, time, counters }
    }

    /// What has happened since earlier sums of the same loop, or since it began.
    pub fn since(&self, earlier: Option<&Self>) -> LoopInterval {
        let now = &self.counters;
        let counted = |count: fn(&LoopCounters) -> u64| {
            count(now).saturating_sub(earlier.map_or(0, |earlier| count(&earlier.counters)))
        };
        let histogram = |histogram: fn(&LoopCounters) -> &Histogram| match earlier {
            Some(earlier) => histogram(now).since(histogram(&earlier.counters)),
            None => histogram(now).clone(),
        };
        LoopInterval {
            tid: self.tid,
            home_kind: self.home_kind,
            time: self.time.since(earlier.map_or(TimeInTurns::default(), |earlier| earlier.time)),
            waits: counted(|counters| counters.waits),
            ready_events: counted(|counters| counters.ready_events),
            most_ready: now.most_ready[0].max(now.most_ready[1]),
            empty_wakeups: counted(|counters| counters.empty_wakeups),
            turns: histogram(|counters| &counters.turns),
            delays: histogram(|counters| &counters.delays),
        }
    }
}

/// What one loop did in an interval.
#[derive(Debug, Clone)]
pub struct LoopInterval {
    pub tid: u32,
    /// One of [`profiler_ebpf::turn::wait`].
    pub home_kind: u32,
    /// With the part of a turn that began before the interval, or goes on after it, that lies in it.
    pub time: TimeInTurns,
    /// Own waits that returned.
    pub waits: u64,
    pub ready_events: u64,
    pub most_ready: u64,
    pub empty_wakeups: u64,
    /// Of turns that ended in the interval.
    pub turns: Histogram,
    pub delays: Histogram,
}

impl LoopInterval {
    /// Whether there is anything to tell of it: a turn that ended, or a part of one that did not.
    pub fn has_worked(&self) -> bool {
        self.turns.count() > 0 || self.time.sum_ns() > 0
    }
}

/// What one process accepted in an interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceptor {
    pub pid: u32,
    pub name: String,
    pub accepts: Accepts,
}

/// What happened in one interval.
#[derive(Debug, Clone)]
pub struct Interval {
    pub duration_ns: u64,
    pub loops: Vec<LoopInterval>,
    pub accepts: Vec<Acceptor>,
    pub gaps: Vec<Gap>,
    /// Everything that was lost so far, by name.
    pub losses: Vec<(&'static str, u64)>,
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::loop_counters::LoopCounters;
    use profiler_ebpf::turn::{Loop, WaitCall, phase, wait};
    use zerocopy::FromZeros;

    use super::{Sums, TimeInTurns};

    const S: u64 = 1_000_000_000;
    const EPOLL: WaitCall = WaitCall::any(wait::EPOLL);

    fn in_turn_since(start_ns: u64) -> Loop {
        let mut state = Loop { tid: 7, ..Loop::default() };
        state.adopt(&EPOLL);
        state.begin(start_ns, 0);
        state
    }

    /// A turn of three seconds lies in three intervals by its parts, though it ends in the last.
    #[test]
    fn long_turn_is_divided() {
        let mut state = in_turn_since(10 * S);
        let mut counters = LoopCounters::new_zeroed();
        let sums = |state: &Loop, counters: &LoopCounters, now_ns| {
            Sums::new(state, counters.clone(), false, now_ns)
        };
        let first = sums(&state, &counters, 11 * S);
        let second = sums(&state, &counters, 12 * S);
        state.wait_entered(&EPOLL, 13 * S);
        counters.turn_over(&state.turn);
        let third = sums(&state, &counters, 14 * S);

        let running = |running_ns| TimeInTurns { running_ns, ..TimeInTurns::default() };
        assert_eq!(first.since(None).time, running(S));
        assert_eq!(second.since(Some(&first)).time, running(S));
        let last = third.since(Some(&second));
        assert_eq!(last.time, running(S));
        assert_eq!((last.turns.count(), last.turns.greatest_ns), (1, [3 * S, 0]));
        assert_eq!(second.since(Some(&first)).turns.count(), 0);
    }

    /// A loop that exits in its first turn has worked; one that only came and went has not.
    #[test]
    fn work_without_an_ended_turn() {
        let mut state = in_turn_since(10 * S);
        let mut counters = LoopCounters::new_zeroed();
        assert!(!Sums::new(&Loop::default(), counters.clone(), false, S).since(None).has_worked());
        state.switched_out(false, 0x80, 11 * S);
        state.phase = phase::DEAD;
        counters.add_time(&state.turn);
        let gone = Sums::new(&state, counters, false, 12 * S).since(None);
        assert_eq!((gone.turns.count(), gone.has_worked()), (0, true));
    }

    /// A turn that turns out to have been idleness takes nothing away from the next interval.
    #[test]
    fn idleness_does_not_count() {
        let state = in_turn_since(10 * S);
        let believed = Sums::new(&state, LoopCounters::new_zeroed(), false, 12 * S);
        let known = Sums::new(&state, LoopCounters::new_zeroed(), true, 13 * S);
        assert_eq!(known.since(Some(&believed)).time.sum_ns(), 0);
    }

    /// Counts are those of the interval, the most ready events those of either cell.
    #[test]
    fn counts_since() {
        let state = Loop { tid: 7, ..Loop::default() };
        let mut counters = LoopCounters::new_zeroed();
        counters.wait_left(5);
        let before = Sums::new(&state, counters.clone(), false, S);
        counters.most_ready = [0, 0];
        counters.cell = 1;
        counters.wait_left(3);
        let since = Sums::new(&state, counters, false, 2 * S).since(Some(&before));
        assert_eq!((since.waits, since.ready_events, since.most_ready), (1, 3, 3));
    }
}
