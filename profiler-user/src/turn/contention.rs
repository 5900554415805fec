//! Who ran while a loop's thread was ready and had no CPU, for the part of a turn that a report is about.

use std::collections::BTreeMap;

use profiler_ebpf::contention::{ContenderEntry, Contenders};

use crate::process::other_process::OtherProcess;

/// One thread that ran instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contender {
    /// Its process, as this process's /proc numbers it.
    pub pid: u32,
    pub tid: u32,
    /// None where the thread was not seen to leave the CPU; then /proc may still tell.
    pub name: Option<String>,
    pub time_ns: u64,
}

/// All that ran instead, each with its exact time. The sum is at most the turn's `runnable_ns`: what is
/// missing is known of nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contention {
    /// In no order.
    pub ran: Vec<Contender>,
    /// Whose threads those are, by number, as far as they were still there to ask: see `analyst::contenders`.
    pub processes: BTreeMap<u32, OtherProcess>,
    /// The CPU idled, although the thread was ready: it was not allowed to run there, or had just been woken.
    pub idle_ns: u64,
    /// Of threads that there was no room for.
    pub others_ns: u64,
    /// The target's own number: other threads of it may have run, too.
    pub target: u32,
}

impl Contention {
    /// What the probes recorded of one turn.
    pub fn of(contenders: &Contenders) -> Self {
        let used = contenders.tasks.iter().take(contenders.used as usize);
        Self {
            ran: used.map(ran).collect(),
            processes: BTreeMap::new(),
            idle_ns: contenders.idle_ns,
            others_ns: contenders.others_ns,
            target: 0,
        }
    }

    /// The rest, after what had been recorded `before`.
    pub fn since(mut self, before: &Self) -> Self {
        for ran in &mut self.ran {
            let earlier = before.ran.iter().find(|earlier| earlier.tid == ran.tid);
            ran.time_ns = ran.time_ns.saturating_sub(earlier.map_or(0, |earlier| earlier.time_ns));
        }
        self.ran.retain(|ran| ran.time_ns > 0);
        self.idle_ns = self.idle_ns.saturating_sub(before.idle_ns);
        self.others_ns = self.others_ns.saturating_sub(before.others_ns);
        self
    }

    /// As it was when the thread had been ready for so long: a look at a turn that goes on may be a
    /// little later than the account that goes with it.
    pub fn within(mut self, runnable_ns: u64) -> Self {
        // Of whom there is no room for it is not known when they ran, so that what they had before a cut
        // cannot be told from the rest.
        let excess_ns = self.sum_ns().saturating_sub(runnable_ns);
        self.others_ns = self.others_ns.saturating_sub(excess_ns);
        let sum_ns = self.sum_ns();
        if sum_ns > runnable_ns {
            let cut = |time_ns: u64| {
                (u128::from(time_ns) * u128::from(runnable_ns) / u128::from(sum_ns)) as u64
            };
            self.ran.iter_mut().for_each(|ran| ran.time_ns = cut(ran.time_ns));
            self.idle_ns = cut(self.idle_ns);
            self.others_ns = cut(self.others_ns);
        }
        self
    }

    /// All time that is known of somebody.
    pub fn sum_ns(&self) -> u64 {
        let ran = self.ran.iter().map(|ran| ran.time_ns);
        ran.fold(self.idle_ns.saturating_add(self.others_ns), u64::saturating_add)
    }
}

fn ran(contender: &ContenderEntry) -> Contender {
    let name = contender.name.split(|byte| *byte == 0).next().unwrap_or_default();
    Contender {
        pid: contender.task.tgid,
        tid: contender.task.tid,
        name: (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned()),
        time_ns: contender.time_ns,
    }
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::contention::{Contenders, TaskId};

    use super::Contention;

    fn recorded(times: &[(u32, u64)]) -> Contenders {
        let mut contenders = Contenders::default();
        let mut now_ns = 1000;
        contenders.begin(50, 0xffff, 0, TaskId::UNKNOWN, now_ns);
        for (tid, time_ns) in times {
            now_ns += time_ns;
            let name = |name: &mut [u8; 16]| name[..4].copy_from_slice(b"hog\0");
            contenders.book(TaskId { tgid: tid / 10, tid: *tid }, now_ns, name);
        }
        contenders
    }

    fn times(contention: &Contention) -> Vec<(u32, u32, u64)> {
        contention.ran.iter().map(|ran| (ran.pid, ran.tid, ran.time_ns)).collect()
    }

    /// Names end at their zero, and the idle task is none of those that ran.
    #[test]
    fn as_recorded() {
        let contention = Contention::of(&recorded(&[(70, 5), (0, 7), (71, 2)]));
        assert_eq!(times(&contention), [(7, 70, 5), (7, 71, 2)]);
        assert_eq!(contention.ran[0].name.as_deref(), Some("hog"));
        assert_eq!((contention.idle_ns, contention.sum_ns()), (7, 14));
    }

    /// The rest of a turn has the rest of everybody's time, and nobody who only ran before.
    #[test]
    fn the_rest() {
        let before = Contention::of(&recorded(&[(70, 5), (71, 2), (0, 1)]));
        let rest = Contention::of(&recorded(&[(70, 9), (71, 2), (72, 3), (0, 1)])).since(&before);
        assert_eq!(times(&rest), [(7, 70, 4), (7, 72, 3)]);
        assert_eq!(rest.idle_ns, 0);
    }

    /// No more is told than the turn's account has.
    #[test]
    fn no_more_than_the_account() {
        let contention = Contention::of(&recorded(&[(70, 60), (0, 40)]));
        assert_eq!(contention.clone().within(100), contention);
        let cut = contention.within(50);
        assert_eq!((times(&cut)[0].2, cut.idle_ns), (30, 20));
        let contention = Contention { others_ns: 70, ..cut };
        assert_eq!(contention.within(60).others_ns, 10);
    }
}
