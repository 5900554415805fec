//! A stall's account and stacks to why it stalled, how sure that is, and which stacks carry it.
//!
//! The turn's time is divided into components: running, each wait that was seen, blocked time that was
//! not, getting memory, ready without a CPU, out of quota, stopped. The largest is the cause, the others
//! are listed behind it. Stacks only say in what; where they say nothing of the largest, the confidence
//! does.

mod blocked;
mod called;
pub mod chain;
mod cpu;
mod futex;
mod gvl;
mod held;
mod memory;
mod pause;
mod phrase;
mod quota;
mod run_queue;
mod stopped;
mod times;
mod wait;
mod woken;

use std::collections::BTreeMap;

use profiler_ebpf::turn::START_UNKNOWN;

use self::wait::Wait;
use super::account::Part;
use super::message::{milliseconds, short_milliseconds};
use super::schema::call::Call;
use super::schema::stall::{self, Cause, CauseKind, Confidence, MemoryActivity};
use crate::activity::Activity;
use crate::gap::Gap;
use crate::turn::{End, Sampled, Stall};

/// A component that was measured and has this much of the turn is its cause for certain: no other can
/// be larger.
const CERTAIN_PERCENT: u64 = 50;

/// Smaller components are left out of the list behind the largest.
const MENTIONED_PERCENT: u64 = 10;

/// What a hypervisor takes is mentioned from here on.
const STOLEN_PERCENT: u64 = 5;

/// A cause, and what it rests on.
#[derive(Debug)]
pub struct Verdict<'a> {
    pub cause: Cause,
    /// The stacks that show it, heaviest first: the culprit is among their frames.
    pub evidence: Vec<&'a Sampled>,
    /// Whose stacks they are: the loop's own thread, or the one that it waited for.
    pub blamed: u32,
    /// The same for each part in `cause.also`: its stacks, and whose they are.
    pub also: Vec<(Vec<&'a Sampled>, u32)>,
    pub gaps: Vec<Gap>,
}

/// One thing that the turn's time went into.
#[derive(Debug)]
struct Component<'a> {
    nature: Nature<'a>,
    time_ns: u64,
    /// The stacks that were taken in it, heaviest first.
    stacks: Vec<&'a Sampled>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Nature<'a> {
    Running,
    Waiting(Wait<'a>),
    /// Blocked, and no stack says in what.
    Unseen,
    /// The kernel got memory for it, or a lock of the address space: running or blocked.
    Memory(MemoryActivity),
    Runnable,
    /// Ready, and the quota was used up.
    Throttled,
    Stopped,
}

/// What an explanation rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Basis {
    /// What it was and how long it took was measured.
    Measured,
    /// How long is measured, what it was is sampled.
    Sampled,
    /// What it was is not known.
    Missing,
}

/// Why a component took its time.
#[derive(Debug)]
struct Explanation<'a> {
    kind: CauseKind,
    basis: Basis,
    evidence: Vec<&'a Sampled>,
    blamed: u32,
    gaps: Vec<Gap>,
}

impl<'a> Explanation<'a> {
    fn new(kind: CauseKind, basis: Basis, evidence: Vec<&'a Sampled>, blamed: u32) -> Self {
        Self { kind, basis, evidence, blamed, gaps: Vec::new() }
    }

    fn missing(blamed: u32, reason: &str) -> Self {
        let gaps = vec![Gap::new("cause", reason)];
        Self { gaps, ..Self::new(CauseKind::Unknown, Basis::Missing, Vec::new(), blamed) }
    }
}

