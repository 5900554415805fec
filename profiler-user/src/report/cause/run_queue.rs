//! Time in which the thread was ready and had no CPU to a cause: who had it, and in what words that is said.

use profiler_ebpf::limits::MAX_WAITERS;

use super::component::Component;
use super::explanation::{Basis, Explanation};
use crate::gap::Gap;
use crate::report::schema::stall::{CauseKind, Preemptor};
use crate::report::units::{is_percent, milliseconds, short_milliseconds};
use crate::turn::contention::{Contender, Contention};
use crate::turn::{End, Stall, ThreadState};

/// Whoever had this much of the time had most of it; a CPU that idled for so long is what to look at.
const MOSTLY_PERCENT: u64 = 50;

/// Whoever had this much of the time is named in the summary.
const MUCH_PERCENT: u64 = 25;

/// Less that is known of nobody is not worth a word: switches take a moment themselves.
const UNKNOWN_PERCENT: u64 = 1;

pub fn explain<'a>(component: &Component<'a>, stall: &Stall) -> Explanation<'a> {
    let (turn, contention) = (&stall.turn, &stall.contention);
    let whole_ns = turn.runnable_ns;
    let whole_ms = short_milliseconds(whole_ns);
    let preemptors = preemptors(contention);
    let unknown_ns = turn.runnable_ns.saturating_sub(contention.sum_ns());
    let mut gaps = missing(stall);
    if is_percent(unknown_ns, turn.runnable_ns, UNKNOWN_PERCENT) {
        let reason = format!(
            "who had the CPU for {} of {whole_ms} ms is not known: the thread was moved to another CPU \
             meanwhile, nothing was switched there since it was woken, or more than {MAX_WAITERS} \
             loops waited there",
            short_milliseconds(unknown_ns)
        );
        gaps.push(Gap::new("preempted_by", reason));
    }
    if is_percent(contention.others_ns, turn.runnable_ns, UNKNOWN_PERCENT) {
        let others_ms = short_milliseconds(contention.others_ns);
        let reason =
            format!("more tasks ran than are told apart: {others_ms} ms are of the others");
        gaps.push(Gap::new("preempted_by", reason));
    }
    let throttled_ns = whole_ns.saturating_sub(component.time_ns);
    if is_percent(throttled_ns, whole_ns, UNKNOWN_PERCENT) {
        let reason = format!(
            "for {} of {whole_ms} ms the quota was used up, and the kernel does not say when: these times \
             are of both",
            short_milliseconds(throttled_ns)
        );
        gaps.push(Gap::new("preempted_by", reason));
    }
    let cpus = stall.environment.cpus.as_ref();
    let confined = cpus.filter(|cpus| cpus.allowed < cpus.online);
    let kind = CauseKind::RunQueue {
        preempted_ns: turn.preempted_ns,
        woken_ns: turn.runnable_ns.saturating_sub(turn.preempted_ns),
        idle_ns: contention.idle_ns,
        preempted_by: (contention.sum_ns() > 0).then_some(preemptors),
        allowed_cpus: cpus.map(|cpus| cpus.allowed),
        confined_to: confined.map(|cpus| cpus.list.clone()),
    };
    // No line of the program is to blame for what others do with its CPU: it could have been any.
    let basis = if may_be_quota(stall) { Basis::Sampled } else { Basis::Measured };
    Explanation { gaps, ..Explanation::new(kind, basis, Vec::new(), stall.tid) }
}

/// Whether the quota may have been used up without having been counted.
fn may_be_quota(stall: &Stall) -> bool {
    stall.environment.quota_gap.is_some()
        || (waits_still(stall) && stall.environment.quota.is_some())
}

fn waits_still(stall: &Stall) -> bool {
    stall.end == End::NotYet && stall.now == Some(ThreadState::Runnable)
}

/// What is not known of the thread's right to a CPU.
fn missing(stall: &Stall) -> Vec<Gap> {
    let environment = &stall.environment;
    let mut gaps: Vec<Gap> = environment.quota_gap.iter().cloned().collect();
    if environment.cpus.is_none() {
        gaps.push(Gap::new("allowed_cpus", "the thread has exited, or its status is hidden"));
    }
    if waits_still(stall) && environment.quota.is_some() {
        let reason = "the kernel counts a wait for the quota's next period when it ends";
        gaps.push(Gap::new("throttled_ns", reason));
    }
    gaps
}

