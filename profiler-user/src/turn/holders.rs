//! Who was seen to hold what a loop waited for, and when, to each one's share of the waiting.
//!
//! A thread is sighted at one moment: by a tick that found it on a CPU, or by a look from outside
//! that found it standing still. The sighting counts if the loop turns out to have been waiting at
//! that moment; the loop's own records, which come when each stretch of waiting is over, decide.

use super::alike::looks_same;
use super::{Holder, Lock, Sampled};

/// Different stacks of holders kept of one turn; what exceeds them is counted.
const MAX_STACKS: usize = 128;

/// Sightings that wait for the end of the stretch in which they fell: a minute of ticks on two CPUs.
const MAX_PENDING: usize = 16 * 1024;

/// One moment at which a thread held what the loop waited for.
#[derive(Debug)]
pub struct Sighting {
    pub at_ns: u64,
    pub tid: u32,
    pub held: Lock,
    /// Where it was.
    pub seen: Sampled,
    /// Whether it collected garbage there.
    pub is_collecting: bool,
    /// The time that it stands for: until the next sighting of its kind.
    pub weight_ns: u64,
}

/// One stack of one holder.
#[derive(Debug)]
struct Seen {
    tid: u32,
    held: Lock,
    sampled: Sampled,
    collecting: u64,
    weight_ns: u64,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    at_ns: u64,
    seen: usize,
    is_collecting: bool,
    weight_ns: u64,
}

/// The holders of one turn.
#[derive(Debug, Default)]
pub struct Holders {
    seen: Vec<Seen>,
    pending: Vec<Pending>,
    /// Sightings that there was no room for.
    pub dropped: u64,
}

impl Holders {
    /// A thread was seen to hold what the loop waits for, or may wait for.
    pub fn sight(&mut self, sighting: Sighting) {
        let Sighting { at_ns, tid, held, seen, is_collecting, weight_ns } = sighting;
        let same = |known: &Seen| {
            (known.tid, known.held, known.sampled.state) == (tid, held, seen.state)
                && looks_same(&known.sampled.stack, &seen.stack)
        };
        let index = match self.seen.iter().position(same) {
            Some(index) => index,
            None if self.seen.len() < MAX_STACKS => {
                let sampled = Sampled { samples: 0, time_ns: 0, ..seen };
                self.seen.push(Seen { tid, held, sampled, collecting: 0, weight_ns: 0 });
                self.seen.len() - 1
            }
            None => {
                self.dropped += 1;
                return;
            }
        };
        if self.pending.len() == MAX_PENDING {
            self.dropped += 1;
            return;
        }
        self.pending.push(Pending { at_ns, seen: index, is_collecting, weight_ns });
    }

    /// A stretch of waiting is over: what was seen in it counts, what was seen before it does not.
    pub fn settle(&mut self, from_ns: u64, until_ns: u64, awaited: Option<Lock>) {
        let (over, pending) = self.pending.iter().partition(|pending| pending.at_ns < until_ns);
        self.pending = pending;
        let over: Vec<Pending> = over;
        for pending in over {
            count(&mut self.seen, pending, from_ns, awaited);
        }
    }

    /// The holders' stacks, heaviest first, with their shares of the time that the loop waited for
    /// what they held. `open` is the stretch of waiting that still lasts, if one does.
    pub fn shares(
        &self,
        open: Option<(u64, Option<Lock>)>,
        waited_ns: impl Fn(Lock) -> u64,
    ) -> Vec<Holder> {
        let copy = |seen: &Seen| Seen { sampled: seen.sampled.clone(), ..*seen };
        let mut counted: Vec<Seen> = self.seen.iter().map(copy).collect();
        if let Some((from_ns, awaited)) = open {
            for pending in &self.pending {
                count(&mut counted, *pending, from_ns, awaited);
            }
        }
        let all = |held: Lock| -> u64 {
            counted.iter().filter(|seen| seen.held == held).map(|seen| seen.weight_ns).sum()
        };
        let share = |seen: &Seen| {
            let share = u128::from(waited_ns(seen.held)) * u128::from(seen.weight_ns);
            (share / u128::from(all(seen.held).max(1))) as u64
        };
        let mut holders: Vec<Holder> = counted
            .iter()
            .filter(|seen| seen.weight_ns > 0)
            .map(|seen| Holder {
                tid: seen.tid,
                name: None,
                held: seen.held,
                seen: Sampled { time_ns: share(seen), ..seen.sampled.clone() },
                collecting: seen.collecting,
            })
            .collect();
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.seen.time_ns));
        holders
    }
}

