//! Loops that come and go: a turn ends when its loop does, and what had blocked it until then is still told.

use std::process::Command;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use profiler_tests::clock::{MILLISECOND, monotonic_ns, patience};
use profiler_tests::compare::{Bounds, Observation, compare};
use profiler_tests::lives::broken_contract;
use profiler_tests::noise::NoiseMeter;
use profiler_tests::report::StallLine;
use profiler_tests::scenario::{THRESHOLD_NS, alone, require_root};
use profiler_tests::target::{Target, folder, system_python};
use profiler_tests::tracer::Tracer;
use profiler_tests::truth::Truth;

/// Watches loops that come and go in this way. So many of them are held up, and nothing else is told.
fn watch(kind: &str, held_up: usize) -> Result<()> {
    let _machine = alone();
    require_root()?;
    let mut command = Command::new(system_python());
    command.arg(folder().join("ends_of_loops.py")).arg(kind);
    let target = Target::of_ours(command)?;
    let noise = NoiseMeter::start();
    let (tracer, start) = Tracer::attach(target.pid(), &[])?;
    target.signal(Signal::SIGUSR1)?;
    target.line_starting("over", patience(20))?;
    // A turn that lives on passes the threshold by now, and would be told.
    std::thread::sleep(patience(1));
    let until_ns = monotonic_ns();
    let finished = tracer.interrupt()?;

    let truths = target.truths()?;
    let stalls = truths.iter().filter(|truth| !truth.is_lag()).count();
    ensure!(stalls == held_up, "odd target: {truths:?}");
    let said: Vec<_> = finished.ends().map(|end| (&end.stall, &end.culprit)).collect();
    ensure!(said.len() >= held_up, "{} of {held_up} were told: {said:#?}", said.len());
    let bounds = Bounds { threshold_ns: THRESHOLD_NS, noise_ns: noise.allowance_ns() };
    let (lines, from_ns) = (&finished.lines, start.at_ns);
    let mut verdict = compare(Observation { truths: &truths, lines, from_ns, until_ns }, bounds);
    verdict.failures.extend(broken_contract(lines));
    ensure!(verdict.is_right(), "{verdict}\n{}", finished.logs);
    ensure!(verdict.confirmed == held_up, "{verdict}");
    // The end of a turn that ends with its thread is not seen as a wait; its time is right all the same.
    let is_exact = |end: &&StallLine| {
        let near_ns = 50 * MILLISECOND + noise.allowance_ns();
        let lasted_ns = truths.iter().map(Truth::duration_ns);
        let mut lasted_ns = lasted_ns.map(|lasted_ns| lasted_ns.abs_diff(end.stall.duration_ns));
        end.stall.start_known && lasted_ns.any(|apart_ns| apart_ns <= near_ns)
    };
    ensure!(finished.ends().all(|end| is_exact(&end)), "{said:#?}");
    println!("{}", finished.told().join("\n"));
    Ok(())
}

/// `asyncio.run` for each single call, in a server's pool: between two calls no loop is there to be late.
#[test]
fn calls_in_a_pool() -> Result<()> {
    watch("pool", 0)
}

#[test]
fn calls_in_the_main_thread() -> Result<()> {
    watch("main", 0)
}

#[test]
fn calls_in_a_thread_that_ends() -> Result<()> {
    watch("thread", 0)
}

/// A thread that needed a loop once is not a stalled loop for ever.
#[test]
fn a_single_call() -> Result<()> {
    watch("once", 0)
}

#[test]
fn a_loop_that_was_held_up_before_it_was_closed() -> Result<()> {
    watch("blocked-before-closed", 4)
}

/// The number is the same, the instance is another.
#[test]
fn a_loop_that_is_replaced() -> Result<()> {
    watch("replaced", 1)
}

#[test]
fn a_loop_that_is_replaced_at_once() -> Result<()> {
    watch("replaced-at-once", 0)
}

#[test]
fn a_number_that_is_reused() -> Result<()> {
    watch("number-reused", 0)
}

#[test]
fn a_thread_that_ends() -> Result<()> {
    watch("thread-ends", 0)
}

#[test]
fn a_thread_that_was_held_up_before_it_ended() -> Result<()> {
    watch("blocked-before-thread-ends", 4)
}

/// There is no loop when we attach; the first one's first stall is told.
#[test]
fn a_loop_that_comes_later() -> Result<()> {
    watch("later", 1)
}

#[test]
fn a_loop_that_comes_later_in_a_new_thread() -> Result<()> {
    watch("later-in-thread", 1)
}
