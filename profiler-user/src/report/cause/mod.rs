//! A stall's account and stacks to why it stalled, how sure that is, and which stacks carry it.
//!
//! The turn's time is divided into components: running, each wait that was seen, blocked time that was
//! not, getting memory, ready without a CPU, out of quota, stopped. The largest is the cause, the others
//! are listed behind it. Stacks only say in what; where they say nothing of the largest, the confidence
//! does.

mod called;
mod cpu;
mod held;
mod memory;
mod phrase;
mod quota;
mod run_queue;
mod stopped;
mod wait;
mod woken;

use std::collections::BTreeMap;

use profiler_ebpf::turn::START_UNKNOWN;

use self::wait::Wait;
use super::account::Part;
use super::message::milliseconds;
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
            let part = stall::Component {
                summary: words(&explanation.kind, other),
                kind: explanation.kind,
                time_ns: other.time_ns,
                times: other.times(),
                culprit: None,
            };
            (part, (explanation.evidence, explanation.blamed))
        })
        .collect();
    let explanation = explain(largest, stall, descriptors);
    let is_largest = is_whole(stall) && is_percent(largest.time_ns, whole_ns, CERTAIN_PERCENT);
    let confidence = match explanation.basis {
        Basis::Measured if is_largest => Confidence::Certain,
        Basis::Measured | Basis::Sampled => Confidence::Likely,
        Basis::Missing => Confidence::Unknown,
    };
    let mut verdict = verdict(explanation, confidence, Some(largest), also);
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
    let times = component.and_then(Component::times);
    let (parts, also) = also.into_iter().unzip();
    let cause = Cause { kind, summary, confidence, time_ns, times, also: parts };
    Verdict { cause, evidence, blamed, also, gaps }
}

