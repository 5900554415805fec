//! The text of `/proc/TID/status` to the CPUs that a thread may use, and to whoever traces it.

use crate::environment::Cpus;
use crate::process::target::field;

/// Numbers in a list of CPUs at most: the kernel's own bound is 8192.
const MAX_CPUS: u32 = 8192;

/// `online` is the text of /sys/devices/system/cpu/online.
pub fn cpus(status: &str, online: &str) -> Option<Cpus> {
    let list = field(status, "Cpus_allowed_list:")?;
    let (allowed, online) = (numbers(list)?, numbers(online.trim())?);
    let usable = allowed.iter().filter(|cpu| online.contains(cpu)).count();
    Some(Cpus {
        list: list.to_owned(),
        allowed: u32::try_from(usable).ok()?,
        online: u32::try_from(online.len()).ok()?,
    })
}

/// The process that the thread belongs to.
pub fn process(status: &str) -> Option<u32> {
    field(status, "Tgid:")?.parse().ok()
}

/// The thread that traces it.
pub fn tracer(status: &str) -> Option<u32> {
    field(status, "TracerPid:")?.parse().ok().filter(|pid| *pid != 0)
}

/// The CPUs of a list such as `0-3,8`.
pub fn numbers(list: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last >= MAX_CPUS || numbers.len() >= MAX_CPUS as usize {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::{cpus, numbers, process, tracer};

    const STATUS: &str =
        "Name:\tapp\nTgid:\t42\nTracerPid:\t4711\nCpus_allowed:\t3\nCpus_allowed_list:\t0-1\n";

    /// A mask may name CPUs that do not exist or are switched off.
    #[test]
    fn affinity() {
        let all = cpus(STATUS, "0-7\n").unwrap();
        assert_eq!((all.list.as_str(), all.allowed, all.online), ("0-1", 2, 8));
        assert_eq!(cpus(STATUS, "0,2\n").unwrap().allowed, 1);
        assert_eq!(cpus("Name:\tx\n", "0\n"), None);
    }

    /// Nobody is process 0.
    #[test]
    fn tracers() {
        assert_eq!((tracer(STATUS), process(STATUS)), (Some(4711), Some(42)));
        assert_eq!(tracer("TracerPid:\t0\n"), None);
    }

    /// Lists as the kernel writes them, and none longer than it can be.
    #[test]
    fn lists() {
        assert_eq!(numbers("0-2,8"), Some(vec![0, 1, 2, 8]));
        assert_eq!(numbers(""), None);
        assert_eq!(numbers("0-4000000000"), None);
    }
}
