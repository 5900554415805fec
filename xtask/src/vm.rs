//! Runs a command as root on another kernel: an emulated machine whose root is the host's files.

use std::env;
use std::fs::{self, File};
use std::io::{Read, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::initrd::Archive;
use crate::process::{cargo, target, workspace};
use crate::report::{note, seconds, slow};
use crate::setup::{Group, ensure};
use crate::{build, kernel};

/// How often the guest's output is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// How much slower than this machine the emulated one is: a word to the tests' time limits.
const SLOWDOWN: u32 = 10;

/// Later than what every kernel boots on, without what the emulator lacks; 6.12 panics on `max`.
const CPU: &str = "Haswell-noTSX,-pcid,-x2apic,-tsc-deadline,-invpcid";

/// The guest's only disk, empty, for tests to swap to; and its size.
const SWAP: &str = "/dev/vda";
const SWAP_BYTES: u64 = 256 << 20;

/// Lines of the guest's console that are shown where there is no result.
const CONSOLE_LINES: usize = 20;

#[derive(Debug, Args)]
pub struct Vm {
    /// The kernel: a folder in target/vm [default: this distribution's own]
    #[arg(long)]
    kernel: Option<String>,
    /// Seconds after which the machine is switched off
    #[arg(long, default_value_t = 900)]
    timeout: u64,
    /// What the guest's shell runs [default: the tests of the probes and of control groups]
    #[arg(last = true)]
    command: Vec<String>,
}

impl Vm {
    /// The tests of the probes and of control groups, on the distribution's own kernel.
    pub fn of_default_tests() -> Self {
        Self { kernel: None, timeout: 900, command: Vec::new() }
    }

    /// Boots, runs the command, and passes its exit code on.
    pub fn run(&self) -> Result<ExitCode> {
        let code = self.exit_code()?;
        Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
    }

    /// As `run`, but the exit code of the guest's shell as a number.
    pub fn exit_code(&self) -> Result<i32> {
        ensure(&[Group::Vm])?;
        let kernel = kernel::ensure(self.kernel.as_deref())?;
        let command =
            if self.command.is_empty() { default_tests()? } else { self.command.join(" ") };
        let exchange = Exchange::new(&script(&command)?)?;
        fs::write(exchange.0.join("initrd"), initrd(&kernel)?)?;
        let begun = Instant::now();
        let machine = Machine(qemu(&kernel, &exchange.0).spawn().context("cannot start qemu")?);
        let code = exchange.follow(machine, Duration::from_secs(self.timeout))?;
        note(&format!("the guest ended after {} with exit code {code}", seconds(begun.elapsed())));
        Ok(code)
    }
}

/// Builds the tests here; the guest finds them under the same path.
fn default_tests() -> Result<String> {
    build::release()?;
    let arguments = ["test", "--no-run", "--package", "profiler-tests", "--features", "real"];
    let told = slow("building the tests of the probes and of control groups", || {
        let built = cargo(&arguments).args(["--test", "probes", "--test", "cgroup_v2"]).output()?;
        let said = String::from_utf8_lossy(&built.stderr).into_owned();
        if built.status.success() { Ok(said) } else { bail!("{said}") }
    })?;
    let run = |program| format!("{program} --test-threads=1 --nocapture || failed=1");
    let programs: Vec<_> = executables(&told).map(run).collect();
    if programs.is_empty() {
        bail!("cargo names no test program");
    }
    // Debian's kernels allow fentry, so nothing less will do there.
    Ok(format!("export EXPECT_WAIT_HOOKS=fentry\nfailed=0\n{}\nexit $failed", programs.join("\n")))
}

/// The paths in cargo's `Executable tests/probes.rs (target/debug/deps/probes-0123)`.
fn executables(told: &str) -> impl Iterator<Item = &str> {
    let lines = told.lines().filter(|line| line.trim_start().starts_with("Executable "));
    lines.filter_map(|line| line.rsplit_once('(')?.1.strip_suffix(')'))
}

/// What the guest's shell runs: the command, with our place, paths and words to the tests.
fn script(command: &str) -> Result<String> {
    let binary = build::output_folder()?.join("release/stalltrace");
    let variables = [
        ("PATH", env::var("PATH")?),
        ("HOME", env::var("HOME").unwrap_or_else(|_| "/root".to_owned())),
        ("LANG", "C.UTF-8".to_owned()),
        ("STALLTRACE_BIN", binary.display().to_string()),
        ("STALLTRACE_TEST_SLOWDOWN", SLOWDOWN.to_string()),
        ("STALLTRACE_TEST_SWAP", SWAP.to_owned()),
    ];
    let mut script = String::new();
    for (name, value) in variables {
        script.push_str(&format!("export {name}={}\n", quoted(&value)));
    }
    let place = workspace().canonicalize()?;
    Ok(format!("{script}cd {} || exit\n{command}\n", quoted(&place.display().to_string())))
}

/// A word that the shell takes as it stands.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn initrd(kernel: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "proc", "sys", "modules", "lower", "changes", "root"] {
        archive.folder(folder);
    }
    archive.program("init", include_bytes!("init.sh"));
    archive.program("bin/busybox", &fs::read(kernel.join("busybox"))?);
    for module in fs::read_dir(kernel.join("modules"))? {
        let module = module?;
        let name = format!("modules/{}", module.file_name().to_string_lossy());
        archive.program(&name, &fs::read(module.path())?);
    }
    Ok(archive.finish())
}

