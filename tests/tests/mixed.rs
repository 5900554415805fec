//! A turn that went into several things: the largest is its cause, and the others are listed with their times.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use profiler_tests::clock::{MILLISECOND, milliseconds, patience};
use profiler_tests::lives::broken_contract;
use profiler_tests::report::StallLine;
use profiler_tests::scenario::{THRESHOLD_NS, alone, require_root};
use profiler_tests::target::{Target, folder, system_python};
use profiler_tests::tracer::Tracer;
use serde::Deserialize;

/// How far a part may be from the target's own word: its clock is read outside of what it measures.
const NEAR_NS: u64 = 20 * MILLISECOND;

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

fn watch(turns: &[&str]) -> Result<(Vec<Mixture>, Vec<StallLine>)> {
    require_root()?;
    let mut command = Command::new(system_python());
    command.arg(folder().join("mixed.py")).args(turns);
    let target = Target::program(command)?;
    target.line_starting("ready", patience(10))?;
    let (tracer, _) = Tracer::attach(target.pid(), &[])?;
    target.signal(Signal::SIGUSR1)?;
    let finished = tracer.finish()?;
    let broken = broken_contract(&finished.lines);
    ensure!(broken.is_empty(), "{broken:?}\n{}", finished.logs);
    let mut mixtures = Vec::new();
    while let Ok(line) = target.line_starting("stalled", patience(0)) {
        let text = line.trim_start_matches("stalled");
        mixtures.push(serde_json::from_str(text).with_context(|| line.clone())?);
    }
    ensure!(mixtures.len() == turns.len(), "{} turns", mixtures.len());
    Ok((mixtures, finished.ends().cloned().collect()))
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
    let (mixtures, ends) = watch(&turns)?;
    for mixture in &mixtures {
        let is_it = |end: &&StallLine| {
            end.stall.start_monotonic_ns < mixture.end_ns && end.end_ns() > mixture.start_ns
        };
        let stall = ends.iter().find(is_it).context("a turn was missed")?;
        let starved_ns = stall.stall.time.runnable_ns;
        let told: BTreeMap<&str, u64> = stall
            .cause
            .also
            .iter()
            .map(|part| (part_of(&part.kind), part.time_ns))
            .chain([(part_of(&stall.cause.kind), stall.cause.time_ns)])
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
            let expected = place_of(part_of(&part.kind));
            ensure!(expected.is_none() || function == expected, "{function:?} for {part:?}");
        }
        if starved_ns < THRESHOLD_NS / 2 {
            let cause = part_of(&stall.cause.kind);
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
    let (_, ends) = watch(&["cpu=10,sleep=20,recv=15", "sleep=15,cpu=10,recv=20"])?;
    let unexplained: Vec<_> = ends.iter().filter(|end| end.cause.kind != "run_queue").collect();
    ensure!(unexplained.is_empty(), "{unexplained:?}");
    Ok(())
}
