//! A stall's account and stacks to why it stalled, how sure that is, and which stacks carry it.
//!
//! The largest part of the turn's measured time decides the kind; stacks only say in what. Where
//! they cover too little of that part, the confidence says so.

use std::collections::BTreeMap;

use profiler_ebpf::record::Registers;

use super::account::Part;
use super::application::{callback_root, inside_callback};
use super::held;
use super::hexadecimal;
use super::schema::stall::{Cause, CauseKind, Confidence};
use super::syscalls::{self, Operand};
use crate::gap::Gap;
use crate::turn::{Awaited, Sampled, Stall};

/// A wait seen for this much of the blocked time is what the thread was blocked in, whatever the
/// short stretches were whose stacks are not taken.
const CERTAIN_PERCENT: u64 = 80;

/// Below half, something else may have cost more.
const LIKELY_PERCENT: u64 = 50;

/// Of fewer samples it may be chance that none of the callbacks has half.
const SATURATED_SAMPLES: u64 = 5;

/// A cause, and what it rests on.
#[derive(Debug)]
pub struct Verdict<'a> {
    pub cause: Cause,
    /// The stacks that show it, heaviest first: the culprit is among their frames.
    pub evidence: Vec<&'a Sampled>,
    /// Whose stacks they are: the loop's own thread, or the one that it waited for.
    pub blamed: u32,
    pub gaps: Vec<Gap>,
}

/// Why it stalled. `descriptors` says what the target's descriptors stand for.
pub fn judge<'a>(stall: &'a Stall, descriptors: &BTreeMap<u32, String>) -> Verdict<'a> {
    match Part::largest(&stall.turn) {
        Some(Part::Running) => on_cpu(stall),
        Some(Part::Blocked) => blocked(stall, descriptors),
        Some(Part::Runnable) => {
            let reason = "what had the CPU meanwhile is not recorded";
            Verdict {
                cause: cause(
                    CauseKind::RunQueue { preempted_by: None },
                    measured(stall, Part::Runnable),
                ),
                evidence: first_shown(stall, &[Part::Runnable, Part::Running]),
                blamed: stall.tid,
                gaps: vec![Gap::new("preempted_by", reason)],
            }
        }
        Some(Part::Stopped) => Verdict {
            cause: cause(CauseKind::Stopped, measured(stall, Part::Stopped)),
            evidence: first_shown(stall, &[Part::Stopped]),
            blamed: stall.tid,
            gaps: Vec::new(),
        },
        None => unknown(stall, "none of the turn's time is booked yet"),
    }
}

/// The summary that goes with a kind.
fn cause(kind: CauseKind, confidence: Confidence) -> Cause {
    let summary = phrase(&kind);
    Cause { kind, summary, confidence }
}

fn unknown<'a>(stall: &Stall, reason: &str) -> Verdict<'a> {
    Verdict {
        cause: cause(CauseKind::Unknown, Confidence::Unknown),
        evidence: Vec::new(),
        blamed: stall.tid,
        gaps: vec![Gap::new("cause", reason)],
    }
}

/// What no stack is needed for is certain, if it is what most of the turn went into.
fn measured(stall: &Stall, part: Part) -> Confidence {
    if is_percent(part.of(&stall.turn), stall.turn.booked_ns(), LIKELY_PERCENT) {
        Confidence::Certain
    } else {
        Confidence::Likely
    }
}

fn is_percent(part: u64, whole: u64, percent: u64) -> bool {
    u128::from(part) * 100 >= u128::from(whole) * u128::from(percent)
}

/// The stacks of the first of these parts that has any.
fn first_shown<'a>(stall: &'a Stall, parts: &[Part]) -> Vec<&'a Sampled> {
    let shown = |part: &Part| -> Vec<&'a Sampled> {
        stall.stacks.iter().filter(|sampled| part.shows(sampled)).collect()
    };
    parts.iter().map(shown).find(|stacks| !stacks.is_empty()).unwrap_or_default()
}

fn on_cpu(stall: &Stall) -> Verdict<'_> {
    let evidence = first_shown(stall, &[Part::Running]);
    if is_saturated(&evidence) {
        // To name the one that happened to be seen most would blame it for the others.
        return Verdict {
            cause: cause(CauseKind::Saturated, Confidence::Likely),
            evidence: Vec::new(),
            blamed: stall.tid,
            gaps: Vec::new(),
        };
    }
    // Which code it was is sampled, however exact the time is.
    let (confidence, gaps) = if evidence.is_empty() {
        let reason = "no sample fell into the running time";
        (Confidence::Unknown, vec![Gap::new("code that kept the CPU", reason)])
    } else {
        (Confidence::Likely, Vec::new())
    };
    Verdict { cause: cause(CauseKind::Cpu, confidence), evidence, blamed: stall.tid, gaps }
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
    samples >= SATURATED_SAMPLES && !is_percent(heaviest_ns, time_ns, LIKELY_PERCENT)
}

/// The blocked stacks that were in the same wait.
struct Wait<'a> {
    time_ns: u64,
    stacks: Vec<&'a Sampled>,
}

