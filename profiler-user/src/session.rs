//! One attached process: its events and the state of its loops to jobs for the analyst.
//!
//! Everything here happens while the target may be frozen, so nothing here is slow: what needs the
//! target's live memory is read at once, what needs files, symbols or sinks is left to the analyst.

use std::collections::BTreeMap;
use std::sync::Arc;

use profiler_ebpf::limits::MIN_BLOCK_NS;
use profiler_ebpf::python::PythonWalk;
use profiler_ebpf::record::{ThreadSnapshot, reason};
use profiler_ebpf::turn::{phase, state};

use crate::gap::Gap;
use crate::job::{Job, KernelStack, PythonFrames};
use crate::process::TargetMemory;
use crate::process::frozen::{Candidate, Evidence, in_turn, is_of_a_loop, seed};
use crate::process::stack::read_stack;
use crate::process::target::{Target, WaitDescriptors};
use crate::runtime::cpython::{Gil, NamedFrame, Python};
use crate::runtime::v8::{ScriptFrames, V8};
use crate::source::{Captured, Event, EventSource, Slot, Ticks};
use crate::turn::Awaited;
use crate::turn::tracker::{Due, Tracker};

/// Between two looks while a turn is suspected.
const CLOSE_LOOK_NS: u64 = 10_000_000;

/// Between two searches for a thread's interpreter state: a loop in native code never has one.
const SEARCH_EVERY_NS: u64 = 1_000_000_000;

/// Ticks stay on so long after the last suspicion: switching on the first one takes 13 ms.
const TICKS_LINGER_NS: u64 = 250_000_000;

/// One loop that is followed.
#[derive(Debug)]
struct Followed {
    tracker: Tracker,
    /// The blocked stretch whose stack has been completed, by its beginning.
    completed_ns: u64,
    /// The interpreter's state of this thread, once found.
    tstate: Option<u64>,
    next_search_ns: u64,
    turns: u64,
}

impl Followed {
    fn new(threshold_ns: u64) -> Self {
        let tracker = Tracker::new(threshold_ns);
        Self { tracker, completed_ns: 0, tstate: None, next_search_ns: 0, turns: 0 }
    }

    /// Whether to search for the interpreter's state of this thread now; not at every look.
    fn search_is_due(&mut self, now_ns: u64) -> bool {
        let due = self.tstate.is_none() && now_ns >= self.next_search_ns;
        if due {
            self.next_search_ns = now_ns + SEARCH_EVERY_NS;
        }
        due
    }
}

/// The event path. Generic over its two doors.
#[allow(missing_debug_implementations, reason = "the source has none")]
pub struct Session<S, M> {
    pub source: S,
    memory: M,
    target: Arc<Target>,
    python: Option<Python>,
    v8: Option<V8>,
    /// The interpreter's lock, once it was found.
    gil: Option<Gil>,
    threshold_ns: u64,
    loops: BTreeMap<u32, Followed>,
    /// Turns of loops whose threads have exited.
    turns_of_gone: u64,
    suspected_ns: u64,
    /// Why running threads cannot be sampled, if they cannot.
    ticks_refused: Option<String>,
}

impl<S: EventSource, M: TargetMemory> Session<S, M> {
    pub fn new(
        source: S,
        memory: M,
        target: Arc<Target>,
        python: Option<Python>,
        threshold_ns: u64,
    ) -> Self {
        Self {
            source,
            memory,
            target,
            python,
            v8: None,
            gil: None,
            threshold_ns,
            loops: BTreeMap::new(),
            turns_of_gone: 0,
            suspected_ns: 0,
            ticks_refused: None,
        }
    }

    /// Names the JavaScript functions of captures, too.
    pub fn with_v8(self, v8: Option<V8>) -> Self {
        Self { v8, ..self }
    }

    pub fn python(&self) -> Option<&Python> {
        self.python.as_ref()
    }

    /// Watches the threads that are inside a turn already, now that all hooks are up.
    pub fn adopt_frozen(
        &mut self,
        threads: &[ThreadSnapshot],
        descriptors: WaitDescriptors,
        now_ns: u64,
    ) -> anyhow::Result<()> {
        let mut candidates = Vec::new();
        for thread in threads {
            candidates.push(Candidate { thread: *thread, evidence: self.evidence(thread) });
        }
        for thread in in_turn(&candidates, descriptors.epoll) {
            let (state, capture) = seed(&thread, now_ns);
            self.source.seed(state, capture)?;
        }
        Ok(())
    }

