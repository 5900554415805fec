//! Reads what goes on around a process while it is watched: its CPU quota, the freezer, memory pressure,
//! what the hypervisor takes.
//!
//! A stall needs a reading from before it began, and one long before says little: what was counted in
//! between may belong to other turns. So the files of a quota and of memory pressure are kept open and
//! read at every look, also at rest: 1 and 2 µs with warm caches, less than waking up for the look. What
//! costs more is read seldom, or in stalls.

mod counter;
mod freezer;
mod history;
mod machine;
mod place;
mod quota;
mod thread;

use std::path::Path;

use self::counter::Counter;
use self::freezer::Freezers;
use self::history::History;
use self::place::GroupPlace;
use self::quota::Limited;
use crate::environment::{Environment, Pressure, PressureOf, Quota, Tracer};
use crate::gap::Gap;
use crate::process::target::text;

/// Between two looks at which groups the process is in, and at their quotas: both are changed while it
/// runs, but seldom.
const SEARCH_EVERY_NS: u64 = 5_000_000_000;

/// Between two readings of what the hypervisor took while no turn is suspected. The kernel writes all
/// of /proc/stat for one line of it, and sums every interrupt's counts over all CPUs: 7 µs with two.
const STEAL_EVERY_NS: u64 = 1_000_000_000;

/// The environment of one process.
#[derive(Debug)]
pub struct EnvironmentWatch {
    pid: u32,
    next_search_ns: u64,
    /// The text of its groups, and the folders that lead from its CPU group to the root.
    cgroup: String,
    cpu: Option<GroupPlace>,
    quotas: Vec<Limited>,
    quota_gap: Option<Gap>,
    pressure: Option<(PressureOf, Counter)>,
    waited: History,
    next_steal_ns: u64,
    /// Whether a turn was suspected at the last look.
    is_close: bool,
    /// `/proc/stat`.
    machine: Option<Counter>,
    stolen: History,
    freezers: Freezers,
}

impl EnvironmentWatch {
    pub fn new(pid: u32) -> Self {
        Self {
            pid,
            next_search_ns: 0,
            cgroup: String::new(),
            cpu: None,
            quotas: Vec::new(),
            quota_gap: None,
            pressure: None,
            waited: History::default(),
            next_steal_ns: 0,
            is_close: false,
            machine: Counter::open(Path::new("/proc/stat")),
            stolen: History::default(),
            freezers: Freezers::default(),
        }
    }

    /// At every look of the session.
    pub fn look(&mut self, now_ns: u64) {
        if now_ns >= self.next_search_ns {
            self.next_search_ns = now_ns + SEARCH_EVERY_NS;
            self.search();
        }
        for quota in &mut self.quotas {
            quota.read(now_ns);
        }
        if let Some((_, file)) = &self.pressure
            && let Some(ns) = file.read(machine::some_ns)
        {
            self.waited.read(now_ns, ns);
        }
        if now_ns >= self.next_steal_ns {
            self.look_at_steal(now_ns);
        }
    }

    /// As well at each look: whether a turn is suspected. True where the next look should be close, too: for how long a
    /// process is frozen shows in no other way.
    pub fn look_closely(&mut self, is_close: bool, now_ns: u64) -> bool {
        let was_close = std::mem::replace(&mut self.is_close, is_close);
        if is_close && !was_close {
            self.look_at_steal(now_ns);
        }
        is_close && self.freezers.look(now_ns)
    }

    /// What went on from one moment to another around one thread of the process.
    pub fn between(&mut self, tid: u32, from_ns: u64, until_ns: u64) -> Environment {
        // Whoever asks has a stall to report; that is seldom.
        self.look_at_steal(until_ns);
        let quotas: Vec<Quota> =
            self.quotas.iter().filter_map(|quota| quota.between(from_ns, until_ns)).collect();
        let is_new = quotas.len() < self.quotas.len();
        let too_new =
            || Gap::new("cpu_quota", "what was used up of it was not read before the stall began");
        let status = text(format!("/proc/{}/task/{tid}/status", self.pid)).unwrap_or_default();
        let online = text("/sys/devices/system/cpu/online".to_owned()).unwrap_or_default();
        let pressure = self.pressure.as_ref().and_then(|(of, _)| {
            Some(Pressure { of: *of, waited: self.waited.growth(from_ns, until_ns)? })
        });
        let frozen = self.freezers.between(from_ns, until_ns);
        Environment {
            // Each group counts only what its own quota did. Among equals the innermost.
            quota: quotas.into_iter().rev().max_by_key(|quota| quota.throttled.at_most_ns),
            quota_gap: self.quota_gap.clone().or_else(|| is_new.then(too_new)),
            cpus: thread::cpus(&status, &online),
            stolen: self.stolen.growth(from_ns, until_ns),
            pressure,
            frozen_ns: frozen.map_or(0, |frozen| frozen.at_most_ns),
            tracer: tracer_by(&status),
        }
    }

