//! A process that executes another program, or is only starting: what is told is that program's, in a session of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use profiler_tests::clock::patience;
use profiler_tests::lives::broken_contract;
use profiler_tests::report::{Arrived, EndReason, Report, SessionStart, StallExt as _, StallLine};
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::target::{Scratch, Target, folder, node, system_python};
use profiler_tests::tracer::{Finished, Tracer};

/// A copy of the script whose functions have this word in their names.
fn script(scratch: &Scratch, name: &str) -> Result<PathBuf> {
    let text = std::fs::read_to_string(folder().join("successor.py"))?;
    let path = scratch.file(&format!("{name}.py"));
    std::fs::write(&path, text.replace("NAME", name))?;
    Ok(path)
}

/// Where numbers of addresses are chosen anew for each program, and where they are not.
fn python(randomised: bool) -> Command {
    if randomised {
        return Command::new(system_python());
    }
    let mut command = Command::new("setarch");
    command.arg("--addr-no-randomize").arg(system_python());
    command
}

/// The sessions in their order, each with its lines; every one is whole.
fn sessions(finished: &Finished) -> Result<Vec<Vec<Arrived>>> {
    let mut sessions: Vec<Vec<Arrived>> = Vec::new();
    for arrived in &finished.lines {
        let is_same = |lines: &&mut Vec<Arrived>| {
            lines[0].line.common().session == arrived.line.common().session
        };
        match sessions.last_mut().filter(is_same) {
            Some(lines) => lines.push(arrived.clone()),
            None => sessions.push(vec![arrived.clone()]),
        }
    }
    for lines in &sessions {
        let broken = broken_contract(lines);
        ensure!(broken.is_empty(), "{broken:?}");
    }
    ensure!(finished.code == Some(0), "exit code {:?}\n{}", finished.code, finished.logs);
    Ok(sessions)
}

fn starts(lines: &[Arrived]) -> Result<&SessionStart> {
    match lines.first().map(|arrived| &arrived.line) {
        Some(Report::SessionStart(start)) => Ok(start),
        _ => bail!("a session without a beginning"),
    }
}

fn reason(lines: &[Arrived]) -> Result<EndReason> {
    match lines.last().map(|arrived| &arrived.line) {
        Some(Report::SessionEnd(end)) => Ok(end.reason),
        _ => bail!("a session without an end"),
    }
}

/// The ends of its stalls, but for those that the machine had no CPU for.
fn stalls(lines: &[Arrived]) -> Vec<&StallLine> {
    let ends = lines.iter().filter_map(|arrived| match &arrived.line {
        Report::StallEnd(end) => Some(&**end),
        _ => None,
    });
    ends.filter(|end| !end.is_starved()).collect()
}

/// One of the stalls is this function's, and nothing in the session is of the other program.
fn must_blame(lines: &[Arrived], function: &str, other: &str) -> Result<()> {
    let culprits: Vec<_> = stalls(lines)
        .into_iter()
        .filter_map(|end| end.culprit.as_ref()?.function.as_deref())
        .collect();
    ensure!(culprits.contains(&function), "{culprits:?} without {function}");
    let told = format!("{lines:?}");
    ensure!(!told.contains(other), "{other} is told of: {told}");
    Ok(())
}

fn is_end_of(line: &Report, session: &str) -> bool {
    line.common().session == session && matches!(line, Report::StallEnd(_))
}

fn is_start_after(line: &Report, session: &str) -> bool {
    line.common().session != session && matches!(line, Report::SessionStart(_))
}

/// Lets a program stall and leave, and the one after it stall; what was told.
fn play(target: &Target, leave: Signal, ready: &str, stall: Signal) -> Result<Finished> {
    let (tracer, start) = Tracer::attach(target.pid(), &[])?;
    let first = &start.line.common().session;
    target.signal(Signal::SIGUSR1)?;
    tracer.wait_for(|line| is_end_of(line, first), patience(20))?;
    target.signal(leave)?;
    target.line_starting(ready, patience(60))?;
    let next = tracer.wait_for(|line| is_start_after(line, first), patience(60))?;
    std::thread::sleep(Duration::from_millis(300));
    target.signal(stall)?;
    tracer.wait_for(|line| is_end_of(line, &next.line.common().session), patience(20))?;
    let finished = tracer.interrupt()?;
    println!("{}", finished.told().join("\n"));
    Ok(finished)
}

