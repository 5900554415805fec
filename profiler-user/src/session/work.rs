//! A piece of work that a worker has in hand, and the cut that it makes in a turn.

use profiler_ebpf::turn::{START_UNKNOWN, Turn};

use crate::runtime::frames::WorkPlace;
use crate::turn::contention::Contention;

/// The piece of work that was seen in one turn.
#[derive(Debug, Clone, Copy)]
pub struct Item {
    pub turn_start_ns: u64,
    pub place: WorkPlace,
    pub work: u64,
}

/// Where a turn was cut: the account up to there belongs to earlier work.
#[derive(Debug, Clone)]
pub struct Cut {
    pub turn_start_ns: u64,
    pub at_ns: u64,
    pub before: Turn,
    /// Who had run instead by then.
    pub instead_before: Contention,
}

impl Cut {
    /// The rest of that turn; any other turn as it is.
    pub fn apply(&self, turn: &mut Turn) {
        if turn.start_ns != self.turn_start_ns {
            return;
        }
        let before = &self.before;
        *turn = Turn {
            start_ns: self.at_ns,
            running_ns: turn.running_ns.saturating_sub(before.running_ns),
            blocked_ns: turn.blocked_ns.saturating_sub(before.blocked_ns),
            runnable_ns: turn.runnable_ns.saturating_sub(before.runnable_ns),
            stopped_ns: turn.stopped_ns.saturating_sub(before.stopped_ns),
            voluntary: turn.voluntary.saturating_sub(before.voluntary),
            preempted: turn.preempted.saturating_sub(before.preempted),
            flags: turn.flags | START_UNKNOWN,
            nested_waits: turn.nested_waits.saturating_sub(before.nested_waits),
            preempted_ns: turn.preempted_ns.saturating_sub(before.preempted_ns),
            minor_faults: turn.minor_faults.saturating_sub(before.minor_faults),
            major_faults: turn.major_faults.saturating_sub(before.major_faults),
        };
    }
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::turn::{START_UNKNOWN, Turn};

    use super::{Contention, Cut};

    /// The rest of a turn has the rest of its account, and only of that turn.
    #[test]
    fn a_cut_takes_away_what_was_before() {
        let before = Turn { start_ns: 100, running_ns: 30, blocked_ns: 20, ..Turn::default() };
        let instead_before = Contention::default();
        let cut = Cut { turn_start_ns: 100, at_ns: 150, before, instead_before };
        let mut turn = Turn { start_ns: 100, running_ns: 35, blocked_ns: 95, ..Turn::default() };
        cut.apply(&mut turn);
        assert_eq!((turn.start_ns, turn.booked_ns()), (150, 80));
        assert_eq!((turn.running_ns, turn.blocked_ns), (5, 75));
        assert_eq!(turn.flags, START_UNKNOWN);
        let mut other = Turn { start_ns: 300, running_ns: 35, ..Turn::default() };
        cut.apply(&mut other);
        assert_eq!((other.start_ns, other.running_ns, other.flags), (300, 35, 0));
    }
}
