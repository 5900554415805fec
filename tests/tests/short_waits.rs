//! A turn that waits hundreds of times for a short while: what for, how often, and at which line, with the
//! clients and servers that people use.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use profiler_tests::clock::MILLISECOND;
use profiler_tests::postgres::Postgres;
use profiler_tests::redis;
use profiler_tests::report::{
    Arrived, Culprit, Report, ReportedComponent, ReportedWaits, StallExt as _, StallLine,
};
use profiler_tests::scenario::alone;
use profiler_tests::servers::Server;
use profiler_tests::target::{Scratch, Target, folder, venv_python};
use profiler_tests::tracer::Finished;
use profiler_tests::turns::{self, Watched};
use serde::Deserialize;

/// Everything that the target knows.
const KINDS: [&str; 6] = ["redis", "postgres", "http", "sqlite", "files", "naps"];

/// How often each kind is played.
const TIMES: usize = 3;

/// How often what had not enough of the CPU is played again.
const ROUNDS: usize = 4;

/// From so many waits on they must be told as many.
const MANY: u64 = 50;

/// Longer waits need not be told as many.
const SHORT_NS: u64 = 2_000_000;

/// How long the turns of a stalling target are, as a multiple of the threshold.
const STALLING: f64 = 2.5;

/// The same of its healthy twin: what else the machine does must not make a stall of it.
const HEALTHY: f64 = 0.3;

/// One turn, in the target's own words.
#[derive(Debug, Deserialize)]
struct Waited {
    kind: String,
    function: String,
    line: u32,
    start_ns: u64,
    end_ns: u64,
    /// Round trips, commits, naps.
    trips: u64,
    /// How often the thread gave up its CPU.
    switches: u64,
    /// Of several kinds of waits, how long each took together, ns.
    parts: BTreeMap<String, u64>,
}

impl Waited {
    /// Of the turn, by the waits in it.
    fn time_of_one_ns(&self) -> u64 {
        (self.end_ns - self.start_ns) / self.switches.max(1)
    }

    fn is_at(&self, culprit: Option<&Culprit>) -> bool {
        culprit.is_some_and(|it| {
            it.function.as_deref() == Some(&self.function) && it.line == Some(self.line)
        })
    }
}

/// The servers that the target's clients talk to.
struct Servers {
    redis: (Target, u16),
    postgres: Postgres,
    http: Server,
    files: Scratch,
}

impl Servers {
    fn start() -> Result<Self> {
        let (redis, postgres) = (redis::start()?, Postgres::start()?);
        Ok(Self { redis, postgres, http: Server::nginx(false)?, files: Scratch::new()? })
    }

    /// Watches turns of each kind that last so many thresholds.
    fn watch(&self, threshold_ms: u64, length: f64, kinds: &[&str]) -> Result<Watched<Waited>> {
        let mut command = Command::new(venv_python()?);
        command.arg(folder().join("short_waits.py"));
        command.arg("--turn-ms").arg((threshold_ms as f64 * length).to_string());
        command.arg("--times").arg(TIMES.to_string());
        command.arg("--redis").arg(self.redis.1.to_string());
        command.arg("--postgres").arg(self.postgres.address());
        command.arg("--http").arg(format!("http://127.0.0.1:{}/short", self.http.port()));
        command.arg("--folder").arg(self.files.file("")).args(kinds);
        let threshold = format!("{threshold_ms}ms");
        let watched: Watched<Waited> =
            turns::watch(command, &["--threshold", &threshold], "waited")?;
        ensure!(watched.turns.len() == TIMES * kinds.len(), "{} turns", watched.turns.len());
        Ok(watched)
    }

    /// What the cause of such a turn is: its kind, and what its words begin with.
    fn cause_of(&self, kind: &str) -> (&'static str, String) {
        let port = match kind {
            "redis" => self.redis.1,
            "postgres" => self.postgres.port(),
            _ => self.http.port(),
        };
        let peer = format!("on tcp 127.0.0.1:{port}");
        match kind {
            // A connection for each request: it may be closed before anybody can look it up.
            "http" => ("syscall", "blocked in recvfrom".to_owned()),
            "redis" | "postgres" => ("syscall", format!("blocked in poll {peer}")),
            "sqlite" => ("disk", "waiting for the disk in f".to_owned()),
            "files" => ("disk", "waiting for the disk in fsync on /".to_owned()),
            _ => ("sleep", "asleep in clock_nanosleep".to_owned()),
        }
    }

