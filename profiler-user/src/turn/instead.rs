//! Who ran while a loop's thread was ready and had no CPU, for the part of a turn that a report is about.

use std::collections::BTreeMap;

use profiler_ebpf::rivals::{Rival, Rivals};

use crate::process::neighbour::{Neighbour, thread_name};

/// One thread that ran instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
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
pub struct Instead {
    /// In no order.
    pub ran: Vec<Ran>,
    /// Whose threads those are, by number, as far as they were still there to ask.
    pub processes: BTreeMap<u32, Neighbour>,
    /// The CPU idled, although the thread was ready: it was not allowed to run there, or had just been woken.
    pub idle_ns: u64,
    /// Of threads that there was no room for.
    pub others_ns: u64,
    /// The target's own number: other threads of it may have run, too.
    pub target: u32,
}

impl Instead {
    /// What the probes recorded of one turn.
    pub fn of(rivals: &Rivals) -> Self {
        let used = rivals.tasks.iter().take(rivals.used as usize);
        Self {
            ran: used.map(ran).collect(),
            processes: BTreeMap::new(),
            idle_ns: rivals.idle_ns,
            others_ns: rivals.others_ns,
            target: 0,
        }
    }

    /// Asks who they are. `known` has those that were asked before, and may be gone by now.
    pub fn introduce(&mut self, known: &mut BTreeMap<u32, Neighbour>) {
        for ran in &mut self.ran {
            ran.name = ran.name.take().or_else(|| thread_name(ran.pid, ran.tid));
            if let Some(name) = &ran.name
                && !known.contains_key(&ran.pid)
                && let Some(process) = Neighbour::of_thread(ran.pid, ran.tid, name)
            {
                known.insert(ran.pid, process);
            }
            if let Some(process) = known.get(&ran.pid) {
                self.processes.insert(ran.pid, process.clone());
            }
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

fn ran(rival: &Rival) -> Ran {
    let name = rival.name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ran {
        pid: rival.task.tgid,
        tid: rival.task.tid,
        name: (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned()),
        time_ns: rival.time_ns,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use profiler_ebpf::rivals::{Rivals, TaskId};

    use super::{Instead, Ran, thread_name};

    fn recorded(times: &[(u32, u64)]) -> Rivals {
        let mut rivals = Rivals::default();
        let mut now_ns = 1000;
        rivals.begin(50, 0xffff, 0, TaskId::UNKNOWN, now_ns);
        for (tid, time_ns) in times {
            now_ns += time_ns;
            let name = |name: &mut [u8; 16]| name[..4].copy_from_slice(b"hog\0");
            rivals.book(TaskId { tgid: tid / 10, tid: *tid }, now_ns, name);
        }
        rivals
    }

    fn times(instead: &Instead) -> Vec<(u32, u32, u64)> {
        instead.ran.iter().map(|ran| (ran.pid, ran.tid, ran.time_ns)).collect()
    }

    /// Names end at their zero, and the idle task is none of those that ran.
    #[test]
    fn as_recorded() {
        let instead = Instead::of(&recorded(&[(70, 5), (0, 7), (71, 2)]));
        assert_eq!(times(&instead), [(7, 70, 5), (7, 71, 2)]);
        assert_eq!(instead.ran[0].name.as_deref(), Some("hog"));
        assert_eq!((instead.idle_ns, instead.sum_ns()), (7, 14));
    }

    /// The rest of a turn has the rest of everybody's time, and nobody who only ran before.
    #[test]
    fn the_rest() {
        let before = Instead::of(&recorded(&[(70, 5), (71, 2), (0, 1)]));
        let rest = Instead::of(&recorded(&[(70, 9), (71, 2), (72, 3), (0, 1)])).since(&before);
        assert_eq!(times(&rest), [(7, 70, 4), (7, 72, 3)]);
        assert_eq!(rest.idle_ns, 0);
    }

    /// Who was asked once is known also when it is gone.
    #[test]
    fn processes_are_remembered() {
        let pid = std::process::id();
        let name = Some(thread_name(pid, pid).unwrap());
        let mut known = BTreeMap::new();
        let ran = vec![Ran { pid, tid: pid, name, time_ns: 5 }];
        let mut instead = Instead { ran, ..Instead::default() };
        instead.introduce(&mut known);
        assert!(instead.processes[&pid].command.is_some());

        let gone = Ran { pid, tid: pid, name: Some("it was".to_owned()), time_ns: 5 };
        let mut later = Instead { ran: vec![gone.clone()], ..Instead::default() };
        later.introduce(&mut known);
        assert_eq!(later.processes, instead.processes);
        let mut unknown = Instead { ran: vec![gone], ..Instead::default() };
        unknown.introduce(&mut BTreeMap::new());
        assert!(unknown.processes.is_empty());
    }

    /// No more is told than the turn's account has.
    #[test]
    fn no_more_than_the_account() {
        let instead = Instead::of(&recorded(&[(70, 60), (0, 40)]));
        assert_eq!(instead.clone().within(100), instead);
        let cut = instead.within(50);
        assert_eq!((times(&cut)[0].2, cut.idle_ns), (30, 20));
        let instead = Instead { others_ns: 70, ..cut };
        assert_eq!(instead.within(60).others_ns, 10);
    }
}
