//! Lines of statistics, held against what targets have counted themselves.

use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use profiler_tests::clock::{MILLISECOND, monotonic_ns, patience};
use profiler_tests::lives::broken_contract;
use profiler_tests::noise::NoiseMeter;
use profiler_tests::report::{Arrived, LoopStats, Report, Stats};
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::target::{Target, folder, system_python};
use profiler_tests::tracer::{Finished, Tracer};

/// Half a bucket of the histograms, in percent, rounded up.
const BUCKET_PERCENT: u64 = 7;

/// What the target's own clock readings may add to a turn: its interpreter runs between them and the wait.
const INTERPRETER_NS: u64 = 200_000;

/// Longer than any test: one line, at the end.
const AT_THE_END: &[&str] = &["--stats-interval", "1h"];

fn start(script: &str, options: &[&str]) -> Result<Target> {
    let mut command = Command::new(system_python());
    command.arg(folder().join(script)).args(options);
    Target::of_ours(command)
}

fn connect(port: u16) -> Result<TcpStream> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("nobody listens")
}

/// The end of a session that was in order.
fn finish(tracer: Tracer) -> Result<Finished> {
    let finished = tracer.interrupt()?;
    ensure!(finished.code == Some(0) && finished.unreadable.is_empty(), "{finished:#?}");
    let broken = broken_contract(&finished.lines);
    ensure!(broken.is_empty(), "{broken:?}");
    Ok(finished)
}

/// The only line of statistics.
fn only(finished: &Finished) -> Result<&Stats> {
    let all: Vec<&Stats> = finished.stats().collect();
    ensure!(all.len() == 1, "{} lines of statistics", all.len());
    all.first().copied().context("no line of statistics")
}

fn loop_of(stats: &Stats, tid: u32) -> Result<&LoopStats> {
    let found = stats.loops.iter().find(|one| one.thread.tid == tid);
    found.with_context(|| format!("no loop of thread {tid}: {stats:#?}"))
}

/// The value that so many of a thousand do not exceed.
fn quantile(sorted: &[u64], per_thousand: usize) -> Result<u64> {
    let rank = (sorted.len() * per_thousand).div_ceil(1000).max(1);
    sorted.get(rank - 1).copied().context("no turns")
}

/// Turns, what waits returned and percentiles are those that the loop has recorded itself: counts to the
/// last one, durations within the histogram's error.
#[test]
fn a_loop_is_measured_as_it_measures_itself() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let noise = NoiseMeter::start();
    let target = start("stats_loop.py", &[])?;
    let (tracer, _) = Tracer::attach(target.pid(), AT_THE_END)?;
    let connection = connect(target.port())?;
    let told = target.line_starting("turns ", patience(60))?;
    let finished = finish(tracer)?;
    drop(connection);

    let turns: Vec<(u64, u64, bool)> = serde_json::from_str(told.trim_start_matches("turns "))?;
    let seen = loop_of(only(&finished)?, target.pid())?;
    println!("{seen:#?}");
    ensure!(seen.turns == turns.len() as u64, "{} turns, not {}", seen.turns, turns.len());
    let empty = turns.iter().filter(|(.., empty)| *empty).count() as u64;
    ensure!(seen.empty_wakeups == Some(empty), "{:?}, not {empty}", seen.empty_wakeups);
    let events: u64 = turns.iter().map(|(_, events, _)| events).sum();
    let ready = seen.ready_events.context("no events")?;
    let mean = ready.mean.context("no mean")? * turns.len() as f64;
    ensure!((mean - events as f64).abs() < 1.0, "{mean} events, not {events}");
    ensure!(ready.max == turns.iter().map(|(_, events, _)| *events).max(), "{ready:?}");
    ensure!(seen.stalls == 0, "{} stalls", seen.stalls);

    let mut durations: Vec<u64> = turns.iter().map(|(duration_ns, ..)| *duration_ns).collect();
    durations.sort_unstable();
    let told = seen.turn_duration_ns;
    for (per_thousand, told) in [(500, told.p50), (900, told.p90), (990, told.p99)] {
        let (recorded, told) = (quantile(&durations, per_thousand)?, told.context("null")?);
        let allowed = recorded * BUCKET_PERCENT / 100 + INTERPRETER_NS;
        ensure!(told.abs_diff(recorded) <= allowed, "{per_thousand}: {told}, not {recorded}");
    }
    // One of them may have lost its CPU between its clock and the wait.
    let (longest, max) = (quantile(&durations, 1000)?, told.max.context("null")?);
    ensure!(max.abs_diff(longest) <= INTERPRETER_NS + noise.allowance_ns(), "{max}, not {longest}");
    Ok(())
}

