//! With no more than the three capabilities: code on a CPU is named where perf events are refused, another user's
//! process is followed though its descriptors cannot be listed, and `check` says what is missing.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use profiler_tests::clock::{MILLISECOND, monotonic_ns, patience};
use profiler_tests::compare::{Bounds, Observation, compare};
use profiler_tests::lives::broken_contract;
use profiler_tests::load::{Client, Traffic};
use profiler_tests::noise::NoiseMeter;
use profiler_tests::report::{Report, ReportedHook, ReportedState};
use profiler_tests::scenario::{THRESHOLD_NS, alone, each, require_root};
use profiler_tests::target::{Target, folder, system_python};
use profiler_tests::tracer::{Finished, Tracer, binary, run_command};

/// As README asks for them.
const THREE: &str = "-all,+bpf,+perfmon,+sys_ptrace";
const NOBODY: &str = "65534";

/// Leads to stalltrace with these capabilities. Tracepoints' numbers are there for it: mounting them takes more.
fn with_capabilities(set: &str) -> Result<Command> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]);
    command.arg(format!(
        "[ -d /sys/kernel/tracing/events ] || mount -t tracefs tracefs /sys/kernel/tracing
         exec setpriv --bounding-set {set} --inh-caps {set} -- \"$@\""
    ));
    command.arg("sh").arg(binary()?);
    Ok(command)
}

/// A service's requests under healthy load, watched with three capabilities; what came out, and what was
/// wrong with it by the service's own record.
fn play(paths: &[String], options: &[&str]) -> Result<(Finished, ReportedHook)> {
    let target = Target::service()?;
    let noise = NoiseMeter::start();
    let (tracer, start) = Tracer::attach_by(with_capabilities(THREE)?, target.pid(), options)?;
    let Report::SessionStart(started) = &start.line else { unreachable!() };
    let clock = started.probes.iter().find(|probe| probe.name == "cpu-clock");
    let clock = clock.cloned().context("nothing is said of samples")?;
    let traffic = Traffic::start(target.port(), "/", Duration::from_millis(20), 8)?;
    let mut client = Client::connect(target.port())?;
    for path in paths {
        std::thread::sleep(Duration::from_millis(250));
        client.get(path)?;
    }
    std::thread::sleep(Duration::from_millis(500));
    traffic.finish()?;
    let until_ns = monotonic_ns();
    let finished = tracer.interrupt()?;
    let truths = target.truths()?;
    let bounds = Bounds { threshold_ns: THRESHOLD_NS, noise_ns: noise.allowance_ns() };
    let seen =
        Observation { truths: &truths, lines: &finished.lines, from_ns: start.at_ns, until_ns };
    let mut verdict = compare(seen, bounds);
    verdict.failures.extend(broken_contract(&finished.lines));
    ensure!(finished.code == Some(0) && verdict.is_right(), "{verdict}\n{}", finished.logs);
    ensure!(verdict.confirmed >= paths.len(), "{verdict}");
    println!("samples by {}: {verdict}", clock.hook);
    Ok((finished, clock))
}

/// Samples that no perf event takes: of a pattern and of Python code, alone on a CPU; healthy load is silent.
/// Where this kernel grants perf events to the three capabilities, they are left unused.
#[test]
fn code_on_a_cpu_without_perf_events() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let (_, clock) = play(&[], &[])?;
    let options: &[&str] = match clock.hook.as_str() {
        "perf-event" => &["--sample-hooks", "timer"],
        _ => {
            let reason = clock.reason.unwrap_or_default();
            ensure!(reason.contains("perf events are refused"), "{reason}");
            println!("refused here: {reason}");
            &[]
        }
    };
    let (finished, clock) = play(&each(&["/regex", "/cpu"], &[400, 900]), options)?;
    ensure!(clock.hook == "timer-tick", "{clock:?}");
    let samples: u64 = finished
        .ends()
        .flat_map(|end| &end.stacks)
        .filter(|stack| stack.state == ReportedState::Running)
        .map(|stack| stack.samples)
        .sum();
    ensure!(samples >= 40, "{samples} samples");
    let (healthy, _) = play(&[], options)?;
    ensure!(healthy.ends().count() == 0, "the healthy service was called stalled");
    Ok(())
}

