//! What stalltrace may not do here: one sentence with what helps, exit code 3, and never a verifier's log.

use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use profiler_tests::attaching::target_with;
use profiler_tests::report::Report;
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::target::{Scratch, Target, node, system_python};
use profiler_tests::tracer::{Tracer, binary, run, run_command};

const NOT_POSSIBLE: i32 = 3;
const NOBODY: &str = "65534";

/// What is more than this is no sentence.
const LONGEST_BYTES: usize = 600;

/// Forbids one system call by a filter, then runs what follows. The numbers are those of `linux/filter.h`,
/// `linux/seccomp.h` and `sys/prctl.h`.
const FILTERED: &str = r#"
import ctypes, os, struct, sys
load, equal, give = 0x20, 0x15, 0x06
allow, errno = 0x7fff0000, 0x00050000
forbidden = int(sys.argv[1])
steps = [(load, 0, 0, 0), (equal, 0, 1, forbidden), (give, 0, 0, errno | 1), (give, 0, 0, allow)]
filter = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(filter))
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)
if libc.prctl(22, 2, program, 0, 0) != 0:
    raise OSError(ctypes.get_errno(), "no filter")
os.execv(sys.argv[2], sys.argv[2:])
"#;

const BPF: &str = "321";

/// One sentence on standard error that names the reason, and exit code 3.
fn must_refuse(output: &Output, words: &[&str]) -> Result<()> {
    let error = String::from_utf8_lossy(&output.stderr);
    println!("{}", error.trim_end());
    ensure!(output.status.code() == Some(NOT_POSSIBLE), "{}\n{error}", output.status);
    ensure!(error.len() < LONGEST_BYTES && error.trim_end().lines().count() == 1, "{error}");
    ensure!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    for word in words {
        ensure!(error.contains(word), "no {word:?} in {error}");
    }
    Ok(())
}

/// stalltrace behind another command.
fn behind(program: &str, arguments: &[&str], action: &[&str]) -> Result<Command> {
    let mut command = Command::new(program);
    command.args(arguments).arg(binary()?).args(action);
    Ok(command)
}

/// In a user namespace all capabilities are there, and none counts.
#[test]
fn a_user_namespace() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let pid = std::process::id().to_string();
    let command = behind("unshare", &["-Ur"], &["attach", &pid])?;
    must_refuse(&run_command(command)?, &["user namespace", "run it as root"])
}

/// As Docker's does without privileges, a filter forbids `bpf`.
#[test]
fn a_seccomp_filter() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = target_with(1, &[])?;
    let python = system_python().display().to_string();
    let command = behind(&python, &["-c", FILTERED, BPF], &["attach", &target.pid().to_string()])?;
    must_refuse(&run_command(command)?, &["seccomp filter", "seccomp=unconfined"])
}

/// Whichever capability is dropped is named.
#[test]
fn dropped_capabilities() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let pid = std::process::id().to_string();
    let dropped = "--drop=cap_sys_admin,cap_bpf";
    let command = behind("capsh", &[dropped, "--", "-c", "exec \"$0\" \"$@\""], &["attach", &pid])?;
    must_refuse(&run_command(command)?, &["CAP_BPF"])?;
    let dropped = "--drop=cap_sys_ptrace";
    let command = behind("capsh", &[dropped, "--", "-c", "exec \"$0\" \"$@\""], &["attach", &pid])?;
    must_refuse(&run_command(command)?, &["CAP_SYS_PTRACE"])
}

/// `check` says of a PID namespace what `attach` says.
#[test]
fn a_pid_namespace() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let namespace = ["--pid", "--fork", "--mount-proc"];
    let refused = run_command(behind("unshare", &namespace, &["attach", "1"])?)?;
    must_refuse(&refused, &["PID namespace", "--pid=host"])?;
    let checked = run_command(behind("unshare", &namespace, &["check", "1"])?)?;
    let lines = String::from_utf8_lossy(&checked.stdout);
    ensure!(checked.status.code() == Some(NOT_POSSIBLE), "{lines}");
    let missing = lines.lines().find(|line| line.starts_with("MISSING"));
    ensure!(missing.is_some_and(|line| line.contains("--pid=host")), "{lines}");
    Ok(())
}

