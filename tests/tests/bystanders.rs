//! Where all other threads were while a loop stalled, held against the interpreter's own word.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use profiler_tests::clock::patience;
use profiler_tests::lives::broken_contract;
use profiler_tests::report::{
    self, Report, ReportedLanguage, ReportedStack, ReportedState, Role, StallExt as _, StallLine,
};
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::target::{Target, folder, system_python};
use profiler_tests::tracer::Tracer;
use serde::Deserialize;

/// A frame as (function, file, line).
type Frame = (String, String, u32);

/// One stall, in the target's own words.
#[derive(Debug, Deserialize)]
struct Stalled {
    others: BTreeMap<u32, Vec<Frame>>,
    /// Threads that ran, and the function that they were in.
    running: BTreeMap<u32, String>,
    start_ns: u64,
    end_ns: u64,
}

fn watch(options: &[&str], tracer_options: &[&str]) -> Result<(Stalled, Vec<StallLine>)> {
    require_root()?;
    let mut command = Command::new(system_python());
    command.arg(folder().join("bystanders.py")).args(options);
    let target = Target::program(command)?;
    target.line_starting("ready", patience(60))?;
    let (tracer, _) = Tracer::attach(target.pid(), tracer_options)?;
    target.signal(Signal::SIGUSR1)?;
    let finished = tracer.finish()?;
    let broken = broken_contract(&finished.lines);
    ensure!(broken.is_empty(), "{broken:?}\n{}", finished.logs);
    let line = target.line_starting("stalled", patience(60))?;
    let stalled: Stalled = serde_json::from_str(line.trim_start_matches("stalled"))?;
    let of_stalls = finished.lines.into_iter().filter_map(|arrived| match arrived.line {
        Report::StallOpen(stall) | Report::StallEnd(stall) => Some(*stall),
        _ => None,
    });
    let is_it = |stall: &StallLine| {
        stall.stall.start_monotonic_ns < stalled.end_ns && stall.end_ns() > stalled.start_ns
    };
    let stalls = of_stalls.filter(is_it).collect();
    Ok((stalled, stalls))
}

fn python_frames(stack: &ReportedStack) -> Vec<Frame> {
    let frames = stack.frames.iter().filter(|frame| frame.language == ReportedLanguage::Python);
    let named = |frame: &report::ReportedFrame| {
        Some((frame.function.clone()?, frame.file.clone()?, frame.line?))
    };
    frames.filter_map(named).collect()
}

/// Every thread is there from the first report on, each frame as the interpreter had it; one that runs is
/// met by a sample, or missed with a word.
#[test]
fn all_threads_are_shown() -> Result<()> {
    let _machine = alone();
    let (stalled, stalls) = watch(&[], &["--all-threads"])?;
    ensure!(stalls.len() == 2, "{} reports instead of two", stalls.len());
    for stall in &stalls {
        let others: BTreeMap<u32, &ReportedStack> = stall
            .stacks
            .iter()
            .filter(|stack| stack.role == Role::Other)
            .map(|stack| (stack.thread.tid, stack))
            .collect();
        for (tid, expected) in &stalled.others {
            let stack = others.get(tid).with_context(|| format!("no stack of thread {tid}"))?;
            ensure!(python_frames(stack) == *expected, "{stack:?} instead of {expected:?}");
            ensure!(stack.state == ReportedState::Blocked, "{stack:?}");
            ensure!(
                stack.frames.iter().any(|frame| frame.language == ReportedLanguage::Native),
                "{stack:?}"
            );
        }
        for (tid, function) in &stalled.running {
            let told = |gap: &String| {
                gap.starts_with("stacks of threads") && gap.contains(&tid.to_string())
            };
            match others.get(tid) {
                Some(stack) => {
                    let frames = python_frames(stack);
                    let is_there = frames.iter().any(|(name, _, _)| name == function);
                    ensure!(is_there, "{frames:?} without {function}");
                }
                None => ensure!(stall.gaps.iter().any(told), "{tid}: {:?}", stall.gaps),
            }
        }
    }
    Ok(())
}

/// Nobody is shown who was not asked for, and a loop that does not stall shows nobody at all.
#[test]
fn nobody_is_shown_unasked() -> Result<()> {
    let _machine = alone();
    let (_, stalls) = watch(&[], &[])?;
    let is_other = |stack: &ReportedStack| stack.role == Role::Other;
    ensure!(stalls.iter().all(|stall| !stall.stacks.iter().any(is_other)), "{stalls:?}");
    let (_, stalls) = watch(&["--healthy"], &["--all-threads"])?;
    ensure!(stalls.is_empty(), "{stalls:?}");
    Ok(())
}
