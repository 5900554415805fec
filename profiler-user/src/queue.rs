//! The analyst's thread, and the bounded queue before it: the event path never waits for either.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::oneshot;

use crate::analyst::Analyst;
use crate::clock::monotonic_ns;
use crate::config::Config;
use crate::job::{Ending, Job, Losses, ParkVerdict, Successor};
use crate::process::target::Target;
use crate::report::facts::SessionFacts;
use crate::sink::outbox::Outbox;
use crate::sink::{self, reader_is_gone};
use crate::turn::Moment;
use crate::urgency::Urgency;

/// With nothing to name for so long, the analyst gives back what it can read again.
const REST_AFTER: Duration = Duration::from_secs(30);

/// Jobs that may wait in the analyst's channel.
const CHANNEL: usize = 1024;

/// Jobs that wait here while the channel is full. Samples beyond this are counted and let go, then lines, those of
/// stalls that still go on first.
const MAX_BACKLOG: usize = 4096;

/// What is left to write at the very end, where making it has taken all the time.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// How often a full channel is tried again at the end.
const RETRY: Duration = Duration::from_millis(2);

/// Whether anybody still reads what we write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    There,
    Gone,
}

/// The session's end of the queue.
#[derive(Debug)]
pub struct Queue {
    channel: SyncSender<Job>,
    backlog: Backlog,
    /// What the analyst lets the session know.
    pub verdicts: Receiver<ParkVerdict>,
    pub outbox: Outbox,
    urgency: Urgency,
    /// Told once, when the session's first line is made.
    pub started: Option<oneshot::Receiver<()>>,
    ending: SyncSender<Ending>,
    /// Once this is set, the analyst leaves out what there is no time for.
    hurry: Arc<OnceLock<Hurry>>,
    /// How the analyst's thread ended, and what it had left out by then.
    ended: Receiver<io::Result<Dropped>>,
}

impl Queue {
    pub fn open(target: Arc<Target>, facts: SessionFacts, config: &Config) -> Self {
        let outbox = Outbox::open(config.output.file.clone());
        let (channel, jobs) = sync_channel(CHANNEL);
        let (tell, verdicts) = sync_channel(CHANNEL);
        let (ending, last) = sync_channel(1);
        let (end, ended) = sync_channel(1);
        let (tell_started, started) = oneshot::channel();
        let hurry = Arc::new(OnceLock::new());
        let urgency = Urgency::default();
        let (config, analysts, hurried) = (config.clone(), outbox.clone(), Arc::clone(&hurry));
        let own = urgency.clone();
        thread::spawn(move || {
            own.begin();
            // Made here, because what names symbols cannot move between threads.
            let sink = sink::open(&config.output, analysts);
            let analyst = Analyst::new(target, facts, config, tell, sink);
            let pace = (&own, &*hurried);
            let _ = end.send(work(analyst, (&jobs, &last), tell_started, pace));
        });
        let backlog = Backlog::default();
        let started = Some(started);
        Self { channel, backlog, verdicts, outbox, urgency, started, ending, hurry, ended }
    }

    /// Never blocks: the target may be frozen, and its next stall does not wait for a slow reader.
    pub fn hand_over(&mut self, jobs: &mut Vec<Job>) -> Reader {
        self.backlog.jobs.extend(jobs.drain(..));
        while let Some(job) = self.backlog.jobs.pop_front() {
            let is_urgent = job.is_urgent();
            match self.channel.try_send(self.backlog.dropped.told(job)) {
                Ok(()) if is_urgent => self.urgency.hurry(),
                Ok(()) => {}
                Err(TrySendError::Full(job)) => {
                    self.backlog.jobs.push_front(job);
                    break;
                }
                Err(TrySendError::Disconnected(_)) => return Reader::Gone,
            }
        }
        self.backlog.shorten(MAX_BACKLOG);
        if self.outbox.failure().is_some() { Reader::Gone } else { Reader::There }
    }

    /// The session is over; another one may follow.
    pub fn gave_way(&mut self, mut ending: Ending) -> Job {
        ending.losses.extend(std::mem::take(&mut self.backlog.dropped).losses());
        Job::GaveWay(Box::new(ending))
    }

    /// From now on it is about another program.
    pub fn successor(&mut self, target: Arc<Target>, facts: SessionFacts) -> Job {
        let (verdicts, receiver) = sync_channel(CHANNEL);
        self.verdicts = receiver;
        Job::Successor(Box::new(Successor { target, facts, verdicts }))
    }

