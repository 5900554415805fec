//! A loop that is frozen before anybody looks: reported at once, by what it is doing now, and when it thaws.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use profiler_tests::clock::{monotonic_ns, patience, slowdown};
use profiler_tests::compare::{Bounds, Observation, compare};
use profiler_tests::lives::broken_contract;
use profiler_tests::noise::NoiseMeter;
use profiler_tests::report::{Report, ReportExt as _, StallExt as _, StallLine};
use profiler_tests::scenario::{THRESHOLD_NS, alone, require_root};
use profiler_tests::target::Target;
use profiler_tests::tracer::Tracer;

/// Long enough for a tracer to come while it lasts, with much to spare.
const FREEZE_S: u32 = 4;
const THAW_S: u32 = 1;

/// Attaches in the middle of a freeze and watches it, the thaw, and the freeze that follows.
fn attach_while_frozen(kind: &str) -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = Target::frozen(kind, FREEZE_S, THAW_S)?;
    target.line_starting("frozen", patience(60))?;
    std::thread::sleep(Duration::from_millis(300));
    let noise = NoiseMeter::start();
    let (tracer, start) = Tracer::attach(target.pid(), &[])?;
    let open = tracer.wait_for(|line| matches!(line, Report::StallOpen(_)), patience(40))?;

    let after_ns = open.at_ns.saturating_sub(start.at_ns);
    // Long before the thaw.
    let allowed_ns = u64::try_from(patience(1).as_nanos())? + noise.allowance_ns();
    ensure!(after_ns <= allowed_ns, "first report {after_ns} ns after the attachment");
    let stall = open.line.stall().context("no stall")?;
    ensure!(!stall.stall.start_known, "its start was before our time");
    // Unless others had its CPU for longer than it did. On an emulated CPU samples may come later.
    let has_culprit = |stall: &StallLine| stall.culprit.is_some() || stall.is_starved();
    ensure!(has_culprit(stall) || slowdown() > 1, "a frozen loop has a culprit: {:?}", stall.gaps);

    // The second freeze begins after the first thaw, and is seen from its beginning.
    for _ in 0..2 {
        target.line_starting("frozen", patience(60))?;
    }
    let until_ns = monotonic_ns();
    let finished = tracer.interrupt()?;
    let truths = target.truths()?;
    let bounds = Bounds { threshold_ns: THRESHOLD_NS, noise_ns: noise.allowance_ns() };
    let (lines, from_ns) = (&finished.lines, start.at_ns);
    let mut verdict = compare(Observation { truths: &truths, lines, from_ns, until_ns }, bounds);
    verdict.failures.extend(broken_contract(lines));
    ensure!(verdict.is_right(), "{verdict}\n{}", finished.logs);
    ensure!(verdict.confirmed >= 2, "{verdict}");
    println!("{verdict}");

    let id = &stall.stall.id;
    let end = lines.iter().find_map(|arrived| match &arrived.line {
        Report::StallEnd(end) if end.stall.id == *id => Some(end),
        _ => None,
    });
    let end = end.context("the freeze was not ended")?;
    ensure!(!end.stall.start_known && end.stall.end_known, "{:?}", end.stall);
    ensure!(has_culprit(end), "nobody is to blame: {:?}", end.gaps);
    Ok(())
}

/// Asleep in a system call: nothing happens that a probe could see.
#[test]
fn a_sleeping_loop_is_reported() -> Result<()> {
    attach_while_frozen("sleep")
}

/// Spinning: it never enters the kernel by itself.
#[test]
fn a_spinning_loop_is_reported() -> Result<()> {
    attach_while_frozen("spin")
}
