//! What a line says to its one sentence for a person.

use super::application::basename;
use super::facts::ProcessFacts;
use super::schema::session::{EndReason, Totals};
use super::schema::stall::{Activity, Cause, CauseKind, Component, Culprit, Stall};
use crate::turn::Moment;

/// Other parts of a stall are said where they are at least this fraction of the cause's.
const SAID_FRACTION: u64 = 4;

/// Fewer waits may be one that matters, and what came before or after it.
const MANY_WAITS: u64 = 3;

/// `uvicorn[4242]: event loop stalled 5012 ms, blocked in recvfrom, at charge_payment (app.py:31)`
pub fn stall(
    process: &ProcessFacts,
    subject: &str,
    moment: Moment,
    stall: &Stall,
    cause: &Cause,
    culprit: Option<&Culprit>,
) -> String {
    let duration_ms = milliseconds(stall.duration_ns);
    let is_over = moment == Moment::End;
    let is_bound = !stall.start_known || (is_over && !stall.end_known);
    let at_least = if is_bound { "at least " } else { "" };
    let duration = if is_over {
        format!("stalled {at_least}{duration_ms} ms")
    } else {
        format!("stalled for {at_least}{duration_ms} ms so far")
    };
    let at = at(cause);
    let culprit = culprit.filter(|culprit| !is_in_summary(cause, culprit));
    let place = culprit.map(|culprit| format!(", {at} {}", place(culprit))).unwrap_or_default();
    let (part, rest) = mixture(cause);
    let (victims, waits) = (victims(stall), waits(&cause.kind, cause.times));
    let summary = &cause.summary;
    format!("{}: {subject} {duration}, {part}{summary}{waits}{place}{rest}{victims}", name(process))
}

/// `, in at least 140 waits`: a hundred queries for one page are another fault than a slow one. A wait for
/// the interpreter's lock is cut into slices of 5 ms, and locks are tried again and again.
fn waits(kind: &CauseKind, times: Option<u64>) -> String {
    let is_call = match kind {
        CauseKind::Syscall { call, .. } => call.purpose.is_none(),
        CauseKind::Sleep { purpose, .. } => purpose.is_none(),
        CauseKind::Disk { .. } => true,
        _ => false,
    };
    match times.filter(|times| is_call && *times >= MANY_WAITS) {
        Some(times) => format!(", in at least {times} waits"),
        None => String::new(),
    }
}

/// `; 99 connections and 12 events had to wait`. A single event is why most turns begin.
fn victims(stall: &Stall) -> String {
    let connections = stall.waiting_connections.iter().map(|queue| queue.waiting).sum();
    let events = stall.ready_events.filter(|events| *events > 1).unwrap_or(0);
    let counted = |count: u64, what: &str| match count {
        0 => None,
        1 => Some(format!("1 {what}")),
        _ => Some(format!("{count} {what}s")),
    };
    match (counted(connections, "connection"), counted(events, "event")) {
        (None, None) => String::new(),
        (Some(one), None) | (None, Some(one)) => format!("; {one} had to wait"),
        (Some(connections), Some(events)) => format!("; {connections} and {events} had to wait"),
    }
}

/// Of many short calls the summary names the function already.
fn is_in_summary(cause: &Cause, culprit: &Culprit) -> bool {
    let CauseKind::Saturated { callbacks, .. } = &cause.kind else { return false };
    callbacks.first().is_some_and(|first| {
        first.function == culprit.function
            && first.file == culprit.file
            && first
                .function
                .as_ref()
                .is_some_and(|name| cause.summary.contains(&format!(" of {name}")))
    })
}

/// A line that allocates sets off a collection; what there is to collect, all of the program has made.
fn at(cause: &Cause) -> &'static str {
    match cause.kind {
        CauseKind::Cpu { activity: Some(Activity::GarbageCollection), .. } => "set off at",
        _ => "at",
    }
}

/// What of the time the cause stands for, and what stands for the rest, where it is a mixture:
/// `300 ms of it ` and `; also 120 ms on the CPU at parse (app.py:17)`.
fn mixture(cause: &Cause) -> (String, String) {
    let is_said = |part: &&Component| part.time_ns >= cause.time_ns / SAID_FRACTION;
    let of = |part: &Component| {
        let place = part.culprit.as_ref().map(place).map(|place| format!(" at {place}"));
        let place = place.unwrap_or_default();
        let waits = waits(&part.kind, part.times);
        format!("{} ms {}{waits}{place}", milliseconds(part.time_ns), part.summary)
    };
    let others: Vec<String> = cause.also.iter().filter(is_said).map(of).collect();
    if others.is_empty() {
        return (String::new(), String::new());
    }
    let part = format!("{} ms of it ", milliseconds(cause.time_ns));
    (part, format!("; also {}", others.join(", ")))
}

