//! Time on a CPU to a cause: one piece of code that kept it, or a turn of many short callbacks.

use std::collections::BTreeMap;

use super::component::Component;
use super::explanation::{Basis, Explanation};
use crate::gap::Gap;
use crate::process::executables::basename;
use crate::report::application::{callback_root, inside_callback};
use crate::report::schema::stall::{Callback, CauseKind, ReportedActivity};
use crate::report::units::is_percent;
use crate::syscall;
use crate::turn::{Calls, Sampled, Stall, ThreadState};

/// Below half, no callback had most of the time, and an activity is not what most of it went into.
const MOST_PERCENT: u64 = 50;

/// Of fewer samples it may be chance that none of the callbacks has half.
const SATURATED_SAMPLES: u64 = 5;

/// Less time in the kernel is what every program spends there.
const KERNEL_PERCENT: u64 = 25;

/// Callbacks named of a turn of many.
const NAMED_CALLBACKS: usize = 5;

/// System calls that map memory, or give it back.
const OF_MEMORY: [&str; 6] = ["mmap", "munmap", "mremap", "madvise", "brk", "mprotect"];

/// Where a fault of the processor enters the kernel, on x86-64 and on arm64 (arch/x86/entry/entry_64.S,
/// arch/arm64/kernel/entry.S). Beginnings.
const FAULTS: [&str; 4] = ["asm_exc_page_fault", "exc_page_fault", "el0t_64_sync", "el0_da"];

pub fn explain<'a>(component: &Component<'a>, stall: &'a Stall) -> Explanation<'a> {
    let evidence = component.stacks.clone();
    if let Some((kind, is_one_function)) = saturated(&evidence, &stall.calls) {
        // To name the one that happened to be seen most would blame it for the others.
        let evidence = if is_one_function { evidence } else { Vec::new() };
        return Explanation::new(kind, Basis::Sampled, evidence, stall.tid);
    }
    // Which code it was is sampled, however exact the time is.
    let basis = if evidence.is_empty() { Basis::Missing } else { Basis::Sampled };
    let mut explanation = Explanation::new(kept(&evidence, stall), basis, evidence, stall.tid);
    if basis == Basis::Missing {
        let reason = "no sample fell into the running time";
        explanation.gaps.push(Gap::new("code that kept the CPU", reason));
    }
    explanation
}

/// One piece of code kept the CPU: what of that the kernel did, and what for.
fn kept(evidence: &[&Sampled], stall: &Stall) -> CauseKind {
    let all = samples(evidence.iter().copied());
    let of = |is: &dyn Fn(&Sampled) -> bool| {
        samples(evidence.iter().copied().filter(|sampled| is(sampled)))
    };
    let in_kernel = of(&|sampled| sampled.state == ThreadState::RunningKernel);
    let mut by_call: BTreeMap<&str, u64> = BTreeMap::new();
    for sampled in evidence {
        if let Some(name) = syscall(sampled) {
            *by_call.entry(name).or_default() += sampled.samples;
        }
    }
    let heaviest = by_call.into_iter().max_by_key(|(_, samples)| *samples);
    let is_notable = all > 0 && is_percent(in_kernel, all, KERNEL_PERCENT);
    let syscall_most = heaviest
        .filter(|(_, samples)| is_notable && is_percent(*samples, in_kernel, MOST_PERCENT))
        .map(|(name, _)| name.to_owned());
    let faults = of(&is_fault);
    let mapping = of(&|sampled| syscall(sampled).is_some_and(|name| OF_MEMORY.contains(&name)));
    let is_most = |part: u64| part > 0 && is_percent(part, all, MOST_PERCENT);
    let activity = if is_most(stall.ticks_collecting) {
        Some(ReportedActivity::GarbageCollection)
    } else if is_most(faults + mapping) {
        Some(if mapping > faults {
            ReportedActivity::Allocation
        } else {
            ReportedActivity::PageFaults
        })
    } else {
        None
    };
    CauseKind::Cpu {
        kernel_share: (all > 0).then(|| share(in_kernel, all)),
        syscall: syscall_most,
        activity,
        minor_faults: stall.turn.minor_faults,
        major_faults: stall.turn.major_faults,
        single_call: is_single(&stall.calls),
    }
}

