//! Runs every kind of test in turn and ends with what ran, how long it took, and what failed.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::process::{cargo, is_root, run};
use crate::report::{Colour, failure, note, paint, seconds};
use crate::setup::{Group, ensure};
use crate::vm::Vm;
use crate::{build, tidy};

/// All tests, or only those that need neither root nor set-up.
pub fn test(fast: bool) -> Result<ExitCode> {
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
        summary.step("real targets", real);
        summary.step("other kernel", other_kernel);
    }
    Ok(summary.close())
}

fn lint() -> Result<()> {
    let everything =
        ["clippy", "--workspace", "--all-targets", "--features", "profiler-tests/real"];
    run(cargo(&everything).args(["--", "--deny", "warnings"]))
}

fn real() -> Result<()> {
    let tests = ["test", "--package", "profiler-tests", "--features", "real"];
    run(cargo(&tests)
        .arg("--no-fail-fast")
        // One after another: each measures time on all of the machine.
        .args(["--", "--test-threads=1"])
        .env("STALLTRACE_BIN", build::output_folder()?.join("release/stalltrace")))
}

fn other_kernel() -> Result<()> {
    match Vm::of_default_tests().exit_code()? {
        0 => Ok(()),
        code => bail!("the tests failed there (exit code {code})"),
    }
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
