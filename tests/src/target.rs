//! Starts the programs that are to be watched, and makes sure that they end.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clock::{patience, slowdown};
use crate::load::Client;
use crate::truth::{self, Truth};

/// How long a target may take to end by itself. It may be asked in the middle of a stall.
const ENDS_WITHIN: Duration = Duration::from_secs(4);

/// The folder of the sample programs.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("targets")
}

/// The system's Python: stripped, without frame pointers, as people have it.
pub fn system_python() -> PathBuf {
    std::env::var_os("STALLTRACE_PYTHON").map_or_else(|| "/usr/bin/python3".into(), PathBuf::from)
}

/// The Python of the virtual environment with FastAPI, uvicorn and uvloop.
pub fn venv_python() -> Result<PathBuf> {
    python_of("STALLTRACE_VENV", "venv")
}

/// The Python of the virtual environment with the other frameworks and servers.
pub fn frameworks_python() -> Result<PathBuf> {
    python_of("STALLTRACE_VENV_FRAMEWORKS", "venv-frameworks")
}

fn python_of(variable: &str, name: &str) -> Result<PathBuf> {
    let venv = std::env::var_os(variable).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").join(name),
        PathBuf::from,
    );
    let python = venv.join("bin/python");
    if !python.exists() {
        bail!(
            "{} is missing: `cargo xtask setup` makes it, {variable} names another",
            python.display()
        );
    }
    Ok(python)
}

/// A release of node, by its major version.
pub fn node(major: u32) -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../target/node-{major}"));
    let program = folder.join("bin/node");
    if !program.exists() {
        bail!("{} is missing: `cargo xtask setup targets` fetches it", program.display());
    }
    Ok(program)
}

/// A folder that goes away with its owner.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("stalltrace-tests-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("no {}", path.display()))?;
        Ok(Self(path))
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("left for inspection: {}", self.0.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{} stays behind: {error}", self.0.display());
        }
    }
}

/// A running program. Ends with its owner.
#[derive(Debug)]
pub struct Target {
    child: Child,
    stdout: Receiver<String>,
    scratch: Scratch,
    port: u16,
    /// The process that runs the loop: its own, or one that it has started.
    loop_pid: u32,
}

impl Target {
    /// The sample service, on the system's Python.
    pub fn service() -> Result<Self> {
        Self::python(&system_python(), "service.py", &[])
    }

    /// A loop that freezes and thaws. `kind` is how it freezes: `sleep` or `spin`. Where attaching takes longer,
    /// so does a freeze.
    pub fn frozen(kind: &str, freeze_s: u32, thaw_s: u32) -> Result<Self> {
        let freeze_s = freeze_s + 2 * (slowdown() - 1);
        let (freeze_s, thaw_s) = (freeze_s.to_string(), thaw_s.to_string());
        let options = ["--kind", kind, "--freeze-s", &freeze_s, "--thaw-s", &thaw_s];
        Self::python(&system_python(), "frozen.py", &options)
    }

    /// The sample service on a release of node, with options for node itself.
    pub fn node(node: &Path, options: &[&str]) -> Result<Self> {
        let mut command = Command::new(node);
        command.args(options).arg(folder().join("node_service.js"));
        Self::of_ours(command)
    }

    fn python(python: &Path, script: &str, options: &[&str]) -> Result<Self> {
        let mut command = Command::new(python);
        command.arg(folder().join(script)).args(options);
        Self::of_ours(command)
    }

    /// A program of ours: it writes its truth where `--truth` says, and prints `ready PORT`.
    pub fn of_ours(mut command: Command) -> Result<Self> {
        let scratch = Scratch::new()?;
        command.arg("--truth").arg(scratch.file("truth.jsonl"));
        let mut target = Self::spawn(command, scratch)?;
        let ready = target.line_starting("ready ", patience(60))?;
        let port = ready.split(' ').nth(1).and_then(|port| port.parse().ok());
        target.port = port.with_context(|| format!("no port in {ready:?}"))?;
        Ok(target)
    }

    /// The FastAPI application under uvicorn, on the loop that is named: `asyncio` or `uvloop`.
    pub fn uvicorn(event_loop: &str) -> Result<Self> {
        let scratch = Scratch::new()?;
        let port = free_port()?;
        let mut command = Command::new(venv_python()?);
        command.args(["-m", "uvicorn", "fastapi_app:app", "--http", "httptools"]);
        command.args(["--no-access-log", "--log-level", "warning", "--loop", event_loop]);
        // By default it closes connections that were idle for 5 s, as some of a test's are.
        command.args(["--timeout-keep-alive", "120"]);
        command.arg("--app-dir").arg(folder()).arg("--port").arg(port.to_string());
        command.env("TARGET_TRUTH", scratch.file("truth.jsonl"));
        Self::answering(command, scratch, port)
    }

