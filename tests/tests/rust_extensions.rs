//! The workers of a Rust runtime inside of an extension module park, whatever the compiler inlined: that is silence, also
//! where workers are watched, and the loop's own stalls are told all the same.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use profiler_tests::clock::monotonic_ns;
use profiler_tests::compare::{Bounds, Observation, Verdict, compare};
use profiler_tests::lives::broken_contract;
use profiler_tests::noise::NoiseMeter;
use profiler_tests::scenario::{THRESHOLD_NS, alone, require_root};
use profiler_tests::target::{Target, folder, venv_python};
use profiler_tests::tracer::Tracer;

const WATCHED: Duration = Duration::from_secs(5);
const WORKERS: [&str; 1] = ["--watch-workers"];

fn observed(library: &str, arguments: &[&str], options: &[&str]) -> Result<Verdict> {
    let mut command = Command::new(venv_python()?);
    command.arg(folder().join("rust_extensions.py")).args(["--library", library]).args(arguments);
    let target = Target::of_ours(command)?;
    let noise = NoiseMeter::start();
    let (tracer, start) = Tracer::attach(target.pid(), options)?;
    std::thread::sleep(WATCHED);
    let until_ns = monotonic_ns();
    let finished = tracer.interrupt()?;
    let truths = target.truths()?;
    let bounds = Bounds { threshold_ns: THRESHOLD_NS, noise_ns: noise.allowance_ns() };
    let (lines, from_ns) = (&finished.lines, start.at_ns);
    let mut verdict = compare(Observation { truths: &truths, lines, from_ns, until_ns }, bounds);
    verdict.failures.extend(broken_contract(lines));
    ensure!(verdict.is_right(), "{library} {options:?}: {verdict}\n{}", finished.logs);
    Ok(verdict)
}

/// Symbols, but no debug information, and the worker's loop inlined into what starts it.
#[test]
fn obstore() -> Result<()> {
    require_root()?;
    let _machine = alone();
    observed("obstore", &[], &[])?;
    observed("obstore", &[], &WORKERS)?;
    let verdict = observed("obstore", &["--stalling"], &WORKERS)?;
    ensure!(verdict.confirmed >= 3, "{verdict}");
    Ok(())
}

#[test]
fn primp() -> Result<()> {
    require_root()?;
    let _machine = alone();
    observed("primp", &[], &[])?;
    observed("primp", &[], &WORKERS)?;
    let verdict = observed("primp", &["--stalling"], &[])?;
    ensure!(verdict.confirmed >= 3, "{verdict}");
    Ok(())
}
