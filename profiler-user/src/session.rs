//! One attached process: its events and the state of its loops to jobs for the analyst.
//!
//! Everything here happens while the target may be frozen, so nothing here is slow: what needs the
//! target's live memory is read at once, what needs files, symbols or sinks is left to the analyst.

use std::collections::BTreeMap;
use std::sync::Arc;

use profiler_ebpf::limits::{PAGE_BYTES, STACK_BYTES};
use profiler_ebpf::python::PythonWalk;
use profiler_ebpf::record::{CaptureHead, ThreadSnapshot, reason};
use profiler_ebpf::turn::{phase, state};

use crate::gap::Gap;
use crate::process::TargetMemory;
use crate::process::frozen::{Candidate, Evidence, in_turn, seed};
use crate::process::target::{Target, WaitDescriptors};
use crate::report::Start;
use crate::runtime::cpython::{NamedFrame, Python};
use crate::source::{Captured, Event, EventSource, Slot, Ticks};
use crate::turn::tracker::{Due, Tracker};

/// Between two looks while a turn is suspected.
const CLOSE_LOOK_NS: u64 = 10_000_000;

/// Ticks stay on so long after the last suspicion: switching on the first one takes 13 ms.
const TICKS_LINGER_NS: u64 = 250_000_000;

/// Files whose frames on a stack show that the thread runs an event loop.
const LOOP_FILES: [&str; 5] = [
    "/asyncio/base_events.py",
    "/asyncio/runners.py",
    "/gevent/hub.py",
    "/trio/_core/_run.py",
    "/tornado/ioloop.py",
];

/// Interpreter frames of one capture, or why there are none.
#[derive(Debug, Clone)]
pub enum PythonFrames {
    /// The target runs no CPython that we know.
    NotPython,
    Named { frames: Vec<NamedFrame>, walk: PythonWalk },
    Missing(Gap),
}

