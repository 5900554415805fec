//! How sessions begin, end and fail: exit codes, last lines, and nothing left in the kernel.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use profiler_tests::clock::patience;
use profiler_tests::load::Client;
use profiler_tests::programs;
use profiler_tests::report::{self, EndReason, Report};
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::tally::skip;
use profiler_tests::target::{Scratch, Target, folder};
use profiler_tests::tracer::{Finished, Tracer, binary, run, run_command};

const DONE: i32 = 0;
const BAD_USAGE: i32 = 2;
const NOT_POSSIBLE: i32 = 3;
const NO_SUCH_PROCESS: i32 = 4;
/// Somebody without any privileges.
const NOBODY: &str = "65534";

fn is_open(line: &Report) -> bool {
    matches!(line, Report::StallOpen(_))
}

/// The session ended in order, for this reason.
fn must_end_for(finished: &Finished, reason: EndReason) -> Result<()> {
    let Finished { code, lines, unreadable, logs, .. } = finished;
    ensure!(*code == Some(DONE), "exit code {code:?}\n{logs}");
    ensure!(unreadable.is_empty(), "{unreadable:#?}");
    let last = lines.last().context("no lines")?;
    let Report::SessionEnd(end) = &last.line else {
        anyhow::bail!("the last line is {:?}", last.line);
    };
    ensure!(end.reason == reason, "ended for {:?} instead of {reason:?}", end.reason);
    Ok(())
}

/// The one stall of the session was ended, without its end having been seen.
fn must_leave_stall_unended(finished: &Finished) -> Result<()> {
    let ends: Vec<_> = finished
        .lines
        .iter()
        .filter_map(|arrived| match &arrived.line {
            Report::StallEnd(end) => Some(&end.stall),
            _ => None,
        })
        .collect();
    ensure!(matches!(ends[..], [only] if !only.end_known), "{ends:?}");
    Ok(())
}

/// Says what is wrong in a sentence on standard error, and nothing on standard output.
fn must_refuse(output: &Output, code: i32, word: &str) -> Result<()> {
    let error = String::from_utf8_lossy(&output.stderr);
    let status = output.status;
    ensure!(status.code() == Some(code), "exit code {status} instead of {code}:\n{error}");
    ensure!(error.to_lowercase().contains(word), "no word of {word:?}:\n{error}");
    ensure!(!error.contains("panicked"), "{error}");
    ensure!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    println!("{}", error.trim_end());
    Ok(())
}

fn attach(pid: u32) -> Result<Output> {
    run(&["attach", &pid.to_string()])
}

/// A request that is answered later, or never.
fn request_in_background(port: u16, path: &'static str) {
    std::thread::spawn(move || Client::connect(port).and_then(|mut client| client.get(path)));
}

/// A signal in the middle of a stall: it is closed as unended, the session too, and no probe stays behind.
#[test]
fn a_signal_ends_everything() -> Result<()> {
    let _machine = alone();
    require_root()?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let target = Target::service()?;
        let (tracer, _) = Tracer::attach(target.pid(), &[])?;
        let programs = programs::held_by(tracer.pid())?;
        ensure!(!programs.is_empty(), "an attached stalltrace holds no program");
        ensure!(programs::still_loaded(&programs)? == programs, "not all of {programs:?} are seen");

        request_in_background(target.port(), "/sleep?ms=20000");
        tracer.wait_for(is_open, patience(20))?;
        let before = Instant::now();
        let finished = tracer.end_by(signal)?;
        ensure!(before.elapsed() < patience(10), "it waited for the stall to end");
        must_end_for(&finished, EndReason::Signal)?;
        must_leave_stall_unended(&finished)?;
        must_be_unloaded(&programs)?;
        // It would not listen before its stall is over.
        target.signal(Signal::SIGKILL)?;
    }
    Ok(())
}

