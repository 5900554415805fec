//! A loop of Ruby's that waits for the GVL: the thread that has it is named, and what Ruby called there.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use profiler_tests::clock::{milliseconds, patience};
use profiler_tests::report::{Confidence, Pause, StallExt as _};
use profiler_tests::scenario::{THRESHOLD_NS, alone};
use profiler_tests::tally::Tally;
use profiler_tests::target::folder;
use profiler_tests::turns::run;

/// The system's own Ruby, stripped of its local names as people have it.
fn ruby(arguments: &[&str]) -> Command {
    let mut command = Command::new("ruby");
    command.arg(folder().join("gvl.rb")).args(arguments);
    command
}

/// The words of the target's line as numbers.
fn numbers(line: &str) -> Vec<u64> {
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Each time the GVL is kept, the loop stalls; the keeper is named, and the C function that kept it. The wait is cut into
/// slices of 100 ms, and is no sleep for that.
#[test]
fn the_holder_is_named() -> Result<()> {
    let _machine = alone();
    holder_is_named("the_holder_is_named", &["--times", "3"], |said| {
        said.starts_with("computing in rb_ary_sort (libruby")
    })
}

/// No sample falls onto a thread that waits with the GVL: it is found where it stands.
#[test]
fn a_holder_that_waits() -> Result<()> {
    let _machine = alone();
    holder_is_named("a_holder_that_waits", &["--blocked", "--times", "3"], |said| {
        said.starts_with("asleep in clock_nanosleep") && said.contains(", in ffi_call (libffi")
    })
}

fn holder_is_named(test: &str, arguments: &[&str], does: impl Fn(&str) -> bool) -> Result<()> {
    let (target, finished) = run(ruby(arguments), &[])?;
    let ends: Vec<_> = finished.ends().collect();
    let mut tally = Tally::of(format!("gvl/{test}"));
    for time in 0..3 {
        let holding = numbers(&target.line_starting("holding", patience(60))?);
        let held = numbers(&target.line_starting("held", patience(60))?);
        let (&[tid, start_ns], &[end_ns]) = (&holding[..], &held[..]) else {
            anyhow::bail!("odd lines of the target: {holding:?} {held:?}");
        };
        let kept_ns = end_ns - start_ns;
        ensure!(kept_ns >= 2 * THRESHOLD_NS, "kept for {} only", milliseconds(kept_ns));
        let stall = ends.iter().find(|end| {
            end.stall.start_monotonic_ns < end_ns && end.end_ns() > start_ns + THRESHOLD_NS
        });
        let stall = stall.with_context(|| format!("time {time} was missed"))?;
        let (cause, gaps) = (&stall.cause, &stall.gaps);
        println!("{:?}: {}", cause.confidence, cause.summary);
        ensure!(stall.is_caused_by("gil"), "{cause:?}");
        let held = format!("waiting for Ruby's GVL, held by thread {tid} (reports), ");
        let said = cause.summary.strip_prefix(&held).with_context(|| format!("{cause:?}"))?;
        ensure!(does(said), "{said}");
        ensure!(cause.confidence == Confidence::Likely, "it was inferred: {cause:?}");
        let pause = cause.kind.stop_the_world().context("no pause is told")?;
        let set_off_by = pause.set_off_by.as_ref().map(|thread| u64::from(thread.tid));
        ensure!(pause.pause == Pause::Gvl && set_off_by == Some(tid), "{pause:?}");
        ensure!(stall.culprit.is_none(), "Ruby's lines are not read: {:?}", stall.culprit);
        let is_said = |what: &str| gaps.iter().any(|gap| gap.starts_with(what));
        ensure!(is_said("frames that ruby interprets") && is_said("holder_thread"), "{gaps:?}");
        tally.compared();
    }
    let told = finished.told();
    ensure!(told.len() <= 3, "more stalls than three:\n{}", told.join("\n"));
    tally.must_be(3)
}

/// A thread that sleeps gives the GVL back, and nobody is reported.
#[test]
fn a_gvl_given_back_is_no_stall() -> Result<()> {
    let _machine = alone();
    let (_target, finished) = run(ruby(&["--healthy", "--times", "2"]), &[])?;
    let ends: Vec<_> = finished.own_ends().collect();
    ensure!(ends.is_empty(), "{} stalls invented", ends.len());
    Ok(())
}
