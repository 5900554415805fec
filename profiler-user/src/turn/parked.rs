//! A turn that ended without a wait in epoll: a worker of a pool had no more work and parked, or handed
//! its work over to others.
//!
//! The probes take a worker's turn to go on until it waits in epoll again, which another may do
//! instead. Its stack tells that it is parked; what it does after that is not part of the turn.

use profiler_ebpf::turn::Turn;

use super::tracker::Due;
use super::{End, Moment};
use crate::gap::Gap;

/// What one turn's reports have to know about its parking.
#[derive(Debug, Default)]
pub struct Parked {
    at_ns: Option<u64>,
    is_open: bool,
    is_over: bool,
}

impl Parked {
    /// The thread was found parked since `at_ns`.
    pub fn since(&mut self, at_ns: u64) {
        self.at_ns = Some(self.at_ns.map_or(at_ns, |known| known.min(at_ns)));
    }

    /// Whether a moment lies behind the end of the turn.
    pub fn is_before(&self, at_ns: u64) -> bool {
        self.at_ns.is_some_and(|parked_ns| parked_ns <= at_ns)
    }

    /// The report as it is to be made; `None` where there is nothing to report, or no more.
    pub fn admit(&mut self, mut due: Due, threshold_ns: u64) -> Option<Due> {
        let Some(parked_ns) = self.at_ns else {
            self.is_open |= due.moment == Moment::Open;
            return Some(due);
        };
        let lasted_ns = parked_ns.saturating_sub(due.turn.start_ns);
        if self.is_over || (!self.is_open && lasted_ns < threshold_ns) {
            self.is_over = true;
            return None;
        }
        if self.is_open || due.moment == Moment::End {
            self.is_over = true;
            due.moment = Moment::End;
            due.end = End::Seen;
        }
        self.is_open = true;
        shorten(&mut due.turn, lasted_ns);
        due.at_ns = parked_ns;
        due.now = None;
        due.ready_events = None;
        let why = "it parked or handed its work over, and then only waits in epoll are watched";
        due.gaps.push(Gap::new("what the worker did later in its turn", why));
        Some(due)
    }
}

/// Takes away what came after: it is mostly the parking itself, which is blocked time.
fn shorten(turn: &mut Turn, lasted_ns: u64) {
    let mut after_ns = turn.booked_ns().saturating_sub(lasted_ns);
    let parts =
        [&mut turn.blocked_ns, &mut turn.runnable_ns, &mut turn.running_ns, &mut turn.stopped_ns];
    for part in parts {
        let taken_ns = after_ns.min(*part);
        *part -= taken_ns;
        after_ns -= taken_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(moment: Moment, at_ns: u64) -> Due {
        let turn =
            Turn { start_ns: 1000, running_ns: 20, blocked_ns: at_ns - 1020, ..Turn::default() };
        let end = if moment == Moment::End { End::Seen } else { End::NotYet };
        Due { moment, turn, at_ns, end, now: None, ready_events: Some(1), gaps: Vec::new() }
    }

    /// A worker that parks in time has not stalled, however long it stays parked.
    #[test]
    fn only_parked() {
        let mut parked = Parked::default();
        parked.since(1030);
        assert_eq!(parked.admit(due(Moment::Open, 1100), 100), None);
        assert_eq!(parked.admit(due(Moment::End, 9000), 100), None);
    }

    /// A stall ends where the worker parks; it is told once, and its account is as long as it was.
    #[test]
    fn stalled_then_parked() {
        // ns  1000         1100   1300          2000     9000
        //      ├ stalled … open … ├ parked …     update   in epoll again
        let mut parked = Parked::default();
        assert_eq!(parked.admit(due(Moment::Open, 1100), 100), Some(due(Moment::Open, 1100)));
        parked.since(1300);
        assert!(parked.is_before(1300) && !parked.is_before(1299));
        let end = parked.admit(due(Moment::Update, 2000), 100).unwrap();
        assert_eq!((end.moment, end.end, end.at_ns), (Moment::End, End::Seen, 1300));
        assert_eq!((end.turn.running_ns, end.turn.blocked_ns), (20, 280));
        assert_eq!(end.ready_events, None);
        assert_eq!(parked.admit(due(Moment::End, 9000), 100), None);
    }

    /// A stall that nobody had announced when the worker parked is told all the same.
    #[test]
    fn stalled_unseen() {
        let mut parked = Parked::default();
        parked.since(1300);
        let open = parked.admit(due(Moment::Open, 1310), 100).unwrap();
        assert_eq!((open.moment, open.turn.booked_ns()), (Moment::Open, 300));
        assert_eq!(parked.admit(due(Moment::End, 9000), 100).unwrap().turn.booked_ns(), 300);
        let mut parked = Parked::default();
        parked.since(1300);
        assert_eq!(parked.admit(due(Moment::End, 9000), 100).unwrap().moment, Moment::End);
    }

    /// Turns without a parked worker are reported as they come.
    #[test]
    fn never_parked() {
        let mut parked = Parked::default();
        for moment in [Moment::Open, Moment::Update, Moment::End] {
            assert_eq!(parked.admit(due(moment, 5000), 100), Some(due(moment, 5000)));
        }
        assert!(!parked.is_before(u64::MAX));
    }

    /// What came after the parking is taken from where it can be.
    #[test]
    fn shortened_account() {
        let mut turn = Turn { running_ns: 100, blocked_ns: 50, ..Turn::default() };
        shorten(&mut turn, 60);
        assert_eq!((turn.running_ns, turn.blocked_ns), (60, 0));
    }
}
