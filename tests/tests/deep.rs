//! Deep recursion: the handler at the outer end of a stack is named, however many frames lie above it.

use anyhow::{Context as _, Result, ensure};
use profiler_tests::interpreters::{Interpreter, all};
use profiler_tests::report::{
    ReportedLanguage, ReportedStack, Role, StallExt as _, StallLine, basename, file_of,
};
use profiler_tests::scenario::alone;
use profiler_tests::tally::Tally;
use profiler_tests::turns::{Watched, watch};
use serde::Deserialize;

/// One turn, in the target's own words.
#[derive(Debug, Deserialize)]
struct Turn {
    kind: String,
    depth: u64,
    function: String,
    /// Python frames at the innermost, by the target's own count.
    frames: u64,
    start_ns: u64,
    end_ns: u64,
}

/// Before 3.11 each call of a Python function is one of the C stack's, which ends at 8 MiB.
const OF_EACH_VERSION: [&str; 6] =
    ["copy=30", "pause=30", "copy=200", "pause=200", "copy=800", "pause=800"];
const SINCE_3_11: [&str; 2] = ["copy=5000", "pause=5000"];

fn turns_of(interpreter: &Interpreter) -> Vec<&'static str> {
    let is_old = ["3.8", "3.9", "3.10"].iter().any(|old| interpreter.name.starts_with(old));
    let deeper: &[&str] = if is_old { &[] } else { &SINCE_3_11 };
    [&OF_EACH_VERSION, deeper].concat()
}

/// The frame to look at first is the application's: the handler that had the data copied, or, where that is further in, what of
/// the application was called at the very end.
fn check(stall: &StallLine, turn: &Turn) -> Result<()> {
    let culprit = stall.culprit.as_ref().context("nobody is blamed")?;
    let name = culprit.function.as_deref().unwrap_or_default();
    ensure!(name.rsplit('.').next() == Some(&turn.function), "{culprit:?}");
    ensure!(file_of(culprit) == Some("deep.py"), "{culprit:?}");

    // The handler is on the stacks of most of the time, and so is the loop itself. In code that a JIT made, frames may
    // be found amid a change.
    let of_loop = || stall.stacks.iter().filter(|stack| stack.role == Role::Loop);
    let handles = |stack: &&ReportedStack| {
        let names = stack.frames.iter().filter_map(|frame| frame.function.as_deref());
        names.filter(|name| name.rsplit('.').next() == Some("log_request")).count() > 0
    };
    let whole_ns: u64 = of_loop().map(|stack| stack.time_ns).sum();
    let handled_ns: u64 = of_loop().filter(handles).map(|stack| stack.time_ns).sum();
    ensure!(handled_ns > whole_ns / 2, "the handler is cut off in most of {whole_ns} ns");
    let heaviest = of_loop().filter(handles).max_by_key(|stack| stack.time_ns);
    let heaviest = heaviest.context("no stack")?;
    let python: Vec<_> =
        heaviest.frames.iter().filter(|frame| frame.language == ReportedLanguage::Python).collect();
    let place = |function: &str| {
        let is_it = |name: &str| name.rsplit('.').next() == Some(function);
        python.iter().position(|frame| frame.function.as_deref().is_some_and(is_it))
    };
    let handler = place("log_request").context("the handler is cut off")?;
    let run = place("_run").context("the loop is cut off")?;
    ensure!(handler < run, "the loop stands further in than its handler");

    // A stack that stands still has been counted: what is missing is said, to the frame.
    let shown = python.len() as u64;
    let left_out = u64::from(heaviest.left_out);
    let is_said = |gap: &String| gap.starts_with("Python frames in the middle: ");
    ensure!(left_out == 0 || stall.gaps.iter().any(is_said), "{:?}", stall.gaps);
    if turn.kind == "pause" {
        let missing = turn.frames.checked_sub(shown).context("more than there were")?;
        ensure!(missing == left_out, "{missing} are missing, {left_out} are said to be");
        let files = python.iter().filter_map(|frame| frame.file.as_deref());
        ensure!(files.map(basename).any(|file| file == "copy.py"), "the inner end is missing");
    }
    ensure!(turn.frames > 256 || left_out == 0, "{left_out} of {}", turn.frames);
    Ok(())
}

/// At any depth, on each version, busy and asleep.
#[test]
fn at_any_depth() -> Result<()> {
    let _machine = alone();
    for interpreter in all()? {
        let mut tally = Tally::of(format!("deep/{}", interpreter.name));
        let mut command = interpreter.run("deep.py")?;
        command.args(turns_of(&interpreter));
        let Watched { turns, finished, .. } = watch::<Turn>(command, &[], "stalled")?;
        for turn in &turns {
            let words = || format!("{} in {}: {turn:?}", turn.depth, interpreter.name);
            let stall = finished.stall_in(turn.start_ns, turn.end_ns).with_context(words)?;
            println!("{}: {} {}", interpreter.name, turn.depth, stall.cause.summary);
            if stall.is_starved() && stall.culprit.is_none() {
                tally.passed_over(format!("{}: {}", words(), stall.cause.summary));
                continue;
            }
            check(stall, turn).with_context(words)?;
            tally.compared();
        }
        tally.must_be(turns.len() / 2)?;
    }
    Ok(())
}