/// `stalltrace 0.1.0 watches uvicorn[4242] for event loop stalls past 100 ms`
pub fn session_start(process: &ProcessFacts, version: &str, threshold_ns: u64) -> String {
    let threshold_ms = milliseconds(threshold_ns);
    let process = name(process);
    format!("stalltrace {version} watches {process} for event loop stalls past {threshold_ms} ms")
}

/// `uvicorn[4242]: 3 of 1200 turns stalled, 5212 ms in all, the longest 5012 ms; the target exited after 30.0 s`
pub fn session_end(
    process: &ProcessFacts,
    reason: EndReason,
    watched_ns: u64,
    totals: &Totals,
) -> String {
    let Totals { turns, stalls, stalled_ns, longest_ns } = *totals;
    let seen = if stalls == 0 {
        format!("none of {turns} turns stalled")
    } else {
        let (all_ms, longest_ms) = (milliseconds(stalled_ns), milliseconds(longest_ns));
        format!(
            "{stalls} of {turns} turns stalled, {all_ms} ms in all, the longest {longest_ms} ms"
        )
    };
    let end = match reason {
        EndReason::Detached => "detached",
        EndReason::TargetExited => "the target exited",
        EndReason::DurationOver => "the time to watch was over",
        EndReason::Signal => "stopped by a signal",
    };
    let watched_s = milliseconds(watched_ns) / 1000;
    let tenths = milliseconds(watched_ns) % 1000 / 100;
    format!("{}: {seen}; {end} after {watched_s}.{tenths} s", name(process))
}

/// `uvicorn[4242]`
pub fn name(process: &ProcessFacts) -> String {
    format!("{}[{}]", process.name, process.pid)
}

/// `charge_payment (app.py:31)`: as much of it as is known.
pub fn place(culprit: &Culprit) -> String {
    let function = culprit.function.as_deref().unwrap_or("unnamed code");
    let file = culprit.file.as_deref().map(basename);
    let module = culprit.module.as_deref().map(basename);
    match (file, culprit.line, module) {
        (Some(file), Some(line), _) => format!("{function} ({file}:{line})"),
        (Some(file), None, _) => format!("{function} ({file})"),
        (None, _, Some(module)) => format!("{function} ({module})"),
        (None, _, None) => function.to_owned(),
    }
}

/// Rounded to the nearest.
pub fn milliseconds(ns: u64) -> u64 {
    const NS_PER_MS: u64 = 1_000_000;
    ns / NS_PER_MS + u64::from(ns % NS_PER_MS >= NS_PER_MS / 2)
}

#[cfg(test)]
mod tests {
    use super::{EndReason, Totals, is_in_summary, milliseconds, place, session_end};
    use crate::report::sample;
    use crate::report::schema::stall::{Callback, Cause, CauseKind, Confidence, Culprit, Language};
    use crate::turn::{End, Moment, Queue, Stall};

    fn message(moment: Moment, stall: &Stall) -> String {
        sample::report(moment, stall).common().message.clone()
    }

    /// Each moment of a stall has its sentence.
    #[test]
    fn moments() {
        let rest = "blocked in recvfrom on tcp 127.0.0.1:8081, at charge_payment (app.py:31)";
        assert_eq!(
            message(Moment::Open, &sample::open_stall()),
            format!("uvicorn[4242]: event loop stalled for 103 ms so far, {rest}")
        );
        assert_eq!(
            message(Moment::End, &sample::stall()),
            format!("uvicorn[4242]: event loop stalled 5012 ms, {rest}; 17 events had to wait")
        );
    }

    /// A mixture says how much of the time the cause stands for, and names the rest.
    #[test]
    fn mixtures() {
        let mut stall = sample::stall();
        stall.turn.running_ns = 2_000_000_000;
        let rest = "5000 ms of it blocked in recvfrom on tcp 127.0.0.1:8081, \
                    at charge_payment (app.py:31); also 2000 ms on the CPU at parse (app.py:17); \
                    17 events had to wait";
        let expected = format!("uvicorn[4242]: event loop stalled 7000 ms, {rest}");
        assert_eq!(message(Moment::End, &stall), expected);
    }

    /// A part without a CPU is not said to be at a line: that would stand behind who had it.
    #[test]
    fn parts_from_outside() {
        let mut stall = sample::stall();
        stall.turn.runnable_ns = 2_000_000_000;
        let message = message(Moment::End, &stall);
        let (_, rest) = message.split_once("; also ").unwrap();
        let expected = "2000 ms ready, but without a CPU: woken, but waited 2000 ms for one; \
                        17 events had to wait";
        assert_eq!(rest, expected);
    }