/// A program that needs all of a CPU. Ends with its owner.
struct Hog(Child);

impl Hog {
    fn start() -> Result<Self> {
        let mut command = Command::new(system_python());
        command.args(["-c", "while True: pass"]).stdin(Stdio::null());
        Ok(Self(command.spawn().context("a hog does not start")?))
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        // It may have been ended from outside; then there is nothing left to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts so many of them on one CPU that one more, on a busy machine, makes no difference.
fn hogs(cpu: usize) -> Result<Vec<Hog>> {
    const CROWD: usize = 6;
    let this = Pid::from_raw(0);
    let before = sched_getaffinity(this)?;
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(this, &only)?;
    let started = (0..CROWD).map(|_| Hog::start()).collect();
    sched_setaffinity(this, &before)?;
    started
}

/// Others that need the loop's CPU show as run-queue delay: many times what it was a moment before. On a
/// machine that is crowded to begin with, the difference may take a few tries.
#[test]
fn a_crowded_cpu_shows_as_run_queue_delay() -> Result<()> {
    const TRIES: u32 = 3;
    let _machine = alone();
    require_root()?;
    let mut seen = Vec::new();
    for _ in 0..TRIES {
        let (alone_ns, crowded_ns) = delays_alone_and_crowded()?;
        println!("p99 of run-queue delay: {alone_ns} ns alone, {crowded_ns} ns in a crowd");
        if crowded_ns >= 3 * alone_ns {
            return Ok(());
        }
        seen.push((alone_ns, crowded_ns));
    }
    anyhow::bail!("no difference: {seen:?}")
}

/// The usual 99th percentile of the delays of a loop, first with its CPU to itself, then in a crowd.
fn delays_alone_and_crowded() -> Result<(u64, u64)> {
    const PHASE: Duration = Duration::from_secs(3);
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let cpu = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu) == Ok(true));
    let cpu = cpu.context("no CPU may be used")?;
    let target = start("stats_loop.py", &["--endless", "--cpu", &cpu.to_string()])?;
    let _connection = connect(target.port())?;
    let (tracer, start) = Tracer::attach(target.pid(), &["--stats-interval", "250ms"])?;
    std::thread::sleep(PHASE);
    let crowd = hogs(cpu)?;
    let crowded_from_ns = monotonic_ns();
    std::thread::sleep(PHASE);
    let until_ns = monotonic_ns();
    drop(crowd);
    let finished = finish(tracer)?;

    let usual_ns = |from_ns: u64, until_ns: u64| -> Result<u64> {
        // The line that arrives first is about the moments before, too.
        let is_within = |at_ns: u64| (from_ns + 300 * MILLISECOND..until_ns).contains(&at_ns);
        let within = finished.lines.iter().filter(|arrived| is_within(arrived.at_ns));
        let of = |arrived: &Arrived| match &arrived.line {
            Report::Stats(stats) => {
                loop_of(stats, target.pid()).ok()?.run_queue_delay_ns.percentiles.p99
            }
            _ => None,
        };
        let mut delays: Vec<u64> = within.filter_map(of).collect();
        ensure!(delays.len() >= 5, "{} lines", delays.len());
        delays.sort_unstable();
        quantile(&delays, 500)
    };
    Ok((usual_ns(start.at_ns, crowded_from_ns)?, usual_ns(crowded_from_ns, until_ns)?))
}

