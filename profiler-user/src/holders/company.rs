//! The other threads of a process whose loop waits for one of them: what each does, seen from outside while it lasts.
//!
//! Who ends a wait is known when it is over. What they were blocked in until then is not: so it is looked
//! at while they stand still.

use profiler_ebpf::record::ThreadSnapshot;

use super::HolderSearch;
use super::outside::{Look, Outside};
use crate::job::{Bystander, Job};
use crate::process::TargetMemory;
use crate::process::arguments;
use crate::runtime::Effort;
use crate::sleeping_threads::{self, Standing};
use crate::source::{Captured, EventSource};
use crate::syscall;

/// Threads that wait for each other in a row, followed at most.
const MAX_CHAIN: usize = 4;

impl HolderSearch {
    /// Everybody who may end the wait of a loop, where nothing tells who will.
    pub(super) fn everybody<S: EventSource, M: TargetMemory>(
        &mut self,
        outside: &mut Outside<'_, S, M>,
        look: Look,
        jobs: &mut Vec<Job>,
    ) {
        let is_other = |thread: &ThreadSnapshot| thread.tid != look.loop_tid;
        let mut read_before = self.company.remove(&look.loop_tid).unwrap_or_default();
        let interpreter = outside.runtimes.interpreter();
        let before = Some(&mut read_before);
        let found = sleeping_threads::read(
            outside.source,
            outside.memory,
            interpreter,
            is_other,
            before,
            look.now_ns,
        );
        self.company.insert(look.loop_tid, read_before);
        match found {
            Ok(found) => {
                let Standing { still, moving, unmoved, left_out } = found;
                for tid in still.iter().map(|thread| thread.head.head.tid).chain(moving.clone()) {
                    self.name(outside, tid, jobs);
                }
                let still = still.into_iter().map(|it| self.bystander(outside, it)).collect();
                jobs.push(look.seen(still, unmoved, moving, Some(left_out)));
            }
            Err(error) => self.refused = Some(format!("{error:#}")),
        }
    }

    /// Whoever has what a thread waits for, whoever has what that one waits for, and so on.
    pub(super) fn chain<S: EventSource, M: TargetMemory>(
        &mut self,
        outside: &mut Outside<'_, S, M>,
        look: Look,
        mut next: Option<u32>,
        jobs: &mut Vec<Job>,
    ) {
        let mut still: Vec<Bystander> = Vec::new();
        for _ in 0..MAX_CHAIN {
            let is_known = |tid| still.iter().any(|known| known.captured.head.head.tid == tid);
            let Some(tid) = next.filter(|tid| *tid != look.loop_tid && !is_known(*tid)) else {
                break;
            };
            let Some(found) = self.asleep(outside, tid, look.now_ns) else { break };
            self.name(outside, tid, jobs);
            next = found.waits_for.map(|(_, tid)| tid);
            still.push(found);
        }
        if !still.is_empty() {
            jobs.push(look.seen(still, Vec::new(), Vec::new(), None));
        }
    }

    /// A thread that stood still, with what its memory tells of it.
    pub(super) fn bystander<S: EventSource, M: TargetMemory>(
        &self,
        outside: &mut Outside<'_, S, M>,
        captured: Captured,
    ) -> Bystander {
        let frames = outside.runtimes.frames(outside.memory, &captured, Effort::Walked);
        let registers = &captured.head.registers;
        let arguments = syscall::name(registers.syscall)
            .map(|name| arguments::read(outside.memory, name, registers, captured.head.at_ns));
        let awaited = self.awaited_in(registers);
        let waits_for = awaited.lock(registers).zip(self.holder(outside, awaited, &captured));
        Bystander { captured, frames, arguments, awaited, waits_for }
    }

    /// Has the analyst know what its runtime calls a thread; once in each stall.
    pub fn name<S, M: TargetMemory>(
        &mut self,
        outside: &mut Outside<'_, S, M>,
        tid: u32,
        jobs: &mut Vec<Job>,
    ) {
        let Some(interpreter) = outside.runtimes.interpreter_mut() else { return };
        if !self.named.insert(tid) {
            return;
        }
        let number = outside.target.tid_in_container(tid);
        let state = number.and_then(|number| interpreter.state_of(outside.memory, number));
        let name =
            state.and_then(|state| interpreter.thread_name(outside.memory, state).ok().flatten());
        jobs.extend(name.map(|name| Job::Called { tid, name }));
    }
}