/// stalltrace with these capabilities as an ordinary user, in a mount namespace with tracefs.
fn ordinary(capabilities: &str, action: &[&str]) -> Result<(Command, Scratch)> {
    let scratch = Scratch::new()?;
    // Where the original lies, an ordinary user may not look.
    let copy = scratch.file("stalltrace");
    std::fs::copy(binary()?, &copy)?;
    let script = format!(
        "[ -d /sys/kernel/tracing/events ] || mount -t tracefs tracefs /sys/kernel/tracing
         exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups \
              --inh-caps {capabilities} --ambient-caps {capabilities} -- \"$@\""
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script, "sh"]).arg(copy).args(action);
    Ok((command, scratch))
}

/// An ordinary user with the capabilities that it takes attaches; without the one for tracefs it is said which file
/// could not be opened, where that is needed.
#[test]
fn an_ordinary_user() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = target_with(1, &[])?;
    let pid = target.pid().to_string();
    let four = "+bpf,+perfmon,+sys_ptrace,+dac_read_search";
    let (command, _scratch) = ordinary(four, &["attach", &pid, "--duration", "100ms"])?;
    let output = run_command(command)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && !output.stdout.is_empty(), "{}\n{error}", output.status);

    let (command, _scratch) = ordinary("+bpf,+perfmon,+sys_ptrace", &["check", &pid])?;
    let output = run_command(command)?;
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{lines}");
    let names_file = |line: &str| {
        line.contains("/sys/kernel/tracing/events") && line.contains("CAP_DAC_READ_SEARCH")
    };
    ensure!(lines.lines().any(names_file), "{lines}");
    Ok(())
}

/// tracefs that only debugfs brings is found.
#[test]
fn tracefs_behind_debugfs() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = target_with(1, &[])?;
    let script = "umount /sys/kernel/tracing 2>/dev/null
                  mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
                  exec \"$@\"";
    let arguments = ["--mount", "sh", "-c", script, "sh"];
    let pid = target.pid().to_string();
    let checked = run_command(behind("unshare", &arguments, &["check"])?)?;
    let lines = String::from_utf8_lossy(&checked.stdout);
    ensure!(lines.contains("/sys/kernel/debug/tracing"), "{lines}");
    let action = ["attach", &pid, "--duration", "100ms", "--wait-hooks", "tracepoint"];
    let attached = run_command(behind("unshare", &arguments, &action)?)?;
    ensure!(attached.status.success(), "{}", String::from_utf8_lossy(&attached.stderr));
    Ok(())
}

/// The line about something that `check` prints.
fn line(lines: &str, what: &str) -> Result<String> {
    let found = lines.lines().find(|line| line.get(8..).is_some_and(|it| it.starts_with(what)));
    found.map(str::to_owned).with_context(|| format!("no line about {what} in\n{lines}"))
}

/// `check` finds the runtime that `attach` finds, says once what holds for many hooks, and says what it can of a
/// process that is not there.
#[test]
fn check_agrees() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = Target::node(&node(22)?, &[])?;
    let (tracer, start) = Tracer::attach(target.pid(), &[])?;
    tracer.interrupt()?;
    let Report::SessionStart(started) = start.line else { unreachable!() };
    let runtime = started.runtime.context("no runtime")?;
    let checked = run(&["check", &target.pid().to_string()])?;
    let lines = String::from_utf8_lossy(&checked.stdout).into_owned();
    let version = runtime.version.unwrap_or_default();
    ensure!(line(&lines, "runtime")?.contains(&format!("Node.js {version}")), "{lines}");
    let told = lines.matches("because fentry").count();
    ensure!(told <= 1, "{told} times\n{lines}");

    let gone = run(&["check", "4194304"])?;
    let lines = String::from_utf8_lossy(&gone.stdout).into_owned();
    ensure!(gone.status.code() == Some(4), "{}", gone.status);
    line(&lines, "scheduler")?;
    Ok(())
}
