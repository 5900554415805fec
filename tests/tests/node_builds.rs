//! The sample service on node as it is built and set in other ways: stripped, in each tier of V8's, and healthy.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use profiler_tests::scenario::{alone, each, play};
use profiler_tests::target::{Scratch, Target, node};

const HEALTHY: [&str; 5] = ["/", "/pause", "/read", "/hash-aside", "/short"];

/// Whatever V8 runs the code in: its interpreter, code without optimisation, code with it.
#[test]
fn every_tier() -> Result<()> {
    let _machine = alone();
    let tiers: [(u32, &[&str]); 5] = [
        (18, &["--no-opt", "--no-sparkplug"]),
        (20, &["--always-sparkplug", "--no-opt"]),
        (22, &["--jitless"]),
        (24, &["--always-turbofan", "--no-turbo-inlining"]),
        (26, &["--maglev", "--no-turbofan"]),
    ];
    for (major, options) in tiers {
        let target = Target::node(&node(major)?, options)?;
        let played = play(&target, &each(&["/cpu", "/method", "/anonymous"], &[300]))?;
        played.must_be_right().with_context(|| format!("node {major} {options:?}"))?;
        ensure!(played.verdict.confirmed >= 3, "node {major} {options:?}: {}", played.verdict);
    }
    Ok(())
}

/// A node that is stripped, as distributions ship it, and lists none of its code.
#[test]
fn stripped() -> Result<()> {
    let _machine = alone();
    let scratch = Scratch::new()?;
    let stripped = scratch.file("node");
    let done = Command::new("strip").arg("-o").arg(&stripped).arg(node(24)?).status()?;
    ensure!(done.success(), "strip: {done}");
    let target = Target::node(&stripped, &[])?;
    let played = play(&target, &each(&["/cpu", "/json", "/shell"], &[300]))?;
    played.must_be_right()?;
    ensure!(played.verdict.confirmed >= 3, "{}", played.verdict);
    Ok(())
}

/// Healthy load for seconds, with work in the thread pool and below the threshold: not a word.
#[test]
fn a_healthy_service_is_left_in_peace() -> Result<()> {
    let _machine = alone();
    let target = Target::node(&node(20)?, &[])?;
    let played = play(&target, &each(&HEALTHY, &[150; 4]))?;
    played.must_be_right()?;
    ensure!(played.verdict.confirmed == 0, "{}", played.verdict);
    Ok(())
}
