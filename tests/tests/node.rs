//! The sample service on node 18 to 26: each stall's function, script and line of definition, from V8's own memory.

use anyhow::{Context as _, Result, ensure};
use profiler_tests::report::{Report, SessionStart, StallExt as _, StallLine};
use profiler_tests::scenario::{Played, alone, each, play};
use profiler_tests::target::{Target, node};
use profiler_tests::truth::Truth;

/// In C++ that JavaScript calls: in the kernel, in a child, in a lock, on the CPU.
const CALLING: [&str; 8] =
    ["/file", "/hash", "/digest", "/encrypt", "/json", "/regex", "/shell", "/lock"];
/// In code that V8 made at run time, of every kind of function.
const BUSY: [&str; 6] = ["/cpu", "/arrow", "/method", "/asynchronous", "/inlined", "/anonymous"];

fn start(played: &Played) -> Result<&SessionStart> {
    let mut starts = played.finished.lines.iter().filter_map(|arrived| match &arrived.line {
        Report::SessionStart(start) => Some(&**start),
        _ => None,
    });
    starts.next().context("no session_start")
}

/// The report that is about a record.
fn end_of<'a>(played: &'a Played, truth: &Truth) -> Option<&'a StallLine> {
    played.finished.ends().find(|end| {
        let overlap_ns = truth.overlap_ns(end.stall.start_monotonic_ns, end.end_ns());
        overlap_ns > truth.duration_ns() / 2
    })
}

/// Every kind of stall on one release: its function, its file, its line, and the cause.
fn reports_of(major: u32) -> Result<()> {
    let _machine = alone();
    let target = Target::node(&node(major)?, &[])?;
    let paths: Vec<&str> = CALLING.iter().chain(&BUSY).copied().collect();
    let played = play(&target, &each(&paths, &[300]))?;
    played.must_be_right()?;
    ensure!(played.verdict.confirmed >= paths.len(), "{}", played.verdict);

    let start = start(&played)?;
    let runtime = start.runtime.as_ref().context("no runtime was recognised")?;
    let version = runtime.version.as_deref().unwrap_or_default();
    ensure!(runtime.name == "node" && version.starts_with(&format!("{major}.")), "{runtime:?}");
    ensure!(start.gaps.is_empty(), "{:?}", start.gaps);

    for (kind, cause) in
        [("file", "syscall"), ("shell", "syscall"), ("lock", "sleep"), ("cpu", "cpu")]
    {
        let truth = played.truths.iter().find(|truth| truth.kind == kind).context("no record")?;
        let end = end_of(&played, truth).with_context(|| format!("{kind} was not reported"))?;
        ensure!(end.is_caused_by(cause), "{kind}: {:?}", end.cause);
        ensure!(end.thread.loop_kind == "libuv", "{kind}: {:?}", end.thread);
        ensure!(end.loop_runs("uv_run"), "{kind}: the loop is not on its stacks");
    }
    Ok(())
}

#[test]
fn node_18() -> Result<()> {
    reports_of(18)
}

#[test]
fn node_20() -> Result<()> {
    reports_of(20)
}

#[test]
fn node_22() -> Result<()> {
    reports_of(22)
}

#[test]
fn node_24() -> Result<()> {
    reports_of(24)
}

#[test]
fn node_25() -> Result<()> {
    reports_of(25)
}

#[test]
fn node_26() -> Result<()> {
    reports_of(26)
}

/// Where no callback is to blame by itself, none is blamed.
#[test]
fn many_short_callbacks_are_saturation() -> Result<()> {
    let _machine = alone();
    let target = Target::node(&node(22)?, &[])?;
    let played = play(&target, &each(&["/saturated"], &[600]))?;
    played.must_be_right()?;
    let truth =
        played.truths.iter().find(|truth| truth.kind == "saturated").context("no record")?;
    let end = end_of(&played, truth).context("it was not reported")?;
    ensure!(end.is_caused_by("saturated"), "{:?}", end.cause);
    Ok(())
}