    fn look_at_steal(&mut self, now_ns: u64) {
        self.next_steal_ns = now_ns + STEAL_EVERY_NS;
        if let Some(stat) = &self.machine
            && let Some(ns) = stat.read(machine::stolen_ns)
        {
            self.stolen.read(now_ns, ns);
        }
    }

    /// Finds the quotas of the process's groups. Those that are known keep what was read of them.
    fn search(&mut self) {
        let cgroup = text(format!("/proc/{}/cgroup", self.pid)).unwrap_or_default();
        if cgroup != self.cgroup || self.cpu.is_none() {
            self.enter(cgroup);
        }
        let Some(place) = &self.cpu else { return };
        let mut found = Limited::of(place);
        for new in &mut found {
            if let Some(known) = self.quotas.iter_mut().find(|known| known.is(new)) {
                std::mem::swap(known, new);
            }
        }
        self.quotas = found;
    }

    /// The process is in these groups from now on.
    fn enter(&mut self, cgroup: String) {
        let mounts = Mounts::read();
        match mounts.find(&cgroup, "cpu") {
            Ok(place) => (self.cpu, self.quota_gap) = (Some(place), None),
            Err(why) => {
                self.cpu = None;
                self.quotas.clear();
                self.quota_gap = Some(Gap::new("cpu_quota", why));
            }
        }
        if cgroup == self.cgroup {
            return;
        }
        // Another group's counters are others, however their numbers compare.
        self.pressure = pressure(&mounts, &cgroup);
        self.waited = History::default();
        let first = mounts.find(&cgroup, "freezer").ok();
        let second = mounts.find(&unified(&cgroup), "freezer").ok();
        let is_other = first != second;
        self.freezers = Freezers::of(first.into_iter().chain(second.filter(|_| is_other)));
        self.cgroup = cgroup;
    }
}

/// Who traces a thread now.
pub fn tracer(pid: u32, tid: u32) -> Option<Tracer> {
    tracer_by(&text(format!("/proc/{pid}/task/{tid}/status"))?)
}

/// The same by the thread's status.
fn tracer_by(status: &str) -> Option<Tracer> {
    // The kernel names the thread that traces.
    let tid = thread::tracer(status)?;
    let status = text(format!("/proc/{tid}/status")).unwrap_or_default();
    let pid = thread::process(&status).unwrap_or(tid);
    let name = text(format!("/proc/{pid}/comm"));
    Some(Tracer { pid, name: name.map(|name| name.trim_end().to_owned()) })
}

/// What is mounted where: ours, and what the host's first process sees, for a container that has the
/// host's processes but not its control groups.
struct Mounts {
    own: String,
    of_host: String,
}

impl Mounts {
    fn read() -> Self {
        let read = |pid: &str| text(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        Self { own: read("self"), of_host: read("1") }
    }

    fn find(&self, cgroup: &str, controller: &str) -> Result<GroupPlace, String> {
        let by =
            |mounts: &str, root: &str| place::find(cgroup, mounts, Path::new(root), controller);
        by(&self.own, "/").or_else(|why| by(&self.of_host, "/proc/1/root").map_err(|_| why))
    }
}

/// The unified hierarchy's line alone: pressure and a freezer are there even where no controller is.
fn unified(cgroup: &str) -> String {
    cgroup.lines().filter(|line| line.starts_with("0::")).collect()
}

/// The group's own memory pressure where the kernel keeps it, else the machine's.
fn pressure(mounts: &Mounts, cgroup: &str) -> Option<(PressureOf, Counter)> {
    let place = mounts.find(&unified(cgroup), "memory").ok().filter(|place| place.path != "/");
    let own =
        place.and_then(|place| Counter::open(&place.folders.first()?.join("memory.pressure")));
    let readable = |counter: &Counter| counter.read(machine::some_ns).is_some();
    if let Some(own) = own.filter(readable) {
        return Some((PressureOf::Cgroup, own));
    }
    let machine = Counter::open(Path::new("/proc/pressure/memory")).filter(readable)?;
    Some((PressureOf::Machine, machine))
}
