//! What went on around a thread while it stalled: its share of the CPUs, and whoever kept it from running.

use crate::gap::Gap;

/// Read from outside, before the stall and after it. `None`: there is none, or it is unknown; the gaps
/// tell which, and are said only in reports in which it matters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// The CPU quota that held it back most, of its control group or one above.
    pub quota: Option<Quota>,
    /// Why quotas could not be looked for.
    pub quota_gap: Option<Gap>,
    /// The CPUs that the thread may use.
    pub cpus: Option<Cpus>,
    /// What the hypervisor took from all CPUs together.
    pub stolen: Option<Growth>,
    /// Time in which some task waited for memory.
    pub pressure: Option<Pressure>,
    /// For how long its control group was seen frozen.
    pub frozen_ns: u64,
    /// Who traced the thread when it was seen stopped.
    pub tracer: Option<Tracer>,
}

/// How much a counter has grown in a stretch: it was only read now and then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Growth {
    /// Between the readings inside the stretch.
    pub at_least_ns: u64,
    /// Between the readings around it.
    pub at_most_ns: u64,
    /// From the reading before the stretch to the one after.
    pub over_ns: u64,
}

/// A control group's limit on CPU time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// The group, as the kernel names it.
    pub cgroup: String,
    /// CPU time in each period.
    pub quota_us: u64,
    pub period_us: u64,
    /// Time without CPU because it was used up, summed over the CPUs; counted when each wait ends.
    pub throttled: Growth,
}

/// The CPUs that a thread may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpus {
    /// As the kernel writes it: `0-3,8`.
    pub list: String,
    pub allowed: u32,
    /// CPUs of the machine that are in use.
    pub online: u32,
}

/// Waiting for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    pub of: PressureOf,
    pub waited: Growth,
}

/// Whose tasks waited for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PressureOf {
    /// Those of the target's control group.
    Cgroup,
    /// Anybody's on the machine.
    Machine,
}

/// A process that traces a thread of the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracer {
    pub pid: u32,
    pub name: Option<String>,
}
