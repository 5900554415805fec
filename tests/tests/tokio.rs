//! A service on tokio: what blocks its workers is named by function and line, what may block is not.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use profiler_tests::load::{Client, Exchange, Traffic};
use profiler_tests::report::{StallExt as _, StallLine};
use profiler_tests::scenario::{THRESHOLD_NS, alone, each, observe, play, require_root};
use profiler_tests::tally::Tally;
use profiler_tests::target::{Scratch, Target};
use profiler_tests::tracer::Tracer;
use profiler_tests::truth::Truth;

const SERVICE: &str = env!("CARGO_BIN_EXE_tokio-target");
const STALLS: [&str; 4] = ["/sleep", "/spin", "/lock", "/read"];
const HARMLESS: [&str; 3] = ["/offload", "/wait", "/handover"];

fn start(program: &Path, flavour: &str) -> Result<Target> {
    let mut command = Command::new(program);
    command.args(["--flavour", flavour]);
    Target::of_ours(command)
}

/// Every handler that blocks the one thread is found: function, file and line are the handler's own,
/// not the runtime's below it nor the standard library's above.
#[test]
fn current_thread() -> Result<()> {
    let _machine = alone();
    let target = start(Path::new(SERVICE), "current_thread")?;
    let played = play(&target, &each(&STALLS, &[300, 450]))?;
    played.must_be_right()?;
    let ends = played.finished.ends().collect::<Vec<_>>();
    ensure!(ends.len() >= 8, "{} stalls of 8 were reported", ends.len());
    for end in &ends {
        ensure!(end.thread.loop_kind == "tokio", "{:?}", end.thread);
        let runtime = end.runtime.as_ref().context("no runtime")?;
        let version = runtime.version.as_deref().unwrap_or_default();
        ensure!(runtime.name == "tokio" && version.starts_with("1."), "{runtime:?}");
    }
    for (kind, cause) in
        [("sleep", "sleep"), ("lock", "lock"), ("read", "syscall"), ("spin", "cpu")]
    {
        ensure!(ends.iter().any(|end| end.is_caused_by(cause)), "no {kind} was caused by {cause}");
    }
    inlined_frames_lie_inside(&ends)
}

/// Workers that are watched are timed from park to park, each by itself; the one that waits in epoll for
/// all of them is idle.
#[test]
fn watched_workers() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = start(Path::new(SERVICE), "multi_thread")?;
    let (tracer, _) = Tracer::attach(target.pid(), &["--watch-workers"])?;
    // They are searched for once a second.
    std::thread::sleep(Duration::from_millis(2500));
    for path in each(&STALLS, &[300]).iter().chain(&each(&HARMLESS, &[250])) {
        Client::connect(target.port())?.get(path)?;
        std::thread::sleep(Duration::from_millis(150));
    }
    let finished = tracer.interrupt()?;
    let truths = target.truths()?;
    let ends: Vec<_> = finished.ends().collect();
    ensure!(truths.len() == STALLS.len(), "odd target: {truths:?}");
    let mut tally = Tally::of("tokio/watched_workers");
    for truth in &truths {
        let lasted_ns = truth.duration_ns();
        let about = ends.iter().find(|end| {
            truth.overlap_ns(end.stall.start_monotonic_ns, end.end_ns()) > lasted_ns / 2
        });
        let end = about.with_context(|| format!("{truth:?} was missed"))?;
        match &end.culprit {
            None if end.is_starved() => {
                tally.passed_over(format!("{}: {}", truth.kind, end.cause.summary));
            }
            None => anyhow::bail!("nobody is blamed: {:?}", end.gaps),
            Some(culprit) => {
                ensure!(culprit.function == truth.function, "{culprit:?} for {truth:?}");
                tally.compared();
            }
        }
        ensure!(end.stall.start_known && end.stall.end_known, "{:?}", end.stall);
        let apart_ns = end.stall.duration_ns.abs_diff(lasted_ns);
        ensure!(apart_ns < lasted_ns / 5, "{} ns for {truth:?}", end.stall.duration_ns);
    }
    ensure!(ends.len() == truths.len(), "{} stalls of {}", ends.len(), truths.len());
    // One may be lost to a machine that is busy with something else.
    tally.must_be(STALLS.len() - 1)
}

/// A frame that was inlined has the address of the one that it was put into, which comes next.
fn inlined_frames_lie_inside(ends: &[&StallLine]) -> Result<()> {
    let stacks = || ends.iter().flat_map(|end| &end.stacks);
    let inlined = stacks().flat_map(|stack| &stack.frames).filter(|frame| frame.inlined).count();
    ensure!(inlined > 0, "nothing was inlined");
    for stack in stacks() {
        let outermost = stack.frames.last().context("no frames")?;
        ensure!(!outermost.inlined, "{outermost:?} was inlined into nothing");
        for pair in stack.frames.windows(2).filter(|pair| pair[0].inlined) {
            ensure!(pair[0].address == pair[1].address, "{pair:?}");
        }
    }
    Ok(())
}