    /// A thread that runs while it is read may show a torn stack; it is only asked whether a loop is on it.
    fn evidence(&mut self, thread: &ThreadSnapshot) -> Evidence {
        let Some(python) = &mut self.python else { return Evidence::Unknown };
        let state = self
            .target
            .tid_in_container(thread.tid)
            .and_then(|tid| python.thread_state(&self.memory, tid, Some(thread.fsbase)).ok());
        let Some(state) = state else { return Evidence::NoLoopOnStack };
        let (frames, _) = python.walk(&self.memory, state, Some(thread.fsbase));
        let shows_loop = |frame: &NamedFrame| frame.file.as_deref().is_some_and(is_of_a_loop);
        match python.decode(&self.memory, &frames).iter().any(shows_loop) {
            true => Evidence::LoopOnStack,
            false => Evidence::NoLoopOnStack,
        }
    }

    /// Looks once; returns when to look next. `now_ns` is CLOCK_MONOTONIC.
    pub fn step(&mut self, now_ns: u64, jobs: &mut Vec<Job>) -> u64 {
        // First the states, then the records: see `turn::tracker`.
        let slots = self.source.loops();
        for event in self.source.drain() {
            self.take(event, jobs);
        }
        let mut next_ns = now_ns + self.suspect_ns();
        let mut wants_ticks = false;
        for slot in slots {
            if slot.state.phase == phase::DEAD {
                if let Some(gone) = self.loops.remove(&slot.state.tid) {
                    self.turns_of_gone += gone.turns;
                }
                self.source.release(slot);
                continue;
            }
            self.follow(slot, now_ns);
            if slot.state.phase == phase::TURN {
                let suspect_at_ns = slot.state.turn.start_ns + self.suspect_ns();
                if now_ns >= suspect_at_ns {
                    wants_ticks |= slot.state.state != state::BLOCKED;
                    self.suspected_ns = now_ns;
                    self.complete_block(slot, now_ns, jobs);
                }
                next_ns = next_ns.min(suspect_at_ns.max(now_ns + CLOSE_LOOK_NS));
            }
            self.look(slot, now_ns, jobs);
        }
        self.sample_running(wants_ticks, now_ns);
        next_ns
    }

    /// Closes whatever is open: we are about to detach, or the target is gone.
    pub fn finish(&mut self, why: &str, now_ns: u64, jobs: &mut Vec<Job>) {
        let slots = self.source.loops();
        for event in self.source.drain() {
            self.take(event, jobs);
        }
        for (tid, followed) in &mut self.loops {
            let seen = slots.iter().find(|slot| slot.state.tid == *tid).map(|slot| &slot.state);
            let mut due = Vec::new();
            followed.tracker.close(seen, why, now_ns, &mut due);
            report(*tid, due, &mut self.source, jobs);
        }
    }

    /// Turns of all loops so far.
    pub fn turns(&self) -> u64 {
        let present: u64 = self.loops.values().map(|followed| followed.turns).sum();
        self.turns_of_gone + present
    }

    /// Half the threshold: from here on a turn is suspected.
    fn suspect_ns(&self) -> u64 {
        self.threshold_ns / 2
    }

    fn followed(&mut self, tid: u32) -> &mut Followed {
        let threshold_ns = self.threshold_ns;
        self.loops.entry(tid).or_insert_with(|| Followed::new(threshold_ns))
    }

    fn follow(&mut self, slot: Slot, now_ns: u64) {
        let tid = slot.state.tid;
        let followed = self.followed(tid);
        followed.turns = slot.state.turns;
        if followed.search_is_due(now_ns)
            && let Some(python) = &self.python
            && let Some(number) = self.target.tid_in_container(tid)
            && let Ok(tstate) = python.thread_state(&self.memory, number, None)
        {
            self.followed(tid).tstate = Some(tstate);
            self.source.set_python_state(slot, tstate);
        }
    }

    fn look(&mut self, slot: Slot, now_ns: u64, jobs: &mut Vec<Job>) {
        let Some(followed) = self.loops.get_mut(&slot.state.tid) else { return };
        let mut due = Vec::new();
        followed.tracker.look(&slot.state, now_ns, &mut due);
        for due in &mut due {
            if let Some(why) = &self.ticks_refused {
                due.gaps.push(Gap::new("stacks of the running thread", why));
            }
        }
        report(slot.state.tid, due, &mut self.source, jobs);
    }

