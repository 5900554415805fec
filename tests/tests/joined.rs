//! A main thread that joins the one which runs the loop: it waits for ever and is no loop; the other one is.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use profiler_tests::clock::{monotonic_ns, patience};
use profiler_tests::compare::{Bounds, Observation, compare};
use profiler_tests::compiled;
use profiler_tests::lives::broken_contract;
use profiler_tests::noise::NoiseMeter;
use profiler_tests::report::ReportExt as _;
use profiler_tests::scenario::{THRESHOLD_NS, alone, require_root};
use profiler_tests::target::{Target, folder, system_python};
use profiler_tests::tracer::Tracer;

/// In C, whose main thread is in `pthread_join`.
fn native(kind: &str) -> Result<Target> {
    let mut command = Command::new(compiled::program("joined.c")?);
    command.arg(kind);
    Target::of_ours(command)
}

/// In Python, whose main thread is in `Thread.join`.
fn python(thaw_s: &str) -> Result<Target> {
    let mut command = Command::new(system_python());
    command.arg(folder().join("frozen.py")).arg("--in-thread");
    command.args(["--freeze-s", "6", "--thaw-s", thaw_s]);
    Target::of_ours(command)
}

/// The loop serves, now and later: silence.
fn must_be_silent(target: &Target) -> Result<()> {
    let (tracer, _) = Tracer::attach(target.pid(), &[])?;
    std::thread::sleep(Duration::from_secs(4));
    let finished = tracer.interrupt()?;
    let told = finished.told();
    ensure!(told.is_empty(), "{told:#?}");
    Ok(())
}

/// Attached while the loop is frozen: its thread is told, then and at the next freeze, and no other.
fn the_frozen_thread_is_told(target: &Target) -> Result<()> {
    target.line_starting("frozen", patience(20))?;
    std::thread::sleep(Duration::from_millis(500));
    let noise = NoiseMeter::start();
    let (tracer, start) = Tracer::attach(target.pid(), &[])?;
    for _ in 0..2 {
        target.line_starting("frozen", patience(20))?;
    }
    let until_ns = monotonic_ns();
    let finished = tracer.interrupt()?;

    let truths = target.truths()?;
    let first = truths.iter().find(|truth| !truth.is_lag()).context("it never thawed")?;
    ensure!(start.at_ns < first.end_ns, "it thawed before we had come");
    let thread = truths.iter().find(|truth| !truth.is_lag()).and_then(|truth| truth.thread);
    let lines = &finished.lines;
    let stalls = || lines.iter().filter_map(|arrived| arrived.line.stall());
    let told = finished.told();
    println!("{told:#?}");
    ensure!(stalls().all(|stall| Some(stall.thread.tid) == thread), "{thread:?}: {told:#?}");
    let bounds = Bounds { threshold_ns: THRESHOLD_NS, noise_ns: noise.allowance_ns() };
    let from_ns = start.at_ns;
    let mut verdict = compare(Observation { truths: &truths, lines, from_ns, until_ns }, bounds);
    verdict.failures.extend(broken_contract(lines));
    ensure!(verdict.is_right(), "{verdict}\n{}", finished.logs);
    // The one in which we came, and one that was seen from its beginning.
    ensure!(verdict.confirmed == 2, "{verdict}");
    let first = stalls().next().context("nothing was said")?;
    ensure!(!first.stall.start_known, "its start was before our time");
    Ok(())
}

#[test]
fn a_joining_main_thread_is_no_loop() -> Result<()> {
    let _machine = alone();
    require_root()?;
    must_be_silent(&native("served")?)?;
    // It freezes for the first time only after we have gone.
    must_be_silent(&python("60")?)
}

#[test]
fn the_frozen_thread_of_a_program_in_c() -> Result<()> {
    let _machine = alone();
    require_root()?;
    the_frozen_thread_is_told(&native("frozen")?)
}

#[test]
fn the_frozen_thread_of_a_program_in_python() -> Result<()> {
    let _machine = alone();
    require_root()?;
    the_frozen_thread_is_told(&python("1")?)
}
