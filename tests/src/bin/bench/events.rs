//! An echo's turns to what each probe takes of them, beside a program on the same hook that does nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use profiler_tests::programs::held_by;
use profiler_tests::report::{self, Report};
use profiler_tests::tracer::Tracer;

use crate::arms::{SETTLE, about_stalls, detach};
use crate::cpu::{Places, on};
use crate::echo::Echo;
use crate::stats::{self, Empties, Hook, Ran, TICK, WaitHooks};
use crate::table::{Aim, Compare, Measured, Row};

/// Whose loop is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driven {
    Bystander,
    Target,
}

/// Without statistics, and with them.
const OFF: &[&str] = &["--stats-interval", "off"];
const ON: &[&str] = &["--stats-interval", "60s"];

/// ns that statistics may add to a turn; 26 to 31 were measured.
const STATISTICS_NS: f64 = 40.0;

/// What was counted on one hook.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Counted {
    /// ns per call of the empty program.
    off_ns: f64,
    /// ns per call of the probe.
    on_ns: f64,
    /// Calls of the probe.
    calls: u64,
}

impl Counted {
    fn added_ns(self) -> f64 {
        self.on_ns - self.off_ns
    }

    /// The events of the target alone: `self` counts those of everybody while the target made `own` of
    /// them, and an event of somebody else costs what it did when the target slept.
    fn without(self, others: Self, own: f64) -> f64 {
        let foreign = (self.calls as f64 - own).max(0.0);
        (self.added_ns() * self.calls as f64 - others.added_ns() * foreign) / own
    }
}

/// What one look at a busy loop gave.
#[derive(Debug, Default)]
struct Look {
    hooks: BTreeMap<Hook, Counted>,
    turns: u64,
    ticks: u64,
    stalls: usize,
}

impl Look {
    /// What an event of the target costs on a hook, where `others` were seen at their own price.
    fn own_ns(&self, hook: Hook, others: &Self) -> Option<f64> {
        let (all, foreign) = (self.hooks.get(&hook)?, others.hooks.get(&hook)?);
        Some(all.without(*foreign, hook.of_the_loop() * self.turns.max(1) as f64))
    }
}

/// Figures by hook, a value a round: off, on.
type ByHook = BTreeMap<Hook, (Vec<f64>, Vec<f64>)>;

pub fn measure(rounds: usize, run: Duration) -> Result<Measured> {
    stats::see_tracepoints()?;
    let waits = wait_hooks()?;
    let _counting = stats::counting()?;
    let (mut of_others, mut of_target) = (ByHook::new(), ByHook::new());
    let (mut turns_of_others, mut turns_of_target) = (Vec::new(), Vec::new());
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let (mut ticks, mut stalls) = (Vec::new(), 0);
    for _ in 0..rounds {
        let others = look(Driven::Bystander, waits, run)?;
        let mixed = look(Driven::Target, waits, run)?;
        // Whose probes come first on a hook finds colder caches.
        let ([off_first, on_second], stalled) = both([OFF, ON], run)?;
        let ([on_first, off_second], stalled_again) = both([ON, OFF], run)?;
        let (mut turn_of_others, mut turn_of_target) = (0.0, 0.0);
        for (hook, all) in &mixed.hooks {
            let Some(foreign) = others.hooks.get(hook) else { continue };
            let Some(own_ns) = mixed.own_ns(*hook, &others) else { continue };
            let each = hook.of_the_loop();
            turn_of_others += foreign.added_ns() * each;
            turn_of_target += own_ns * each;
            push(&mut of_others, *hook, foreign.off_ns, foreign.on_ns);
            push(&mut of_target, *hook, all.off_ns, all.off_ns + own_ns);
        }
        without.push((off_first + off_second) / 2.0);
        with.push((on_first + on_second) / 2.0);
        turns_of_others.push(turn_of_others);
        turns_of_target.push(turn_of_target);
        ticks.push((others.ticks + mixed.ticks) as f64);
        stalls += others.stalls + mixed.stalls + stalled + stalled_again;
    }
    let mut rows =
        by_hook("of others", of_others, |hook| (hook == Hook::Switch).then_some(Aim::AtMost(8.0)));
    rows.push(alone("all four, a turn of others", "ns/turn", turns_of_others, None));
    rows.extend(by_hook("of the target", of_target, |_| None));
    rows.push(alone("all four, a turn of the target", "ns/turn", turns_of_target, None));
    rows.push(Row {
        what: "statistics, a turn of the target".to_owned(),
        unit: "ns/turn",
        off: without,
        on: with,
        compare: Compare::Difference,
        aim: Some(Aim::AtMost(STATISTICS_NS)),
    });
    rows.push(alone("ticks while nothing stalls", "calls", ticks, Some(Aim::AtMost(0.0))));
    let waits = match waits {
        WaitHooks::Fentry => "fentry",
        WaitHooks::Tracepoint => "syscall tracepoints",
    };
    let mut notes =
        vec![format!("waits are hooked by {waits}; the way to the hook is not counted")];
    notes.extend(about_stalls(stalls));
    Ok(Measured {
        meaning: "off: an empty program on the same hook; on: the probe; both with the cost of being measured",
        rows,
        notes,
    })
}

fn push(figures: &mut ByHook, hook: Hook, off: f64, on: f64) {
    let (offs, ons) = figures.entry(hook).or_default();
    offs.push(off);
    ons.push(on);
}

