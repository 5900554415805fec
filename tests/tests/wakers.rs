//! A loop that waits in a blocking call for another thread or process: whose system call ended the wait.
//!
//! Read from the log: what a report makes of it is tested where the report does.

use anyhow::{Context as _, Result, ensure};
use profiler_tests::scenario::alone;
use profiler_tests::turns::{self, Watched, script};
use serde::Deserialize;

/// One wait, in the target's own words.
#[derive(Debug, Deserialize)]
struct Waited {
    kind: String,
    start_ns: u64,
    end_ns: u64,
    pid: Option<u32>,
    tid: Option<u32>,
    syscall: Option<String>,
}

/// One line of the log about the end of a wait.
#[derive(Debug)]
struct Woken {
    at_ns: u64,
    pid: u32,
    tid: u32,
    syscall: u64,
}

impl Woken {
    /// Out of `… a wait is over at_ns=9 pid=7 tid=8 name="x" syscall=1 …`
    fn parse(line: &str) -> Option<Self> {
        let (_, fields) = line.split_once("a wait is over")?;
        let field = |name: &str| -> Option<u64> {
            let value = fields.split_whitespace().find_map(|field| field.strip_prefix(name));
            value?.strip_prefix('=')?.parse().ok()
        };
        Some(Self {
            at_ns: field("at_ns")?,
            pid: u32::try_from(field("pid")?).ok()?,
            tid: u32::try_from(field("tid")?).ok()?,
            syscall: field("syscall")?,
        })
    }
}

/// The number of a system call on x86-64.
fn number(name: &str) -> Option<u64> {
    let numbers = [("write", 1), ("sendto", 44), ("exit", 60), ("flock", 73), ("exit_group", 231)];
    numbers.into_iter().find(|(known, _)| *known == name).map(|(_, number)| number)
}

/// None of the waits is for one; but back from it, the thread may have to wait for the interpreter's lock.
const FUTEX: u64 = 202;

/// Each wait is ended by whom the target says, and the sleep by nobody.
#[test]
fn who_ended_a_wait() -> Result<()> {
    let _machine = alone();
    let watched: Watched<Waited> = turns::watch(script("wakers.py", &[]), &["-vv"], "waited")?;
    let Watched { turns: waits, finished, .. } = watched;
    let wakes: Vec<Woken> = finished.logs.lines().filter_map(Woken::parse).collect();
    ensure!(waits.len() == 6, "{} waits", waits.len());
    for Waited { kind, start_ns, end_ns, pid, tid, syscall } in &waits {
        let during = start_ns..end_ns;
        let is_in_it = |wake: &&Woken| during.contains(&&wake.at_ns) && wake.syscall != FUTEX;
        let ends: Vec<&Woken> = wakes.iter().filter(is_in_it).collect();
        println!("{kind}: {ends:?}");
        let Some((pid, tid)) = pid.zip(*tid) else {
            ensure!(ends.is_empty(), "{kind} was ended by {ends:?}");
            continue;
        };
        let last = ends.last().with_context(|| format!("nobody ended {kind}"))?;
        ensure!((last.pid, last.tid) == (pid, tid), "{kind}: {last:?} instead of {pid} {tid}");
        let expected = syscall.as_deref().and_then(number);
        ensure!(Some(last.syscall) == expected, "{kind}: {last:?} instead of {syscall:?}");
    }
    Ok(())
}