/// The kernel frees programs a moment after their last user is gone.
fn must_be_unloaded(ids: &std::collections::BTreeSet<u32>) -> Result<()> {
    let deadline = Instant::now() + patience(15);
    loop {
        let left = programs::still_loaded(ids)?;
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "programs {left:?} are still loaded");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// stalltrace killed outright leaves nothing in the kernel either.
#[test]
fn a_killed_tracer_leaves_nothing() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = Target::service()?;
    let (tracer, _) = Tracer::attach(target.pid(), &[])?;
    let programs = programs::held_by(tracer.pid())?;
    let finished = tracer.end_by(Signal::SIGKILL)?;
    ensure!(finished.code.is_none(), "exit code {:?}", finished.code);
    must_be_unloaded(&programs)?;
    // The target does not notice.
    Client::connect(target.port())?.get("/").map(drop)
}

/// A target that ends, ends the session; in the middle of a stall too.
#[test]
fn the_end_of_the_target_ends_the_session() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let mut target = Target::service()?;
    let (tracer, _) = Tracer::attach(target.pid(), &[])?;
    target.stop()?;
    must_end_for(&tracer.finish()?, EndReason::TargetExited)?;

    let target = Target::service()?;
    let (tracer, _) = Tracer::attach(target.pid(), &[])?;
    request_in_background(target.port(), "/sleep?ms=30000");
    tracer.wait_for(is_open, patience(20))?;
    target.signal(Signal::SIGKILL)?;
    let finished = tracer.finish()?;
    must_end_for(&finished, EndReason::TargetExited)?;
    must_leave_stall_unended(&finished)
}

/// `--duration` ends the session by itself.
#[test]
fn a_duration_ends_the_session() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = Target::service()?;
    let (tracer, _) = Tracer::attach(target.pid(), &["--duration", "2s"])?;
    let before = Instant::now();
    must_end_for(&tracer.finish()?, EndReason::DurationOver)?;
    let watched = before.elapsed();
    ensure!(watched > Duration::from_millis(1500) && watched < patience(10), "{watched:?}");
    Ok(())
}

/// `--output` takes the lines away from standard output.
#[test]
fn lines_go_to_a_file() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let (target, scratch) = (Target::service()?, Scratch::new()?);
    let path = scratch.file("stalls.jsonl");
    let pid = target.pid().to_string();
    let file = path.to_str().context("the path is not text")?;
    let output = run(&["attach", &pid, "--duration", "1s", "--format", "json", "--output", file])?;
    ensure!(output.status.code() == Some(DONE), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    let lines: Result<Vec<Report>> =
        std::fs::read_to_string(&path)?.lines().map(report::parse).collect();
    let lines = lines?;
    ensure!(matches!(lines.first(), Some(Report::SessionStart(_))));
    ensure!(matches!(lines.last(), Some(Report::SessionEnd(_))));
    Ok(())
}

/// Text for people names the function and the place, and is not JSON.
#[test]
fn text_is_for_people() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = Target::service()?;
    let tracer = Tracer::spawn(target.pid(), &["--format", "text"])?;
    // The one on what is watched.
    tracer.wait_for_text(patience(60))?;
    Client::connect(target.port())?.get("/sleep?ms=400")?;
    std::thread::sleep(Duration::from_millis(300));
    let finished = tracer.interrupt()?;
    ensure!(finished.code == Some(DONE), "{}", finished.logs);
    ensure!(finished.lines.is_empty(), "JSON lines among the text");
    let text = finished.unreadable.join("\n");
    ensure!(text.contains("retry_delivery") && text.contains("service.py"), "{text}");
    Ok(())
}

/// Both may watch the same process, and each sees the stall.
#[test]
fn two_tracers_do_not_disturb_each_other() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = Target::service()?;
    let (one, _) = Tracer::attach(target.pid(), &[])?;
    let (other, _) = Tracer::attach(target.pid(), &[])?;
    Client::connect(target.port())?.get("/sleep?ms=400")?;
    for tracer in [one, other] {
        tracer.wait_for(|line| matches!(line, Report::StallEnd(_)), patience(20))?;
        must_end_for(&tracer.interrupt()?, EndReason::Signal)?;
    }
    Ok(())
}

