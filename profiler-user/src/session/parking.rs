//! Where workers park, to the probes: it is learnt, thread by thread.
//!
//! A worker waits for work on a futex instead of in a wait that is hooked. The analyst says which sleep was idleness, by
//! its stack; from then on the probes know the place. Loops that park now and then, as their threads take turns at one
//! epoll instance, are learnt as they do. Threads that never use epoll are searched for, if the user asks for them.

use std::collections::{BTreeMap, BTreeSet};

use profiler_ebpf::parks::Park;
use profiler_ebpf::record::{CaptureHead, RecordHead, ThreadSnapshot, kind};
use profiler_ebpf::turn::{Loop, WaitCall, phase, state, wait};

use super::attachment::Session;
use super::workers::add;
use crate::job::{Job, ParkVerdict};
use crate::process::TargetMemory;
use crate::process::frozen::{seed, waits};
use crate::process::stack::read_stack;
use crate::runtime::Effort;
use crate::runtime::frames::Frames;
use crate::runtime::park::{ParkState, Pool, Word};
use crate::source::{Captured, EventSource, Slot};

/// Between two searches for workers: pools start threads as they need them.
const SEARCH_EVERY_NS: u64 = 1_000_000_000;

/// Threads handed to the analyst in one search; the rest come next time.
const MAX_LOOKS: usize = 64;

impl<S: EventSource, M: TargetMemory> Session<S, M> {
    /// From now on threads that are handed work are searched for.
    pub fn watch_workers(&mut self) {
        self.workers.wanted = true;
    }

    /// Hands sleeping threads to the analyst: those that it has not seen sleep there.
    pub fn search_workers(&mut self, now_ns: u64, jobs: &mut Vec<Job>) -> anyhow::Result<()> {
        if !self.workers.wanted || now_ns < self.workers.next_search_ns {
            return Ok(());
        }
        self.workers.next_search_ns = now_ns + SEARCH_EVERY_NS;
        let threads = self.source.threads()?;
        let present: BTreeSet<u32> = threads.iter().map(|thread| thread.tid).collect();
        self.workers.looked_at.retain(|tid, _| present.contains(tid));
        let is_new = |thread: &&ThreadSnapshot| self.is_to_be_looked_at(thread);
        let new: Vec<ThreadSnapshot> =
            threads.iter().filter(is_new).take(MAX_LOOKS).copied().collect();
        if new.is_empty() {
            return Ok(());
        }
        let states = self.interpreter_states();
        for thread in new {
            self.workers.look_at(thread);
            let (captured, frames) = self.asleep(&thread, &states, Effort::Copied, now_ns);
            jobs.push(Job::Look { captured: Box::new(captured), frames });
        }
        self.workers.states = states;
        Ok(())
    }

    /// What the analyst made of a thread, by its stack.
    pub fn learn(&mut self, verdict: &ParkVerdict, now_ns: u64, jobs: &mut Vec<Job>) {
        let tid = verdict.head.head.tid;
        let slot = self.slot_of(tid);
        let is_there = slot.is_some() || self.workers.looked_at.contains_key(&tid);
        let pool = verdict.park_state.pool();
        if is_there && pool.is_some() {
            self.workers.known.insert(tid);
        }
        if let Some(slot) = slot {
            self.source.set_handed_work(slot, pool.is_some_and(|pool| pool.has_queue));
            if verdict.park_state.is_idle() {
                self.turn_ended_at(slot, &verdict.head, jobs);
            }
            if verdict.park_state == ParkState::OffDuty {
                // What it does once it is back is a turn of its own.
                let parks = self.workers.parks.entry(tid).or_default();
                parks.found_ns = verdict.head.at_ns;
                let parks = *parks;
                self.source.set_parks(slot, parks);
            }
        }
        if pool.is_some_and(|pool| pool.waits_in_epoll) {
            self.workers.by_messages.insert(tid);
        }
        match verdict.park_state {
            ParkState::Parked(pool, word) => {
                let Some(word) = self.place(tid, word) else { return };
                let registers = &verdict.head.registers;
                let park = Park { sp: registers.sp, ip: registers.ip, ..word };
                let parks = self.workers.parks.entry(tid).or_default();
                add(parks, park);
                parks.found_ns = verdict.head.at_ns;
                let parks = *parks;
                if slot.is_none() {
                    self.follow_worker(tid, pool, now_ns, phase::PARKED);
                }
                if let Some(slot) = self.slot_of(tid) {
                    self.source.set_parks(slot, parks);
                }
            }
            ParkState::Working(pool) if slot.is_none() => {
                self.follow_worker(tid, pool, now_ns, phase::TURN);
            }
            ParkState::Working(_)
            | ParkState::OffDuty
            | ParkState::Looping { .. }
            | ParkState::Unknown => {}
        }
    }

    /// Whether a thread is one of a pool that nobody asked to watch: it is looked at now and then, for it
    /// may have become an event loop.
    pub fn passes_over(&mut self, slot: Slot, now_ns: u64) -> bool {
        self.workers.is_unwanted(&slot.state)
            && !self.followed(slot.state.tid).glance_is_due(now_ns)
    }

