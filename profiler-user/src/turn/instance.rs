//! Whether a long turn of one thread holds up its loop, by how all threads that wait on the same instance stand.
//!
//! A loop is an epoll instance, or a ring, that somebody waits on. As long as any of its threads does, whatever
//! another computes or waits for holds up nobody. The thread that left its wait last is the one by whose time
//! a stall is told: its turn began when the last wait on the instance returned.

use profiler_ebpf::turn::{Loop, phase};

use crate::source::{Ended, EndedBy, OtherWaiters};

/// One thread, as far as its instance is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stand {
    pub tid: u32,
    /// The instance; 0 where it is not known.
    file: u64,
    waits: bool,
    entered_ns: u64,
    left_ns: u64,
    /// Where it is in a turn.
    turn_start_ns: Option<u64>,
}

/// Who serves an instance while one of its threads is in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Nobody has since the turn began, and by this turn a stall is told.
    None,
    /// Nobody has either, but another thread left its wait later.
    NoneSince(u32),
    /// Somebody has, the last time from then on.
    Another { since_ns: u64 },
}

impl Stand {
    pub fn of(state: &Loop) -> Self {
        Self {
            tid: state.tid,
            file: state.home_file,
            waits: state.phase == phase::WAITING,
            entered_ns: state.entered_ns,
            left_ns: state.left_ns,
            turn_start_ns: (state.phase == phase::TURN).then_some(state.turn.start_ns),
        }
    }

    /// Whether both hang on one instance.
    pub fn shares(&self, other: &Self) -> bool {
        self.file != 0 && self.file == other.file && self.tid != other.tid
    }

    /// Whether a turn of this thread's began with its wait's return, then.
    pub fn left_at(&self, at_ns: u64) -> bool {
        self.left_ns == at_ns && self.turn_start_ns == Some(at_ns)
    }

    /// Whether it has been away since then, or for longer.
    pub fn is_away_since(&self, at_ns: u64) -> bool {
        self.turn_start_ns.is_some_and(|start_ns| start_ns <= at_ns)
    }

    /// Whether it has waited since then.
    pub fn served_after(&self, at_ns: u64) -> bool {
        self.waits || self.left_ns > at_ns
    }
}

/// Who serves the instance of a thread that is in a turn.
pub fn service(own: &Stand, all: &[Stand]) -> Service {
    let start_ns = own.turn_start_ns.unwrap_or_default();
    let others = || all.iter().filter(|other| own.shares(other));
    let serving = others().filter(|other| other.served_after(start_ns));
    if let Some(since_ns) = serving.map(|other| other.entered_ns.max(start_ns)).min() {
        return Service::Another { since_ns };
    }
    let last = others().max_by_key(|other| other.left_ns);
    let later = |other: &&Stand| other.left_ns > own.left_ns && other.left_at(other.left_ns);
    last.filter(later).map_or(Service::None, |other| Service::NoneSince(other.tid))
}

/// What the end of a long turn says of its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// Nobody waited while it lasted: it was a stall.
    Stall,
    /// Somebody waits, or has waited meanwhile.
    Served,
    /// Its thread serves again what nobody has served since then: the stall is that of the turn which began then.
    Ends { began_ns: u64 },
}

/// The same, by what the probes told of the end.
pub fn meaning(turn_start_ns: u64, ended: &Ended) -> Meaning {
    let OtherWaiters::LeftAt(others_ns) = ended.others else { return Meaning::Served };
    if others_ns <= turn_start_ns && others_ns <= ended.left_ns {
        Meaning::Stall
    } else if ended.by == EndedBy::Wait {
        Meaning::Ends { began_ns: others_ns }
    } else if others_ns <= turn_start_ns {
        Meaning::Stall
    } else {
        Meaning::Served
    }
}

#[cfg(test)]
mod tests {
    use super::{Meaning, Service, Stand, meaning, service};
    use crate::source::{Ended, EndedBy, OtherWaiters};

