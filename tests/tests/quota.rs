//! A handler that computes with little CPU time to be had: its quota or its one CPU is the cause, and not the handler.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use profiler_tests::cgroup::{Controller, Group};
use profiler_tests::clock::{MILLISECOND, milliseconds, patience};
use profiler_tests::report::{CauseKind, StallExt as _};
use profiler_tests::scenario::alone;
use profiler_tests::tally::Tally;
use profiler_tests::target::{Target, system_python};
use profiler_tests::turns::{around, nothing, play};

/// A fifth of a CPU.
const QUOTA_US: u64 = 20_000;

/// What the kernel has counted of one stall, and what is told, may differ by what was counted between
/// two looks at it: half the threshold while nothing happens, and a wait of the quota's period.
const NEAR_NS: u64 = 110 * MILLISECOND;

/// The turn takes five times its CPU time; what was throttled is told, as the kernel and the target have
/// it, and that it was this group's quota.
#[test]
fn the_quota_is_the_cause() -> Result<()> {
    const TRIES: usize = 5;
    let _machine = alone();
    let mut tally = Tally::of("quota/the_quota_is_the_cause");
    for _ in 0..TRIES {
        throttle(&mut tally)?;
        if tally.count() > 0 {
            break;
        }
    }
    tally.must_be(1)
}

fn throttle(tally: &mut Tally) -> Result<()> {
    let group = Group::new(Controller::Cpu)?;
    group.limit_cpu(QUOTA_US)?;
    let before_ns = group.throttled_ns()?;
    let (played, finished) =
        play(around(&["compute=120"]), 1, |target| group.add(target.pid()), nothing)?;
    let counted_ns = group.throttled_ns()? - before_ns;
    let turn = played.first().context("no turn")?;
    let stall = turn.stall(&finished).context("no stall")?;
    let words = format!("{:?} of {turn:?}; the group counted {counted_ns}", stall.cause);
    let ready_ns = stall.stall.time.runnable_ns;
    ensure!(ready_ns.abs_diff(turn.off_cpu_ns()) < NEAR_NS, "{ready_ns} ready; {words}");

    if counted_ns <= NEAR_NS {
        tally.passed_over(format!("others took so much that no quota was used up: {words}"));
        return Ok(());
    }
    let kinds = stall.cause.also.iter().map(|part| &part.kind).chain([&stall.cause.kind]);
    let mut throttled = kinds.filter_map(|kind| match kind {
        CauseKind::CpuQuota { throttled_ns, .. } => Some(*throttled_ns),
        _ => None,
    });
    let throttled_ns = throttled.next().with_context(|| format!("no quota; {words}"))?;
    let throttled_ns = throttled_ns.context("no throttled time")?;
    ensure!(throttled_ns <= counted_ns + MILLISECOND, "{throttled_ns}; {words}");
    ensure!(throttled_ns + NEAR_NS >= counted_ns.min(ready_ns), "{throttled_ns}; {words}");
    // A machine that is busy besides may have taken more.
    if counted_ns > turn.off_cpu_ns() / 2 + NEAR_NS {
        let CauseKind::CpuQuota { quota_us, cgroup, .. } = &stall.cause.kind else {
            bail!("{words}");
        };
        ensure!(stall.cause.summary.contains("out of its CPU quota (0.2 CPUs)"), "{words}");
        ensure!(*quota_us == QUOTA_US && *cgroup == group.name(), "{words}");
        tally.compared();
    } else {
        tally.passed_over(format!("a busy machine took more: {words}"));
    }
    println!("{} of {}", milliseconds(throttled_ns), milliseconds(turn.duration_ns()));
    Ok(())
}

/// A program that keeps a CPU.
const HOG: &str = "print('ready', flush=True)\nwhile True: pass";

/// Lets a process run on the first CPU only.
fn confine(target: &Target) -> Result<()> {
    let mut first = CpuSet::new();
    first.set(0)?;
    Ok(sched_setaffinity(Pid::from_raw(i32::try_from(target.pid())?), &first)?)
}

/// A thread that may use one CPU only, which others use as well, is told to be confined to it; one that
/// may use all is not.
#[test]
fn confined_to_one_cpu() -> Result<()> {
    let _machine = alone();
    let hog = || -> Result<Target> {
        let mut command = Command::new(system_python());
        command.args(["-c", HOG]);
        let hog = Target::program(command)?;
        hog.line_starting("ready", patience(60))?;
        confine(&hog)?;
        Ok(hog)
    };
    let _hogs = [hog()?, hog()?];
    let (played, finished) = play(around(&["compute=100"]), 1, confine, nothing)?;
    let turn = played.first().context("no turn")?;
    let stall = turn.stall(&finished).context("no stall")?;
    let words = format!("{:?} {:?} of {turn:?}", stall.cause, stall.stall.time);
    let CauseKind::RunQueue { allowed_cpus, .. } = stall.cause.kind else { bail!("{words}") };
    ensure!(stall.cause.summary.contains(", confined to CPU 0"), "{words}");
    ensure!(allowed_cpus == Some(1), "{words}");

    let (played, finished) = play(around(&["compute=200"]), 1, nothing, nothing)?;
    let stall = played.first().and_then(|turn| turn.stall(&finished)).context("no stall")?;
    ensure!(!stall.cause.summary.contains("confined"), "{:?}", stall.cause);
    Ok(())
}

/// The same handler without a quota keeps the CPU, and a group that has one but does not use it up is
/// not throttled.
#[test]
fn without_a_quota_it_is_the_code() -> Result<()> {
    let _machine = alone();
    let group = Group::new(Controller::Cpu)?;
    for quota_us in [None, Some(400_000)] {
        let limit = |pid| match quota_us {
            Some(quota_us) => group.limit_cpu(quota_us).and_then(|()| group.add(pid)),
            None => Ok(()),
        };
        let (played, finished) =
            play(around(&["compute=200"]), 1, |target| limit(target.pid()), nothing)?;
        let stall = played.first().and_then(|turn| turn.stall(&finished)).context("no stall")?;
        ensure!(stall.is_caused_by("cpu"), "{:?} with {quota_us:?}", stall.cause);
        let is_quota = |kind: &str| kind == "cpu_quota";
        ensure!(
            !stall.cause.also.iter().any(|part| is_quota(part.kind.name())),
            "{:?}",
            stall.cause
        );
        let told = stall.gaps.iter().any(|gap| gap.contains("quota"));
        ensure!(!told, "{:?}", stall.gaps);
    }
    Ok(())
}
