//! Each CPython that is here, attached to: asleep and busy, its reported stack is the one that it saw itself.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use profiler_tests::clock::patience;
use profiler_tests::interpreters::{Interpreter, all};
use profiler_tests::lives::broken_contract;
use profiler_tests::report::{Frame, StallLine, basename};
use profiler_tests::scenario::{THRESHOLD_NS, alone, require_root};
use profiler_tests::target::Target;
use profiler_tests::tracer::{Finished, Tracer};
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

fn watch(interpreter: &Interpreter, option: Option<&str>) -> Result<(Vec<Seen>, Finished)> {
    require_root()?;
    let mut command = interpreter.run("versions.py")?;
    command.args(option);
    let target = Target::program(command)?;
    target.line_starting("ready", patience(10))?;
    let (tracer, _) = Tracer::attach(target.pid(), &[])?;
    target.signal(Signal::SIGUSR1)?;
    let finished = tracer.finish()?;
    let broken = broken_contract(&finished.lines);
    ensure!(broken.is_empty(), "{broken:?}");
    let mut seen = Vec::new();
    while let Ok(line) = target.line_starting("stalled ", patience(1)) {
        let told = line.strip_prefix("stalled ").unwrap_or_default();
        seen.push(serde_json::from_str(told).with_context(|| line.clone())?);
    }
    Ok((seen, finished))
}

/// The stack in which the most time was spent.
fn main_stack(stall: &StallLine) -> Result<&[Frame]> {
    let of_loop = stall.stacks.iter().filter(|stack| stack.role == "loop");
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
    let python = || frames.iter().filter(|frame| frame.language == "python");
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
        let is_it = |frame: &Frame| {
            let name = frame.function.as_deref().unwrap_or_default();
            frame.language == "python" && name.rsplit('.').next() == Some(function)
        };
        frames.iter().position(is_it).with_context(|| format!("no {function}"))
    };
    let (inner, outer) = (place("<lambda>")?, place("handle")?);
    let between = frames.get(inner + 1..outer).unwrap_or_default();
    ensure!(!between.is_empty(), "nothing stands between the lambda and its caller");
    ensure!(between.iter().all(|frame| frame.language == "native"), "{between:?}");

    let culprit = stall.culprit.as_ref().context("nobody is blamed")?;
    let innermost = seen.stack.first().context("the target saw nothing")?;
    ensure!(culprit.function.as_deref() == Some(&innermost.function), "{culprit:?}");
    ensure!(culprit.basename() == Some(basename(&innermost.file)), "{culprit:?}");
    Ok(())
}

/// Both stalls of each version are reported with the stack that the target itself saw, and no others.
#[test]
fn every_version() -> Result<()> {
    let _machine = alone();
    for interpreter in all() {
        let (seen, finished) = watch(&interpreter, None)?;
        let ends: Vec<_> = finished.ends().collect();
        ensure!(seen.len() == 2, "{}: {seen:?}", interpreter.name);
        for seen in &seen {
            let stall = ends.iter().find(|end| {
                end.stall.start_monotonic_ns < seen.end_ns
                    && end.end_ns() > seen.start_ns + THRESHOLD_NS
            });
            let context = || format!("{}, {}", interpreter.name, seen.kind);
            let stall = stall.context("it was missed").with_context(context)?;
            check(stall, seen).with_context(context)?;
        }
        ensure!(ends.len() == 2, "{}: {} stalls", interpreter.name, ends.len());
    }
    Ok(())
}

/// The healthy twin of each waits as long, and nothing is reported.
#[test]
fn waiting_is_no_stall() -> Result<()> {
    let _machine = alone();
    for interpreter in all() {
        let (_, finished) = watch(&interpreter, Some("--healthy"))?;
        let ends: Vec<_> = finished.ends().collect();
        ensure!(ends.is_empty(), "{}: {} stalls invented", interpreter.name, ends.len());
    }
    Ok(())
}