/// The stall in which the program was left has no known end: the kernel ends the thread or closes the loop, then
/// executes.
fn must_end_by_exec(lines: &[Arrived]) -> Result<()> {
    ensure!(reason(lines)? == EndReason::Executed, "ended for {:?}", reason(lines)?);
    let all = stalls(lines);
    let last = all.last().context("no stall")?;
    ensure!(!last.stall.end_known, "{:?}", last.stall);
    // Where another thread executes, all others exit first, and a look may fall in between.
    let reasons =
        ["executed another program", "its event loop was closed", "exited inside the turn"];
    let says = |gap: &String| reasons.iter().any(|reason| gap.contains(reason));
    let says = last.gaps.iter().any(says);
    ensure!(says, "{:?}", last.gaps);
    Ok(())
}

/// The same interpreter runs another script, also where its functions lie at the same addresses.
#[test]
fn another_script() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let scratch = Scratch::new()?;
    let (first, second) = (script(&scratch, "first")?, script(&scratch, "second")?);
    for (randomised, leave) in
        [(true, Signal::SIGUSR2), (false, Signal::SIGUSR2), (true, Signal::SIGHUP)]
    {
        let mut command = python(randomised);
        command.arg(&first).arg(system_python()).arg(&second);
        let target = Target::program(command)?;
        target.line_starting("ready first", patience(20))?;
        let finished = play(&target, leave, "ready second", Signal::SIGUSR1)?;
        let sessions = sessions(&finished)?;
        let [before, after] = &sessions[..] else { bail!("{} sessions", sessions.len()) };
        must_blame(before, "first_works", "second_")?;
        must_end_by_exec(before)?;
        must_blame(after, "second_works", "first_")?;
        let runtime = starts(after)?.runtime.as_ref().context("no runtime")?;
        ensure!(runtime.name == "cpython", "{runtime:?}");
        let unseen = starts(after)?.gaps.iter().any(|gap| gap.contains("of this program"));
        ensure!(unseen, "{:?}", starts(after)?.gaps);
    }
    Ok(())
}

/// Another interpreter runs: its functions are named, and those of the one before are not.
#[test]
fn another_runtime() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let scratch = Scratch::new()?;
    let mut command = python(true);
    command.arg(script(&scratch, "first")?).arg(node(20)?).arg(folder().join("successor.js"));
    let target = Target::program(command)?;
    target.line_starting("ready first", patience(20))?;
    let finished = play(&target, Signal::SIGUSR2, "ready node", Signal::SIGUSR2)?;
    let sessions = sessions(&finished)?;
    let [before, after] = &sessions[..] else { bail!("{} sessions", sessions.len()) };
    must_blame(before, "first_works", "waitsInNode")?;
    must_end_by_exec(before)?;
    must_blame(after, "waitsInNode", "first_")?;
    let runtimes: Vec<_> =
        stalls(after).into_iter().filter_map(|end| end.runtime.as_ref()).collect();
    ensure!(runtimes.iter().all(|runtime| runtime.name == "node"), "{runtimes:?}");
    Ok(())
}

/// Stalls of a target that is attached to as soon as it is there, until one is told of its last program.
fn from_the_beginning(mut command: Command, ready: &str, options: &[&str]) -> Result<Finished> {
    let target = Target::program({
        command.env("PYTHONUNBUFFERED", "1");
        command
    })?;
    let (tracer, _) = Tracer::attach(target.pid(), options)?;
    target.line_starting(ready, patience(60))?;
    // Where programs follow each other, the last one may not be attached to yet.
    let is_stall = |line: &Report| matches!(line, Report::StallEnd(_));
    let deadline = Instant::now() + patience(30);
    while tracer.wait_for(is_stall, Duration::from_secs(2)).is_err() {
        ensure!(Instant::now() < deadline, "no stall is told");
        target.signal(Signal::SIGUSR1)?;
    }
    let finished = tracer.interrupt()?;
    println!("{}", finished.told().join("\n"));
    Ok(finished)
}

