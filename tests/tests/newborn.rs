//! Threads that a pool starts while it is watched: the first piece of work of each is measured from its birth.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use profiler_tests::clock::{MILLISECOND, patience};
use profiler_tests::lives::broken_contract;
use profiler_tests::noise::NoiseMeter;
use profiler_tests::report::{StallExt as _, StallLine};
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::target::{Target, folder, system_python};
use profiler_tests::tracer::{Finished, Tracer};

/// What the thread does before and after its job, on a machine without noise.
const APART_NS: u64 = 15 * MILLISECOND;

/// One job, as its thread wrote it down.
#[derive(Debug)]
struct Held {
    tid: u64,
    line: u64,
    start_ns: u64,
    end_ns: u64,
}

impl Held {
    /// Whether the stall is of its thread, and of the same time.
    fn is_in(&self, end: &StallLine) -> bool {
        u64::from(end.thread.tid) == self.tid
            && end.stall.start_monotonic_ns < self.end_ns
            && end.end_ns() > self.start_ns
    }

    /// The thread, the function, the line and the time are those that the thread itself gave.
    fn must_be(&self, end: &StallLine, noise_ns: u64) -> Result<()> {
        let lasted_ns = self.end_ns - self.start_ns;
        let apart_ns = end.stall.duration_ns.abs_diff(lasted_ns);
        ensure!(apart_ns <= APART_NS + noise_ns, "{:?} for {self:?}", end.stall);
        // The end of a thread is not seen as one of its work.
        ensure!(end.stall.start_known, "{:?}", end.stall);
        let culprit = end.culprit.as_ref().context("nobody is blamed")?;
        ensure!(culprit.function.as_deref() == Some("job"), "{culprit:?} for {self:?}");
        ensure!(culprit.line.map(u64::from) == Some(self.line), "{culprit:?} for {self:?}");
        Ok(())
    }
}

/// What was said of a program's threads, what they wrote down, and the noise meanwhile.
fn watch(kind: &str, options: &[&str]) -> Result<(Finished, Vec<Held>, u64)> {
    let _machine = alone();
    require_root()?;
    let mut command = Command::new(system_python());
    command.arg(folder().join("newborn.py")).arg(kind);
    let target = Target::program(command)?;
    target.line_starting("ready", patience(20))?;
    let noise = NoiseMeter::start();
    let (tracer, _) = Tracer::attach(target.pid(), options)?;
    target.signal(Signal::SIGUSR1)?;
    let mut all = Vec::new();
    loop {
        let line = target.line_starting("", patience(20))?;
        if line == "over" {
            break;
        }
        let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        let &[tid, line, start_ns, end_ns] = &numbers[..] else { anyhow::bail!("odd: {line}") };
        all.push(Held { tid, line, start_ns, end_ns });
    }
    std::thread::sleep(Duration::from_millis(300));
    let finished = tracer.interrupt()?;
    let broken = broken_contract(&finished.lines);
    ensure!(finished.code == Some(0) && broken.is_empty(), "{broken:?}\n{}", finished.logs);
    Ok((finished, all, noise.allowance_ns()))
}

/// Six of six.
fn every_job_is_told(kind: &str) -> Result<()> {
    let (finished, all, noise_ns) = watch(kind, &["--watch-workers"])?;
    ensure!(all.len() == 6, "odd target: {all:?}");
    let ends: Vec<_> = finished.ends().collect();
    for held in &all {
        let is_it = |end: &&&StallLine| held.is_in(end);
        let of_thread: Vec<_> = ends.iter().filter(is_it).collect();
        let [end] = of_thread[..] else {
            let told = |end: &&&StallLine| {
                let from_ns = end.stall.start_monotonic_ns;
                format!(
                    "{} from {from_ns}, {} ns, {:?}",
                    end.cause.summary, end.stall.duration_ns, end.gaps
                )
            };
            let summaries: Vec<_> = of_thread.iter().map(told).collect();
            anyhow::bail!("{summaries:?} of {held:?}, {} in all", ends.len());
        };
        // Where others had its CPU for longer than it slept, no line is to blame.
        if !end.is_starved() {
            held.must_be(end, noise_ns)?;
        }
    }
    // Whoever waits for a CPU past the threshold is told as well.
    let invented: Vec<_> = ends
        .iter()
        .filter(|end| !end.is_starved() && !all.iter().any(|held| held.is_in(end)))
        .map(|end| &end.cause.summary)
        .collect();
    ensure!(invented.is_empty(), "{invented:?}");
    println!("{}", finished.told().join("\n"));
    Ok(())
}

fn must_be_silent(kind: &str, options: &[&str]) -> Result<()> {
    let (finished, ..) = watch(kind, options)?;
    let told = finished.told();
    ensure!(told.is_empty(), "{told:#?}");
    Ok(())
}

#[test]
fn the_first_work_of_a_growing_pool() -> Result<()> {
    every_job_is_told("grows")
}

#[test]
fn the_only_work_of_threads_that_come_and_go() -> Result<()> {
    every_job_is_told("changes")
}

#[test]
fn short_work_is_left_in_peace() -> Result<()> {
    must_be_silent("brief", &["--watch-workers"])
}

/// A thread that serves no pool holds up nobody, however long it sleeps.
#[test]
fn threads_of_no_pool_are_left_in_peace() -> Result<()> {
    must_be_silent("background", &["--watch-workers"])
}

/// What new threads do is their own business, unless somebody asks.
#[test]
fn new_threads_are_watched_on_request_only() -> Result<()> {
    must_be_silent("grows", &[])
}