/// What was lost, by name.
pub type Losses = Vec<(&'static str, u64)>;

/// Work for the analyst, in order.
#[derive(Debug)]
pub enum Job {
    /// The session's first line is due, once what the first stall needs has been read by way of
    /// these captures.
    Begin { start: Box<Start>, warm_up: Vec<Captured> },
    /// Where a loop's thread was at one moment.
    Sample { captured: Box<Captured>, python: PythonFrames, kernel_stack: Option<String> },
    /// A blocked stretch is over whose stack may have been sent before.
    BlockEnded { captured: Box<Captured> },
    /// A line is due; with what has been lost so far.
    Report { tid: u32, due: Box<Due>, losses: Losses },
}

/// One loop that is followed.
#[derive(Debug)]
struct Followed {
    tracker: Tracker,
    /// The blocked stretch whose stack has been completed, by its beginning.
    completed_ns: u64,
    /// The interpreter's state of this thread, once found.
    tstate: Option<u64>,
    turns: u64,
}

/// The event path. Generic over its two doors.
#[allow(missing_debug_implementations, reason = "the source has none")]
pub struct Session<S, M> {
    pub source: S,
    memory: M,
    target: Arc<Target>,
    python: Option<Python>,
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
            threshold_ns,
            loops: BTreeMap::new(),
            turns_of_gone: 0,
            suspected_ns: 0,
            ticks_refused: None,
        }
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
        let shows_loop = |frame: &NamedFrame| {
            let file = frame.file.as_deref().unwrap_or_default();
            LOOP_FILES.iter().any(|known| file.ends_with(known))
        };
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
            self.follow(slot);
            if slot.state.phase == phase::TURN {
                let suspect_at_ns = slot.state.turn.start_ns + self.suspect_ns();
                if now_ns >= suspect_at_ns {
                    wants_ticks |= slot.state.state != state::BLOCKED;
                    self.suspected_ns = now_ns;
                    self.complete_block(slot, jobs);
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

    fn follow(&mut self, slot: Slot) {
        let threshold_ns = self.threshold_ns;
        let followed = self.loops.entry(slot.state.tid).or_insert_with(|| Followed {
            tracker: Tracker::new(threshold_ns),
            completed_ns: 0,
            tstate: None,
            turns: 0,
        });
        followed.turns = slot.state.turns;
        if followed.tstate.is_none()
            && let Some(python) = &self.python
            && let Some(tid) = self.target.tid_in_container(slot.state.tid)
            && let Ok(tstate) = python.thread_state(&self.memory, tid, None)
        {
            followed.tstate = Some(tstate);
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

    fn with(&mut self, tid: u32, jobs: &mut Vec<Job>, rule: impl FnOnce(&mut Tracker, &mut Vec<Due>)) {
        let threshold_ns = self.threshold_ns;
        let followed = self.loops.entry(tid).or_insert_with(|| Followed {
            tracker: Tracker::new(threshold_ns),
            completed_ns: 0,
            tstate: None,
            turns: 0,
        });
        let mut due = Vec::new();
        rule(&mut followed.tracker, &mut due);
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
        let python = self.name_python(&captured);
        jobs.push(Job::Sample { captured, python, kernel_stack: None });
    }

    /// Completes the stack of a thread that is blocked in a suspected turn: it cannot move, so its
    /// memory holds what it held when it gave up the CPU.
    fn complete_block(&mut self, slot: Slot, jobs: &mut Vec<Job>) {
        if slot.state.state != state::BLOCKED && slot.state.state != state::STOPPED {
            return;
        }
        let Some(mut captured) = self.source.last_block(slot) else { return };
        let tid = slot.state.tid;
        let Some(followed) = self.loops.get(&tid) else { return };
        if captured.head.reason != reason::SWITCH_OUT || captured.head.at_ns == followed.completed_ns
        {
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
        let python = self.name_python(&captured);
        let kernel_stack = self.target.kernel_stack(tid);
        // Had it moved meanwhile, the stack would be another one's.
        let unmoved = self.source.last_block(slot).is_some_and(|now| now.head.at_ns == captured.head.at_ns);
        if !unmoved {
            return;
        }
        if let Some(followed) = self.loops.get_mut(&tid) {
            followed.completed_ns = captured.head.at_ns;
        }
        captured.head.blocked_ns = 0;
        jobs.push(Job::Sample { captured: Box::new(captured), python, kernel_stack });
    }

    fn name_python(&mut self, captured: &Captured) -> PythonFrames {
        let Some(python) = &mut self.python else { return PythonFrames::NotPython };
        let walk = PythonWalk::from_u32(captured.head.python_walk);
        match walk {
            PythonWalk::NotTried => {
                let why = "the thread has no interpreter state that we know";
                PythonFrames::Missing(Gap::new("python frames", why))
            }
            PythonWalk::WrongThread => {
                let why = "the interpreter state that we know belongs to another thread";
                PythonFrames::Missing(Gap::new("python frames", why))
            }
            PythonWalk::Complete | PythonWalk::Unreadable | PythonWalk::TooDeep => {
                PythonFrames::Named { frames: python.decode(&self.memory, &captured.python), walk }
            }
        }
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

/// The stack of a frozen thread up to its top, or as much of it as can be read.
pub fn read_stack(memory: &impl TargetMemory, head: &CaptureHead) -> Vec<u8> {
    let sp = head.registers.sp;
    // As in the probes: glibc puts a thread's control block at the end of its stack.
    let top = if head.stack_top != 0 { head.stack_top } else { head.fsbase };
    let length = top.saturating_sub(sp).min(STACK_BYTES as u64);
    let mut stack = vec![0; length as usize];
    if length > 0 && memory.read(sp, &mut stack).is_ok() {
        return stack;
    }
    stack.clear();
    while stack.len() < STACK_BYTES {
        let at = sp.saturating_add(stack.len() as u64);
        let mut page = vec![0; PAGE_BYTES - (at % PAGE_BYTES as u64) as usize];
        if memory.read(at, &mut page).is_err() {
            break;
        }
        stack.extend_from_slice(&page);
    }
    stack
}

fn report(tid: u32, due: Vec<Due>, source: &mut impl EventSource, jobs: &mut Vec<Job>) {
    for due in due {
        jobs.push(Job::Report { tid, due: Box::new(due), losses: source.losses() });
    }
}
