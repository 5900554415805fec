//! Each CPython that is here, attached to: asleep and busy, its reported stack is the one that it saw itself.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use profiler_tests::interpreters::{Interpreter, all};
use profiler_tests::report::{
    ReportedFrame, ReportedLanguage, Role, StallExt as _, StallLine, basename, file_of,
};
use profiler_tests::scenario::{THRESHOLD_NS, alone};
use profiler_tests::tally::Tally;
use profiler_tests::turns::{Watched, watch};
use serde::Deserialize;

/// A stall as the target saw it.
#[derive(Debug, Deserialize)]
struct Seen {
    kind: String,
    start_ns: u64,
    end_ns: u64,
    stack: Vec<SeenFrame>,
}

#[derive(Debug, Deserialize)]
struct SeenFrame {
    function: String,
    file: String,
    line: u32,
}

fn played(interpreter: &Interpreter, options: &[&str]) -> Result<Watched<Seen>> {
    watch(interpreter.run_with("versions.py", options)?, &[], "stalled")
}

/// The stack in which the most time was spent.
fn main_stack(stall: &StallLine) -> Result<&[ReportedFrame]> {
    let of_loop = stall.stacks.iter().filter(|stack| stack.role == Role::Loop);
    let most = of_loop.max_by_key(|stack| stack.time_ns).context("no stack")?;
    Ok(&most.frames)
}

fn check(stall: &StallLine, seen: &Seen) -> Result<()> {
    let kind = if seen.kind == "asleep" { "sleep" } else { "cpu" };
    ensure!(stall.is_caused_by(kind), "{:?}", stall.cause);
    let doubts = ["Python", "calling order"];
    let doubt = stall.gaps.iter().find(|gap| doubts.iter().any(|doubt| gap.contains(doubt)));
    ensure!(doubt.is_none(), "{doubt:?}");

    let frames = main_stack(stall)?;
    let python = || frames.iter().filter(|frame| frame.language == ReportedLanguage::Python);
    let functions: Vec<_> = python().map(|frame| frame.function.as_deref()).collect();
    let expected: Vec<_> = seen.stack.iter().map(|frame| Some(frame.function.as_str())).collect();
    ensure!(functions == expected, "{functions:?} instead of {expected:?}");
    for (place, (frame, seen)) in python().zip(&seen.stack).enumerate() {
        ensure!(frame.file.as_deref() == Some(&seen.file), "{frame:?} instead of {seen:?}");
        // What is busy goes on from line to line.
        let moves = place == 0 && kind == "cpu";
        ensure!(moves || frame.line == Some(seen.line), "{frame:?} instead of {seen:?}");
    }

    // `sorted` was called by `handle` and calls the lambda: its frames lie between these.
    let place = |function: &str| {
        let is_it = |frame: &ReportedFrame| {
            let name = frame.function.as_deref().unwrap_or_default();
            frame.language == ReportedLanguage::Python && name.rsplit('.').next() == Some(function)
        };
        frames.iter().position(is_it).with_context(|| format!("no {function}"))
    };
    let (inner, outer) = (place("<lambda>")?, place("handle")?);
    let between = frames.get(inner + 1..outer).unwrap_or_default();
    ensure!(!between.is_empty(), "nothing stands between the lambda and its caller");
    ensure!(between.iter().all(|frame| frame.language == ReportedLanguage::Native), "{between:?}");

    let culprit = stall.culprit.as_ref().context("nobody is blamed")?;
    let innermost = seen.stack.first().context("the target saw nothing")?;
    ensure!(culprit.function.as_deref() == Some(&innermost.function), "{culprit:?}");
    ensure!(file_of(culprit) == Some(basename(&innermost.file)), "{culprit:?}");
    Ok(())
}

/// Both stalls of each version are reported with the stack that the target itself saw, and no others; those that the
/// machine had no CPU for are played again.
#[test]
fn every_version() -> Result<()> {
    const KINDS: usize = 2;
    const TRIES: usize = 5;
    let _machine = alone();
    for interpreter in all()? {
        let mut tally = Tally::of(format!("pythons/{}", interpreter.name));
        let mut judged = BTreeSet::new();
        for _ in 0..TRIES {
            stalls_of(&interpreter, &mut judged, &mut tally).context(interpreter.name.clone())?;
            if judged.len() == KINDS {
                break;
            }
        }
        tally.must_be(KINDS)?;
    }
    Ok(())
}

fn stalls_of(
    interpreter: &Interpreter,
    judged: &mut BTreeSet<String>,
    tally: &mut Tally,
) -> Result<()> {
    let Watched { turns: seen, finished, .. } = played(interpreter, &[])?;
    ensure!(seen.len() == 2, "{seen:?}");
    for seen in seen {
        let stall = finished.ends().find(|end| {
            end.stall.start_monotonic_ns < seen.end_ns
                && end.end_ns() > seen.start_ns + THRESHOLD_NS
        });
        let stall = stall.with_context(|| format!("{} was missed", seen.kind))?;
        if stall.is_starved() && stall.culprit.is_none() {
            tally.passed_over(format!("{}: {}", seen.kind, stall.cause.summary));
            continue;
        }
        check(stall, &seen).with_context(|| seen.kind.clone())?;
        if judged.insert(seen.kind) {
            tally.compared();
        }
    }
    let own = finished.own_ends().count();
    ensure!(own <= 2, "{own} stalls");
    Ok(())
}

/// So many at the same time: they mostly wait.
const AT_ONCE: usize = 3;

/// The healthy twin of each waits as long, and nothing is reported.
#[test]
fn waiting_is_no_stall() -> Result<()> {
    let _machine = alone();
    let is_silent = |interpreter: &Interpreter| -> Result<()> {
        let finished = played(interpreter, &["--healthy"])?.finished;
        let ends: Vec<_> = finished.own_ends().collect();
        ensure!(ends.is_empty(), "{}: {} stalls invented", interpreter.name, ends.len());
        Ok(())
    };
    for some in all()?.chunks(AT_ONCE) {
        std::thread::scope(|scope| -> Result<()> {
            let started: Vec<_> =
                some.iter().map(|it| scope.spawn(move || is_silent(it))).collect();
            started.into_iter().try_for_each(|thread| {
                thread.join().unwrap_or_else(|_| anyhow::bail!("a thread of the test panicked"))
            })
        })?;
    }
    Ok(())
}
