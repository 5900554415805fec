//! A loop that is ready and has no CPU: how it was lost, and who had it, by the kernel's own count of each.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use profiler_tests::clock::{MILLISECOND, milliseconds};
use profiler_tests::report::{CauseKind, PartOfStall, Preemptor, StallLine};
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::tally::Tally;
use profiler_tests::turns::{self, Watched, script};
use serde::Deserialize;

/// How far a time may be from the target's own word, which it takes a moment to get inside of the turn, on
/// a CPU that a hypervisor may take.
const NEAR_NS: u64 = 50 * MILLISECOND;

/// One turn, in the words of the target and, by that, of the kernel.
#[derive(Debug, Deserialize)]
struct Turn {
    start_ns: u64,
    end_ns: u64,
    /// On the CPU, and waiting for it.
    ran_ns: u64,
    waited_ns: u64,
    /// By pid what each hog ran meanwhile.
    hogs: BTreeMap<u32, u64>,
}

/// A program that takes the CPU. Ends with its owner.
#[derive(Debug)]
struct Hog(Child);

impl Hog {
    fn start(cpu: usize, options: &[&str]) -> Result<Self> {
        let mut command = program("hog", cpu);
        command.args(options).stdout(Stdio::piped()).stdin(Stdio::null());
        let mut hog = Self(command.spawn().context("no hog")?);
        let mut line = String::new();
        let stdout = hog.0.stdout.take().context("a hog without a voice")?;
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line.trim() == "ready", "the hog said {line:?}");
        Ok(hog)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody else to tell.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A stall, and the target's own word on the same turn.
#[derive(Debug)]
struct Seen {
    turn: Turn,
    stall: StallLine,
}

/// How its thread was ready without a CPU.
#[derive(Debug, Clone, Copy)]
struct Queued<'a> {
    preempted_ns: u64,
    woken_ns: u64,
    idle_ns: u64,
    preempted_by: &'a [Preemptor],
}

impl Queued<'_> {
    fn preemptor(&self, pid: u32) -> Option<&Preemptor> {
        self.preempted_by.iter().find(|preemptor| preemptor.pid == pid)
    }
}

impl Seen {
    /// Where that is the cause.
    fn queued(&self) -> Option<Queued<'_>> {
        let CauseKind::RunQueue { preempted_ns, woken_ns, idle_ns, preempted_by, .. } =
            &self.stall.cause.kind
        else {
            return None;
        };
        Some(Queued {
            preempted_ns: *preempted_ns,
            woken_ns: *woken_ns,
            idle_ns: *idle_ns,
            preempted_by: preempted_by.as_deref().unwrap_or_default(),
        })
    }

    /// All that is said of who ran instead is within what can be true.
    fn check(&self) -> Result<()> {
        let (cause, runnable_ns) = (&self.stall.cause, self.stall.stall.time.runnable_ns);
        let words = format!("{:?} {:?} {:?}", self.turn, self.stall.stall, cause);
        let waited_ns = self.turn.waited_ns;
        ensure!(runnable_ns.abs_diff(waited_ns) <= near_ns(waited_ns), "{words}");
        let Some(queued) = self.queued() else { return Ok(()) };
        ensure!(queued.preempted_ns + queued.woken_ns == runnable_ns, "{words}");
        let told: u64 = queued.preempted_by.iter().map(|it| it.time_ns).sum();
        ensure!(told + queued.idle_ns <= runnable_ns, "{words}");
        // Nobody is charged with what a hog had.
        let hogs_ns: u64 = self.turn.hogs.values().sum();
        let is_other = |it: &&Preemptor| !self.turn.hogs.contains_key(&it.pid);
        let others_ns: u64 = queued.preempted_by.iter().filter(is_other).map(|it| it.time_ns).sum();
        let most_ns = runnable_ns.saturating_sub(hogs_ns) + near_ns(runnable_ns);
        ensure!(others_ns <= most_ns, "others for {others_ns} ns: {words}");
        Ok(())
    }
}

fn near_ns(ns: u64) -> u64 {
    NEAR_NS + ns / 20
}

/// The one CPU that all of this happens on.
fn cpu() -> Result<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true));
    cpus.next().context("no CPU may be used")
}

fn program(role: &str, cpu: usize) -> Command {
    script("run_queue.py", &[role, "--cpu", &cpu.to_string()])
}

