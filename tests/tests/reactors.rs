//! Threads that take turns at one epoll instance: a stall is what keeps all of them from it, and nothing else.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use profiler_tests::clock::{MILLISECOND, patience};
use profiler_tests::compiled;
use profiler_tests::lives::broken_contract;
use profiler_tests::load::{Client, Exchange, Traffic};
use profiler_tests::noise::NoiseMeter;
use profiler_tests::report::{StallExt as _, StallLine};
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::target::Target;
use profiler_tests::tracer::{Finished, Tracer};
use profiler_tests::truth::Truth;

const SMOL: &str = env!("CARGO_BIN_EXE_smol-target");
const TOKIO: &str = env!("CARGO_BIN_EXE_tokio-target");
const BUSY: Duration = Duration::from_millis(5);
/// So rarely that threads rest for longer than the threshold between two requests.
const SPARSE: Duration = Duration::from_millis(300);
const CONNECTIONS: usize = 32;
/// How long a healthy one is watched; the twins of all runtimes are for longer.
const HEALTHY: Duration = Duration::from_secs(4);
/// Until all threads have taken their turn.
const WARM: Duration = Duration::from_secs(2);
const BLOCK_MS: u64 = 400;
/// Two measurements of one stall may differ by so much on a machine without noise.
const EXACT_NS: u64 = 50 * MILLISECOND;
/// One line of statistics, at the end.
const COUNTED: &[&str] = &["--stats-interval", "1h"];

/// A reactor of each kind, with so many threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Asio,
    Smol,
    Tokio,
    /// One thread waits, and hands over before it serves.
    Leader,
    /// All threads wait, and an event wakes one.
    Herd,
    Go,
}

impl Kind {
    fn start(self, threads: usize) -> Result<Target> {
        let threads = threads.to_string();
        let (program, arguments): (PathBuf, &[&str]) = match self {
            Self::Asio => (compiled::program("reactor.cpp")?, &[&threads]),
            Self::Smol => (SMOL.into(), &[&threads]),
            Self::Tokio => (TOKIO.into(), &["--flavour", "multi_thread", "--workers", &threads]),
            Self::Leader => (compiled::program("followers.c")?, &["leader", &threads]),
            Self::Herd => (compiled::program("followers.c")?, &["herd", &threads]),
            Self::Go => (compiled::program("netpoll.go")?, &[]),
        };
        let mut command = Command::new(program);
        command.args(arguments);
        Target::of_ours(command)
    }

    /// How often its polls have returned, where it can count them.
    fn turns(self, target: &Target) -> Result<Option<u64>> {
        if matches!(self, Self::Smol | Self::Tokio | Self::Go) {
            return Ok(None);
        }
        target.signal(Signal::SIGUSR1)?;
        let line = target.line_starting("turns ", patience(5))?;
        Ok(line.split(' ').nth(1).and_then(|count| count.parse().ok()))
    }
}

/// What a session has said, and what it can be held against.
struct Session {
    finished: Finished,
    truths: Vec<Truth>,
    exchanges: Vec<Exchange>,
    /// By the target's own count.
    turns: Option<u64>,
    noise_ns: u64,
}

/// Attaches under load, lets `act` act, and detaches.
fn session(
    kind: Kind,
    threads: usize,
    pace: Duration,
    options: &[&str],
    act: impl FnOnce(&mut Client) -> Result<()>,
) -> Result<Session> {
    let _machine = alone();
    require_root()?;
    let target = kind.start(threads)?;
    let noise = NoiseMeter::start();
    let traffic = Traffic::start(target.port(), "/", pace, CONNECTIONS)?;
    let mut client = Client::connect(target.port())?;
    let (tracer, _) = Tracer::attach(target.pid(), options)?;
    let before = kind.turns(&target)?;
    let acted = act(&mut client);
    let after = kind.turns(&target)?;
    let finished = tracer.interrupt()?;
    acted?;
    let broken = broken_contract(&finished.lines);
    ensure!(finished.code == Some(0) && broken.is_empty(), "{broken:?}\n{}", finished.logs);
    Ok(Session {
        finished,
        truths: target.truths()?,
        exchanges: traffic.finish()?,
        turns: before.zip(after).map(|(before, after)| after - before),
        noise_ns: noise.allowance_ns(),
    })
}

