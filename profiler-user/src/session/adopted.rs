//! Threads that may be inside a turn, as we come or as they are born, to those that are: the others are let go.

use std::collections::{BTreeMap, BTreeSet};

use profiler_ebpf::record::{CaptureHead, ThreadSnapshot};
use profiler_ebpf::turn::{SINCE_BIRTH, phase};

use super::attachment::Session;
use super::followed::Followed;
use crate::job::Job;
use crate::process::TargetMemory;
use crate::process::frozen::{
    Candidate, Certainty, Evidence, InTurn, in_turn, joins, seed, waiting, waits,
};
use crate::process::target::{Target, WaitDescriptors};
use crate::source::{EventSource, Slot};
use crate::turn::End;
use crate::turn::tracker::Due;

/// A thread that was born while we watch, and is in no pool that is known after this long, is none of one.
const BIRTH_PATIENCE_NS: u64 = 2_000_000_000;

/// What is read once for all threads, and not for each of them.
#[derive(Debug)]
pub struct Witnesses {
    /// Of each thread, by its thread pointer, the interpreter's state.
    states: BTreeMap<u64, u64>,
    /// Of each thread, by the number that it has for itself, the kernel's. Read when first asked for.
    tids: Option<BTreeMap<u32, u32>>,
}

impl Witnesses {
    fn tid_of(&mut self, tid_in_container: u32, target: &Target) -> Option<u32> {
        let tids = self.tids.get_or_insert_with(|| target.tids_by_number());
        tids.get(&tid_in_container).copied()
    }
}

impl Followed {
    /// Whether lines are told: those of a thread that may be the loop's are once it has been seen to wait.
    pub fn is_told(&self, due: &[Due]) -> bool {
        self.certainty != Certainty::Possible || due.iter().all(|due| due.end == End::Seen)
    }
}

impl<S: EventSource, M: TargetMemory> Session<S, M> {
    /// What the threads are asked by, as it is now.
    pub fn witnesses(&self) -> Witnesses {
        Witnesses { states: self.interpreter_states(), tids: None }
    }

    /// The interpreter's state of each thread, by its thread pointer; none where there is no interpreter.
    pub(super) fn interpreter_states(&self) -> BTreeMap<u64, u64> {
        let interpreter = self.runtimes.interpreter();
        let states = interpreter.map(|interpreter| interpreter.states(&self.memory));
        states.unwrap_or_default().into_iter().collect()
    }

    /// A thread with what speaks for its running an event loop.
    pub fn candidate(&mut self, thread: &ThreadSnapshot, witnesses: &mut Witnesses) -> Candidate {
        Candidate { thread: *thread, evidence: self.evidence(thread, witnesses) }
    }

    /// Watches the threads that are inside a turn already, and those that wait, now that all hooks are up. `threads` are
    /// as they stand now: they may have gone on while they were asked.
    pub fn adopt_frozen(
        &mut self,
        mut candidates: Vec<Candidate>,
        threads: &[ThreadSnapshot],
        descriptors: WaitDescriptors,
        now_ns: u64,
    ) -> anyhow::Result<()> {
        let now: BTreeMap<u32, &ThreadSnapshot> =
            threads.iter().map(|thread| (thread.tid, thread)).collect();
        candidates.retain_mut(|candidate| match now.get(&candidate.thread.tid) {
            Some(thread) => {
                candidate.thread = **thread;
                true
            }
            None => false,
        });
        for InTurn { thread, certainty } in in_turn(&candidates, descriptors.epoll) {
            let (state, capture) = seed(&thread, now_ns);
            if self.source.seed(state, capture)? {
                self.followed(thread.tid).certainty = certainty;
            }
        }
        for waiting in threads.iter().filter_map(|it| waiting(it, now_ns)) {
            // One that has gone on meanwhile is watched by now.
            self.source.seed(waiting, CaptureHead::default())?;
        }
        Ok(())
    }

    /// A thread that runs while it is read may show a torn stack; it is only asked whether a loop is on it.
    fn evidence(&mut self, thread: &ThreadSnapshot, witnesses: &mut Witnesses) -> Evidence {
        if waits(thread) {
            // Whatever its stack shows: it is in no turn.
            return Evidence::Unknown;
        }
        let Some(interpreter) = self.runtimes.interpreter_mut() else {
            let other = joins(thread).and_then(|number| witnesses.tid_of(number, &self.target));
            let is_other = other.is_some_and(|tid| tid != thread.tid);
            return if is_other { Evidence::NoLoop } else { Evidence::Unknown };
        };
        let Some(state) = witnesses.states.get(&thread.fsbase) else { return Evidence::NoLoop };
        match interpreter.shows_loop(&self.memory, *state, thread.fsbase) {
            true => Evidence::LoopOnStack,
            false => Evidence::NoLoop,
        }
    }

    /// Lets go of threads that were taken to be frozen in a turn, once another is seen to serve the loop.
    /// Returns whom.
    pub(super) fn drop_mistaken(
        &mut self,
        slots: &[Slot],
        now_ns: u64,
        jobs: &mut Vec<Job>,
    ) -> BTreeSet<u32> {
        let mut dropped = BTreeSet::new();
        let has_waited = |slot: &&Slot| slot.state.entered_ns != 0 || slot.state.left_ns != 0;
        if !slots.iter().any(|slot| has_waited(&slot)) {
            return dropped;
        }
        for slot in slots.iter().filter(|slot| slot.state.phase != phase::DEAD) {
            let tid = slot.state.tid;
            let Some(followed) = self.loops.get_mut(&tid) else { continue };
            if followed.certainty == Certainty::Sure {
                continue;
            }
            if has_waited(&slot) {
                followed.certainty = Certainty::Sure;
                continue;
            }
            let mut due = Vec::new();
            let why = "another thread turned out to serve the loop";
            followed.tracker.close(Some(&slot.state), why, now_ns, &mut due);
            self.report(tid, due, jobs);
            self.let_go(*slot);
            dropped.insert(tid);
        }
        dropped
    }

    /// Whether a thread is not looked at any more: it was born a while ago, and is no worker.
    pub(super) fn is_dropped(&mut self, slot: &Slot, now_ns: u64) -> bool {
        let state = &slot.state;
        let is_unknown = state.phase == phase::TURN
            && state.turn.flags & SINCE_BIRTH != 0
            && !self.workers.is_known(state.tid);
        let is_over = is_unknown && now_ns.saturating_sub(state.turn.start_ns) > BIRTH_PATIENCE_NS;
        if is_over {
            self.let_go(*slot);
        }
        is_over
    }

    /// A thread has exited, and the record of that was lost: a stall of its ends as far as it was seen.
    pub(super) fn end_of_gone(&mut self, slot: &Slot, now_ns: u64, jobs: &mut Vec<Job>) {
        let tid = slot.state.tid;
        let Some(followed) = self.loops.get_mut(&tid) else { return };
        let mut due = Vec::new();
        let why = "the thread exited, and the record of that was lost";
        followed.tracker.close(Some(&slot.state), why, now_ns, &mut due);
        self.report(tid, due, jobs);
    }

    /// Whether a thread that waited before its hooks were made has been on a CPU for long: a sample tells whether it has
    /// left that wait.
    pub(super) fn may_have_left(&self, slot: &Slot, now_ns: u64) -> bool {
        slot.state.may_have_left_ns().is_some_and(|ns| now_ns >= ns + self.threshold_ns / 2)
    }

    pub(super) fn let_go(&mut self, slot: Slot) {
        self.loops.remove(&slot.state.tid);
        self.workers.forget(slot.state.tid);
        self.source.unwatch(slot);
    }
}
