//! Go's runtime is no event loop: nothing is told of a service whose goroutines compute and block, and it is said what
//! cannot be seen.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use profiler_tests::clock::patience;
use profiler_tests::report::{Report, ReportExt as _};
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::target::{Scratch, Target, folder};
use profiler_tests::tracer::{Tracer, run};

#[test]
fn a_service_is_left_in_peace() -> Result<()> {
    require_root()?;
    let _machine = alone();
    let scratch = Scratch::new()?;
    let program = scratch.file("go-service");
    let status = Command::new("go")
        .args(["build", "-o"])
        .args([&program, &folder().join("go_service.go")])
        .env("GOCACHE", scratch.file("cache"))
        .env("GO111MODULE", "off")
        .status()
        .context("no go: `cargo xtask setup`")?;
    ensure!(status.success(), "go build: {status}");
    let target = Target::program(Command::new(&program))?;
    target.line_starting("ready", patience(10))?;

    let check = run(&["check", &target.pid().to_string()])?;
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    ensure!(said.contains("Go 1.") && said.contains("stop-the-world"), "{said}");

    let (tracer, start) = Tracer::attach(target.pid(), &[])?;
    let Report::SessionStart(session) = &start.line else { anyhow::bail!("no session_start") };
    let runtime = session.runtime.as_ref().context("no runtime")?;
    ensure!(runtime.name == "go" && runtime.version.is_some(), "{runtime:?}");
    ensure!(session.gaps.iter().any(|gap| gap.contains("goroutines")), "{:?}", session.gaps);
    // The test has tested only if both fell into the session.
    target.line_starting("computed", patience(10))?;
    target.line_starting("slept", patience(10))?;
    let finished = tracer.finish()?;
    let stalls: Vec<_> = finished.lines.iter().filter_map(|arrived| arrived.line.stall()).collect();
    ensure!(stalls.is_empty(), "{stalls:#?}");
    Ok(())
}