fn by_hook(whose: &str, figures: ByHook, aim: impl Fn(Hook) -> Option<Aim>) -> Vec<Row> {
    let row = |(hook, (off, on)): (Hook, _)| Row {
        what: format!("{} {whose}", hook.name()),
        unit: "ns/event",
        off,
        on,
        compare: Compare::Difference,
        aim: aim(hook),
    };
    figures.into_iter().map(row).collect()
}

fn alone(what: &str, unit: &'static str, on: Vec<f64>, aim: Option<Aim>) -> Row {
    let (what, off) = (what.to_owned(), Vec::new());
    Row { what, unit, off, on, compare: Compare::Alone, aim }
}

/// Which hooks the daemon takes here.
fn wait_hooks() -> Result<WaitHooks> {
    let echo = Echo::start()?;
    let (tracer, start) = Tracer::attach(echo.pid(), OFF)?;
    detach(tracer)?;
    Ok(match start.line {
        Report::SessionStart(start) if start.wait_hooks == report::ReportedWaitHooks::Fentry => {
            WaitHooks::Fentry
        }
        _ => WaitHooks::Tracepoint,
    })
}

/// An echo and whoever drives it share a CPU: in each turn the echo sleeps and is woken once.
fn look(driven: Driven, waits: WaitHooks, run: Duration) -> Result<Look> {
    let place = Places::find()?.server;
    let mut echo = Echo::start()?;
    let sleeper = Echo::start()?;
    let target = if driven == Driven::Target { echo.pid() } else { sleeper.pid() };

    // The first program on a hook finds colder caches than the second: an empty one before the probe
    // and one after it, and their mean.
    let before = Empties::attach(waits)?;
    let (tracer, _) = Tracer::attach(target, OFF)?;
    let after = Empties::attach(waits)?;
    std::thread::sleep(SETTLE);
    let ids = held_by(tracer.pid())?;
    let count = || -> Result<_> {
        let probes = stats::of(&ids);
        let empties = Hook::ALL.map(|hook| Ok([before.ran(hook)?, after.ran(hook)?]));
        Ok((probes, empties.into_iter().collect::<Result<Vec<_>>>()?))
    };
    let (probes_before, empties_before) = count()?;
    let turns = on(place, || echo.keep_busy(run))?;
    let (probes_after, empties_after) = count()?;

    let mut hooks = BTreeMap::new();
    for ((hook, first), last) in Hook::ALL.into_iter().zip(empties_before).zip(empties_after) {
        let probe = grown(&probes_before, &probes_after, &hook.programs())
            .with_context(|| format!("no probe on {} was seen", hook.name()))?;
        let empty = |[a, b]: [Ran; 2]| Some((a.ns_per_call()? + b.ns_per_call()?) / 2.0);
        let since = [0, 1].map(|index| last[index].since(first[index]));
        if let (Some(off_ns), Some(on_ns)) = (empty(since), probe.ns_per_call()) {
            hooks.insert(hook, Counted { off_ns, on_ns, calls: probe.calls });
        }
    }
    let ticks = grown(&probes_before, &probes_after, &[TICK]).context("no program `tick`")?.calls;
    Ok(Look { hooks, turns, ticks, stalls: detach(tracer)? })
}

/// The same turns as two daemons see them at the same time, one with each of these options: what all
/// probes of each take of a turn, ns, and how many stalls they told of. The difference is a few percent,
/// less than two runs differ.
fn both(options: [&[&str]; 2], run: Duration) -> Result<([f64; 2], usize)> {
    let place = Places::find()?.server;
    let mut echo = Echo::start()?;
    let (first, _) = Tracer::attach(echo.pid(), options[0])?;
    let (second, _) = Tracer::attach(echo.pid(), options[1])?;
    std::thread::sleep(SETTLE);
    let ids = [held_by(first.pid())?, held_by(second.pid())?];
    let taken = || ids.each_ref().map(|ids| stats::of(ids).values().map(|ran| ran.ns).sum::<u64>());
    let before = taken();
    let turns = on(place, || echo.keep_busy(run))?;
    let after = taken();
    let stalls = detach(first)? + detach(second)?;
    let of_a_turn = |index: usize| (after[index] - before[index]) as f64 / turns.max(1) as f64;
    Ok(([of_a_turn(0), of_a_turn(1)], stalls))
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
    use super::{Counted, Ran, grown};
    use std::collections::BTreeMap;

    /// Events of others are taken out at their own price.
    #[test]
    fn the_targets_share_is_found() {
        let others = Counted { off_ns: 50.0, on_ns: 54.0, calls: 1_000 };
        // 100 events of the target at 104 ns, and 300 of others.
        let mixed = Counted { off_ns: 50.0, on_ns: 79.0, calls: 400 };
        assert_eq!(mixed.without(others, 100.0), 104.0);
        assert_eq!(mixed.without(others, 400.0), 29.0);
    }

    /// The program goes by either of its names, and one that was never loaded is not taken for idle.
    #[test]
    fn programs_are_found() {
        let at = |ns, calls| BTreeMap::from([("leave".to_owned(), Ran { ns, calls })]);
        let names = ["wait_left", "leave"];
        assert_eq!(grown(&at(100, 1), &at(300, 3), &names), Some(Ran { ns: 200, calls: 2 }));
        assert_eq!(grown(&at(100, 1), &at(300, 3), &["tick"]), None);
    }
}