fn watch(cpu: usize, hogs: &[Hog], turns: &[&str]) -> Result<Vec<Seen>> {
    let mut command = program("loop", cpu);
    for hog in hogs {
        command.args(["--hog", &hog.pid().to_string()]);
    }
    command.args(turns);
    let watched: Watched<Turn> = turns::watch(command, &[], "stalled")?;
    let Watched { turns: played, finished, .. } = watched;
    let mut seen = Vec::new();
    for turn in played {
        let stall = finished.stall_in(turn.start_ns, turn.end_ns).cloned();
        let stall = stall.with_context(|| format!("{turn:?} was missed"))?;
        println!("{}", stall.cause.summary);
        seen.push(Seen { turn, stall });
    }
    ensure!(seen.len() == turns.len(), "{} turns", seen.len());
    Ok(seen)
}

/// Whoever takes the CPU from a loop that computes is named, each with its exact time.
#[test]
fn hogs_are_named() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let cpu = cpu()?;
    let hogs = [Hog::start(cpu, &[])?, Hog::start(cpu, &[])?];
    for seen in watch(cpu, &hogs, &["compute=150", "compute=200"])? {
        seen.check()?;
        let cause = &seen.stall.cause;
        let queued = seen.queued().with_context(|| format!("{cause:?}"))?;
        ensure!(queued.preempted_ns > queued.woken_ns, "{cause:?}");
        for hog in &hogs {
            let truth_ns = seen.turn.hogs.get(&hog.pid()).copied().unwrap_or_default();
            let named = queued.preemptor(hog.pid());
            let named = named.with_context(|| format!("{hog:?} is not named: {cause:?}"))?;
            let is_near = named.time_ns.abs_diff(truth_ns) <= near_ns(truth_ns);
            let times = (milliseconds(named.time_ns), milliseconds(truth_ns));
            ensure!(is_near, "{times:?}: {cause:?}");
            ensure!(named.tid == Some(hog.pid()), "{named:?}");
            let command = named.command.as_deref().unwrap_or_default();
            ensure!(command.contains("run_queue.py hog"), "{named:?}");
        }
        // What the loop's own line computed meanwhile is that line's.
        let culprit = seen.stall.culprit.as_ref().context("no line for what it computed")?;
        ensure!(culprit.function.as_deref() == Some("compute"), "{culprit:?}");
        let (ran_ns, is_run) = (seen.turn.ran_ns, culprit.part == PartOfStall::Running);
        let is_near = culprit.time_ns.abs_diff(ran_ns) <= near_ns(ran_ns);
        ensure!(is_run && is_near, "{culprit:?} for {}", milliseconds(ran_ns));
    }
    Ok(())
}

/// A loop that is woken while another has the CPU waits behind that, and was not preempted.
#[test]
fn woken_but_waiting() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let cpu = cpu()?;
    let hogs = [Hog::start(cpu, &["--pulse", "300"])?];
    for seen in watch(cpu, &hogs, &["nap=50", "nap=60"])? {
        seen.check()?;
        let cause = &seen.stall.cause;
        let queued = seen.queued().with_context(|| format!("{cause:?}"))?;
        ensure!(queued.woken_ns > queued.preempted_ns, "{cause:?}");
        let [hog] = &hogs;
        let named = queued.preemptor(hog.pid()).with_context(|| format!("nobody: {cause:?}"))?;
        // Until the loop's thread was woken, the hog had the CPU from nobody.
        let woken_ns = queued.woken_ns;
        ensure!(named.time_ns.abs_diff(woken_ns) <= near_ns(woken_ns), "{cause:?}");
        ensure!(cause.summary.contains("woken, but waited"), "{}", cause.summary);
        // The nap that it had asked for is its own, and no more than that.
        if let Some(culprit) = &seen.stall.culprit {
            ensure!(culprit.function.as_deref() == Some("turn"), "{culprit:?}");
            let is_nap = culprit.part == PartOfStall::Blocked && culprit.time_ns < woken_ns;
            ensure!(is_nap, "{culprit:?}: {cause:?}");
        }
    }
    Ok(())
}

/// Where nobody takes the CPU, the same turn is what it computes.
#[test]
fn alone_on_a_cpu() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let mut tally = Tally::of("run_queue/alone_on_a_cpu");
    for seen in watch(cpu()?, &[], &["compute=200"; 4])? {
        seen.check()?;
        let Turn { waited_ns, ran_ns, .. } = seen.turn;
        // Whichever is clearly more is the cause.
        let expected = if waited_ns + near_ns(waited_ns) < ran_ns {
            "cpu"
        } else if waited_ns > ran_ns + near_ns(ran_ns) {
            "run_queue"
        } else {
            tally.passed_over(format!("others had the CPU for {}", milliseconds(waited_ns)));
            continue;
        };
        ensure!(seen.stall.cause.kind.name() == expected, "{:?} {:?}", seen.turn, seen.stall.cause);
        tally.compared();
    }
    tally.must_be(1)
}
