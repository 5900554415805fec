//! A loop that waits for another thread: what that one does, a time that runs out, or itself, to the end of the chain.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use profiler_tests::clock::patience;
use profiler_tests::report::{Confidence, Report, ReportExt as _, StallLine};
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::target::Target;
use profiler_tests::tracer::Tracer;
use profiler_tests::turns::{self, Watched, script};
use serde::Deserialize;

/// One wait, in the target's own words.
#[derive(Debug, Deserialize)]
struct Waited {
    kind: String,
    start_ns: u64,
    end_ns: u64,
    thread: Option<String>,
}

/// What must be said of a kind of wait.
struct Expected {
    kind: &'static str,
    cause: &'static str,
    /// In the sentence, in this order.
    said: &'static [&'static str],
    /// The line to look at first is in this function.
    culprit: &'static str,
    /// The first of the chain behind it: what it does begins so, in this function.
    because: Option<(&'static str, &'static str)>,
}

const EXPECTED: [Expected; 10] = [
    Expected {
        kind: "ran_out",
        cause: "sleep",
        said: &["in waits whose timeouts of 200 and 400 ms ran out"],
        culprit: "ran_out",
        because: None,
    },
    Expected {
        kind: "is_set",
        cause: "lock",
        said: &[
            "waiting for another thread (futex), released by",
            "asleep in",
            "at is_set.<locals>.release",
        ],
        culprit: "is_set",
        because: Some(("asleep in ", "is_set.<locals>.release")),
    },
    Expected {
        kind: "result",
        cause: "lock",
        said: &[
            "waiting for a result of another thread, released by",
            "blocked in recvfrom on unix",
        ],
        culprit: "result",
        because: Some(("blocked in recvfrom on unix", "result.<locals>.run_query")),
    },
    Expected {
        kind: "joined",
        cause: "lock",
        said: &["waiting for another thread to end, released by", "blocked in recvfrom on unix"],
        culprit: "joined",
        because: Some(("blocked in recvfrom on unix", "joined.<locals>.flush_metrics")),
    },
    Expected {
        kind: "queued",
        cause: "lock",
        said: &[
            "waiting at a queue for another thread, released by",
            "blocked in recvfrom on unix",
        ],
        culprit: "queued",
        because: Some(("blocked in recvfrom on unix", "queued.<locals>.produce")),
    },
    Expected {
        kind: "locked",
        cause: "lock",
        said: &["waiting for a lock held by", "blocked in write on pipe"],
        culprit: "locked.<locals>.write_log",
        because: Some(("blocked in write on pipe", "locked.<locals>.write_log")),
    },
    Expected {
        kind: "request",
        cause: "syscall",
        said: &["blocked in recvfrom on tcp", "a client's request does not come"],
        culprit: "request",
        because: None,
    },
    Expected {
        kind: "chained",
        cause: "lock",
        said: &[
            "waiting for a lock held by",
            "(order-keeper)",
            "waiting for a lock held by",
            "(stock-keeper), which is blocked in recvfrom on unix",
            "at chained.<locals>.keep_stock",
        ],
        culprit: "chained.<locals>.keep_orders",
        because: Some(("waiting for a lock held by", "chained.<locals>.keep_orders")),
    },
    Expected {
        kind: "rude_call",
        cause: "gil",
        said: &["waiting for the GIL, held by", "blocked in recvfrom on unix"],
        culprit: "rude_call.<locals>.poll_device",
        because: Some(("blocked in recvfrom on unix", "rude_call.<locals>.poll_device")),
    },
    Expected {
        kind: "collected",
        cause: "gil",
        said: &["waiting for the GIL, held by", "collecting garbage"],
        culprit: "collected.<locals>.push_updates",
        because: Some(("collecting garbage", "collected.<locals>.push_updates")),
    },
];

