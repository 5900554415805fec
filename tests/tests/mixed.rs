//! A turn that went into several things: the largest is its cause, and the others are listed with their times.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use profiler_tests::clock::{MILLISECOND, milliseconds};
use profiler_tests::scenario::{THRESHOLD_NS, alone};
use profiler_tests::turns::{self, Watched, script};
use serde::Deserialize;

/// How far a part may be from the target's own word: its clock is read outside of what it measures, and a
/// hypervisor may take the CPU in between.
const NEAR_NS: u64 = 50 * MILLISECOND;

/// One turn, in the target's own words.
#[derive(Debug, Deserialize)]
struct Mixture {
    start_ns: u64,
    end_ns: u64,
    /// `cpu`, `sleep`, `recv`: ns.
    parts: BTreeMap<String, u64>,
}

impl Mixture {
    fn largest(&self) -> Option<&str> {
        self.parts.iter().max_by_key(|(_, ns)| **ns).map(|(kind, _)| kind.as_str())
    }
}

/// A part's name in a report.
fn part_of(kind: &str) -> &str {
    if kind == "syscall" { "recv" } else { kind }
}

/// The target's function in which a part's time goes.
fn place_of(part: &str) -> Option<&'static str> {
    let places = [("cpu", "compute"), ("sleep", "pause"), ("recv", "Neighbour.ask")];
    places.into_iter().find(|(known, _)| *known == part).map(|(_, function)| function)
}

fn watch(turns: &[&str]) -> Result<Watched<Mixture>> {
    let watched: Watched<Mixture> = turns::watch(script("mixed.py", turns), &[], "stalled")?;
    ensure!(watched.turns.len() == turns.len(), "{} turns", watched.turns.len());
    Ok(watched)
}

/// Each part is told once, the largest as the cause, with the time that the target gave it.
#[test]
fn the_largest_part_is_the_cause() -> Result<()> {
    let _machine = alone();
    let turns = [
        "cpu=400,sleep=150,recv=200",
        "sleep=400,cpu=150,recv=200",
        "recv=400,sleep=200,cpu=150",
        "sleep=150,recv=170,cpu=300",
    ];
    let Watched { turns: mixtures, finished, .. } = watch(&turns)?;
    for mixture in &mixtures {
        let stall = finished.stall_in(mixture.start_ns, mixture.end_ns);
        let stall = stall.context("a turn was missed")?;
        let starved_ns = stall.stall.time.runnable_ns;
        let told: BTreeMap<&str, u64> = stall
            .cause
            .also
            .iter()
            .map(|part| (part_of(part.kind.name()), part.time_ns))
            .chain([(part_of(stall.cause.kind.name()), stall.cause.time_ns)])
            .collect();
        for (kind, ns) in &mixture.parts {
            let told_ns = told.get(kind.as_str()).copied();
            let told_ns = told_ns.with_context(|| format!("{kind} is not told: {told:?}"))?;
            // Waking up took the thread as long as it had no CPU.
            let is_near = told_ns.abs_diff(*ns) <= NEAR_NS + starved_ns;
            ensure!(is_near, "{kind}: {} of {} ms", milliseconds(told_ns), milliseconds(*ns));
        }
        for part in &stall.cause.also {
            let function = part.culprit.as_ref().and_then(|culprit| culprit.function.as_deref());
            let expected = place_of(part_of(part.kind.name()));
            ensure!(expected.is_none() || function == expected, "{function:?} for {part:?}");
        }
        if starved_ns < THRESHOLD_NS / 2 {
            let cause = part_of(stall.cause.kind.name());
            ensure!(Some(cause) == mixture.largest(), "{cause} in {mixture:?}");
        }
        let parts_ns: u64 = told.values().sum();
        let duration_ns = stall.stall.duration_ns;
        ensure!(parts_ns <= duration_ns + MILLISECOND, "{parts_ns} of {duration_ns}");
    }
    Ok(())
}

/// The same parts in a turn that stays below the threshold are none of our business.
#[test]
fn a_short_mixture_is_silent() -> Result<()> {
    let _machine = alone();
    let watched = watch(&["cpu=10,sleep=20,recv=15", "sleep=15,cpu=10,recv=20"])?;
    let unexplained: Vec<_> = watched.finished.own_ends().collect();
    ensure!(unexplained.is_empty(), "{unexplained:?}");
    Ok(())
}