    /// One of the frameworks' sample applications. In what Python is started with, `{port}` stands for
    /// the port.
    pub fn framework(arguments: &[&str]) -> Result<Self> {
        let scratch = Scratch::new()?;
        let port = free_port()?;
        let mut command = Command::new(frameworks_python()?);
        let port_text = port.to_string();
        command.args(arguments.iter().map(|argument| argument.replace("{port}", &port_text)));
        command.current_dir(folder().join("frameworks"));
        command.env("TARGET_TRUTH", scratch.file("truth.jsonl"));
        let mut target = Self::answering(command, scratch, port)?;
        // A server's workers serve, not the process that was started.
        let serving = target.line_starting("serving ", patience(60))?;
        let pid = serving.split(' ').nth(1).and_then(|pid| pid.parse().ok());
        target.loop_pid = pid.with_context(|| format!("no process id in {serving:?}"))?;
        Ok(target)
    }

    /// A server, once it answers on its port.
    fn answering(command: Command, scratch: Scratch, port: u16) -> Result<Self> {
        let mut target = Self::spawn(command, scratch)?;
        target.port = port;
        let deadline = Instant::now() + patience(60);
        while Client::connect(port).and_then(|mut client| client.get("/")).is_err() {
            if let Some(status) = target.child.try_wait()? {
                bail!("the server ended before it answered: {status}");
            }
            if Instant::now() > deadline {
                bail!("the server does not answer");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(target)
    }

    /// gunicorn with one worker of the class gthread, whose loop hands requests to threads.
    pub fn gunicorn_with_threads(application: &str) -> Result<Self> {
        let folder = folder().display().to_string();
        let worker = ["--worker-class", "gthread", "--threads", "3", "--workers", "1"];
        let server = ["-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--keep-alive", "120"];
        let quiet = ["--log-level", "error", "--chdir", &folder, application];
        Self::framework(&[&server[..], &worker, &quiet].concat())
    }

    /// One process and thread of uWSGI, which has CPython in a plug-in.
    pub fn uwsgi(script: &str) -> Result<Self> {
        let scratch = Scratch::new()?;
        let port = free_port()?;
        let mut command = Command::new("uwsgi-core");
        command.args(["--plugin", "python3", "--need-app", "--disable-logging"]);
        command.arg("--http-socket").arg(format!("{}:{port}", Ipv4Addr::LOCALHOST));
        command.arg("--pythonpath").arg(folder()).arg("--wsgi-file").arg(folder().join(script));
        command.arg("--logto").arg(scratch.file("uwsgi.log"));
        // By itself it takes SIGTERM for a wish to be started anew.
        command.arg("--die-on-term");
        command.env("TARGET_TRUTH", scratch.file("truth.jsonl"));
        Self::answering(command, scratch, port)
    }

    /// Any program; ready as soon as it runs.
    pub fn program(command: Command) -> Result<Self> {
        Self::spawn(command, Scratch::new()?)
    }

    fn spawn(mut command: Command, scratch: Scratch) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{:?} does not start", command.get_program()))?;
        let (to, stdout) = channel();
        if let Some(pipe) = child.stdout.take() {
            std::thread::spawn(move || {
                let lines = BufReader::new(pipe).lines().map_while(Result::ok);
                // The receiver goes away with the target; what is left of its words nobody needs.
                lines.take_while(|line| to.send(line.clone()).is_ok()).for_each(drop);
            });
        }
        let loop_pid = child.id();
        Ok(Self { child, stdout, scratch, port: 0, loop_pid })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process to attach to.
    pub fn loop_pid(&self) -> u32 {
        self.loop_pid
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it has written down so far.
    pub fn truths(&self) -> Result<Vec<Truth>> {
        truth::read(&self.scratch.file("truth.jsonl"))
    }

    /// The next line on its standard output that starts like this.
    pub fn line_starting(&self, beginning: &str, within: Duration) -> Result<String> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.stdout.recv_timeout(left) {
                Ok(line) if line.starts_with(beginning) => return Ok(line),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("no line {beginning:?} in {within:?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("it ended before {beginning:?}"),
            }
        }
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(self.pid(), signal)
    }

    /// Asks it to end, and makes it end if it does not.
    pub fn stop(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        self.signal(Signal::SIGTERM)?;
        let deadline = Instant::now() + ENDS_WITHIN;
        while Instant::now() < deadline {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if self.loop_pid != self.pid() {
            // It would outlive the one that started it. It may be gone already.
            drop(send(self.loop_pid, Signal::SIGKILL));
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("process {} could not be ended: {error:#}", self.pid());
        }
    }
}

/// Sends a signal to a process that we started and have not waited for, so that its id is still its own.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).context("not a process id")?;
    kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to process {pid}"))
}

/// A loopback port that nobody listened on a moment ago.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}