/// The stall is the script's, of an interpreter that was not there when stalltrace came.
fn must_be_the_scripts(lines: &[Arrived]) -> Result<()> {
    must_blame(lines, "only_works", "NAME_")?;
    for end in stalls(lines) {
        let runtime = end.runtime.as_ref().context("no runtime")?;
        ensure!(runtime.name == "cpython", "{runtime:?}");
    }
    Ok(())
}

/// A shell that becomes the program that it starts.
#[test]
fn a_shell_that_gives_way() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let scratch = Scratch::new()?;
    let only = script(&scratch, "only")?;
    // Before stalltrace has attached, as a rule, or after.
    for (shell_s, options) in [("0.3", &[][..]), ("5", &["--watch-workers"])] {
        let mut command = Command::new("sh");
        let line = format!("sleep {shell_s}; exec \"$0\" \"$@\"");
        command.args(["-c", &line]).arg(system_python()).arg(&only);
        let finished = from_the_beginning(command, "ready only", options)?;
        let sessions = sessions(&finished)?;
        let [before @ .., last] = &sessions[..] else { bail!("no session") };
        for lines in before {
            ensure!(reason(lines)? == EndReason::Executed, "{:?}", reason(lines)?);
        }
        ensure!(shell_s == "0.3" || before.len() == 1, "{} sessions", sessions.len());
        must_be_the_scripts(last)?;
    }
    Ok(())
}

/// A program that loads its interpreter late stays one session, and its functions are named.
#[test]
fn an_interpreter_that_comes_late() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let scratch = Scratch::new()?;
    let program = scratch.file("late");
    let source = folder().join("late_python.c");
    let built = Command::new("gcc").arg("-o").args([&program, &source]).arg("-ldl").status()?;
    ensure!(built.success(), "gcc: {built}");
    let mut command = Command::new(&program);
    command.arg(script(&scratch, "only")?).env("LIBPYTHON", library_of_python()?);
    let finished = from_the_beginning(command, "ready only", &[])?;
    let sessions = sessions(&finished)?;
    let [only] = &sessions[..] else { bail!("{} sessions", sessions.len()) };
    ensure!(starts(only)?.runtime.is_none(), "it is there already: {:?}", starts(only)?);
    must_be_the_scripts(only)
}

/// The library of the system's Python, as it is installed with its headers.
fn library_of_python() -> Result<PathBuf> {
    let folder = Path::new("/usr/lib/x86_64-linux-gnu");
    let files = std::fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let is_it = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("libpython3.") && name.ends_with(".so.1.0")
    };
    files.into_iter().find(is_it).context("libpython3 is missing: `cargo xtask setup` installs it")
}

/// A process that executes programs without end costs a few attachments, and its end is noticed.
#[test]
fn programs_without_end() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let mut command = Command::new("sh");
    let line = "sleep 0.1; [ $1 -gt 60 ] || exec sh -c \"$0\" \"$0\" $(($1 + 1)); echo over";
    command.args(["-c", line, line, "1"]);
    let target = Target::program(command)?;
    let (tracer, _) = Tracer::attach(target.pid(), &[])?;
    target.line_starting("over", patience(60))?;
    let before = Instant::now();
    let finished = tracer.finish()?;
    ensure!(before.elapsed() < patience(5), "{:?} to notice the end", before.elapsed());
    let sessions = sessions(&finished)?;
    println!("{} sessions", sessions.len());
    ensure!((1..=10).contains(&sessions.len()), "{} sessions", sessions.len());
    Ok(())
}

/// However rarely a loop is looked at, the end of its process is noticed at once: its number may be another's soon.
#[test]
fn the_end_is_noticed_at_once() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = Target::service()?;
    let (tracer, _) = Tracer::attach(target.pid(), &["--threshold", "20s"])?;
    std::thread::sleep(Duration::from_millis(300));
    target.signal(Signal::SIGKILL)?;
    let before = Instant::now();
    let is_end = |line: &Report| matches!(line, Report::SessionEnd(_));
    tracer.wait_for(is_end, patience(20))?;
    println!("noticed after {:?}", before.elapsed());
    // With what the kernel takes to give the probes back.
    ensure!(before.elapsed() < patience(3), "{:?}", before.elapsed());
    let finished = tracer.finish()?;
    let reason = reason(&finished.lines)?;
    ensure!(reason == EndReason::TargetExited, "{reason:?}");
    Ok(())
}