/// Of workers that share a listening socket, each one's accepts are counted as it counts them itself,
/// also those that found nothing; the process that only holds the socket is left out.
#[test]
fn accepts_are_counted_by_process() -> Result<()> {
    const WORKERS: usize = 3;
    const CONNECTIONS: usize = 60;
    let _machine = alone();
    require_root()?;
    let target = start("herd.py", &["--workers", &WORKERS.to_string()])?;
    let words = |line: String| -> Result<Vec<u64>> {
        line.split(' ').skip(1).map(|word| Ok(word.parse()?)).collect()
    };
    let mut watched = None;
    for _ in 0..WORKERS {
        let pid = words(target.line_starting("worker ", patience(60))?)?.first().copied();
        watched = watched.or(pid);
    }
    let watched = u32::try_from(watched.context("no worker")?)?;
    let (tracer, _) = Tracer::attach(watched, AT_THE_END)?;
    for _ in 0..CONNECTIONS {
        drop(connect(target.port())?);
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(200));
    let finished = finish(tracer)?;
    target.signal(Signal::SIGUSR1)?;

    let stats = only(&finished)?;
    println!("{:#?}", stats.accepts);
    ensure!(stats.accepts.len() == WORKERS, "{:?}", stats.accepts);
    let mut herd = 0;
    for _ in 0..WORKERS {
        let counts = words(target.line_starting("accepts ", patience(60))?)?;
        let [pid, accepted, would_block] = counts[..] else { anyhow::bail!("{counts:?}") };
        let seen = stats.accepts.iter().find(|one| u64::from(one.pid) == pid);
        let seen = seen.with_context(|| format!("no process {pid}: {:?}", stats.accepts))?;
        let told = (seen.accepted, seen.would_block, seen.failed);
        ensure!(told == (accepted, would_block, 0), "{told:?}, not {counts:?}");
        herd += would_block;
    }
    let all: u64 = stats.accepts.iter().map(|one| one.accepted).sum();
    ensure!(all == CONNECTIONS as u64, "{all} connections");
    ensure!(herd > 0, "no herd was there to be counted");
    ensure!(loop_of(stats, watched)?.turns > 0, "{stats:#?}");
    Ok(())
}

/// A slot that serves another thread begins at zero, and what the one before has done is told all the same.
#[test]
fn every_thread_has_its_own_sums() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = start("short_loops.py", &[])?;
    let (tracer, _) = Tracer::attach(target.pid(), &["--stats-interval", "500ms"])?;
    target.signal(Signal::SIGUSR1)?;
    let told = target.line_starting("loops ", patience(60))?;
    let loops: Vec<(u32, u64)> = serde_json::from_str(told.trim_start_matches("loops "))?;
    let finished = finish(tracer)?;
    let known = |tid: u32| loops.iter().any(|(known, _)| *known == tid);
    // One loop waits all the time.
    let all = finished.stats().flat_map(|line| &line.loops).filter(|one| one.turns > 0);
    let strangers: Vec<u32> = all.map(|one| one.thread.tid).filter(|tid| !known(*tid)).collect();
    ensure!(strangers.is_empty(), "loops of threads {strangers:?}");
    for (tid, sleeps) in loops {
        let lines = finished.stats().flat_map(|line| &line.loops);
        let own: Vec<&LoopStats> = lines.filter(|one| one.thread.tid == tid).collect();
        let turns: u64 = own.iter().map(|one| one.turns).sum();
        // A sleep of asyncio's is two, and it needs a few more to begin and to end.
        ensure!(
            (sleeps..=3 * sleeps + 20).contains(&turns),
            "{turns} turns, {sleeps} sleeps: {own:#?}"
        );
    }
    Ok(())
}

/// Whoever asks for none gets none.
#[test]
fn no_line_without_an_interval() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = start("stats_loop.py", &["--endless"])?;
    let _connection = connect(target.port())?;
    let (tracer, _) = Tracer::attach(target.pid(), &["--stats-interval", "off"])?;
    std::thread::sleep(Duration::from_millis(500));
    let finished = finish(tracer)?;
    ensure!(finished.stats().next().is_none(), "statistics that nobody asked for");
    Ok(())
}