    /// Has all of it written, as far as there is time until then, and the session's last line, if that has not been
    /// written. Returns how many lines are not.
    pub fn close(
        mut self,
        jobs: Vec<Job>,
        ending: Option<Ending>,
        leave_by: Instant,
    ) -> anyhow::Result<u64> {
        let hurry = Hurry::until(leave_by);
        let _ = self.hurry.set(hurry);
        self.urgency.hurry();
        self.backlog.jobs.extend(jobs);
        while let Some(job) = self.backlog.jobs.pop_front() {
            match self.channel.try_send(self.backlog.dropped.told(job)) {
                Ok(()) => {}
                Err(TrySendError::Full(job)) if hurry.has_time_for(&job) => {
                    self.backlog.jobs.push_front(job);
                    thread::sleep(RETRY);
                }
                Err(TrySendError::Full(job)) => self.backlog.dropped.count(&job),
                Err(TrySendError::Disconnected(_)) => break,
            }
        }
        if let Some(mut ending) = ending {
            ending.losses.extend(self.backlog.dropped.losses());
            // Has room for one; an analyst that failed before has hung up, and says why below.
            let _ = self.ending.try_send(ending);
        }
        drop(self.ending);
        drop(self.channel);
        let unmade = match self.ended.recv_timeout(left(leave_by)) {
            // Whoever read our pipe has seen enough.
            Ok(Err(error)) if reader_is_gone(&error) => return Ok(0),
            Ok(ended) => ended.context("cannot write reports")?.lines,
            // At least the last line is missing.
            Err(RecvTimeoutError::Timeout) => 1,
            Err(RecvTimeoutError::Disconnected) => {
                anyhow::bail!("the analyst's thread failed; its message stands above")
            }
        };
        let unwritten = self.outbox.close(leave_by.max(Instant::now() + LAST_WORDS));
        match self.outbox.failure() {
            Some(error) if !reader_is_gone(&error) => Err(error).context("cannot write reports"),
            Some(_) => Ok(0),
            None => Ok(unwritten + unmade + self.backlog.dropped.lines),
        }
    }
}

/// What waits for room in the channel.
#[derive(Debug, Default)]
struct Backlog {
    jobs: VecDeque<Job>,
    dropped: Dropped,
}

impl Backlog {
    /// Lets go of what is worth least, down to so many.
    fn shorten(&mut self, most: usize) {
        let is_passing = |job: &Job| match job {
            Job::Report { due, .. } => due.moment != Moment::End,
            Job::Statistics(_) => true,
            _ => false,
        };
        let is_final = |job: &Job| job.is_line() && !is_passing(job);
        for is_kept in [&Job::is_line as &dyn Fn(&Job) -> bool, &is_final] {
            if self.jobs.len() > most {
                let dropped = &mut self.dropped;
                self.jobs.retain(|job| {
                    let stays = is_kept(job);
                    if !stays {
                        dropped.count(job);
                    }
                    stays
                });
            }
        }
        while self.jobs.len() > most {
            // The others are few, and lines are told by them.
            let is_report = |job: &Job| matches!(job, Job::Report { .. });
            let Some(oldest) = self.jobs.iter().position(is_report) else { return };
            self.jobs.remove(oldest).inspect(|job| self.dropped.count(job));
        }
    }
}

/// What nobody looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Dropped {
    samples: u64,
    lines: u64,
}

impl Dropped {
    fn count(&mut self, job: &Job) {
        let of_its_kind = if job.is_line() { &mut self.lines } else { &mut self.samples };
        *of_its_kind += 1;
    }

    fn losses(self) -> Losses {
        vec![("samples_unread", self.samples), ("lines_unmade", self.lines)]
    }

    /// The job, with what has been lost so far where it makes a line.
    fn told(self, mut job: Job) -> Job {
        match &mut job {
            Job::Report { losses, .. } => losses.extend(self.losses()),
            Job::Statistics(interval) => interval.losses.extend(self.losses()),
            _ => {}
        }
        job
    }
}

/// Until when what is done at the end.
#[derive(Debug, Clone, Copy)]
struct Hurry {
    samples_until: Instant,
    lines_until: Instant,
}