impl Expected {
    fn check(&self, wait: &Waited, stall: &StallLine) -> Result<()> {
        let cause = &stall.cause;
        let kind = cause.kind.name();
        ensure!(kind == self.cause, "another kind: {kind}");
        let mut rest = cause.summary.as_str();
        for part in self.said {
            let (_, after) =
                rest.split_once(part).with_context(|| format!("{part:?} is not said"))?;
            rest = after;
        }
        let culprit = stall.culprit.as_ref().and_then(|culprit| culprit.function.as_deref());
        ensure!(culprit == Some(self.culprit), "{culprit:?} is to blame");
        ensure!(!cause.deadlock, "it went on");
        let because = &cause.because;
        let Some((doing, function)) = self.because else {
            ensure!(because.is_empty(), "nobody had to do with it: {because:?}");
            return Ok(());
        };
        let first = because.first().context("the chain is empty")?;
        let name = first.thread.name.as_deref();
        ensure!(name == wait.thread.as_deref(), "{name:?} instead of {:?}", wait.thread);
        ensure!(cause.summary.contains(name.unwrap_or_default()), "its name is not said");
        ensure!(first.doing.starts_with(doing), "{first:?}");
        ensure!(first.function.as_deref() == Some(function), "{first:?}");
        Ok(())
    }
}

/// Each wait is told with its reason, and the name that people gave the thread.
#[test]
fn whole_reasons() -> Result<()> {
    let _machine = alone();
    let watched: Watched<Waited> = turns::watch(script("reasons.py", &[]), &[], "waited")?;
    let Watched { turns: waits, finished, .. } = watched;
    ensure!(waits.len() == EXPECTED.len(), "{} waits", waits.len());
    for (wait, expected) in waits.iter().zip(EXPECTED) {
        ensure!(wait.kind == expected.kind, "{wait:?}");
        let stall = finished.stall_in(wait.start_ns, wait.end_ns);
        let stall = stall.with_context(|| format!("{wait:?} was missed"))?;
        println!("{}: {}", wait.kind, stall.cause.summary);
        expected.check(wait, stall).with_context(|| {
            format!("{}: {:?} {:?} {:?}", wait.kind, stall.cause, stall.culprit, stall.gaps)
        })?;
    }
    Ok(())
}

/// A loop that can never go on is told so: for certain where that is proved, and likely where it is inferred.
#[test]
fn deadlocks() -> Result<()> {
    let _machine = alone();
    require_root()?;
    for (name, said, confidence, culprit) in [
        ("itself", "waiting for itself: it has no other thread", Confidence::Certain, "of_itself"),
        ("idle-threads", "waiting for itself, likely", Confidence::Likely, "of_itself"),
        ("cycle", ": a deadlock", Confidence::Certain, "of_a_cycle.<locals>.keep_mutex"),
    ] {
        let target = Target::program(script("reasons.py", &[name]))?;
        target.line_starting("ready", patience(60))?;
        let (tracer, _) = Tracer::attach(target.pid(), &[])?;
        target.signal(Signal::SIGUSR1)?;
        // Looks from outside come at growing intervals.
        let told = tracer.wait_for(
            |line| matches!(line, Report::StallUpdate(stall) if stall.cause.deadlock),
            patience(20),
        );
        let finished = tracer.interrupt()?;
        let summaries: Vec<_> = finished.ends().map(|end| &end.cause.summary).collect();
        let told = told.with_context(|| format!("{name}: {summaries:?}"))?;
        let stall = told.line.stall().context("no stall")?;
        println!("{name}: {}", stall.cause.summary);
        ensure!(stall.cause.summary.contains(said), "{name}: {}", stall.cause.summary);
        let told = stall.cause.confidence;
        ensure!(told == confidence, "{name}: {told:?}");
        let function = stall.culprit.as_ref().and_then(|culprit| culprit.function.as_deref());
        ensure!(function == Some(culprit), "{name}: {function:?}");
    }
    Ok(())
}
