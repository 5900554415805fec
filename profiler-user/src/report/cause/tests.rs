//! Situations to causes, words, confidences, and whom they blame.

use std::collections::BTreeMap;

use profiler_ebpf::turn::{START_UNKNOWN, Turn};

use super::judge;
use crate::call::{Call, Descriptor, Kind, Timeout};
use crate::environment::{self, Cpus, Environment, Growth, Pressure, PressureOf, Quota};
use crate::gap::Gap;
use crate::report::sample::{self, blocked_in, javascript, kernel, native, on_cpu, python};
use crate::report::schema::stall::{Cause, CauseKind, Confidence, ReportedWaits};
use crate::turn::contention::Contention;
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
    let slow_read = with_kernel(blocked_in(0, [9, 0, 0, 0, 0, 0], 95), &["io_schedule_timeout"]);
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
        ([5, 95, 0, 0], call(230, [1, 0, 9, 0, 0, 0], 95), "asleep in clock_nanosleep", Certain),
        ([5, 95, 0, 0], call(23, [0, 0, 0, 0, 9, 0], 95), "asleep in select", Certain),
        (
            [5, 95, 0, 0],
            call(202, [0x7f10, 9, 0, 0, 0, 0], 95),
            "waiting for another thread (futex)",
            Likely,
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
    let descriptors =
        BTreeMap::from([(7, "tcp 127.0.0.1:8081".to_owned()), (9, "/var/lib/x.json".to_owned())]);
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
    let also: Vec<_> =
        cause.also.iter().map(|part| (part.summary.as_str(), part.time_ns, part.times)).collect();
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
    let environment = Environment { quota, ..stall.environment.clone() };
    let contention = Contention { idle_ns: 75 * MS, ..Contention::default() };
    Stall { environment, contention, ..stall }
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
    stall.environment.quota_gap = Some(Gap::new("cpu_quota", "not mounted"));
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
    stall.contention.idle_ns = 10 * MS;
    assert_eq!(confidence(&stall), Confidence::Likely);
    stall.environment.cpus = Some(Cpus { allowed: 1, online: 1, list: "0".to_owned() });
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
    let same =
        told(vec![socket("tcp a:1", 7, 40), socket("tcp a:1", 8, 30), socket("tcp b:1", 7, 30)]);
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
        stall.environment.stolen = stolen;
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
    let gdb = environment::Tracer { pid: 4711, name: Some("gdb".to_owned()) };
    traced.environment.tracer = Some(gdb);
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
    in_place.environment.frozen_ns = 65;
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
    stall.environment.pressure = Some(pressure);
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

/// Short waits are told as many, with how long each was: their number is the turn's own where all were
/// alike, and an estimate where they were of several kinds. What is sampled is likely at most, unless
/// most was captured itself.
#[test]
fn short_waits() {
    use Confidence::{Certain, Likely};
    let recv = || sample::in_short_waits(RECVFROM, [7, 0, 0, 0, 0, 0], 900);
    let told = |stall: &Stall| {
        let cause = judge(stall, &BTreeMap::new()).cause;
        let ReportedWaits { count, mean_ns, is_estimate } = cause.waits.unwrap();
        assert_eq!(cause.times, None);
        (count, mean_ns, is_estimate, cause.confidence)
    };
    let mut alike = stall([30 * MS, 271 * MS, 0, 0], vec![recv()]);
    alike.turn.voluntary = 903;
    assert_eq!(told(&alike), (903, 270 * MS / 903, false, Likely), "the last are counted, too");
    alike.turn.voluntary = 2000;
    assert_eq!(told(&alike).0, 900, "those of another kind are not");
    alike.stacks[0].waits.others_ns = 100 * MS;
    assert_eq!(told(&alike).3, Certain, "most was seen");

    // A slow one among them is what matters.
    let mut slow = recv();
    (slow.time_ns, slow.waits.longest_ns) = (2000 * MS, 1700 * MS);
    let cause = judge(&stall([0, 2000 * MS, 0, 0], vec![slow]), &BTreeMap::new()).cause;
    assert_eq!((cause.times, cause.waits, cause.confidence), (Some(900), None, Certain));

    // Of 1,200 waits that were counted, 900 were of the one kind as their lengths have it.
    let mut sync = sample::in_short_waits(FSYNC, [9, 0, 0, 0, 0, 0], 300);
    sync.waits.counted = 450;
    let mut receive = recv();
    receive.waits.counted = 750;
    let mixed = stall([0, 360 * MS, 0, 0], vec![receive, sync]);
    assert_eq!(told(&mixed), (900, 300_000, true, Likely));
    let also = judge(&mixed, &BTreeMap::new()).cause.also;
    let also: Vec<_> =
        also.iter().map(|part| (part.time_ns / MS, part.waits.unwrap().count)).collect();
    assert_eq!(also, [(90, 300)]);
}

/// How long one of many short waits might have lasted is not said in words.
#[test]
fn short_waits_without_a_timeout() {
    let on = |mut sampled: Sampled| {
        let descriptor = Some(Descriptor::new(7, Kind::Socket, "tcp 127.0.0.1:6379"));
        let timeout = Some(Timeout::None);
        let call = Call { is_seen: true, descriptor, timeout, ..Call::default() };
        sampled.call = Some(Box::new(call));
        let stall = stall([0, 270 * MS, 0, 0], vec![sampled]);
        judge(&stall, &BTreeMap::new()).cause.summary
    };
    let words = "blocked in recvfrom on tcp 127.0.0.1:6379";
    assert_eq!(on(sample::in_short_waits(RECVFROM, [7; 6], 900)), words);
    let long = on(blocked_in(RECVFROM, [7; 6], 270 * MS));
    assert_eq!(long, format!("{words}, without a timeout"));
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
            let mut frames = vec![python("step", "/srv/app.py", 3), python(root, "/srv/app.py", 9)];
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
    let kind = CauseKind::Gil { holder_thread: None, holders: Vec::new(), stop_the_world: None };
    assert_eq!(verdict.cause.kind, kind);
    assert!(verdict.evidence.is_empty());
    assert!(verdict.gaps[0].0.starts_with("holder_thread"), "{:?}", verdict.gaps);

    let seen = on_cpu(vec![python("match_report", "/srv/app.py", 7)], 90);
    let held = Lock::Gil;
    stall.holders.push(Holder { tid: 77, name: None, held, seen: seen.clone(), collecting: 0 });
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
    let kind = CauseKind::Lock {
        address,
        owner_thread: None,
        holders,
        woken_by: None,
        awaited: None,
        stop_the_world: None,
    };
    assert_eq!(verdict.cause.kind, kind);
}
