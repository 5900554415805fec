//! Long turns of threads that share an instance to the stalls of that instance, with those who were away from it.

use std::collections::BTreeSet;

use profiler_ebpf::turn::{Turn, phase, state};

use super::attachment::Session;
use super::followed::Followed;
use crate::job::Job;
use crate::process::TargetMemory;
use crate::source::{Ended, EndedBy, EventSource, Slot};
use crate::turn::Moment;
use crate::turn::instance::{Meaning, Service, Stand, meaning, service};
use crate::turn::tracker::{AwayThread, CLOSED, Due, EXECUTED, doing};

/// An instance whose turn is suspected gets its running thread seen open at a sample. Where none comes so long
/// after the threshold, it is believed to be open.
const OPEN_PATIENCE_NS: u64 = 30_000_000;

/// How the threads of all instances stand at one look.
#[derive(Debug, Default)]
pub struct Instances {
    stands: Vec<Stand>,
    /// Threads of instances that nobody serves, although another thread is told of.
    away: BTreeSet<u32>,
}

impl Instances {
    /// Of these states; turns count from `suspect_ns` on.
    pub fn of(slots: &[Slot], now_ns: u64, suspect_ns: u64) -> Self {
        let stands: Vec<Stand> = slots.iter().map(|slot| Stand::of(&slot.state)).collect();
        let is_suspected = |slot: &&Slot| {
            let state = &slot.state;
            state.phase == phase::TURN && now_ns >= state.turn.start_ns + suspect_ns
        };
        let told = slots.iter().filter(is_suspected).map(|slot| Stand::of(&slot.state));
        let told = told.filter(|own| service(own, &stands) == Service::None);
        let away = told.flat_map(|own| stands.iter().filter(move |other| own.shares(other)));
        let away = away.map(|other| other.tid).collect();
        Self { stands, away }
    }

    pub fn service(&self, slot: &Slot) -> Service {
        service(&Stand::of(&slot.state), &self.stands)
    }

    /// Whether other threads wait on the same instance.
    pub fn is_shared(&self, slot: &Slot) -> bool {
        let own = Stand::of(&slot.state);
        self.stands.iter().any(|other| own.shares(other))
    }

    /// Whether a thread is away from an instance that nobody serves.
    pub fn is_away(&self, tid: u32) -> bool {
        self.away.contains(&tid)
    }
}

impl Followed {
    /// Whether a stall of the turn that began then has been announced, and not ended.
    fn has_opened(&self, turn_start_ns: u64) -> bool {
        self.tracker.open_since() == Some(turn_start_ns)
    }

    /// Whether the turn that began then is told as its thread's work, which holds up nobody.
    fn is_work(&self, turn_start_ns: u64) -> bool {
        self.work_ns == Some(turn_start_ns)
    }
}

impl<S: EventSource, M: TargetMemory> Session<S, M> {
    /// Lets the probes know of a thread that shares its instance. Where the stacks of its kind tell parking from
    /// working, these decide.
    pub(super) fn tell_shared(&mut self, slot: Slot, instances: &Instances) {
        let shares = instances.is_shared(&slot) && !self.workers.is_known(slot.state.tid);
        if u64::from(shares) != slot.state.shares {
            self.source.set_shares(slot, shares);
        }
    }

    /// Whether a suspected turn is not to be told, as another thread serves its instance, or another's turn is told.
    /// Ends the stall that it was until then.
    pub(super) fn is_served(
        &mut self,
        slot: Slot,
        service: Service,
        now_ns: u64,
        jobs: &mut Vec<Job>,
    ) -> bool {
        let wants_workers = self.workers.are_wanted();
        let start_ns = slot.state.turn.start_ns;
        match service {
            Service::None => false,
            Service::NoneSince(_) => !wants_workers,
            Service::Another { since_ns } => {
                let followed = self.followed(slot.state.tid);
                if followed.has_opened(start_ns) && !followed.is_work(start_ns) {
                    let turn = slot.state.account(now_ns.max(since_ns));
                    self.with(slot.state.tid, jobs, |tracker, due| {
                        tracker.served(turn, since_ns, due);
                    });
                } else {
                    followed.work_ns = Some(start_ns);
                }
                !wants_workers
            }
        }
    }

    /// Whether a thread that has been running must first be seen with its loop open: a loop that is closed is
    /// found out when its thread sleeps, is sampled, or comes back.
    pub(super) fn may_be_closed(&self, slot: &Slot, now_ns: u64) -> bool {
        let state = &slot.state;
        let start_ns = state.turn.start_ns;
        let is_old = now_ns >= start_ns + self.threshold_ns + OPEN_PATIENCE_NS;
        let was_seen = state.booked_until_ns >= start_ns + self.suspect_ns();
        // One that sleeps was asked as it went to sleep.
        let is_asleep = matches!(state.state, state::BLOCKED | state::STOPPED);
        state.has_instance() && !is_asleep && !was_seen && !is_old
    }