    /// A sleep that the probes took for part of a turn was none: the turn had ended before.
    fn turn_ended_at(&mut self, slot: Slot, head: &CaptureHead, jobs: &mut Vec<Job>) {
        let Loop { tid, phase, booked_until_ns, mut turn, .. } = slot.state;
        if phase != phase::TURN || booked_until_ns != head.at_ns {
            return;
        }
        let followed = self.followed(tid);
        let had_ended = followed.parked_ns.is_some_and(|parked_ns| parked_ns >= turn.start_ns);
        followed.parked_ns = Some(head.at_ns);
        followed.cut(&mut turn);
        if had_ended {
            return;
        }
        if turn.booked_ns() < self.threshold_ns {
            // Whoever found out that it parked has kept back what was due since.
            self.followed(tid).tracker.take_back(turn.start_ns);
            return;
        }
        self.with(tid, jobs, |tracker, due| tracker.ended_without_wait(turn, head.at_ns, due));
    }

    fn is_to_be_looked_at(&self, thread: &ThreadSnapshot) -> bool {
        let sleeps_elsewhere = |before: &ThreadSnapshot| {
            (before.registers.sp, before.registers.ip) != (thread.registers.sp, thread.registers.ip)
        };
        // Whoever sleeps in a wait that is hooked shows as it returns.
        thread.task_state != 0
            && !waits(thread)
            && !self.loops.contains_key(&thread.tid)
            && self.workers.looked_at.get(&thread.tid).is_none_or(sleeps_elsewhere)
    }

    /// Where a thread sleeps now, out of its memory. `states` are the interpreter's, by thread pointer.
    pub(super) fn asleep(
        &mut self,
        thread: &ThreadSnapshot,
        states: &BTreeMap<u64, u64>,
        effort: Effort,
        now_ns: u64,
    ) -> (Captured, Frames) {
        let head = CaptureHead {
            head: RecordHead { kind: kind::CAPTURE, tid: thread.tid },
            at_ns: now_ns,
            registers: thread.registers,
            stack_top: thread.stack_top,
            fsbase: thread.fsbase,
            ..CaptureHead::default()
        };
        let mut captured = Captured::of_outside(head, Vec::new());
        if let (Some(interpreter), Some(state)) =
            (self.runtimes.interpreter(), states.get(&thread.fsbase))
        {
            interpreter.walk(&self.memory, *state, &mut captured);
        }
        captured.stack = read_stack(&self.memory, &captured.head);
        let frames = self.runtimes.frames(&self.memory, &captured, effort);
        (captured, frames)
    }

    /// Where in the target the word lies that a parked thread is known by.
    fn place(&self, tid: u32, word: Word) -> Option<Park> {
        let (word_address, word) = match word {
            Word::ReturnAddress { at, value } => (at, value),
            Word::InnermostFrame(frame) => {
                let interpreter = self.runtimes.interpreter()?;
                let listed = self.workers.looked_at.get(&tid).and_then(|thread| {
                    let state = *self.workers.states.get(&thread.fsbase)?;
                    let is_its = interpreter.is_state_of(&self.memory, state, thread.fsbase);
                    is_its.then_some(state)
                });
                let state = listed.or_else(|| {
                    let number = self.target.tid_in_container(tid)?;
                    interpreter.state_of(&self.memory, number)
                })?;
                (interpreter.innermost_at(&self.memory, state)?, frame)
            }
        };
        Some(Park { word_address, word, ..Park::default() })
    }

    /// Watches a thread that no hooked wait has shown.
    fn follow_worker(&mut self, tid: u32, pool: Pool, now_ns: u64, phase: u32) {
        let Some(thread) = self.workers.looked_at.get(&tid) else { return };
        let (mut watched, mut capture) = seed(thread, now_ns);
        // It was looked at a while ago. One that has done with that work since is taken to be parked: what it does next
        // shows.
        let works = phase == phase::TURN && self.source.is_still_in(&capture);
        if !works {
            watched.phase = phase::PARKED;
            watched.state = state::RUNNING;
            capture = CaptureHead::default();
        }
        // Of threads that take turns at epoll, the first such wait is their own.
        watched.adopt(&WaitCall::any(wait::PARK));
        watched.handed_work = u64::from(pool.has_queue);
        match self.source.seed(watched, capture) {
            // It has gone on in just this moment: the next search finds it where it is then.
            Ok(true) if works && !self.source.is_still_in(&capture) => {
                if let Some(slot) = self.slot_of(tid) {
                    self.let_go(slot);
                }
            }
            Ok(true) => {}
            // It has a slot by now, or has exited, or all slots are taken.
            Ok(false) => tracing::debug!(tid, "no slot for a worker"),
            Err(error) => tracing::warn!("cannot watch the worker {tid}: {error:#}"),
        }
    }

    fn slot_of(&mut self, tid: u32) -> Option<Slot> {
        let is_its = |state: &Loop| state.tid == tid && state.phase != phase::DEAD;
        self.source.loops().into_iter().find(|slot| is_its(&slot.state))
    }
}
