//! What a line says to its one sentence for a person.

use super::chosen::Chosen;
use super::facts::{ProcessFacts, ThreadFacts};
use super::qualified::Qualified;
use super::schema::session::{EndReason, Totals};
use super::schema::stall::{
    Cause, CauseKind, Culprit, Pause, ReportedActivity, ReportedComponent, ReportedLanguage,
    ReportedStall, ReportedWaits,
};
use super::units::{milliseconds, short_milliseconds};
use crate::process::executables::basename;
use crate::turn::Moment;

/// Other parts of a stall are said where they are at least this fraction of the cause's.
const SAID_FRACTION: u64 = 4;

/// `uvicorn[4242]: event loop stalled 5012 ms, blocked in recvfrom, at charge_payment (app.py:31)`; `unread` is
/// why an interpreter's code has no line.
pub fn stall(
    process: &ProcessFacts,
    subject: &str,
    moment: Moment,
    stall: &ReportedStall,
    cause: &Cause,
    chosen: Option<&Chosen>,
    unread: Option<&str>,
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
    let of_cause = chosen.filter(|chosen| chosen.is_of_cause).map(|chosen| &chosen.culprit);
    let of_cause = of_cause.filter(|culprit| !is_in_summary(cause, culprit));
    let place = of_cause.map(|culprit| format!(", {at} {}", place(culprit))).unwrap_or_default();
    let (part, rest) = mixture(cause, chosen.map(|chosen| &chosen.culprit));
    let (victims, waits) = (victims(stall), waits(&cause.kind, cause.waits));
    let summary = &cause.summary;
    let unread = unread.map(|why| format!("; {why}")).unwrap_or_default();
    let said = format!("{part}{summary}{waits}{place}{rest}{unread}{victims}");
    format!("{}: {subject} {duration}, {said}", name(process))
}

/// Who stalled. The main thread's loop is what people mean by the loop: any other is called by its thread's
/// name, or by its number where that name is only the program's.
pub fn subject(process: &ProcessFacts, thread: &ThreadFacts) -> String {
    let what = if thread.is_worker { "worker" } else { "event loop" };
    if thread.is_main {
        return what.to_owned();
    }
    let own = thread.name.as_ref().filter(|name| **name != process.name);
    let name = thread.python_name.as_ref().or(own).cloned();
    let name = name.unwrap_or_else(|| thread.tid.to_string());
    if thread.is_worker {
        format!("{what} thread {name}")
    } else {
        format!("{what} of thread {name} (not the main thread)")
    }
}

/// `, in 1000 waits of 0.3 ms`: a hundred queries for one page are another fault than a slow one. A wait for
/// the interpreter's lock is cut into slices of 5 ms, and locks are tried again and again.
fn waits(kind: &CauseKind, waits: Option<ReportedWaits>) -> String {
    let is_call = match kind {
        CauseKind::Syscall { call, .. } => call.purpose.is_none(),
        CauseKind::Sleep { purpose, .. } => purpose.is_none(),
        CauseKind::Disk { .. } => true,
        _ => false,
    };
    let Some(ReportedWaits { count, mean_ns, is_estimate }) = waits.filter(|_| is_call) else {
        return String::new();
    };
    let about = if is_estimate { "about " } else { "" };
    format!(", in {about}{count} waits of {} ms", short_milliseconds(mean_ns))
}

/// `; 99 connections and 12 events had to wait`. A single event is why most turns begin.
fn victims(stall: &ReportedStall) -> String {
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
        CauseKind::Cpu { activity: Some(ReportedActivity::GarbageCollection), .. } => "set off at",
        // Of what has the lock of all, the sentence says that it collects; of another pause, who set it off.
        CauseKind::Gil { .. }
            if cause.kind.stop_the_world().is_some_and(|it| it.pause != Pause::Gvl) =>
        {
            "set off at"
        }
        _ => "at",
    }
}