fn samples<'a>(stacks: impl Iterator<Item = &'a Sampled>) -> u64 {
    stacks.map(|sampled| sampled.samples).sum()
}

/// To three digits.
fn share(part: u64, whole: u64) -> f64 {
    let thousandths = u128::from(part) * 1000 / u128::from(whole.max(1));
    f64::from(u16::try_from(thousandths).unwrap_or(1000)) / 1000.0
}

/// The system call that a tick found the thread in.
fn syscall(sampled: &Sampled) -> Option<&'static str> {
    let in_kernel = sampled.state == ThreadState::RunningKernel && !is_fault(sampled);
    in_kernel.then(|| syscall::name(sampled.registers.syscall)).flatten()
}

/// Whether the kernel was handling a fault of the thread's own access to memory.
fn is_fault(sampled: &Sampled) -> bool {
    let entry = sampled.stack.kernel.last().and_then(|frame| frame.function.as_deref());
    sampled.state == ThreadState::RunningKernel
        && entry.is_some_and(|name| FAULTS.iter().any(|fault| name.starts_with(fault)))
}

/// Whether most of it was one call of a callback, where that can be told.
fn is_single(calls: &Calls) -> Option<bool> {
    let is_known = calls.ticks >= SATURATED_SAMPLES;
    is_known.then(|| is_percent(calls.heaviest_ticks, calls.ticks, MOST_PERCENT))
}

/// That the loop ran several callbacks of which no call had most of the time, and whether one function
/// had it all the same, in many calls. Functions are told apart by the frame with which the application's
/// part of each callback begins (a request's handler), where the interpreter's show it.
fn saturated(evidence: &[&Sampled], calls: &Calls) -> Option<(CauseKind, bool)> {
    let mut callbacks: BTreeMap<(&str, &str), Seen> = BTreeMap::new();
    let mut whole = Seen::default();
    for sampled in evidence {
        let frames = &sampled.stack.frames;
        let inside = inside_callback(frames);
        let root = callback_root(&frames[..inside]);
        if inside == frames.len() {
            // Without the loop's own frame around it, nothing tells where a callback begins.
            return None;
        }
        // The loop itself, between two callbacks.
        let Some(root) = root else { continue };
        let (file, function) = (root.file.as_deref()?, root.function.as_deref()?);
        callbacks.entry((file, function)).or_default().add(sampled, root.line);
        whole.add(sampled, None);
    }
    let mut heaviest: Vec<_> = callbacks.iter().collect();
    heaviest.sort_by_key(|(_, seen)| std::cmp::Reverse((seen.time_ns, seen.samples)));
    let (_, first) = heaviest.first()?;
    let is_one_function = is_percent(first.time_ns, whole.time_ns, MOST_PERCENT);
    let are_many = match is_single(calls) {
        Some(is_single) => !is_single,
        // Of several functions, each was called for itself.
        None => !is_one_function,
    };
    if whole.samples < SATURATED_SAMPLES || !are_many {
        return None;
    }
    let named = heaviest.iter().take(NAMED_CALLBACKS).map(|((file, function), seen)| Callback {
        function: Some((*function).to_owned()),
        file: Some((*file).to_owned()),
        line: seen.line,
        samples: seen.samples,
    });
    let kind = CauseKind::Saturated {
        callbacks: named.collect(),
        callbacks_seen: heaviest.len() as u64,
        calls_seen: (calls.ticks > 0).then_some(calls.seen),
    };
    Some((kind, is_one_function))
}

/// What was seen of one callback.
#[derive(Debug, Default)]
struct Seen {
    samples: u64,
    time_ns: u64,
    /// Stacks come heaviest first: the line of the first.
    line: Option<u32>,
}

impl Seen {
    fn add(&mut self, sampled: &Sampled, line: Option<u32>) {
        self.samples += sampled.samples;
        self.time_ns = self.time_ns.saturating_add(sampled.time_ns);
        self.line = self.line.or(line);
    }
}