impl Session {
    fn ends(&self) -> Vec<&StallLine> {
        self.finished.ends().filter(|end| !end.is_starved()).collect()
    }

    /// Not a word, though it was watched and had much to do.
    fn must_be_silent(&self) -> Result<()> {
        let slowest = self.exchanges.iter().map(Exchange::waited_ns).max().unwrap_or(0);
        let told = self.finished.told();
        ensure!(told.is_empty(), "{} stalls: {told:#?}, slowest answer {slowest} ns", told.len());
        Ok(())
    }

    /// Turns are counted about as the target counts them, or at least as many as it must have had.
    fn must_count_turns(&self) -> Result<()> {
        let loops = self.finished.stats().flat_map(|stats| &stats.loops);
        let seen: u64 = loops.map(|one| one.turns).sum();
        let answered = self.exchanges.len() as u64;
        println!("{seen} turns, {:?} by its own count, {answered} answers", self.turns);
        match self.turns {
            // What came between the two moments of counting.
            Some(turns) => ensure!(seen.abs_diff(turns) <= turns / 10, "{seen}, not {turns}"),
            // Several answers may share a turn, but most come by themselves.
            None => ensure!(seen >= answered / 2, "{seen} turns for {answered} answers"),
        }
        Ok(())
    }

    /// From when the last thread came until the first left.
    fn all_away(&self, threads: usize) -> Result<(u64, u64)> {
        let all: Vec<_> = self.truths.iter().filter(|truth| truth.kind == "all").collect();
        ensure!(all.len() == threads, "odd target: {all:?}");
        let from_ns = all.iter().map(|truth| truth.start_ns).max().context("nobody came")?;
        let until_ns = all.iter().map(|truth| truth.end_ns).min().context("nobody left")?;
        Ok((from_ns, until_ns))
    }

    /// One stall, with the culprit that the target names, while all threads were away.
    fn must_tell_of_all(&self, kind: Kind, threads: usize) -> Result<()> {
        let (from_ns, until_ns) = self.all_away(threads)?;
        let ends = self.ends();
        let [end] = ends[..] else {
            anyhow::bail!("{} stalls: {:#?}", ends.len(), self.finished.told())
        };
        let bound_ns = EXACT_NS + self.noise_ns;
        let (started_ns, ended_ns) = (end.stall.start_monotonic_ns, end.end_ns());
        ensure!(started_ns.abs_diff(from_ns) <= bound_ns, "{started_ns}, not {from_ns}");
        ensure!(ended_ns.abs_diff(until_ns) <= bound_ns, "{ended_ns}, not {until_ns}");
        let truth = self.truth_of(end.thread.tid)?;
        let culprit = end.culprit.as_ref().context("nobody is blamed")?;
        ensure!(culprit.function == truth.function, "{culprit:?} for {truth:?}");
        ensure!(truth.blocks_at(culprit.line), "{culprit:?} for {truth:?}");

        let mut away: Vec<u32> = end.stall.away.iter().map(|away| away.thread.tid).collect();
        away.sort_unstable();
        away.dedup();
        ensure!(away.len() == end.stall.away.len(), "a thread twice: {:?}", end.stall.away);
        // Of a worker that has never polled since we attached it is not known that it might, and tokio wakes
        // no more of them than it needs.
        let least = if kind == Kind::Tokio { 0 } else { threads - 1 };
        let known = (least..threads).contains(&away.len());
        ensure!(known, "{} of {} others: {:#?}", away.len(), threads - 1, self.finished.told());
        for other in &end.stall.away {
            ensure!(other.thread.tid != end.thread.tid, "the thread itself is away, too");
            let truth = self.truth_of(other.thread.tid)?;
            let culprit = other.culprit.as_ref();
            let culprit = culprit.with_context(|| format!("no culprit: {other:?}"))?;
            ensure!(culprit.function == truth.function, "{culprit:?} for {truth:?}");
            ensure!(other.time_ns + bound_ns >= until_ns - from_ns, "{other:?}");
        }
        println!("{}", self.finished.told().join("\n"));
        Ok(())
    }