    /// Holds what was reported of a turn against what the target knows. False where it was no turn of waits:
    /// its own code had the CPU for longer, or others had.
    fn judge(&self, waited: &Waited, stall: &StallLine) -> Result<bool> {
        let culprit = stall.culprit.as_ref();
        let (function, line) = culprit.map_or((None, None), |it| (it.function.as_deref(), it.line));
        let time = &stall.stall.time;
        if time.blocked_ns <= time.runnable_ns {
            return Ok(false);
        }
        let (kind, words) = self.cause_of(&waited.kind);
        let cause = &stall.cause;
        if matches!(cause.kind.name(), "cpu" | "run_queue") {
            // What was blocked is of two kinds or more (a journal and its database, an `fsync` and the `open` before
            // it), each shorter than the computing between, or than what others took of the CPU: it is named among the
            // others, with its line.
            let is_it = |part: &&ReportedComponent| {
                part.kind.name() == kind && waited.is_at(part.culprit.as_ref())
            };
            ensure!(cause.also.iter().any(|part| is_it(&part)), "{waited:?}: {cause:?}");
            return Ok(true);
        }
        ensure!(cause.kind.name() == kind, "{waited:?}: {cause:?}\n{:#?}", stall.gaps);
        let summary = &cause.summary;
        let is_elsewhere = summary.contains(" on tcp") && !summary.contains("on tcp 127.0.0.1:");
        ensure!(!is_elsewhere, "{summary}: {waited:?}");
        ensure!(summary.starts_with(&words), "{summary:?} instead of {words:?}: {:?}", stall.gaps);
        ensure!(function == Some(&waited.function), "{function:?}: {waited:?}");
        ensure!(line == Some(waited.line), "line {line:?}: {waited:?}");
        ensure!(cause.time_ns <= stall.stall.time.blocked_ns, "more than was blocked: {cause:?}");
        ensure!(stall.advice.is_some(), "no advice for {waited:?}");
        let Some(count) = stall.how_often() else {
            // On a slow disk a few long waits may be all there are.
            ensure!(waited.time_of_one_ns() > SHORT_NS, "{waited:?}: {cause:?}");
            return Ok(true);
        };
        ensure!(count <= waited.switches + 2, "{count} waits: {waited:?}");
        // Of SQLite the journal, the database and their folder are waits of their own.
        if waited.switches >= MANY {
            ensure!(count * 6 >= waited.switches, "{count} waits: {waited:?}");
            let mean_ns = cause.waits.map(|waits| waits.mean_ns);
            let mean_ns = mean_ns.with_context(|| format!("{waited:?}: {cause:?}"))?;
            ensure!(mean_ns == cause.time_ns / count, "{count} of {mean_ns}: {cause:?}");
        }
        Ok(true)
    }
}

/// The sentence of a stall's last line.
fn message<'a>(finished: &'a Finished, stall: &StallLine) -> &'a str {
    let is_its = |arrived: &&Arrived| matches!(&arrived.line, Report::StallEnd(end) if end.stall.id == stall.stall.id);
    finished.lines.iter().find(is_its).map_or("", |arrived| &arrived.line.common().message)
}

/// Each kind of short wait is named, with its line, at each threshold.
fn are_named(threshold_ms: u64) -> Result<()> {
    let _machine = alone();
    let servers = Servers::start()?;
    let (mut missing, mut named, mut played) = (KINDS.to_vec(), 0, 0);
    for _ in 0..ROUNDS {
        let watched = servers.watch(threshold_ms, STALLING, &missing)?;
        for waited in &watched.turns {
            let stall = watched.finished.stall_in(waited.start_ns, waited.end_ns);
            let stall = stall.with_context(|| format!("{waited:?} was missed"))?;
            println!("{}", message(&watched.finished, stall));
            println!("    {} trips, {} switches", waited.trips, waited.switches);
            played += 1;
            if servers.judge(waited, stall)? {
                named += 1;
                missing.retain(|kind| *kind != waited.kind);
            }
        }
        if missing.is_empty() {
            println!("{named} of {played} turns waited for most of their time, and are named");
            return Ok(());
        }
    }
    bail!("no turn of {missing:?} waited for most of its time")
}

