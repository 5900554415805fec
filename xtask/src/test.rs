//! Runs every kind of test in turn and ends with what ran, how long it took, and what failed.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::guests::{AT_ONCE, GUESTS, Guest};
use crate::hogs::Hogs;
use crate::lanes::{self, Job};
use crate::process::{cargo, is_root, run, workspace};
use crate::programs::{self, Program};
use crate::report::{Colour, failure, note, paint, seconds};
use crate::setup::{Group, ensure};
use crate::{build, skips, tidy, vm};

/// All tests, or only those that need neither root nor set-up.
pub fn test(fast: bool, hogs: usize) -> Result<ExitCode> {
    if !fast && !is_root() {
        bail!(
            "the tests against real targets need root: sudo -E env PATH=\"$PATH\" cargo xtask \
             test; without root there is `cargo xtask test --fast`"
        );
    }
    let mut summary = Summary::default();
    summary.step("tidy", tidy::tidy);
    summary.step("format", || run(&mut cargo(&["fmt", "--all", "--check"])));
    if !fast {
        let groups = [Group::Probes, Group::Targets, Group::Vm];
        if !summary.step("set-up", || ensure(&groups)) {
            // Everything after this would fail for the same reason.
            return Ok(summary.close());
        }
    }
    summary.step("lint", lint);
    summary.step("unit", || run(&mut cargo(&["test", "--workspace", "--no-fail-fast"])));
    if !fast && summary.step("build", || build::release().map(|_| ())) {
        let crowd = Hogs::start(hogs);
        summary.step("real targets", real);
        drop(crowd);
        summary.step("other kernels", guests);
    }
    Ok(summary.close())
}

fn lint() -> Result<()> {
    let everything =
        ["clippy", "--workspace", "--all-targets", "--features", "profiler-tests/real"];
    run(cargo(&everything).args(["--", "--deny", "warnings"]))
}

/// Programs whose subject is who has the CPU: beside another they would find that.
const ALONE: [&str; 4] = ["oncpu", "quota", "run_queue", "stats"];

/// Those that take longest, which begin first.
const LONG: [&str; 3] = ["healthy", "reactors", "threads"];

/// How many other programs run at a time: most of the time their targets sleep.
const LANES: usize = 2;

fn real() -> Result<()> {
    let tally = skips::collect()?;
    let daemon = build::output_folder()?.join("release/stalltrace");
    let mut programs = programs::built(&[])?;
    programs.sort_by_key(|program| !LONG.contains(&program.name.as_str()));
    let job = |program: &Program| {
        let (tally, daemon, path) = (tally.clone(), daemon.clone(), program.absolute());
        Job::new(&program.name, move |log| {
            // Before others: on a crowded machine a target that computes would else mostly wait, and say nothing of itself.
            let mut command = Command::new("nice");
            command.args(["-n", "-5"]).arg(&path).arg("--test-threads=1");
            command.env(skips::COLLECTED, &tally).env("STALLTRACE_BIN", &daemon);
            command.current_dir(workspace().join("tests"));
            run(command.stdout(log.try_clone()?).stderr(log.try_clone()?))
        })
    };
    let (alone, others): (Vec<_>, Vec<_>) =
        programs.iter().partition(|program| ALONE.contains(&program.name.as_str()));
    let jobs = |programs: Vec<&Program>| programs.into_iter().map(job).collect::<Vec<_>>();
    let first = lanes::run(&jobs(others), LANES);
    let second = lanes::run(&jobs(alone), 1);
    skips::show(&tally);
    first.and(second)
}

/// The guests' tests, side by side.
fn guests() -> Result<()> {
    let job = |guest: &'static Guest| Job::new(guest.name, |log| vm::test(guest, log));
    lanes::run(&GUESTS.iter().map(job).collect::<Vec<_>>(), AT_ONCE)
}

/// What ran so far.
#[derive(Debug, Default)]
struct Summary {
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    name: &'static str,
    passed: bool,
    took: Duration,
}

impl Summary {
    /// Runs a step; a failure is shown and remembered, and the next step goes on. True if it passed.
    fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) -> bool {
        note(&format!(
            "{} ({name})",
            paint(Colour::Cyan, &format!("step {}", self.steps.len() + 1))
        ));
        let begun = Instant::now();
        let done = work();
        if let Err(error) = &done {
            failure(error);
        }
        self.steps.push(Step { name, passed: done.is_ok(), took: begun.elapsed() });
        done.is_ok()
    }

    fn close(self) -> ExitCode {
        let failed = self.steps.iter().filter(|step| !step.passed).count();
        for step in &self.steps {
            let verdict = if step.passed {
                paint(Colour::Green, "ok    ")
            } else {
                paint(Colour::Red, "FAILED")
            };
            eprintln!("{verdict}  {:<14} {:>9}", step.name, seconds(step.took));
        }
        println!("{} passed, {failed} failed", self.steps.len() - failed);
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::Summary;

    /// A failed step is told to its caller and does not keep the next from running.
    #[test]
    fn failure_is_remembered() {
        let mut summary = Summary::default();
        assert!(summary.step("first", || Ok(())));
        assert!(!summary.step("second", || bail!("on purpose")));
        assert!(summary.step("third", || Ok(())));
        let passed: Vec<_> = summary.steps.iter().map(|step| step.passed).collect();
        assert_eq!(passed, [true, false, true]);
    }
}
