//! A loop that keeps its CPU: one call or many, the collector, page faults, the kernel; each against what
//! the target measured itself.

use anyhow::{Context as _, Result, ensure};
use profiler_tests::report::{OnCpu, StallLine};
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
    kind: String,
    culprit: Option<String>,
    on_cpu: OnCpu,
}

fn told(end: &StallLine) -> Option<Told> {
    let is_it = |kind: &str| matches!(kind, "cpu" | "saturated");
    if is_it(&end.cause.kind) {
        let culprit = end.culprit.as_ref().and_then(|culprit| culprit.function.clone());
        let (kind, on_cpu) = (end.cause.kind.clone(), end.cause.on_cpu.clone());
        return Some(Told { kind, culprit, on_cpu });
    }
    let part = end.cause.also.iter().find(|part| is_it(&part.kind))?;
    let culprit = part.culprit.as_ref().and_then(|culprit| culprit.function.clone());
    Some(Told { kind: part.kind.clone(), culprit, on_cpu: part.on_cpu.clone() })
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
        let Told { kind, culprit, on_cpu, .. } = &told;
        ensure!(culprit.as_deref() == Some("count_words"), "{}: {told:?}", turn.name);
        if turn.name == "long" {
            ensure!(kind == "cpu" && on_cpu.single_call == Some(true), "{told:?}");
            continue;
        }
        ensure!(kind == "saturated", "{}: {told:?}", turn.name);
        let callbacks = on_cpu.callbacks.as_deref().unwrap_or_default();
        let samples: u64 = callbacks.iter().map(|callback| callback.samples).sum();
        let calls = on_cpu.calls_seen.context("no calls were told apart")?;
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
        let expected = (turn.name == "collect").then_some("garbage_collection");
        let activity = told.on_cpu.activity.as_deref();
        let is_right = if expected.is_some() {
            activity == expected
        } else {
            activity != Some("garbage_collection")
        };
        ensure!(is_right, "{}: {told:?}", turn.name);
        let culprit = if expected.is_some() { "collect_garbage" } else { "make_objects" };
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
        let expected = (turn.name == "touch").then_some("page_faults");
        ensure!(told.on_cpu.activity.as_deref() == expected, "{}: {told:?}", turn.name);
        let faults = told.on_cpu.minor_faults.context("no faults are told")?;
        let is_near = faults.abs_diff(turn.minor_faults) <= OTHER_FAULTS;
        ensure!(is_near, "{}: {faults} faults of {}", turn.name, turn.minor_faults);
    }
    Ok(())
}

/// How much of it was the kernel's, and in which system call.
#[test]
fn kernel_and_user() -> Result<()> {
    let _machine = alone();
    for (turn, told) in watch(&["read", "long"])? {
        let share = told.on_cpu.kernel_share.context("no share is told")?;
        let is_near = (share - turn.kernel_share).abs() <= NEAR;
        ensure!(is_near, "{}: {share} instead of {}", turn.name, turn.kernel_share);
        let expected = (turn.name == "read").then_some("read");
        ensure!(told.on_cpu.syscall.as_deref() == expected, "{}: {told:?}", turn.name);
    }
    Ok(())
}
