//! Threads that sleep in a wait to the analyst, once each: their stacks show which loops they run, and whose.
//!
//! A stack inside a turn may be too deep to show it; that of a wait is not.

use std::collections::{BTreeMap, BTreeSet};

use super::Session;
use crate::gap::Gap;
use crate::job::Job;
use crate::process::TargetMemory;
use crate::process::frozen::{polls, waits};
use crate::runtime::{Effort, THREAD_NAME};
use crate::source::{EventSource, Slot};

/// Between two searches for loops that are asleep.
const SHOW_EVERY_NS: u64 = 500_000_000;

/// Threads whose stacks are looked at in one search; as many as there are slots.
const MAX_SHOWN: usize = 64;

/// Who has been shown.
#[derive(Debug, Default)]
pub struct Shown {
    tids: BTreeSet<u32>,
    next_ns: u64,
}

impl<S: EventSource, M: TargetMemory> Session<S, M> {
    /// Has the analyst look at threads that sleep in a wait: what loop it is does not change. The others come
    /// when they are found asleep. The main thread's is looked at for the statistics only.
    pub fn show_waiting(&mut self, slots: &[Slot], now_ns: u64, jobs: &mut Vec<Job>) {
        let main = if self.statistics.is_some() { None } else { Some(self.target.pid()) };
        let is_new = |slot: &Slot| {
            let tid = slot.state.tid;
            Some(tid) != main && !self.shown.tids.contains(&tid)
        };
        if now_ns < self.shown.next_ns || !slots.iter().any(is_new) {
            return;
        }
        self.shown.next_ns = now_ns + SHOW_EVERY_NS;
        let mut shown = std::mem::take(&mut self.shown.tids);
        // Without them, loops are called by how they wait.
        let threads = self.source.threads().unwrap_or_default();
        let present: BTreeSet<u32> = threads.iter().map(|thread| thread.tid).collect();
        shown.retain(|tid| present.contains(tid));
        let waiting = threads.iter().filter(|thread| waits(thread) || polls(thread));
        let new = waiting.filter(|thread| shown.insert(thread.tid));
        let new: Vec<_> = new.take(MAX_SHOWN).collect();
        let states = if new.is_empty() { BTreeMap::new() } else { self.interpreter_states() };
        for thread in new {
            let (captured, frames) = self.standing(thread, &states, Effort::Walked, now_ns);
            jobs.push(Job::Show { captured: Box::new(captured), frames });
        }
        self.shown.tids = shown;
    }

    /// Has the analyst know what its runtime calls the thread: its program may rename it at any time. Not where its
    /// address space was locked since then: whoever reads it may wait for as long as the thread does.
    pub fn tell_name(&mut self, tid: u32, since_ns: u64, jobs: &mut Vec<Job>) {
        let Some(interpreter) = self.runtimes.interpreter_mut() else { return };
        let followed = self.loops.get(&tid);
        if followed.is_some_and(|followed| followed.locked_ns >= since_ns.max(1)) {
            let why = "the address space was locked, and the interpreter's memory in it";
            jobs.push(Job::Named { tid, name: Err(Gap::new(THREAD_NAME, why)) });
            return;
        }
        let known = followed.and_then(|followed| followed.interpreter_state);
        let state = known.or_else(|| {
            let number = self.target.tid_in_container(tid)?;
            interpreter.state_of(&self.memory, number)
        });
        // A thread without a state runs none of the interpreter's code.
        let Some(state) = state else { return };
        jobs.push(Job::Named { tid, name: interpreter.thread_name(&self.memory, state) });
    }
}