    fn truth_of(&self, tid: u32) -> Result<&Truth> {
        let of_thread = |truth: &&Truth| truth.thread == Some(tid) && truth.kind == "all";
        self.truths.iter().find(of_thread).with_context(|| format!("{tid} was not held"))
    }

    /// The thread that was held, and no other.
    fn must_tell_of_one(&self) -> Result<()> {
        let one: Vec<_> = self.truths.iter().filter(|truth| truth.kind != "all").collect();
        let [truth] = one[..] else { anyhow::bail!("odd target: {one:?}") };
        let ends = self.ends();
        let [end] = ends[..] else {
            anyhow::bail!("{} stalls: {:#?}", ends.len(), self.finished.told())
        };
        ensure!(Some(end.thread.tid) == truth.thread, "{:?} for {truth:?}", end.thread);
        let apart_ns = end.stall.duration_ns.abs_diff(truth.duration_ns());
        ensure!(apart_ns <= EXACT_NS + self.noise_ns, "{:?} for {truth:?}", end.stall);
        let culprit = end.culprit.as_ref().context("nobody is blamed")?;
        ensure!(culprit.function == truth.function, "{culprit:?} for {truth:?}");
        println!("{}", self.finished.told().join("\n"));
        Ok(())
    }
}

fn wait(duration: Duration) -> Result<()> {
    std::thread::sleep(duration);
    Ok(())
}

/// Under load, and while requests keep one thread of several: silence, and the turns are counted.
fn healthy(kind: Kind, threads: usize) -> Result<()> {
    let session = session(kind, threads, BUSY, COUNTED, |_| wait(HEALTHY))?;
    session.must_be_silent()?;
    session.must_count_turns()
}

/// One of several blocks, and the others go on: silence.
fn one_blocks(kind: Kind, threads: usize) -> Result<()> {
    let seen = session(kind, threads, BUSY, &[], |client| {
        wait(WARM)?;
        client.get(&format!("/sleep?ms={BLOCK_MS}"))?;
        wait(WARM)
    })?;
    seen.must_be_silent()
}

/// The same, asked for threads that hold their work up.
fn one_blocks_and_workers_are_watched(kind: Kind, threads: usize) -> Result<()> {
    let seen = session(kind, threads, BUSY, &["--watch-workers"], |client| {
        wait(WARM)?;
        client.get(&format!("/sleep?ms={BLOCK_MS}"))?;
        wait(WARM)
    })?;
    seen.must_tell_of_one()
}

fn all_block(kind: Kind, threads: usize) -> Result<()> {
    let seen = session(kind, threads, BUSY, &[], |client| {
        wait(WARM)?;
        client.get(&format!("/all?ms={BLOCK_MS}"))?;
        wait(WARM)
    })?;
    seen.must_tell_of_all(kind, threads)
}

#[test]
fn healthy_asio_is_silent() -> Result<()> {
    [1, 2, 8].into_iter().try_for_each(|threads| healthy(Kind::Asio, threads))
}

#[test]
fn healthy_smol_is_silent() -> Result<()> {
    [1, 4].into_iter().try_for_each(|threads| healthy(Kind::Smol, threads))
}

#[test]
fn healthy_tokio_is_silent() -> Result<()> {
    [1, 4].into_iter().try_for_each(|threads| healthy(Kind::Tokio, threads))
}

#[test]
fn healthy_followers_are_silent() -> Result<()> {
    [Kind::Leader, Kind::Herd].into_iter().try_for_each(|kind| healthy(kind, 4))
}

