//! What the event path knows of one attached process.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::followed::Followed;
use super::shown::Shown;
use super::slotless::Slotless;
use super::statistics::Statistics;
use super::workers::Workers;
use crate::holders::{HolderSearch, Outside};
use crate::process::TargetMemory;
use crate::process::environment::EnvironmentWatch;
use crate::process::target::Target;
use crate::runtime::runtimes::Runtimes;
use crate::source::EventSource;

/// The event path. Generic over its two doors.
#[allow(missing_debug_implementations, reason = "the source has none")]
pub struct Session<S, M> {
    pub source: S,
    pub(super) memory: M,
    pub(super) target: Arc<Target>,
    pub(super) runtimes: Runtimes,
    pub(super) holders: HolderSearch,
    pub(super) threshold_ns: u64,
    pub(super) loops: BTreeMap<u32, Followed>,
    /// Turns of loops whose threads have exited.
    pub(super) turns_of_gone: u64,
    pub(super) suspected_ns: u64,
    /// Why running threads cannot be sampled, if they cannot.
    pub(super) ticks_refused: Option<String>,
    pub(super) workers: Workers,
    pub(super) shown: Shown,
    pub(super) slotless: Slotless,
    /// Where they are wanted.
    pub(super) statistics: Option<Statistics>,
    pub(super) environment: EnvironmentWatch,
}

impl<S: EventSource, M: TargetMemory> Session<S, M> {
    pub fn new(
        source: S,
        memory: M,
        target: Arc<Target>,
        runtimes: Runtimes,
        threshold_ns: u64,
    ) -> Self {
        let mut session = Self {
            environment: EnvironmentWatch::new(target.pid()),
            source,
            memory,
            target,
            runtimes: Runtimes::default(),
            holders: HolderSearch::default(),
            threshold_ns,
            loops: BTreeMap::new(),
            turns_of_gone: 0,
            suspected_ns: 0,
            ticks_refused: None,
            workers: Workers::default(),
            shown: Shown::default(),
            slotless: Slotless::default(),
            statistics: None,
        };
        session.use_runtimes(runtimes);
        session
    }

    /// Tells, of every stall, where all other threads were as well.
    pub fn watch_all_threads(&mut self) {
        self.holders.want_everyone();
    }

    /// Runtimes have turned up.
    pub fn use_runtimes(&mut self, newer: Runtimes) {
        self.runtimes.take_over(newer);
        if let Some(lock) = self.runtimes.hidden_lock() {
            self.holders.want_holders_of(lock);
        }
        self.loops.values_mut().for_each(Followed::search_again);
    }

    /// Turns of all loops so far.
    pub fn turns(&self) -> u64 {
        let present: u64 = self.loops.values().map(|followed| followed.turns).sum();
        self.turns_of_gone + present
    }

    /// Half the threshold: from here on a turn is suspected.
    pub(super) fn suspect_ns(&self) -> u64 {
        self.threshold_ns / 2
    }

    pub(super) fn followed(&mut self, tid: u32) -> &mut Followed {
        let threshold_ns = self.threshold_ns;
        self.loops.entry(tid).or_insert_with(|| Followed::new(threshold_ns))
    }

    /// Who is to blame, and what looking for that takes.
    pub(super) fn outside(&mut self) -> (&mut HolderSearch, Outside<'_, S, M>) {
        let outside = Outside {
            source: &mut self.source,
            memory: &self.memory,
            target: &self.target,
            runtimes: &mut self.runtimes,
        };
        (&mut self.holders, outside)
    }
}
