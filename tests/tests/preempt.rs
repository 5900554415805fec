//! Loops whose threads lose their CPU at every moment, also within the probes: no stall is invented, and none is missed
//! without being counted. What is true is what the loops read from their own clocks around each wait.
//!
//! Meant for preemptible kernels with fentry, in an emulated machine: there the kernel leaves out a probe on a CPU where
//! another thread was preempted within it.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use profiler_tests::clock::{MILLISECOND, patience};
use profiler_tests::lives;
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::target::{Scratch, Target, folder};
use profiler_tests::tracer::{Finished, Tracer};
use profiler_tests::waits::{self, Reported, judge};

const LOOPS: u32 = 2;
/// More than the CPUs of an emulated machine.
const HOGS: u32 = 3;
const THRESHOLD: &str = "20ms";
const THRESHOLD_NS: u64 = 20 * MILLISECOND;

/// What a loop plays in a second is a multiple of both, also on an emulated machine.
const STALLS_PER_SECOND: u64 = 1;
const TURNS_PER_SECOND: u64 = 100;

/// How long it goes on; `STALLTRACE_TEST_PREEMPT_SECONDS` names another time.
fn seconds() -> u64 {
    let told = std::env::var("STALLTRACE_TEST_PREEMPT_SECONDS").ok();
    told.and_then(|seconds| seconds.parse().ok()).unwrap_or(20)
}

/// The kernel, and how it preempts where it says so.
fn kernel() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    format!("{} {}", read("/proc/sys/kernel/osrelease"), read("/sys/kernel/debug/sched/preempt"))
}

/// What the session counted as lost or healed of waits, by kind.
fn counted(finished: &Finished) -> BTreeMap<String, u64> {
    let of_waits =
        finished.lost().into_iter().flatten().filter(|(kind, _)| kind.starts_with("wait_"));
    of_waits.map(|(kind, count)| (kind.clone(), *count)).collect()
}

/// Each report is of one turn, or counted as not; each stall has its report, or is counted as lost.
#[test]
fn preempted_loops() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let scratch = Scratch::new()?;
    let (program, truth) = (scratch.file("preempt"), scratch.file("waits"));
    let built = Command::new("gcc")
        .args(["-O1", "-pthread", "-o"])
        .args([&program, &folder().join("preempt.c")])
        .status()?;
    ensure!(built.success(), "gcc: {built}");
    let mut command = Command::new(&program);
    command.args([seconds().to_string(), LOOPS.to_string()]).arg(&truth);
    let target = Target::program(command)?;
    target.line_starting("ready", patience(10))?;
    let options = ["--threshold", THRESHOLD, "--stats-interval", "20s"];
    let (tracer, start) = Tracer::attach(target.pid(), &options)?;
    let hog = |_| {
        let mut command = Command::new(&program);
        command.arg("hog");
        Target::program(command)
    };
    let hogs = (0..HOGS).map(hog).collect::<Result<Vec<_>>>()?;
    target.signal(Signal::SIGUSR1)?;
    target.line_starting("done", Duration::from_secs(seconds()) + patience(30))?;
    drop(hogs);
    let finished = tracer.finish().context("stalltrace outlives its target")?;

    let loops = waits::read(&truth)?;
    let reports: Vec<_> = finished.ends().map(Reported::from).collect();
    let judged = judge(&loops, &reports, THRESHOLD_NS, start.at_ns);
    let counted = counted(&finished);
    let in_session: u64 =
        finished.stats().flat_map(|stats| &stats.loops).map(|one| one.turns).sum();
    println!("{}, {} s: {judged}", kernel(), seconds());
    println!("the session counts {in_session} turns, and of waits {counted:?}");

    ensure!(finished.code == Some(0), "exit code {:?}\n{}", finished.code, finished.logs);
    let lives = lives::of(&finished.lines);
    let mut wrong: Vec<_> = lives.iter().flat_map(|(id, life)| life.contradictions(id)).collect();
    wrong.extend(lives::broken_contract(&finished.lines));
    ensure!(wrong.is_empty() && finished.unreadable.is_empty(), "{wrong:?}\n{}", finished.logs);
    let least = |each: u64| usize::try_from(each * seconds() * u64::from(LOOPS));
    ensure!(judged.turns >= least(TURNS_PER_SECOND)?, "only {} turns", judged.turns);
    ensure!(judged.compared() >= least(STALLS_PER_SECOND)?, "{} compared", judged.compared());
    ensure!(judged.invented.is_empty(), "{} stalls invented", judged.invented.len());
    let untrue = (judged.joined.len() + judged.missed.len()) as u64;
    let known: u64 = counted.values().sum();
    ensure!(untrue <= known, "{untrue} stalls joined or missed, {known} counted");
    Ok(())
}
