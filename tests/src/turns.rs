//! Has a program play turns one after another while something is done to it, and reports beside each what it said itself.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::clock::patience;
use crate::lives::broken_contract;
use crate::report::StallLine;
use crate::scenario::require_root;
use crate::target::{Target, folder, system_python};
use crate::tracer::{Finished, Tracer};

/// One turn, in the target's own words. Times in ns, of `CLOCK_MONOTONIC` where they are moments.
#[derive(Debug, Clone, Copy)]
pub struct Played {
    pub start_ns: u64,
    pub end_ns: u64,
    /// CPU time of its thread.
    pub cpu_ns: u64,
}

impl Played {
    pub fn duration_ns(&self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns)
    }

    /// In which it was on no CPU.
    pub fn off_cpu_ns(&self) -> u64 {
        self.duration_ns().saturating_sub(self.cpu_ns)
    }

    /// The stall that was reported of it.
    pub fn stall<'a>(&self, finished: &'a Finished) -> Option<&'a StallLine> {
        finished
            .ends()
            .find(|end| end.stall.start_monotonic_ns < self.end_ns && end.end_ns() > self.start_ns)
    }
}

/// The program `around.py` with these turns.
pub fn around(turns: &[&str]) -> Command {
    let mut command = Command::new(system_python());
    command.arg(folder().join("around.py")).args(turns);
    command
}

/// Starts it, has `prepare` see its process, attaches, and plays `count` turns; in each `act` is called
/// once it has begun. Returns with the reports once it has ended by itself.
pub fn play(
    command: Command,
    count: usize,
    prepare: impl FnOnce(&Target) -> Result<()>,
    act: impl Fn(&Target) -> Result<()>,
) -> Result<(Vec<Played>, Finished)> {
    require_root()?;
    let target = Target::program(command)?;
    target.line_starting("ready", patience(10))?;
    prepare(&target)?;
    let (tracer, _) = Tracer::attach(target.pid(), &[])?;
    target.signal(Signal::SIGUSR1)?;
    let mut played = Vec::new();
    for _ in 0..count {
        target.line_starting("begun", patience(10))?;
        act(&target)?;
        let line = target.line_starting("done", patience(30))?;
        let words: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        let &[start_ns, end_ns, cpu_ns] = &words[..] else { anyhow::bail!("odd line {line:?}") };
        played.push(Played { start_ns, end_ns, cpu_ns });
    }
    let finished = tracer.finish().context("stalltrace outlives its target")?;
    let broken = broken_contract(&finished.lines);
    ensure!(broken.is_empty(), "{broken:?}\n{}", finished.logs);
    ensure!(finished.unreadable.is_empty(), "{:?}", finished.unreadable);
    Ok((played, finished))
}

/// Lets it be.
pub fn nothing(_target: &Target) -> Result<()> {
    Ok(())
}

/// A moment in which a turn comes under suspicion.
pub fn let_it_begin() {
    std::thread::sleep(Duration::from_millis(150));
}