/// A part in words: also of one whose cause is unknown, what is known.
fn words(kind: &CauseKind, component: &Component<'_>) -> String {
    match component.nature {
        Nature::Unseen => "blocked where no stack was taken".to_owned(),
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
            let ns = component.time_ns;
            let reason = format!(
                "no stack was taken of {ns} ns of blocked time; each block may have been too short"
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
    /// How often it waited; unknown where stacks are taken by the clock.
    fn times(&self) -> Option<u64> {
        let is_wait = match self.nature {
            Nature::Waiting(_) => true,
            // One that was frozen in its sleep left no stack of it.
            Nature::Stopped => !self.stacks.is_empty(),
            Nature::Memory(_) => self.stacks.iter().all(|sampled| Part::Blocked.shows(sampled)),
            _ => false,
        };
        is_wait.then(|| self.stacks.iter().map(|sampled| sampled.samples).sum())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use profiler_ebpf::turn::{START_UNKNOWN, Turn};

    use super::judge;
    use crate::around::{self, Cpus, Growth, Pressure, PressureOf, Quota, Surroundings};
    use crate::call::{Call, Descriptor, Kind};
    use crate::gap::Gap;
    use crate::report::sample::{self, blocked_in, javascript, kernel, native, on_cpu, python};
    use crate::report::schema::stall::{Cause, CauseKind, Confidence};
    use crate::turn::instead::Instead;
    use crate::turn::{Awaited, End, Holder, Lock, Sampled, Stall, ThreadState};

    const RECVFROM: i64 = 45;
    const FSYNC: i64 = 74;
    const MS: u64 = 1_000_000;
    /// So short that it is no whole millisecond.
    const NO_CPU: &str = "ready, but without a CPU: woken, but waited 0 ms for one";
    const NO_CPU_80: &str = "ready, but without a CPU: woken, but waited 80 ms for one";

    /// A stall with these ns running, blocked, runnable and stopped.
    fn stall(parts: [u64; 4], stacks: Vec<Sampled>) -> Stall {
        let [running_ns, blocked_ns, runnable_ns, stopped_ns] = parts;
        let turn = Turn { running_ns, blocked_ns, runnable_ns, stopped_ns, ..Turn::default() };
        Stall { turn, stacks, ..sample::stall() }
    }

    fn with_kernel(mut sampled: Sampled, functions: &[&str]) -> Sampled {
        sampled.stack.kernel = functions.iter().map(|function| kernel(function)).collect();
        sampled
    }

    /// Each situation has its kind, its words and its confidence.
    #[test]
    fn causes() {
        let recv = |time_ns| blocked_in(RECVFROM, [7, 0, 0, 0, 0, 0], time_ns);
        let call = |number, args, time_ns| vec![blocked_in(number, args, time_ns)];
        let remote_fault =
            with_kernel(blocked_in(-1, [0; 6], 95), &["fuse_readahead", "filemap_fault"]);
        let remote_read = with_kernel(
            blocked_in(0, [9, 0, 0, 0, 0, 0], 95),
            &["folio_wait_bit_common", "filemap_read", "fuse_file_read_iter"],
        );
        let page_read = with_kernel(
            blocked_in(0, [9, 0, 0, 0, 0, 0], 95),
            &["folio_wait_bit_common", "filemap_read"],
        );
        let page_fault = with_kernel(blocked_in(-1, [0; 6], 95), &["__schedule", "io_schedule"]);
        let swap_in = with_kernel(blocked_in(-1, [0; 6], 95), &["io_schedule", "do_swap_page"]);
        let slow_read =
            with_kernel(blocked_in(0, [9, 0, 0, 0, 0, 0], 95), &["io_schedule_timeout"]);
        let runnable = Sampled { state: ThreadState::Runnable, ..on_cpu(Vec::new(), 60) };
        use Confidence::{Certain, Likely, Unknown};
        let table = [
            ([90, 10, 0, 0], vec![on_cpu(Vec::new(), 90)], "on the CPU", Likely),
            ([90, 10, 0, 0], vec![recv(10)], "on the CPU", Unknown),
            ([5, 95, 0, 0], vec![recv(95)], "blocked in recvfrom on tcp 127.0.0.1:8081", Certain),
            ([5, 95, 0, 0], vec![recv(60)], "blocked in recvfrom on tcp 127.0.0.1:8081", Certain),
            ([5, 95, 0, 0], vec![recv(20)], "blocked where no stack was taken", Unknown),
            ([40, 42, 18, 0], vec![recv(42)], "blocked in recvfrom on tcp 127.0.0.1:8081", Likely),
            ([5, 95, 0, 0], Vec::new(), "blocked where no stack was taken", Unknown),
            ([5, 95, 0, 0], call(-1, [0; 6], 95), "for an unknown reason", Unknown),
            (
                [5, 95, 0, 0],
                call(230, [1, 0, 9, 0, 0, 0], 95),
                "asleep in clock_nanosleep",
                Certain,
            ),
            ([5, 95, 0, 0], call(23, [0, 0, 0, 0, 9, 0], 95), "asleep in select", Certain),
            (
                [5, 95, 0, 0],
                call(202, [0x7f10, 9, 0, 0, 0, 0], 95),
                "waiting for another thread (futex)",
                Certain,
            ),
            ([5, 95, 0, 0], call(7, [0x7f10, 1, 9, 0, 0, 0], 95), "blocked in poll", Certain),
            ([5, 95, 0, 0], call(61, [4711, 0, 0, 0, 0, 0], 95), "waiting for child 4711", Certain),
            ([5, 95, 0, 0], call(999, [0; 6], 95), "blocked in system call 999", Certain),
            (
                [5, 95, 0, 0],
                call(FSYNC, [9, 0, 0, 0, 0, 0], 95),
                "waiting for the disk in fsync on /var/lib/x.json",
                Certain,
            ),
            (
                [5, 95, 0, 0],
                vec![slow_read],
                "waiting for the disk in read on /var/lib/x.json",
                Certain,
            ),
            ([5, 95, 0, 0], vec![remote_fault], "waiting for a page of a file (fuse)", Certain),
            ([5, 95, 0, 0], vec![remote_read], "blocked in read on /var/lib/x.json", Certain),
            (
                [5, 95, 0, 0],
                vec![page_read],
                "waiting for the disk in read on /var/lib/x.json",
                Certain,
            ),
            ([5, 95, 0, 0], vec![page_fault], "waiting for a page of a file", Certain),
            ([5, 95, 0, 0], vec![swap_in], "waiting for memory to come back from swap", Certain),
            ([5, 10, 85, 0], vec![runnable], NO_CPU, Certain),
            ([40, 0, 45, 15], Vec::new(), NO_CPU, Likely),
            ([5, 10, 0, 85], Vec::new(), "stopped by a signal, a debugger or the freezer", Certain),
            ([0, 0, 0, 0], Vec::new(), "for an unknown reason", Unknown),
        ];
        let descriptors = BTreeMap::from([
            (7, "tcp 127.0.0.1:8081".to_owned()),
            (9, "/var/lib/x.json".to_owned()),
        ]);
        for (parts, stacks, summary, confidence) in table {
            let stall = stall(parts, stacks);
            let verdict = judge(&stall, &descriptors);
            assert_eq!(verdict.cause.summary, summary, "{parts:?}");
            assert_eq!(verdict.cause.confidence, confidence, "{summary} {parts:?}");
            if confidence == Unknown {
                assert!(!verdict.gaps.is_empty(), "{summary} is not explained");
            }
        }
    }

    /// A mixed stall is named after its largest part, and the others are listed with their times; what is
    /// too small is left out.
    #[test]
    fn mixed_stalls() {
        let stacks = vec![
            blocked_in(230, [0; 6], 33),
            blocked_in(RECVFROM, [7, 0, 0, 0, 0, 0], 9),
            on_cpu(Vec::new(), 30),
        ];
        let stall = stall([38, 42, 20, 0], stacks);
        let cause = judge(&stall, &BTreeMap::new()).cause;
        assert_eq!((cause.summary.as_str(), cause.time_ns), ("on the CPU", 38));
        let also: Vec<_> = cause
            .also
            .iter()
            .map(|part| (part.summary.as_str(), part.time_ns, part.times))
            .collect();
        let expected = [("asleep in clock_nanosleep", 33, Some(1)), (NO_CPU, 20, None)];
        assert_eq!(also, expected);
    }

    fn growth(at_least_ns: u64, at_most_ns: u64, over_ns: u64) -> Option<Growth> {
        Some(Growth { at_least_ns, at_most_ns, over_ns })
    }

    /// A stall that ran for 20, waited for a CPU for 80 and lasted 100 ms, with a quota of half a CPU.
    fn with_quota(throttled: Option<Growth>) -> Stall {
        let stall = stall([20 * MS, 0, 80 * MS, 0], vec![on_cpu(Vec::new(), 20 * MS)]);
        let quota = throttled.map(|throttled| Quota {
            cgroup: "/pods/1".to_owned(),
            quota_us: 50_000,
            period_us: 100_000,
            throttled,
        });
        let around = Surroundings { quota, ..stall.around.clone() };
        let instead = Instead { idle_ns: 75 * MS, ..Instead::default() };
        Stall { around, instead, ..stall }
    }

    /// The quota is the cause where it was used up for most of the time without a CPU; that is certain
    /// only where readings inside the stall show it, of one CPU. What is left is the other tasks'.
    #[test]
    fn out_of_quota() {
        use Confidence::{Certain, Likely};
        let table = [
            (
                growth(70 * MS, 75 * MS, 130 * MS),
                "out of its CPU quota (0.5 CPUs), throttled for 75 ms",
                80,
                Certain,
            ),
            (
                growth(0, 75 * MS, 130 * MS),
                "out of its CPU quota (0.5 CPUs), throttled for 75 ms",
                80,
                Likely,
            ),
            (
                growth(150 * MS, 160 * MS, 130 * MS),
                "out of its CPU quota (0.5 CPUs), throttled for 80 ms",
                80,
                Likely,
            ),
            (
                growth(45 * MS, 50 * MS, 130 * MS),
                "out of its CPU quota (0.5 CPUs), throttled for 50 ms",
                50,
                Certain,
            ),
            (growth(20 * MS, 20 * MS, 130 * MS), NO_CPU_80, 60, Certain),
            (growth(0, 0, 130 * MS), NO_CPU_80, 80, Certain),
            (None, NO_CPU_80, 80, Certain),
        ];
        for (throttled, summary, time_ms, confidence) in table {
            let stall = with_quota(throttled);
            let cause = judge(&stall, &BTreeMap::new()).cause;
            assert!(cause.summary.starts_with(summary), "{} instead of {summary}", cause.summary);
            assert_eq!(cause.time_ns / MS, time_ms, "{throttled:?}");
            assert_eq!(cause.confidence, confidence, "{throttled:?}");
        }
        let cause = judge(&with_quota(growth(20 * MS, 20 * MS, 130 * MS)), &BTreeMap::new()).cause;
        let also: Vec<_> = cause.also.iter().map(|part| part.summary.as_str()).collect();
        assert!(also.contains(&"out of its CPU quota (0.5 CPUs), throttled for 20 ms"), "{also:?}");
    }

    /// Where quotas could not be looked for, or what is counted is behind, it is said where it matters, and
    /// nobody else is to blame for certain.
    #[test]
    fn quota_that_is_not_known() {
        let is_told = |stall: &Stall, start: &str| {
            let verdict = judge(stall, &BTreeMap::new());
            assert_eq!(verdict.cause.confidence, Confidence::Likely);
            verdict.gaps.iter().any(|gap| gap.0.starts_with(start))
        };
        let mut stall = with_quota(None);
        stall.around.quota_gap = Some(Gap::new("cpu_quota", "not mounted"));
        assert!(is_told(&stall, "cpu_quota: not mounted"));
        let mut open = with_quota(growth(0, 0, 130 * MS));
        (open.end, open.now) = (End::NotYet, Some(ThreadState::Runnable));
        assert!(is_told(&open, "throttled_ns"));
    }

    /// The kernel does not tell on which CPU the quota was used up: of several it may have been another,
    /// unless this one had nothing to do meanwhile.
    #[test]
    fn quota_of_another_cpu() {
        let mut stall = with_quota(growth(70 * MS, 75 * MS, 130 * MS));
        let confidence = |stall: &Stall| judge(stall, &BTreeMap::new()).cause.confidence;
        stall.instead.idle_ns = 10 * MS;
        assert_eq!(confidence(&stall), Confidence::Likely);
        stall.around.cpus = Some(Cpus { allowed: 1, online: 1, list: "0".to_owned() });
        assert_eq!(confidence(&stall), Confidence::Certain);
    }

    /// What was not seen of a stall may be its larger part.
    #[test]
    fn stalls_without_an_edge() {
        let whole = stall([5, 95, 0, 0], vec![blocked_in(230, [0; 6], 95)]);
        let confidence = |stall: &Stall| judge(stall, &BTreeMap::new()).cause.confidence;
        assert_eq!(confidence(&whole), Confidence::Certain);
        let end = End::Unseen("detached".to_owned());
        assert_eq!(confidence(&Stall { end, ..whole.clone() }), Confidence::Likely);
        let turn = Turn { flags: START_UNKNOWN, ..whole.turn };
        assert_eq!(confidence(&Stall { turn, ..whole }), Confidence::Likely);
    }

    /// Connections to one peer are one wait, whatever their numbers; a number that stood for another peer
    /// before is another; and of files that have a number in turn, it is said that they were several.
    #[test]
    fn waits_by_what_they_are_on() {
        let on = |kind, text: &str, number: u64, time_ns| {
            let descriptor = Descriptor::new(number as u32, kind, text);
            let call = Call { descriptor: Some(descriptor), is_seen: true, ..Call::default() };
            let waited = blocked_in(RECVFROM, [number, 0, 0, 0, 0, 0], time_ns);
            Sampled { call: Some(Box::new(call)), ..waited }
        };
        let told = |stacks: Vec<Sampled>| {
            let stall = stall([0, 100, 0, 0], stacks);
            let Cause { summary, time_ns, .. } = judge(&stall, &BTreeMap::new()).cause;
            (summary, time_ns)
        };
        let socket = |text, number, time_ns| on(Kind::Socket, text, number, time_ns);
        let same = told(vec![
            socket("tcp a:1", 7, 40),
            socket("tcp a:1", 8, 30),
            socket("tcp b:1", 7, 30),
        ]);
        assert_eq!(same, ("blocked in recvfrom on tcp a:1".to_owned(), 70));
        let file = |text, time_ns| on(Kind::File, text, 7, time_ns);
        let files = told(vec![file("/a", 40), file("/b", 30), file("/c", 30)]);
        assert_eq!(files, ("blocked in recvfrom on /a and 2 others".to_owned(), 100));
    }

    /// Time that a hypervisor took is a hint where it was much and inside the stall, and only where the
    /// thread needed a CPU.
    #[test]
    fn stolen_time() {
        let summary = |parts, stolen| {
            let mut stall = stall(parts, vec![on_cpu(Vec::new(), 90 * MS)]);
            stall.around.stolen = stolen;
            judge(&stall, &BTreeMap::new()).cause.summary
        };
        let busy = [90 * MS, 0, 10 * MS, 0];
        let much = growth(20 * MS, 40 * MS, 150 * MS);
        assert_eq!(summary(busy, much), "on the CPU (the hypervisor took up to 40 ms)");
        assert_eq!(summary(busy, growth(0, 40 * MS, 900 * MS)), "on the CPU");
        assert_eq!(summary([10 * MS, 90 * MS, 0, 0], much), "blocked where no stack was taken");
    }

    /// Who stopped a thread is told by where the kernel kept it, and no line of it is to blame.
    #[test]
    fn stopped_by() {
        let stopped = |functions: &[&str]| {
            let state = ThreadState::Stopped;
            let seen = Sampled { state, ..blocked_in(-1, [0; 6], 85) };
            stall([5, 10, 0, 85], vec![with_kernel(seen, functions)])
        };
        let with_state = |task_state| {
            let mut stall = stopped(&[]);
            stall.stacks[0].task_state = task_state;
            stall
        };
        let mut traced = stopped(&["ptrace_stop", "do_signal_stop"]);
        let gdb = around::Tracer { pid: 4711, name: Some("gdb".to_owned()) };
        traced.around.tracer = Some(gdb);
        let table = [
            (stopped(&["do_signal_stop", "get_signal"]), "stopped by a signal"),
            (stopped(&["__refrigerator"]), "stopped by its control group's freezer"),
            (traced, "stopped by a debugger (gdb, pid 4711)"),
            (with_state(0x4), "stopped by a signal"),
            (with_state(0x8), "stopped by a debugger"),
            (with_state(0x8000), "stopped by its control group's freezer"),
        ];
        for (stall, summary) in table {
            let verdict = judge(&stall, &BTreeMap::new());
            assert_eq!(verdict.cause.summary, summary);
            assert!(verdict.evidence.is_empty());
            let is_said = |gap: &Gap| gap.0.starts_with("culprit: the thread was stopped");
            assert!(verdict.gaps.iter().any(is_said), "{:?}", verdict.gaps);
        }
    }

    /// Version 2's freezer puts threads to sleep, and since 6.1 version 1's leaves those asleep that are:
    /// both are stops all the same.
    #[test]
    fn frozen_in_their_sleep() {
        let napping = || blocked_in(230, [0; 6], 30);
        let trapped = with_kernel(blocked_in(230, [0; 6], 65), &["do_freezer_trap", "get_signal"]);
        let asleep = Sampled { time_ns: 95, ..napping() };
        let mut in_place = stall([5, 95, 0, 0], vec![asleep]);
        in_place.around.frozen_ns = 65;
        for stall in [stall([5, 95, 0, 0], vec![trapped, napping()]), in_place] {
            let cause = judge(&stall, &BTreeMap::new()).cause;
            let also: Vec<_> =
                cause.also.iter().map(|part| (part.summary.as_str(), part.time_ns)).collect();
            assert_eq!(cause.summary, "stopped by its control group's freezer");
            assert_eq!((cause.time_ns, also), (65, vec![("asleep in clock_nanosleep", 30)]));
        }
    }

    /// Memory that the kernel had to free is one cause, on the CPU and waiting; the lock of the address
    /// space is another. What else ran or waited is not theirs.
    #[test]
    fn memory() {
        let freeing = || {
            let running = Sampled { state: ThreadState::RunningKernel, ..on_cpu(Vec::new(), 40) };
            with_kernel(running, &["shrink_folio_list", "try_to_free_mem_cgroup_pages"])
        };
        let waiting = with_kernel(blocked_in(0, [0; 6], 30), &["io_schedule", "shrink_node"]);
        let stacks = vec![freeing(), waiting, on_cpu(Vec::new(), 20), blocked_in(230, [0; 6], 10)];
        let mut stall = stall([60, 40, 0, 0], stacks);
        let pressure = Pressure { of: PressureOf::Machine, waited: growth(50, 60, 200).unwrap() };
        stall.around.pressure = Some(pressure);
        let verdict = judge(&stall, &BTreeMap::new());
        let cause = &verdict.cause;
        assert_eq!(cause.summary, "freeing memory before it got any (direct reclaim)");
        assert_eq!((cause.time_ns, cause.times, cause.confidence), (70, None, Confidence::Likely));
        let CauseKind::Memory { pressure_ns, .. } = cause.kind else { panic!("{cause:?}") };
        assert_eq!((pressure_ns, verdict.evidence.len()), (Some(60), 2));
        let also: Vec<_> = cause.also.iter().map(|part| part.time_ns).collect();
        assert_eq!(also, [20, 10]);

        let locked = ["rwsem_down_write_slowpath", "down_write_killable", "vm_mmap_pgoff"];
        let stacks = vec![with_kernel(blocked_in(9, [0; 6], 95), &locked)];
        let stall = Stall { stacks, ..stall };
        let verdict = judge(&stall, &BTreeMap::new());
        let summary = "waiting for the lock of its address space (mmap_lock)";
        assert_eq!(verdict.cause.summary, summary);
        assert!(verdict.gaps[0].0.starts_with("owner_thread"), "{:?}", verdict.gaps);
    }

    /// Several stacks in one system call are one wait, and a heavier stack of another does not hide it.
    #[test]
    fn waits_add_up() {
        let stacks = vec![
            blocked_in(230, [0; 6], 40),
            blocked_in(RECVFROM, [7, 0, 0, 0, 0, 0], 30),
            blocked_in(RECVFROM, [7, 0, 0, 0, 0, 0], 30),
        ];
        let stall = stall([0, 100, 0, 0], stacks);
        let verdict = judge(&stall, &BTreeMap::new());
        let Cause { summary, confidence, time_ns, times, .. } = &verdict.cause;
        assert_eq!((summary.as_str(), *confidence), ("blocked in recvfrom", Confidence::Certain));
        assert_eq!((*time_ns, *times), (60, Some(2)));
        assert_eq!(verdict.evidence.len(), 2);
        let gaps: Vec<_> = verdict.gaps.iter().map(ToString::to_string).collect();
        assert_eq!(gaps, ["target: what descriptor 7 stands for was not read"]);
    }

    /// The time decides, not the heaviest stack: a short block does not explain a long computation.
    #[test]
    fn evidence_is_of_the_largest_part() {
        let computing = vec![native("parse", "/srv/server")];
        let stacks = vec![
            blocked_in(RECVFROM, [7, 0, 0, 0, 0, 0], 40),
            on_cpu(computing.clone(), 30),
            on_cpu(Vec::new(), 30),
        ];
        let stall = stall([60, 40, 0, 0], stacks);
        let verdict = judge(&stall, &BTreeMap::new());
        assert!(matches!(verdict.cause.kind, CauseKind::Cpu { .. }));
        assert_eq!(verdict.evidence.len(), 2);
        assert_eq!(verdict.evidence.first().map(|sampled| &sampled.stack.frames), Some(&computing));
    }

    fn is_saturated(stall: &Stall) -> bool {
        match judge(stall, &BTreeMap::new()).cause.kind {
            CauseKind::Saturated { .. } => true,
            CauseKind::Cpu { .. } => false,
            other => panic!("{other:?}"),
        }
    }

    /// Several callbacks without a heaviest are saturation; one that has most of the time, or stacks on
    /// which no loop is seen, are not.
    #[test]
    fn many_callbacks_or_one() {
        let kind = |roots: &[&str], with_loop: bool| {
            let stack = |root: &&str| {
                let mut frames =
                    vec![python("step", "/srv/app.py", 3), python(root, "/srv/app.py", 9)];
                if with_loop {
                    frames.push(python("Handle._run", "/usr/lib/python3.11/asyncio/events.py", 80));
                }
                on_cpu(frames, 10)
            };
            let stall = stall([100, 0, 0, 0], roots.iter().map(stack).collect());
            is_saturated(&stall)
        };
        assert!(kind(&["a", "b", "c", "a", "b", "c"], true));
        assert!(!kind(&["a", "b", "c", "a", "a", "a"], true));
        assert!(!kind(&["a", "b", "a", "b", "a", "b"], true));
        assert!(!kind(&["a", "b", "c", "a", "b", "c"], false));
        assert!(!kind(&["a", "b", "c", "d"], true));
    }

    /// A server calls every handler from the same function of its own: the handlers tell them apart.
    #[test]
    fn handlers_of_one_server() {
        let kind = |handlers: &[&str]| {
            let stack = |handler: &&str| {
                let site = "/v/lib/python3.11/site-packages";
                let lib = "/usr/lib/python3.11";
                on_cpu(
                    vec![
                        python("render", "/srv/app.py", 3),
                        python("dumps", &format!("{lib}/json/__init__.py"), 231),
                        python(handler, "/srv/app.py", 9),
                        python("RequestResponseCycle.run_asgi", &format!("{site}/uvicorn/x.py"), 5),
                        python("Handle._run", &format!("{lib}/asyncio/events.py"), 80),
                    ],
                    10,
                )
            };
            let stall = stall([100, 0, 0, 0], handlers.iter().map(stack).collect());
            is_saturated(&stall)
        };
        assert!(kind(&["a", "b", "c", "a", "b", "c"]));
        assert!(!kind(&["a", "a", "a", "a", "a", "b"]));
    }

    /// Node calls all callbacks from the same functions of its own, so these do not tell them apart.
    #[test]
    fn many_callbacks_of_node() {
        let kind = |roots: [&str; 5]| {
            let stack = |root: &str| {
                let frames = vec![
                    javascript(root, "/srv/app.js", 9),
                    javascript("processImmediate", "node:internal/timers", 450),
                    native("uv_run", "/usr/bin/node"),
                    native("main", "/usr/bin/node"),
                ];
                on_cpu(frames, 10)
            };
            let stall = stall([100, 0, 0, 0], roots.map(stack).to_vec());
            is_saturated(&stall)
        };
        assert!(kind(["a", "b", "c", "a", "d"]));
        assert!(!kind(["a", "b", "c", "a", "a"]));
    }

    /// Who waits for the interpreter's lock is innocent: the holder's stacks are the evidence, and where
    /// nobody was seen to hold it, nobody is blamed.
    #[test]
    fn the_holder_is_to_blame() {
        let mut waiting = blocked_in(202, [0x7f10, 9, 0, 0, 0, 0], 95);
        waiting.awaited = Awaited::Gil;
        let mut stall = stall([5, 95, 0, 0], vec![waiting]);
        let verdict = judge(&stall, &BTreeMap::new());
        let kind = CauseKind::Gil { holder_thread: None, holders: Vec::new() };
        assert_eq!(verdict.cause.kind, kind);
        assert!(verdict.evidence.is_empty());
        assert!(verdict.gaps[0].0.starts_with("holder_thread"), "{:?}", verdict.gaps);

        let seen = on_cpu(vec![python("match_report", "/srv/app.py", 7)], 90);
        let held = Lock::Gil;
        stall.holders.push(Holder { tid: 77, name: None, held, seen: seen.clone() });
        let verdict = judge(&stall, &BTreeMap::new());
        assert_eq!(verdict.cause.summary, "waiting for the GIL, held by thread 77");
        assert_eq!((verdict.blamed, verdict.evidence), (77, vec![&seen]));
    }

    /// A system call is told with its arguments, a lock with its address.
    #[test]
    fn what_belongs_to_the_kind() {
        let stall = |number, args| stall([0, 9, 0, 0], vec![blocked_in(number, args, 9)]);
        let reading = stall(0, [5, u64::MAX, 16, 0, 0, 0]);
        let verdict = judge(&reading, &BTreeMap::new());
        let args = ["0x5", "0xffffffffffffffff", "0x10", "0x0", "0x0", "0x0"];
        let args = args.map(str::to_owned).to_vec();
        let syscall = "read".to_owned();
        assert_eq!(
            verdict.cause.kind,
            CauseKind::Syscall { syscall, args, target: None, call: Box::default() }
        );
        let locking = stall(202, [0x7f10, 0, 0, 0, 0, 0]);
        let verdict = judge(&locking, &BTreeMap::new());
        let address = "0x7f10".to_owned();
        let holders = Vec::new();
        let kind = CauseKind::Lock { address, owner_thread: None, holders, woken_by: None };
        assert_eq!(verdict.cause.kind, kind);
    }
}
