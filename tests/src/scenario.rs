//! Plays one session: attach, traffic, the stalls that are asked for, detach; and judges it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nix::unistd::geteuid;

use crate::clock::{MILLISECOND, monotonic_ns, slowdown};
use crate::compare::{Bounds, Observation, Verdict, compare};
use crate::lives::broken_contract;
use crate::load::{Client, Traffic};
use crate::noise::NoiseMeter;
use crate::report::Arrived;
use crate::target::Target;
use crate::tracer::{Finished, Tracer};
use crate::truth::Truth;

/// stalltrace's own default.
pub const THRESHOLD_NS: u64 = 100 * MILLISECOND;
/// Between two stalls, so that the first one's backlog is no part of the second.
const BREATH: Duration = Duration::from_millis(250);
const HEALTHY_INTERVAL: Duration = Duration::from_millis(20);
const HEALTHY_CONNECTIONS: usize = 16;

/// Lets one test at a time use the machine: two would be each other's noise.
pub fn alone() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    // A test that failed has left the machine in order: its guards have run.
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What these tests cannot do without.
pub fn require_root() -> Result<()> {
    ensure!(geteuid().is_root(), "these tests load probes into the kernel: run them as root");
    Ok(())
}

/// One session, judged.
#[derive(Debug)]
pub struct Played {
    pub finished: Finished,
    pub truths: Vec<Truth>,
    pub verdict: Verdict,
}

impl Played {
    /// An error that says everything, unless everything was right.
    pub fn must_be_right(&self) -> Result<()> {
        let Finished { code, unreadable, logs, .. } = &self.finished;
        if *code != Some(0) || !unreadable.is_empty() || !self.verdict.is_right() {
            bail!("{}\nexit code {code:?}\n{unreadable:#?}\nlogs:\n{logs}", self.verdict);
        }
        println!("{}", self.verdict);
        ensure!(self.verdict.is_enough(), "the machine had no CPU for a test: {}", self.verdict);
        Ok(())
    }
}

/// Attaches, requests each path in turn under healthy traffic, detaches with Ctrl-C.
pub fn play(target: &Target, paths: &[String]) -> Result<Played> {
    observe(target, || act(target, paths))
}

/// The same with lines as they are by default.
pub fn play_plainly(target: &Target, paths: &[String]) -> Result<Played> {
    let attach = || Tracer::attach_plainly(target.loop_pid(), &[]);
    observe_by(attach, target, || act(target, paths))
}

fn act(target: &Target, paths: &[String]) -> Result<Vec<Truth>> {
    // What is healthy for a usual machine would keep a slower one busy by itself.
    let interval = HEALTHY_INTERVAL * slowdown();
    let traffic = Traffic::start(target.port(), "/", interval, HEALTHY_CONNECTIONS)?;
    let mut client = Client::connect(target.port())?;
    for path in paths {
        std::thread::sleep(BREATH);
        client.get(path)?;
    }
    std::thread::sleep(BREATH);
    traffic.finish()?;
    Ok(Vec::new())
}

/// Attaches, does what `act` does, detaches with Ctrl-C. `act` returns what it recorded itself; what the
/// target recorded is added to it.
pub fn observe(target: &Target, act: impl FnOnce() -> Result<Vec<Truth>>) -> Result<Played> {
    observe_process(target, target.loop_pid(), act)
}

/// The same for a process that the target has started, such as its worker.
pub fn observe_process(
    target: &Target,
    pid: u32,
    act: impl FnOnce() -> Result<Vec<Truth>>,
) -> Result<Played> {
    observe_by(|| Tracer::attach(pid, &[]), target, act)
}

fn observe_by(
    attach: impl FnOnce() -> Result<(Tracer, Arrived)>,
    target: &Target,
    act: impl FnOnce() -> Result<Vec<Truth>>,
) -> Result<Played> {
    require_root()?;
    let noise = NoiseMeter::start();
    let (tracer, start) = attach()?;
    let acted = act();
    std::thread::sleep(BREATH);
    let until_ns = monotonic_ns();
    let finished = tracer.interrupt()?;
    let mut truths = acted?;
    truths.extend(target.truths()?);
    let bounds = Bounds { threshold_ns: THRESHOLD_NS, noise_ns: noise.allowance_ns() };
    let (lines, from_ns) = (&finished.lines, start.at_ns);
    let seen = Observation { truths: &truths, lines, from_ns, until_ns };
    let mut verdict = compare(seen, bounds);
    verdict.failures.extend(broken_contract(lines));
    Ok(Played { finished, truths, verdict })
}

/// Every path at every duration in ms, in turn.
pub fn each(paths: &[&str], durations_ms: &[u64]) -> Vec<String> {
    let at = |ms: &u64| paths.iter().map(move |path| format!("{path}?ms={ms}")).collect::<Vec<_>>();
    durations_ms.iter().flat_map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::each;

    /// All paths at one duration before any at the next.
    #[test]
    fn paths_come_in_rounds() {
        assert_eq!(each(&["/a", "/b"], &[1, 2]), ["/a?ms=1", "/b?ms=1", "/a?ms=2", "/b?ms=2"]);
    }
}