    fn take(&mut self, event: Event, jobs: &mut Vec<Job>) {
        match event {
            Event::Captured(captured) => self.captured(captured, jobs),
            Event::TurnEnded { tid, end_ns, turn } => {
                self.with(tid, jobs, |tracker, due| tracker.ended(turn, end_ns, due));
            }
            Event::Ready { tid, turn_start_ns, returned } => {
                self.with(tid, jobs, |tracker, due| tracker.ready(turn_start_ns, returned, due));
            }
            Event::Exited { tid, at_ns, turn } => {
                self.with(tid, jobs, |tracker, due| tracker.exited(turn, at_ns, due));
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
        report(tid, due, &mut self.source, jobs);
    }

    /// A capture out of the ring: a tick, or a blocked stretch that is over.
    fn captured(&mut self, captured: Box<Captured>, jobs: &mut Vec<Job>) {
        let head = captured.head;
        let completed = self
            .loops
            .get(&head.head.tid)
            .is_some_and(|followed| followed.completed_ns == head.at_ns);
        if head.reason == reason::SWITCH_OUT && completed {
            jobs.push(Job::BlockEnded { captured });
            return;
        }
        if PythonWalk::from_u32(head.python_walk) == PythonWalk::WrongThread
            && let Some(followed) = self.loops.get_mut(&head.head.tid)
        {
            // The state that we knew belongs to another thread by now: search again.
            followed.tstate = None;
        }
        let javascript = self.name_javascript(&captured);
        let python = PythonFrames::decode(self.python.as_mut(), &self.memory, &captured);
        let awaited = self.awaited(&captured);
        let kernel = KernelStack::Captured;
        jobs.push(Job::Sample { captured, python, javascript, kernel, awaited });
    }

    /// Completes the stack of a thread that is blocked in a suspected turn: it cannot move, so its
    /// memory holds what it held when it gave up the CPU.
    fn complete_block(&mut self, slot: Slot, now_ns: u64, jobs: &mut Vec<Job>) {
        if slot.state.state != state::BLOCKED && slot.state.state != state::STOPPED {
            return;
        }
        let Some(mut captured) = self.source.last_block(slot) else { return };
        let tid = slot.state.tid;
        let Some(followed) = self.loops.get(&tid) else { return };
        let head = &captured.head;
        // The capture is of this block only if both bear the same time. A young one may still be
        // being written.
        let is_of_block = head.reason == reason::SWITCH_OUT
            && head.at_ns == slot.state.booked_until_ns
            && now_ns.saturating_sub(head.at_ns) >= MIN_BLOCK_NS;
        if !is_of_block || head.at_ns == followed.completed_ns {
            return;
        }
        let tstate = followed.tstate;
        if captured.stack.is_empty() {
            captured.stack = read_stack(&self.memory, &captured.head);
            if let (Some(python), Some(tstate)) = (&self.python, tstate) {
                let (frames, walk) = python.walk(&self.memory, tstate, Some(captured.head.fsbase));
                captured.python = frames;
                captured.head.python_walk = walk as u32;
            }
        }
        let awaited = self.awaited(&captured);
        if awaited == Awaited::Gil {
            self.find_holder(&captured, jobs);
        }
        let python = PythonFrames::decode(self.python.as_mut(), &self.memory, &captured);
        let javascript = self.name_javascript(&captured);
        let kernel = KernelStack::Text(self.target.kernel_stack(tid));
        // Had it moved meanwhile, the stack would be another one's.
        let unmoved =
            self.source.last_block(slot).is_some_and(|now| now.head.at_ns == captured.head.at_ns);
        if !unmoved {
            return;
        }
        if let Some(followed) = self.loops.get_mut(&tid) {
            followed.completed_ns = captured.head.at_ns;
        }
        captured.head.blocked_ns = 0;
        let captured = Box::new(captured);
        jobs.push(Job::Sample { captured, python, javascript, kernel, awaited });
    }

    /// What a blocked thread waits for, as far as its registers and the interpreter tell.
    fn awaited(&mut self, captured: &Captured) -> Awaited {
        const FUTEX: i64 = 202;
        let Some(python) = &self.python else { return Awaited::Syscall };
        if captured.head.reason != reason::SWITCH_OUT || captured.head.registers.syscall != FUTEX {
            return Awaited::Syscall;
        }
        self.gil = self.gil.or_else(|| python.gil(&self.memory));
        let [futex, ..] = captured.head.registers.args;
        match self.gil {
            Some(gil) if gil.contains(futex) => Awaited::Gil,
            _ => Awaited::Syscall,
        }
    }

    /// Tells who holds the interpreter's lock while the loop's thread waits for it.
    fn find_holder(&mut self, captured: &Captured, jobs: &mut Vec<Job>) {
        let (Some(python), Some(gil)) = (&mut self.python, self.gil) else { return };
        let Some(holder) = python.holder(&self.memory, gil) else { return };
        let Some(tid) = self.target.tid_of(holder.tid_in_container) else { return };
        jobs.push(Job::Holder {
            loop_tid: captured.head.head.tid,
            turn_start_ns: captured.head.turn_start_ns,
            tid,
            frames: python.decode(&self.memory, &holder.frames),
            walk: holder.walk,
        });
    }

    fn name_javascript(&mut self, captured: &Captured) -> ScriptFrames {
        let Some(v8) = &mut self.v8 else { return ScriptFrames::default() };
        v8.frames(&self.memory, &captured.head.registers, &captured.stack)
    }

    fn sample_running(&mut self, wanted: bool, now_ns: u64) {
        let lingers = now_ns.saturating_sub(self.suspected_ns) < TICKS_LINGER_NS;
        let ticks = if wanted {
            Ticks::On
        } else if lingers {
            return;
        } else {
            Ticks::Off
        };
        if let Err(error) = self.source.set_ticks(ticks) {
            self.ticks_refused = Some(format!("{error:#}"));
        }
    }
}

fn report(tid: u32, due: Vec<Due>, source: &mut impl EventSource, jobs: &mut Vec<Job>) {
    for due in due {
        jobs.push(Job::Report { tid, due: Box::new(due), losses: source.losses() });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use profiler_ebpf::record::{CaptureHead, RecordHead, Registers, reason};
    use profiler_ebpf::turn::{Loop, Turn, phase, state, wait};

    use super::{Followed, Job, Session};
    use crate::process::target::Target;
    use crate::process::{TargetMemory, Unreadable};
    use crate::source::{Captured, Event, EventSource, Slot, Ticks};
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
        ticks: Vec<Ticks>,
        released: u32,
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

        fn seed(&mut self, state: Loop, _capture: CaptureHead) -> anyhow::Result<bool> {
            self.state = state;
            Ok(true)
        }

        fn set_python_state(&mut self, _slot: Slot, _tstate: u64) {}

        fn set_ticks(&mut self, wanted: Ticks) -> anyhow::Result<()> {
            self.ticks.push(wanted);
            Ok(())
        }

        fn release(&mut self, _slot: Slot) {
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
        state.adopt(wait::EPOLL, 3);
        state.begin(begun_ns, 0);
        state.state = scheduler;
        let source = Scripted { state, ..Scripted::default() };
        let target = Arc::new(Target::open(std::process::id()).unwrap());
        Session::new(source, Sevens, target, None, THRESHOLD)
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
        Captured { head, kernel: Vec::new(), python: Vec::new(), stack: Vec::new() }
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
        assert_eq!(session.source.ticks, [Ticks::Off], "nothing is suspected");
        assert_eq!(session.step(1050 * MS, &mut jobs), 1060 * MS);
        assert_eq!(session.source.ticks.last(), Some(&Ticks::On));
        assert!(jobs.is_empty());
        session.step(1101 * MS, &mut jobs);
        assert_eq!(moments(&jobs), [Moment::Open]);
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
        assert_eq!(moments(&jobs[1..]), [Moment::Open]);
        assert_eq!(jobs.len(), 2);
        assert!(!session.source.ticks.contains(&Ticks::On), "a thread that sleeps needs no ticks");
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

    /// A thread whose interpreter state was not found is searched for again, however often it is
    /// looked at meanwhile; one that was found is not.
    #[test]
    fn state_is_searched_for_again() {
        let mut followed = Followed::new(THRESHOLD);
        let looks = (0..=40).map(|look| look * 50 * MS);
        let searches: Vec<u64> = looks.filter(|now_ns| followed.search_is_due(*now_ns)).collect();
        assert_eq!(searches, [0, 1000 * MS, 2000 * MS]);
        followed.tstate = Some(1);
        assert!(!followed.search_is_due(9000 * MS));
    }

    /// What was lost by the time of a report goes with it.
    #[test]
    fn losses_go_with_reports() {
        let mut session = session(1000 * MS, state::RUNNING);
        session.source.state.phase = phase::WAITING;
        let turn = Turn { start_ns: 1000 * MS, running_ns: 150 * MS, ..Turn::default() };
        session.source.events.push_back(Event::TurnEnded { tid: TID, end_ns: 1150 * MS, turn });
        let mut jobs = Vec::new();
        session.step(1200 * MS, &mut jobs);
        let Job::Report { due, losses, .. } = &jobs[0] else { panic!("no report: {jobs:?}") };
        assert_eq!((due.moment, due.ready_events), (Moment::End, Some(0)));
        assert_eq!(losses, &[("captures", 3)]);
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
}
