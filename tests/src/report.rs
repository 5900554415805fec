//! stalltrace's JSON lines, by the types that it writes them with, and what tests ask of them.
//!
//! Whether these types are what was promised is none of their concern: the published schema is held against them where
//! they are.

use anyhow::{Context as _, Result};
pub use stalltrace::report::Report;
pub use stalltrace::report::schema::call::{Purpose, ReportedWaker};
pub use stalltrace::report::schema::line::Severity;
pub use stalltrace::report::schema::session::{
    EndReason, ReportedHook, ReportedWaitHooks, SessionStart,
};
pub use stalltrace::report::schema::stall::{
    CauseKind, Confidence, Culprit, MemoryActivity, PartOfStall, Pause, Preemptor,
    ReportedActivity, ReportedComponent, ReportedFrame, ReportedLanguage, ReportedPressureOf,
    ReportedStack, ReportedState, ReportedTask, ReportedWaits, Role, StallLine, StoppedBy,
};
pub use stalltrace::report::schema::stats::{LoopStats, Stats};

/// A line, and when it arrived here in ns of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone)]
pub struct Arrived {
    pub at_ns: u64,
    pub line: Report,
}

/// A line of the contract.
pub fn parse(text: &str) -> Result<Report> {
    serde_json::from_str(text).with_context(|| format!("not a line of the contract: {text}"))
}

/// What tests ask of any line.
pub trait ReportExt {
    /// The stall that the line is about, if it is about one.
    fn stall(&self) -> Option<&StallLine>;
}

impl ReportExt for Report {
    fn stall(&self) -> Option<&StallLine> {
        match self {
            Self::StallOpen(stall) | Self::StallUpdate(stall) | Self::StallEnd(stall) => {
                Some(stall)
            }
            Self::SessionStart(_) | Self::Stats(_) | Self::SessionEnd(_) => None,
        }
    }
}

/// What tests ask of a stall's line.
pub trait StallExt {
    fn end_ns(&self) -> u64;

    /// What its times add up to.
    fn sum_ns(&self) -> u64;

    /// Whether the cause is of this kind. A machine without a free CPU makes it another, rightly.
    fn is_caused_by(&self, kind: &str) -> bool;

    /// Whether the thread waited for a CPU longer than it did anything else.
    fn is_starved(&self) -> bool;

    /// Whether a function is anywhere on a stack of the loop's own thread.
    fn loop_runs(&self, function: &str) -> bool;

    /// How often the thread waited as the cause says, whether it was a few times or many.
    fn how_often(&self) -> Option<u64>;
}

impl StallExt for StallLine {
    fn end_ns(&self) -> u64 {
        self.stall.start_monotonic_ns.saturating_add(self.stall.duration_ns)
    }

    fn sum_ns(&self) -> u64 {
        let time = &self.stall.time;
        [
            time.running_user_ns,
            time.running_kernel_ns,
            time.blocked_ns,
            time.runnable_ns,
            time.stopped_ns,
        ]
        .iter()
        .fold(0, |sum, part| sum.saturating_add(*part))
    }

    fn is_caused_by(&self, kind: &str) -> bool {
        self.cause.kind.name() == if self.is_starved() { "run_queue" } else { kind }
    }

    fn is_starved(&self) -> bool {
        let time = &self.stall.time;
        let running_ns = time.running_user_ns.saturating_add(time.running_kernel_ns);
        time.runnable_ns > running_ns.max(time.blocked_ns).max(time.stopped_ns)
    }

    fn loop_runs(&self, function: &str) -> bool {
        let of_loop = self.stacks.iter().filter(|stack| stack.role == Role::Loop);
        of_loop
            .flat_map(|stack| &stack.frames)
            .any(|frame| frame.function.as_deref() == Some(function))
    }

    fn how_often(&self) -> Option<u64> {
        self.cause.times.or(self.cause.waits.map(|waits| waits.count))
    }
}

/// The file of a culprit without its folders.
pub fn file_of(culprit: &Culprit) -> Option<&str> {
    culprit.file.as_deref().map(basename)
}

