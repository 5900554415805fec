//! Runs the stalltrace binary on a process, and collects its lines with the time at which each arrived.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::clock::{monotonic_ns, patience};
use crate::report::{
    self, Arrived, CauseKind, Report, ReportedWaitHooks, StallExt as _, StallLine, Stats,
};
use crate::target::send;

/// The binary under test: `STALLTRACE_BIN`, else the one that was built last beside this program.
pub fn binary() -> Result<PathBuf> {
    if let Some(told) = std::env::var_os("STALLTRACE_BIN") {
        return Ok(told.into());
    }
    let here = std::env::current_exe().context("this program has no path")?;
    let profiles = here.ancestors().skip(1).find(|folder| {
        ["debug", "release"].iter().any(|name| folder.file_name() == Some(OsStr::new(name)))
    });
    let built = profiles
        .and_then(|profile| profile.parent())
        .into_iter()
        .flat_map(|target| ["debug", "release"].map(|name| target.join(name).join("stalltrace")));
    // A stale build of the other profile must not be what is tested.
    let newest = built
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max_by_key(|(modified, _)| *modified);
    let (_, path) = newest.context(
        "there is no stalltrace binary: `cargo xtask build` makes it, STALLTRACE_BIN names another",
    )?;
    Ok(path)
}

/// Runs stalltrace until it ends by itself; an error if it does not within half a minute.
pub fn run<S: AsRef<OsStr>>(arguments: &[S]) -> Result<Output> {
    let mut command = Command::new(binary()?);
    command.args(arguments);
    run_command(command)
}

/// The same for a command that leads to stalltrace, such as one that drops privileges first.
pub fn run_command(mut command: Command) -> Result<Output> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let deadline = Instant::now() + patience(30);
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            let output = child.wait_with_output()?;
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("stalltrace did not end by itself: {words}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(child.wait_with_output()?)
}

/// Frames deep in a stack, and who other processes are, are what most tests hold against the truth.
const ALL: [&str; 5] = ["--stacks", "full", "--line-limit", "0", "--show-commands"];

/// What has come out so far.
#[derive(Debug, Default)]
struct Seen {
    lines: Vec<Arrived>,
    texts: Vec<String>,
    unreadable: Vec<String>,
    is_over: bool,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Seen>,
    changed: Condvar,
}

impl Shared {
    /// The lines. They are whole even where a thread panicked while it held them.
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running stalltrace. Ends with its owner.
#[derive(Debug)]
pub struct Tracer {
    child: Child,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
    logs: Option<JoinHandle<String>>,
}

/// A stalltrace that has ended.
#[derive(Debug)]
pub struct Finished {
    /// `None` where a signal ended it.
    pub code: Option<i32>,
    pub lines: Vec<Arrived>,
    /// The same as they came.
    pub texts: Vec<String>,
    /// Lines on standard output that are none of the contract's.
    pub unreadable: Vec<String>,
    pub logs: String,
}

impl Finished {
    /// What the session lost, by kind; nothing is known of one that did not come to its end.
    pub fn lost(&self) -> Option<&BTreeMap<String, u64>> {
        self.lines.iter().rev().find_map(|arrived| match &arrived.line {
            Report::SessionEnd(end) => Some(&end.lost),
            _ => None,
        })
    }

    /// The last line of every stall.
    pub fn ends(&self) -> impl Iterator<Item = &StallLine> {
        self.lines.iter().filter_map(|arrived| match &arrived.line {
            Report::StallEnd(end) => Some(&**end),
            _ => None,
        })
    }

    /// The same but for those in which the machine had no CPU for the thread: nobody's fault that is tested.
    pub fn own_ends(&self) -> impl Iterator<Item = &StallLine> {
        self.ends().filter(|end| !matches!(end.cause.kind, CauseKind::RunQueue { .. }))
    }

    /// The stall that was reported of what lasted from one moment to the other.
    pub fn stall_in(&self, start_ns: u64, end_ns: u64) -> Option<&StallLine> {
        self.ends().find(|end| end.stall.start_monotonic_ns < end_ns && end.end_ns() > start_ns)
    }

    /// What was said at last of each stall, but for those of threads that others kept from their CPU: these
    /// are the machine's.
    pub fn told(&self) -> Vec<&str> {
        let of_targets = self.lines.iter().filter(|arrived| match &arrived.line {
            Report::StallEnd(end) => !end.is_starved(),
            _ => false,
        });
        of_targets.map(|arrived| arrived.line.common().message.as_str()).collect()
    }

    /// The lines of statistics, in their order.
    pub fn stats(&self) -> impl Iterator<Item = &Stats> {
        self.lines.iter().filter_map(|arrived| match &arrived.line {
            Report::Stats(stats) => Some(&**stats),
            _ => None,
        })
    }
}

impl Tracer {
    /// Attaches to a process, and returns once the probes are in place: by the hooks that `EXPECT_WAIT_HOOKS`
    /// names, where it is set.
    pub fn attach(pid: u32, options: &[&str]) -> Result<(Self, Arrived)> {
        Self::spawn(pid, options)?.started()
    }

    /// The same with lines as they are by default: short, without other processes' arguments.
    pub fn attach_plainly(pid: u32, options: &[&str]) -> Result<(Self, Arrived)> {
        Self::spawn_by(Command::new(binary()?), pid, options)?.started()
    }

