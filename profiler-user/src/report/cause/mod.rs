//! A stall's account and stacks to why it stalled, how sure that is, and which stacks carry it.
//!
//! The turn's time is divided into components: running, each wait that was seen, blocked time that was
//! not, getting memory, ready without a CPU, out of quota, stopped. The largest is the cause, the others
//! are listed behind it. Stacks only say in what; where they say nothing of the largest, the confidence
//! does.

mod blocked;
mod called;
pub mod chain;
mod component;
mod cpu;
mod division;
mod explanation;
mod futex;
mod gvl;
mod held;
mod locked;
mod memory;
mod pause;
mod phrase;
mod quota;
mod run_queue;
mod same_wait;
mod shares;
mod stopped;
mod times;
pub mod verdict;
mod wait;
mod woken;

use std::collections::BTreeMap;

use profiler_ebpf::turn::START_UNKNOWN;

use self::component::{Component, Nature};
use self::division::components;
use self::explanation::{Basis, Explanation};
use self::verdict::Conclusion;
use super::schema::call::ReportedCall;
use super::schema::stall::{self, Cause, CauseKind, Confidence};
use super::units::{is_percent, milliseconds, short_milliseconds};
use crate::turn::{End, Sampled, Stall};

/// A component that was measured and has this much of the turn is its cause for certain: no other can
/// be larger.
const CERTAIN_PERCENT: u64 = 50;

/// Smaller components are left out of the list behind the largest.
const MENTIONED_PERCENT: u64 = 10;

/// What a hypervisor takes is mentioned from here on.
const STOLEN_PERCENT: u64 = 5;

/// Why it stalled. `descriptors` says what the target's descriptors stand for.
pub fn judge<'a>(stall: &'a Stall, descriptors: &BTreeMap<u32, String>) -> Conclusion<'a> {
    let components = components(stall);
    let Some((largest, others)) = components.split_first() else {
        let explanation = Explanation::missing(stall.tid, "none of the turn's time is booked yet");
        return verdict(explanation, Confidence::Unknown, None, Vec::new());
    };
    let whole_ns = stall.turn.booked_ns();
    let mentioned =
        others.iter().filter(|other| is_percent(other.time_ns, whole_ns, MENTIONED_PERCENT));
    let also = mentioned
        .map(|other| {
            let explanation = explain(other, stall, descriptors);
            let times = times::of(other, stall);
            let part = stall::ReportedComponent {
                summary: words(&explanation.kind, other),
                kind: explanation.kind,
                time_ns: other.time_ns,
                times: times.few,
                waits: times.many,
                culprit: None,
            };
            (part, (explanation.evidence, explanation.blamed))
        })
        .collect();
    let explanation = explain(largest, stall, descriptors);
    let measured_ns = largest.time_ns.saturating_sub(largest.inferred_ns());
    let is_largest = is_whole(stall) && is_percent(measured_ns, whole_ns, CERTAIN_PERCENT);
    let confidence = match explanation.basis {
        Basis::Measured if is_largest => Confidence::Certain,
        Basis::Measured | Basis::Sampled => Confidence::Likely,
        Basis::Missing => Confidence::Unknown,
    };
    let mut verdict = verdict(explanation, confidence, Some(largest), also);
    let times = times::of(largest, stall);
    (verdict.cause.times, verdict.cause.waits) = (times.few, times.many);
    verdict.cause.summary.push_str(&steal(largest.nature, stall).unwrap_or_default());
    verdict
}

fn verdict<'a>(
    explanation: Explanation<'a>,
    confidence: Confidence,
    component: Option<&Component<'_>>,
    also: Vec<(stall::ReportedComponent, (Vec<&'a Sampled>, u32))>,
) -> Conclusion<'a> {
    let Explanation { kind, evidence, blamed, gaps, .. } = explanation;
    let summary = component.map_or_else(|| phrase::phrase(&kind), |it| words(&kind, it));
    let time_ns = component.map_or(0, |component| component.time_ns);
    let (parts, also) = also.into_iter().unzip();
    let cause = Cause {
        kind,
        summary,
        confidence,
        time_ns,
        times: None,
        waits: None,
        because: Vec::new(),
        deadlock: false,
        also: parts,
    };
    Conclusion { cause, evidence, blamed, also, gaps }
}

/// A part in words: also of one whose cause is unknown, what is known.
fn words(kind: &CauseKind, component: &Component<'_>) -> String {
    match (component.nature, kind) {
        (Nature::Unseen, _) => "blocked where no stack was taken".to_owned(),
        // How long one of many short waits might have lasted is no news.
        (_, CauseKind::Syscall { syscall, args, target, call })
            if component.is_mostly_inferred() =>
        {
            let call = Box::new(ReportedCall { timeout: None, ..(**call).clone() });
            let (syscall, args) = (syscall.clone(), args.clone());
            phrase::phrase(&CauseKind::Syscall { syscall, args, target: target.clone(), call })
        }
        _ => phrase::phrase(kind),
    }
}

/// A hint where the hypervisor took CPU time inside the stall: no cause, because it is not told from
/// which CPU, and to the guest a thread runs all the same.
fn steal(nature: Nature<'_>, stall: &Stall) -> Option<String> {
    let stolen = stall.environment.stolen?;
    let whole_ns = stall.turn.booked_ns();
    let needs_cpu = matches!(nature, Nature::Running | Nature::Runnable | Nature::Throttled);
    let is_much = is_percent(stolen.at_least_ns, whole_ns, STOLEN_PERCENT);
    (needs_cpu && is_much).then(|| {
        let ms = milliseconds(stolen.at_most_ns.min(whole_ns));
        format!(" (the hypervisor took up to {ms} ms)")
    })
}

fn explain<'a>(
    component: &Component<'a>,
    stall: &'a Stall,
    descriptors: &BTreeMap<u32, String>,
) -> Explanation<'a> {
    match component.nature {
        Nature::Running => cpu::explain(component, stall),
        Nature::Waiting(_) => wait::explain(component, stall, descriptors),
        Nature::Unseen => {
            let reason = format!(
                "no stack was taken of {} ms of blocked time; each block may have been too short",
                short_milliseconds(component.time_ns)
            );
            Explanation::missing(stall.tid, &reason)
        }
        Nature::Memory(activity) => memory::explain(component, activity, stall),
        Nature::Runnable => run_queue::explain(component, stall),
        Nature::Throttled => match &stall.environment.quota {
            Some(quota) => quota::explain(component, stall, quota),
            None => run_queue::explain(component, stall),
        },
        Nature::Stopped => stopped::explain(component, stall),
    }
}

/// Whether nothing of it lies outside of what was measured; what was not seen may be the larger part.
fn is_whole(stall: &Stall) -> bool {
    stall.turn.flags & START_UNKNOWN == 0 && !matches!(stall.end, End::Unseen(_))
}

#[cfg(test)]
mod tests;
