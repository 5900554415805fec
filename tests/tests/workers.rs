//! Servers that hand requests to threads: a request that holds its thread is reported, with that thread and line.

use std::cell::Cell;
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use profiler_tests::clock::{patience, slowdown};
use profiler_tests::lives::broken_contract;
use profiler_tests::load::Client;
use profiler_tests::report::{Report, ReportExt as _, StallExt as _, StallLine};
use profiler_tests::scenario::{THRESHOLD_NS, alone, require_root};
use profiler_tests::target::{
    Scratch, Target, folder, free_port, send, system_python, venv_python,
};
use profiler_tests::tracer::{Finished, Tracer};

const WATCH_WORKERS: &[&str] = &["--watch-workers"];
/// What measuring from outside and inside may differ by: the server's own part of a request.
const APART_NS: u64 = 60_000_000;

/// A server with threads, and the process of it that serves.
struct Server {
    _target: Target,
    words: Words,
    /// Our child, or our child's, which its parent waits for only when it ends in its turn.
    worker: u32,
    port: u16,
}

/// What the application writes down, line by line.
struct Words {
    scratch: Scratch,
    read: Cell<usize>,
}

impl Words {
    fn file(&self) -> PathBuf {
        self.scratch.file("words")
    }

    /// The numbers of the next line, which starts like this.
    fn next(&self, beginning: &str) -> Result<Vec<u64>> {
        let deadline = Instant::now() + patience(40);
        loop {
            let text = std::fs::read_to_string(self.file()).unwrap_or_default();
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            if let Some(line) = whole.lines().nth(self.read.get()) {
                ensure!(line.starts_with(beginning), "{line:?} instead of {beginning:?}");
                self.read.set(self.read.get() + 1);
                return Ok(numbers(line));
            }
            ensure!(Instant::now() < deadline, "no word {beginning:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Server {
    fn gunicorn() -> Result<Self> {
        let mut command = Command::new(venv_python()?);
        command.args(["-m", "gunicorn", "--worker-class", "gthread", "--threads", "3"]);
        command.args(["--workers", "1", "--log-level", "error", "--graceful-timeout", "2"]);
        command.arg("--no-control-socket").arg("--chdir").arg(folder());
        Self::start(command, |port| vec!["--bind".into(), address(port), "threads_app".into()])
    }

    fn uwsgi() -> Result<Self> {
        let mut command = Command::new("uwsgi-core");
        command.args(["--plugin", "python3", "--threads", "3"]);
        command.args(["--disable-logging", "--logto", "/dev/null"]);
        command.arg("--wsgi-file").arg(folder().join("threads_app.py"));
        Self::start(command, |port| vec!["--http-socket".into(), address(port)])
    }

    fn start(mut command: Command, options: impl Fn(u16) -> Vec<String>) -> Result<Self> {
        let port = free_port()?;
        let words = Words { scratch: Scratch::new()?, read: Cell::new(0) };
        command.args(options(port)).env("TARGET_WORDS", words.file());
        let target = Target::program(command)?;
        let deadline = Instant::now() + patience(60);
        while Client::connect(port).and_then(|mut client| client.get("/")).is_err() {
            ensure!(Instant::now() < deadline, "the server does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        let worker = *words.next("serving")?.first().context("no process")?;
        let server = Self { _target: target, words, worker: u32::try_from(worker)?, port };
        // Starts all its threads: pools do so with the first requests.
        server.hold_all("sleep", 20)?;
        Ok(server)
    }

    fn request(&self, path: String) -> JoinHandle<Result<()>> {
        let port = self.port;
        std::thread::spawn(move || {
            Client::connect(port)?.get(&path)?;
            Ok(())
        })
    }

    /// Holds all three threads at once; says what they wrote down.
    fn hold_all(&self, how: &str, ms: u64) -> Result<Vec<Held>> {
        let requests: Vec<_> =
            (0..3).map(|_| self.request(format!("/hold?how={how}&ms={ms}"))).collect();
        for request in requests {
            request.join().map_err(|_| anyhow::anyhow!("a client failed"))??;
        }
        (0..3).map(|_| self.held()).collect()
    }

    fn held(&self) -> Result<Held> {
        let &[tid, line, start_ns, end_ns] = &self.words.next("held")?[..] else {
            anyhow::bail!("an odd line of the target");
        };
        Ok(Held { tid, line, start_ns, end_ns })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that hangs does not end with its master.
        let _ = send(self.worker, Signal::SIGKILL);
    }
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// One request, as the thread that it held wrote it down.
#[derive(Debug)]
struct Held {
    tid: u64,
    line: u64,
    start_ns: u64,
    end_ns: u64,
}

impl Held {
    fn is_in(&self, stall: &StallLine) -> bool {
        let (start_ns, end_ns) = (stall.stall.start_monotonic_ns, stall.end_ns());
        u64::from(stall.thread.tid) == self.tid && start_ns < self.end_ns && end_ns > self.start_ns
    }

    /// The thread, the function, the line and the time are those that the thread itself gave.
    fn must_be(&self, stall: &StallLine, function: &str) -> Result<()> {
        let culprit = stall.culprit.as_ref().context("nobody is blamed")?;
        ensure!(culprit.function.as_deref() == Some(function), "{culprit:?} for {self:?}");
        // A loop's condition is as good as its body.
        let line = culprit.line.map(u64::from).context("no line")?;
        ensure!(line.abs_diff(self.line) <= 1, "{culprit:?} for {self:?}");
        let lasted_ns = self.end_ns - self.start_ns;
        let apart_ns = stall.stall.duration_ns.abs_diff(lasted_ns);
        // What it waited for a CPU just before or after is in neither.
        let allowed_ns = APART_NS * u64::from(slowdown()) + stall.stall.time.runnable_ns;
        ensure!(apart_ns < allowed_ns, "{} ns for {self:?}", stall.stall.duration_ns);
        Ok(())
    }
}

/// Leaves the time in which workers are found: they are searched for once a second.
fn until_found() {
    std::thread::sleep(Duration::from_millis(2500) * slowdown().min(4));
}

/// The words of the target's line as numbers.
fn numbers(line: &str) -> Vec<u64> {
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn ends(finished: &Finished) -> Result<Vec<&StallLine>> {
    let broken = broken_contract(&finished.lines);
    ensure!(broken.is_empty(), "{broken:?}");
    Ok(finished.ends().collect())
}

/// Every thread that is held is reported, once each, and nothing else is.
fn held_threads_are_reported(server: &Server, how: &str) -> Result<()> {
    let (tracer, _) = Tracer::attach(server.worker, WATCH_WORKERS)?;
    until_found();
    let mut all = Vec::new();
    for ms in [250, 400] {
        all.extend(server.hold_all(how, ms)?);
        std::thread::sleep(Duration::from_millis(200));
    }
    let finished = tracer.interrupt()?;
    let ends = ends(&finished)?;
    for held in &all {
        let mut stalls = ends.iter().filter(|stall| held.is_in(stall));
        let missed = || {
            let (told, lost) = (finished.told(), finished.lost());
            format!("{held:?} was missed; lost {lost:?}; told\n{}", told.join("\n"))
        };
        let stall = stalls.next().with_context(missed)?;
        held.must_be(stall, how)?;
    }
    // Where it was held by the machine, which had no CPU for it, that is true.
    let is_invented = |stall: &&&StallLine| {
        stall.cause.kind.name() != "run_queue" && !all.iter().any(|held| held.is_in(stall))
    };
    let invented: Vec<_> = ends.iter().filter(is_invented).collect();
    ensure!(invented.is_empty(), "stalls of threads that nobody held: {invented:#?}");
    println!("{} held threads named", all.len());
    Ok(())
}

/// Short requests, and the waiting between them, are no stalls.
fn short_requests_are_none(server: &Server) -> Result<()> {
    let (tracer, _) = Tracer::attach(server.worker, WATCH_WORKERS)?;
    until_found();
    for _ in 0..40 {
        Client::connect(server.port)?.get("/")?;
        std::thread::sleep(Duration::from_millis(20));
    }
    let finished = tracer.interrupt()?;
    ends(&finished)?;
    let told = finished.told();
    ensure!(told.is_empty(), "stalls invented:\n{}", told.join("\n"));
    Ok(())
}

/// gunicorn's gthread: three sleeping requests at once, three threads named.
#[test]
fn requests_that_hold_a_gthread_are_reported() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let server = Server::gunicorn()?;
    held_threads_are_reported(&server, "sleep")
}

/// uWSGI's threads, who take turns at one socket.
#[test]
fn requests_that_hold_a_uwsgi_thread_are_reported() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let server = Server::uwsgi()?;
    held_threads_are_reported(&server, "sleep")
}

/// Threads that only serve short requests are left in peace.
#[test]
fn short_requests_are_left_in_peace() -> Result<()> {
    let _machine = alone();
    require_root()?;
    short_requests_are_none(&Server::gunicorn()?)?;
    short_requests_are_none(&Server::uwsgi()?)
}

/// What a pool's threads do is their own business, unless somebody asks.
#[test]
fn workers_are_watched_on_request_only() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let server = Server::gunicorn()?;
    let (tracer, _) = Tracer::attach(server.worker, &[])?;
    for _ in 0..2 {
        server.hold_all("sleep", 250)?;
        std::thread::sleep(Duration::from_millis(200));
    }
    let finished = tracer.interrupt()?;
    let ends = ends(&finished)?;
    ensure!(ends.is_empty(), "{} stalls that nobody asked for", ends.len());
    Ok(())
}

/// A server that cannot end because one of its threads never comes back: that thread is named.
#[test]
fn a_shutdown_that_hangs_names_the_thread() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let server = Server::gunicorn()?;
    // In the thread before we come, which is when people look.
    let _hanging = server.request("/hang".to_owned());
    let &[tid, line] = &server.words.next("hanging")?[..] else { anyhow::bail!("an odd line") };
    std::thread::sleep(Duration::from_millis(300));
    let (tracer, _) = Tracer::attach(server.worker, WATCH_WORKERS)?;
    until_found();
    send(server.worker, Signal::SIGTERM)?;
    let is_it =
        |line: &Report| line.stall().is_some_and(|stall| u64::from(stall.thread.tid) == tid);
    let found = tracer.wait_for(is_it, patience(40))?;
    let stall = found.line.stall().context("no stall")?;
    ensure!(!stall.stall.start_known && stall.stall.duration_ns >= THRESHOLD_NS, "{stall:?}");
    let culprit = stall.culprit.as_ref().context("nobody is blamed")?;
    ensure!(culprit.function.as_deref() == Some("hang"), "{culprit:?}");
    ensure!(culprit.line.map(u64::from) == Some(line), "{culprit:?} instead of line {line}");
    let finished = tracer.interrupt()?;
    ensure!(ends(&finished)?.iter().any(|end| u64::from(end.thread.tid) == tid), "no end");
    Ok(())
}

/// A pool whose queue is never empty does not park between two pieces of work: each is timed by itself.
#[test]
fn a_full_queue_does_not_join_its_work() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let mut command = Command::new(system_python());
    command.arg(folder().join("full_queue.py"));
    let target = Target::program(command)?;
    target.line_starting("ready", patience(60))?;
    let (tracer, _) = Tracer::attach(target.pid(), WATCH_WORKERS)?;
    until_found();
    target.signal(Signal::SIGUSR1)?;
    let finished = tracer.finish()?;
    let ends = ends(&finished)?;
    let mut all = Vec::new();
    while let Ok(line) = target.line_starting("held", Duration::from_millis(100)) {
        let &[tid, line, start_ns, end_ns] = &numbers(&line)[..] else { continue };
        all.push(Held { tid, line, start_ns, end_ns });
    }
    ensure!(all.len() == 2, "odd target: {all:?}");
    for held in &all {
        let stall = ends.iter().find(|stall| held.is_in(stall));
        held.must_be(stall.with_context(|| format!("{held:?} was missed"))?, "long")?;
    }
    // A short piece is a stall where the machine had no CPU for it.
    let is_ours = |stall: &&&StallLine| {
        stall.stall.duration_ns.saturating_sub(stall.stall.time.runnable_ns) >= THRESHOLD_NS
    };
    let ours = ends.iter().filter(is_ours).count();
    ensure!(ours == all.len(), "{ours} stalls instead of {}", all.len());
    Ok(())
}
