//! An echo's turns to what each probe takes of them, beside a program on the same hook that does nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use profiler_tests::programs::held_by;
use profiler_tests::report::Event;
use profiler_tests::tracer::Tracer;

use crate::arms::{SETTLE, about_stalls, detach};
use crate::cpu::{Places, on};
use crate::echo::Echo;
use crate::stats::{self, Empties, Hook, Ran, TICK, WaitHooks};
use crate::table::{Aim, Compare, Measured, Row};

/// Whose events the probes see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Others,
    Target,
}

/// What one round gave.
#[derive(Debug, Default)]
struct Round {
    /// ns per call of the empty program and of the probe.
    costs: BTreeMap<Hook, (f64, f64)>,
    /// Of all probes together less the empty ones, for each turn of the echo.
    ns_per_turn: f64,
    ticks: u64,
    stalls: usize,
}

pub fn measure(rounds: usize, run: Duration) -> Result<Measured> {
    stats::see_tracepoints()?;
    let waits = wait_hooks()?;
    let _counting = stats::counting()?;
    let (mut rows, mut ticks, mut stalls) = (Vec::new(), Vec::new(), 0);
    for (whose, name) in [(Whose::Others, "of others"), (Whose::Target, "of the target")] {
        let mut taken = Vec::new();
        for _ in 0..rounds {
            taken.push(round(whose, waits, run)?);
        }
        for hook in Hook::ALL {
            let costs = taken.iter().filter_map(|round| round.costs.get(&hook));
            let (off, on) = costs.copied().unzip();
            let aim = (whose == Whose::Others && hook == Hook::Switch).then_some(Aim::AtMost(8.0));
            let what = format!("{} {name}", hook.name());
            rows.push(Row { what, unit: "ns/event", off, on, compare: Compare::Difference, aim });
        }
        rows.push(Row {
            what: format!("all probes, a turn {name}"),
            unit: "ns/turn",
            off: Vec::new(),
            on: taken.iter().map(|round| round.ns_per_turn).collect(),
            compare: Compare::Alone,
            aim: None,
        });
        ticks.extend(taken.iter().map(|round| round.ticks as f64));
        stalls += taken.iter().map(|round| round.stalls).sum::<usize>();
    }
    rows.push(Row {
        what: "ticks while nothing stalls".to_owned(),
        unit: "calls",
        off: Vec::new(),
        on: ticks,
        compare: Compare::Alone,
        aim: Some(Aim::AtMost(0.0)),
    });
    let mut notes = vec![format!(
        "waits are hooked by {}",
        match waits {
            WaitHooks::Fentry => "fentry",
            WaitHooks::Tracepoint => "syscall tracepoints",
        }
    )];
    notes.extend(about_stalls(stalls));
    Ok(Measured {
        meaning: "off: an empty program on the same hook; on: the probe; both with the cost of being measured",
        rows,
        notes,
    })
}

/// Which hooks the daemon takes here.
fn wait_hooks() -> Result<WaitHooks> {
    let echo = Echo::start()?;
    let (tracer, start) = Tracer::attach(echo.pid(), &[])?;
    detach(tracer)?;
    Ok(match start.line.event {
        Event::SessionStart(start) if start.wait_hooks == "fentry" => WaitHooks::Fentry,
        _ => WaitHooks::Tracepoint,
    })
}

/// The echo and whoever drives it share a CPU: every turn of it is two switches and two wakeups.
fn round(whose: Whose, waits: WaitHooks, run: Duration) -> Result<Round> {
    let place = Places::find()?.server;
    let mut echo = Echo::start()?;
    let bystander = Echo::start()?;
    let target = if whose == Whose::Target { echo.pid() } else { bystander.pid() };

    // The first program on a hook finds colder caches than the second: an empty one before the probe
    // and one after it, and their mean.
    let before = Empties::attach(waits)?;
    let (tracer, _) = Tracer::attach(target, &[])?;
    let after = Empties::attach(waits)?;
    std::thread::sleep(SETTLE);
    let ids = held_by(tracer.pid())?;
    let look = || -> Result<_> {
        let probes = stats::of(&ids);
        let mut empties = Vec::new();
        for hook in Hook::ALL {
            empties.push((before.ran(hook)?, after.ran(hook)?));
        }
        Ok((probes, empties))
    };
    let (probes_0, empties_0) = look()?;
    let turns = on(place, || echo.keep_busy(run))?;
    let (probes_1, empties_1) = look()?;

    let mut taken = Round { stalls: detach(tracer)?, ..Round::default() };
    for ((hook, first), last) in Hook::ALL.into_iter().zip(&empties_0).zip(&empties_1) {
        let probe = grown(&probes_0, &probes_1, &hook.programs())
            .with_context(|| format!("no probe on {} was seen", hook.name()))?;
        let empties = [last.0.since(first.0), last.1.since(first.1)];
        let [Some(before_ns), Some(after_ns)] = empties.map(Ran::ns_per_call) else { continue };
        let Some(on_ns) = probe.ns_per_call() else { continue };
        let off_ns = (before_ns + after_ns) / 2.0;
        taken.costs.insert(hook, (off_ns, on_ns));
        taken.ns_per_turn += (on_ns - off_ns) * probe.calls as f64 / turns.max(1) as f64;
    }
    taken.ticks = grown(&probes_0, &probes_1, &[TICK]).context("no program `tick`")?.calls;
    Ok(taken)
}

/// What the first of these programs that is there has added.
fn grown(
    before: &BTreeMap<String, Ran>,
    after: &BTreeMap<String, Ran>,
    names: &[&str],
) -> Option<Ran> {
    let name = names.iter().find(|name| after.contains_key(**name))?;
    Some(after.get(*name)?.since(before.get(*name).copied().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::{Ran, grown};
    use std::collections::BTreeMap;

    /// The program goes by either of its names, and one that was never loaded is not taken for idle.
    #[test]
    fn programs_are_found() {
        let at = |ns, calls| BTreeMap::from([("leave".to_owned(), Ran { ns, calls })]);
        let names = ["wait_left", "leave"];
        assert_eq!(grown(&at(100, 1), &at(300, 3), &names), Some(Ran { ns: 200, calls: 2 }));
        assert_eq!(grown(&at(100, 1), &at(300, 3), &["tick"]), None);
    }
}
