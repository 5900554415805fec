//! Extension modules of Python that have a runtime of their own inside: its parked workers are no stalled loops.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use profiler_tests::scenario::{alone, observe};
use profiler_tests::target::{Target, folder, venv_python};

/// How long it is watched while all is well.
const HEALTHY: Duration = Duration::from_secs(10);

/// Nothing is told of readers and parked workers, and what holds up the loop at last is.
fn watch(extension: &str) -> Result<()> {
    let _machine = alone();
    let mut command = Command::new(venv_python()?);
    command.arg(folder().join("rust_inside.py")).arg(extension);
    let target = Target::of_ours(command)?;
    let played = observe(&target, || {
        std::thread::sleep(HEALTHY);
        target.signal(Signal::SIGUSR1)?;
        std::thread::sleep(Duration::from_secs(1));
        Ok(Vec::new())
    })?;
    played.must_be_right()?;
    ensure!(played.verdict.confirmed == 1, "{}", played.verdict);
    let end = played.finished.ends().find(|end| end.thread.tid == target.pid());
    let culprit = end.and_then(|end| end.culprit.as_ref()).context("nobody is blamed")?;
    ensure!(culprit.function.as_deref() == Some("audit"), "{culprit:?}");
    Ok(())
}

#[test]
fn obstore() -> Result<()> {
    watch("obstore")
}

#[test]
fn primp() -> Result<()> {
    watch("primp")
}