/// The wait that blocked time went into, as far as it was seen.
fn heaviest_wait(stall: &Stall) -> Option<Wait<'_>> {
    let mut waits: Vec<((i64, Awaited, bool), Wait<'_>)> = Vec::new();
    for sampled in stall.stacks.iter().filter(|sampled| Part::Blocked.shows(sampled)) {
        let key = (sampled.registers.syscall, sampled.awaited, is_disk(sampled));
        match waits.iter_mut().find(|(seen, _)| *seen == key) {
            Some((_, wait)) => {
                wait.time_ns = wait.time_ns.saturating_add(sampled.time_ns);
                wait.stacks.push(sampled);
            }
            None => waits.push((key, Wait { time_ns: sampled.time_ns, stacks: vec![sampled] })),
        }
    }
    // Among equals the first: stacks come heaviest first.
    waits.into_iter().map(|(_, wait)| wait).rev().max_by_key(|wait| wait.time_ns)
}

fn blocked<'a>(stall: &'a Stall, descriptors: &BTreeMap<u32, String>) -> Verdict<'a> {
    let Some(wait) = heaviest_wait(stall) else {
        return unknown(
            stall,
            "no stack of the blocked time was taken; each block may have been too short",
        );
    };
    let mut gaps = Vec::new();
    let kind = wait
        .stacks
        .first()
        .map_or(CauseKind::Unknown, |heaviest| wait_kind(stall, heaviest, descriptors, &mut gaps));
    let blocked_ns = stall.turn.blocked_ns;
    let confidence = if kind == CauseKind::Unknown {
        Confidence::Unknown
    } else if !is_percent(wait.time_ns, blocked_ns, LIKELY_PERCENT) {
        let seen = format!("of {blocked_ns} ns blocked only {} ns were seen", wait.time_ns);
        gaps.push(Gap::new("cause", seen));
        Confidence::Unknown
    } else if is_percent(wait.time_ns, blocked_ns, CERTAIN_PERCENT) {
        measured(stall, Part::Blocked)
    } else {
        Confidence::Likely
    };
    if let Some((evidence, blamed)) = held::evidence(stall, &kind, &mut gaps) {
        return Verdict { cause: cause(kind, confidence), evidence, blamed, gaps };
    }
    Verdict { cause: cause(kind, confidence), evidence: wait.stacks, blamed: stall.tid, gaps }
}

/// What a blocked stack was waiting for.
fn wait_kind(
    stall: &Stall,
    sampled: &Sampled,
    descriptors: &BTreeMap<u32, String>,
    gaps: &mut Vec<Gap>,
) -> CauseKind {
    let registers = &sampled.registers;
    let inside = registers.syscall >= 0;
    if is_swap_in(sampled) {
        return CauseKind::Memory;
    }
    if !inside && !is_disk(sampled) {
        let reason = "the thread was blocked outside any system call, and its kernel stack does not say in what";
        gaps.push(Gap::new("cause", reason));
        return CauseKind::Unknown;
    }
    if !inside {
        gaps.push(Gap::new("target", "which file the page belongs to is not recorded"));
        return CauseKind::Disk { syscall: None, target: None };
    }
    let syscall = syscall_name(registers);
    if syscalls::is_sleep(registers) {
        return CauseKind::Sleep { syscall };
    }
    if sampled.awaited == Awaited::Gil {
        return held::gil(stall, gaps);
    }
    if syscalls::is_futex(registers) {
        let [address, ..] = registers.args;
        return held::lock(stall, hexadecimal(address), gaps);
    }
    let target = target(registers, &syscall, descriptors, gaps);
    if is_disk(sampled) {
        return CauseKind::Disk { syscall: Some(syscall), target };
    }
    CauseKind::Syscall { syscall, args: registers.args.map(hexadecimal).to_vec(), target }
}

/// Whether the kernel waited for a block device: only that accounts as I/O wait, in `io_schedule`.
fn is_disk(sampled: &Sampled) -> bool {
    syscalls::is_write_back(&sampled.registers) || has_kernel_frame(sampled, "io_schedule")
}

/// The page had been swapped out: that is memory pressure, not a slow file.
fn is_swap_in(sampled: &Sampled) -> bool {
    has_kernel_frame(sampled, "do_swap_page")
}

fn has_kernel_frame(sampled: &Sampled, prefix: &str) -> bool {
    let named = |name: &String| name.starts_with(prefix);
    sampled.stack.kernel.iter().any(|frame| frame.function.as_ref().is_some_and(named))
}

fn syscall_name(registers: &Registers) -> String {
    let number = registers.syscall;
    syscalls::name(number).map_or_else(|| format!("system call {number}"), str::to_owned)
}