#[test]
fn are_named_past_20_ms() -> Result<()> {
    are_named(20)
}

#[test]
fn are_named_past_50_ms() -> Result<()> {
    are_named(50)
}

#[test]
fn are_named_past_100_ms() -> Result<()> {
    are_named(100)
}

/// Two kinds of short waits in one turn are told as two, each with its share of the time and of the waits.
#[test]
fn two_kinds_are_told_apart() -> Result<()> {
    let _machine = alone();
    let servers = Servers::start()?;
    let mut compared = 0;
    for _ in 0..ROUNDS {
        compared += shares_are_right(&servers)?;
        if compared > 0 {
            return Ok(());
        }
    }
    bail!("no turn had the CPU that it needed")
}

/// Of how many turns the shares were told rightly.
fn shares_are_right(servers: &Servers) -> Result<usize> {
    let watched = servers.watch(100, 2.0 * STALLING, &["both"])?;
    let mut compared = 0;
    for waited in &watched.turns {
        let stall = watched.finished.stall_in(waited.start_ns, waited.end_ns);
        let stall = stall.with_context(|| format!("{waited:?} was missed"))?;
        println!("{}", message(&watched.finished, stall));
        println!("    {} trips, {:?}", waited.trips, waited.parts);
        let truth = |kind| waited.parts.get(kind).copied().unwrap_or(0) as f64;
        let true_share = truth("naps") / (truth("naps") + truth("redis"));
        // Others' work makes the one or the other wait for a CPU, or so long that there are but a few.
        let is_fair = (0.25..0.75).contains(&true_share) && waited.trips >= MANY;
        if stall.stall.time.runnable_ns * 2 > stall.stall.time.blocked_ns || !is_fair {
            continue;
        }
        let cause = &stall.cause;
        let mut told: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        let count = |waits: Option<ReportedWaits>| waits.map_or(0, |waits| waits.count);
        told.insert(cause.kind.name(), (cause.time_ns, count(cause.waits)));
        for part in &cause.also {
            told.insert(part.kind.name(), (part.time_ns, count(part.waits)));
        }
        let of = |kind: &str| told.get(kind).copied().with_context(|| format!("{kind}: {told:?}"));
        let ((naps_ns, naps), (redis_ns, trips)) = (of("sleep")?, of("syscall")?);
        let share = naps_ns as f64 / (naps_ns + redis_ns) as f64;
        // The target's clock also counts what its client computes, which is no waiting.
        ensure!((share - true_share).abs() < 0.2, "{share} instead of {true_share}: {waited:?}");
        for count in [naps, trips] {
            let ratio = count as f64 / waited.trips as f64;
            ensure!((0.6..1.6).contains(&ratio), "{count} of {}: {cause:?}", waited.trips);
        }
        compared += 1;
    }
    Ok(compared)
}

/// The same clients with few round trips in a turn stall nobody.
#[test]
fn a_few_are_no_stall() -> Result<()> {
    let _machine = alone();
    let servers = Servers::start()?;
    let watched = servers.watch(100, HEALTHY, &KINDS)?;
    // A disk that was slow meanwhile made a turn long, by the target's own word.
    let is_long = |waited: &&Waited| waited.end_ns - waited.start_ns >= 100 * MILLISECOND;
    let long: Vec<_> = watched.turns.iter().filter(is_long).collect();
    let is_of_one = |end: &StallLine| {
        let start_ns = end.stall.start_monotonic_ns;
        long.iter().any(|long| start_ns < long.end_ns && end.end_ns() > long.start_ns)
    };
    let invented = |end: &&StallLine| !end.is_starved() && !is_of_one(end);
    let told: Vec<_> = watched.finished.ends().filter(invented).map(|end| &end.cause).collect();
    ensure!(told.is_empty(), "{told:?}");
    ensure!(long.len() < watched.turns.len() / 2, "{} of the turns were long", long.len());
    Ok(())
}
