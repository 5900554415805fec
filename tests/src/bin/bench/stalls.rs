//! What telling a stall costs: the daemon's CPU, the target's waiting for it, and how late the first word comes.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use profiler_tests::load::Client;
use profiler_tests::report::{Arrived, CauseKind, Report, ReportExt as _, StallLine};
use profiler_tests::target::Target;
use profiler_tests::tracer::Tracer;

use crate::cpu::{Given, allowed};
use crate::table::{Aim, Compare, Measured, Row};

/// One stall of each kind, by the path of its request: on a CPU, asleep, in a socket, a file, a lock.
const ROUND: [&str; 5] = ["regex", "sleep", "upstream", "file", "lock"];
const STALL_MS: u32 = 250;

/// Rounds before anything is measured: what is read once has been read.
const WARM_UP: usize = 3;

/// Between two stalls: the lines of one are made after its end.
const APART: Duration = Duration::from_millis(150);

/// What one arrangement came to, a value a round.
#[derive(Debug, Default)]
struct Figures {
    cpu_ms: Vec<f64>,
    /// The latest first word of the round, after the threshold.
    late_ms: Vec<f64>,
    /// Of the time in which the target had no CPU, in percent.
    share: Vec<f64>,
}

pub fn measure(rounds: usize) -> Result<Measured> {
    let idle = arrangement(rounds, 0)?;
    let crowded = arrangement(rounds, allowed())?;
    let row = |what: &str, unit, on, most| Row {
        what: what.to_owned(),
        unit,
        off: Vec::new(),
        on,
        compare: Compare::Alone,
        aim: Some(Aim::AtMost(most)),
    };
    let rows = vec![
        row("CPU a stall", "ms", idle.cpu_ms, 2.0),
        row("the latest first word of a round, after the threshold", "ms", idle.late_ms, 50.0),
        row("CPU a stall, where every CPU is busy", "ms", crowded.cpu_ms, 2.0),
        row("the latest first word there", "ms", crowded.late_ms, 50.0),
        row("the daemon's share of the waiting for a CPU there", "%", crowded.share, 0.5),
    ];
    let meaning = "an asyncio service that stalls in five ways by turns";
    Ok(Measured { meaning, rows, notes: Vec::new() })
}

/// Ends with its owner.
fn spinning_program() -> Result<Target> {
    let mut command = Command::new("sh");
    command.args(["-c", "while :; do :; done"]);
    Target::program(command)
}

/// The service beside so many programs that spin.
fn arrangement(rounds: usize, spinning: usize) -> Result<Figures> {
    let service = Target::service()?;
    let _crowd = (0..spinning).map(|_| spinning_program()).collect::<Result<Vec<_>>>()?;
    let (tracer, _) = Tracer::attach_plainly(service.pid(), &[])?;
    let mut client = Client::connect(service.port())?;
    let mut ranges = Vec::new();
    let mut figures = Figures::default();
    for round in 0..WARM_UP + rounds {
        let before = Given::to(tracer.pid())?;
        for path in ROUND {
            let stall = client.get(&format!("/{path}?ms={STALL_MS}"))?;
            std::thread::sleep(APART);
            if round >= WARM_UP {
                ranges.push((stall.sent_ns, stall.answered_ns));
            }
        }
        let used_ns = Given::to(tracer.pid())?.since(before).running_ns;
        if round >= WARM_UP {
            figures.cpu_ms.push(used_ns as f64 / 1e6 / ROUND.len() as f64);
        }
    }
    let daemon = tracer.pid();
    let finished = tracer.interrupt()?;
    ensure!(finished.code == Some(0), "exit code {:?}\n{}", finished.code, finished.logs);
    for round in ranges.chunks(ROUND.len()) {
        let told: Vec<_> = round.iter().flat_map(|range| told(&finished.lines, *range)).collect();
        let late = told.iter().filter_map(|arrived| lateness_ms(arrived));
        figures.late_ms.push(late.fold(0.0, f64::max));
        let ends = told.iter().filter_map(|arrived| match &arrived.line {
            Report::StallEnd(end) => Some(&**end),
            _ => None,
        });
        let (mut ours, mut all) = (0, 0);
        for end in ends {
            ours += taken_by(daemon, end);
            all += end.stall.time.runnable_ns;
        }
        ensure!(all > 0 || spinning == 0, "nobody waited for a CPU");
        figures.share.push(100.0 * ours as f64 / all.max(1) as f64);
    }
    let stalls = finished.ends().count();
    ensure!(stalls >= (WARM_UP + rounds) * ROUND.len(), "only {stalls} stalls were told");
    Ok(figures)
}

/// The lines about what happened during a request.
fn told(lines: &[Arrived], (sent_ns, answered_ns): (u64, u64)) -> Vec<&Arrived> {
    let is_of = |arrived: &&Arrived| {
        let stall = arrived.line.stall().map(|stall| stall.stall.start_monotonic_ns);
        stall.is_some_and(|start_ns| (sent_ns..answered_ns).contains(&start_ns))
    };
    lines.iter().filter(is_of).collect()
}

/// How long after the threshold a first word came.
fn lateness_ms(arrived: &Arrived) -> Option<f64> {
    let Report::StallOpen(open) = &arrived.line else { return None };
    let due_ns = open.stall.start_monotonic_ns + open.stall.threshold_ns;
    Some(arrived.at_ns.saturating_sub(due_ns) as f64 / 1e6)
}

/// For how long a process had the CPU that a stall's thread waited for.
fn taken_by(pid: u32, end: &StallLine) -> u64 {
    let parts = end.cause.also.iter().map(|part| &part.kind);
    let lists = std::iter::once(&end.cause.kind).chain(parts).filter_map(|kind| match kind {
        CauseKind::RunQueue { preempted_by, .. } => preempted_by.as_ref(),
        _ => None,
    });
    lists.flatten().filter(|one| one.pid == pid).map(|one| one.time_ns).sum()
}