/// What of the time the cause stands for, and what stands for the rest, where it is a mixture:
/// `300 ms of it ` and `; also 120 ms on the CPU at parse (app.py:17)`.
fn mixture(cause: &Cause, culprit: Option<&Culprit>) -> (String, String) {
    // A part whose line is the culprit is said however small it is.
    let is_said = |part: &&ReportedComponent| {
        let is_of_culprit = culprit.is_some() && part.culprit.as_ref() == culprit;
        is_of_culprit || part.time_ns >= cause.time_ns / SAID_FRACTION
    };
    let of = |part: &ReportedComponent| {
        let place = part.culprit.as_ref().map(place).map(|place| format!(" at {place}"));
        let place = place.unwrap_or_default();
        let waits = waits(&part.kind, part.waits);
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
        EndReason::Executed => "it executed another program",
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

/// `charge_payment (app.py:31)`: as much of it as is known. Of C++ without what it returns and takes.
pub fn place(culprit: &Culprit) -> String {
    let function = culprit.function.as_deref().unwrap_or("unnamed code");
    let function = match culprit.language {
        ReportedLanguage::Native => Qualified::of(function).bare,
        _ => function,
    };
    let file = culprit.file.as_deref().map(basename);
    let module = culprit.module.as_deref().map(basename);
    match (file, culprit.line, module) {
        (Some(file), Some(line), _) => format!("{function} ({file}:{line})"),
        (Some(file), None, _) => format!("{function} ({file})"),
        (None, _, Some(module)) => format!("{function} ({module})"),
        (None, _, None) => function.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{EndReason, Totals, is_in_summary, place, session_end, subject};
    use crate::gap::Gap;
    use crate::process::queues::AcceptQueue;
    use crate::report::facts::ThreadFacts;
    use crate::report::group::Tally;
    use crate::report::schema::stall::PartOfStall::Running;
    use crate::report::schema::stall::{
        Callback, Cause, CauseKind, Confidence, Culprit, PartOfStall, ReportedLanguage, StallLine,
    };
    use crate::report::{Report, sample};
    use crate::turn::{End, Moment, Sampled, Stall};

    fn message(moment: Moment, stall: &Stall) -> String {
        sample::report(moment, stall).common().message.clone()
    }

    fn stall_line(report: &Report) -> &StallLine {
        match report {
            Report::StallEnd(line) => line,
            other => unreachable!("{other:?}"),
        }
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

    /// The main thread's loop needs no name; another is told by what people called its thread, else by what
    /// the kernel calls it, else by its number.
    #[test]
    fn which_thread() {
        let process = sample::session().process;
        let called = |is_worker, name: &str, python_name: Option<&str>| {
            let (name, python_name) = (Some(name.to_owned()), python_name.map(str::to_owned));
            let thread = ThreadFacts { tid: 4250, is_main: false, is_worker, ..sample::thread() };
            subject(&process, &ThreadFacts { name, python_name, ..thread })
        };
        assert_eq!(subject(&process, &sample::thread()), "event loop");
        let main = ThreadFacts { is_worker: true, ..sample::thread() };
        assert_eq!(subject(&process, &main), "worker");
        let table = [
            (called(false, "uvicorn", Some("ingest")), "event loop of thread ingest"),
            (called(false, "ingest", None), "event loop of thread ingest"),
            (called(false, "uvicorn", None), "event loop of thread 4250"),
        ];
        for (told, expected) in table {
            assert_eq!(told, format!("{expected} (not the main thread)"));
        }
        assert_eq!(called(true, "WorkerThread", None), "worker thread WorkerThread");
        assert_eq!(called(true, "uvicorn", None), "worker thread 4250");
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

    /// Of an interpreter whose frames cannot be read it is said why no line is, unless one is.
    #[test]
    fn unread_interpreters() {
        let mut session = sample::session();
        let why = "CPython 3.16 is not among the versions known";
        session.process.unread = Some(Gap::new("Python frames", why));
        let told = |session: &_, stall: &Stall| {
            sample::report_of(session, Moment::End, stall).common().message.clone()
        };
        let mut stall = sample::stall();
        assert!(!told(&session, &stall).contains(why), "the handler's line is known");
        for sampled in &mut stall.stacks {
            sampled.stack.frames = vec![sample::native("recv", "/usr/lib/libc.so.6")];
        }
        let expected = format!(
            "blocked in recvfrom on tcp 127.0.0.1:8081; no Python frames: {why}; 17 events had to wait"
        );
        let message = told(&session, &stall);
        assert!(message.ends_with(&expected), "{message}");
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

    /// Whoever had the CPU for most of the time, the line that computed meanwhile is told for its own
    /// share, also a small one, and the sums count it with that.
    #[test]
    fn share_of_a_contended_cpu() {
        let contended = |running_ms: u64| {
            let mut stall = sample::stall();
            let seen = stall.stacks.pop().unwrap();
            stall.stacks = vec![Sampled { time_ns: running_ms * 1_000_000, ..seen }];
            stall.turn.running_ns = running_ms * 1_000_000;
            (stall.turn.blocked_ns, stall.turn.runnable_ns) = (0, 600_000_000);
            stall
        };
        for (running_ms, whole_ms) in [(300, 900), (100, 700)] {
            let report = sample::report(Moment::End, &contended(running_ms));
            let line = stall_line(&report);
            let culprit = line.culprit.as_ref().unwrap();
            assert_eq!(culprit.function.as_deref(), Some("parse"));
            assert_eq!((culprit.time_ns, culprit.part), (running_ms * 1_000_000, Running));
            let expected = format!(
                "uvicorn[4242]: event loop stalled {whole_ms} ms, 600 ms of it ready, but without a \
                 CPU: woken, but waited 600 ms for one; also {running_ms} ms on the CPU at parse \
                 (app.py:17); 17 events had to wait"
            );
            assert_eq!(report.common().message, expected);
            assert!(!line.gaps.iter().any(|gap| gap.starts_with("culprit")), "{:?}", line.gaps);
            let mut tally = Tally::default();
            tally.observe(&report);
            let top = tally.top_culprits(&mut Vec::new());
            assert_eq!(top[0].stalled_ns, running_ms * 1_000_000);
        }
        // Less than half of the threshold, or than a tenth of the stall, is none of its own.
        for (running_ms, runnable_ms) in [(40, 300), (60, 600)] {
            let mut stall = contended(running_ms);
            stall.turn.runnable_ns = runnable_ms * 1_000_000;
            let report = sample::report(Moment::End, &stall);
            let line = stall_line(&report);
            assert!(line.culprit.is_none(), "{running_ms} of {runnable_ms}");
            assert!(line.gaps.iter().any(|gap| gap.starts_with("culprit: the thread was ready")));
        }
    }

    /// Whoever had to wait is counted; a single event is not news.
    #[test]
    fn who_had_to_wait() {
        let told = |ready_events, waiting: &[u64]| {
            let address = "0.0.0.0:80".to_owned();
            let queue = |waiting: &u64| AcceptQueue { address: address.clone(), waiting: *waiting };
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
        let told = |count, of_others| {
            let mut stall = sample::stall();
            let waits = sample::in_short_waits(45, [7; 6], count).waits;
            stall.stacks[0].waits = waits;
            if of_others > 0 {
                stall.stacks.push(sample::in_short_waits(74, [9; 6], of_others));
            }
            let message = message(Moment::End, &stall);
            let (_, told) = message.split_once("127.0.0.1:8081").unwrap();
            told.split_once(" at ").unwrap().0.to_owned()
        };
        assert_eq!(told(140, 0), ", in 140 waits of 36 ms,");
        assert_eq!(told(10_000, 0), ", in 10000 waits of 0.5 ms,");
        assert_eq!(told(140, 9), ", in about 140 waits of 36 ms,");
        assert_eq!(told(2, 0), ",", "one of a few may be what matters");
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
        let (times, waits) = (None, None);
        let cause = Cause {
            kind,
            summary,
            confidence,
            time_ns: 9,
            times,
            waits,
            because: Vec::new(),
            deadlock: false,
            also,
        };
        let culprit = |function: &str| Culprit {
            function: name(function),
            file: name("/srv/app.py"),
            line: Some(7),
            module: None,
            language: ReportedLanguage::Python,
            thread: 1,
            time_ns: 9,
            part: PartOfStall::Running,
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
            language: ReportedLanguage::Native,
            thread: 1,
            time_ns: 9,
            part: PartOfStall::Running,
        };
        assert_eq!(place(&culprit(Some("/src/a.c"), Some(3), Some("/bin/b"))), "f (a.c:3)");
        assert_eq!(place(&culprit(Some("/src/a.c"), None, Some("/bin/b"))), "f (a.c)");
        assert_eq!(place(&culprit(None, Some(3), Some("/bin/b"))), "f (b)");
        assert_eq!(place(&culprit(None, None, None)), "f");
        let function = Some("std::vector<int> shop::rank<int>(int)".to_owned());
        let template = Culprit { function, ..culprit(Some("/src/a.cpp"), Some(3), None) };
        assert_eq!(place(&template), "shop::rank<int> (a.cpp:3)");
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
}
