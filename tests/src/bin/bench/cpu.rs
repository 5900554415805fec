//! CPUs and processes to what was used of them: pinning, CPU time, resident memory.

use std::fs;

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// This thread.
const THIS: Pid = Pid::from_raw(0);

/// One CPU for the server and one for whoever loads it; the same one where there is no second.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    pub server: usize,
    pub client: usize,
}

impl Places {
    /// Out of those that this process may use.
    pub fn find() -> Result<Self> {
        let allowed = sched_getaffinity(THIS).context("which CPUs may be used is not told")?;
        let mut allowed = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true));
        let server = allowed.next().context("no CPU may be used")?;
        Ok(Self { server, client: allowed.next().unwrap_or(server) })
    }

    pub fn are_apart(self) -> bool {
        self.server != self.client
    }
}

/// Does something on one CPU; programs started meanwhile stay there.
pub fn on<T>(cpu: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = sched_getaffinity(THIS)?;
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(THIS, &only).with_context(|| format!("CPU {cpu} cannot be chosen"))?;
    let done = work();
    sched_setaffinity(THIS, &before)?;
    done
}

/// The kernel that runs.
pub fn kernel_release() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/osrelease";
    Ok(fs::read_to_string(PATH).with_context(|| format!("no {PATH}"))?.trim().to_owned())
}

/// How many CPUs this process may use.
pub fn allowed() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What the scheduler has given a process, all threads together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Given {
    /// Time on a CPU.
    pub running_ns: u64,
    /// Time ready without one.
    pub waiting_ns: u64,
}

impl Given {
    /// By the scheduler's own clock; `/proc/PID/stat` counts in steps of 10 ms, which is more than what
    /// is measured here.
    pub fn to(pid: u32) -> Result<Self> {
        let folder = format!("/proc/{pid}/task");
        let tasks = fs::read_dir(&folder).with_context(|| format!("no {folder}"))?;
        let mut given = None::<Self>;
        for task in tasks.flatten() {
            // A thread may end between the listing and the reading.
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            if let Some(one) = Self::parse(&text) {
                let sum = given.get_or_insert_default();
                sum.running_ns += one.running_ns;
                sum.waiting_ns += one.waiting_ns;
            }
        }
        given.with_context(|| format!("no schedstat of process {pid} (CONFIG_SCHED_INFO)"))
    }

    /// What has been added since.
    pub fn since(self, before: Self) -> Self {
        Self {
            running_ns: self.running_ns.saturating_sub(before.running_ns),
            waiting_ns: self.waiting_ns.saturating_sub(before.waiting_ns),
        }
    }

    /// Of the time in which it could have run, the share without a CPU.
    pub fn waited_percent(self) -> f64 {
        100.0 * self.waiting_ns as f64 / (self.running_ns + self.waiting_ns).max(1) as f64
    }

    fn parse(schedstat: &str) -> Option<Self> {
        let mut numbers = schedstat.split_ascii_whitespace().map(str::parse);
        let (running_ns, waiting_ns) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(Self { running_ns, waiting_ns })
    }
}

/// A line of `/proc/PID/status` that is in kB, in MiB: `VmRSS`, `RssAnon`.
pub fn status_mib(pid: u32, field: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("no {path}"))?;
    status_kib(&text, field)
        .map(|kib| kib / 1024.0)
        .with_context(|| format!("no {field} in {path}"))
}

fn status_kib(status: &str, field: &str) -> Option<f64> {
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(name, _)| *name == field)?;
    value.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Given, Places, on, status_kib};
    use nix::sched::sched_getaffinity;

    /// The first two of the three numbers are times.
    #[test]
    fn schedstat_is_read() {
        let given = Given { running_ns: 3_000, waiting_ns: 1_000 };
        assert_eq!(Given::parse("3000 1000 2\n"), Some(given));
        assert_eq!(given.waited_percent(), 25.0);
        assert_eq!(Given::parse(""), None);
    }

    /// The field is found by its whole name.
    #[test]
    fn status_is_read() {
        let status = "VmHWM:\t   20000 kB\nVmRSS:\t   16168 kB\nThreads:\t3\n";
        assert_eq!(status_kib(status, "VmRSS"), Some(16168.0));
        assert_eq!(status_kib(status, "Rss"), None);
        assert_eq!(status_kib(status, "Threads"), None);
    }

    /// Work is done on its CPU, and the thread may go anywhere afterwards.
    #[test]
    fn pinning_ends() {
        let places = Places::find().unwrap();
        let before = sched_getaffinity(super::THIS).unwrap();
        let during = on(places.client, || Ok(sched_getaffinity(super::THIS)?)).unwrap();
        assert_eq!(during.is_set(places.client), Ok(true));
        assert!(!places.are_apart() || during.is_set(places.server) == Ok(false));
        assert_eq!(sched_getaffinity(super::THIS).unwrap(), before);
    }

    /// This process has used some CPU.
    #[test]
    fn time_is_used() {
        assert!(Given::to(std::process::id()).unwrap().running_ns > 0);
    }
}