/// What the system call works on, in the words of a report.
fn target(
    registers: &Registers,
    syscall: &str,
    descriptors: &BTreeMap<u32, String>,
    gaps: &mut Vec<Gap>,
) -> Option<String> {
    match syscalls::operand(registers) {
        Operand::Descriptor(number) => {
            let known = descriptors.get(&number).cloned();
            if known.is_none() {
                let reason = format!("what descriptor {number} stands for was not read");
                gaps.push(Gap::new("target", reason));
            }
            known
        }
        Operand::Child(Some(pid)) => Some(format!("child {pid}")),
        Operand::Child(None) => Some("any child".to_owned()),
        Operand::InMemory => {
            let reason = format!("{syscall} names it by a pointer that was not followed");
            gaps.push(Gap::new("target", reason));
            None
        }
        Operand::Nothing => None,
    }
}

/// A cause in words, to follow "stalled 5012 ms, ".
fn phrase(kind: &CauseKind) -> String {
    let on = |target: &Option<String>| {
        target.as_ref().map(|target| format!(" on {target}")).unwrap_or_default()
    };
    let fixed = match kind {
        CauseKind::Syscall { syscall, target, .. } => {
            return format!("blocked in {syscall}{}", on(target));
        }
        CauseKind::Sleep { syscall } => return format!("asleep in {syscall}"),
        CauseKind::Disk { syscall: Some(syscall), target } => {
            return format!("waiting for the disk in {syscall}{}", on(target));
        }
        CauseKind::Disk { syscall: None, .. } => "waiting for the disk in a page fault",
        CauseKind::Cpu => "on the CPU",
        CauseKind::Saturated => "on the CPU in many short callbacks",
        CauseKind::Lock { .. } | CauseKind::Gil { .. } => return held::phrase(kind),
        CauseKind::Memory => "waiting for memory",
        CauseKind::RunQueue { .. } => "ready, but without a CPU",
        CauseKind::CpuQuota { .. } => "out of its CPU quota",
        CauseKind::Stopped => "stopped by a signal, a debugger or the freezer",
        CauseKind::Unknown => "for an unknown reason",
    };
    fixed.to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use profiler_ebpf::turn::Turn;

    use super::judge;
    use crate::report::sample::{self, blocked_in, kernel, native, on_cpu, python};
    use crate::report::schema::stall::{CauseKind, Confidence};
    use crate::turn::{Awaited, Holder, Sampled, Stall, ThreadState};

    const RECVFROM: i64 = 45;
    const FSYNC: i64 = 74;

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
            ([5, 95, 0, 0], vec![recv(60)], "blocked in recvfrom on tcp 127.0.0.1:8081", Likely),
            ([5, 95, 0, 0], vec![recv(20)], "blocked in recvfrom on tcp 127.0.0.1:8081", Unknown),
            ([40, 42, 18, 0], vec![recv(42)], "blocked in recvfrom on tcp 127.0.0.1:8081", Likely),
            ([5, 95, 0, 0], Vec::new(), "for an unknown reason", Unknown),
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
            (
                [5, 95, 0, 0],
                call(61, [4711, 0, 0, 0, 0, 0], 95),
                "blocked in wait4 on child 4711",
                Certain,
            ),
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
            ([5, 95, 0, 0], vec![page_fault], "waiting for the disk in a page fault", Certain),
            ([5, 95, 0, 0], vec![swap_in], "waiting for memory", Certain),
            ([5, 10, 85, 0], vec![runnable], "ready, but without a CPU", Certain),
            ([40, 0, 45, 15], Vec::new(), "ready, but without a CPU", Likely),
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
        assert_eq!(verdict.cause.summary, "blocked in recvfrom");
        assert_eq!(verdict.cause.confidence, Confidence::Likely);
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
        assert_eq!(verdict.cause.kind, CauseKind::Cpu);
        assert_eq!(verdict.evidence.len(), 2);
        assert_eq!(verdict.evidence.first().map(|sampled| &sampled.stack.frames), Some(&computing));
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
            judge(&stall, &BTreeMap::new()).cause.kind
        };
        assert_eq!(kind(&["a", "b", "c", "a", "b", "c"], true), CauseKind::Saturated);
        assert_eq!(kind(&["a", "b", "c", "a", "a", "a"], true), CauseKind::Cpu);
        assert_eq!(kind(&["a", "b", "a", "b", "a", "b"], true), CauseKind::Cpu);
        assert_eq!(kind(&["a", "b", "c", "a", "b", "c"], false), CauseKind::Cpu);
        assert_eq!(kind(&["a", "b", "c", "d"], true), CauseKind::Cpu);
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
            judge(&stall, &BTreeMap::new()).cause.kind
        };
        assert_eq!(kind(&["a", "b", "c", "a", "b", "c"]), CauseKind::Saturated);
        assert_eq!(kind(&["a", "a", "a", "a", "a", "b"]), CauseKind::Cpu);
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
        let held = Awaited::Gil;
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
        assert_eq!(verdict.cause.kind, CauseKind::Syscall { syscall, args, target: None });
        let locking = stall(202, [0x7f10, 0, 0, 0, 0, 0]);
        let verdict = judge(&locking, &BTreeMap::new());
        let address = "0x7f10".to_owned();
        let kind = CauseKind::Lock { address, owner_thread: None, woken_by: None };
        assert_eq!(verdict.cause.kind, kind);
    }
}