/// `on the CPU, 85 % of it in the kernel, in getdents64`
pub fn phrase(kind: &CauseKind) -> String {
    match kind {
        CauseKind::Saturated { callbacks, callbacks_seen, .. } => {
            saturated_phrase(callbacks, *callbacks_seen)
        }
        CauseKind::Cpu { activity: Some(ReportedActivity::GarbageCollection), .. } => {
            "on the CPU in the garbage collector".to_owned()
        }
        CauseKind::Cpu { kernel_share: Some(share), syscall, activity, .. }
            if *share * 100.0 >= KERNEL_PERCENT as f64 =>
        {
            let share = (share * 100.0).round();
            let what = match (activity, syscall) {
                (Some(ReportedActivity::PageFaults), _) => ", in page faults".to_owned(),
                (_, Some(syscall)) => format!(", in {syscall}"),
                _ => String::new(),
            };
            format!("on the CPU, {share} % of it in the kernel{what}")
        }
        _ => "on the CPU".to_owned(),
    }
}

/// `on the CPU in many short calls of parse (app.py)`, where it is one function, or most are its.
fn saturated_phrase(callbacks: &[Callback], seen: u64) -> String {
    let samples: u64 = callbacks.iter().map(|callback| callback.samples).sum();
    match callbacks {
        [first, ..]
            if seen == callbacks.len() as u64
                && is_percent(first.samples, samples, MOST_PERCENT) =>
        {
            let function = first.function.as_deref().unwrap_or("one callback");
            let file = first.file.as_deref().map(|file| format!(" ({})", basename(file)));
            let most = if seen == 1 { "" } else { ", most of them" };
            let file = file.unwrap_or_default();
            format!("on the CPU in many short calls{most} of {function}{file}")
        }
        _ => "on the CPU in many short callbacks".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{explain, phrase};
    use crate::report::cause::component::{Component, Nature};
    use crate::report::sample::{self, kernel, on_cpu, python};
    use crate::report::schema::stall::{CauseKind, ReportedActivity};
    use crate::turn::{Calls, Sampled, Stall, ThreadState};

    const GETDENTS64: i64 = 217;
    const MUNMAP: i64 = 11;

    fn user(samples: u64) -> Sampled {
        let frames = vec![
            python("parse", "/srv/app.py", 7),
            python("Handle._run", "/usr/lib/python3.11/asyncio/events.py", 80),
        ];
        Sampled { samples, ..on_cpu(frames, samples * 10) }
    }

    fn in_kernel(samples: u64, syscall: i64, entry: &str) -> Sampled {
        let mut sampled = Sampled { state: ThreadState::RunningKernel, ..user(samples) };
        sampled.registers.syscall = syscall;
        sampled.stack.kernel = vec![kernel("some_function"), kernel(entry)];
        sampled
    }

    fn explained(stall: &Stall) -> (CauseKind, usize) {
        let stacks: Vec<&Sampled> = stall.stacks.iter().collect();
        let component = Component { nature: Nature::Running, time_ns: 100, stacks };
        let explanation = explain(&component, stall);
        (explanation.kind, explanation.evidence.len())
    }

    fn of(stacks: Vec<Sampled>) -> Stall {
        Stall { stacks, ..sample::stall() }
    }

    /// The kernel's part is told where it is notable, and what it did where one thing was most of that.
    #[test]
    fn kernel_parts() {
        let entry = "entry_SYSCALL_64_after_hwframe";
        let fault = "asm_exc_page_fault";
        let table = [
            (vec![user(9), in_kernel(1, GETDENTS64, entry)], "on the CPU"),
            (
                vec![user(1), in_kernel(9, GETDENTS64, entry)],
                "on the CPU, 90 % of it in the kernel, in getdents64",
            ),
            (
                vec![user(6), in_kernel(4, -1, "asm_sysvec_apic_timer_interrupt")],
                "on the CPU, 40 % of it in the kernel",
            ),
            (
                vec![user(3), in_kernel(7, -1, fault)],
                "on the CPU, 70 % of it in the kernel, in page faults",
            ),
            // A buffer that a system call touches first: what is dear is the memory.
            (
                vec![user(3), in_kernel(5, -1, fault), in_kernel(2, MUNMAP, entry)],
                "on the CPU, 70 % of it in the kernel, in page faults",
            ),
            (
                vec![user(3), in_kernel(7, MUNMAP, entry)],
                "on the CPU, 70 % of it in the kernel, in munmap",
            ),
        ];
        for (stacks, words) in table {
            assert_eq!(phrase(&explained(&of(stacks)).0), words);
        }
    }

    /// Faults, mapping and the collector are activities where they are most of it.
    #[test]
    fn activities() {
        let activity = |stall: &Stall| match explained(stall).0 {
            CauseKind::Cpu { activity, minor_faults, .. } => (activity, minor_faults),
            other => panic!("{other:?}"),
        };
        let fault = |samples| in_kernel(samples, -1, "asm_exc_page_fault");
        let mut faulting = of(vec![user(4), fault(6)]);
        faulting.turn.minor_faults = 4096;
        assert_eq!(activity(&faulting), (Some(ReportedActivity::PageFaults), 4096));
        assert_eq!(activity(&of(vec![user(6), fault(4)])).0, None);
        let mapping = of(vec![user(4), in_kernel(6, MUNMAP, "entry_SYSCALL_64_after_hwframe")]);
        assert_eq!(activity(&mapping).0, Some(ReportedActivity::Allocation));
        let collecting = Stall { ticks_collecting: 5, ..of(vec![user(10)]) };
        assert_eq!(activity(&collecting).0, Some(ReportedActivity::GarbageCollection));
        let collecting = Stall { ticks_collecting: 4, ..of(vec![user(10)]) };
        assert_eq!(activity(&collecting).0, None);
    }

    /// One function in many calls is not one call: that it is blamed says so, and only where the calls
    /// were told apart.
    #[test]
    fn calls_of_one_function() {
        let with = |ticks, seen, heaviest_ticks| {
            let calls = Calls { ticks, seen, heaviest_ticks };
            explained(&Stall { calls, ..of(vec![user(20)]) })
        };
        let (kind, evidence) = with(18, 18, 1);
        assert_eq!(phrase(&kind), "on the CPU in many short calls of parse (app.py)");
        assert_eq!(evidence, 1, "the function is named");
        let CauseKind::Saturated { callbacks_seen: 1, calls_seen: Some(18), .. } = kind else {
            panic!("{kind:?}");
        };
        let single = |kind: CauseKind| match kind {
            CauseKind::Cpu { single_call, .. } => single_call,
            other => panic!("{other:?}"),
        };
        assert_eq!(single(with(18, 1, 18).0), Some(true));
        assert_eq!(single(with(18, 3, 10).0), Some(true));
        assert_eq!(single(with(4, 4, 1).0), None, "too few to tell");
        assert_eq!(single(with(0, 0, 0).0), None);
    }

    /// One call may be seen in several functions, as a coroutine that awaits them one after the other is:
    /// it is many calls only where they were not told apart.
    #[test]
    fn calls_of_several_functions() {
        let of_function = |function: &str| {
            let frames = vec![
                python(function, "/srv/app.py", 7),
                python("Handle._run", "/usr/lib/python3.11/asyncio/events.py", 80),
            ];
            Sampled { samples: 6, ..on_cpu(frames, 60) }
        };
        let with = |ticks, seen, heaviest_ticks| {
            let stacks = ["load", "parse", "store"].map(of_function).to_vec();
            let calls = Calls { ticks, seen, heaviest_ticks };
            explained(&Stall { calls, ..of(stacks) }).0
        };
        assert_eq!(phrase(&with(0, 0, 0)), "on the CPU in many short callbacks");
        assert_eq!(phrase(&with(18, 18, 1)), "on the CPU in many short callbacks");
        let CauseKind::Cpu { single_call: Some(true), .. } = with(18, 1, 18) else {
            panic!("{:?}", with(18, 1, 18));
        };
    }
}