/// Why it stalled. `descriptors` says what the target's descriptors stand for.
pub fn judge<'a>(stall: &'a Stall, descriptors: &BTreeMap<u32, String>) -> Verdict<'a> {
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
            let part = stall::Component {
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
    also: Vec<(stall::Component, (Vec<&'a Sampled>, u32))>,
) -> Verdict<'a> {
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
    Verdict { cause, evidence, blamed, also, gaps }
}

/// A part in words: also of one whose cause is unknown, what is known.
fn words(kind: &CauseKind, component: &Component<'_>) -> String {
    match (component.nature, kind) {
        (Nature::Unseen, _) => "blocked where no stack was taken".to_owned(),
        // How long one of many short waits might have lasted is no news.
        (_, CauseKind::Syscall { syscall, args, target, call })
            if component.is_mostly_inferred() =>
        {
            let call = Box::new(Call { timeout: None, ..(**call).clone() });
            let (syscall, args) = (syscall.clone(), args.clone());
            phrase::phrase(&CauseKind::Syscall { syscall, args, target: target.clone(), call })
        }
        _ => phrase::phrase(kind),
    }
}

/// A hint where the hypervisor took CPU time inside the stall: no cause, because it is not told from
/// which CPU, and to the guest a thread runs all the same.
fn steal(nature: Nature<'_>, stall: &Stall) -> Option<String> {
    let stolen = stall.around.stolen?;
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
        Nature::Throttled => match &stall.around.quota {
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

fn is_percent(part: u64, whole: u64, percent: u64) -> bool {
    u128::from(part) * 100 >= u128::from(whole) * u128::from(percent)
}

/// What the turn's time went into, longest first. The times add up to what is booked, unless the waits
/// that were seen are longer than the time that was booked as blocked: a wait that still lasts is
/// measured a moment later than its booking.
fn components(stall: &Stall) -> Vec<Component<'_>> {
    let turn = &stall.turn;
    let mut components = Components::default();
    let running = shown(stall, Part::Running);
    let of_memory = |sampled: &&Sampled| Some((memory::activity(sampled)?, sampled.time_ns));
    let for_memory_ns: u64 = running.iter().filter_map(of_memory).map(|(_, time_ns)| time_ns).sum();
    components.add(Nature::Running, turn.running_ns.saturating_sub(for_memory_ns));
    for sampled in running {
        match memory::activity(sampled) {
            Some(activity) => components.see(Nature::Memory(activity), sampled.time_ns, sampled),
            None => components.see(Nature::Running, 0, sampled),
        }
    }
    let mut seen_ns: u64 = 0;
    for sampled in shown(stall, Part::Blocked) {
        seen_ns = seen_ns.saturating_add(sampled.time_ns);
        let is_stop = sampled.activity().is_some_and(Activity::is_stop);
        let nature = match memory::activity(sampled) {
            Some(activity) => Nature::Memory(activity),
            // To the scheduler a thread that version 2's freezer stops is asleep.
            None if is_stop => Nature::Stopped,
            None => Nature::Waiting(Wait::of(sampled)),
        };
        components.see(nature, sampled.time_ns, sampled);
    }
    components.add(Nature::Unseen, turn.blocked_ns.saturating_sub(seen_ns));
    let throttled_ns = quota::throttled_ns(stall);
    components.add(Nature::Throttled, throttled_ns);
    components.add(Nature::Runnable, turn.runnable_ns.saturating_sub(throttled_ns));
    for sampled in shown(stall, Part::Runnable) {
        components.see(Nature::Runnable, 0, sampled);
    }
    components.add(Nature::Stopped, turn.stopped_ns);
    for sampled in shown(stall, Part::Stopped) {
        components.see(Nature::Stopped, 0, sampled);
    }
    components.freeze(stall.around.frozen_ns);
    components.longest_first()
}

/// Components while they are gathered.
#[derive(Debug, Default)]
struct Components<'a>(Vec<Component<'a>>);

impl<'a> Components<'a> {
    fn of(&mut self, nature: Nature<'a>) -> &mut Component<'a> {
        let place = self.0.iter().position(|known| known.nature == nature).unwrap_or_else(|| {
            self.0.push(Component { nature, time_ns: 0, stacks: Vec::new() });
            self.0.len() - 1
        });
        &mut self.0[place]
    }

    fn add(&mut self, nature: Nature<'a>, time_ns: u64) {
        let component = self.of(nature);
        component.time_ns = component.time_ns.saturating_add(time_ns);
    }

    fn see(&mut self, nature: Nature<'a>, time_ns: u64, sampled: &'a Sampled) {
        self.add(nature, time_ns);
        self.of(nature).stacks.push(sampled);
    }

    /// A thread that sleeps where the kernel allows it is frozen in its sleep, without a switch (6.1):
    /// what its group was seen frozen for is taken from its waits.
    fn freeze(&mut self, frozen_ns: u64) {
        let known_ns = self.of(Nature::Stopped).time_ns;
        let mut left_ns = frozen_ns.saturating_sub(known_ns);
        for component in &mut self.0 {
            if matches!(component.nature, Nature::Waiting(_) | Nature::Unseen) {
                let taken_ns = component.time_ns.min(left_ns);
                component.time_ns -= taken_ns;
                left_ns -= taken_ns;
            }
        }
        self.add(Nature::Stopped, frozen_ns.saturating_sub(known_ns) - left_ns);
    }

    fn longest_first(self) -> Vec<Component<'a>> {
        let mut components = self.0;
        components.retain(|component| component.time_ns > 0);
        // Among equals the first: stacks come heaviest first.
        components.sort_by_key(|component| std::cmp::Reverse(component.time_ns));
        components
    }
}

/// The stacks of one part.
fn shown(stall: &Stall, part: Part) -> Vec<&Sampled> {
    stall.stacks.iter().filter(|sampled| part.shows(sampled)).collect()
}

impl Component<'_> {
    /// The part of its time that lies in short waits for which others' stacks stand.
    fn inferred_ns(&self) -> u64 {
        let others = self.stacks.iter().map(|sampled| sampled.waits.others_ns);
        others.fold(0, u64::saturating_add)
    }

    fn is_mostly_inferred(&self) -> bool {
        self.inferred_ns() > self.time_ns / 2
    }
}

#[cfg(test)]
mod tests;
