//! CPUs and processes to what was used of them: pinning, CPU time, resident memory.

use std::fs;

use anyhow::{Context as _, Result, ensure};
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

/// CPU time of all threads that a process has, by the scheduler's own clock; `/proc/PID/stat` counts in
/// steps of 10 ms, which is more than what is measured here.
pub fn used_ns(pid: u32) -> Result<u64> {
    let folder = format!("/proc/{pid}/task");
    let tasks = fs::read_dir(&folder).with_context(|| format!("no {folder}"))?;
    // A thread may end between the listing and the reading.
    let texts =
        tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
    let used: Vec<u64> = texts.filter_map(|text| first_number(&text)).collect();
    ensure!(!used.is_empty(), "the kernel keeps no schedstat of process {pid} (CONFIG_SCHED_INFO)");
    Ok(used.iter().sum())
}

fn first_number(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().next()?.parse().ok()
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
    use super::{Places, first_number, on, status_kib, used_ns};
    use nix::sched::sched_getaffinity;

    /// The first of the three numbers is the time on a CPU.
    #[test]
    fn schedstat_is_read() {
        assert_eq!(first_number("80559 56935 2\n"), Some(80559));
        assert_eq!(first_number(""), None);
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
        assert!(used_ns(std::process::id()).unwrap() > 0);
    }
}
