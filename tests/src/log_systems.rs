//! Lines through the systems that people send logs to, the real ones: what each has of them in the end.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::clock::patience;
use crate::target::{Scratch, send};

/// What has come out, or why the system cannot run here.
pub type Kept = Result<Vec<String>, String>;

/// The tag under which lines are sent.
const TAG: &str = "stalltrace";

/// How long a system may take to write down what it was sent.
const WRITTEN_WITHIN: u64 = 20;

/// Ends with its owner.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing left to do.
        drop(send(self.0.id(), Signal::SIGTERM));
        drop(self.0.wait());
    }
}

/// rsyslog, fed by `logger` through a socket and by a file that it follows, in its own configuration otherwise:
/// messages of 8 KiB at most. What came through either.
pub fn rsyslog(file: &Path, count: usize) -> Result<(Kept, Kept)> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/rsyslog");
    let program = ["/usr/sbin/rsyslogd".into(), unpacked.join("usr/sbin/rsyslogd")];
    let Some(program) = program.into_iter().find(|program| program.exists()) else {
        let why = "rsyslogd is not here: `cargo xtask setup targets` fetches it".to_owned();
        return Ok((Err(why.clone()), Err(why)));
    };
    let scratch = Scratch::new()?;
    let (socket, followed) = (scratch.file("socket"), scratch.file("followed"));
    let outputs = [scratch.file("by-socket"), scratch.file("by-file")];
    fs::write(&followed, "")?;
    let configuration = scratch.file("rsyslog.conf");
    fs::write(&configuration, rsyslog_conf(&scratch, &socket, &followed, &outputs))?;
    let modules = unpacked.join("usr/lib/x86_64-linux-gnu");
    let mut command = Command::new(program);
    command.arg("-n").arg("-f").arg(&configuration).arg("-i").arg(scratch.file("pid"));
    if modules.exists() {
        command.arg("-M").arg(modules.join("rsyslog")).env("LD_LIBRARY_PATH", modules);
    }
    let _daemon = Daemon(command.stdin(Stdio::null()).spawn().context("rsyslogd does not start")?);
    until("rsyslogd makes no socket", || Ok(socket.exists()))?;
    // By itself logger cuts at 1 KiB.
    let mut logger = Command::new("logger");
    logger.args(["--tag", TAG, "--size", "8192", "--socket"]).arg(&socket).arg("--file").arg(file);
    ensure!(logger.status()?.success(), "logger failed");
    fs::copy(file, &followed)?;
    let [by_socket, by_file] = outputs;
    Ok((Ok(written(&by_socket, count)?), Ok(written(&by_file, count)?)))
}

fn rsyslog_conf(scratch: &Scratch, socket: &Path, followed: &Path, to: &[PathBuf; 2]) -> String {
    let [by_socket, by_file] = to;
    format!(
        "global(workDirectory=\"{}\")\n\
         module(load=\"imuxsock\" SysSock.Use=\"off\")\n\
         module(load=\"imfile\")\n\
         template(name=\"message\" type=\"string\" string=\"%msg:2:$%\\n\")\n\
         template(name=\"whole\" type=\"string\" string=\"%msg%\\n\")\n\
         input(type=\"imuxsock\" Socket=\"{}\" ruleset=\"by-socket\")\n\
         input(type=\"imfile\" File=\"{}\" Tag=\"{TAG}\" ruleset=\"by-file\")\n\
         ruleset(name=\"by-socket\") {{ action(type=\"omfile\" file=\"{}\" template=\"message\") }}\n\
         ruleset(name=\"by-file\") {{ action(type=\"omfile\" file=\"{}\" template=\"whole\") }}\n",
        scratch.file("").display(),
        socket.display(),
        followed.display(),
        by_socket.display(),
        by_file.display()
    )
}

