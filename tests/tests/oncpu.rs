//! A loop that keeps its CPU: one call or many, the collector, page faults, the kernel; each against what
//! the target measured itself.

use anyhow::{Context as _, Result, bail, ensure};
use profiler_tests::report::{CauseKind, ReportedActivity, StallExt as _, StallLine};
use profiler_tests::scenario::{THRESHOLD_NS, alone};
use profiler_tests::tally::Tally;
use profiler_tests::turns::{self, Watched, script};
use serde::Deserialize;

/// Callbacks and tasks that the target runs in one turn.
const CALLS: u64 = 10_000;

/// How far a share by samples may be from the kernel's own count: of some thirty samples, one in ten is
/// chance.
const NEAR: f64 = 0.25;

/// Page faults that the target's own measuring has in the same turn.
const OTHER_FAULTS: u64 = 100;

/// One turn, in the target's own words.
#[derive(Debug, Deserialize)]
struct Turn {
    name: String,
    start_ns: u64,
    end_ns: u64,
    minor_faults: u64,
    kernel_share: f64,
}

/// What was said of a turn's time on the CPU, whether that was its largest part or not.
#[derive(Debug)]
struct Told {
    kind: CauseKind,
    culprit: Option<String>,
}

fn told(end: &StallLine) -> Option<Told> {
    let own = (&end.cause.kind, &end.culprit);
    let parts = end.cause.also.iter().map(|part| (&part.kind, &part.culprit));
    let is_it =
        |kind: &CauseKind| matches!(kind, CauseKind::Cpu { .. } | CauseKind::Saturated { .. });
    let (kind, culprit) = std::iter::once(own).chain(parts).find(|(kind, _)| is_it(kind))?;
    let culprit = culprit.as_ref().and_then(|culprit| culprit.function.clone());
    Some(Told { kind: kind.clone(), culprit })
}

/// Plays these turns, and those that the machine had no CPU for once more; what the target measured of each, and what
/// was told of it.
fn watch(names: &[&str]) -> Result<Vec<(Turn, Told)>> {
    const TRIES: usize = 5;
    let mut tally = Tally::of(format!("oncpu/{}", names.join("+")));
    let mut seen = Vec::new();
    let mut left = names.to_vec();
    for _ in 0..TRIES {
        left = watch_once(&left, &mut seen, &mut tally)?;
        if left.is_empty() {
            break;
        }
    }
    tally.must_be(names.len())?;
    Ok(seen)
}

/// Which of the turns are to be played again.
fn watch_once<'a>(
    names: &[&'a str],
    seen: &mut Vec<(Turn, Told)>,
    tally: &mut Tally,
) -> Result<Vec<&'a str>> {
    let watched: Watched<Turn> = turns::watch(script("oncpu.py", names), &[], "stalled")?;
    let Watched { turns, finished, .. } = watched;
    ensure!(turns.len() == names.len(), "{} turns", turns.len());
    let mut starved = Vec::new();
    for (name, turn) in names.iter().zip(turns) {
        ensure!(turn.name == *name, "{turn:?} instead of {name}");
        let duration_ns = turn.end_ns - turn.start_ns;
        ensure!(duration_ns >= THRESHOLD_NS, "{name} took {duration_ns} ns, which is no stall");
        let end = finished.ends().find(|end| {
            let from_ns = end.stall.start_monotonic_ns.max(turn.start_ns);
            end.end_ns().min(turn.end_ns).saturating_sub(from_ns) > duration_ns / 2
        });
        let end = end.with_context(|| format!("{turn:?} was not reported"))?;
        let Some(told) = told(end) else {
            // What is a small part of a stall is not listed.
            ensure!(end.is_starved(), "{name}: {:?}", end.cause);
            tally.passed_over(format!("{name}: {}", end.cause.summary));
            starved.push(*name);
            continue;
        };
        println!("{name}: {}", end.cause.summary);
        tally.compared();
        seen.push((turn, told));
    }
    Ok(starved)
}

/// Ten thousand calls of one function are not one call of it, nor is one call many: callbacks and tasks.
#[test]
fn many_short_calls_and_a_long_one() -> Result<()> {
    let _machine = alone();
    for (turn, told) in watch(&["callbacks", "long", "tasks"])? {
        ensure!(told.culprit.as_deref() == Some("count_words"), "{}: {told:?}", turn.name);
        if turn.name == "long" {
            let is_one = matches!(told.kind, CauseKind::Cpu { single_call: Some(true), .. });
            ensure!(is_one, "{told:?}");
            continue;
        }
        let CauseKind::Saturated { callbacks, calls_seen, .. } = &told.kind else {
            bail!("{}: {told:?}", turn.name);
        };
        let samples: u64 = callbacks.iter().map(|callback| callback.samples).sum();
        let calls = calls_seen.context("no calls were told apart")?;
        // Hardly two samples fall into the same 20 µs; the first came before anybody knew where to look.
        ensure!(calls * 2 > samples && calls <= CALLS, "{calls} calls in {samples} samples");
    }
    Ok(())
}

/// The collector is told from a program that makes objects and collects none.
#[test]
fn garbage_collection() -> Result<()> {
    let _machine = alone();
    for (turn, told) in watch(&["collect", "objects"])? {
        let is_expected = turn.name == "collect";
        let collection = Some(ReportedActivity::GarbageCollection);
        // Many short callbacks, which the objects may be taken for, have no activity.
        let is_told =
            matches!(told.kind, CauseKind::Cpu { activity, .. } if activity == collection);
        ensure!(is_told == is_expected, "{}: {told:?}", turn.name);
        let culprit = if is_expected { "collect_garbage" } else { "make_objects" };
        ensure!(told.culprit.as_deref() == Some(culprit), "{}: {told:?}", turn.name);
    }
    Ok(())
}

/// Memory that is touched first is told from the same memory touched again, and faults are counted as
/// the kernel counts them.
#[test]
fn page_faults() -> Result<()> {
    let _machine = alone();
    for (turn, told) in watch(&["touch", "retouch"])? {
        let CauseKind::Cpu { activity, minor_faults, .. } = told.kind else {
            bail!("{}: {told:?}", turn.name);
        };
        let expected = (turn.name == "touch").then_some(ReportedActivity::PageFaults);
        ensure!(activity == expected, "{}: {told:?}", turn.name);
        let is_near = u64::from(minor_faults).abs_diff(turn.minor_faults) <= OTHER_FAULTS;
        ensure!(is_near, "{}: {minor_faults} faults of {}", turn.name, turn.minor_faults);
    }
    Ok(())
}

/// How much of it was the kernel's, and in which system call.
#[test]
fn kernel_and_user() -> Result<()> {
    let _machine = alone();
    for (turn, told) in watch(&["read", "long"])? {
        let CauseKind::Cpu { kernel_share, syscall, .. } = &told.kind else {
            bail!("{}: {told:?}", turn.name);
        };
        let share = kernel_share.context("no share is told")?;
        let is_near = (share - turn.kernel_share).abs() <= NEAR;
        ensure!(is_near, "{}: {share} instead of {}", turn.name, turn.kernel_share);
        let expected = (turn.name == "read").then_some("read");
        ensure!(syscall.as_deref() == expected, "{}: {told:?}", turn.name);
    }
    Ok(())
}
