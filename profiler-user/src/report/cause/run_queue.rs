//! Time in which the thread was ready and had no CPU to a cause.

use super::{Basis, Component, Explanation, shown};
use crate::gap::Gap;
use crate::report::account::Part;
use crate::report::schema::stall::CauseKind;
use crate::turn::{End, Sampled, Stall, ThreadState};

pub fn explain<'a>(component: &Component<'a>, stall: &'a Stall) -> Explanation<'a> {
    let reason = "what had the CPU meanwhile is not recorded";
    let mut gaps = vec![Gap::new("preempted_by", reason)];
    gaps.extend(missing(stall));
    let cpus = stall.around.cpus.as_ref();
    let confined = cpus.filter(|cpus| cpus.allowed < cpus.online);
    let kind = CauseKind::RunQueue {
        preempted_by: None,
        allowed_cpus: cpus.map(|cpus| cpus.allowed),
        confined_to: confined.map(|cpus| cpus.list.clone()),
    };
    let evidence = evidence(component, stall);
    Explanation { gaps, ..Explanation::new(kind, Basis::Measured, evidence, stall.tid) }
}

/// What it would have gone on with shows where it ran before.
pub fn evidence<'a>(component: &Component<'a>, stall: &'a Stall) -> Vec<&'a Sampled> {
    let own = component.stacks.clone();
    if own.is_empty() { shown(stall, Part::Running) } else { own }
}

/// What is not known of the thread's right to a CPU.
fn missing(stall: &Stall) -> Vec<Gap> {
    let around = &stall.around;
    let mut gaps: Vec<Gap> = around.quota_gap.iter().cloned().collect();
    if around.cpus.is_none() {
        gaps.push(Gap::new("allowed_cpus", "the thread has exited, or its status is hidden"));
    }
    let waits_still = stall.end == End::NotYet && stall.now == Some(ThreadState::Runnable);
    if waits_still && around.quota.is_some() {
        let reason = "the kernel counts a wait for the quota's next period when it ends";
        gaps.push(Gap::new("throttled_ns", reason));
    }
    gaps
}
