//! Captures to samples for the analyst: those of the ring, and those of threads that cannot move.

use profiler_ebpf::limits::MIN_BLOCK_NS;
use profiler_ebpf::record::reason;
use profiler_ebpf::turn::state;

use super::attachment::Session;
use super::workers::{is_replaced, is_served};
use crate::activity::Activity;
use crate::holders::Blocked;
use crate::job::{Job, KernelStack};
use crate::process::TargetMemory;
use crate::process::arguments::{self, Arguments};
use crate::process::environment;
use crate::process::kernel_stack;
use crate::process::stack::{CopiedStack, read_stack};
use crate::runtime::Effort;
use crate::runtime::frames::Frames;
use crate::source::{Captured, EventSource, InterpreterPlaces, Slot};
use crate::syscall::{name, restarted};
use crate::turn::Awaited;

/// A blocked thread's capture, with all that was read for it.
struct ReadBlock {
    captured: Captured,
    frames: Frames,
    kernel: KernelStack,
    arguments: Option<Arguments>,
}

impl<S: EventSource, M: TargetMemory> Session<S, M> {
    /// A capture out of the ring: a tick, or a blocked stretch that is over.
    pub fn captured(&mut self, mut captured: Box<Captured>, jobs: &mut Vec<Job>) {
        let head = captured.head;
        let completed = self
            .loops
            .get(&head.head.tid)
            .is_some_and(|followed| followed.completed_ns == head.at_ns);
        if head.reason == reason::SWITCH_OUT && completed {
            self.followed(head.head.tid).cut_capture(&mut captured);
            jobs.push(Job::BlockEnded { captured });
            return;
        }
        if captured.shows_another_thread()
            && let Some(followed) = self.loops.get_mut(&head.head.tid)
        {
            // The state that we knew belongs to another thread by now: search again.
            followed.interpreter_state = None;
        }
        let mut frames = self.name_frames(&captured);
        if !self.source.is_in_turn(head.head.tid, head.turn_start_ns) {
            frames.came_too_late();
        }
        self.note_work(&captured, &frames);
        self.followed(head.head.tid).cut_capture(&mut captured);
        // Other loops may wait for what this one holds.
        let sights = match captured.head.reason {
            reason::TICK => self.holders.concerned(&captured),
            _ => Vec::new(),
        };
        if !sights.is_empty() {
            let (captured, frames) = (captured.clone(), frames.clone());
            jobs.push(Job::Other { sights, captured, frames });
        }
        let arguments = past_arguments(&captured);
        jobs.push(self.sample(captured, frames, KernelStack::Captured, arguments));
    }

    /// Completes the stack of a thread that is blocked in a suspected turn: it cannot move, so its
    /// memory holds what it held when it gave up the CPU.
    pub fn complete_block(&mut self, slot: Slot, now_ns: u64, jobs: &mut Vec<Job>) {
        let Some(mut captured) = self.present_block(slot, now_ns) else { return };
        let tid = slot.state.tid;
        let Some(followed) = self.loops.get(&tid) else { return };
        if captured.head.at_ns == followed.completed_ns {
            followed.cut_capture(&mut captured);
            self.find_holder(&captured, now_ns, jobs);
            return;
        }
        // First, because it needs none of the target's memory.
        let kernel = self.target.kernel_stack(tid);
        if kernel.as_deref().is_some_and(waits_for_address_space) {
            self.tell_locked(captured, kernel, jobs);
            return;
        }
        let read = self.read_block(captured, kernel);
        // Had it moved meanwhile, the stack would be another one's. The capture is given up when it does.
        if self.is_still_in(slot, &read.captured) {
            self.tell_block(slot, read, now_ns, jobs);
        }
    }

    /// The capture of the block that a thread is in now, if that is old enough.
    fn present_block(&mut self, slot: Slot, now_ns: u64) -> Option<Captured> {
        if slot.state.state != state::BLOCKED && slot.state.state != state::STOPPED {
            return None;
        }
        let captured = self.source.last_block(slot)?;
        let head = &captured.head;
        // The capture is of this block only if both bear the same time. A young one may still be
        // being written.
        let is_of_block = head.reason == reason::SWITCH_OUT
            && head.at_ns == slot.state.booked_until_ns
            && now_ns.saturating_sub(head.at_ns) >= MIN_BLOCK_NS;
        is_of_block.then_some(captured)
    }

    /// Reads what the target's memory holds of a thread that is blocked.
    fn read_block(&mut self, mut captured: Captured, kernel: Option<String>) -> ReadBlock {
        let followed = self.loops.get(&captured.head.head.tid);
        let state = followed.and_then(|followed| followed.interpreter_state);
        if captured.stack.is_empty() {
            captured.stack = read_stack(&self.memory, &captured.head);
            if let (Some(interpreter), Some(state)) = (self.runtimes.interpreter(), state) {
                interpreter.walk(&self.memory, state, &mut captured);
            }
        }
        let frames = self.name_frames(&captured);
        let registers = &mut captured.head.registers;
        registers.syscall = restarted(registers, kernel.as_deref().unwrap_or_default());
        let arguments = name(registers.syscall)
            .map(|name| arguments::read(&self.memory, name, registers, captured.head.at_ns));
        // Has all of it, where the text leaves out what is the scheduler's.
        let kernel = match captured.kernel.is_empty() {
            true => KernelStack::Text(kernel),
            false => KernelStack::Captured,
        };
        ReadBlock { captured, frames, kernel, arguments }
    }

    /// Whether a thread has not moved since it was captured.
    fn is_still_in(&mut self, slot: Slot, captured: &Captured) -> bool {
        let same = |now: Captured| {
            (now.head.at_ns, now.head.reason) == (captured.head.at_ns, reason::SWITCH_OUT)
        };
        self.source.last_block(slot).is_some_and(same)
    }