impl Hurry {
    /// Leaves the last part of the time to the last line, which tells what is missing.
    fn until(leave_by: Instant) -> Self {
        let (now, left) = (Instant::now(), left(leave_by));
        Self { samples_until: now + left * 5 / 10, lines_until: now + left * 8 / 10 }
    }

    fn has_time_for(self, job: &Job) -> bool {
        let until = if job.is_line() { self.lines_until } else { self.samples_until };
        Instant::now() < until
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// The analyst's thread.
fn work(
    mut analyst: Analyst,
    (jobs, last): (&Receiver<Job>, &Receiver<Ending>),
    started: oneshot::Sender<()>,
    (urgency, hurry): (&Urgency, &OnceLock<Hurry>),
) -> io::Result<Dropped> {
    let mut started = Some(started);
    let mut skipped = Dropped::default();
    let mut rest_at = Instant::now() + REST_AFTER;
    loop {
        let next = jobs.try_recv().or_else(|_| {
            urgency.rest();
            jobs.recv_timeout(rest_at.saturating_duration_since(Instant::now()))
        });
        match next {
            Ok(job) if hurry.get().is_some_and(|hurry| !hurry.has_time_for(&job)) => {
                skipped.count(&job);
            }
            Ok(job) => {
                let is_named = !matches!(job, Job::Statistics(_));
                analyst.handle(job, monotonic_ns())?;
                // The first job is the first line. Whoever does not listen any more is about to end.
                let _ = started.take().map(|started| started.send(()));
                if is_named {
                    rest_at = Instant::now() + REST_AFTER;
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                analyst.rest();
                rest_at = Instant::now() + REST_AFTER;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let Ok(mut ending) = last.recv() else { return Ok(skipped) };
    for (reason, count) in skipped.losses() {
        let known = ending.losses.iter_mut().find(|(known, _)| *known == reason);
        known.into_iter().for_each(|(_, lost)| *lost += count);
    }
    analyst.finish(&ending, monotonic_ns())?;
    Ok(skipped)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use profiler_ebpf::turn::Turn;

    use super::{Backlog, Dropped, Hurry};
    use crate::environment::Environment;
    use crate::job::Job;
    use crate::turn::contention::Contention;
    use crate::turn::tracker::Due;
    use crate::turn::{End, Moment};

    fn report(tid: u32, moment: Moment) -> Job {
        let due = Due {
            moment,
            turn: Turn::default(),
            at_ns: 0,
            end: End::Seen,
            now: None,
            ready_events: None,
            environment: Environment::default(),
            contention: Contention::default(),
            away: Vec::new(),
            is_work: false,
            gaps: Vec::new(),
        };
        Job::Report { tid, due: Box::new(due), losses: Vec::new() }
    }

    fn sample() -> Job {
        Job::Called { tid: 0, name: String::new() }
    }

    /// Samples go first, then lines about what still goes on, then the oldest.
    #[test]
    fn what_is_let_go() {
        let left = |most| {
            let mut backlog = Backlog::default();
            backlog.jobs.extend([
                report(1, Moment::End),
                sample(),
                report(2, Moment::Open),
                report(3, Moment::End),
            ]);
            backlog.shorten(most);
            let tid = |job: &Job| if let Job::Report { tid, .. } = job { *tid } else { 0 };
            (backlog.jobs.iter().map(tid).collect::<Vec<_>>(), backlog.dropped)
        };
        let dropped = |samples, lines| Dropped { samples, lines };
        assert_eq!(left(4), (vec![1, 0, 2, 3], dropped(0, 0)));
        assert_eq!(left(3), (vec![1, 2, 3], dropped(1, 0)));
        assert_eq!(left(2), (vec![1, 3], dropped(1, 1)));
        assert_eq!(left(1), (vec![3], dropped(1, 2)));
    }

    /// At the end there is time for lines after there is none for samples, and for the last line after that.
    #[test]
    fn hurry() {
        let now = Instant::now();
        let far = now + Duration::from_secs(60);
        let hurry = Hurry { samples_until: now, lines_until: far };
        assert!(!hurry.has_time_for(&sample()) && hurry.has_time_for(&report(1, Moment::End)));
        let hurry = Hurry::until(far);
        assert!(hurry.samples_until < hurry.lines_until && hurry.lines_until < far);
        let over = Hurry::until(now);
        assert!(!over.has_time_for(&report(1, Moment::End)));
    }
}
