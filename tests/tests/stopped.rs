//! A process that is stopped from outside inside a turn: by whom, for how long, and nobody's line is to blame.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use profiler_tests::cgroup::{Controller, Group, Hierarchy};
use profiler_tests::clock::{MILLISECOND, milliseconds, monotonic_ns, slowdown};
use profiler_tests::noise::NoiseMeter;
use profiler_tests::report::{CauseKind, StallExt as _, StallLine, StoppedBy};
use profiler_tests::scenario::alone;
use profiler_tests::target::{Scratch, Target};
use profiler_tests::turns::{Played, around, let_it_begin, nothing, play};

/// Long enough to be the greater part of a turn.
const STOP: Duration = Duration::from_millis(900);

/// The handlers: one is stopped while it runs, the other while it sleeps.
const TURNS: [&str; 2] = ["compute=300", "nap=300"];

/// How far the stop that is told may be from the one that was made: the time in which a signal, a
/// tracer or the freezer gets hold of the thread, and what the machine's own delays add to the clock's reading.
fn near_ns(noise: &NoiseMeter) -> u64 {
    60 * MILLISECOND * u64::from(slowdown()) + noise.allowance_ns()
}

/// Plays the turns with a stop inside each, and tells each turn, its stall, and how long the stop was.
fn stop_in_each(
    prepare: impl FnOnce(&Target) -> Result<()>,
    stop: impl Fn(&Target) -> Result<()>,
) -> Result<Vec<(Played, StallLine, u64)>> {
    let stops = std::cell::RefCell::new(Vec::new());
    let act = |target: &Target| {
        let_it_begin();
        let before_ns = monotonic_ns();
        stop(target)?;
        stops.borrow_mut().push(monotonic_ns() - before_ns);
        Ok(())
    };
    let (played, finished) = play(around(&TURNS), TURNS.len(), prepare, act)?;
    let with_stall = |(turn, stopped_ns): (Played, u64)| {
        let stall = turn.stall(&finished).with_context(|| format!("{turn:?} was missed"))?;
        Ok((turn, stall.clone(), stopped_ns))
    };
    played.into_iter().zip(stops.into_inner()).map(with_stall).collect()
}

/// The stop is the cause wherever nothing took longer, and a part of the stall in any case.
fn check(stalls: &[(Played, StallLine, u64)], by: StoppedBy, near_ns: u64) -> Result<()> {
    for (turn, stall, stopped_ns) in stalls {
        let words = format!("{:?} {:?} of {turn:?}", stall.cause, stall.stall.time);
        let runnable_ns = stall.stall.time.runnable_ns;
        let is_starved =
            stall.cause.kind.name() == "run_queue" && runnable_ns + near_ns > *stopped_ns;
        let told_ns = if is_starved {
            let part = stall.cause.also.iter().find(|part| part.kind.name() == "stopped");
            part.with_context(|| words.clone())?.time_ns
        } else {
            let CauseKind::Stopped { by: told, .. } = &stall.cause.kind else { bail!("{words}") };
            ensure!(*told == Some(by), "{words}");
            match &stall.culprit {
                // For what it did besides, and for no more than that.
                Some(culprit) => {
                    let left_ns = stall.stall.duration_ns - stall.cause.time_ns;
                    ensure!(culprit.time_ns <= left_ns, "{culprit:?} is blamed: {words}");
                }
                None => {
                    let is_said = stall.gaps.iter().any(|gap| gap.starts_with("culprit: "));
                    ensure!(is_said, "{:?}", stall.gaps);
                }
            }
            ensure!(!stall.stacks.is_empty(), "where it was is not told");
            stall.cause.time_ns
        };
        let is_near = told_ns.abs_diff(*stopped_ns) < near_ns;
        ensure!(is_near, "{} of {}: {words}", milliseconds(told_ns), milliseconds(*stopped_ns));
    }
    Ok(())
}

/// SIGSTOP and SIGCONT.
#[test]
fn by_a_signal() -> Result<()> {
    let _machine = alone();
    let noise = NoiseMeter::start();
    let stalls = stop_in_each(nothing, |target| {
        target.signal(Signal::SIGSTOP)?;
        std::thread::sleep(STOP);
        target.signal(Signal::SIGCONT)
    })?;
    check(&stalls, StoppedBy::Signal, near_ns(&noise))
}