/// A process id that nobody has.
#[test]
fn no_such_process_is_refused() -> Result<()> {
    let _machine = alone();
    require_root()?;
    // Beyond the largest id that any kernel gives out.
    must_refuse(&attach(0x0040_0001)?, NO_SUCH_PROCESS, "process")
}

/// Kernel threads have no loop and no memory of their own.
#[test]
fn a_kernel_thread_is_refused() -> Result<()> {
    let _machine = alone();
    require_root()?;
    const KTHREADD: u32 = 2;
    let name = std::fs::read_to_string(format!("/proc/{KTHREADD}/comm")).unwrap_or_default();
    if name.trim() != "kthreadd" {
        return skip("lifecycle/kernel_thread", format!("process {KTHREADD} is {name:?}"));
    }
    must_refuse(&attach(KTHREADD)?, NOT_POSSIBLE, "kernel thread")
}

/// A process that only sleeps has no event loop to stall; one may come, and until then that is said.
#[test]
fn a_process_without_a_loop_is_followed() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let mut command = Command::new("sleep");
    command.arg("100");
    let target = Target::program(command)?;
    let (tracer, start) = Tracer::attach(target.pid(), &["--duration", "2s"])?;
    let Report::SessionStart(start) = &start.line else { anyhow::bail!("no start") };
    ensure!(start.gaps.iter().any(|gap| gap.contains("event loop")), "{:?}", start.gaps);
    let finished = tracer.finish()?;
    must_end_for(&finished, EndReason::DurationOver)?;
    ensure!(finished.ends().next().is_none(), "{:?}", finished.told());
    Ok(())
}

/// 32-bit processes are not supported, and are told so.
#[test]
fn a_32_bit_process_is_refused() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let scratch = Scratch::new()?;
    let program = scratch.file("i386");
    let compiled = Command::new("gcc")
        .args([
            "-m32",
            "-nostdlib",
            "-static",
            "-ffreestanding",
            "-fno-pie",
            "-no-pie",
            "-O1",
            "-o",
        ])
        .args([&program, &folder().join("i386.c")])
        .output();
    if !compiled.is_ok_and(|output| output.status.success()) {
        return skip("lifecycle/32_bit", "gcc -m32 is not to be had");
    }
    let target = Target::program(Command::new(&program))?;
    // One line says that this kernel runs such programs at all.
    std::thread::sleep(Duration::from_millis(200));
    if !Path::new(&format!("/proc/{}/exe", target.pid())).exists() {
        return skip("lifecycle/32_bit", "this kernel runs no 32-bit programs");
    }
    must_refuse(&attach(target.pid())?, NOT_POSSIBLE, "32-bit")
}

/// Without privileges, the missing ones are named.
#[test]
fn an_ordinary_user_is_refused() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let scratch = Scratch::new()?;
    // Where the original lies, an ordinary user may not look.
    let copy = scratch.file("stalltrace");
    std::fs::copy(binary()?, &copy)?;
    let target = Target::service()?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"]);
    command.arg(&copy).args(["attach", &target.pid().to_string()]);
    must_refuse(&run_command(command)?, NOT_POSSIBLE, "cap_")
}

/// What cannot be understood is bad usage.
#[test]
fn bad_usage_is_refused() -> Result<()> {
    let _machine = alone();
    let cases: [&[&str]; 5] = [
        &["attach"],
        &["attach", "-1"],
        &["attach", "1", "--threshold", "soon"],
        &["attach", "1", "--format", "poem"],
        &["detach", "1"],
    ];
    for arguments in cases {
        let refused = must_refuse(&run(arguments)?, BAD_USAGE, "error");
        refused.with_context(|| format!("{arguments:?}"))?;
    }
    Ok(())
}