    /// Hands on what was read of a block, and looks who holds what the thread waits for.
    fn tell_block(&mut self, slot: Slot, read: ReadBlock, now_ns: u64, jobs: &mut Vec<Job>) {
        let ReadBlock { mut captured, frames, kernel, arguments } = read;
        self.note_work(&captured, &frames);
        let tid = slot.state.tid;
        if let Some(followed) = self.loops.get_mut(&tid) {
            followed.completed_ns = captured.head.at_ns;
            if slot.state.state == state::STOPPED
                && let Some(tracer) = environment::tracer(self.target.pid(), tid)
            {
                followed.traced = Some((captured.head.at_ns, tracer));
            }
            followed.cut_capture(&mut captured);
        }
        captured.head.blocked_ns = 0;
        self.find_holder(&captured, now_ns, jobs);
        jobs.push(self.sample(Box::new(captured), frames, kernel, arguments));
    }

    /// The sample that a capture is, with what the other threads of its instance do now.
    fn sample(
        &mut self,
        captured: Box<Captured>,
        frames: Frames,
        kernel: KernelStack,
        arguments: Option<Arguments>,
    ) -> Job {
        let awaited = self.awaited(&captured);
        let slots = self.source.loops();
        let is_replaced = is_replaced(&captured.head, &slots);
        let is_served = is_replaced && is_served(&captured.head, &slots);
        Job::Sample { captured, frames, kernel, awaited, arguments, is_replaced, is_served }
    }

    /// A thread that waits for the lock of its address space, as far as the probes captured it: whoever
    /// reads its memory now waits behind it. Once it goes on, the probes send the capture again.
    fn tell_locked(&mut self, captured: Captured, kernel: Option<String>, jobs: &mut Vec<Job>) {
        let at_ns = captured.head.at_ns;
        let followed = self.followed(captured.head.head.tid);
        if followed.locked_ns == at_ns {
            return;
        }
        followed.locked_ns = at_ns;
        let mut captured = Box::new(captured);
        followed.cut_capture(&mut captured);
        captured.head.blocked_ns = 0;
        let why = "the address space is locked, and the interpreter's memory in it";
        let frames = self.runtimes.unread(why);
        jobs.push(Job::Sample {
            captured,
            frames,
            kernel: KernelStack::Text(kernel),
            awaited: Awaited::Syscall,
            arguments: None,
            is_replaced: false,
            is_served: false,
        });
    }

    /// Looks who holds what a thread waits for that is blocked like this.
    pub fn find_holder(&mut self, captured: &Captured, now_ns: u64, jobs: &mut Vec<Job>) {
        let awaited = self.awaited(captured);
        let (holders, outside) = self.outside();
        holders.look(outside, Blocked { captured, awaited, now_ns }, jobs);
    }

    /// What a blocked thread waits for, as far as its registers and the interpreter tell.
    pub fn awaited(&mut self, captured: &Captured) -> Awaited {
        self.holders.awaited(self.runtimes.interpreter(), &self.memory, captured)
    }

    /// Another thread, as far as a suspected loop has to do with it.
    pub fn other(&mut self, captured: Box<Captured>, jobs: &mut Vec<Job>) {
        let sights = self.holders.concerned(&captured);
        if !sights.is_empty() || captured.head.reason == reason::WAKING {
            let (holders, mut outside) = self.outside();
            holders.name(&mut outside, captured.head.head.tid, jobs);
            let frames = self.runtimes.frames(&self.memory, &captured, Effort::Walked);
            jobs.push(Job::Other { sights, captured, frames });
        }
    }

    /// What the runtimes show of a capture of a loop's thread.
    pub fn name_frames(&mut self, captured: &Captured) -> Frames {
        let followed = self.loops.get(&captured.head.head.tid);
        let state = followed.and_then(|followed| followed.interpreter_state);
        let mut frames = self.runtimes.frames(&self.memory, captured, Effort::Loop { state });
        let callback = frames.callback_at().and_then(|place| self.callback(captured, place));
        if let Some(callback) = callback {
            frames.set_call(callback);
        }
        frames
    }

    /// Which callback a tick found the loop to run, if the probes had been told of this very place by
    /// then; they are from now on.
    fn callback(&mut self, captured: &Captured, place: u64) -> Option<u64> {
        let tid = captured.head.head.tid;
        let followed = self.loops.get_mut(&tid)?;
        if followed.callback_at == place {
            let callback = captured.head.callback;
            return (captured.head.reason == reason::TICK && callback != 0).then_some(callback);
        }
        followed.callback_at = place;
        let state = followed.interpreter_state?;
        let collecting = self.runtimes.interpreter()?.collecting_at(&self.memory).unwrap_or(0);
        let slot = self.source.loops().into_iter().find(|slot| slot.state.tid == tid)?;
        self.source.set_interpreter(slot, InterpreterPlaces { state, collecting, callback: place });
        None
    }
}

/// What a thread waited for in a call that is over.
fn past_arguments(captured: &Captured) -> Option<Arguments> {
    let Captured { head, stack, .. } = captured;
    if head.reason != reason::SWITCH_OUT {
        return None;
    }
    let copy = CopiedStack { from: head.registers.sp, bytes: stack };
    arguments::of_the_past(&copy, name(head.registers.syscall)?, &head.registers, head.at_ns)
}

fn waits_for_address_space(kernel: &str) -> bool {
    Activity::of_sleep(&kernel_stack::frames(kernel)) == Some(Activity::MmapLock)
}
