//! A CPython without the GIL: what stops all threads there, and the lock of a list that another thread sorts.

use anyhow::{Context as _, Result, ensure};
use profiler_tests::clock::patience;
use profiler_tests::interpreters::{Interpreter, all};
use profiler_tests::report::{StallExt as _, StallLine};
use profiler_tests::scenario::{THRESHOLD_NS, alone};
use profiler_tests::tally::Tally;
use profiler_tests::turns::run;

/// How often the loop is kept waiting.
const TIMES: usize = 3;

/// Those that were built without the lock; which are not there is said.
fn interpreters() -> Result<Vec<Interpreter>> {
    Ok(all()?.into_iter().filter(|it| it.name.ends_with('t')).collect())
}

/// One time that the other thread kept the loop waiting, in its own words.
struct Kept {
    tid: u64,
    line: u64,
    start_ns: u64,
    end_ns: u64,
}

/// Plays a kind; each stall that the target knows of goes to `must_be`.
fn plays(kind: &str, must_be: impl Fn(&Kept, &StallLine) -> Result<()>) -> Result<()> {
    for interpreter in interpreters()? {
        let mut tally = Tally::of(format!("no_gil/{kind}/{}", interpreter.name));
        let (target, finished) = run(interpreter.run_with("no_gil.py", &[kind])?, &[])?;
        for time in 0..TIMES {
            let words = target.line_starting("kept", patience(60))?;
            let numbers: Vec<u64> =
                words.split(' ').skip(1).map(str::parse).collect::<Result<_, _>>()?;
            let &[tid, line, start_ns, end_ns] = &numbers[..] else {
                anyhow::bail!("odd words of the target: {words:?}");
            };
            let stall = finished.ends().find(|end| {
                end.stall.start_monotonic_ns < end_ns && end.end_ns() > start_ns + THRESHOLD_NS
            });
            let stall = stall.with_context(|| format!("time {time} was missed"))?;
            let kept = Kept { tid, line, start_ns, end_ns };
            must_be(&kept, stall).with_context(|| stall.cause.summary.clone())?;
            tally.compared();
        }
        let (_target, healthy) =
            run(interpreter.run_with("no_gil.py", &[kind, "--healthy"])?, &[])?;
        ensure!(healthy.told().is_empty(), "stalls invented: {:?}", healthy.told());
        tally.must_be(TIMES)?;
    }
    Ok(())
}

/// The collector stops all threads: whose line set it off is named, not where the loop happened to be.
#[test]
fn the_collector() -> Result<()> {
    let _machine = alone();
    plays("collect", |kept, stall| {
        ensure!(stall.is_caused_by("lock"));
        let summary = &stall.cause.summary;
        ensure!(summary.starts_with("stopped by the interpreter"));
        ensure!(summary.contains(&format!("set off by thread {} (reports)", kept.tid)));
        let culprit = stall.culprit.as_ref().context("nobody is blamed")?;
        ensure!(culprit.function.as_deref() == Some("collect"), "{culprit:?}");
        ensure!(culprit.line.map(u64::from) == Some(kept.line), "{culprit:?}");
        ensure!(kept.end_ns - kept.start_ns >= 2 * THRESHOLD_NS, "it was not kept for long");
        Ok(())
    })
}

/// A list is sorted by another thread: the loop waits for the list's own lock.
#[test]
fn the_lock_of_an_object() -> Result<()> {
    let _machine = alone();
    plays("object", |kept, stall| {
        ensure!(stall.is_caused_by("lock"));
        let expected = format!("that another thread uses, released by thread {}", kept.tid);
        ensure!(stall.cause.summary.contains(&expected));
        Ok(())
    })
}
