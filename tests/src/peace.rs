//! Healthy programs, side by side and under load, to what was reported of each: nothing that its clients did not feel.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::clock::{MILLISECOND, monotonic_ns};
use crate::compare::{Bounds, Observation, compare};
use crate::lives::broken_contract;
use crate::load::Exchange;
use crate::noise::NoiseMeter;
use crate::report::Arrived;
use crate::scenario::{THRESHOLD_NS, require_root};
use crate::servers::record;
use crate::tracer::{Finished, Tracer};
use crate::truth::Truth;
use crate::twins::{Asker, OwnCount, Running, Twin};

/// Between an answer and the next request of the same client.
const PAUSE: Duration = Duration::from_millis(20);
/// An answer later than this is a delay that a client felt: well below the threshold.
const FELT_NS: u64 = 40 * MILLISECOND;
/// A loop that was watched had so many turns a second at least.
const TURNS_A_SECOND: u64 = 10;
/// What is counted on both sides may differ by so many turns in a hundred, and by those around the two readings.
const APART_PERCENT: u64 = 2;
const APART: u64 = 50;

/// How it went with one twin.
#[derive(Debug)]
pub struct Peace {
    pub name: &'static str,
    pub requests: usize,
    /// As reported, of all its loops.
    pub turns: u64,
    pub counted: Option<Counted>,
    /// Stalls that clients felt as well: the machine had no CPU.
    pub felt: usize,
    pub failures: Vec<String>,
}

/// The turns of the main thread's loop, on both sides.
#[derive(Debug, Clone, Copy)]
pub struct Counted {
    pub told: u64,
    /// By the loop itself.
    pub own: u64,
    pub waits_a_turn: u64,
}

impl Counted {
    /// Whether what is told is what was counted.
    fn is_near(self) -> bool {
        let apart = self.own * APART_PERCENT / 100 + APART;
        let most = self.own * self.waits_a_turn + apart;
        (self.own.saturating_sub(apart)..=most).contains(&self.told)
    }
}

impl Peace {
    pub fn is_kept(&self) -> bool {
        self.failures.is_empty()
    }
}

impl fmt::Display for Peace {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_kept() { "silent" } else { "NOT SILENT" };
        write!(to, "{:<22} {verdict}: {} requests, ", self.name, self.requests)?;
        write!(to, "{} turns", self.turns)?;
        if let Some(Counted { told, own, waits_a_turn }) = self.counted {
            write!(to, " ({told} of the main thread, which counted {own} itself")?;
            let more = if waits_a_turn > 1 { ", each of several waits)" } else { ")" };
            write!(to, "{more}")?;
        }
        if self.felt > 0 {
            write!(to, ", {} stalls that its clients felt, too", self.felt)?;
        }
        self.failures.iter().try_for_each(|failure| write!(to, "\n  wrong: {failure}"))
    }
}

/// A twin and who watches it.
struct Watched<'a> {
    twin: &'a Twin,
    running: Running,
    tracer: Tracer,
    start: Arrived,
    /// What it had counted just after that.
    counted: Option<u64>,
}

/// Starts the twins, keeps them all at work for so long, and tells how it went with each.
pub fn watch(twins: &[Twin], duration: Duration) -> Result<Vec<Peace>> {
    require_root()?;
    let mut started = Vec::new();
    for twin in twins {
        started.push((twin, (twin.start)().with_context(|| twin.name)?));
    }
    let watched = attach_all(started)?;
    let noise = NoiseMeter::start();
    std::thread::scope(|scope| {
        let noise = &noise;
        let all: Vec<_> = watched
            .into_iter()
            .map(|watched| scope.spawn(move || keep_at_work(watched, duration, noise)))
            .collect();
        all.into_iter().map(|thread| joined(thread.join())).collect()
    })
}

fn joined<T>(ended: std::thread::Result<Result<T>>) -> Result<T> {
    ended.unwrap_or_else(|_| bail!("a thread of the test panicked"))
}

/// All at the same time: each takes its while.
fn attach_all<'a>(started: Vec<(&'a Twin, Running)>) -> Result<Vec<Watched<'a>>> {
    let attach = |(twin, mut running): (&'a Twin, Running)| {
        let options = ["--stats-interval", "1h"];
        let (tracer, start) = Tracer::attach(running.pid, &options).with_context(|| twin.name)?;
        let counted = count(&mut running.own_count).with_context(|| twin.name)?;
        Ok(Watched { twin, running, tracer, start, counted })
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = started.into_iter().map(|it| scope.spawn(move || attach(it))).collect();
        all.into_iter().map(|thread| joined(thread.join())).collect()
    })
}