/// Threads that rest take turns at the poll, and are late for nobody.
#[test]
fn sparse_requests_are_no_stalls() -> Result<()> {
    let kinds = [Kind::Asio, Kind::Smol, Kind::Tokio, Kind::Leader, Kind::Herd, Kind::Go];
    for kind in kinds {
        let seen = session(kind, 4, SPARSE, COUNTED, |_| wait(HEALTHY / 2))?;
        seen.must_be_silent().with_context(|| format!("{kind:?}"))?;
    }
    Ok(())
}

/// Nor is rest work: a thread that waits for its turn, or for something to do, has none in hand.
#[test]
fn rest_between_sparse_requests_is_no_work() -> Result<()> {
    let kinds = [Kind::Asio, Kind::Smol, Kind::Tokio, Kind::Leader, Kind::Herd, Kind::Go];
    for kind in kinds {
        let seen = session(kind, 4, SPARSE, &["--watch-workers"], |_| wait(HEALTHY / 2))?;
        seen.must_be_silent().with_context(|| format!("{kind:?}"))?;
    }
    Ok(())
}

#[test]
fn one_thread_of_several_holds_up_nobody() -> Result<()> {
    for (kind, threads) in
        [(Kind::Asio, 2), (Kind::Asio, 8), (Kind::Smol, 4), (Kind::Leader, 4), (Kind::Herd, 4)]
    {
        one_blocks(kind, threads).with_context(|| format!("{kind:?}, {threads} threads"))?;
    }
    Ok(())
}

#[test]
fn one_thread_of_several_is_told_on_request() -> Result<()> {
    let kinds = [Kind::Asio, Kind::Smol, Kind::Tokio, Kind::Leader, Kind::Herd];
    for (kind, threads) in kinds.map(|kind| (kind, 4)) {
        one_blocks_and_workers_are_watched(kind, threads)
            .with_context(|| format!("{kind:?}, {threads} threads"))?;
    }
    Ok(())
}

#[test]
fn all_threads_of_asio_hold_up_everybody() -> Result<()> {
    [1, 2, 8].into_iter().try_for_each(|threads| all_block(Kind::Asio, threads))
}

/// A helper of smol's asks for events where no thread of the program does, so that its instance is served even where
/// nobody runs what is found. So each thread's work is told, where that is asked for.
#[test]
fn all_threads_of_smol_are_told_on_request() -> Result<()> {
    for threads in [1, 4] {
        let seen = session(Kind::Smol, threads, BUSY, &["--watch-workers"], |client| {
            wait(WARM)?;
            client.get(&format!("/all?ms={BLOCK_MS}"))?;
            wait(WARM)
        })?;
        let ends = seen.ends();
        // A thread that has never asked for events itself is in no pool that is known.
        let is_some = (1..=threads).contains(&ends.len());
        ensure!(is_some, "{} stalls: {:#?}", ends.len(), seen.finished.told());
        for end in ends {
            let truth = seen.truth_of(end.thread.tid)?;
            let apart_ns = end.stall.duration_ns.abs_diff(truth.duration_ns());
            ensure!(apart_ns <= EXACT_NS + seen.noise_ns, "{:?} for {truth:?}", end.stall);
            let culprit = end.culprit.as_ref().context("nobody is blamed")?;
            ensure!(culprit.function == truth.function, "{culprit:?} for {truth:?}");
        }
    }
    Ok(())
}

#[test]
fn all_workers_of_tokio_hold_up_everybody() -> Result<()> {
    [1, 4].into_iter().try_for_each(|threads| all_block(Kind::Tokio, threads))
}

#[test]
fn all_followers_hold_up_everybody() -> Result<()> {
    [Kind::Leader, Kind::Herd].into_iter().try_for_each(|kind| all_block(kind, 4))
}

/// Go's threads are no event loops: goroutines that compute or block for long hold up nobody.
#[test]
fn healthy_go_is_silent() -> Result<()> {
    let seen = session(Kind::Go, 0, BUSY, COUNTED, |client| {
        for _ in 0..4 {
            client.get("/compute?ms=1200")?;
            client.get("/nap?ms=1000")?;
        }
        Ok(())
    })?;
    seen.must_be_silent()?;
    seen.must_count_turns()
}
