//! The CPU quotas of a process's control group and of all above it, and for how long each was used up.

use std::fs;
use std::path::Path;

use super::counter::Counter;
use super::history::History;
use super::place::{GroupPlace, HierarchyVersion};
use crate::environment::Quota;

/// A group with a quota.
#[derive(Debug)]
pub struct Limited {
    cgroup: String,
    quota_us: u64,
    period_us: u64,
    version: HierarchyVersion,
    stat: Counter,
    throttled: History,
}

impl Limited {
    /// The groups on the way to the root that have a quota, the process's own first.
    pub fn of(place: &GroupPlace) -> Vec<Self> {
        let mut path = Path::new(&place.path);
        let mut found = Vec::new();
        for folder in &place.folders {
            let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
            let limit = match place.version {
                HierarchyVersion::V1 => {
                    limit_v1(&read("cpu.cfs_quota_us"), &read("cpu.cfs_period_us"))
                }
                HierarchyVersion::V2 => limit_v2(&read("cpu.max")),
            };
            if let Some((quota_us, period_us)) = limit
                && let Some(stat) = Counter::open(&folder.join("cpu.stat"))
            {
                let (cgroup, throttled) = (path.display().to_string(), History::default());
                let version = place.version;
                found.push(Self { cgroup, quota_us, period_us, version, stat, throttled });
            }
            path = path.parent().unwrap_or(path);
        }
        found
    }

    /// Whether it is the same limit of the same group.
    pub fn is(&self, other: &Self) -> bool {
        let identity = |it: &Self| (it.cgroup.clone(), it.quota_us, it.period_us);
        identity(self) == identity(other)
    }

    pub fn read(&mut self, now_ns: u64) {
        let version = self.version;
        if let Some(ns) = self.stat.read(|text| throttled_ns(text, version)) {
            self.throttled.read(now_ns, ns);
        }
    }

    /// How long it was used up between two moments. None without a reading before the first.
    pub fn between(&self, from_ns: u64, until_ns: u64) -> Option<Quota> {
        Some(Quota {
            cgroup: self.cgroup.clone(),
            quota_us: self.quota_us,
            period_us: self.period_us,
            throttled: self.throttled.growth(from_ns, until_ns)?,
        })
    }
}

/// Quota and period, µs. A negative quota is none.
fn limit_v1(quota: &str, period: &str) -> Option<(u64, u64)> {
    Some((quota.trim().parse().ok()?, period.trim().parse().ok()?))
}

/// The same out of `20000 100000`, or `max 100000` where there is none.
fn limit_v2(max: &str) -> Option<(u64, u64)> {
    let (quota, period) = max.trim().split_once(' ')?;
    Some((quota.parse().ok()?, period.parse().ok()?))
}

/// Out of `cpu.stat`, ns. Version 2 counts in µs.
fn throttled_ns(stat: &str, version: HierarchyVersion) -> Option<u64> {
    let value = |name: &str| {
        stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    };
    match version {
        HierarchyVersion::V1 => value("throttled_time"),
        HierarchyVersion::V2 => value("throttled_usec").map(|us: u64| us.saturating_mul(1000)),
    }
}

#[cfg(test)]
mod tests {
    use super::{HierarchyVersion, limit_v1, limit_v2, throttled_ns};

    /// As 6.18 prints it in version 1, and 6.1 in version 2.
    #[test]
    fn throttled_time() {
        let v1 = "nr_periods 23\nnr_throttled 21\nthrottled_time 1614112345\nnr_bursts 0\nburst_time 0\n";
        assert_eq!(throttled_ns(v1, HierarchyVersion::V1), Some(1_614_112_345));
        let v2 = "usage_usec 402512\nuser_usec 400003\nsystem_usec 2509\nnr_periods 20\n\
                  nr_throttled 19\nthrottled_usec 1523001\nnr_bursts 0\nburst_usec 0\n";
        assert_eq!(throttled_ns(v2, HierarchyVersion::V2), Some(1_523_001_000));
        // A group whose parent does not hand the controller down.
        assert_eq!(
            throttled_ns("usage_usec 1\nuser_usec 1\nsystem_usec 0\n", HierarchyVersion::V2),
            None
        );
    }

    /// A quota is one only where it is a number.
    #[test]
    fn limits() {
        assert_eq!(limit_v1("20000\n", "100000\n"), Some((20_000, 100_000)));
        assert_eq!(limit_v1("-1\n", "100000\n"), None);
        assert_eq!(limit_v1("", ""), None);
        assert_eq!(limit_v2("20000 100000\n"), Some((20_000, 100_000)));
        assert_eq!(limit_v2("max 100000\n"), None);
        assert_eq!(limit_v2(""), None);
    }
}
