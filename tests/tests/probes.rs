//! The least that must work on every kernel: the probes load, attach by the hook that the kernel should
//! allow, and report one stall. Times are not judged: the machine may be emulated.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use profiler_tests::clock::{MILLISECOND, patience, slowdown};
use profiler_tests::load::Client;
use profiler_tests::report::{Report, ReportExt as _, StallExt as _, file_of};
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::target::{Target, folder, system_python};
use profiler_tests::tracer::Tracer;

/// The verifier's limit is a million instructions. A program that comes near it is refused by an older kernel,
/// which follows more of them.
const MAX_VERIFIED: u64 = 700_000;

/// No program of the daemon's has used up what the verifier may look at. Since 5.16 it tells.
fn leave_room(pid: u32) -> Result<()> {
    let mut counts = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be closed meanwhile.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("verified_insns:"));
        counts.extend(count.and_then(|count| count.trim().parse::<u64>().ok()));
    }
    counts.sort_unstable();
    println!("instructions verified: {counts:?}");
    ensure!(!counts.is_empty(), "no program of the daemon's tells");
    ensure!(counts.iter().all(|count| *count <= MAX_VERIFIED), "{counts:?}");
    Ok(())
}

/// A loop that has been waiting since before we came is seen to wake up: the hook on its wait's return may be one that
/// calls under way do not meet.
#[test]
fn the_first_turn_is_reported() -> Result<()> {
    let _machine = alone();
    require_root()?;
    for (kind, function) in [("sleep", "pause"), ("compute", "count")] {
        let mut command = Command::new(system_python());
        command.arg(folder().join("first_turn.py"));
        let target = Target::program(command)?;
        let ready = target.line_starting("ready", patience(60))?;
        let port = ready.split(' ').nth(1).context("no port")?.parse::<u16>()?;
        let mut connection = TcpStream::connect(("127.0.0.1", port))?;
        target.line_starting("connected", patience(60))?;
        // It waits by now.
        std::thread::sleep(Duration::from_millis(200) * slowdown());
        let (tracer, _) = Tracer::attach(target.pid(), &[])?;
        // In one piece: the turn begins with what can be read.
        let request = format!("{kind} {}\n", 400 * slowdown().min(4));
        connection.write_all(request.as_bytes())?;
        let mut answer = String::new();
        BufReader::new(&connection).read_line(&mut answer)?;
        let times: Vec<u64> =
            answer.split_whitespace().skip(1).map(str::parse).collect::<Result<_, _>>()?;
        let &[start_ns, end_ns] = &times[..] else { anyhow::bail!("an odd answer: {answer:?}") };
        // The turn ends with the next wait.
        std::thread::sleep(Duration::from_millis(300) * slowdown().min(4));
        let finished = tracer.interrupt()?;
        let stall = finished.stall_in(start_ns, end_ns);
        let stall = stall.with_context(|| format!("{kind}: missed; lost {:?}", finished.lost()))?;
        let early_ns = start_ns.saturating_sub(stall.stall.start_monotonic_ns);
        let late_ns = stall.stall.start_monotonic_ns.saturating_sub(start_ns);
        let near_ns = 30 * MILLISECOND * u64::from(slowdown());
        ensure!(early_ns.max(late_ns) <= near_ns, "{kind}: {early_ns} early, {late_ns} late");
        ensure!(stall.end_ns() >= end_ns, "{kind}: ends {} early", end_ns - stall.end_ns());
        let culprit = stall.culprit.as_ref().and_then(|it| it.function.as_deref());
        let is_right = stall.is_starved() || culprit == Some(function);
        ensure!(is_right, "{kind}: {:?} {:?}", stall.culprit, stall.gaps);
        println!("{kind}: {} ms early, {late_ns} ns late", early_ns / MILLISECOND);
    }
    Ok(())
}

/// One sleep of 300 ms is reported, by the hooks that `EXPECT_WAIT_HOOKS` names where it is set; and the
/// session's statistics show it among the turns, and the connection that asked for it.
#[test]
fn one_stall_is_reported() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = Target::service()?;
    let (tracer, start) = Tracer::attach(target.pid(), &[])?;
    let Report::SessionStart(attached) = &start.line else {
        anyhow::bail!("the session began with another line");
    };
    println!("wait hooks: {:?}", attached.wait_hooks);
    leave_room(tracer.pid())?;

    Client::connect(target.port())?.get("/sleep?ms=300")?;
    let truths = target.truths()?;
    let truth = truths.iter().find(|truth| truth.kind == "sleep").context("no record")?;
    let is_it =
        |end_ns: u64, start_ns: u64| truth.overlap_ns(start_ns, end_ns) > truth.duration_ns() / 2;
    let ended = tracer.wait_for(
        |line| match line {
            Report::StallEnd(end) => is_it(end.end_ns(), end.stall.start_monotonic_ns),
            _ => false,
        },
        patience(50),
    );
    // The loop waits once more, and wakes up: the statistics are of that, too.
    std::thread::sleep(Duration::from_millis(200));
    let finished = tracer.interrupt()?;
    ensure!(finished.code == Some(0), "exit code {:?}\n{}", finished.code, finished.logs);
    let ended = ended.with_context(|| finished.logs.clone())?;
    let end = ended.line.stall().context("no stall")?;

    ensure!(end.stall.duration_ns >= 290 * MILLISECOND, "{:?}", end.stall);
    ensure!(end.sum_ns() == end.stall.duration_ns, "{:?}", end.stall);
    let culprit = end.culprit.as_ref().with_context(|| format!("no culprit: {:?}", end.gaps))?;
    let named = (culprit.function.as_deref(), file_of(culprit), culprit.line);
    let recorded = (truth.function.as_deref(), Some("service.py"), truth.line);
    ensure!(named == recorded, "{named:?} instead of {recorded:?}");

    let stats = finished.stats().last().context("no statistics")?;
    let seen = stats.loops.first().with_context(|| format!("no loop: {stats:?}"))?;
    ensure!(seen.turns > 0 && seen.run_queue_delay_ns.count > 0, "{seen:?}");
    ensure!(seen.turn_duration_ns.max >= Some(290 * MILLISECOND), "{seen:?}");
    ensure!(seen.stalls >= 1 && seen.busy_share > 0.0, "{seen:?}");
    let own = stats.accepts.iter().find(|one| one.pid == target.pid());
    ensure!(own.is_some_and(|own| own.accepted >= 1), "{stats:?}");
    Ok(())
}
