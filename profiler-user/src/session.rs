//! One attached process: its events and the state of its loops to jobs for the analyst.
//!
//! Everything here happens while the target may be frozen, so nothing here is slow: what needs the
//! target's live memory is read at once, what needs files, symbols or sinks is left to the analyst.

mod acceptors;
mod adopted;
mod attachment;
mod captures;
mod followed;
mod instances;
mod intervals;
mod items;
mod naming;
mod parking;
mod contention;
mod shown;
mod slotless;
mod statistics;
mod work;
mod workers;

use profiler_ebpf::limits::CLOSE_LOOK_NS;
use profiler_ebpf::turn::{phase, state};

use self::instances::Instances;
use crate::gap::Gap;
use crate::job::Job;
use crate::process::TargetMemory;
use crate::source::{Event, EventSource, ExitedBy, InterpreterPlaces, Sampling, Slot};
use crate::turn::Moment;
use crate::turn::tracker::{Due, Tracker};

pub use self::attachment::Session;

/// Ticks stay on so long after the last suspicion: switching on the first one takes 13 ms.
const TICKS_LINGER_NS: u64 = 250_000_000;

/// What one look at all threads has found so far.
#[derive(Debug)]
struct Look {
    now_ns: u64,
    instances: Instances,
    next_ns: u64,
    /// Whether a thread runs that must be sampled.
    wants_ticks: bool,
    /// Suspected turns: the thread, and when its turn began.
    suspected: Vec<(u32, u64)>,
}

impl Look {
    /// The next look is to come by then.
    fn again_by(&mut self, ns: u64) {
        self.next_ns = self.next_ns.min(ns);
    }
}

impl<S: EventSource, M: TargetMemory> Session<S, M> {
    /// Looks once; returns when to look next. `now_ns` is CLOCK_MONOTONIC.
    pub fn step(&mut self, now_ns: u64, jobs: &mut Vec<Job>) -> u64 {
        // First the states, then the records: see `turn::tracker`.
        let slots = self.source.loops();
        let events = self.source.drain();
        self.environment.look(now_ns);
        for event in events {
            self.take(event, jobs);
        }
        let dropped = self.drop_mistaken(&slots, now_ns, jobs);
        let mut look = Look {
            now_ns,
            instances: Instances::of(&slots, now_ns, self.suspect_ns()),
            next_ns: now_ns + self.suspect_ns(),
            wants_ticks: false,
            suspected: Vec::new(),
        };
        for slot in slots.iter().copied() {
            if slot.state.phase == phase::DEAD {
                self.release(slot, now_ns, jobs);
            } else if !dropped.contains(&slot.state.tid) && !self.is_dropped(&slot, now_ns) {
                self.look_at(slot, &mut look, jobs);
            }
        }
        let next_ns = self.look_around(look);
        self.show_waiting(&slots, now_ns, jobs);
        self.slotless.tell(&mut self.source, self.target.pid(), now_ns);
        next_ns.min(self.tell_statistics(&slots, now_ns, jobs))
    }

    /// A thread is gone: its slot serves another from now on.
    fn release(&mut self, slot: Slot, now_ns: u64, jobs: &mut Vec<Job>) {
        self.sum_up_gone(slot, now_ns);
        self.end_of_gone(&slot, now_ns, jobs);
        if let Some(gone) = self.loops.remove(&slot.state.tid) {
            self.turns_of_gone += gone.turns;
        }
        self.workers.forget(slot.state.tid);
        self.source.release(slot);
    }

    /// One thread, as far as it may be in a turn. Tells what is due of that.
    fn look_at(&mut self, whole: Slot, look: &mut Look, jobs: &mut Vec<Job>) {
        let now_ns = look.now_ns;
        self.follow(whole, now_ns);
        self.tell_shared(whole, &look.instances);
        let is_parked = self.followed(whole.state.tid).is_parked(&whole.state);
        if is_parked || self.passes_over(whole, now_ns) {
            return;
        }
        let slot = self.cut_at_work(whole, now_ns, jobs);
        let is_told = if slot.state.phase != phase::TURN {
            if self.may_have_left(&slot, now_ns) {
                look.wants_ticks = true;
                look.again_by(now_ns + CLOSE_LOOK_NS);
            }
            true
        } else if now_ns >= slot.state.turn.start_ns + self.suspect_ns() {
            self.suspect(whole, slot, look, jobs)
        } else {
            let suspect_at_ns = whole.state.turn.start_ns + self.suspect_ns();
            look.again_by(suspect_at_ns.max(now_ns + CLOSE_LOOK_NS));
            true
        };
        if is_told {
            self.look(slot, now_ns, jobs);
        }
    }