    const FILE: u64 = 0xa000;

    fn waits(tid: u32, entered_ns: u64) -> Stand {
        let (waits, left_ns, turn_start_ns) = (true, 0, None);
        Stand { tid, file: FILE, waits, entered_ns, left_ns, turn_start_ns }
    }

    fn away(tid: u32, entered_ns: u64, left_ns: u64) -> Stand {
        let turn_start_ns = Some(left_ns);
        Stand { tid, file: FILE, waits: false, entered_ns, left_ns, turn_start_ns }
    }

    fn parked(stand: Stand) -> Stand {
        Stand { turn_start_ns: None, ..stand }
    }

    /// One thread that works or blocks holds up nobody while another waits, or has waited since.
    #[test]
    fn served_by_another() {
        // 1   ──wait──┤ 100 ── away ──────────────────────
        // 2   ──wait──────────────┤ 400   (or waits on)
        let own = away(1, 50, 100);
        assert_eq!(service(&own, &[own, waits(2, 60)]), Service::Another { since_ns: 100 });
        assert_eq!(service(&own, &[own, waits(2, 300)]), Service::Another { since_ns: 300 });
        assert_eq!(service(&own, &[own, away(2, 300, 400)]), Service::Another { since_ns: 300 });
        let elsewhere = Stand { file: 0xb000, ..waits(3, 60) };
        assert_eq!(service(&own, &[own, elsewhere]), Service::None);
        let unknown = |stand: Stand| Stand { file: 0, ..stand };
        assert_eq!(service(&unknown(own), &[own, unknown(waits(2, 60))]), Service::None);
    }

    /// Where all are away, it is told by the one that left last.
    #[test]
    fn told_by_the_last() {
        // 1   ──┤ 100 ── away ──────
        // 2   ──────┤ 150 ── away ──
        let all = [away(1, 50, 100), away(2, 60, 150)];
        assert_eq!(service(&all[0], &all), Service::Another { since_ns: 100 });
        assert_eq!(service(&all[1], &all), Service::None);
        // One that came back from its park has left its wait longer ago than it looks.
        let woken = Stand { turn_start_ns: Some(200), ..away(3, 10, 20) };
        let all = [all[0], all[1], woken];
        assert_eq!(service(&woken, &all), Service::NoneSince(2));
        assert!(all[0].is_away_since(150) && !woken.is_away_since(150));
        let all = [parked(all[0]), parked(all[1]), woken];
        assert_eq!(service(&woken, &all), Service::None, "who left last waits for work");
    }

    fn ended(by: EndedBy, left_ns: u64, others: OtherWaiters) -> Ended {
        Ended { by, left_ns, others }
    }

    /// The end of a long turn is the end of a stall, of another's, or of none.
    #[test]
    fn ends_of_turns() {
        let wait = |others| ended(EndedBy::Wait, 100, others);
        assert_eq!(meaning(100, &wait(OtherWaiters::Waiting)), Meaning::Served);
        assert_eq!(meaning(100, &wait(OtherWaiters::LeftAt(0))), Meaning::Stall, "it is alone");
        assert_eq!(meaning(100, &wait(OtherWaiters::LeftAt(60))), Meaning::Stall);
        let later = Meaning::Ends { began_ns: 150 };
        assert_eq!(meaning(100, &wait(OtherWaiters::LeftAt(150))), later);
        let parks = ended(EndedBy::Park, 100, OtherWaiters::LeftAt(150));
        assert_eq!(meaning(100, &parks), Meaning::Served, "who parks serves nobody");
        // A worker that came back from its park at 200 and serves at last.
        let woken = ended(EndedBy::Wait, 20, OtherWaiters::LeftAt(150));
        assert_eq!(meaning(200, &woken), later);
        let woken = ended(EndedBy::Park, 20, OtherWaiters::LeftAt(150));
        assert_eq!(meaning(200, &woken), Meaning::Stall);
    }
}
