//! For how much of a turn's blocked time each capture stands: long waits for themselves, short ones are sampled by their time.
//!
//! A round trip of 0.3 ms is too short to be worth a capture, and a thousand of them are the stall. So
//! each short wait adds its length to the loop's credit, and the one that brings it to
//! [`MIN_BLOCK_NS`] is sent and stands for all of it. What waits longer shows more often, the
//! weights add up to the time that was waited, and there is at most one capture a millisecond.
//!
//! Before a turn is suspected no stacks are taken. The waits of that time, if none was long enough to
//! be a matter of its own, count for the first capture that has a stack and is in the same system call.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::limits::MIN_BLOCK_NS;

/// An early wait is one of many if at least so many like it fit into the time before suspicion.
const EARLY_PARTS: u64 = 4;

/// Waits of the present turn that no capture has stood for yet.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Credit {
    /// How long the short ones lasted whose stacks were taken, ns.
    pub ns: u64,
    /// How long those lasted that came before suspicion, ns.
    pub early_ns: u64,
    /// The system call that most of that time went into, if any did.
    pub early_syscall: i64,
    /// By how much it leads over all others, ns; half of `early_ns` if it has three quarters of it.
    pub early_lead_ns: u64,
    /// How many waits `ns` is of.
    pub waits: u32,
    /// How many `early_ns` is of.
    pub early_waits: u32,
}

/// A stretch in which the thread was blocked or stopped, and that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Its length.
    pub ns: u64,
    /// As [`crate::record::Registers::syscall`].
    pub syscall: i64,
    /// Whether it was stopped: nothing that it waited for.
    pub is_stop: bool,
    /// Whether its capture has a stack.
    pub has_stack: bool,
    /// Whether its turn is suspected by now.
    pub is_suspected: bool,
}

/// For how much a capture stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weight {
    /// Blocked or stopped time.
    pub ns: u64,
    /// Waits.
    pub waits: u32,
}

impl Credit {
    /// That of a turn that begins.
    pub const NONE: Self =
        Self { ns: 0, early_ns: 0, early_syscall: 0, early_lead_ns: 0, waits: 0, early_waits: 0 };

    /// A stretch is over: for how much its capture stands, if that is to be sent. Turns are suspected
    /// once they are `suspect_ns` old.
    #[inline(always)]
    pub fn spend(&mut self, stretch: Stretch, suspect_ns: u64) -> Option<Weight> {
        let is_long = stretch.ns >= MIN_BLOCK_NS;
        let is_seen = stretch.has_stack && stretch.is_suspected;
        if stretch.is_stop || (is_long && stretch.is_suspected && !is_seen) {
            return (is_long && stretch.is_suspected)
                .then_some(Weight { ns: stretch.ns, waits: 1 });
        }
        if !is_seen {
            if stretch.ns < MIN_BLOCK_NS || stretch.ns < suspect_ns / EARLY_PARTS {
                self.came_early(stretch);
            }
            return None;
        }
        let mut weight = Weight { ns: stretch.ns, waits: 1 };
        if !is_long {
            self.ns += stretch.ns;
            self.waits += 1;
            if self.ns < MIN_BLOCK_NS {
                return None;
            }
            weight = Weight { ns: self.ns, waits: self.waits };
            (self.ns, self.waits) = (0, 0);
        }
        if self.early_syscall == stretch.syscall && self.early_lead_ns >= self.early_ns / 2 {
            weight.ns += self.early_ns;
            weight.waits += self.early_waits;
            (self.early_ns, self.early_lead_ns, self.early_waits) = (0, 0, 0);
        }
        Some(weight)
    }

