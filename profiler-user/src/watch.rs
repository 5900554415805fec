//! `attach`: a process identifier to a stream of reports, until the target exits or somebody says stop.

use std::collections::VecDeque;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use nix::time::{ClockId, clock_gettime};
use tokio::signal::unix::{SignalKind, signal};

use crate::analyst::{Analyst, Ending};
use crate::cli::Attach;
use crate::config::Config;
use crate::job::{Job, Verdict};
use crate::process::target::Target;
use crate::report::facts::{SessionFacts, WallAnchor};
use crate::report::schema::session::EndReason;
use crate::sink::{self, Output};
use crate::source::EventSource;
use crate::start::{self, Begun};

/// With nothing to do for so long, the analyst gives back what it can read again.
const REST_AFTER: Duration = Duration::from_secs(30);

/// Jobs that may wait for the analyst in its queue.
const QUEUE: usize = 1024;

/// Samples that wait here while the queue is full; lines of stalls wait without limit, samples beyond
/// this are counted and let go.
const MAX_BACKLOG: usize = 4096;

/// Attaches and watches; returns how the program should exit.
pub fn attach(arguments: &Attach) -> anyhow::Result<ExitCode> {
    let config = Config::new(arguments)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(arguments.pid, &config))
}

async fn run(pid: u32, config: &Config) -> anyhow::Result<ExitCode> {
    // Whoever stops us while we attach stops us cleanly, too.
    let mut stop = Stop::new(config.duration)?;
    let sink = sink::open(&config.output).context("cannot open the output")?;
    let Begun { mut session, target, facts, first } = start::attach(pid, config)?;
    let watched_from_ns = monotonic_ns();
    let mut desk = Desk::open(Arc::clone(&target), facts, config, sink);
    let mut jobs = vec![first];
    let reason = loop {
        let now_ns = monotonic_ns();
        for verdict in desk.verdicts.try_iter() {
            session.learn(&verdict, now_ns, &mut jobs);
        }
        session.search_workers(now_ns, &mut jobs)?;
        let next_ns = session.step(now_ns, &mut jobs);
        if desk.hand_over(&mut jobs) == Reader::Gone {
            break EndReason::Detached;
        }
        if target.has_exited() {
            break EndReason::TargetExited;
        }
        let pause = Duration::from_nanos(next_ns.saturating_sub(monotonic_ns()));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            reason = stop.asked() => break reason,
        }
    };
    let why = match reason {
        EndReason::TargetExited => "the target exited",
        EndReason::DurationOver => "the session's duration is over",
        EndReason::Signal | EndReason::Detached => "stalltrace detached",
    };
    session.finish(why, monotonic_ns(), &mut jobs);
    let ending = Ending {
        reason,
        watched_ns: monotonic_ns().saturating_sub(watched_from_ns),
        turns: session.turns(),
        losses: session.source.losses(),
    };
    // Before the last line is written: who reads it may rely on the probes being gone.
    drop(session);
    desk.close(jobs, ending)?;
    Ok(ExitCode::SUCCESS)
}

/// CLOCK_MONOTONIC, the clock of the probes.
pub fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, nanoseconds)
}

/// One moment on both clocks.
pub fn wall_anchor() -> WallAnchor {
    let wall = clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, nanoseconds);
    WallAnchor { monotonic_ns: monotonic_ns(), wall_ns_since_epoch: wall }
}

fn nanoseconds(time: nix::sys::time::TimeSpec) -> u64 {
    u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX)
}

/// Everything that may ask us to stop.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
    duration: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
}

impl Stop {
    fn new(duration: Option<Duration>) -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            duration: duration.map(|duration| Box::pin(tokio::time::sleep(duration))),
        })
    }

    async fn asked(&mut self) -> EndReason {
        let over = async {
            match &mut self.duration {
                Some(sleep) => sleep.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => EndReason::Signal,
            _ = self.terminate.recv() => EndReason::Signal,
            _ = self.hang_up.recv() => EndReason::Signal,
            () = over => EndReason::DurationOver,
        }
    }
}

