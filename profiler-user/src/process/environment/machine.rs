//! The texts of `/proc/stat`, of pressure files and of freezers to the one number that each is read for.

use super::place::HierarchyVersion;

/// A tick of /proc/stat: `USER_HZ` is 100 on every architecture but alpha and ia64.
const TICK_NS: u64 = 10_000_000;

/// What the hypervisor took from all CPUs, ns: the eighth number of the first line (proc(5)).
pub fn stolen_ns(stat: &str) -> Option<u64> {
    let all = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: u64 = all.split_ascii_whitespace().nth(7)?.parse().ok()?;
    Some(ticks.saturating_mul(TICK_NS))
}

/// Time in which some task waited, ns: `total` of the line `some` (Documentation/accounting/psi.rst).
pub fn some_ns(pressure: &str) -> Option<u64> {
    let some = pressure.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = some.split(' ').find_map(|field| field.strip_prefix("total="))?;
    total.parse().ok().map(|us: u64| us.saturating_mul(1000))
}

/// By `freezer.state` of version 1, or `cgroup.events` of version 2.
pub fn is_frozen(state: &str, version: HierarchyVersion) -> bool {
    match version {
        HierarchyVersion::V1 => state.trim() == "FROZEN",
        HierarchyVersion::V2 => state.lines().any(|line| line == "frozen 1"),
    }
}

#[cfg(test)]
mod tests {
    use super::{HierarchyVersion, is_frozen, some_ns, stolen_ns};

    /// Steal is the eighth number.
    #[test]
    fn steal() {
        let stat = "cpu  1256182 504072 331577 2593996 19859 0 28005 1260 0 0\ncpu0 1 2 3\n";
        assert_eq!(stolen_ns(stat), Some(12_600_000_000));
        assert_eq!(stolen_ns("cpu  1 2 3\n"), None);
        assert_eq!(stolen_ns(""), None);
    }

    /// As the kernel writes it, for a group and for the machine.
    #[test]
    fn pressure() {
        let text = "some avg10=0.00 avg60=0.30 avg300=0.19 total=2833188\n\
                    full avg10=0.00 avg60=0.25 avg300=0.16 total=1991595\n";
        assert_eq!(some_ns(text), Some(2_833_188_000));
        assert_eq!(some_ns("full avg10=0.00 total=5\n"), None);
    }

    /// Only what is wholly frozen is frozen.
    #[test]
    fn freezers() {
        assert!(is_frozen("FROZEN\n", HierarchyVersion::V1));
        assert!(!is_frozen("FREEZING\n", HierarchyVersion::V1));
        assert!(is_frozen("populated 1\nfrozen 1\n", HierarchyVersion::V2));
        assert!(!is_frozen("populated 1\nfrozen 0\n", HierarchyVersion::V2));
    }
}
