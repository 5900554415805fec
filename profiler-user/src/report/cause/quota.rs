//! Time in which the thread was ready, and its control group had used up its CPU quota, to a cause.

use super::{Basis, Component, Explanation, is_percent, run_queue};
use crate::around::Quota;
use crate::report::schema::stall::CauseKind;
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
    let quota = stall.around.quota.as_ref()?;
    Some(quota.throttled.at_most_ns.min(stall.turn.runnable_ns))
}

pub fn explain<'a>(component: &Component<'a>, stall: &'a Stall, quota: &Quota) -> Explanation<'a> {
    let kind = CauseKind::CpuQuota {
        throttled_ns: measured_ns(stall),
        quota_us: quota.quota_us,
        period_us: quota.period_us,
        cgroup: quota.cgroup.clone(),
    };
    let throttled = &quota.throttled;
    // More than all the time there was: several CPUs were throttled, and which was the thread's is not told.
    let is_of_one_cpu = throttled.at_most_ns <= throttled.over_ns;
    let is_proved = is_percent(throttled.at_least_ns, component.time_ns, PROVED_PERCENT);
    let basis = if is_proved && is_of_one_cpu { Basis::Measured } else { Basis::Sampled };
    Explanation::new(kind, basis, run_queue::evidence(component, stall), stall.tid)
}
