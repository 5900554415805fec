//! One loop that is followed: its tracker, and what is known of its thread.

use profiler_ebpf::contention::Contenders;
use profiler_ebpf::limits::CLOSE_LOOK_NS;
use profiler_ebpf::turn::{Loop, Turn, state};

use super::work::{Cut, Item};
use crate::environment::Tracer;
use crate::process::frozen::Certainty;
use crate::turn::contention::Contention;
use crate::turn::tracker::{AwayThread, Due, Tracker};

/// Between two searches for a thread's interpreter state: a loop in native code never has one.
const SEARCH_EVERY_NS: u64 = 1_000_000_000;

/// Between two looks at a thread of a pool that nobody asked to watch.
const GLANCE_EVERY_NS: u64 = 1_000_000_000;

/// Between two counts of those who wait for a loop that stalls; each interval is twice the one before.
/// A count reads tables that have a line for every connection of the network namespace.
const FIRST_COUNT_NS: u64 = 100_000_000;
const LONGEST_COUNT_NS: u64 = 10_000_000_000;

/// Between two looks at a suspected turn in which nothing changes: the probes wake us when something does.
const CALM_LOOK_NS: u64 = 50_000_000;

/// A stretch of a turn in which the thread sleeps in one wait, or does not sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    turn_start_ns: u64,
    voluntary: u32,
    is_blocked: bool,
}

impl Stretch {
    fn of(seen: &Loop) -> Self {
        let Turn { start_ns, voluntary, .. } = seen.turn;
        let is_blocked = !(seen.state == state::RUNNING || state::is_ready(seen.state));
        Self { turn_start_ns: start_ns, voluntary, is_blocked }
    }
}

/// When to count next in the turn that stalls.
#[derive(Debug, Default)]
struct Counting {
    turn_start_ns: u64,
    next_ns: u64,
    interval_ns: u64,
}

/// One loop that is followed.
#[derive(Debug)]
pub struct Followed {
    pub tracker: Tracker,
    /// The blocked stretch whose stack has been completed, by its beginning.
    pub completed_ns: u64,
    /// The blocked stretch, by its beginning, in which the address space was found locked.
    pub locked_ns: u64,
    /// The turn, by its beginning, in which what its runtime calls the thread was last read.
    pub named_in_ns: Option<u64>,
    /// The interpreter's state of this thread, once found.
    pub interpreter_state: Option<u64>,
    /// Where the loop's frame keeps which callback it runs, once seen; 0: not yet.
    pub callback_at: u64,
    next_search_ns: u64,
    next_glance_ns: u64,
    /// What the last look found it doing.
    stretch: Option<Stretch>,
    counting: Counting,
    pub turns: u64,
    /// The sleep that was found to be a park, by its beginning.
    pub parked_ns: Option<u64>,
    /// The work that a worker has in hand, and where its turn was cut because that changed.
    pub item: Option<Item>,
    pub cut: Option<Cut>,
    /// How sure it is that the turn in which we found the thread is one.
    pub certainty: Certainty,
    /// The turn, by its beginning, that is told as the thread's work, as another serves its instance.
    pub work_ns: Option<u64>,
    /// When another thread served again the instance that the turn, by its beginning, had held up.
    pub served_at: Option<(u64, u64)>,
    /// Who else was away from the instance, in the turn that began then.
    pub away: (u64, Vec<AwayThread>),
    /// Who traced the thread when it stopped, and since when.
    pub traced: Option<(u64, Tracer)>,
    /// Who ran instead of the thread, in the turn that was last told of.
    pub contenders: Option<Box<Contenders>>,
}

impl Followed {
    pub fn new(threshold_ns: u64) -> Self {
        let tracker = Tracker::new(threshold_ns);
        Self {
            tracker,
            completed_ns: 0,
            locked_ns: 0,
            named_in_ns: None,
            interpreter_state: None,
            callback_at: 0,
            next_search_ns: 0,
            next_glance_ns: 0,
            stretch: None,
            counting: Counting::default(),
            turns: 0,
            parked_ns: None,
            item: None,
            cut: None,
            certainty: Certainty::Sure,
            work_ns: None,
            served_at: None,
            away: (0, Vec::new()),
            traced: None,
            contenders: None,
        }
    }

    /// Who ran instead of the thread in the turn of this account, which may be cut.
    pub fn contention(&self, turn: &Turn) -> Contention {
        let cut = self.cut.as_ref().filter(|cut| cut.at_ns == turn.start_ns);
        let contention = match cut {
            Some(cut) => self.whole_instead(cut.turn_start_ns).since(&cut.instead_before),
            None => self.whole_instead(turn.start_ns),
        };
        contention.within(turn.runnable_ns)
    }

    /// The same of a whole turn, which the probes have begin then.
    pub fn whole_instead(&self, turn_start_ns: u64) -> Contention {
        let contenders =
            self.contenders.as_ref().filter(|contenders| contenders.turn_start_ns == turn_start_ns);
        contenders.map(|contenders| Contention::of(contenders)).unwrap_or_default()
    }