    /// Whoever had to wait is counted; a single event is not news.
    #[test]
    fn who_had_to_wait() {
        let told = |ready_events, waiting: &[u64]| {
            let address = "0.0.0.0:80".to_owned();
            let queue = |waiting: &u64| Queue { address: address.clone(), waiting: *waiting };
            let queues = waiting.iter().map(queue).collect();
            let stall = Stall { ready_events, queues, ..sample::stall() };
            let message = message(Moment::End, &stall);
            message.split_once("; ").map(|(_, victims)| victims.to_owned())
        };
        assert_eq!(told(Some(1), &[]), None);
        assert_eq!(told(None, &[1]).as_deref(), Some("1 connection had to wait"));
        assert_eq!(told(Some(2), &[]).as_deref(), Some("2 events had to wait"));
        let both = told(Some(12), &[90, 9]);
        assert_eq!(both.as_deref(), Some("99 connections and 12 events had to wait"));
    }

    /// Many waits for the same are told from a long one.
    #[test]
    fn many_waits() {
        let mut stall = sample::stall();
        for sampled in &mut stall.stacks {
            sampled.samples = 140;
        }
        let message = message(Moment::End, &stall);
        assert!(message.contains("127.0.0.1:8081, in at least 140 waits, at charge"), "{message}");
    }

    /// The function of many short calls is named once.
    #[test]
    fn named_once() {
        let name = |text: &str| Some(text.to_owned());
        let (function, file, line) = (name("parse"), name("/srv/app.py"), Some(7));
        let first = Callback { function, file, line, samples: 9 };
        let kind =
            CauseKind::Saturated { callbacks: vec![first], callbacks_seen: 1, calls_seen: Some(9) };
        let summary = "on the CPU in many short calls of parse (app.py)".to_owned();
        let (confidence, also) = (Confidence::Likely, Vec::new());
        let cause = Cause { kind, summary, confidence, time_ns: 9, times: None, also };
        let culprit = |function: &str| Culprit {
            function: name(function),
            file: name("/srv/app.py"),
            line: Some(7),
            module: None,
            language: Language::Python,
            thread: 1,
        };
        assert!(is_in_summary(&cause, &culprit("parse")));
        assert!(!is_in_summary(&cause, &culprit("other")));
    }

    /// Where beginning or end was not seen, the duration is called a lower bound.
    #[test]
    fn lower_bounds() {
        let mut stall = sample::stall();
        stall.end = End::Unseen("detached".to_owned());
        assert!(message(Moment::End, &stall).contains("stalled at least 5012 ms, "));
        let mut stall = sample::open_stall();
        stall.turn.flags = profiler_ebpf::turn::START_UNKNOWN;
        assert!(message(Moment::Open, &stall).contains("stalled for at least 103 ms so far, "));
    }

    /// A place says what is known and nothing else.
    #[test]
    fn places() {
        let culprit = |file: Option<&str>, line, module: Option<&str>| Culprit {
            function: Some("f".to_owned()),
            file: file.map(str::to_owned),
            line,
            module: module.map(str::to_owned),
            language: Language::Native,
            thread: 1,
        };
        assert_eq!(place(&culprit(Some("/src/a.c"), Some(3), Some("/bin/b"))), "f (a.c:3)");
        assert_eq!(place(&culprit(Some("/src/a.c"), None, Some("/bin/b"))), "f (a.c)");
        assert_eq!(place(&culprit(None, Some(3), Some("/bin/b"))), "f (b)");
        assert_eq!(place(&culprit(None, None, None)), "f");
    }

    /// The last sentence gives the sums and the reason.
    #[test]
    fn ends() {
        let process = sample::session().process;
        let totals =
            Totals { turns: 1200, stalls: 3, stalled_ns: 5_212_000_000, longest_ns: 5_012_000_000 };
        assert_eq!(
            session_end(&process, EndReason::TargetExited, 30_049_000_000, &totals),
            "uvicorn[4242]: 3 of 1200 turns stalled, 5212 ms in all, the longest 5012 ms; \
             the target exited after 30.0 s"
        );
        let totals = Totals { turns: 9, ..Totals::default() };
        assert_eq!(
            session_end(&process, EndReason::Signal, 1_500_000_000, &totals),
            "uvicorn[4242]: none of 9 turns stalled; stopped by a signal after 1.5 s"
        );
    }

    /// Half a millisecond counts as one, and the largest number is no exception.
    #[test]
    fn rounding() {
        assert_eq!(milliseconds(499_999), 0);
        assert_eq!(milliseconds(500_000), 1);
        assert_eq!(milliseconds(u64::MAX), 18_446_744_073_710);
    }
}