/// A debugger that attaches, looks for a while, and lets it go: it is named.
#[test]
fn by_a_debugger() -> Result<()> {
    let _machine = alone();
    let noise = NoiseMeter::start();
    let stalls = stop_in_each(nothing, |target| {
        let pid = Pid::from_raw(i32::try_from(target.pid())?);
        ptrace::attach(pid)?;
        waitpid(pid, Some(WaitPidFlag::__WALL))?;
        std::thread::sleep(STOP);
        Ok(ptrace::detach(pid, None)?)
    })?;
    check(&stalls, StoppedBy::Debugger, near_ns(&noise))?;
    for (_, stall, _) in &stalls {
        if let CauseKind::Stopped { tracer, .. } = &stall.cause.kind {
            let tracer = tracer.as_ref().context("no tracer")?;
            ensure!(tracer.pid == std::process::id(), "{tracer:?}");
        }
    }
    Ok(())
}

/// The freezer of its control group, also where it leaves a sleeping thread asleep.
#[test]
fn by_the_freezer() -> Result<()> {
    let _machine = alone();
    freeze_in_each(&Group::new(Controller::Freezer)?)
}

/// The freezer of the second version, which every group has, also where the controllers are the first's.
#[test]
fn by_the_freezer_of_the_unified_hierarchy() -> Result<()> {
    let _machine = alone();
    let scratch = Scratch::new()?;
    let mounted = Hierarchy::mounted(scratch.file("cgroup2"))?;
    freeze_in_each(&Group::of_hierarchy(&mounted)?)
}

fn freeze_in_each(group: &Group) -> Result<()> {
    let noise = NoiseMeter::start();
    let stalls = stop_in_each(
        |target| group.add(target.pid()),
        |_| {
            group.freeze()?;
            std::thread::sleep(STOP);
            group.thaw()
        },
    )?;
    check(&stalls, StoppedBy::Freezer, near_ns(&noise))
}

/// In a group that nobody freezes, and with a signal that stops nothing, it is the code.
#[test]
fn nobody_stops_it() -> Result<()> {
    let _machine = alone();
    let group = Group::new(Controller::Freezer)?;
    let (played, finished) = play(
        around(&TURNS),
        TURNS.len(),
        |target| group.add(target.pid()),
        |target| {
            let_it_begin();
            target.signal(Signal::SIGCONT)
        },
    )?;
    for (turn, kind) in played.iter().zip(["cpu", "sleep"]) {
        let stall = turn.stall(&finished).with_context(|| format!("{turn:?} was missed"))?;
        ensure!(stall.is_caused_by(kind), "{:?} instead of {kind}", stall.cause);
        ensure!(stall.stall.time.stopped_ns == 0, "{:?}", stall.stall.time);
        ensure!(
            !stall.cause.also.iter().any(|part| part.kind.name() == "stopped"),
            "{:?}",
            stall.cause
        );
    }
    Ok(())
}

/// A loop that waits for its events serves nobody while it is stopped: that is a stall of its own.
#[test]
fn an_idle_loop() -> Result<()> {
    let _machine = alone();
    let mut command: Command = around(&["nap=1", "nap=1"]);
    command.args(["--idle", "2"]);
    let stop = |target: &Target| {
        // By then it waits again.
        let_it_begin();
        target.signal(Signal::SIGSTOP)?;
        std::thread::sleep(STOP);
        target.signal(Signal::SIGCONT)
    };
    let noise = NoiseMeter::start();
    let (_, finished) = play(command, 1, nothing, stop)?;
    let stopped: Vec<_> =
        finished.ends().filter(|end| end.cause.kind.name() == "stopped").collect();
    ensure!(stopped.len() == 1, "{} stalls", stopped.len());
    let told_ns = stopped[0].stall.duration_ns;
    let made_ns = u64::try_from(STOP.as_nanos())?;
    ensure!(told_ns.abs_diff(made_ns) < near_ns(&noise), "{} told", milliseconds(told_ns));
    Ok(())
}
