//! Where lines go: a reader that does not read, a FIFO that nobody opens, a file that is there already, is renamed or has
//! no room. stalltrace ends in time, and what could not be written is said.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{FcntlArg, fcntl};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use profiler_tests::clock::patience;
use profiler_tests::load::Client;
use profiler_tests::report::{self, Report};
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::target::{Scratch, Target, send};
use profiler_tests::tracer::binary;

/// Somebody without any privileges.
const NOBODY: u32 = 65_534;

/// Two seconds are promised.
const LEAVES_WITHIN: Duration = Duration::from_secs(10);

/// stalltrace on a service, with its standard output there.
fn attach(target: &Target, options: &[&str], stdout: impl Into<Stdio>) -> Result<Child> {
    let mut command = Command::new(binary()?);
    command.args(["attach", &target.pid().to_string(), "--format", "json"]).args(options);
    Ok(command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).spawn()?)
}

/// How it ended, by its code, with what it said on standard error.
fn ended(mut tracer: Child) -> Result<(Option<i32>, String)> {
    let deadline = Instant::now() + LEAVES_WITHIN;
    while tracer.try_wait()?.is_none() {
        if Instant::now() > deadline {
            tracer.kill()?;
            tracer.wait()?;
            anyhow::bail!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = tracer.wait_with_output()?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn stall(target: &Target, times: usize) -> Result<()> {
    let mut client = Client::connect(target.port())?;
    for _ in 0..times {
        client.get("/sleep?ms=150")?;
    }
    Ok(())
}

/// Waits until a file has so many lines, and returns them.
fn lines_of(path: &Path, least: usize) -> Result<Vec<Report>> {
    let deadline = Instant::now() + patience(30);
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        if text.lines().count() >= least && text.ends_with('\n') {
            return text.lines().map(report::parse).collect();
        }
        ensure!(Instant::now() < deadline, "{} lines in {}", text.lines().count(), path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A pipe that holds next to nothing, with its first line read: all else waits.
fn stuck(target: &Target) -> Result<(Child, std::io::PipeReader)> {
    let (mut reader, writer) = std::io::pipe()?;
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096))?;
    let tracer = attach(target, &[], writer)?;
    reader.read_exact(&mut [0])?;
    stall(target, 4)?;
    Ok((tracer, reader))
}

/// Nobody reads: it ends all the same, and says how many lines are missing.
#[test]
fn a_reader_that_does_not_read() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = Target::service()?;
    let (tracer, _reader) = stuck(&target)?;
    send(tracer.id(), Signal::SIGTERM)?;
    let (code, words) = ended(tracer)?;
    ensure!(code == Some(1) && words.contains(" lines could not be written"), "{code:?}: {words}");
    println!("{}", words.trim_end());
    Ok(())
}

/// The same where the target exits.
#[test]
fn the_target_exits_while_nobody_reads() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = Target::service()?;
    let (tracer, _reader) = stuck(&target)?;
    target.signal(Signal::SIGKILL)?;
    let (code, words) = ended(tracer)?;
    ensure!(code == Some(1) && words.contains(" lines could not be written"), "{code:?}: {words}");
    Ok(())
}

/// Who asks twice does not want to wait.
#[test]
fn a_second_signal() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = Target::service()?;
    let (tracer, _reader) = stuck(&target)?;
    let id = tracer.id();
    send(id, Signal::SIGINT)?;
    std::thread::sleep(Duration::from_millis(100));
    send(id, Signal::SIGINT)?;
    let (code, words) = ended(tracer)?;
    ensure!(code == Some(1) && words.contains("second signal"), "{code:?}: {words}");
    Ok(())
}

/// A FIFO whose reader never comes keeps nobody; one that comes gets all.
#[test]
fn fifos() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = Target::service()?;
    let scratch = Scratch::new()?;
    let path = scratch.file("fifo");
    nix::unistd::mkfifo(&path, Mode::S_IRWXU)?;
    let name = path.to_str().context("no text")?;
    let tracer = attach(&target, &["--output", name, "--duration", "1s"], Stdio::null())?;
    let (code, words) = ended(tracer)?;
    ensure!(code == Some(1) && words.contains(" could not be written"), "{code:?}: {words}");

    let tracer = attach(&target, &["--output", name, "--duration", "1s"], Stdio::null())?;
    let text = fs::read_to_string(&path)?;
    let (code, words) = ended(tracer)?;
    ensure!(code == Some(0), "{code:?}: {words}");
    let last = report::parse(text.lines().last().context("no line")?)?;
    ensure!(matches!(last, Report::SessionEnd(_)), "{last:?}");
    Ok(())
}