    /// Whatever has more than half of the time is found by letting all others take from its lead.
    #[inline(always)]
    fn came_early(&mut self, stretch: Stretch) {
        if self.early_syscall == stretch.syscall {
            self.early_lead_ns += stretch.ns;
        } else if self.early_lead_ns >= stretch.ns {
            self.early_lead_ns -= stretch.ns;
        } else {
            self.early_syscall = stretch.syscall;
            self.early_lead_ns = stretch.ns - self.early_lead_ns;
        }
        self.early_ns += stretch.ns;
        self.early_waits += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::{Credit, MIN_BLOCK_NS, Stretch, Weight};

    const MS: u64 = MIN_BLOCK_NS;
    const RECVFROM: i64 = 45;
    const FSYNC: i64 = 74;

    /// A wait in a suspected turn.
    fn wait(ns: u64) -> Stretch {
        Stretch { ns, syscall: RECVFROM, is_stop: false, has_stack: true, is_suspected: true }
    }

    /// The same before its turn was suspected.
    fn early(ns: u64, syscall: i64) -> Stretch {
        Stretch { syscall, has_stack: false, is_suspected: false, ..wait(ns) }
    }

    fn weight(ns: u64, waits: u32) -> Option<Weight> {
        Some(Weight { ns, waits })
    }

    /// Where turns are suspected from 50 ms on.
    fn spend(credit: &mut Credit, stretch: Stretch) -> Option<Weight> {
        credit.spend(stretch, 50 * MS)
    }

    /// The wait that fills the credit stands for all in it, and the next begins from nothing.
    #[test]
    fn short_waits_are_sampled_by_time() {
        // ms   0.4  0.4  0.4 │ 0.4  0.4  0.4 │ 0.9  0.2 │
        //      ├──┤ ├──┤ ├──┼► ├──┤ ├──┤ ├──┼► ├───┤ ├┼►
        let mut credit = Credit::default();
        for _ in 0..2 {
            assert_eq!(spend(&mut credit, wait(4 * MS / 10)), None);
            assert_eq!(spend(&mut credit, wait(4 * MS / 10)), None);
            assert_eq!(spend(&mut credit, wait(4 * MS / 10)), weight(12 * MS / 10, 3));
        }
        assert_eq!(spend(&mut credit, wait(9 * MS / 10)), None);
        assert_eq!(spend(&mut credit, wait(2 * MS / 10)), weight(11 * MS / 10, 2));
        assert_eq!(credit, Credit::NONE);
    }

    /// A long wait stands for itself, and leaves the credit of the short ones around it alone.
    #[test]
    fn long_waits_stand_for_themselves() {
        // ms   0.6    7     0.6 │
        //      ├───┤ ├──┼► ├───┼►
        let mut credit = Credit::default();
        assert_eq!(spend(&mut credit, wait(6 * MS / 10)), None);
        assert_eq!(spend(&mut credit, wait(7 * MS)), weight(7 * MS, 1));
        assert_eq!(spend(&mut credit, wait(6 * MS / 10)), weight(12 * MS / 10, 2));
        let registers_only = Stretch { has_stack: false, ..wait(7 * MS) };
        assert_eq!(spend(&mut credit, registers_only), weight(7 * MS, 1));
        assert_eq!(credit, Credit::NONE);
    }

    /// Before suspicion, a wait of many is told by the next like it, long or short, and one that is a
    /// matter of its own by none.
    #[test]
    fn early_waits_of_some_length() {
        // ms   3    3    3   │ suspected  3 │
        //      ├──┤ ├──┤ ├──┤             ├──┼►
        let mut credit = Credit::default();
        for _ in 0..3 {
            assert_eq!(spend(&mut credit, early(3 * MS, RECVFROM)), None);
        }
        assert_eq!(spend(&mut credit, early(45 * MS, RECVFROM)), None);
        assert_eq!(spend(&mut credit, wait(3 * MS)), weight(12 * MS, 4));
        assert_eq!(spend(&mut credit, wait(3 * MS)), weight(3 * MS, 1));
    }

    /// What was blocked before suspicion goes to the first capture with a stack, however many with
    /// registers only come before.
    #[test]
    fn early_waits_go_to_the_first_stack() {
        //      not suspected      │ suspected
        // ms   0.5  0.5  0.5  0.5 │ 2 (registers)   0.5  0.5 │
        //      ├──┤ ├──┤ ├──┤ ├──┤  ├────────────┼► ├──┤ ├──┼►
        let mut credit = Credit::default();
        for _ in 0..4 {
            assert_eq!(spend(&mut credit, early(MS / 2, RECVFROM)), None);
        }
        let registers_only = Stretch { has_stack: false, ..wait(2 * MS) };
        assert_eq!(spend(&mut credit, registers_only), weight(2 * MS, 1));
        assert_eq!(spend(&mut credit, wait(MS / 2)), None);
        assert_eq!(spend(&mut credit, wait(MS / 2)), weight(3 * MS, 6));
        assert_eq!((credit.early_ns, credit.early_waits), (0, 0));
    }

    /// The call that most of the early time went into decides whose it is; if that does not come again,
    /// it is nobody's.
    #[test]
    fn early_waits_in_another_call() {
        let mut credit = Credit::default();
        spend(&mut credit, early(MS / 10, RECVFROM));
        spend(&mut credit, early(2 * MS, FSYNC));
        spend(&mut credit, early(MS / 5, RECVFROM));
        assert_eq!(spend(&mut credit, wait(MS - 1)), None);
        assert_eq!(spend(&mut credit, wait(1)), weight(MS, 2));
        assert_eq!((credit.early_ns, credit.early_waits), (23 * MS / 10, 3));
        let sync = Stretch { syscall: FSYNC, ..wait(2 * MS) };
        assert_eq!(spend(&mut credit, sync), weight(43 * MS / 10, 4));
        assert_eq!(spend(&mut credit, sync), weight(2 * MS, 1));
        for syscall in [RECVFROM, FSYNC, RECVFROM, FSYNC] {
            spend(&mut credit, early(2 * MS, syscall));
        }
        assert_eq!(spend(&mut credit, wait(3 * MS)), weight(3 * MS, 1), "half may be others'");
        assert_eq!(spend(&mut credit, sync), weight(2 * MS, 1));
    }

    /// A wait whose stack was taken before its turn was suspected is an early one; a short stop is no
    /// wait, and a long one is told.
    #[test]
    fn what_is_no_short_wait() {
        let mut credit = Credit::default();
        let mapping = Stretch { is_suspected: false, ..wait(MS / 2) };
        assert_eq!(spend(&mut credit, mapping), None);
        assert_eq!((credit.ns, credit.early_ns), (0, MS / 2));
        let stop = |ns| Stretch { is_stop: true, ..wait(ns) };
        assert_eq!(spend(&mut credit, stop(MS / 2)), None);
        assert_eq!(credit.ns, 0);
        assert_eq!(spend(&mut credit, stop(3 * MS)), weight(3 * MS, 1));
    }

    /// However waits come, no more time is told than was waited, and no more than a millisecond is
    /// left untold once captures come.
    #[test]
    fn weights_add_up() {
        let mut credit = Credit::default();
        let (mut waited_ns, mut told_ns, mut captures) = (0, 0, 0);
        for number in 0..5000_u64 {
            let ns = number * 7919 % (MS * 3 / 2);
            let is_early = number < 500;
            let has_stack = !is_early;
            if is_early && ns >= MS {
                continue;
            }
            waited_ns += ns;
            let stretch = Stretch { has_stack, is_suspected: !is_early, ..wait(ns) };
            if let Some(weight) = spend(&mut credit, stretch) {
                (told_ns, captures) = (told_ns + weight.ns, captures + 1);
            }
            assert!(told_ns <= waited_ns);
        }
        assert!(waited_ns - told_ns < MS, "{waited_ns} {told_ns}");
        assert!(captures <= waited_ns / MS);
    }
}
