//! Captures of threads that are no suspected loops, to what they have to do with those that are.

use profiler_ebpf::record::{Registers, Woken, reason};

use super::calls::Caller;
use super::{Analyst, is_collecting, tick_state};
use crate::gap::Gap;
use crate::job::{Bystander, OtherThreadsSeen, Sight};
use crate::process::peers::peer;
use crate::runtime::frames::Frames;
use crate::runtime::park::ParkState;
use crate::runtime::table;
use crate::sleeping_threads::MAX_THREADS;
use crate::source::Captured;
use crate::source::kernel::sampling::FREQUENCY_HZ;
use crate::stall_builder::StallBuilder;
use crate::turn::holders::Sighting;
use crate::turn::tracker::doing;
use crate::turn::{Awaited, Companion, Lock, Sampled, StandsFor, ThreadState, Waker};

/// Names of other threads that are remembered; with more the oldest numbers are forgotten.
const MAX_NAMES: usize = 1024;

/// What one tick stands for.
const TICK_NS: u64 = 1_000_000_000 / FREQUENCY_HZ;

/// What is missing where more threads may end a wait than are read.
fn untold() -> Gap {
    let why = format!("there are more than the {MAX_THREADS} that are read");
    Gap::new("what each thread did that may have ended the wait", why)
}

impl Analyst {
    /// A look from outside found who holds what a loop waits for.
    pub(super) fn holder(
        &mut self,
        sight: Sight,
        tid: u32,
        seen: Option<&Bystander>,
        weight_ns: u64,
    ) {
        let sampled = seen.map(|seen| (seen.captured.head.at_ns, self.stood_still(sight, seen)));
        let Some(builder) = self.concerned(tid, sight) else { return };
        if let Some(Lock::Futex(futex)) = sight.held {
            builder.owned_by(tid, futex);
        }
        if let (Some(held), Some((at_ns, companion))) = (sight.held, sampled) {
            let (seen, is_collecting) = (companion.seen.clone(), false);
            let sighting = Sighting { at_ns, tid, held, seen, is_collecting, weight_ns };
            builder.holders.sight(sighting);
            builder.companions.look(weight_ns, vec![companion], &[]);
        }
    }

    /// What the threads do that may end what a loop waits for.
    pub(super) fn others_seen(&mut self, seen: OtherThreadsSeen) {
        let OtherThreadsSeen {
            loop_tid,
            turn_start_ns,
            weight_ns,
            still,
            unmoved,
            moving,
            left_out,
        } = seen;
        let sight = Sight { loop_tid, turn_start_ns, held: None };
        let still: Vec<_> = still.iter().map(|seen| self.stood_still(sight, seen)).collect();
        for companion in &still {
            self.concerned(companion.tid, sight);
        }
        if let Some(builder) = self.turn_of(sight) {
            let tids: Vec<u32> = still.iter().map(|it| it.tid).chain(unmoved.clone()).collect();
            builder.companions.look(weight_ns, still, &unmoved);
            match left_out {
                Some(0) => builder.companions.looked_at_all(&tids, &moving),
                Some(_) => builder.miss(Some(untold())),
                None => {}
            }
        }
    }

    /// What its runtime calls a thread.
    pub(super) fn called(&mut self, tid: u32, name: String) {
        self.names.insert(tid, name);
        if self.names.len() > MAX_NAMES {
            self.names.pop_first();
        }
    }

    /// A tick found another thread, or it woke a loop's.
    pub(super) fn other(&mut self, sights: &[Sight], captured: &Captured, frames: &Frames) {
        let head = &captured.head;
        let (tid, at_ns) = (head.head.tid, head.at_ns);
        if head.reason == reason::WAKING {
            let sampled = self.other_stack(captured, frames, ThreadState::RunningKernel);
            for builder in self.loops.values_mut() {
                builder.wake_seen(tid, at_ns, &sampled);
            }
            return;
        }
        let sampled = self.other_stack(captured, frames, tick_state(head.in_user));
        for sight in sights {
            let sampled = sampled.clone();
            let Some(builder) = self.concerned(tid, *sight) else { continue };
            let Some(held) = sight.held else {
                builder.met(tid, sampled);
                continue;
            };
            if !table::may_have(held, &sampled.stack.frames) {
                continue;
            }
            let (weight_ns, is_collecting) = (TICK_NS, is_collecting(head, &sampled.stack));
            let seen = sampled;
            let sighting = Sighting { at_ns, tid, held, seen, is_collecting, weight_ns };
            builder.holders.sight(sighting);
        }
    }

