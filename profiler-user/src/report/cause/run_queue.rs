//! Time in which the thread was ready and had no CPU to a cause: others had it, or the quota was used up.

use super::{Basis, Component, Explanation, is_percent, shown};
use crate::around::Quota;
use crate::gap::Gap;
use crate::report::account::Part;
use crate::report::schema::stall::CauseKind;
use crate::turn::{End, Stall, ThreadState};

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

pub fn explain<'a>(component: &Component<'a>, stall: &'a Stall) -> Explanation<'a> {
    let reason = "what had the CPU meanwhile is not recorded";
    let mut gaps = vec![Gap::new("preempted_by", reason)];
    let around = &stall.around;
    gaps.extend(around.quota_gap.clone());
    if around.cpus.is_none() {
        gaps.push(Gap::new("allowed_cpus", "the thread has exited, or its status is hidden"));
    }
    let waits_still = stall.end == End::NotYet && stall.now == Some(ThreadState::Runnable);
    if waits_still && around.quota.is_some() {
        let reason = "the kernel counts a wait for the quota's next period when it ends";
        gaps.push(Gap::new("throttled_ns", reason));
    }
    let confined = around.cpus.as_ref().filter(|cpus| cpus.allowed < cpus.online);
    let kind = CauseKind::RunQueue {
        preempted_by: None,
        allowed_cpus: around.cpus.as_ref().map(|cpus| cpus.allowed),
        confined_to: confined.map(|cpus| cpus.list.clone()),
    };
    let evidence = evidence(component, stall);
    Explanation { gaps, ..Explanation::new(kind, Basis::Measured, evidence, stall.tid) }
}

pub fn explain_quota<'a>(
    component: &Component<'a>,
    stall: &'a Stall,
    quota: &Quota,
) -> Explanation<'a> {
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
    Explanation::new(kind, basis, evidence(component, stall), stall.tid)
}

/// What it would have gone on with shows where it ran before.
fn evidence<'a>(component: &Component<'a>, stall: &'a Stall) -> Vec<&'a crate::turn::Sampled> {
    let own = component.stacks.clone();
    if own.is_empty() { shown(stall, Part::Running) } else { own }
}
