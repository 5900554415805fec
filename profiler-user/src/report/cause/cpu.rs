//! Time on a CPU to a cause: one piece of code that kept it, or a turn of many short callbacks.

use std::collections::BTreeMap;

use super::{Basis, Component, Explanation, is_percent};
use crate::gap::Gap;
use crate::report::application::{callback_root, inside_callback};
use crate::report::schema::stall::CauseKind;
use crate::turn::Sampled;

/// Below half, no callback had most of the time.
const HEAVIEST_PERCENT: u64 = 50;

/// Of fewer samples it may be chance that none of the callbacks has half.
const SATURATED_SAMPLES: u64 = 5;

pub fn explain<'a>(component: &Component<'a>, tid: u32) -> Explanation<'a> {
    let evidence = component.stacks.clone();
    if is_saturated(&evidence) {
        // To name the one that happened to be seen most would blame it for the others.
        return Explanation::new(CauseKind::Saturated, Basis::Sampled, Vec::new(), tid);
    }
    // Which code it was is sampled, however exact the time is.
    let basis = if evidence.is_empty() { Basis::Missing } else { Basis::Sampled };
    let mut explanation = Explanation::new(CauseKind::Cpu, basis, evidence, tid);
    if basis == Basis::Missing {
        let reason = "no sample fell into the running time";
        explanation.gaps.push(Gap::new("code that kept the CPU", reason));
    }
    explanation
}

/// Whether the loop ran several callbacks of which none had most of the time. Told by the frame with
/// which the application's part of each begins (a request's handler), where the interpreter's show it.
fn is_saturated(evidence: &[&Sampled]) -> bool {
    let mut callbacks: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let (mut samples, mut time_ns) = (0, 0);
    for sampled in evidence {
        let frames = &sampled.stack.frames;
        let inside = inside_callback(frames);
        let root = callback_root(&frames[..inside]);
        if inside == frames.len() {
            // Without the loop's own frame around it, nothing tells where a callback begins.
            return false;
        }
        // The loop itself, between two callbacks.
        let Some(root) = root else { continue };
        let name = (root.file.as_deref(), root.function.as_deref());
        let (Some(file), Some(function)) = name else { return false };
        *callbacks.entry((file, function)).or_default() += sampled.time_ns;
        samples += sampled.samples;
        time_ns += sampled.time_ns;
    }
    let heaviest_ns = callbacks.values().copied().max().unwrap_or_default();
    samples >= SATURATED_SAMPLES && !is_percent(heaviest_ns, time_ns, HEAVIEST_PERCENT)
}