/// What is in a file stays there; it is made for its owner alone, and anew after it was renamed and a hang-up.
#[test]
fn files_are_kept() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = Target::service()?;
    let scratch = Scratch::new()?;
    let (path, old) = (scratch.file("stalls.jsonl"), scratch.file("stalls.jsonl.1"));
    let name = path.to_str().context("no text")?;
    for sessions in [1, 2] {
        let tracer = attach(
            &target,
            &["--output", name, "--duration", "100ms", "--stats-interval", "off"],
            Stdio::null(),
        )?;
        let (code, words) = ended(tracer)?;
        ensure!(code == Some(0), "{code:?}: {words}");
        let starts = lines_of(&path, 1)?;
        let starts = starts.iter().filter(|line| matches!(line, Report::SessionStart(_)));
        ensure!(starts.count() == sessions, "the second session began the file anew");
    }
    let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");

    let before = lines_of(&path, 1)?.len();
    let tracer = attach(&target, &["--output", name], Stdio::null())?;
    lines_of(&path, before + 1)?;
    fs::rename(&path, &old)?;
    send(tracer.id(), Signal::SIGHUP)?;
    // A line that was on its way goes to the one or the other.
    stall(&target, 1)?;
    lines_of(&path, 1)?;
    send(tracer.id(), Signal::SIGINT)?;
    let (code, words) = ended(tracer)?;
    ensure!(code == Some(0), "{code:?}: {words}");
    let last = lines_of(&path, 1)?.pop().context("no line")?;
    ensure!(matches!(last, Report::SessionEnd(_)), "{last:?}");
    lines_of(&old, before + 1)?;
    Ok(())
}

/// What cannot be opened is named; a link that somebody else made is not followed.
#[test]
fn what_is_refused() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = Target::service()?;
    let scratch = Scratch::new()?;
    let (file, link) = (scratch.file("file"), scratch.file("link"));
    File::create(&file)?.write_all(b"kept\n")?;
    chown(&file, Some(NOBODY), None)?;
    symlink(&file, &link)?;
    lchown(&link, Some(NOBODY), None)?;
    for (path, why) in [
        (link.to_str().context("no text")?, "symbolic link of user 65534"),
        ("/nowhere/stalls.jsonl", "No such file"),
        ("/", "directory"),
    ] {
        let (code, words) = ended(attach(&target, &["--output", path], Stdio::null())?)?;
        ensure!(code == Some(1), "{path}: {code:?}: {words}");
        ensure!(words.contains(path) && words.contains(why), "{path}: {words}");
    }
    ensure!(fs::read_to_string(&file)? == "kept\n", "it was written to");
    Ok(())
}

/// A small disk of the test's own.
struct Disk(std::path::PathBuf);

impl Disk {
    fn new(scratch: &Scratch) -> Result<Self> {
        let path = scratch.file("disk");
        fs::create_dir(&path)?;
        mount(Some("none"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=24k"))?;
        Ok(Self(path))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// On a full disk no half line stays; with room again the lines come again, and what is missing is counted.
#[test]
fn a_full_disk() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = Target::service()?;
    let scratch = Scratch::new()?;
    let disk = Disk::new(&scratch)?;
    let (path, filler) = (disk.0.join("stalls.jsonl"), disk.0.join("filler"));
    let name = path.to_str().context("no text")?;
    let tracer = attach(&target, &["--output", name, "--stats-interval", "off"], Stdio::null())?;
    lines_of(&path, 1)?;
    let mut fill = OpenOptions::new().create(true).append(true).open(&filler)?;
    while fill.write(&[0; 512]).is_ok_and(|bytes| bytes > 0) {}
    stall(&target, 4)?;
    fs::remove_file(&filler)?;
    drop(fill);
    send(tracer.id(), Signal::SIGINT)?;
    let (code, words) = ended(tracer)?;
    ensure!(code == Some(1) && words.contains(" could not be written"), "{code:?}: {words}");
    let lines = lines_of(&path, 2)?;
    let Some(Report::SessionEnd(end)) = lines.last() else {
        anyhow::bail!("the last line is {:?}", lines.last());
    };
    let lost = end.lost.get("lines_unwritten").copied().unwrap_or_default();
    ensure!(lost > 0, "{:?}", end.lost);
    println!("{lost} lines had no room");
    Ok(())
}
