//! The same run under several arrangements, alternately, to figures by arrangement.

use std::time::Duration;

use anyhow::{Result, ensure};
use profiler_tests::report::ReportExt as _;
use profiler_tests::tracer::{Finished, Tracer};

use crate::paired::{Spread, order};

/// Between a change of the probes and a run: what the kernel does about it later is no part of the run.
pub const SETTLE: Duration = Duration::from_millis(200);

/// A server that has a CPU to itself is kept from it by interrupts and kernel threads only.
const QUIET_PERCENT: f64 = 3.0;

/// Who is watched during a run, and with which options.
#[derive(Debug, Clone, Copy)]
pub enum Arm {
    Nobody,
    Watched(u32, &'static [&'static str]),
}

/// What came out of the runs.
#[derive(Debug)]
pub struct Figures<const N: usize> {
    /// By arm, by figure, a value a round.
    arms: Vec<[Vec<f64>; N]>,
    /// Lines about stalls: there is nothing here that stalls but the machine itself.
    pub stalls: usize,
}

impl<const N: usize> Figures<N> {
    /// One figure of one arm, a value a round.
    pub fn of(&self, arm: usize, figure: usize) -> Vec<f64> {
        self.arms.get(arm).and_then(|figures| figures.get(figure)).cloned().unwrap_or_default()
    }

    /// What shows that the machine was not quiet; `waited` is the figure that says in percent how long
    /// the server was kept from its CPU.
    pub fn notes(&self, waited: usize) -> Vec<String> {
        let all: Vec<f64> = (0..self.arms.len()).flat_map(|arm| self.of(arm, waited)).collect();
        let spread = Spread::of(&all).filter(|spread| spread.high > QUIET_PERCENT);
        let busy = spread.map(|Spread { low, median, high }| {
            format!(
                "the server was kept from its CPU for {median:.0} % of its time ({low:.0} … {high:.0}): \
                 these are figures of a busy machine"
            )
        });
        busy.into_iter().chain(about_stalls(self.stalls)).collect()
    }
}

/// What to say about stalls that were reported of programs that do not stall.
pub fn about_stalls(lines: usize) -> Option<String> {
    let what = "lines about stalls meanwhile: the machine was busy with something else";
    (lines > 0).then(|| format!("{lines} {what}"))
}

/// Runs once under each arm in each round. `run` returns the round's figures.
pub fn alternate<const N: usize>(
    rounds: usize,
    arms: &[Arm],
    mut run: impl FnMut() -> Result<[f64; N]>,
) -> Result<Figures<N>> {
    let mut all = vec![[const { Vec::new() }; N]; arms.len()];
    let mut stalls = 0;
    for round in 0..rounds {
        for index in order(round, arms.len()) {
            let (Some(arm), Some(figures)) = (arms.get(index), all.get_mut(index)) else {
                continue;
            };
            let tracer = match arm {
                Arm::Nobody => None,
                Arm::Watched(pid, options) => Some(Tracer::attach(*pid, options)?.0),
            };
            std::thread::sleep(SETTLE);
            let values = run()?;
            if let Some(tracer) = tracer {
                stalls += detach(tracer)?;
            }
            for (figure, value) in figures.iter_mut().zip(values) {
                figure.push(value);
            }
        }
    }
    Ok(Figures { arms: all, stalls })
}

/// Ends a session that must have been in order, and counts its lines about stalls.
pub fn detach(tracer: Tracer) -> Result<usize> {
    let Finished { code, lines, logs, .. } = tracer.interrupt()?;
    ensure!(code == Some(0), "stalltrace ended with {code:?}; its logs:\n{logs}");
    Ok(lines.iter().filter(|arrived| arrived.line.stall().is_some()).count())
}
