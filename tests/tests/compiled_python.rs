//! Python code that a JIT has compiled, and the same code without: the same function, and its frames where they were called.

use anyhow::{Context as _, Result, ensure};
use profiler_tests::interpreters::{Interpreter, all};
use profiler_tests::report::StallExt as _;
use profiler_tests::scenario::{THRESHOLD_NS, alone, require_root};
use profiler_tests::tally::{Tally, skip};
use profiler_tests::turns::{Watched, watch};
use serde::Deserialize;

/// A stall as the target saw it.
#[derive(Debug, Deserialize)]
struct Seen {
    kind: String,
    start_ns: u64,
    end_ns: u64,
}

/// What is said of code that has no file.
const MADE: &str = "in code that was made at run time";

/// Who may be to blame for each kind: the innermost of its functions, wherever it was found.
const FUNCTIONS: [(&str, &[&str]); 2] = [("asleep", &["nap"]), ("busy", &["busy", "step"])];

fn played(interpreter: &Interpreter, options: &[&str]) -> Result<Watched<Seen>> {
    watch(interpreter.run_with("compiled.py", options)?, &[], "stalled")
}

fn stalls_of(interpreter: &Interpreter, tally: &mut Tally) -> Result<()> {
    let Watched { turns: seen, finished, .. } = played(interpreter, &[])?;
    ensure!(seen.len() == 2, "{seen:?}");
    let mut is_made = false;
    for Seen { kind, start_ns, end_ns } in seen {
        let stall = finished.ends().find(|end| {
            end.stall.start_monotonic_ns < end_ns && end.end_ns() > start_ns + THRESHOLD_NS
        });
        let stall = stall.with_context(|| format!("{kind} was missed"))?;
        is_made |= stall.gaps.iter().any(|gap| gap.contains(MADE));
        let doubt = stall.gaps.iter().find(|gap| gap.contains("calling order"));
        ensure!(doubt.is_none(), "{kind}: {doubt:?}");
        if stall.is_starved() && stall.culprit.is_none() {
            tally.passed_over(format!("{kind}: {}", stall.cause.summary));
            continue;
        }
        let culprit = stall.culprit.as_ref().context("nobody is blamed")?;
        let function = culprit.function.as_deref().unwrap_or_default();
        let may_be = FUNCTIONS.iter().find(|(of, _)| *of == kind).context("an odd kind")?.1;
        ensure!(may_be.contains(&function), "{kind}: {culprit:?}");
        tally.compared();
    }
    ensure!(is_made == interpreter.has_jit(), "code of a JIT was seen: {is_made}");
    Ok(())
}

/// With the JIT and without.
#[test]
fn compiled_or_not() -> Result<()> {
    require_root()?;
    let _machine = alone();
    let all = all()?;
    let Some(with_jit) = all.iter().find(|interpreter| interpreter.has_jit()) else {
        return skip("compiled_python/compiled_or_not", "no CPython with a JIT is here");
    };
    let without = all.iter().find(|it| with_jit.name.starts_with(&*it.name) && !it.has_jit());
    for interpreter in [with_jit, without.context("it is there without its JIT, too")?] {
        let mut tally = Tally::of(format!("compiled_python/{}", interpreter.name));
        stalls_of(interpreter, &mut tally).with_context(|| interpreter.name.clone())?;
        tally.must_be(1)?;
    }
    Ok(())
}

/// The healthy twin computes as much in short pieces.
#[test]
fn short_pieces_are_no_stall() -> Result<()> {
    require_root()?;
    let _machine = alone();
    let all = all()?;
    let Some(with_jit) = all.iter().find(|interpreter| interpreter.has_jit()) else {
        return skip("compiled_python/short_pieces_are_no_stall", "no CPython with a JIT is here");
    };
    let finished = played(with_jit, &["--healthy"])?.finished;
    ensure!(finished.own_ends().count() == 0, "stalls invented");
    Ok(())
}
