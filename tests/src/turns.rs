//! Has a program play turns while it is watched, and gives what it said of each beside what was reported.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;

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
        finished.stall_in(self.start_ns, self.end_ns)
    }
}

/// One of the sample programs in Python.
pub fn script(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(system_python());
    command.arg(folder().join(name)).args(arguments);
    command
}

/// The program `around.py` with these turns.
pub fn around(turns: &[&str]) -> Command {
    script("around.py", turns)
}

/// A program that was watched until it ended by itself.
#[derive(Debug)]
pub struct Watched<T> {
    pub target: Target,
    /// What it wrote of each of its turns.
    pub turns: Vec<T>,
    pub finished: Finished,
}

/// Starts a program, attaches, and has it go on until it ends.
pub fn run(command: Command, options: &[&str]) -> Result<(Target, Finished)> {
    require_root()?;
    let target = Target::program(command)?;
    target.line_starting("ready", patience(60))?;
    let (tracer, _) = Tracer::attach(target.pid(), options)?;
    target.signal(Signal::SIGUSR1)?;
    let finished = tracer.finish().context("stalltrace outlives its target")?;
    let broken = broken_contract(&finished.lines);
    ensure!(broken.is_empty(), "{broken:?}\n{}", finished.logs);
    ensure!(finished.unreadable.is_empty(), "{:?}", finished.unreadable);
    Ok((target, finished))
}

/// The same of a program that prints each turn as JSON behind `word`.
pub fn watch<T: DeserializeOwned>(
    command: Command,
    options: &[&str],
    word: &str,
) -> Result<Watched<T>> {
    let (target, finished) = run(command, options)?;
    let mut turns = Vec::new();
    while let Ok(line) = target.line_starting(word, patience(0)) {
        let text = line.trim_start_matches(word);
        turns.push(serde_json::from_str(text).with_context(|| line.clone())?);
    }
    Ok(Watched { target, turns, finished })
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
    target.line_starting("ready", patience(60))?;
    prepare(&target)?;
    let (tracer, _) = Tracer::attach(target.pid(), &[])?;
    target.signal(Signal::SIGUSR1)?;
    let mut played = Vec::new();
    for _ in 0..count {
        target.line_starting("begun", patience(60))?;
        act(&target)?;
        let line = target.line_starting("done", patience(60))?;
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