    /// Somebody ended a loop's wait.
    pub(super) fn woken(&mut self, woken: &Woken) {
        let Woken { head, at_ns, turn_start_ns, blocked_at_ns, by_tgid, by_tid, .. } = *woken;
        let name = woken.by_name.split(|byte| *byte == 0).next().unwrap_or_default();
        let by = Waker {
            pid: by_tgid,
            tid: by_tid,
            name: String::from_utf8_lossy(name).into_owned(),
            command: self.command_of(by_tgid),
            syscall: woken.by_syscall,
            args: woken.by_args,
            awaited: Awaited::Syscall,
            wait: Registers::default(),
            ended_ns: 0,
            seen: None,
        };
        let (pid, tid, name, syscall) = (by.pid, by.tid, &by.name, by.syscall);
        tracing::debug!(at_ns, pid, tid, name, syscall, "a wait is over");
        let sight = Sight { loop_tid: head.tid, turn_start_ns, held: None };
        if let Some(builder) = self.turn_of(sight) {
            builder.woken(blocked_at_ns, at_ns, by);
        }
    }

    /// The command of another process than the target.
    fn command_of(&self, pid: u32) -> Option<String> {
        Some(pid).filter(|pid| *pid != self.target.pid()).and_then(|pid| peer(pid).command)
    }

    /// All the other threads, when a stall was first told.
    pub(super) fn bystanders(
        &mut self,
        loop_tid: u32,
        turn_start_ns: u64,
        still: &[Bystander],
        moving: &[u32],
        gaps: Vec<Gap>,
    ) {
        let sight = Sight { loop_tid, turn_start_ns, held: None };
        for seen in still {
            let Companion { tid, seen, .. } = self.stood_still(sight, seen);
            if let Some(builder) = self.concerned(tid, sight) {
                builder.met(tid, seen);
            }
        }
        for tid in moving {
            self.concerned(*tid, sight);
        }
        if let Some(builder) = self.turn_of(sight) {
            builder.ran(moving);
            builder.gaps.extend(gaps);
        }
    }

    /// What is gathered of that turn, where the thread's name is known from now on.
    fn concerned(&mut self, tid: u32, sight: Sight) -> Option<&mut StallBuilder> {
        let target = std::sync::Arc::clone(&self.target);
        let known = self.names.get(&tid).cloned();
        let builder = self.turn_of(sight)?;
        builder.know(tid, || known.or_else(|| target.thread_name(tid)));
        Some(builder)
    }

    /// What is gathered of that turn, unless the loop is in a later one already.
    fn turn_of(&mut self, sight: Sight) -> Option<&mut StallBuilder> {
        let known = self.loops.get(&sight.loop_tid).map_or(0, StallBuilder::turn_start_ns);
        let is_later = known > sight.turn_start_ns;
        (!is_later).then(|| self.builder(sight.loop_tid, sight.turn_start_ns))
    }

    /// What a thread that stood still does, with what its system call works on.
    fn stood_still(&mut self, sight: Sight, seen: &Bystander) -> Companion {
        let Bystander { captured, frames, arguments, awaited, waits_for } = seen;
        let head = &captured.head;
        let (mut sampled, park_state) = self.posed(captured, frames, doing(captured.head.state));
        let (pid, tid) = (self.target.pid(), head.head.tid);
        let at_wall_ns = self.facts.anchor.wall_ns(head.at_ns);
        let (registers, stack) = (&sampled.registers, &sampled.stack);
        let caller = Caller { pid, tid, registers, at_wall_ns, stack };
        let call = self
            .turn_of(sight)
            .and_then(|builder| caller.look(arguments.as_ref(), &mut builder.known_of_others));
        (sampled.call, sampled.awaited) = (call.map(Box::new), *awaited);
        let is_parked = park_state.is_idle();
        Companion { tid, name: None, seen: sampled, is_parked, waits_for: *waits_for }
    }

    fn other_stack(&mut self, captured: &Captured, frames: &Frames, state: ThreadState) -> Sampled {
        self.posed(captured, frames, state).0
    }

    fn posed(
        &mut self,
        captured: &Captured,
        frames: &Frames,
        state: ThreadState,
    ) -> (Sampled, ParkState) {
        let (mut stack, park_state) = self.stack(captured, frames);
        stack.kernel = self.kernel_frames(&captured.kernel, &mut stack.gaps);
        let sampled = Sampled {
            stack,
            state,
            samples: 1,
            time_ns: 0,
            waits: StandsFor::default(),
            registers: captured.head.registers,
            awaited: Awaited::Syscall,
            call: None,
            task_state: captured.head.task_state,
            shares: Vec::new(),
        };
        (sampled, park_state)
    }
}