    /// Whether to look at a thread that needs no close looks.
    pub fn glance_is_due(&mut self, now_ns: u64) -> bool {
        let due = now_ns >= self.next_glance_ns;
        if due {
            self.next_glance_ns = now_ns + GLANCE_EVERY_NS;
        }
        due
    }

    /// How long to pause after a look, which found it in this state. Who is handed work may take up other work unseen.
    pub fn pause_ns(&mut self, seen: &Loop, others_are_watched: bool) -> u64 {
        let is_quiet = !others_are_watched && seen.handed_work == 0;
        let stretch = is_quiet.then(|| Stretch::of(seen));
        let goes_on = stretch.is_some() && self.stretch == stretch;
        self.stretch = stretch;
        if goes_on { CALM_LOOK_NS } else { CLOSE_LOOK_NS }
    }

    /// A tracer may be gone by the time that the stall which it caused is told.
    pub fn add_tracer(&self, due: &mut Due) {
        if let Some((at_ns, tracer)) = &self.traced
            && *at_ns >= due.turn.start_ns
        {
            due.environment.tracer = Some(tracer.clone());
        }
    }

    /// Whether to count now who waits for a loop whose stall goes on.
    pub fn count_is_due(&mut self, turn_start_ns: u64, now_ns: u64) -> bool {
        let first = Counting { turn_start_ns, next_ns: now_ns, interval_ns: FIRST_COUNT_NS };
        if self.counting.turn_start_ns != turn_start_ns {
            self.counting = first;
        }
        let counting = &mut self.counting;
        let due = now_ns >= counting.next_ns;
        if due {
            counting.next_ns = now_ns + counting.interval_ns;
            counting.interval_ns = (counting.interval_ns * 2).min(LONGEST_COUNT_NS);
        }
        due
    }

    /// Whether the thread is where it waits for work, although its state says that it is in a turn.
    pub fn is_parked(&self, seen: &Loop) -> bool {
        seen.state == state::BLOCKED && self.parked_ns == Some(seen.booked_until_ns)
    }

    /// There may be an interpreter now.
    pub fn search_again(&mut self) {
        self.next_search_ns = 0;
    }

    /// Whether to search for the interpreter's state of this thread now; not at every look.
    pub fn search_is_due(&mut self, now_ns: u64) -> bool {
        let due = self.interpreter_state.is_none() && now_ns >= self.next_search_ns;
        if due {
            self.next_search_ns = now_ns + SEARCH_EVERY_NS;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::turn::{Loop, Turn, state};

    use super::Followed;

    const MS: u64 = 1_000_000;

    /// Who waits is counted when a stall is first seen, and at intervals that grow.
    #[test]
    fn counts_grow_rare() {
        let mut followed = Followed::new(100 * MS);
        let mut counted = |turn_start_ns, from: u64| -> Vec<u64> {
            let looks = (from..from + 100).map(|look| look * 10 * MS);
            looks.filter(|now_ns| followed.count_is_due(turn_start_ns, *now_ns)).collect()
        };
        assert_eq!(counted(1, 0), [0, 100 * MS, 300 * MS, 700 * MS]);
        assert_eq!(counted(2, 100), [1000 * MS, 1100 * MS, 1300 * MS, 1700 * MS]);
    }

    /// Looks are fewer where a thread sleeps on in one wait, or runs on, and close again where anything else is to be
    /// seen.
    #[test]
    fn calm_stretches() {
        let mut followed = Followed::new(100 * MS);
        let seen = |state, voluntary| Loop {
            state,
            turn: Turn { voluntary, ..Turn::default() },
            ..Loop::default()
        };
        let mut pause_ms = |seen: Loop, watched| followed.pause_ns(&seen, watched) / MS;
        let asleep = seen(state::BLOCKED, 7);
        let pauses: Vec<_> = (0..3).map(|_| pause_ms(asleep, false)).collect();
        assert_eq!(pauses, [10, 50, 50]);
        assert_eq!(pause_ms(seen(state::BLOCKED, 8), false), 10, "another wait");
        assert_eq!(pause_ms(seen(state::BLOCKED, 8), true), 10);
        assert_eq!(pause_ms(seen(state::BLOCKED, 8), false), 10);
        assert_eq!(pause_ms(seen(state::RUNNING, 8), false), 10);
        assert_eq!(pause_ms(seen(state::PREEMPTED, 8), false), 50, "it would run");
        let worker = Loop { handed_work: 1, ..seen(state::RUNNING, 8) };
        assert_eq!(pause_ms(worker, false), 10);
        assert_eq!(pause_ms(worker, false), 10);
    }

    /// A thread whose interpreter state was not found is searched for again, however often it is
    /// looked at meanwhile; one that was found is not.
    #[test]
    fn state_is_searched_for_again() {
        let mut followed = Followed::new(100 * MS);
        let looks = (0..=40).map(|look| look * 50 * MS);
        let searches: Vec<u64> = looks.filter(|now_ns| followed.search_is_due(*now_ns)).collect();
        assert_eq!(searches, [0, 1000 * MS, 2000 * MS]);
        followed.interpreter_state = Some(1);
        assert!(!followed.search_is_due(9000 * MS));
    }
}