/// A journald of its own, in a mount namespace, fed by `systemd-cat`.
pub fn journald(file: &Path, count: usize) -> Result<Kept> {
    const DAEMON: &str = "/lib/systemd/systemd-journald";
    // The journal is read until all is there, or for as long as is reasonable.
    const SCRIPT: &str = r#"
        set -e
        mount -t tmpfs none /run
        mkdir -p /run/systemd/journal "/run/log/journal/$(cat /etc/machine-id)"
        "$1" & daemon=$!
        trap 'kill $daemon' EXIT
        for _ in $(seq 100); do [ -S /run/systemd/journal/stdout ] && break; sleep 0.1; done
        systemd-cat -t stalltrace cat "$2"
        for _ in $(seq "$4"); do
            journalctl -D /run/log/journal --all -o cat -t stalltrace > "$5" || true
            [ "$(wc -l < "$5")" -ge "$3" ] && break
            sleep 0.1
        done
    "#;
    if !Path::new(DAEMON).exists() || !Path::new("/etc/machine-id").exists() {
        return Ok(Err("systemd's journald is not here".to_owned()));
    }
    let scratch = Scratch::new()?;
    let output = scratch.file("journal");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh", DAEMON]);
    command.arg(file).arg(count.to_string()).arg((WRITTEN_WITHIN * 10).to_string()).arg(&output);
    let ran = command.stdin(Stdio::null()).output().context("unshare does not start")?;
    ensure!(ran.status.success(), "journald: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(Ok(lines(&output)?))
}

/// The log file that podman's monitor writes of a container, in the format of Kubernetes: a line that came in pieces
/// is put together again, as the kubelet and shippers of logs do.
pub fn container(file: &Path) -> Result<Kept> {
    let scratch = Scratch::new()?;
    let podman = |arguments: &[&str]| {
        let mut command = Command::new("podman");
        command.args(arguments).stdin(Stdio::null());
        command.env("CONTAINERS_CONF", scratch.file("containers.conf"));
        command.env("CONTAINERS_STORAGE_CONF", scratch.file("storage.conf"));
        command
    };
    configure_podman(&scratch)?;
    match podman(&["info"]).output() {
        Err(error) => return Ok(Err(format!("podman does not start: {error}"))),
        Ok(output) if !output.status.success() => {
            return Ok(Err(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        Ok(_) => {}
    }
    let root = root_with_cat(&scratch)?;
    fs::copy(file, root.join("lines"))?;
    let log = scratch.file("container.log");
    let mut run = podman(&["run", "--rm", "--network", "none", "--log-driver", "k8s-file"]);
    run.arg("--log-opt").arg(format!("path={}", log.display()));
    let ran = run.arg("--rootfs").arg(&root).args(["/cat", "/lines"]).output()?;
    let ran_well = ran.status.success();
    // What it has mounted would keep the folder from being removed.
    drop(podman(&["system", "reset", "--force"]).output());
    ensure!(ran_well, "podman: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(Ok(put_together(&lines(&log)?)?))
}

fn configure_podman(scratch: &Scratch) -> Result<()> {
    // Limits of its own it may not set where root is not allowed to raise them.
    fs::write(
        scratch.file("containers.conf"),
        "[engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
         [containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n",
    )?;
    let (root, run) = (scratch.file("podman"), scratch.file("podman-run"));
    let storage = format!(
        "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
        root.display(),
        run.display()
    );
    fs::write(scratch.file("storage.conf"), storage)?;
    Ok(())
}

/// A root file system in which `/cat` runs.
fn root_with_cat(scratch: &Scratch) -> Result<PathBuf> {
    let root = scratch.file("root");
    for folder in
        ["usr/lib/x86_64-linux-gnu", "usr/lib64", "proc", "sys", "dev", "etc", "run", "tmp"]
    {
        fs::create_dir_all(root.join(folder))?;
    }
    for folder in ["lib", "lib64"] {
        symlink(Path::new("usr").join(folder), root.join(folder))?;
    }
    fs::copy("/bin/cat", root.join("cat")).context("no cat")?;
    for library in ["lib/x86_64-linux-gnu/libc.so.6", "lib64/ld-linux-x86-64.so.2"] {
        fs::copy(Path::new("/").join(library), root.join("usr").join(library)).context(library)?;
    }
    Ok(root)
}

/// Entries as `TIME stdout F TEXT`; those with `P` go on in the next.
fn put_together(entries: &[String]) -> Result<Vec<String>> {
    let (mut whole, mut begun) = (Vec::new(), String::new());
    for entry in entries {
        let mut fields = entry.splitn(4, ' ');
        let (Some(tag), Some(text)) = (fields.nth(2), fields.next()) else { bail!("{entry:?}") };
        begun.push_str(text);
        if tag == "F" {
            whole.push(std::mem::take(&mut begun));
        }
    }
    ensure!(begun.is_empty(), "the last line has no end: {begun}");
    Ok(whole)
}

/// The lines of a file, once there are so many, or nothing more can be hoped for.
fn written(file: &Path, count: usize) -> Result<Vec<String>> {
    let is_there = || Ok(file.exists() && lines(file)?.len() >= count);
    // What is missing is for the test to say.
    drop(until("it writes too little", is_there));
    lines(file)
}

fn lines(file: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(file).with_context(|| format!("no {}", file.display()))?;
    Ok(String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect())
}

fn until(why_not: &str, is_there: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + patience(WRITTEN_WITHIN);
    while !is_there()? {
        ensure!(Instant::now() < deadline, "{why_not}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::put_together;

    /// Pieces of a line are joined, lines are told apart.
    #[test]
    fn pieces_of_lines() {
        let entries = ["t stdout P {\"a\": ", "t stdout F 1}", "t stdout F {\"b c\": 2}"];
        let entries = entries.map(str::to_owned);
        assert_eq!(put_together(&entries).unwrap(), ["{\"a\": 1}", "{\"b c\": 2}"]);
        assert!(put_together(&entries[..1]).is_err());
    }
}
