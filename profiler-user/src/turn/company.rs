//! The other threads of a process whose loop waits for one of them: what each was seen to do, and for how long.

use std::collections::{BTreeMap, BTreeSet};

use super::alike::looks_same;
use super::{Companion, Company, Sampled};

/// Different stacks of other threads kept of one turn; what exceeds them is counted.
const MAX_SEEN: usize = 512;

/// What looks from outside have shown so far in one turn.
#[derive(Debug, Default)]
pub struct Companions {
    seen: Vec<Companion>,
    /// By thread, where it was found last.
    last: BTreeMap<u32, usize>,
    /// How many looks there were at all of them.
    looks: u64,
    /// How many there were at most, in one of these.
    most: usize,
    idle_looks: u64,
    moved: BTreeSet<u32>,
    pub dropped: u64,
}

impl Companions {
    /// One look, which stands for some time: who stood still, and who has not moved since the look before.
    pub fn look(&mut self, weight_ns: u64, still: Vec<Companion>, unmoved: &[u32]) {
        for tid in unmoved {
            let place = self.last.get(tid).copied();
            if let Some(known) = place.and_then(|place| self.seen.get_mut(place)) {
                count(&mut known.seen, weight_ns);
            }
        }
        for companion in still {
            self.add(companion, weight_ns);
        }
    }

    /// That look was at all of them: those that stood still, and those that moved.
    pub fn looked_at_all(&mut self, still: &[u32], moving: &[u32]) {
        self.looks += 1;
        self.most = self.most.max(still.len() + moving.len());
        self.moved.extend(moving);
        let place = |tid: &u32| self.last.get(tid).copied();
        let is_parked = |place: usize| self.seen.get(place).is_some_and(|it| it.is_parked);
        let is_idle =
            moving.is_empty() && still.iter().all(|tid| place(tid).is_some_and(is_parked));
        self.idle_looks = if is_idle { self.idle_looks + 1 } else { 0 };
    }

    fn add(&mut self, mut companion: Companion, weight_ns: u64) {
        let tid = companion.tid;
        let same = |known: &Companion| {
            let (one, other) = (&known.seen, &companion.seen);
            known.tid == tid
                && known.waits_for == companion.waits_for
                && (one.state, one.awaited, one.registers.syscall)
                    == (other.state, other.awaited, other.registers.syscall)
                && looks_same(&one.stack, &other.stack)
        };
        if let Some(place) = self.seen.iter().position(same) {
            count(&mut self.seen[place].seen, weight_ns);
            self.last.insert(tid, place);
            return;
        }
        if self.seen.len() == MAX_SEEN {
            self.dropped += 1;
            return;
        }
        (companion.seen.samples, companion.seen.time_ns) = (0, 0);
        count(&mut companion.seen, weight_ns);
        self.last.insert(tid, self.seen.len());
        self.seen.push(companion);
    }

    /// All that, longest first.
    pub fn told(&self, name: impl Fn(u32) -> Option<String>) -> Company {
        let named = |known: &Companion| Companion { name: name(known.tid), ..known.clone() };
        let mut threads: Vec<Companion> = self.seen.iter().map(named).collect();
        threads.sort_by_key(|companion| std::cmp::Reverse(companion.seen.time_ns));
        let others = (self.looks > 0).then_some(self.most);
        let moved = self.moved.iter().copied().collect();
        Company { threads, moved, others, idle_looks: self.idle_looks }
    }
}

fn count(seen: &mut Sampled, weight_ns: u64) {
    seen.samples += 1;
    seen.time_ns = seen.time_ns.saturating_add(weight_ns);
}

#[cfg(test)]
mod tests {
    use super::{Companion, Companions};
    use crate::report::sample::{blocked_in, python};

    fn reading(tid: u32, function: &str) -> Companion {
        let mut seen = blocked_in(0, [7, 0, 0, 0, 0, 0], 0);
        seen.stack.frames = vec![python(function, "/srv/app.py", 9)];
        Companion { tid, name: None, seen, is_parked: false, waits_for: None }
    }

    /// What a thread does over several looks adds up, and one that has not moved goes on with it.
    #[test]
    fn looks_add_up() {
        let mut companions = Companions::default();
        assert_eq!(companions.told(|_| None).others, None, "nobody has looked");
        companions.look(50, vec![reading(7, "query"), reading(8, "idle")], &[]);
        companions.looked_at_all(&[7, 8], &[9]);
        companions.look(60, vec![reading(8, "write")], &[7, 99]);
        companions.look(10, vec![reading(7, "query")], &[8]);
        let company = companions.told(|tid| Some(format!("t{tid}")));
        let told = |companion: &Companion| (companion.tid, companion.seen.time_ns);
        let times: Vec<_> = company.threads.iter().map(told).collect();
        assert_eq!(times, [(7, 120), (8, 70), (8, 50)]);
        assert_eq!(company.threads[0].name.as_deref(), Some("t7"));
        assert_eq!((company.others, company.moved), (Some(3), vec![9]));
    }

    /// Only where each of them waits for work at each of the last looks is the loop left alone.
    #[test]
    fn idle_looks() {
        let parked = |tid| Companion { is_parked: true, ..reading(tid, "idle") };
        let mut companions = Companions::default();
        let mut look = |still: Vec<Companion>, unmoved: &[u32], moving: &[u32]| {
            let tids: Vec<u32> = still.iter().map(|it| it.tid).chain(unmoved.to_vec()).collect();
            companions.look(50, still, unmoved);
            companions.looked_at_all(&tids, moving);
            companions.told(|_| None).idle_looks
        };
        assert_eq!(look(vec![parked(7), parked(8)], &[], &[]), 1);
        assert_eq!(look(Vec::new(), &[7, 8], &[]), 2);
        assert_eq!(look(vec![reading(8, "query")], &[7], &[]), 0);
        assert_eq!(look(vec![parked(8)], &[7], &[]), 1);
        assert_eq!(look(Vec::new(), &[7], &[8]), 0);
    }
}
