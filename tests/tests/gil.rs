//! A loop that waits for the interpreter's lock: the thread that holds it is to blame, and not the line that waits.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use profiler_tests::clock::{MILLISECOND, patience};
use profiler_tests::lives::broken_contract;
use profiler_tests::report::Stack;
use profiler_tests::scenario::{THRESHOLD_NS, alone, require_root};
use profiler_tests::target::{Target, folder, system_python};
use profiler_tests::tracer::{Finished, Tracer};

fn watch(options: &[&str]) -> Result<(Target, Finished)> {
    require_root()?;
    let mut command = Command::new(system_python());
    command.arg(folder().join("gil.py")).args(options);
    let target = Target::program(command)?;
    target.line_starting("ready", patience(10))?;
    let (tracer, _) = Tracer::attach(target.pid(), &[])?;
    let finished = tracer.finish()?;
    let broken = broken_contract(&finished.lines);
    ensure!(broken.is_empty(), "{broken:?}");
    Ok((target, finished))
}

/// The words of the target's line as numbers.
fn numbers(line: &str) -> Vec<u64> {
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Each time the lock is kept, the loop stalls; the keeper's thread, function and line are named.
#[test]
fn the_holder_is_blamed() -> Result<()> {
    let _machine = alone();
    let (target, finished) = watch(&["--times", "3"])?;
    let ends: Vec<_> = finished.ends().collect();
    for time in 0..3 {
        let holding = numbers(&target.line_starting("holding", patience(10))?);
        let held = numbers(&target.line_starting("held", patience(10))?);
        let (&[tid, line, start_ns], &[end_ns]) = (&holding[..], &held[..]) else {
            anyhow::bail!("odd lines of the target: {holding:?} {held:?}");
        };
        if end_ns - start_ns < 2 * THRESHOLD_NS {
            println!(
                "time {time}: the lock was kept for {} ms only",
                (end_ns - start_ns) / MILLISECOND
            );
            continue;
        }
        let stall = ends.iter().find(|end| {
            end.stall.start_monotonic_ns < end_ns && end.end_ns() > start_ns + THRESHOLD_NS
        });
        let stall = stall.with_context(|| format!("time {time} was missed"))?;
        ensure!(stall.is_caused_by("gil"), "{:?}", stall.cause);
        let culprit = stall.culprit.as_ref().context("nobody is blamed")?;
        ensure!(culprit.function.as_deref() == Some("match_report"), "{culprit:?}");
        ensure!(culprit.line.map(u64::from) == Some(line), "{culprit:?} instead of line {line}");
        ensure!(culprit.thread.map(u64::from) == Some(tid), "{culprit:?} instead of thread {tid}");
        let mut holder = stall.stacks.iter().filter(|stack| stack.role == "holder");
        let is_native = |stack: &Stack| stack.frames.iter().any(|frame| frame.language == "native");
        ensure!(holder.any(is_native), "no stack of the holder down to the call into C");
    }
    ensure!(ends.len() <= 3, "{} stalls instead of three", ends.len());
    Ok(())
}

/// A thread that sleeps gives the lock back, and nobody is reported.
#[test]
fn a_lock_given_back_is_no_stall() -> Result<()> {
    let _machine = alone();
    let (_target, finished) = watch(&["--healthy", "--times", "2"])?;
    let ends: Vec<_> = finished.ends().collect();
    ensure!(ends.is_empty(), "{} stalls invented", ends.len());
    Ok(())
}
