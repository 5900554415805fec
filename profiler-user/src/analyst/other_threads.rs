//! Captures of threads that are no suspected loops, to what they have to do with those that are.

use profiler_ebpf::record::{Registers, Woken, reason};

use super::{Analyst, tick_state};
use crate::gap::Gap;
use crate::gathered::Gathered;
use crate::job::{PythonFrames, Sight};
use crate::process::parties::party;
use crate::runtime::v8::ScriptFrames;
use crate::source::Captured;
use crate::source::kernel::ticks::FREQUENCY_HZ;
use crate::turn::holders::Sighting;
use crate::turn::tracker::doing;
use crate::turn::{Awaited, Lock, Sampled, ThreadState, Waker};

/// What one tick stands for.
const TICK_NS: u64 = 1_000_000_000 / FREQUENCY_HZ;

impl Analyst {
    /// A look from outside found who holds what a loop waits for.
    pub(super) fn holder(
        &mut self,
        sight: Sight,
        tid: u32,
        seen: Option<&(Captured, PythonFrames)>,
        weight_ns: u64,
    ) {
        let sampled = seen.map(|(captured, python)| {
            let at_ns = captured.head.at_ns;
            (at_ns, self.other_stack(captured, python, doing(captured.head.state)))
        });
        let Some(gathered) = self.concerned(tid, sight) else { return };
        if let Some(Lock::Futex(futex)) = sight.held {
            gathered.owned_by(tid, futex);
        }
        if let (Some(held), Some((at_ns, sampled))) = (sight.held, sampled) {
            let Sampled { stack, state, registers, .. } = sampled;
            let holders = &mut gathered.holders;
            holders.sight(Sighting { at_ns, tid, held, stack, state, registers, weight_ns });
        }
    }

    /// A tick found another thread, or it woke a loop's.
    pub(super) fn other(&mut self, sights: &[Sight], captured: &Captured, python: &PythonFrames) {
        let head = &captured.head;
        let (tid, at_ns) = (head.head.tid, head.at_ns);
        if head.reason == reason::WAKING {
            let sampled = self.other_stack(captured, python, ThreadState::RunningKernel);
            for gathered in self.loops.values_mut() {
                gathered.wake_seen(tid, at_ns, &sampled);
            }
            return;
        }
        let sampled = self.other_stack(captured, python, tick_state(head.in_user));
        for sight in sights {
            let sampled = sampled.clone();
            let Some(gathered) = self.concerned(tid, *sight) else { continue };
            let Some(held) = sight.held else {
                gathered.met(tid, sampled);
                continue;
            };
            let Sampled { stack, state, registers, .. } = sampled;
            let weight_ns = TICK_NS;
            let holders = &mut gathered.holders;
            holders.sight(Sighting { at_ns, tid, held, stack, state, registers, weight_ns });
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
        if let Some(gathered) = self.turn_of(sight) {
            gathered.woken(blocked_at_ns, at_ns, by);
        }
    }

    /// The command of another process than the target.
    fn command_of(&self, pid: u32) -> Option<String> {
        Some(pid).filter(|pid| *pid != self.target.pid()).and_then(|pid| party(pid).command)
    }

    /// All the other threads, when a stall was first told.
    pub(super) fn bystanders(
        &mut self,
        loop_tid: u32,
        turn_start_ns: u64,
        still: &[(Captured, PythonFrames)],
        moving: &[u32],
        gaps: Vec<Gap>,
    ) {
        let sight = Sight { loop_tid, turn_start_ns, held: None };
        for (captured, python) in still {
            let sampled = self.other_stack(captured, python, doing(captured.head.state));
            let tid = captured.head.head.tid;
            if let Some(gathered) = self.concerned(tid, sight) {
                gathered.met(tid, sampled);
            }
        }
        for tid in moving {
            self.concerned(*tid, sight);
        }
        if let Some(gathered) = self.turn_of(sight) {
            gathered.ran(moving);
            gathered.gaps.extend(gaps);
        }
    }

    /// What is gathered of that turn, where the thread's name is known from now on.
    fn concerned(&mut self, tid: u32, sight: Sight) -> Option<&mut Gathered> {
        let target = std::sync::Arc::clone(&self.target);
        let gathered = self.turn_of(sight)?;
        gathered.know(tid, || target.thread_name(tid));
        Some(gathered)
    }

    /// What is gathered of that turn, unless the loop is in a later one already.
    fn turn_of(&mut self, sight: Sight) -> Option<&mut Gathered> {
        let known = self.loops.get(&sight.loop_tid).map_or(0, Gathered::turn_start_ns);
        let is_later = known > sight.turn_start_ns;
        (!is_later).then(|| self.gathered(sight.loop_tid, sight.turn_start_ns))
    }

    fn other_stack(
        &mut self,
        captured: &Captured,
        python: &PythonFrames,
        state: ThreadState,
    ) -> Sampled {
        let (mut stack, _) = self.stack(captured, python, &ScriptFrames::default());
        stack.kernel = self.kernel_frames(&captured.kernel, &mut stack.gaps);
        Sampled {
            stack,
            state,
            samples: 1,
            time_ns: 0,
            registers: captured.head.registers,
            awaited: Awaited::Syscall,
            call: None,
            task_state: captured.head.task_state,
            shares: Vec::new(),
        }
    }
}
