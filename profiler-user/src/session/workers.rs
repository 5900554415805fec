//! Workers: threads that are handed work, and wait for it on a futex instead of in a wait that is hooked.
//!
//! Where such a thread parks is learnt, thread by thread: the analyst says which sleep was idleness,
//! by its stack; from then on the probes know the place. Loops that park now and then (tokio's
//! workers, uWSGI's threads, who take turns at one epoll instance) are learnt as they do. Threads
//! that never use epoll (gunicorn's gthread) are searched for, if the user asks for them.

use std::collections::{BTreeMap, BTreeSet};

use profiler_ebpf::parks::{MAX_PARKS, Park, Parks};
use profiler_ebpf::record::{CaptureHead, RecordHead, ThreadSnapshot, kind, reason};
use profiler_ebpf::turn::{FUTEX, Loop, WaitCall, phase, state, wait};

use super::Session;
use crate::job::{Job, Verdict};
use crate::process::TargetMemory;
use crate::process::frozen::{seed, waits};
use crate::process::stack::read_stack;
use crate::runtime::Effort;
use crate::runtime::frames::Frames;
use crate::runtime::park::{ParkState, Pool, Word};
use crate::source::{Captured, EventSource, Slot};
use crate::turn::instance::Stand;

/// Between two searches for workers: pools start threads as they need them.
const SEARCH_EVERY_NS: u64 = 1_000_000_000;

/// Threads handed to the analyst in one search; the rest come next time.
const MAX_LOOKS: usize = 64;

/// What is known of workers.
#[derive(Debug, Default)]
pub struct Workers {
    wanted: bool,
    next_search_ns: u64,
    /// Threads that were looked at, as they slept then.
    looked_at: BTreeMap<u32, ThreadSnapshot>,
    /// The interpreter's states at the last search, by thread pointer: listing them once for each thread would
    /// take as long as there are threads, squared.
    states: BTreeMap<u64, u64>,
    parks: BTreeMap<u32, Parks>,
    /// Threads that were seen to be handed work.
    known: BTreeSet<u32>,
    /// Those that wait for work in epoll: their turns end there.
    by_messages: BTreeSet<u32>,
}

impl Workers {
    pub fn forget(&mut self, tid: u32) {
        self.looked_at.remove(&tid);
        self.parks.remove(&tid);
        self.known.remove(&tid);
        self.by_messages.remove(&tid);
    }

    /// A thread is handed to the analyst, as it sleeps now.
    pub fn look_at(&mut self, thread: ThreadSnapshot) {
        self.looked_at.insert(thread.tid, thread);
    }

    /// Whether a thread was seen to be handed work.
    pub fn is_known(&self, tid: u32) -> bool {
        self.known.contains(&tid)
    }

    /// Whether threads are watched that hold up nobody.
    pub fn are_wanted(&self) -> bool {
        self.wanted
    }

    /// Whether a thread is one of a pool that nobody asked to watch.
    pub fn is_unwanted(&self, state: &Loop) -> bool {
        (state.handed_work == 1 || self.by_messages.contains(&state.tid)) && !self.wanted
    }
}

/// Adds a place; where there is no room it takes the oldest one's. False where it was known.
fn add(parks: &mut Parks, park: Park) -> bool {
    if parks.known.contains(&park) {
        return false;
    }
    parks.known.rotate_right(1);
    parks.known[0] = park;
    debug_assert_eq!(parks.known.len(), MAX_PARKS);
    true
}

/// Whether others can serve the instance of a thread that blocked in a futex: they have waited on it, too. Where
/// such threads take turns at it, most that sleep on a futex have nothing to do.
pub fn is_replaced(head: &CaptureHead, slots: &[Slot]) -> bool {
    let mut living = slots.iter().filter(|slot| slot.state.phase != phase::DEAD);
    let Some(own) = slots.iter().find(|slot| slot.state.tid == head.head.tid) else { return false };
    let own = Stand::of(&own.state);
    head.reason == reason::SWITCH_OUT
        && head.registers.syscall == FUTEX
        && living.any(|slot| own.shares(&Stand::of(&slot.state)))
}

/// Whether one of them does, or has since.
pub fn is_served(head: &CaptureHead, slots: &[Slot]) -> bool {
    let stands = || slots.iter().map(|slot| Stand::of(&slot.state));
    let own = stands().find(|stand| stand.tid == head.head.tid);
    own.is_some_and(|own| {
        stands().any(|other| own.shares(&other) && other.served_after(head.at_ns))
    })
}

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
            let (captured, frames) = self.standing(&thread, &states, Effort::Copied, now_ns);
            jobs.push(Job::Look { captured: Box::new(captured), frames });
        }
        self.workers.states = states;
        Ok(())
    }

    /// What the analyst made of a thread, by its stack.
    pub fn learn(&mut self, verdict: &Verdict, now_ns: u64, jobs: &mut Vec<Job>) {
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
    pub(super) fn standing(
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

#[cfg(test)]
mod tests {
    use profiler_ebpf::parks::{MAX_PARKS, Park, Parks};
    use profiler_ebpf::record::{CaptureHead, RecordHead, Registers, kind, reason};
    use profiler_ebpf::turn::{FUTEX, Loop, WaitCall, phase, wait};

    use super::{add, is_replaced};
    use crate::source::Slot;

    /// A place is kept once; the one learnt first makes room.
    #[test]
    fn parks_are_few() {
        let park = |sp| Park { sp, ..Park::default() };
        let mut parks = Parks::default();
        for sp in 1..=MAX_PARKS as u64 {
            assert!(add(&mut parks, park(sp)));
        }
        assert!(!add(&mut parks, park(2)));
        assert!(add(&mut parks, park(99)));
        assert!(parks.known.contains(&park(99)) && parks.known.contains(&park(2)));
        assert!(!parks.known.contains(&park(1)));
    }

    /// Whoever blocked in a futex can be replaced by one that serves the same epoll instance, whatever that
    /// does now; not by one with an instance of its own or one that is gone, and not when it blocked in
    /// anything else.
    #[test]
    fn another_takes_over() {
        let slot = |tid, file, phase, left_ns| {
            let mut state = Loop { tid, phase, left_ns, ..Loop::default() };
            state.adopt(&WaitCall { file, ..WaitCall::any(wait::EPOLL) });
            Slot { index: tid, state }
        };
        let head = |syscall| CaptureHead {
            head: RecordHead { kind: kind::CAPTURE, tid: 1 },
            at_ns: 500,
            reason: reason::SWITCH_OUT,
            registers: Registers { syscall, ..Registers::default() },
            ..CaptureHead::default()
        };
        let own = slot(1, 7, phase::TURN, 400);
        let table = [
            (FUTEX, slot(2, 7, phase::WAITING, 300), true),
            (FUTEX, slot(2, 7, phase::TURN, 600), true),
            (FUTEX, slot(2, 7, phase::TURN, 300), true),
            (FUTEX, slot(2, 7, phase::DEAD, 300), false),
            (FUTEX, slot(2, 8, phase::WAITING, 300), false),
            (0, slot(2, 7, phase::WAITING, 300), false),
        ];
        for (syscall, other, expected) in table {
            assert_eq!(is_replaced(&head(syscall), &[own, other]), expected, "{syscall} {other:?}");
        }
        assert!(!is_replaced(&head(FUTEX), &[own]));
    }
}