/// Counts one sighting, if it fell into a stretch of waiting for what was held.
fn count(seen: &mut [Seen], pending: Pending, from_ns: u64, awaited: Option<Lock>) {
    let Some(seen) = seen.get_mut(pending.seen) else { return };
    if awaited == Some(seen.held) && pending.at_ns >= from_ns {
        seen.sampled.samples += 1;
        seen.collecting += u64::from(pending.is_collecting);
        seen.weight_ns = seen.weight_ns.saturating_add(pending.weight_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::{Holders, Sighting};
    use crate::report::sample::on_cpu;
    use crate::turn::Lock;

    fn sighting(at_ns: u64, tid: u32, held: Lock) -> Sighting {
        Sighting {
            at_ns,
            tid,
            held,
            seen: on_cpu(Vec::new(), 0),
            is_collecting: false,
            weight_ns: 10,
        }
    }

    fn shares(holders: &Holders, open: Option<(u64, Lock)>) -> Vec<(u32, u64, u64)> {
        let shares =
            holders.shares(open.map(|(from_ns, lock)| (from_ns, Some(lock))), |lock| match lock {
                Lock::Gil | Lock::Gvl => 400,
                Lock::Futex(0x10) => 90,
                Lock::Futex(_) => 50,
            });
        shares.iter().map(|holder| (holder.tid, holder.seen.samples, holder.seen.time_ns)).collect()
    }

    /// Only what falls into a stretch of waiting for that very thing counts; the waiting is shared out.
    #[test]
    fn sightings_count_while_the_loop_waits() {
        // ns    100          150      200            260
        //       ├ waits GIL ──┤ runs   ├ waits futex ──┤
        let mut holders = Holders::default();
        for (at_ns, tid) in [(90, 7), (110, 7), (120, 8), (130, 8), (140, 8), (160, 9)] {
            holders.sight(sighting(at_ns, tid, Lock::Gil));
        }
        holders.settle(100, 150, Some(Lock::Gil));
        holders.sight(sighting(210, 7, Lock::Gil));
        holders.sight(sighting(220, 5, Lock::Futex(0x10)));
        holders.settle(200, 260, Some(Lock::Futex(0x10)));
        assert_eq!(shares(&holders, None), [(8, 3, 300), (7, 1, 100), (5, 1, 90)]);
    }

    /// While a stretch lasts, what was seen in it so far counts, and still does once it is over.
    #[test]
    fn an_open_stretch_counts() {
        let mut holders = Holders::default();
        holders.sight(sighting(90, 6, Lock::Gil));
        holders.sight(sighting(110, 7, Lock::Gil));
        assert_eq!(shares(&holders, None), []);
        assert_eq!(shares(&holders, Some((100, Lock::Gil))), [(7, 1, 400)]);
        assert_eq!(shares(&holders, Some((100, Lock::Futex(0x10)))), []);
        holders.settle(100, 120, Some(Lock::Gil));
        assert_eq!(shares(&holders, None), [(7, 1, 400)]);
    }

    /// A sighting that stands for more time weighs more.
    #[test]
    fn sightings_are_weighed() {
        let mut holders = Holders::default();
        holders.sight(Sighting { weight_ns: 30, ..sighting(110, 7, Lock::Gil) });
        holders.sight(sighting(120, 8, Lock::Gil));
        holders.settle(100, 150, Some(Lock::Gil));
        assert_eq!(shares(&holders, None), [(7, 1, 300), (8, 1, 100)]);
    }

    /// Of several locks, each one's time is shared by those who had that one.
    #[test]
    fn locks_are_told_apart() {
        let mut holders = Holders::default();
        for (at_ns, tid, futex) in [(110, 7, 0x10), (210, 7, 0x10), (220, 8, 0x20)] {
            holders.sight(sighting(at_ns, tid, Lock::Futex(futex)));
        }
        holders.settle(100, 150, Some(Lock::Futex(0x10)));
        holders.settle(200, 250, Some(Lock::Futex(0x20)));
        assert_eq!(shares(&holders, None), [(7, 1, 90), (8, 1, 50)]);
    }
}