    /// A turn past the threshold is over, says the kernel. `began_ns` is when, before it was cut.
    pub(super) fn turn_over(
        &mut self,
        tid: u32,
        (began_ns, turn): (u64, Turn),
        (end_ns, ended): (u64, Ended),
        jobs: &mut Vec<Job>,
    ) {
        let is_stall = match meaning(began_ns, &ended) {
            Meaning::Stall => true,
            Meaning::Served => false,
            Meaning::Ends { began_ns: other_ns } => {
                let is_others = self.end_of_other(tid, other_ns, end_ns, jobs);
                !is_others && other_ns <= began_ns
            }
        };
        let wants_workers = self.workers.are_wanted();
        let threshold_ns = self.threshold_ns;
        let served_ns = self.served_since(tid, began_ns, end_ns);
        // The kernel closes most descriptors of a program that gives way before it says that it does.
        let why = if self.source.executed_ns().is_some() { EXECUTED } else { CLOSED };
        let followed = self.followed(tid);
        if followed.tracker.has_told(turn.start_ns) {
            return;
        }
        if let Some((of_ns, at_ns)) = followed.served_at
            && of_ns == began_ns
        {
            self.with(tid, jobs, |tracker, due| tracker.served(turn, at_ns, due));
            return;
        }
        // It was seen served before whoever served it was gone.
        let is_stall = is_stall && !followed.is_work(began_ns);
        if !is_stall && followed.has_opened(began_ns) && !followed.is_work(began_ns) {
            self.with(tid, jobs, |tracker, due| tracker.served(turn, served_ns, due));
            return;
        }
        followed.work_ns = (!is_stall).then_some(began_ns);
        if turn.booked_ns() >= threshold_ns && (is_stall || wants_workers) {
            self.with(tid, jobs, |tracker, due| match ended.by {
                EndedBy::Wait => tracker.ended(turn, end_ns, due),
                EndedBy::Park => tracker.ended_without_wait(turn, end_ns, due),
                EndedBy::Close => tracker.closed(turn, end_ns, why, due),
            });
        }
    }

    /// The stall that began then, as a thread of the same instance left its wait, ends as this thread enters its own.
    /// False where no such thread is known.
    fn end_of_other(&mut self, tid: u32, began_ns: u64, end_ns: u64, jobs: &mut Vec<Job>) -> bool {
        let slots = self.source.loops();
        let own =
            slots.iter().find(|slot| slot.state.tid == tid).map(|slot| Stand::of(&slot.state));
        let is_it = |slot: &&Slot| {
            let shares = own.is_some_and(|own| own.shares(&Stand::of(&slot.state)));
            shares && slot.state.left_ns == began_ns
        };
        let Some(other) = slots.iter().find(is_it) else { return false };
        let turn = other.state.account(end_ns);
        let is_long = end_ns.saturating_sub(began_ns) >= self.threshold_ns;
        let followed = self.followed(other.state.tid);
        if !Stand::of(&other.state).left_at(began_ns) {
            // It is over by now, and the record of its end is on its way.
            followed.served_at = is_long.then_some((began_ns, end_ns));
            return is_long;
        }
        let is_told = followed.tracker.has_told(began_ns) || followed.is_work(began_ns);
        if is_long && !is_told {
            self.with(other.state.tid, jobs, |tracker, due| tracker.served(turn, end_ns, due));
        }
        true
    }

    /// Since when somebody else served the instance in a turn that is over, as far as that can still be told.
    fn served_since(&mut self, tid: u32, began_ns: u64, end_ns: u64) -> u64 {
        let slots = self.source.loops();
        let Some(own) = slots.iter().find(|slot| slot.state.tid == tid) else { return end_ns };
        let own = Stand::of(&own.state);
        let others = slots.iter().filter(|slot| own.shares(&Stand::of(&slot.state)));
        let entered = others.map(|slot| slot.state.entered_ns);
        entered.filter(|at_ns| (began_ns..end_ns).contains(at_ns)).min().unwrap_or(end_ns)
    }

    /// Adds to a line who else was away from the instance, as of now or, of a stall that is over, as of the line
    /// before.
    pub(super) fn add_away(&mut self, tid: u32, due: &mut Due) {
        let start_ns = due.turn.start_ns;
        // One that was woken to work a moment later has been away for as good as all of it.
        let latest_ns = start_ns + self.suspect_ns();
        let slots = self.source.loops();
        let Some(own) = slots.iter().find(|slot| slot.state.tid == tid) else { return };
        let own = Stand::of(&own.state);
        let is_away = |slot: &&Slot| {
            let stand = Stand::of(&slot.state);
            own.shares(&stand) && stand.is_away_since(latest_ns)
        };
        let away = slots.iter().filter(is_away).map(|slot| AwayThread {
            tid: slot.state.tid,
            turn: slot.state.account(due.at_ns),
            state: doing(slot.state.state),
        });
        let mut away: Vec<AwayThread> = away.collect();
        let followed = self.followed(tid);
        due.is_work = followed.is_work(start_ns);
        if due.is_work {
            return;
        }
        if due.moment == Moment::End {
            let is_new = |known: &&AwayThread| !away.iter().any(|other| other.tid == known.tid);
            let (at_ns, known) = &followed.away;
            let known: Vec<_> =
                known.iter().filter(|_| *at_ns == start_ns).filter(is_new).copied().collect();
            away.extend(known);
        } else {
            followed.away = (start_ns, away.clone());
        }
        due.away = away;
    }
}