    /// A turn that may become a stall, as a whole and as far as it is about the work in hand. Whether that is to be told
    /// by now.
    fn suspect(&mut self, whole: Slot, slot: Slot, look: &mut Look, jobs: &mut Vec<Job>) -> bool {
        let now_ns = look.now_ns;
        let service = look.instances.service(&whole);
        let is_silent = self.is_served(whole, service, now_ns, jobs);
        if is_silent && !look.instances.is_away(slot.state.tid) {
            return false;
        }
        look.wants_ticks |= slot.state.state != state::BLOCKED;
        self.suspected_ns = now_ns;
        look.suspected.push((slot.state.tid, slot.state.turn.start_ns));
        self.complete_block(whole, now_ns, jobs);
        look.again_by(self.next_look_ns(&slot, &look.instances, now_ns));
        !is_silent && !self.may_be_closed(&whole, now_ns)
    }

    /// What all suspected turns together ask for: a close look at the machine, at other threads, and at who runs. Returns
    /// when to look next.
    fn look_around(&mut self, look: Look) -> u64 {
        let Look { now_ns, mut next_ns, wants_ticks, suspected, .. } = look;
        if self.environment.look_closely(!suspected.is_empty(), now_ns) {
            next_ns = next_ns.min(now_ns + CLOSE_LOOK_NS);
        }
        self.holders.keep(suspected);
        let (holders, outside) = self.outside();
        holders.watch(outside, now_ns);
        let wants_ticks = wants_ticks || self.holders.wants_ticks();
        self.sample_running(wants_ticks, now_ns);
        next_ns
    }

    /// When to look again at a suspected turn.
    fn next_look_ns(&mut self, slot: &Slot, instances: &Instances, now_ns: u64) -> u64 {
        let others_are_watched = self.holders.wants_ticks() || instances.is_shared(slot);
        let followed = self.followed(slot.state.tid);
        let pause_ns = followed.pause_ns(&slot.state, others_are_watched);
        let line_ns = followed.tracker.next_line_ns(slot.state.turn.start_ns);
        let holder_ns = self.holders.next_look_ns(slot.state.tid);
        let due = [Some(line_ns), holder_ns].into_iter().flatten().filter(|due| *due > now_ns);
        due.fold(now_ns + pause_ns, u64::min)
    }

    /// Closes whatever is open: we are about to detach, or the target is gone.
    pub fn finish(&mut self, why: &str, now_ns: u64, jobs: &mut Vec<Job>) {
        let slots = self.source.loops();
        let events = self.source.drain();
        self.environment.look(now_ns);
        for event in events {
            self.take(event, jobs);
        }
        for slot in &slots {
            if self.followed(slot.state.tid).tracker.is_open() {
                self.look_who_runs(*slot, now_ns);
            }
        }
        let mut closed = Vec::new();
        for (tid, followed) in &mut self.loops {
            let seen = slots.iter().find(|slot| slot.state.tid == *tid).map(|slot| &slot.state);
            let mut due = Vec::new();
            followed.tracker.close(seen, why, now_ns, &mut due);
            closed.push((*tid, due));
        }
        for (tid, due) in closed {
            self.report(tid, due, jobs);
        }
        self.tell_rest(&slots, now_ns, jobs);
    }

    fn follow(&mut self, slot: Slot, now_ns: u64) {
        let tid = slot.state.tid;
        let followed = self.followed(tid);
        followed.turns = slot.state.turns;
        if followed.search_is_due(now_ns)
            && let Some(interpreter) = self.runtimes.interpreter()
            && let Some(number) = self.target.tid_in_container(tid)
            && let Some(state) = interpreter.state_of(&self.memory, number)
        {
            let collecting = interpreter.collecting_at(&self.memory).unwrap_or(0);
            let followed = self.followed(tid);
            followed.interpreter_state = Some(state);
            let callback = followed.callback_at;
            self.source.set_interpreter(slot, InterpreterPlaces { state, collecting, callback });
        }
    }

