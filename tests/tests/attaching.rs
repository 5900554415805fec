//! Attaching: how long it takes, on one thread and on ten thousand, what ends it early, and what a short session loses.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use profiler_tests::attaching::{is_start, target_with, time_to_attach};
use profiler_tests::clock::{patience, slowdown};
use profiler_tests::report::Report;
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::target::send;
use profiler_tests::tracer::Tracer;

/// The aim is 250 ms on an idle machine, and 2 s for ten thousand threads: five times that.
const ONE: Duration = Duration::from_millis(1250);
const MANY: Duration = Duration::from_secs(10);

/// A process with one thread. The fastest of a few counts: others that want the CPUs only ever add to it.
#[test]
fn one_thread() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = target_with(1, &[])?;
    let times: Result<Vec<_>> = (0..8).map(|_| time_to_attach(target.pid())).collect();
    let took = times?.into_iter().min().context("no times")?;
    println!("{took:?}");
    ensure!(took < ONE * slowdown(), "{took:?}");
    Ok(())
}

/// Ten thousand threads, each of which may be the one that runs the loop: the time grows with them, not with
/// their square.
#[test]
fn ten_thousand_threads() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = target_with(10_000, &[])?;
    let took = time_to_attach(target.pid())?;
    println!("{took:?}");
    ensure!(took < MANY * slowdown(), "{took:?}");
    Ok(())
}

/// A signal at any moment of attaching ends it, in order and soon (in 2 s, and five times that here), with no line or a
/// whole session.
#[test]
fn a_signal_while_attaching() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = target_with(4000, &[])?;
    let mut early = 0;
    for wait_ms in [50, 100, 200, 300, 400, 600] {
        let tracer = Tracer::spawn(target.pid(), &[])?;
        std::thread::sleep(Duration::from_millis(wait_ms));
        send(tracer.pid(), Signal::SIGINT)?;
        let before = Instant::now();
        let finished = tracer.finish()?;
        let took = before.elapsed();
        // Before anything is attached, the signal itself ends the program.
        let is_first = finished.code.is_none() && finished.lines.is_empty();
        let is_in_order = finished.code == Some(0) || is_first;
        ensure!(is_in_order, "{wait_ms}: {:?}\n{}", finished.code, finished.logs);
        ensure!(took < patience(10), "{wait_ms}: {took:?}");
        let starts = finished.lines.iter().filter(|arrived| is_start(&arrived.line)).count();
        let ends = |line: &Report| matches!(line, Report::SessionEnd(_));
        let ends = finished.lines.iter().filter(|arrived| ends(&arrived.line)).count();
        ensure!(starts == ends, "{wait_ms}: {starts} starts, {ends} ends");
        early += usize::from(starts == 0);
    }
    ensure!(early > 0, "no signal came while attaching");
    Ok(())
}

/// A loop that turns all the time is taken up between two waits, and none is seen by half.
#[test]
fn short_sessions_lose_nothing() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = target_with(1, &["--busy"])?;
    for _ in 0..30 {
        let (tracer, _) = Tracer::attach(target.pid(), &[])?;
        let finished = tracer.interrupt()?;
        let lost = finished.lost().context("no end")?;
        let of_waits = |(name, count): &(&String, &u64)| {
            **count > 0 && (name.starts_with("wait") || *name == "loops_without_slot")
        };
        let halves: Vec<_> = lost.iter().filter(of_waits).collect();
        ensure!(halves.is_empty(), "{halves:?}");
    }
    Ok(())
}

/// Of more loops than there is room for, each that is left out is counted once, and said.
#[test]
fn more_loops_than_slots() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = target_with(70, &["--loops"])?;
    let (tracer, _) = Tracer::attach(target.pid(), &[])?;
    // Each waits twenty times a second, and they are looked for once a second.
    std::thread::sleep(Duration::from_millis(2500) * slowdown());
    let finished = tracer.interrupt()?;
    let lost = finished.lost().context("no end")?;
    ensure!(lost.get("loops_without_slot") == Some(&6), "{lost:?}");
    // A starved thread waits, and is said, later than the others.
    let of = "not watched, as 64 event loops of a process are at most: ";
    let named = finished.logs.lines().filter_map(|line| line.split_once(of));
    let threads: Vec<_> = named.flat_map(|(_, threads)| threads.split(", ")).collect();
    ensure!(threads.len() == 6, "{}", finished.logs);
    Ok(())
}

/// The duration counts from the first line on, however long attaching took.
#[test]
fn a_duration_counts_from_the_first_line() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = target_with(4000, &[])?;
    let (tracer, start) = Tracer::attach(target.pid(), &["--duration", "1s"])?;
    let finished = tracer.finish()?;
    let end = finished.lines.last().context("no lines")?;
    let watched = Duration::from_nanos(end.at_ns.saturating_sub(start.at_ns));
    ensure!(watched > Duration::from_millis(950) && watched < patience(3), "{watched:?}");
    Ok(())
}