/// Where one worker blocks, another takes over the epoll instance, or tokio leaves it parked and nobody
/// does. The requests of others say which: what they felt is told, and nothing else.
#[test]
fn multi_thread() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = start(Path::new(SERVICE), "multi_thread")?;
    let traffic = Traffic::start(target.port(), "/", Duration::from_millis(10), 48)?;
    let (tracer, _) = Tracer::attach(target.pid(), &[])?;
    for path in each(&STALLS, &[300, 450]) {
        std::thread::sleep(Duration::from_millis(250));
        Client::connect(target.port())?.get(&path)?;
    }
    std::thread::sleep(Duration::from_millis(250));
    let exchanges = traffic.finish()?;
    let finished = tracer.interrupt()?;
    let truths = target.truths()?;
    ensure!(truths.len() == 8, "odd target: {truths:?}");
    let (mut told, mut judged) = (0, 0);
    for truth in &truths {
        // On a busy machine the requests may come late themselves.
        let Some(felt_ns) = felt_ns(truth, &exchanges) else { continue };
        judged += 1;
        let Some(end) = finished.stall_in(truth.start_ns, truth.end_ns) else {
            ensure!(felt_ns < THRESHOLD_NS, "{felt_ns} ns were felt of {truth:?}, nothing told");
            continue;
        };
        ensure!(felt_ns > THRESHOLD_NS / 2, "{felt_ns} ns were felt, told was {:?}", end.stall);
        ensure!(end.thread.loop_kind == "tokio", "{:?}", end.thread);
        ensure!(end.thread.tid == truth.thread.unwrap_or(0), "{:?} for {truth:?}", end.thread);
        let culprit = end.culprit.as_ref().and_then(|culprit| culprit.function.as_deref());
        ensure!(culprit == truth.function.as_deref() || end.is_starved(), "{culprit:?}, {truth:?}");
        told += 1;
    }
    let is_known = |end: &StallLine| {
        end.is_starved()
            || truths
                .iter()
                .any(|truth| truth.overlap_ns(end.stall.start_monotonic_ns, end.end_ns()) > 0)
    };
    ensure!(finished.ends().all(is_known), "{:#?}", finished.told());
    ensure!(judged >= truths.len() / 2, "nobody asked meanwhile");
    println!("{told} of {judged} held up others, and were told");
    Ok(())
}

/// What most of those had to wait who asked in the first half of it.
fn felt_ns(truth: &Truth, exchanges: &[Exchange]) -> Option<u64> {
    let first_half = truth.start_ns..truth.start_ns + truth.duration_ns() / 2;
    let asked = exchanges.iter().filter(|exchange| first_half.contains(&exchange.sent_ns));
    let mut waited: Vec<u64> = asked.map(Exchange::waited_ns).collect();
    waited.sort_unstable();
    waited.get(waited.len() / 2).copied()
}

/// Waiting as tasks should, and blocking on the threads that are for it: not a word, of any flavour.
#[test]
fn healthy() -> Result<()> {
    let _machine = alone();
    for flavour in ["current_thread", "multi_thread"] {
        let target = start(Path::new(SERVICE), flavour)?;
        let mut paths = each(&["/offload", "/wait", "/"], &[300, 800]);
        if flavour == "multi_thread" {
            paths.extend(each(&["/handover", "/"], &[300, 500]));
        }
        let played = play(&target, &paths)?;
        played.must_be_right()?;
        ensure!(
            played.finished.ends().next().is_none(),
            "{flavour}: {:#?}",
            played.finished.ends().collect::<Vec<_>>()
        );
    }
    Ok(())
}

/// With symbols alone the functions are named, without lines; without symbols none is guessed.
#[test]
fn stripped() -> Result<()> {
    let _machine = alone();
    let scratch = Scratch::new()?;
    for (option, has_names) in [("--strip-debug", true), ("--strip-all", false)] {
        let program = scratch.file("service");
        let status =
            Command::new("strip").arg(option).arg(SERVICE).arg("-o").arg(&program).status();
        ensure!(status.context("no strip")?.success(), "strip {option} failed");
        let target = start(&program, "current_thread")?;
        let played = observe(&target, || {
            Client::connect(target.port())?.get("/sleep?ms=400")?;
            Ok(Vec::new())
        })?;
        let ends = played.finished.ends().collect::<Vec<_>>();
        let [end] = ends[..] else { anyhow::bail!("{} stalls were reported", ends.len()) };
        let is_own = |module: Option<&str>| module.is_some_and(|name| name.ends_with("/service"));
        let own = end.stacks.iter().flat_map(|stack| &stack.frames);
        let own: Vec<_> = own.filter(|frame| is_own(frame.module.as_deref())).collect();
        ensure!(own.len() > 3, "{end:#?}");
        if has_names {
            let culprit = end.culprit.as_ref().context("no culprit")?;
            let function = culprit.function.as_deref().unwrap_or_default();
            ensure!(function.starts_with("tokio_target::"), "{culprit:?}");
            ensure!(end.thread.loop_kind == "tokio", "{:?}", end.thread);
        } else {
            ensure!(own.iter().all(|frame| frame.function.is_none()), "{own:#?}");
        }
    }
    Ok(())
}
