//! A loop that waits for the interpreter's lock: the thread that holds it is to blame, and not the line that waits.

use anyhow::{Context as _, Result, ensure};
use profiler_tests::clock::{milliseconds, patience};
use profiler_tests::interpreters::{Interpreter, all};
use profiler_tests::report::{ReportedLanguage, ReportedStack, Role, StallExt as _, StallLine};
use profiler_tests::scenario::{THRESHOLD_NS, alone};
use profiler_tests::tally::Tally;
use profiler_tests::target::Target;
use profiler_tests::tracer::Finished;
use profiler_tests::turns::run;

/// The system's own, and the newest, which keeps the lock's state in other places.
fn interpreters() -> Result<Vec<Interpreter>> {
    let is_wanted =
        |it: &Interpreter| it.name == "system" || it.name == "3.15 in a root of its own";
    Ok(all()?.into_iter().filter(is_wanted).collect())
}

/// The words of the target's line as numbers.
fn numbers(line: &str) -> Vec<u64> {
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Each time the lock is kept, the loop stalls; the keeper's thread, function and line are named.
#[test]
fn the_holder_is_blamed() -> Result<()> {
    let _machine = alone();
    for interpreter in interpreters()? {
        holder_is_blamed(&interpreter).with_context(|| interpreter.name.clone())?;
    }
    Ok(())
}

fn holder_is_blamed(interpreter: &Interpreter) -> Result<()> {
    let (target, finished) = run(interpreter.run_with("gil.py", &["--times", "3"])?, &[])?;
    let ends: Vec<_> = finished.ends().collect();
    let mut tally = Tally::of(format!("gil/the_holder_is_blamed/{}", interpreter.name));
    for time in 0..3 {
        let holding = numbers(&target.line_starting("holding", patience(60))?);
        let held = numbers(&target.line_starting("held", patience(60))?);
        let (&[tid, line, start_ns], &[end_ns]) = (&holding[..], &held[..]) else {
            anyhow::bail!("odd lines of the target: {holding:?} {held:?}");
        };
        let kept_ns = end_ns - start_ns;
        ensure!(kept_ns >= 2 * THRESHOLD_NS, "kept for {} only", milliseconds(kept_ns));
        let stall = ends.iter().find(|end| {
            end.stall.start_monotonic_ns < end_ns && end.end_ns() > start_ns + THRESHOLD_NS
        });
        let stall = stall.with_context(|| format!("time {time} was missed"))?;
        ensure!(stall.is_caused_by("gil"), "{:?}", stall.cause);
        let culprit = stall.culprit.as_ref().context("nobody is blamed")?;
        ensure!(culprit.function.as_deref() == Some("match_report"), "{culprit:?}");
        ensure!(culprit.line.map(u64::from) == Some(line), "{culprit:?} instead of line {line}");
        ensure!(u64::from(culprit.thread) == tid, "{culprit:?} instead of thread {tid}");
        let mut holder = stall.stacks.iter().filter(|stack| stack.role == Role::Holder);
        let is_native = |stack: &ReportedStack| {
            stack.frames.iter().any(|frame| frame.language == ReportedLanguage::Native)
        };
        ensure!(holder.any(is_native), "no stack of the holder down to the call into C");
        tally.compared();
    }
    nothing_invented(&target, &finished)?;
    tally.must_be(3)
}

/// Each stall is one that the loop itself felt: on an emulated machine there may be more than were made.
fn nothing_invented(target: &Target, finished: &Finished) -> Result<()> {
    let late = numbers(&target.line_starting("late", patience(60))?);
    let is_felt = |end: &&StallLine| {
        late.chunks_exact(2)
            .any(|round| end.stall.start_monotonic_ns < round[1] && end.end_ns() > round[0])
    };
    let invented: Vec<_> = finished.own_ends().filter(|end| !is_felt(end)).collect();
    ensure!(invented.is_empty(), "{invented:?}");
    Ok(())
}

/// A thread that sleeps gives the lock back, and nobody is reported.
#[test]
fn a_lock_given_back_is_no_stall() -> Result<()> {
    let _machine = alone();
    for interpreter in interpreters()? {
        let (target, finished) =
            run(interpreter.run_with("gil.py", &["--healthy", "--times", "2"])?, &[])?;
        nothing_invented(&target, &finished).with_context(|| interpreter.name.clone())?;
    }
    Ok(())
}