fn qemu(kernel: &Path, exchange: &Path) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    // Emulated throughout: stock kernels hang under some hosts' /dev/kvm.
    qemu.args(["-accel", "tcg", "-cpu", CPU, "-smp", "2", "-m", "1500"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel.join("vmlinuz"))
        .arg("-initrd")
        .arg(exchange.join("initrd"))
        .args(["-append", "console=ttyS0 quiet panic=-1 oops=panic"])
        .arg("-serial")
        .arg(format!("file:{}", exchange.join("console").display()));
    let disk = exchange.join("swap").display().to_string().replace(',', ",,");
    qemu.args(["-drive", &format!("file={disk},format=raw,if=virtio,cache=unsafe")]);
    let host = "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap".to_owned();
    let shared = format!("local,id=exchange,path={},security_model=none", exchange.display());
    for (tag, folder) in [("host", host), ("exchange", shared)] {
        qemu.args(["-fsdev", &folder, "-device"])
            .arg(format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
    }
    qemu.stdin(Stdio::null());
    qemu
}

/// The emulator; never outlives us, but for a SIGKILL.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The folder in which host and guest exchange the script, its output and its exit code.
struct Exchange(PathBuf);

impl Exchange {
    fn new(script: &str) -> Result<Self> {
        let folder = target().join(format!("vm/exchange-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let exchange = Self(folder);
        for (file, content) in [("script", script), ("output", ""), ("console", "")] {
            fs::write(exchange.0.join(file), content)?;
        }
        // Takes no room until it is written to.
        File::create(exchange.0.join("swap"))?.set_len(SWAP_BYTES)?;
        Ok(exchange)
    }

    /// Passes the output on while it comes, up to the exit code.
    fn follow(&self, mut machine: Machine, limit: Duration) -> Result<i32> {
        let mut output = File::open(self.0.join("output"))?;
        let begun = Instant::now();
        loop {
            let ended = machine.0.try_wait()?.is_some();
            let mut news = Vec::new();
            output.read_to_end(&mut news)?;
            stdout().write_all(&news)?;
            stdout().flush()?;
            if ended {
                break;
            }
            if begun.elapsed() > limit {
                bail!("switched off after {}{}", seconds(limit), self.console());
            }
            sleep(LOOK);
        }
        let code = fs::read_to_string(self.0.join("code")).ok();
        code.and_then(|code| code.trim().parse().ok())
            .with_context(|| format!("the guest left no result{}", self.console()))
    }

    fn console(&self) -> String {
        let said = fs::read(self.0.join("console")).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<_> = said.lines().rev().take(CONSOLE_LINES).collect();
        let lines: Vec<_> = lines.into_iter().rev().collect();
        if lines.is_empty() {
            String::new()
        } else {
            format!("; its console:\n{}", lines.join("\n"))
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // What stays behind is in `target`.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::{executables, quoted};

    /// The test programs are found in what cargo says on building it.
    #[test]
    fn programs_that_cargo_names() {
        let told = "    Finished `test` profile in 1s\n  Executable tests/probes.rs (target/debug/deps/probes-01)\n  \
                    Executable tests/cgroup_v2.rs (target/debug/deps/cgroup_v2-02)\n";
        let found: Vec<_> = executables(told).collect();
        assert_eq!(found, ["target/debug/deps/probes-01", "target/debug/deps/cgroup_v2-02"]);
        assert_eq!(executables("    Finished `test` profile in 1s\n").count(), 0);
    }

    /// Quotes in a path do not end the word.
    #[test]
    fn quotes_survive() {
        assert_eq!(quoted("/it's"), r"'/it'\''s'");
    }
}
