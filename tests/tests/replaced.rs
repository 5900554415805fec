//! A program and a library that are replaced while they run: functions have the names that they had, or none.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use profiler_tests::clock::patience;
use profiler_tests::report::{Report, ReportExt as _, StallExt as _, StallLine};
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::target::{Scratch, Target, folder};
use profiler_tests::tracer::{Finished, Tracer, binary};

/// Without those by which files are opened that have lost their names.
const THREE: &str = "-all,+bpf,+perfmon,+sys_ptrace";

/// Builds program and library, with these functions in them.
fn build(folder_of: &Path, own: &str, library: &str) -> Result<(PathBuf, PathBuf)> {
    std::fs::create_dir_all(folder_of)?;
    let (program, shared) = (folder_of.join("program"), folder_of.join("libwork.so"));
    let names = [format!("-DOWN={own}"), format!("-DLIBRARY={library}")];
    let gcc = |options: &[&str], output: &Path, sources: &[&Path]| -> Result<()> {
        let mut command = Command::new("gcc");
        command.arg("-O1").args(options).args(&names).arg("-o").arg(output).args(sources);
        let built = command.status()?;
        ensure!(built.success(), "gcc: {built}");
        Ok(())
    };
    gcc(&["-shared", "-fPIC"], &shared, &[&folder().join("replaced_library.c")])?;
    gcc(&[], &program, &[&folder().join("replaced.c"), &shared])?;
    Ok((program, shared))
}

/// The stalls of a program whose files were replaced before stalltrace came: one in itself, one in its library.
fn watch(command: Command) -> Result<Finished> {
    let scratch = Scratch::new()?;
    let (program, library) = build(&scratch.file("old"), "old_own", "old_library")?;
    let (new_program, new_library) = build(&scratch.file("new"), "new_own", "new_library")?;
    let target = Target::program(Command::new(&program))?;
    target.line_starting("ready", patience(20))?;
    std::fs::rename(&new_program, &program)?;
    std::fs::rename(&new_library, &library)?;
    let (tracer, _) = Tracer::attach_by(command, target.pid(), &[])?;
    for signal in [Signal::SIGUSR1, Signal::SIGUSR2] {
        target.signal(signal)?;
        std::thread::sleep(std::time::Duration::from_millis(900));
    }
    let finished = tracer.interrupt()?;
    println!("{}", finished.told().join("\n"));
    let told = format!("{:?}", finished.lines);
    ensure!(!told.contains("new_own") && !told.contains("new_library"), "{told}");
    Ok(finished)
}

fn stall_in<'a>(finished: &'a Finished, function: &str) -> Option<&'a StallLine> {
    finished.ends().find(|end| end.loop_runs(function))
}

fn is_stall(line: &Report) -> bool {
    matches!(line, Report::StallEnd(_))
}

/// Files that have lost their names are read all the same.
#[test]
fn files_without_a_name() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let finished = watch(Command::new(binary()?))?;
    stall_in(&finished, "old_own").context("nothing of the program")?;
    stall_in(&finished, "old_library").context("nothing of the library")?;
    Ok(())
}

/// Without the capability for that, the program is named, which /proc/PID/exe leads to, and of the library it is said
/// that it was replaced.
#[test]
fn files_without_a_name_or_a_capability() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]);
    command.arg(format!(
        "[ -d /sys/kernel/tracing/events ] || mount -t tracefs tracefs /sys/kernel/tracing
         exec setpriv --bounding-set {THREE} --inh-caps {THREE} -- \"$@\""
    ));
    command.arg("sh").arg(binary()?);
    let finished = watch(command)?;
    stall_in(&finished, "old_own").context("nothing of the program")?;
    ensure!(stall_in(&finished, "old_library").is_none(), "by what was it opened?");
    let stalls = finished.lines.iter().filter(|arrived| is_stall(&arrived.line));
    let told: Vec<_> = stalls.filter_map(|arrived| arrived.line.stall()).collect();
    let says = |end: &&&StallLine| end.gaps.iter().any(|gap| gap.contains("it was replaced since"));
    ensure!(told.iter().any(|end| says(&end)), "{:?}", told.last().map(|end| &end.gaps));
    Ok(())
}