fn keep_at_work(watched: Watched<'_>, duration: Duration, noise: &NoiseMeter) -> Result<Peace> {
    let Watched { twin, running, tracer, start, counted } = watched;
    let Running { process, pid, askers, mut own_count } = running;
    let exchanges = ask_all(askers, duration).with_context(|| twin.name)?;
    let over = count(&mut own_count)?;
    let until_ns = monotonic_ns();
    let finished = tracer.interrupt()?;
    let requests = exchanges.iter().map(|(answered, _)| answered).sum();
    // What its other threads did is no delay of its loop.
    let mut truths: Vec<Truth> = process.truths()?.into_iter().filter(Truth::is_lag).collect();
    truths.extend(exchanges.into_iter().flat_map(|(_, felt)| felt));

    let noise_ns = noise.allowance_ns();
    let bounds = Bounds { threshold_ns: THRESHOLD_NS, noise_ns };
    let (lines, from_ns) = (&finished.lines, start.at_ns);
    let mut verdict = compare(Observation { truths: &truths, lines, from_ns, until_ns }, bounds);
    verdict.failures.extend(broken_contract(lines));
    let mut failures: Vec<String> = verdict.failures.iter().map(ToString::to_string).collect();
    failures.extend(finished.unreadable.iter().cloned());
    let turns = turns_of(&finished, None);
    if turns < duration.as_secs() * TURNS_A_SECOND {
        failures.push(format!("only {turns} turns were seen: was it watched? {}", finished.logs));
    }
    let counted = counted.zip(over).map(|(before, over)| Counted {
        told: turns_of(&finished, Some(pid)),
        own: over.saturating_sub(before),
        waits_a_turn: own_count.map_or(1, |own| own.waits_a_turn),
    });
    let apart = counted.filter(|it| !it.is_near());
    failures.extend(apart.map(|it| format!("not what it counted itself: {it:?}")));
    let felt = verdict.only_late + verdict.confirmed;
    Ok(Peace { name: twin.name, requests, turns, counted, felt, failures })
}

fn count(own_count: &mut Option<OwnCount>) -> Result<Option<u64>> {
    own_count.as_mut().map(|own| (own.turns)()).transpose()
}

/// Of all threads, or of one.
fn turns_of(finished: &Finished, tid: Option<u32>) -> u64 {
    let loops = finished.stats().flat_map(|stats| &stats.loops);
    loops.filter(|it| tid.is_none_or(|tid| it.thread.tid == tid)).map(|it| it.turns).sum()
}

/// Has every client ask for so long: how many answers each got, and the delays that it felt.
fn ask_all(askers: Vec<Asker>, duration: Duration) -> Result<Vec<(usize, Vec<Truth>)>> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let over = &over;
        let all: Vec<_> =
            askers.into_iter().map(|asker| scope.spawn(move || ask(asker, over))).collect();
        std::thread::sleep(duration);
        over.store(true, Ordering::Relaxed);
        all.into_iter().map(|thread| joined(thread.join())).collect()
    })
}

fn ask(mut asker: Asker, over: &AtomicBool) -> Result<(usize, Vec<Truth>)> {
    let mut felt = Vec::new();
    let mut round = 0;
    // What holds up a request may have begun while its client paused.
    let mut paused_from_ns = monotonic_ns();
    while !over.load(Ordering::Relaxed) {
        let exchange: Exchange = (asker.ask)(round)?;
        if asker.is_witness && exchange.waited_ns() > FELT_NS {
            felt.push(record("lag", paused_from_ns, exchange.answered_ns));
        }
        round += 1;
        paused_from_ns = exchange.answered_ns;
        std::thread::sleep(PAUSE);
    }
    Ok((round, felt))
}

/// What a person reads: a line for each; an error if one was not left in peace.
pub fn conclude(all: &[Peace]) -> Result<()> {
    for peace in all {
        println!("{peace}");
    }
    let broken: Vec<&str> =
        all.iter().filter(|peace| !peace.is_kept()).map(|peace| peace.name).collect();
    if broken.is_empty() { Ok(()) } else { bail!("not left in peace: {}", broken.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::{Counted, Peace, conclude};

    /// Turns that are missing or too many are seen, also where a turn has several waits.
    #[test]
    fn counts_are_compared() {
        let is_near = |told, waits_a_turn| Counted { told, own: 10_000, waits_a_turn }.is_near();
        let once = [9_700, 9_800, 10_200, 10_300].map(|told| is_near(told, 1));
        assert_eq!(once, [false, true, true, false]);
        assert_eq!([9_700, 19_000, 20_300].map(|told| is_near(told, 2)), [false, true, false]);
    }

    /// One that was not left in peace is named.
    #[test]
    fn whoever_is_reported_is_named() {
        let peace = |name, failures| {
            let (requests, turns, counted, felt) = (1, 1, None, 0);
            Peace { name, requests, turns, counted, felt, failures }
        };
        assert!(conclude(&[peace("node", Vec::new())]).is_ok());
        let both = [peace("node", Vec::new()), peace("redis", vec!["invented".to_owned()])];
        let error = conclude(&both).unwrap_err().to_string();
        assert!(error.contains("redis") && !error.contains("node"), "{error}");
    }
}
