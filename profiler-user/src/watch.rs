//! `attach`: a process identifier to a stream of reports, until the target exits or somebody says stop.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::alarm::Alarm;
use crate::attached;
use crate::cli::AttachArguments;
use crate::clock::monotonic_ns;
use crate::config::Config;
use crate::detected::Detected;
use crate::job::{Ending, Job};
use crate::lookout::Lookout;
use crate::process::live::LiveMemory;
use crate::process::target::Target;
use crate::queue::{Queue, Reader};
use crate::report::schema::session::EndReason;
use crate::session::Session;
use crate::source::EventSource;
use crate::source::kernel::KernelSource;
use crate::start::{self, Begun};
use crate::stop::{Stop, exit_of, readable};
use crate::succession::{self, Pace};
use crate::turn::tracker;
use crate::whom;

/// The duration counts from the first line on, or from this long after attaching, whether or not anybody reads that.
const FIRST_LINE_WITHIN: Duration = Duration::from_secs(1);

/// Between two looks at most, so that another program is noticed soon.
const LONGEST_PAUSE_NS: u64 = 100_000_000;

/// Attaches and watches; returns how the program should exit.
pub fn attach(arguments: &AttachArguments, verbose: u8) -> anyhow::Result<ExitCode> {
    let config = Config::new(arguments, verbose)?;
    let pid = whom::to_attach_to(arguments)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(pid, &config))
}

async fn run(pid: u32, config: &Config) -> anyhow::Result<ExitCode> {
    let mut stop = Stop::new(config.duration)?;
    let begun = tokio::select! {
        biased;
        // A signal that arrives while attaching still detaches cleanly.
        _ = stop.asked() => return Ok(ExitCode::SUCCESS),
        begun = start::attach(pid, config) => begun?,
    };
    let Begun { session, target, facts, start, warm_up, lookout } = begun;
    attached::log(&facts, &start);
    let mut queue = Queue::open(Arc::clone(&target), facts, config);
    stop.reopens = config.output.file.is_some().then(|| queue.outbox.clone());
    stop.count_from(FIRST_LINE_WITHIN);
    let mut jobs = vec![Job::Begin { start: Box::new(start), warm_up }];
    let mut watched = Watched { session, target, lookout, from_ns: monotonic_ns(), unread: 0 };
    let mut pace = Pace::default();
    let (ending, failed, over_at) = loop {
        let reason = watched.until_over(&mut queue, &mut jobs, &mut stop).await?;
        let over_at = Instant::now();
        let executed_ns = watched.session.source.executed_ns();
        let (target, ending) = watched.end(reason, &mut jobs);
        if reason != EndReason::Executed {
            break (Some(ending), None, over_at);
        }
        jobs.push(queue.gave_way(ending));
        queue.hand_over(&mut jobs);
        // Once the process has exited, its number may be another's.
        if pace.wait(&target, &mut stop).await? || target.has_exited() {
            break (None, None, Instant::now());
        }
        let begun = tokio::select! {
            biased;
            _ = stop.asked() => break (None, None, Instant::now()),
            begun = start::attach(pid, config) => begun,
        };
        let begun = match begun {
            Ok(begun) => begun,
            Err(error) => {
                break (None, Some(error).filter(|_| !target.has_exited()), Instant::now());
            }
        };
        let Begun { session, target, facts, mut start, warm_up, lookout } = begun;
        watched = Watched { session, target, lookout, from_ns: monotonic_ns(), unread: 0 };
        start.gaps.extend(executed_ns.map(|at_ns| succession::unseen(at_ns, watched.from_ns)));
        jobs.push(queue.successor(Arc::clone(&watched.target), facts));
        jobs.push(Job::Begin { start: Box::new(start), warm_up });
    };
    // The kernel may take long to take everything back: half of the time is left for the lines in any case.
    let half_by = Instant::now() + config.leave_within / 2;
    let leave_by = half_by.max(over_at + config.leave_within * 9 / 10);
    let (tell, closed) = oneshot::channel();
    std::thread::spawn(move || tell.send(queue.close(jobs, ending, leave_by)));
    stop.forget_duration();
    tokio::select! {
        unwritten = closed => {
            let code = left(unwritten??);
            failed.map_or(Ok(code), Err)
        }
        _ = stop.asked() => anyhow::bail!("stopped by a second signal: the last lines may be missing"),
    }
}