    fn look(&mut self, slot: Slot, now_ns: u64, jobs: &mut Vec<Job>) {
        let Some(followed) = self.loops.get_mut(&slot.state.tid) else { return };
        let mut due = Vec::new();
        followed.tracker.look(&slot.state, now_ns, &mut due);
        let turn_start_ns = slot.state.turn.start_ns;
        let counts = followed.tracker.is_open() && followed.count_is_due(turn_start_ns, now_ns);
        if due.iter().any(|due| due.moment == Moment::Open) {
            let (holders, outside) = self.outside();
            let tid = slot.state.tid;
            jobs.extend(holders.bystanders(outside, tid, turn_start_ns, now_ns));
        }
        if counts {
            jobs.push(Job::CountQueues { tid: slot.state.tid, turn_start_ns });
        }
        if due.iter().any(|due| due.now.is_some()) {
            self.look_who_runs(slot, now_ns);
        }
        self.report(slot.state.tid, due, jobs);
    }

    /// Lines that are due, with what could not be had and what was lost.
    fn report(&mut self, tid: u32, due: Vec<Due>, jobs: &mut Vec<Job>) {
        if self.loops.get(&tid).is_some_and(|followed| !followed.is_told(&due)) {
            return;
        }
        if let Some(Due { turn, .. }) = due.first()
            && self.followed(tid).named_in_ns.replace(turn.start_ns) != Some(turn.start_ns)
        {
            self.tell_name(tid, turn.start_ns, jobs);
        }
        for mut due in due {
            if let Some(followed) = self.loops.get(&tid) {
                due.contention = followed.contention(&due.turn);
            }
            if let Some(why) = &self.ticks_refused {
                due.gaps.push(Gap::new("stacks of the running thread", why));
            }
            due.environment = self.environment.between(tid, due.turn.start_ns, due.at_ns);
            if let Some(followed) = self.loops.get(&tid) {
                followed.add_tracer(&mut due);
            }
            self.add_away(tid, &mut due);
            if let Some(why) = &self.holders.refused {
                due.gaps.push(Gap::new("other threads", why));
            }
            jobs.push(Job::Report { tid, due: Box::new(due), losses: self.source.losses() });
        }
    }

    fn take(&mut self, event: Event, jobs: &mut Vec<Job>) {
        match event {
            Event::Captured(captured) => self.captured(captured, jobs),
            Event::Other(captured) => self.other(captured, jobs),
            Event::Woken(mut woken) => {
                self.followed(woken.head.tid).cut_wake(&mut woken);
                if woken.by_tgid == self.target.pid() {
                    let (holders, mut outside) = self.outside();
                    holders.name(&mut outside, woken.by_tid, jobs);
                }
                jobs.push(Job::Woken(woken));
            }
            Event::Rivals(contenders) => {
                let tid = contenders.head.tid;
                self.followed(tid).contenders = Some(contenders);
            }
            Event::TurnEnded { tid, end_ns, mut turn, ended } => {
                let began_ns = turn.start_ns;
                self.followed(tid).cut(&mut turn);
                self.holders.turn_over(tid, turn.start_ns);
                self.turn_over(tid, (began_ns, turn), (end_ns, ended), jobs);
            }
            Event::Ready { tid, turn_start_ns, returned } => {
                self.with(tid, jobs, |tracker, due| tracker.ready(turn_start_ns, returned, due));
            }
            Event::Asleep => {}
            Event::Exited { tid, at_ns, mut turn, mut by } => {
                // Whoever executes another program ends all other threads.
                if self.source.executed_ns().is_some() {
                    by = ExitedBy::Exec;
                }
                if let Some(turn) = &mut turn {
                    self.followed(tid).cut(turn);
                }
                self.with(tid, jobs, |tracker, due| tracker.exited(turn, at_ns, by, due));
            }
        }
    }

    fn with(
        &mut self,
        tid: u32,
        jobs: &mut Vec<Job>,
        rule: impl FnOnce(&mut Tracker, &mut Vec<Due>),
    ) {
        let mut due = Vec::new();
        rule(&mut self.followed(tid).tracker, &mut due);
        self.report(tid, due, jobs);
    }