    /// The same by a command that leads to stalltrace, such as one that drops privileges first.
    pub fn attach_by(command: Command, pid: u32, options: &[&str]) -> Result<(Self, Arrived)> {
        Self::spawn_by(command, pid, &[&ALL, options].concat())?.started()
    }

    fn started(self) -> Result<(Self, Arrived)> {
        let tracer = self;
        let is_start = |line: &Report| matches!(line, Report::SessionStart(_));
        match tracer.wait_for(is_start, patience(60)) {
            Ok(start) => {
                let Report::SessionStart(attached) = &start.line else {
                    bail!("the session began with another line");
                };
                let hooks = attached.wait_hooks;
                if let Ok(expected) = std::env::var("EXPECT_WAIT_HOOKS") {
                    let expected: ReportedWaitHooks = serde_json::from_value(expected.into())?;
                    ensure!(hooks == expected, "{hooks:?} instead of {expected:?}");
                }
                Ok((tracer, start))
            }
            Err(error) => {
                let finished = tracer.interrupt()?;
                bail!("{error:#}; exit code {:?}; its logs:\n{}", finished.code, finished.logs)
            }
        }
    }

    /// Starts stalltrace on a process.
    pub fn spawn(pid: u32, options: &[&str]) -> Result<Self> {
        Self::spawn_by(Command::new(binary()?), pid, &[&ALL, options].concat())
    }

    fn spawn_by(mut command: Command, pid: u32, options: &[&str]) -> Result<Self> {
        command.arg("attach").arg(pid.to_string()).args(options);
        // What is measured is not how soon it ends, and a crowded machine takes its time.
        command.args(["--leave-within", "30s"]);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{:?} does not start", command.get_program()))?;
        let shared = Arc::new(Shared::default());
        let reader = child.stdout.take().map(|pipe| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || collect(BufReader::new(pipe), &shared))
        });
        let logs = child.stderr.take().map(|mut pipe| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                // What came before a read failed is still worth showing.
                let _ = pipe.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        });
        Ok(Self { child, shared, reader, logs })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first line so far or to come that is like this.
    pub fn wait_for(&self, is_it: impl Fn(&Report) -> bool, within: Duration) -> Result<Arrived> {
        let deadline = Instant::now() + within;
        let mut seen = self.shared.lock();
        loop {
            if let Some(found) = seen.lines.iter().find(|arrived| is_it(&arrived.line)) {
                return Ok(found.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if seen.is_over || left.is_zero() {
                let lines = seen.lines.len();
                bail!("the line that was waited for is not among {lines}; over: {}", seen.is_over);
            }
            let waited = self.shared.changed.wait_timeout(seen, left);
            seen = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the first line that is text for people.
    pub fn wait_for_text(&self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        let mut seen = self.shared.lock();
        while seen.unreadable.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if seen.is_over || left.is_zero() {
                bail!("no text; over: {}", seen.is_over);
            }
            let waited = self.shared.changed.wait_timeout(seen, left);
            seen = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Ctrl-C, and what came out until the end.
    pub fn interrupt(self) -> Result<Finished> {
        self.end_by(Signal::SIGINT)
    }

    /// Sends a signal, unless it has already ended, and waits for the end.
    pub fn end_by(mut self, signal: Signal) -> Result<Finished> {
        if self.child.try_wait()?.is_none() {
            send(self.pid(), signal)?;
        }
        self.finish_within(patience(15))
    }

    /// Waits for an end that something else has brought about, or will: a target has to come to its own first, which
    /// on a crowded machine takes a multiple of what it takes else.
    pub fn finish(self) -> Result<Finished> {
        self.finish_within(patience(120))
    }

    fn finish_within(mut self, limit: Duration) -> Result<Finished> {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                bail!("stalltrace does not end");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        self.reader.take().map(JoinHandle::join);
        let logs = self.logs.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let mut seen = self.shared.lock();
        Ok(Finished {
            code: status.code(),
            lines: std::mem::take(&mut seen.lines),
            texts: std::mem::take(&mut seen.texts),
            unreadable: std::mem::take(&mut seen.unreadable),
            logs,
        })
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // It may end between the two calls; then there is nothing left to do.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn collect(pipe: impl BufRead, shared: &Shared) {
    for text in pipe.lines().map_while(Result::ok) {
        let at_ns = monotonic_ns();
        let line = report::parse(&text);
        let mut seen = shared.lock();
        match line {
            Ok(line) => {
                seen.lines.push(Arrived { at_ns, line });
                seen.texts.push(text);
            }
            Err(error) => seen.unreadable.push(format!("{error:#}")),
        }
        shared.changed.notify_all();
    }
    shared.lock().is_over = true;
    shared.changed.notify_all();
}

#[cfg(test)]
mod tests {
    use super::{Shared, collect};
    use crate::report::Report;
    use crate::report::tests::stall;

    /// Lines of the contract are kept with their time, others are kept apart, the end is noted.
    #[test]
    fn lines_are_sorted_out() {
        let good = Report::StallEnd(stall("7", 100, 50, "pay"));
        let good = serde_json::to_string(&good).unwrap();
        let text = format!("starting up\n{good}\n");
        let shared = Shared::default();
        collect(text.as_bytes(), &shared);
        let seen = shared.lock();
        assert_eq!((seen.lines.len(), seen.unreadable.len(), seen.is_over), (1, 1, true));
        assert!(seen.lines[0].at_ns > 0);
    }
}
