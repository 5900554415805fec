//! Runs a command as root on another kernel: an emulated machine whose root is the host's files.

use std::env;
use std::fs::{self, File};
use std::io::{Read, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::guests::{Guest, OWN, Tests};
use crate::initrd::Archive;
use crate::kernel::{Build, Choice};
use crate::process::{output, target, workspace};
use crate::report::{note, seconds};
use crate::setup::emulator;
use crate::{build, kernel, programs, skips};

/// What its tests counted, in the exchange folder.
const TALLY: &str = "tally";

/// Boots more where the emulator failed.
const RETRIES: u32 = 2;

/// How often the guest's output is looked for.
const LOOK: Duration = Duration::from_millis(100);

/// How much slower than this machine the emulated one is: a word to the tests' time limits.
const SLOWDOWN: u32 = 10;

/// Later than what every kernel boots on, without what the emulator lacks; 6.12 panics on `max`.
const CPU: &str = "Haswell-noTSX,-pcid,-x2apic,-tsc-deadline,-invpcid";

/// On a busy host the emulated timer is too late for the kernel's test of it. A CPU that does nothing else for a minute
/// ends the guest, with its stack on the console.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 oops=panic no_timer_check watchdog_thresh=30 softlockup_panic=1";

/// The guest's only disk, empty, for tests to swap to; and its size.
const SWAP: &str = "/dev/vda";
const SWAP_BYTES: u64 = 256 << 20;

/// Reads from it in a second: a disk that is as slow as the CPU, or nobody would wait for it.
const SWAP_READS: u32 = 200;

/// Lines of the guest's console that are shown where there is no result.
const CONSOLE_LINES: usize = 60;

/// What the console says where the emulator lost against a kernel that patches its own code while it runs there:
/// seen with two CPUs of the guest on two of a busy host, and nothing of ours.
const EMULATOR_FAULT: &str = "Oops: int3";

const EXAMPLES: &str = "\
Examples:
  cargo xtask vm
  cargo xtask vm -- uname -r
  cargo xtask vm --suite trixie --append preempt=full -- 'cat /sys/kernel/debug/sched/preempt'
  cargo xtask vm --suite sid --test probes --test gil
  STALLTRACE_TEST_PREEMPT_SECONDS=60 cargo xtask vm --suite trixie --rt --test preempt

A suite's kernel is fetched once, into target/vm; remove its folder there to have the current one fetched.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Vm {
    /// The kernel: a folder in target/vm [default: this distribution's own]
    #[arg(long)]
    kernel: Option<String>,
    /// The kernel of a suite of Debian: bookworm, trixie, trixie-backports, sid
    #[arg(long, conflicts_with = "kernel")]
    suite: Option<String>,
    /// The suite's real-time kernel
    #[arg(long, requires = "suite")]
    rt: bool,
    /// The suite's kernel for virtual machines
    #[arg(long, requires = "suite", conflicts_with = "rt")]
    cloud: bool,
    /// More of the kernel's command line, such as `preempt=full`
    #[arg(long, default_value = "", hide_default_value = true)]
    append: String,
    /// CPUs of the machine
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Its memory in MiB, which also holds what the command writes
    #[arg(long, default_value_t = 1500)]
    memory: u32,
    /// Seconds after which the machine is switched off
    #[arg(long, default_value_t = 900)]
    timeout: u64,
    /// A program of tests to build here and run there, instead of a command; may be given again
    /// [default: those of the probes and of control groups]
    #[arg(long, value_name = "NAME", conflicts_with = "command")]
    test: Vec<String>,
    /// What the guest's shell runs instead of tests
    #[arg(last = true)]
    command: Vec<String>,
}

impl Vm {
    /// Boots, runs the command, and passes its exit code on.
    pub fn run(&self) -> Result<ExitCode> {
        let named: Vec<_> = self.test.iter().map(|program| (program.as_str(), &[][..])).collect();
        let command = match (self.command.is_empty(), named.is_empty()) {
            (false, _) => self.command.join(" "),
            (true, false) => tests(&named)?,
            (true, true) => tests(&wanted(&OWN))?,
        };
        let build = match (self.rt, self.cloud) {
            (true, _) => Build::RealTime,
            (_, true) => Build::Cloud,
            _ => Build::Usual,
        };
        let kernel = match (&self.suite, &self.kernel) {
            (Some(suite), _) => Choice::Suite { suite: suite.clone(), build },
            (None, Some(folder)) => Choice::Folder(folder.clone()),
            (None, None) => Choice::Own,
        };
        let hardware = Hardware {
            cpus: self.cpus,
            memory_mib: self.memory,
            append: self.append.clone(),
            limit: Duration::from_secs(self.timeout),
        };
        let code = boot(&kernel, &hardware, &command, &stdout())?;
        Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
    }
}

/// Boots one of the tests' kernels and runs its tests, whose words go to `log`; an error unless they pass.
pub fn test(guest: &Guest, log: &File) -> Result<()> {
    let command = tests(&wanted(guest.tests))?;
    let hardware = Hardware {
        cpus: guest.cpus,
        memory_mib: 1500,
        append: guest.append.to_owned(),
        limit: Duration::from_secs(900),
    };
    match boot(&guest.kernel(), &hardware, &command, log)? {
        0 => Ok(()),
        code => bail!("the tests failed there (exit code {code})"),
    }
}

/// What is switched on, and for how long at most.
struct Hardware {
    cpus: u32,
    memory_mib: u32,
    append: String,
    limit: Duration,
}

