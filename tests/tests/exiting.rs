//! An interpreter that ends holds up no loop, though its last one was never closed; a loop that runs in an exit handler can.

use std::process::Command;

use anyhow::{Result, ensure};
use profiler_tests::clock::patience;
use profiler_tests::compare::{Bounds, Observation, compare};
use profiler_tests::lives::broken_contract;
use profiler_tests::noise::NoiseMeter;
use profiler_tests::report::{Report, ReportExt as _};
use profiler_tests::scenario::{THRESHOLD_NS, alone, require_root};
use profiler_tests::target::{Target, folder, system_python};
use profiler_tests::tracer::{Finished, Tracer};

fn start(kind: &str) -> Result<Target> {
    let mut command = Command::new(system_python());
    command.arg(folder().join("exiting.py")).args(["--kind", kind]);
    Target::of_ours(command)
}

/// Watches it to its end.
fn watched(target: &Target) -> Result<Finished> {
    let (tracer, _) = Tracer::attach(target.pid(), &[])?;
    target.line_starting("over", patience(10))?;
    tracer.finish()
}

/// It joins a pool's thread or one of its own, or runs an exit handler, each for longer than a threshold.
#[test]
fn an_end_is_no_stall() -> Result<()> {
    require_root()?;
    let _machine = alone();
    for kind in ["pool", "thread", "handler"] {
        let finished = watched(&start(kind)?)?;
        let stalls: Vec<_> = finished.lines.iter().filter_map(|it| it.line.stall()).collect();
        ensure!(stalls.is_empty(), "{kind}: {stalls:#?}");
    }
    Ok(())
}

#[test]
fn a_loop_in_an_exit_handler_is_one() -> Result<()> {
    require_root()?;
    let _machine = alone();
    let target = start("looping")?;
    let noise = NoiseMeter::start();
    let (tracer, begin) = Tracer::attach(target.pid(), &[])?;
    let finished = tracer.finish()?;
    let truths = target.truths()?;
    ensure!(truths.len() == 1, "odd target: {truths:?}");
    let told = finished.lines.iter().filter_map(|arrived| match &arrived.line {
        Report::StallEnd(end) => Some(end),
        _ => None,
    });
    let of_it = told.filter(|end| {
        end.culprit.as_ref().is_some_and(|culprit| {
            culprit.function.as_deref() == truths[0].function.as_deref()
                && truths[0].blocks_at(culprit.line)
        })
    });
    ensure!(of_it.count() == 1, "{:#?}", finished.lines);
    let bounds = Bounds { threshold_ns: THRESHOLD_NS, noise_ns: noise.allowance_ns() };
    let (lines, from_ns) = (&finished.lines, begin.at_ns);
    let until_ns = truths[0].end_ns;
    let verdict = compare(Observation { truths: &truths, lines, from_ns, until_ns }, bounds);
    ensure!(verdict.confirmed == 1, "{verdict}");
    let broken = broken_contract(lines);
    ensure!(broken.is_empty(), "{broken:?}");
    Ok(())
}