/// A loop of another user's on an epoll instance that watches nothing: nothing of it can be listed.
fn another_users(stall_ms: u32) -> Result<Target> {
    let script = std::fs::read_to_string(folder().join("empty_epoll.py"))?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"]);
    // As text, for that user may not be able to read where the tests lie.
    command.arg(system_python()).args(["-c", &script, &stall_ms.to_string()]);
    let target = Target::program(command)?;
    target.line_starting("ready", patience(20))?;
    Ok(target)
}

/// It is followed, its stalls are named, and what could not be read is said; a healthy one is silent.
#[test]
fn another_users_process() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = another_users(300)?;
    let (tracer, start) = Tracer::attach_by(with_capabilities(THREE)?, target.pid(), &[])?;
    let Report::SessionStart(started) = &start.line else { unreachable!() };
    let is_said = |gap: &String| gap.contains("epoll") && gap.contains("CAP_DAC_READ_SEARCH");
    ensure!(started.gaps.iter().any(is_said), "{:?}", started.gaps);
    // The first may have begun before.
    let mut stalls = Vec::new();
    while stalls.len() < 3 {
        let stall = target.line_starting("stall ", patience(20))?;
        let times: Vec<u64> = stall.split(' ').skip(1).filter_map(|at| at.parse().ok()).collect();
        let [from_ns, to_ns] = times[..] else { anyhow::bail!("{stall:?}") };
        if from_ns > start.at_ns {
            stalls.push((from_ns, to_ns));
        }
    }
    std::thread::sleep(Duration::from_millis(200));
    let finished = tracer.interrupt()?;
    for (from_ns, to_ns) in stalls {
        let end = finished.stall_in(from_ns, to_ns).context("not reported")?;
        let culprit = end.culprit.as_ref().and_then(|culprit| culprit.function.as_deref());
        ensure!(culprit == Some("charge_payment"), "{culprit:?}");
        ensure!(end.stall.duration_ns.abs_diff(to_ns - from_ns) < 50 * MILLISECOND, "{end:?}");
    }
    let target = another_users(0)?;
    let (tracer, _) = Tracer::attach_by(with_capabilities(THREE)?, target.pid(), &[])?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(tracer.interrupt()?.ends().count() == 0, "the healthy loop was called stalled");
    Ok(())
}

/// `check` with these capabilities, on that process: its exit code and its lines.
fn check(set: &str, pid: u32) -> Result<(Option<i32>, String)> {
    let mut command = with_capabilities(set)?;
    command.arg("check").arg(pid.to_string());
    let output = run_command(command)?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// `check` tells what it can of a process whose descriptors it may not list, and of one that it could not attach to.
#[test]
fn check_says_what_it_can() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = another_users(0)?;
    let (code, lines) = check(THREE, target.pid())?;
    let line = |lines: &str, what: &str| {
        let found = lines.lines().find(|line| line.get(8..).is_some_and(|it| it.starts_with(what)));
        found.map(str::to_owned).with_context(|| format!("no line about {what} in\n{lines}"))
    };
    ensure!(code == Some(0), "{lines}");
    let event_loop = line(&lines, "event loop")?;
    ensure!(
        event_loop.starts_with("worse") && event_loop.contains("CAP_DAC_READ_SEARCH"),
        "{event_loop}"
    );
    line(&lines, "cpu-clock")?;

    let (code, lines) = check("-all,+sys_ptrace", target.pid())?;
    ensure!(code == Some(3), "exit code {code:?}\n{lines}");
    let privileges = line(&lines, "privileges")?;
    ensure!(privileges.starts_with("MISSING") && privileges.contains("CAP_BPF"), "{privileges}");
    ensure!(line(&lines, "runtime")?.contains("CPython"), "{lines}");
    Ok(())
}
