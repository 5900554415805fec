//! The same run under several arrangements, alternately, to figures by arrangement.

use std::time::Duration;

use anyhow::{Result, ensure};
use profiler_tests::tracer::{Finished, Tracer};

use crate::paired::order;

/// Between a change of the probes and a run: what the kernel does about it later is no part of the run.
pub const SETTLE: Duration = Duration::from_millis(200);

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

    /// What to say about stalls that were reported.
    pub fn note(&self) -> Option<String> {
        (self.stalls > 0).then(|| {
            format!(
                "{} lines about stalls meanwhile: the machine is busy with something else",
                self.stalls
            )
        })
    }
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
