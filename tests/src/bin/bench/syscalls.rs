//! A loop of syscalls that nobody watches to what each kind of wait hook costs everybody.

use std::time::Duration;

use anyhow::Result;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::getppid;
use profiler_tests::tracer;

use crate::arms::{Arm, about_stalls, alternate};
use crate::cpu::{Places, on};
use crate::echo::Echo;
use crate::table::{Compare, Measured, Row};

const TRACEPOINT: &[&str] = &["--wait-hooks", "tracepoint"];
const FENTRY: &[&str] = &["--wait-hooks", "fentry"];

/// Calls between two looks at the clock.
const BATCH: u64 = 10_000;

pub fn measure(rounds: usize, run: Duration) -> Result<Measured> {
    let places = Places::find()?;
    let other = Echo::start()?;
    let mut arms = vec![Arm::Nobody, Arm::Watched(other.pid(), TRACEPOINT)];
    let mut names = vec!["tracepoint hooks"];
    let mut notes = Vec::new();
    match refusal(other.pid())? {
        None => {
            arms.push(Arm::Watched(other.pid(), FENTRY));
            names.push("fentry hooks");
        }
        Some(reason) => notes.push(format!("fentry: refused here ({reason})")),
    }
    let figures = alternate(rounds, &arms, || on(places.server, || Ok([ns_per_call(run)?])))?;
    let rows = names.iter().enumerate().map(|(index, name)| Row {
        what: format!("getppid, {name}"),
        unit: "ns/call",
        off: figures.of(0, 0),
        on: figures.of(index + 1, 0),
        compare: Compare::Difference,
        aim: None,
    });
    let rows = rows.collect();
    notes.extend(about_stalls(figures.stalls));
    Ok(Measured {
        meaning: "off: nobody is watched; on: another process is, by those hooks",
        rows,
        notes,
    })
}

/// Why this machine has no fentry, if it has none.
fn refusal(pid: u32) -> Result<Option<String>> {
    let pid = pid.to_string();
    let tried = tracer::run(&["attach", &pid, "--wait-hooks", "fentry", "--duration", "1ms"])?;
    if tried.status.success() {
        return Ok(None);
    }
    let words = String::from_utf8_lossy(&tried.stderr);
    let reason = words.lines().find_map(|line| line.split_once("fentry: "));
    Ok(Some(reason.map_or(words.trim(), |(_, reason)| reason).to_owned()))
}

/// CPU time of this thread for each `getppid`: it asks the kernel each time, and does next to nothing there.
fn ns_per_call(run: Duration) -> Result<f64> {
    let used =
        || -> Result<Duration> { Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into()) };
    let before = used()?;
    let mut calls = 0;
    while used()?.saturating_sub(before) < run {
        for _ in 0..BATCH {
            getppid();
        }
        calls += BATCH;
    }
    Ok(used()?.saturating_sub(before).as_nanos() as f64 / calls as f64)
}

#[cfg(test)]
mod tests {
    use super::ns_per_call;
    use std::time::Duration;

    /// A syscall takes more than nothing, and less than ten microseconds.
    #[test]
    fn a_call_takes_time() {
        let ns = ns_per_call(Duration::from_millis(5)).unwrap();
        assert!(ns > 1.0 && ns < 10_000.0, "{ns}");
    }
}