/// Says what is missing from the output, if anything is.
fn left(unwritten: u64) -> ExitCode {
    if unwritten == 0 {
        return ExitCode::SUCCESS;
    }
    let lines = if unwritten == 1 { "1 line".to_owned() } else { format!("{unwritten} lines") };
    eprintln!(
        "stalltrace: {lines} could not be written: the output takes them too slowly, or has no room"
    );
    ExitCode::FAILURE
}

/// A process that is watched for as long as it runs one program.
struct Watched {
    session: Session<KernelSource, LiveMemory>,
    target: Arc<Target>,
    lookout: Option<Lookout>,
    from_ns: u64,
    /// Samples that were let go, because the memory they are read from was another program's by then.
    unread: u64,
}

impl Watched {
    /// Watches until there is a reason not to.
    async fn until_over(
        &mut self,
        queue: &mut Queue,
        jobs: &mut Vec<Job>,
        stop: &mut Stop,
    ) -> anyhow::Result<EndReason> {
        let exit = exit_of(&self.target)?;
        let mut alarm = Alarm::new()?;
        let records = readable(self.session.source.wakes()?)?;
        loop {
            if self.target.has_exited() {
                return Ok(EndReason::TargetExited);
            }
            let next_ns = self.look(queue, jobs)?;
            if self.session.source.executed_ns().is_some() {
                self.drop_unread(jobs);
                return Ok(EndReason::Executed);
            }
            if queue.hand_over(jobs) == Reader::Gone {
                return Ok(EndReason::Detached);
            }
            let pause_ns = next_ns.saturating_sub(monotonic_ns()).min(LONGEST_PAUSE_NS);
            let started = async {
                match &mut queue.started {
                    Some(started) => _ = started.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                rung = alarm.after(Duration::from_nanos(pause_ns)) => rung?,
                // The look reads them all.
                woken = records.readable() => woken?.clear_ready(),
                _ = exit.readable() => {}
                () = started => {
                    queue.started = None;
                    stop.count_from(Duration::ZERO);
                }
                reason = stop.asked() => return Ok(reason),
            }
        }
    }

    /// Looks once; returns when to look next.
    fn look(&mut self, queue: &Queue, jobs: &mut Vec<Job>) -> anyhow::Result<u64> {
        let Self { session, lookout, .. } = self;
        let now_ns = monotonic_ns();
        if let Some(Detected { runtimes, facts, .. }) = lookout.as_ref().and_then(Lookout::news) {
            if let Some(interpreter) = runtimes.interpreter() {
                session.source.set_python_layout(interpreter.layout())?;
            }
            session.use_runtimes(runtimes);
            jobs.push(Job::Program(Box::new(facts)));
        }
        for verdict in queue.verdicts.try_iter() {
            session.learn(&verdict, now_ns, jobs);
        }
        session.search_workers(now_ns, jobs)?;
        Ok(session.step(now_ns, jobs))
    }

    /// Some of what was read just now may be another program's.
    fn drop_unread(&mut self, jobs: &mut Vec<Job>) {
        let before = jobs.len();
        jobs.retain(Job::is_line);
        self.unread += (before - jobs.len()) as u64;
    }

    /// Closes what is open, and detaches.
    fn end(mut self, reason: EndReason, jobs: &mut Vec<Job>) -> (Arc<Target>, Ending) {
        let why = match reason {
            EndReason::TargetExited => "the target exited",
            EndReason::Executed => tracker::EXECUTED,
            EndReason::DurationOver => "the session's duration is over",
            EndReason::Signal | EndReason::Detached => "stalltrace detached",
        };
        self.session.finish(why, monotonic_ns(), jobs);
        if self.session.source.executed_ns().is_some() {
            self.drop_unread(jobs);
        }
        let mut losses = self.session.source.losses();
        losses.push(("samples_after_exec", self.unread));
        let watched_ns = monotonic_ns().saturating_sub(self.from_ns);
        let ending = Ending { reason, watched_ns, turns: self.session.turns(), losses };
        // The probes go before the last line is written: who reads it may rely on that.
        (self.target, ending)
    }
}
