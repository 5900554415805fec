//! How long it takes from the command to the first line, on processes with one thread and with thousands.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::clock::patience;
use crate::report::Report;
use crate::target::{Target, folder, system_python};
use crate::tracer::Tracer;

/// So many threads sleep beside an idle loop, or beside one that turns all the time.
pub fn target_with(threads: u32, options: &[&str]) -> Result<Target> {
    let mut command = Command::new(system_python());
    command.arg(folder().join("many_threads.py")).arg(threads.to_string()).args(options);
    let target = Target::program(command)?;
    target.line_starting("ready", patience(60))?;
    Ok(target)
}

pub fn is_start(line: &Report) -> bool {
    matches!(line, Report::SessionStart(_))
}

/// From the command to the first line; the session has ended in order when this returns.
pub fn time_to_attach(pid: u32) -> Result<Duration> {
    let before = Instant::now();
    let tracer = Tracer::spawn(pid, &[])?;
    let start = tracer.wait_for(is_start, patience(120));
    let took = before.elapsed();
    let finished = tracer.interrupt()?;
    start.with_context(|| finished.logs.clone())?;
    ensure!(finished.code == Some(0), "exit code {:?}\n{}", finished.code, finished.logs);
    Ok(took)
}