/// Runs a command there; gives the exit code of the guest's shell.
fn boot(
    kernel: &Choice,
    hardware: &Hardware,
    command: &str,
    sink: impl Write + Copy,
) -> Result<i32> {
    let kernel = emulator(kernel)?;
    let release = kernel::release(&kernel).unwrap_or_else(|| kernel.display().to_string());
    let options = format!("{release} {}", hardware.append);
    note(&format!("booting {}, emulated: this takes a while ...", options.trim_end()));
    let begun = Instant::now();
    let mut left = RETRIES;
    let (code, exchange) = loop {
        let exchange = Exchange::new(&script(command)?)?;
        fs::write(exchange.0.join("initrd"), initrd(&kernel)?)?;
        let started = qemu(&kernel, &exchange.0, hardware).spawn();
        let machine = Machine(started.context("cannot start qemu")?);
        match exchange.follow(machine, hardware.limit, sink) {
            Err(_) if left > 0 && exchange.console().contains(EMULATOR_FAULT) => {
                note("the emulator failed where the kernel patched its own code: once more");
                left -= 1;
            }
            done => break (done?, exchange),
        }
    };
    let tally = exchange.0.join(TALLY);
    if tally.exists() {
        skips::show(&tally);
    }
    note(&format!("the guest ended after {} with exit code {code}", seconds(begun.elapsed())));
    Ok(code)
}

/// A program of tests, and the filters of its tests.
type Wanted<'a> = (&'a str, &'a [&'a str]);

fn wanted(tests: &'static [Tests]) -> Vec<Wanted<'static>> {
    tests.iter().map(|tests| (tests.program, tests.only)).collect()
}

/// Builds tests here and gives the command that runs them; the guest finds them under the same path.
fn tests(wanted: &[Wanted<'_>]) -> Result<String> {
    build::release()?;
    let names: Vec<_> = wanted.iter().map(|(program, _)| *program).collect();
    let built = programs::built(&names)?;
    // Debian's kernels allow fentry, so nothing less will do there.
    let mut command = "export EXPECT_WAIT_HOOKS=fentry\nfailed=0\n".to_owned();
    for (name, only) in wanted {
        let program = built.iter().find(|it| it.name == *name).context("cargo built it not")?;
        for part in *only {
            // A name that no test has any more would pass without one.
            let listed = output(Command::new(program.absolute()).args(["--list", part]))?;
            if !listed.contains(": test") {
                bail!("no test of {name} has {part:?} in its name: put xtask/src/guests.rs right");
            }
        }
        let (path, only) = (program.path.display(), only.join(" "));
        command.push_str(&format!("{path} --test-threads=1 --nocapture {only} || failed=1\n"));
    }
    Ok(format!("{command}exit $failed"))
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
        (skips::COLLECTED, format!("/run/exchange/{TALLY}")),
        ("CI", env::var("CI").unwrap_or_default()),
    ];
    let mut script = String::new();
    let own = variables.map(|(name, value)| (name.to_owned(), value));
    // Words to the tests; those above come last and win.
    let told = env::vars().filter(|(name, _)| name.starts_with("STALLTRACE_TEST_"));
    for (name, value) in told.chain(own) {
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

fn qemu(kernel: &Path, exchange: &Path, hardware: &Hardware) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    // Emulated throughout: stock kernels hang under some hosts' /dev/kvm.
    qemu.args(["-accel", "tcg", "-cpu", CPU])
        .args(["-smp", &hardware.cpus.to_string(), "-m", &hardware.memory_mib.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel.join("vmlinuz"))
        .arg("-initrd")
        .arg(exchange.join("initrd"))
        .arg("-append")
        .arg(format!("{COMMAND_LINE} {}", hardware.append))
        .arg("-serial")
        .arg(format!("file:{}", exchange.join("console").display()));
    let disk = exchange.join("swap").display().to_string().replace(',', ",,");
    qemu.args([
        "-drive",
        &format!("file={disk},format=raw,if=virtio,cache=unsafe,throttling.iops-read={SWAP_READS}"),
    ]);
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

/// How many there have been: several may be in use at once.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// The folder in which host and guest exchange the script, its output and its exit code.
struct Exchange(PathBuf);

impl Exchange {
    fn new(script: &str) -> Result<Self> {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = target().join(format!("vm/exchange-{}-{number}", std::process::id()));
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
    fn follow(&self, mut machine: Machine, limit: Duration, mut sink: impl Write) -> Result<i32> {
        let mut output = File::open(self.0.join("output"))?;
        let begun = Instant::now();
        loop {
            let ended = machine.0.try_wait()?.is_some();
            let mut news = Vec::new();
            output.read_to_end(&mut news)?;
            sink.write_all(&news)?;
            sink.flush()?;
            if ended {
                break;
            }
            if begun.elapsed() > limit {
                bail!("switched off after {}{}", seconds(limit), self.last_words());
            }
            sleep(LOOK);
        }
        let code = fs::read_to_string(self.0.join("code")).ok();
        code.and_then(|code| code.trim().parse().ok())
            .with_context(|| format!("the guest left no result{}", self.last_words()))
    }

    fn console(&self) -> String {
        let said = fs::read(self.0.join("console")).unwrap_or_default();
        String::from_utf8_lossy(&said).into_owned()
    }

    /// The console's end, as it is added to an error.
    fn last_words(&self) -> String {
        let said = self.console();
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
    use super::quoted;

    /// Quotes in a path do not end the word.
    #[test]
    fn quotes_survive() {
        assert_eq!(quoted("/it's"), r"'/it'\''s'");
    }
}
