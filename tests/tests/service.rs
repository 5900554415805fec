//! The sample service on the system's Python: every kind of stall reported right, healthy load not at all.

use anyhow::{Context as _, Result, ensure};
use profiler_tests::clock::MILLISECOND;
use profiler_tests::load::Client;
use profiler_tests::report::{Report, StallExt as _};
use profiler_tests::scenario::{THRESHOLD_NS, alone, each, observe, play};
use profiler_tests::target::Target;
use profiler_tests::tracer::Tracer;
use profiler_tests::truth::Truth;

/// Blocked in the kernel, each in another way.
const BLOCKING: [&str; 6] =
    ["/upstream", "/upstream-timeout", "/file", "/lock", "/sleep", "/subprocess"];
/// Busy: in C code, in Python code, in many small pieces.
const BUSY: [&str; 3] = ["/regex", "/cpu", "/saturated"];
const HEALTHY: [&str; 4] = ["/", "/async-sleep", "/to-thread", "/short"];

/// Blocked a little over twice the threshold, and for long.
#[test]
fn blocking_calls_are_reported() -> Result<()> {
    let _machine = alone();
    let target = Target::service()?;
    let played = play(&target, &each(&BLOCKING, &[230, 700]))?;
    played.must_be_right()?;
    ensure!(played.verdict.confirmed >= 2 * BLOCKING.len(), "{}", played.verdict);
    Ok(())
}

/// Busy a little over twice the threshold (a pattern's time is only roughly foretold), and for long.
#[test]
fn busy_code_is_reported() -> Result<()> {
    let _machine = alone();
    let target = Target::service()?;
    let played = play(&target, &each(&BUSY, &[300, 700]))?;
    played.must_be_right()?;
    ensure!(played.verdict.confirmed >= 2 * BUSY.len(), "{}", played.verdict);
    Ok(())
}

/// Plays a stall of 400 ms on each path; an error unless the report of its end gives this kind of cause.
fn must_be_caused_by(expected: &[(&str, &str)]) -> Result<()> {
    let target = Target::service()?;
    let paths: Vec<&str> = expected.iter().map(|(path, _)| *path).collect();
    let played = play(&target, &each(&paths, &[400]))?;
    played.must_be_right()?;
    for (path, kind) in expected {
        let is_its = |truth: &&Truth| path.strip_prefix('/') == Some(truth.kind.as_str());
        let truth = played.truths.iter().find(is_its).context("no record")?;
        let mut ends = played.finished.ends().filter(|end| {
            let overlap_ns = truth.overlap_ns(end.stall.start_monotonic_ns, end.end_ns());
            overlap_ns > truth.duration_ns() / 2
        });
        let end = ends.next().with_context(|| format!("{path} was not reported"))?;
        ensure!(
            end.is_caused_by(kind),
            "{path}: cause {} instead of {kind}",
            end.cause.kind.name()
        );
    }
    Ok(())
}

/// Each kind of stall gets the cause that people call it by.
#[test]
fn causes_are_told_apart() -> Result<()> {
    let _machine = alone();
    must_be_caused_by(&[
        ("/upstream", "syscall"),
        ("/upstream-timeout", "syscall"),
        ("/file", "syscall"),
        ("/subprocess", "syscall"),
        ("/lock", "lock"),
        ("/sleep", "sleep"),
        ("/regex", "cpu"),
        ("/cpu", "cpu"),
    ])
}

/// Where no callback is to blame by itself, none is blamed.
#[test]
fn many_short_callbacks_are_saturation() -> Result<()> {
    let _machine = alone();
    must_be_caused_by(&[("/saturated", "saturated")])
}

/// A stall of several seconds is opened once, updated at growing intervals, and ended.
#[test]
fn a_long_stall_is_followed() -> Result<()> {
    let _machine = alone();
    let target = Target::service()?;
    let played = play(&target, &["/upstream?ms=4000".to_owned()])?;
    played.must_be_right()?;
    let updates = played.finished.lines.iter().filter_map(|arrived| match &arrived.line {
        Report::StallUpdate(update) => Some(update.stall.duration_ns),
        _ => None,
    });
    let durations_ns: Vec<u64> = updates.collect();
    ensure!((1..40).contains(&durations_ns.len()), "updates at {durations_ns:?}");
    let intervals: Vec<u64> =
        durations_ns.windows(2).filter_map(|pair| pair[1].checked_sub(pair[0])).collect();
    // A watchdog's step may shorten one interval against the one before, and so does a crowded machine.
    let grows =
        intervals.windows(2).all(|pair| pair[1] + 50 * MILLISECOND + pair[0] / 4 >= pair[0]);
    ensure!(grows, "intervals {intervals:?}");
    Ok(())
}

/// A higher threshold hides what is below it.
#[test]
fn the_threshold_is_obeyed() -> Result<()> {
    let _machine = alone();
    let target = Target::service()?;
    let (tracer, _) = Tracer::attach(target.pid(), &["--threshold", "1s"])?;
    let mut client = Client::connect(target.port())?;
    client.get("/sleep?ms=400")?;
    client.get("/sleep?ms=1500")?;
    let finished = tracer.interrupt()?;
    let ends: Vec<u64> = finished
        .lines
        .iter()
        .filter_map(|arrived| match &arrived.line {
            Report::StallEnd(end) => Some(end.stall.duration_ns / MILLISECOND),
            _ => None,
        })
        .collect();
    ensure!(matches!(ends[..], [only] if only >= 1500), "stalls of {ends:?} ms");
    Ok(())
}

/// Healthy load for seconds, with blocking below the threshold and in threads: not a word.
#[test]
fn a_healthy_service_is_left_in_peace() -> Result<()> {
    let _machine = alone();
    let target = Target::service()?;
    let played = play(&target, &each(&HEALTHY, &[150; 6]))?;
    played.must_be_right()?;
    ensure!(played.verdict.confirmed == 0, "{}", played.verdict);
    Ok(())
}

/// An idle loop, which only waits, is not stalled.
#[test]
fn waiting_is_no_stall() -> Result<()> {
    let _machine = alone();
    let target = Target::service()?;
    let played = observe(&target, || {
        std::thread::sleep(std::time::Duration::from_nanos(20 * THRESHOLD_NS));
        Ok(Vec::new())
    })?;
    played.must_be_right()?;
    ensure!(played.verdict.confirmed == 0, "{}", played.verdict);
    Ok(())
}
