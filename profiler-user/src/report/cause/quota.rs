//! Time in which the thread was ready, and its control group had used up its CPU quota, to a cause.

use super::component::Component;
use super::explanation::{Basis, Explanation};
use crate::environment::Quota;
use crate::report::schema::stall::CauseKind;
use crate::report::units::is_percent;
use crate::turn::Stall;

/// A quota that was used up for this part of the time carries all of it: what is left is the way back
/// onto a CPU.
const ALL_PERCENT: u64 = 75;

/// Readings inside the stall that show this part of the time leave no doubt.
const PROVED_PERCENT: u64 = 50;

/// The part of the ready time for which the quota was used up.
pub fn throttled_ns(stall: &Stall) -> u64 {
    let ready_ns = stall.turn.runnable_ns;
    match measured_ns(stall) {
        Some(throttled_ns) if is_percent(throttled_ns, ready_ns, ALL_PERCENT) => ready_ns,
        throttled_ns => throttled_ns.unwrap_or_default(),
    }
}

/// As far as it was counted. The kernel sums it over the CPUs and books it when a wait ends, so what was
/// booked up to a look before the stall may belong to others.
fn measured_ns(stall: &Stall) -> Option<u64> {
    let quota = stall.environment.quota.as_ref()?;
    Some(quota.throttled.at_most_ns.min(stall.turn.runnable_ns))
}

pub fn explain<'a>(component: &Component<'a>, stall: &Stall, quota: &Quota) -> Explanation<'a> {
    let kind = CauseKind::CpuQuota {
        throttled_ns: measured_ns(stall),
        quota_us: quota.quota_us,
        period_us: quota.period_us,
        cgroup: quota.cgroup.clone(),
    };
    let throttled = &quota.throttled;
    let is_proved = is_percent(throttled.at_least_ns, component.time_ns, PROVED_PERCENT);
    let basis = match is_proved && is_of_its_cpu(component, stall, quota) {
        true => Basis::Measured,
        false => Basis::Sampled,
    };
    Explanation::new(kind, basis, Vec::new(), stall.tid)
}

/// Whether it was the thread's own CPU on which the quota was used up. The kernel does not tell; but who
/// is ready while its CPU has nothing to do is held back.
fn is_of_its_cpu(component: &Component<'_>, stall: &Stall, quota: &Quota) -> bool {
    let has_one = stall.environment.cpus.as_ref().is_some_and(|cpus| cpus.online == 1);
    let idled = is_percent(stall.contention.idle_ns, component.time_ns, PROVED_PERCENT);
    // More than all the time there was: several CPUs were throttled.
    let is_of_one = quota.throttled.at_most_ns <= quota.throttled.over_ns;
    has_one || (idled && is_of_one)
}