/// Whether anybody still reads what we write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    There,
    Gone,
}

/// The analyst's thread, and the queue before it.
struct Desk {
    queue: SyncSender<Job>,
    backlog: VecDeque<Job>,
    dropped_samples: u64,
    /// What the analyst lets the session know.
    verdicts: Receiver<Verdict>,
    thread: JoinHandle<io::Result<()>>,
    ending: SyncSender<Ending>,
}

impl Desk {
    fn open(target: Arc<Target>, facts: SessionFacts, config: &Config, sink: Output) -> Self {
        let (queue, jobs) = sync_channel(QUEUE);
        let (tell, verdicts) = sync_channel(QUEUE);
        let (ending, last) = sync_channel::<Ending>(1);
        let config = config.clone();
        let thread = std::thread::spawn(move || {
            // Made here, because what names symbols cannot move between threads.
            let analyst = Analyst::new(target, facts, config, tell, sink);
            let mut analyst = work(analyst, &jobs)?;
            match last.recv() {
                Ok(ending) => analyst.finish(&ending, monotonic_ns()),
                Err(_) => Ok(()),
            }
        });
        Self { queue, backlog: VecDeque::new(), dropped_samples: 0, verdicts, thread, ending }
    }

    /// Never blocks: the target may be frozen, and its next stall does not wait for a slow reader.
    fn hand_over(&mut self, jobs: &mut Vec<Job>) -> Reader {
        self.backlog.extend(jobs.drain(..));
        while let Some(job) = self.backlog.pop_front() {
            match self.queue.try_send(self.with_losses(job)) {
                Ok(()) => {}
                Err(TrySendError::Full(job)) => {
                    self.backlog.push_front(job);
                    break;
                }
                Err(TrySendError::Disconnected(_)) => return Reader::Gone,
            }
        }
        if self.backlog.len() > MAX_BACKLOG {
            let before = self.backlog.len();
            self.backlog.retain(|job| matches!(job, Job::Report { .. } | Job::Statistics(_)));
            self.dropped_samples += (before - self.backlog.len()) as u64;
        }
        Reader::There
    }

    fn with_losses(&self, job: Job) -> Job {
        match job {
            Job::Report { tid, due, mut losses } => {
                losses.push(("samples_unread", self.dropped_samples));
                Job::Report { tid, due, losses }
            }
            Job::Statistics(mut interval) => {
                interval.losses.push(("samples_unread", self.dropped_samples));
                Job::Statistics(interval)
            }
            job => job,
        }
    }

    /// Waits until all is written, then writes the session's last line.
    fn close(mut self, jobs: Vec<Job>, mut ending: Ending) -> anyhow::Result<()> {
        self.backlog.extend(jobs);
        while let Some(job) = self.backlog.pop_front() {
            if self.queue.send(self.with_losses(job)).is_err() {
                break;
            }
        }
        ending.losses.push(("samples_unread", self.dropped_samples));
        // Has room for one; an analyst that failed before has hung up, and says why below.
        let _ = self.ending.try_send(ending);
        drop(self.queue);
        match self.thread.join() {
            // Whoever read our pipe has seen enough.
            Ok(Err(error)) if sink::reader_is_gone(&error) => Ok(()),
            Ok(written) => written.context("cannot write reports"),
            Err(_) => anyhow::bail!("the analyst's thread failed; its message stands above"),
        }
    }
}

fn work(mut analyst: Analyst, jobs: &Receiver<Job>) -> io::Result<Analyst> {
    loop {
        match jobs.recv_timeout(REST_AFTER) {
            Ok(job) => analyst.handle(job, monotonic_ns())?,
            Err(RecvTimeoutError::Timeout) => analyst.rest(),
            Err(RecvTimeoutError::Disconnected) => return Ok(analyst),
        }
    }
}
