//! Builds the release binary with the probes inside, and hands it to the demo and the benchmark.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::process::{cargo, is_root, run, workspace};
use crate::report::note;
use crate::setup::{Group, ensure};

/// Builds `stalltrace` and says where it is. Fails where the probes would be missing in it.
pub fn release() -> Result<PathBuf> {
    ensure(&[Group::Probes])?;
    run(cargo(&["build", "--release", "--package", "profiler-user"])
        .env("STALLTRACE_PROBES", "require"))?;
    let binary = output_folder()?.join("release/stalltrace");
    note(&format!("built {}", binary.display()));
    Ok(binary)
}

/// Shows stalltrace at work. Does not return where the demo could be started.
pub fn demo() -> Result<ExitCode> {
    hand_over("demo", &[], &[])
}

/// Measures what being watched costs. Does not return where the benchmark could be started.
pub fn bench(arguments: &[String]) -> Result<ExitCode> {
    ensure(&[Group::Targets])?;
    hand_over("bench", &["--release"], arguments)
}

/// Watches healthy programs for minutes. Does not return where it could be started.
pub fn soak(minutes: Option<f64>, names: &[String], more: &[String]) -> Result<ExitCode> {
    ensure(&[Group::Targets])?;
    // One of the twins is a program of the same package.
    run(&mut cargo(&["build", "--release", "--package", "profiler-tests", "--bins"]))?;
    let mut arguments: Vec<String> = names.to_vec();
    if let Some(minutes) = minutes {
        arguments.extend(["--minutes".to_owned(), minutes.to_string()]);
    }
    arguments.extend_from_slice(more);
    hand_over("soak", &["--release"], &arguments)
}

/// Runs a program of the tests' package with the daemon as it is now.
fn hand_over(program: &str, options: &[&str], arguments: &[String]) -> Result<ExitCode> {
    if !is_root() {
        bail!("attaching probes needs root: sudo -E env PATH=\"$PATH\" cargo xtask {program}");
    }
    ensure(&[Group::Demo])?;
    let binary = release()?;
    let failed = cargo(&["run", "--quiet", "--package", "profiler-tests", "--bin", program])
        .args(options)
        .arg("--")
        .args(arguments)
        .env("STALLTRACE_BIN", binary)
        .exec();
    Err(failed).context("cannot start cargo")
}

/// Where cargo leaves what it builds.
pub fn output_folder() -> Result<PathBuf> {
    let chosen = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let workspace = workspace().canonicalize().context("the sources are gone")?;
    Ok(workspace.join(chosen))
}