    fn sample_running(&mut self, wanted: bool, now_ns: u64) {
        let lingers = now_ns.saturating_sub(self.suspected_ns) < TICKS_LINGER_NS;
        let ticks = if wanted {
            Sampling::On
        } else if lingers {
            return;
        } else {
            Sampling::Off
        };
        if let Err(error) = self.source.set_ticks(ticks) {
            self.ticks_refused = Some(format!("{error:#}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::time::Duration;

    use profiler_ebpf::contention::Contenders;
    use profiler_ebpf::loop_counters::LoopCounters;
    use profiler_ebpf::parks::Parks;
    use profiler_ebpf::record::{CaptureHead, RecordHead, Registers, ThreadSnapshot, reason};
    use profiler_ebpf::turn::{FUTEX, Loop, Turn, WaitCall, phase, state, wait};
    use profiler_ebpf::wanted::Wanted;
    use zerocopy::FromZeros;

    use super::{Job, Session};
    use crate::interval::Interval;
    use crate::job::ParkVerdict;
    use crate::process::target::Target;
    use crate::process::{TargetMemory, Unreadable};
    use crate::runtime::park::{ParkState, Pool};
    use crate::runtime::runtimes::Runtimes;
    use crate::source::{
        Captured, Ended, EndedBy, Event, EventSource, InterpreterPlaces, OtherWaiters, Sampling,
        Slot,
    };
    use crate::turn::Moment;

    const MS: u64 = 1_000_000;
    const THRESHOLD: u64 = 100 * MS;
    const TID: u32 = 77;

    /// A source that shows one loop, and tells what a test puts into it.
    #[derive(Default)]
    struct Scripted {
        state: Loop,
        block: Option<Captured>,
        events: VecDeque<Event>,
        ticks: Vec<Sampling>,
        released: u32,
        moves_on: bool,
        parks: Parks,
        wanted: Wanted,
        places: InterpreterPlaces,
        wakers: bool,
        reading: Option<LoopCounters>,
    }

    impl Scripted {
        /// The thread gave up its CPU at that time.
        fn block_at(&mut self, at_ns: u64) {
            self.state.booked_until_ns = at_ns;
            self.block = Some(blocked_at(at_ns, self.state.turn.start_ns));
        }
    }

    impl EventSource for Scripted {
        fn drain(&mut self) -> Vec<Event> {
            self.events.drain(..).collect()
        }

        fn loops(&mut self) -> Vec<Slot> {
            vec![Slot { index: 0, state: self.state }]
        }

        fn last_block(&mut self, _slot: Slot) -> Option<Captured> {
            self.block.clone()
        }

        fn contenders(&mut self, _slot: Slot) -> Option<Contenders> {
            None
        }

        fn seed(&mut self, state: Loop, _capture: CaptureHead) -> anyhow::Result<bool> {
            self.state = state;
            Ok(true)
        }

        fn is_still_in(&self, _capture: &CaptureHead) -> bool {
            !self.moves_on
        }

        fn set_parks(&mut self, _slot: Slot, parks: Parks) {
            self.parks = parks;
        }

        fn set_handed_work(&mut self, _slot: Slot, is_handed: bool) {
            self.state.handed_work = u64::from(is_handed);
        }

        fn set_shares(&mut self, _slot: Slot, shares: bool) {
            self.state.shares = u64::from(shares);
        }

        fn set_interpreter(&mut self, _slot: Slot, places: InterpreterPlaces) {
            self.places = places;
        }

        fn set_ticks(&mut self, wanted: Sampling) -> anyhow::Result<()> {
            self.ticks.push(wanted);
            Ok(())
        }

        fn threads(&mut self) -> anyhow::Result<Vec<ThreadSnapshot>> {
            Ok(Vec::new())
        }

        fn set_wanted(&mut self, wanted: Wanted) -> anyhow::Result<()> {
            self.wanted = wanted;
            Ok(())
        }

        fn set_thread_states(&mut self, _states: &[(u64, u64)]) -> anyhow::Result<()> {
            Ok(())
        }

        fn watch_wakers(&mut self, wanted: bool) -> anyhow::Result<()> {
            self.wakers = wanted;
            Ok(())
        }

        fn take_reading(&mut self, slot: Slot) -> Option<(Loop, LoopCounters)> {
            Some((slot.state, self.reading.clone()?))
        }

        fn release(&mut self, _slot: Slot) {
            self.released += 1;
        }

        fn unwatch(&mut self, _slot: Slot) {
            self.released += 1;
        }

        fn losses(&mut self) -> Vec<(&'static str, u64)> {
            vec![("captures", 3)]
        }
    }

    /// Memory whose every byte is 7.
    struct Sevens;

    impl TargetMemory for Sevens {
        fn read(&self, _address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
            buffer.fill(7);
            Ok(())
        }
    }

    fn session(begun_ns: u64, scheduler: u32) -> Session<Scripted, Sevens> {
        let mut state = Loop { tid: TID, ..Loop::default() };
        state.adopt(&WaitCall { fd: 3, ..WaitCall::any(wait::EPOLL) });
        state.begin(begun_ns, 0);
        state.state = scheduler;
        let source = Scripted { state, ..Scripted::default() };
        let target = Arc::new(Target::open(std::process::id()).unwrap());
        Session::new(source, Sevens, target, Runtimes::default(), THRESHOLD)
    }

    fn blocked_at(at_ns: u64, begun_ns: u64) -> Captured {
        let head = CaptureHead {
            head: RecordHead { kind: profiler_ebpf::record::kind::CAPTURE, tid: TID },
            at_ns,
            turn_start_ns: begun_ns,
            reason: reason::SWITCH_OUT,
            registers: Registers { sp: 0x1000, ..Registers::default() },
            stack_top: 0x1010,
            ..CaptureHead::default()
        };
        Captured::of_outside(head, Vec::new())
    }

    fn moments(jobs: &[Job]) -> Vec<Moment> {
        let moment = |job: &Job| match job {
            Job::Report { due, .. } => Some(due.moment),
            _ => None,
        };
        jobs.iter().filter_map(moment).collect()
    }

    /// A loop that runs is looked at again when its turn becomes suspect; from then on it is sampled,
    /// and reported once it is past the threshold.
    #[test]
    fn running_turn_is_sampled_when_suspected() {
        let mut session = session(1000 * MS, state::RUNNING);
        let mut jobs = Vec::new();
        assert_eq!(session.step(1020 * MS, &mut jobs), 1050 * MS);
        assert_eq!(session.source.ticks, [Sampling::Off], "nothing is suspected");
        assert_eq!(session.step(1050 * MS, &mut jobs), 1060 * MS);
        assert_eq!(session.source.ticks.last(), Some(&Sampling::On));
        assert!(jobs.is_empty());
        session.step(1101 * MS, &mut jobs);
        assert_eq!(moments(&jobs), [Moment::Open]);
    }

    /// A worker that was found at work is watched in that call, and as a parked one once it has gone on.
    #[test]
    fn a_worker_that_has_moved_on() {
        const WORKER: u32 = 78;
        const QUEUE: Pool =
            Pool { name: "pool", may_take_its_time: true, has_queue: true, waits_in_epoll: false };
        for (moves_on, expected) in [(false, phase::TURN), (true, phase::PARKED)] {
            let mut session = session(1000 * MS, state::RUNNING);
            session.source.moves_on = moves_on;
            let thread = ThreadSnapshot { tid: WORKER, task_state: 1, ..ThreadSnapshot::default() };
            session.workers.look_at(thread);
            let head = CaptureHead {
                head: RecordHead { kind: profiler_ebpf::record::kind::CAPTURE, tid: WORKER },
                ..CaptureHead::default()
            };
            let verdict = ParkVerdict { head, park_state: ParkState::Working(QUEUE) };
            session.learn(&verdict, 1010 * MS, &mut Vec::new());
            let Loop { tid, phase, .. } = session.source.state;
            assert_eq!((tid, phase), (WORKER, expected));
        }
    }

    /// The stack of a blocked thread is completed from its memory, once, and before the report.
    #[test]
    fn blocked_turn_is_completed_once() {
        let mut session = session(1000 * MS, state::BLOCKED);
        session.source.block_at(1001 * MS);
        let mut jobs = Vec::new();
        session.step(1060 * MS, &mut jobs);
        session.step(1101 * MS, &mut jobs);
        let Job::Sample { captured, .. } = &jobs[0] else { panic!("no sample: {jobs:?}") };
        assert_eq!(captured.stack, [7; 0x10]);
        assert!(matches!(jobs[1], Job::CountQueues { tid: TID, .. }), "{jobs:?}");
        assert_eq!(moments(&jobs[2..]), [Moment::Open]);
        assert_eq!(jobs.len(), 3);
        assert!(
            !session.source.ticks.contains(&Sampling::On),
            "a thread that sleeps needs no ticks"
        );
    }

    /// While a loop is blocked on a futex, whoever wakes it is watched for; sampled is nobody, because a
    /// semaphore has no owner. Afterwards the watch ends.
    #[test]
    fn wakers_are_watched_for() {
        let mut session = session(1000 * MS, state::BLOCKED);
        session.source.block_at(1001 * MS);
        if let Some(block) = &mut session.source.block {
            block.head.registers.syscall = FUTEX;
        }
        let mut jobs = Vec::new();
        session.step(1020 * MS, &mut jobs);
        assert!(!session.source.wakers, "nothing is suspected yet");
        session.step(1060 * MS, &mut jobs);
        assert!(session.source.wakers);
        assert_eq!(session.source.wanted, Wanted::default());
        assert!(!session.source.ticks.contains(&Sampling::On));
        session.source.state.phase = phase::WAITING;
        session.step(1100 * MS, &mut jobs);
        assert!(session.source.wakers, "the next wait may be of the same kind");
        session.step(1400 * MS, &mut jobs);
        assert!(!session.source.wakers);
    }

    /// Where all threads are asked for, a suspected turn has everybody sampled, and its first report
    /// brings them.
    #[test]
    fn everybody_is_watched() {
        let mut session = session(1000 * MS, state::BLOCKED);
        session.watch_all_threads();
        let mut jobs = Vec::new();
        session.step(1020 * MS, &mut jobs);
        assert_eq!(session.source.wanted, Wanted::default());
        session.step(1060 * MS, &mut jobs);
        assert_eq!(session.source.wanted, Wanted { everyone: 1, ..Wanted::default() });
        assert_eq!(session.source.ticks.last(), Some(&Sampling::On));
        session.step(1101 * MS, &mut jobs);
        assert!(matches!(jobs[0], Job::Bystanders { loop_tid: TID, .. }), "{jobs:?}");
        assert_eq!(moments(&jobs), [Moment::Open]);
    }

    /// A capture of an earlier block, or one that may be half written, is not taken for this block's.
    #[test]
    fn capture_must_be_of_the_block() {
        let mut session = session(1000 * MS, state::BLOCKED);
        session.source.block_at(1055 * MS);
        session.source.state.booked_until_ns = 1056 * MS;
        let mut jobs = Vec::new();
        session.step(1060 * MS, &mut jobs);
        assert!(jobs.is_empty(), "of another block: {jobs:?}");
        session.source.block_at(1060 * MS - 1000);
        session.step(1060 * MS, &mut jobs);
        assert!(jobs.is_empty(), "too young: {jobs:?}");
    }

    /// Once a block whose stack was completed is over, only its length is told on.
    #[test]
    fn end_of_a_completed_block() {
        let mut session = session(1000 * MS, state::BLOCKED);
        session.source.block_at(1001 * MS);
        let mut jobs = Vec::new();
        session.step(1060 * MS, &mut jobs);
        jobs.clear();
        let mut over = blocked_at(1001 * MS, 1000 * MS);
        over.head.blocked_ns = 70 * MS;
        session.source.events.push_back(Event::Captured(Box::new(over)));
        session.step(1075 * MS, &mut jobs);
        assert!(
            matches!(&jobs[0], Job::BlockEnded { captured } if captured.head.blocked_ns == 70 * MS)
        );
    }

    /// A thread is in its turn until that is over, and in none before it or after.
    #[test]
    fn a_turn_is_one() {
        let mut session = session(1000 * MS, state::RUNNING);
        assert!(session.source.is_in_turn(TID, 1000 * MS));
        assert!(!session.source.is_in_turn(TID, 900 * MS));
        assert!(!session.source.is_in_turn(TID + 1, 1000 * MS));
        session.source.state.phase = phase::WAITING;
        assert!(!session.source.is_in_turn(TID, 1000 * MS));
    }

    /// What was lost by the time of a report goes with it.
    #[test]
    fn losses_go_with_reports() {
        let mut session = session(1000 * MS, state::RUNNING);
        session.source.state.phase = phase::WAITING;
        let turn = Turn { start_ns: 1000 * MS, running_ns: 150 * MS, ..Turn::default() };
        let (by, others) = (EndedBy::Wait, OtherWaiters::LeftAt(0));
        let ended = Ended { by, left_ns: turn.start_ns, others };
        session.source.events.push_back(Event::TurnEnded {
            tid: TID,
            end_ns: 1150 * MS,
            turn,
            ended,
        });
        let mut jobs = Vec::new();
        session.step(1200 * MS, &mut jobs);
        let Job::Report { due, losses, .. } = &jobs[0] else { panic!("no report: {jobs:?}") };
        assert_eq!((due.moment, due.ready_events), (Moment::End, Some(0)));
        assert_eq!(losses, &[("captures", 3)]);
    }

    /// A session whose statistics are told every 100 ms from 1000 ms on, in a turn that began then.
    fn with_statistics() -> Session<Scripted, Sevens> {
        let mut session = session(1000 * MS, state::RUNNING);
        session.source.reading = Some(LoopCounters::new_zeroed());
        session.keep_statistics(Duration::from_millis(100), Vec::new(), 1000 * MS);
        session
    }

    fn intervals(jobs: &[Job]) -> Vec<&Interval> {
        let intervals = jobs.iter().filter_map(|job| match job {
            Job::Statistics(interval) => Some(&**interval),
            _ => None,
        });
        intervals.collect()
    }

    /// Statistics come at their intervals and not between, and the last of them covers the rest; time
    /// in a turn that goes on is in each.
    #[test]
    fn statistics_at_intervals() {
        let mut session = with_statistics();
        let mut jobs = Vec::new();
        assert_eq!(session.step(1060 * MS, &mut jobs), 1070 * MS);
        assert!(session.step(1095 * MS, &mut jobs) <= 1100 * MS);
        assert!(intervals(&jobs).is_empty(), "{jobs:?}");
        let ended = Turn { running_ns: 7 * MS, ..Turn::default() };
        session.source.reading.as_mut().unwrap().turn_over(&ended);
        session.step(1100 * MS, &mut jobs);
        session.step(1110 * MS, &mut jobs);
        session.finish("the end", 1150 * MS, &mut jobs);
        let told: Vec<_> = intervals(&jobs)
            .iter()
            .map(|interval| {
                let one = &interval.loops[0];
                (interval.duration_ns, one.turns.count(), one.time.running_ns)
            })
            .collect();
        assert_eq!(told, [(100 * MS, 1, 107 * MS), (50 * MS, 0, 50 * MS)]);
    }

    /// What a thread did that has exited is told once; whoever asked for no statistics gets none.
    #[test]
    fn statistics_of_the_gone() {
        let mut session = with_statistics();
        session.source.reading.as_mut().unwrap().turn_over(&Turn::default());
        session.source.state.phase = phase::DEAD;
        let mut jobs = Vec::new();
        session.step(1010 * MS, &mut jobs);
        session.source.reading = None;
        session.step(1100 * MS, &mut jobs);
        session.step(1200 * MS, &mut jobs);
        let loops =
            intervals(&jobs).iter().map(|interval| interval.loops.len()).collect::<Vec<_>>();
        assert_eq!(loops, [1, 0]);

        let mut session = self::session(1000 * MS, state::RUNNING);
        let mut jobs = Vec::new();
        session.step(9000 * MS, &mut jobs);
        session.finish("the end", 9001 * MS, &mut jobs);
        assert!(intervals(&jobs).is_empty());
    }

    /// The slot of a thread that is gone serves another, and its turns still count.
    #[test]
    fn slots_are_given_back() {
        let mut session = session(1000 * MS, state::RUNNING);
        session.source.state.turns = 5;
        let mut jobs = Vec::new();
        session.step(1001 * MS, &mut jobs);
        session.source.state.phase = phase::DEAD;
        session.step(1002 * MS, &mut jobs);
        assert_eq!((session.source.released, session.turns()), (1, 5));
    }

    /// What a thread's memory shows once it has come back is not of the block that its state was read in.
    #[test]
    fn a_state_that_is_out_of_date() {
        let mut session = session(0, state::BLOCKED);
        session.source.block_at(60 * MS);
        let slot = session.source.loops()[0];
        assert!(session.still_blocks(&slot));
        session.source.block_at(90 * MS);
        assert!(!session.still_blocks(&slot), "another block");
        session.source.block_at(60 * MS);
        session.source.state.state = state::RUNNING;
        assert!(!session.still_blocks(&slot));
    }
}