/// A path's last component.
pub fn basename(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
pub mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::{Arrived, CauseKind, Report, ReportExt as _, StallExt as _, StallLine, file_of};

    /// What all lines have, and an event's own fields.
    fn line<T: DeserializeOwned>(severity: &str, own: Value) -> T {
        let Value::Object(mut line) = json!({
            "schema": "stalltrace/1",
            "timestamp": "2026-11-21T05:00:00.000001Z",
            "severity": severity,
            "message": "m",
            "session": "s",
            "host": "h",
            "process": {"pid": 42, "name": "python3", "labels": {}},
        }) else {
            unreachable!()
        };
        line.extend(own.as_object().cloned().unwrap_or_default());
        serde_json::from_value(Value::Object(line)).unwrap()
    }

    pub fn session_start() -> Report {
        let configuration = json!({
            "threshold_ns": 100_000_000,
            "error_threshold_ns": 1_000_000_000,
            "sample_frequency_hz": 99,
            "stacks": "app",
        });
        let own = json!({
            "event": "session_start",
            "version": "0.1.0",
            "kernel": "6.1.0",
            "wait_hooks": "fentry",
            "probes": [],
            "configuration": configuration,
            "gaps": [],
        });
        line("INFO", own)
    }

    pub fn session_end() -> Report {
        let own = json!({
            "event": "session_end",
            "reason": "signal",
            "watched_ns": 1,
            "totals": {"turns": 1, "stalls": 1, "stalled_ns": 1, "longest_ns": 1},
            "top_culprits": [],
            "frames": {},
            "gaps": [],
            "lost": {},
        });
        line("INFO", own)
    }

    /// A stall from `start_ns` for `duration_ns`, blocked all the time in `function` of `app.py`, line 31.
    pub fn stall(id: &str, start_ns: u64, duration_ns: u64, function: &str) -> Box<StallLine> {
        let place = json!({
            "function": function, "file": "/srv/app.py", "line": 31, "language": "python",
        });
        let mut culprit = place.clone();
        culprit["thread"] = 42.into();
        culprit["time_ns"] = duration_ns.into();
        culprit["part"] = "blocked".into();
        let own = json!({
            "stall": {
                "id": id,
                "signature": "1",
                "started_at": "2026-11-21T05:00:00.000001Z",
                "start_monotonic_ns": start_ns,
                "duration_ns": duration_ns,
                "threshold_ns": 100_000_000,
                "start_known": true,
                "end_known": true,
                "time": {
                    "running_user_ns": 0,
                    "running_kernel_ns": 0,
                    "blocked_ns": duration_ns,
                    "runnable_ns": 0,
                    "stopped_ns": 0,
                },
                "switches": {"voluntary": 1, "preempted": 0},
                "ready_events": 3,
                "away": [],
                "waiting_connections": [],
            },
            "thread": {"tid": 42, "name": "python3", "is_main": true, "loop": "asyncio"},
            "cause": {
                "kind": "sleep",
                "detail": {"syscall": "clock_nanosleep", "held_by": [], "ran_out_ns": []},
                "summary": "asleep in clock_nanosleep",
                "confidence": "certain",
                "time_ns": duration_ns,
                "times": 1,
                "because": [],
                "deadlock": false,
                "also": [],
            },
            "culprit": culprit,
            "stacks": [{
                "thread": {"tid": 42, "name": "python3"},
                "role": "loop",
                "state": "blocked",
                "samples": 1,
                "time_ns": duration_ns,
                "frames": [{"function": "clock_nanosleep", "language": "native"}, place],
            }],
            "gaps": [],
            "lost": {},
        });
        line("WARN", own)
    }

    /// A line that arrived.
    pub fn arrived(at_ns: u64, line: Report) -> Arrived {
        Arrived { at_ns, line }
    }

    /// What is asked of a stall is answered by its line, and of other lines there is nothing to ask.
    #[test]
    fn questions() {
        let open = Report::StallOpen(stall("7", 100, 50, "pay"));
        let stall_line = open.stall().unwrap();
        assert_eq!((stall_line.end_ns(), stall_line.sum_ns()), (150, 50));
        assert_eq!(stall_line.culprit.as_ref().and_then(file_of), Some("app.py"));
        assert!(stall_line.loop_runs("pay") && !stall_line.loop_runs("ship"));
        assert_eq!(stall_line.how_often(), Some(1));
        assert!(session_start().stall().is_none() && session_end().stall().is_none());
    }

    /// Waiting for a CPU is the cause only where it took the most time.
    #[test]
    fn a_starved_thread_has_another_cause() {
        let run_queue = CauseKind::RunQueue {
            preempted_ns: 51,
            woken_ns: 0,
            idle_ns: 0,
            preempted_by: None,
            allowed_cpus: None,
            confined_to: None,
        };
        let with = |runnable_ns: u64, kind: &CauseKind| {
            let mut line = stall("7", 100, 50, "pay");
            line.stall.time.runnable_ns = runnable_ns;
            line.cause.kind = kind.clone();
            line
        };
        assert!(with(0, &CauseKind::Unknown).is_caused_by("unknown"));
        assert!(!with(0, &run_queue).is_caused_by("unknown"));
        assert!(with(51, &run_queue).is_caused_by("unknown"));
        assert!(!with(51, &CauseKind::Unknown).is_caused_by("unknown"));
    }

    /// A line of another contract, and one that lacks what this one promises, is refused.
    #[test]
    fn other_lines_are_refused() {
        let text = serde_json::to_string(&Report::StallEnd(stall("7", 100, 50, "pay"))).unwrap();
        assert!(super::parse(&text).is_ok());
        for (part, instead) in [
            ("\"schema\":\"stalltrace/1\"", "\"schema\":\"stalltrace/2\""),
            ("\"duration_ns\":50,", ""),
            ("\"event\":\"stall_end\"", "\"event\":\"stall_over\""),
        ] {
            assert!(text.contains(part) && super::parse(&text.replace(part, instead)).is_err());
        }
        assert!(super::parse("stalltrace: starting").is_err());
    }
}