/// Who had the CPU, by process, longest first.
fn preemptors(contention: &Contention) -> Vec<Preemptor> {
    let mut pids: Vec<u32> = contention.ran.iter().map(|ran| ran.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    let of_process = |pid: u32| {
        let threads: Vec<&Contender> = contention.ran.iter().filter(|ran| ran.pid == pid).collect();
        let process = contention.processes.get(&pid);
        let longest = threads.iter().max_by_key(|ran| ran.time_ns);
        let of_thread = longest.and_then(|ran| ran.name.clone());
        let of_process = process.and_then(|process| process.name.clone());
        let one = match threads.as_slice() {
            [one] => Some(one.tid),
            _ => None,
        };
        Preemptor {
            pid,
            tid: one,
            name: if one.is_some() { of_thread } else { of_process.or(of_thread) },
            command: process.and_then(|process| process.command.clone()),
            container_id: process.and_then(|process| process.container_id.clone()),
            time_ns: threads.iter().map(|ran| ran.time_ns).fold(0, u64::saturating_add),
            is_target: pid == contention.target,
        }
    };
    let mut preemptors: Vec<Preemptor> = pids.into_iter().map(of_process).collect();
    preemptors.sort_by_key(|preemptor| std::cmp::Reverse(preemptor.time_ns));
    preemptors
}

/// `ready, but without a CPU: preempted 410 ms, mostly by stress-ng-cpu[4711] (380 ms)`
pub fn phrase(kind: &CauseKind) -> String {
    let CauseKind::RunQueue { preempted_ns, woken_ns, idle_ns, preempted_by, confined_to, .. } =
        kind
    else {
        return String::new();
    };
    let whole_ns = preempted_ns.saturating_add(*woken_ns);
    let (waited, by) = if preempted_ns >= woken_ns {
        (format!("preempted {} ms", milliseconds(*preempted_ns)), "by")
    } else {
        (format!("woken, but waited {} ms for one", milliseconds(*woken_ns)), "behind")
    };
    let preemptors = preempted_by.as_deref().unwrap_or_default();
    let whose = if *idle_ns > 0 && is_percent(*idle_ns, whole_ns, MOSTLY_PERCENT) {
        format!(", while the CPU idled for {} ms", milliseconds(*idle_ns))
    } else {
        let has_much = |it: &&Preemptor| is_percent(it.time_ns, whole_ns, MUCH_PERCENT);
        let named: Vec<String> = preemptors.iter().filter(has_much).map(words).collect();
        match (named.as_slice(), preemptors) {
            (_, []) => String::new(),
            ([one], [longest, ..]) if is_percent(longest.time_ns, whole_ns, MOSTLY_PERCENT) => {
                format!(", mostly {by} {one}")
            }
            ([] | [_], [longest, ..]) => {
                let count = preemptors.len();
                format!(", {by} {count} processes, longest {by} {}", words(longest))
            }
            ([others @ .., last], _) => format!(", {by} {} and {last}", others.join(", ")),
        }
    };
    let confined = confined_to.as_deref().map(confinement).unwrap_or_default();
    format!("ready, but without a CPU{confined}: {waited}{whose}")
}

/// `, confined to CPU 0`
fn confinement(list: &str) -> String {
    let several = if list.contains([',', '-']) { "s" } else { "" };
    format!(", confined to CPU{several} {list}")
}

/// `stress-ng-cpu[4711] (380 ms)`
fn words(preemptor: &Preemptor) -> String {
    let time_ms = milliseconds(preemptor.time_ns);
    if preemptor.is_target {
        // Not what else the machine is busy with: a collector's or a pool's.
        return format!("its own other threads ({time_ms} ms)");
    }
    let name = preemptor.name.as_deref().unwrap_or("process ");
    format!("{name}[{}] ({time_ms} ms)", preemptor.pid)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use profiler_ebpf::turn::Turn;

    use crate::environment::Cpus;
    use crate::process::other_process::OtherProcess;
    use crate::report::cause::judge;
    use crate::report::sample;
    use crate::report::schema::stall::CauseKind;
    use crate::turn::Stall;
    use crate::turn::contention::{Contender, Contention};

    const MS: u64 = 1_000_000;

    fn ran(pid: u32, tid: u32, name: &str, time_ms: u64) -> Contender {
        Contender { pid, tid, name: Some(name.to_owned()), time_ns: time_ms * MS }
    }

    fn stall(preempted_ms: u64, woken_ms: u64, idle_ms: u64, ran: Vec<Contender>) -> Stall {
        let turn = Turn {
            running_ns: 20 * MS,
            runnable_ns: (preempted_ms + woken_ms) * MS,
            preempted_ns: preempted_ms * MS,
            ..Turn::default()
        };
        let name = Some("stress-ng".to_owned());
        let process = OtherProcess {
            name,
            command: Some("stress-ng -c 2".to_owned()),
            ..OtherProcess::default()
        };
        let processes = BTreeMap::from([(4711, process)]);
        let idle_ns = idle_ms * MS;
        let contention =
            Contention { ran, processes, idle_ns, target: 4242, ..Contention::default() };
        let mut stall = Stall { turn, stacks: Vec::new(), contention, ..sample::stall() };
        stall.environment.cpus = Some(Cpus { allowed: 8, online: 8, list: "0-7".to_owned() });
        stall
    }

    fn told(stall: &Stall) -> (String, Vec<String>) {
        let verdict = judge(stall, &BTreeMap::new());
        assert!(verdict.evidence.is_empty(), "no line is to blame");
        let gaps = verdict.gaps.into_iter().map(|gap| gap.0);
        (verdict.cause.summary, gaps.collect())
    }

    /// How the CPU was lost and who had it most, in words; nothing is missing where all is known.
    #[test]
    fn words() {
        let hog = |time_ms| ran(4711, 4712, "stress-ng-cpu", time_ms);
        let small = |time_ms| ran(50, 50, "cron", time_ms);
        let table = [
            (
                stall(410, 0, 0, vec![small(30), hog(380)]),
                "preempted 410 ms, mostly by stress-ng-cpu[4711] (380 ms)",
            ),
            (
                stall(0, 200, 0, vec![hog(200)]),
                "woken, but waited 200 ms for one, mostly behind stress-ng-cpu[4711] (200 ms)",
            ),
            (stall(100, 0, 90, vec![hog(10)]), "preempted 100 ms, while the CPU idled for 90 ms"),
            (
                stall(100, 0, 20, vec![hog(40), small(40)]),
                "preempted 100 ms, by cron[50] (40 ms) and stress-ng-cpu[4711] (40 ms)",
            ),
            (
                stall(100, 0, 0, vec![ran(4242, 4243, "node", 60), small(40)]),
                "preempted 100 ms, by its own other threads (60 ms) and cron[50] (40 ms)",
            ),
            (
                stall(100, 0, 40, vec![hog(20), small(20), ran(51, 51, "ls", 20)]),
                "preempted 100 ms, by 3 processes, longest by cron[50] (20 ms)",
            ),
        ];
        for (stall, expected) in table {
            let (summary, gaps) = told(&stall);
            assert_eq!(summary, format!("ready, but without a CPU: {expected}"));
            assert!(gaps.is_empty(), "{gaps:?}");
        }
    }

    /// Which CPUs it may use is told where they are not all.
    #[test]
    fn confined() {
        let mut stall = stall(100, 0, 0, vec![ran(50, 50, "cron", 100)]);
        for (list, expected) in [("0", "CPU 0"), ("0-1,4", "CPUs 0-1,4")] {
            stall.environment.cpus = Some(Cpus { allowed: 1, online: 8, list: list.to_owned() });
            let words = format!(
                "ready, but without a CPU, confined to {expected}: preempted 100 ms, mostly by \
                 cron[50] (100 ms)"
            );
            assert_eq!(told(&stall).0, words);
        }
    }

    /// The times of how it was lost add up, and the threads of one process are one.
    #[test]
    fn processes() {
        let threads =
            vec![ran(50, 50, "cron", 30), ran(4711, 4712, "a", 20), ran(4711, 4713, "b", 25)];
        let stall = stall(60, 15, 0, threads);
        let CauseKind::RunQueue { preempted_ns, woken_ns, idle_ns, preempted_by, .. } =
            judge(&stall, &BTreeMap::new()).cause.kind
        else {
            panic!("another cause")
        };
        assert_eq!((preempted_ns + woken_ns, idle_ns), (stall.turn.runnable_ns, 0));
        let preemptors = preempted_by.unwrap();
        let seen: Vec<_> = preemptors
            .iter()
            .map(|it| (it.pid, it.tid, it.name.as_deref().unwrap(), it.time_ns / MS))
            .collect();
        assert_eq!(seen, [(4711, None, "stress-ng", 45), (50, Some(50), "cron", 30)]);
        assert_eq!(preemptors[0].command.as_deref(), Some("stress-ng -c 2"));
    }

    /// Time that nobody is known to have had is said to be so; if all of it is, nobody is named.
    #[test]
    fn unknown_time() {
        let (_, gaps) = told(&stall(100, 0, 0, vec![ran(50, 50, "cron", 90)]));
        assert_eq!(gaps.len(), 1);
        assert!(gaps[0].contains("10 of 100 ms"), "{gaps:?}");
        let nobody = stall(100, 0, 0, Vec::new());
        let verdict = judge(&nobody, &BTreeMap::new());
        assert_eq!(verdict.cause.summary, "ready, but without a CPU: preempted 100 ms");
        assert!(matches!(verdict.cause.kind, CauseKind::RunQueue { preempted_by: None, .. }));
    }
}
