//! What the scheduler does to a loop's thread inside a turn: left the CPU, why, woken, came back.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::BtfTracePointContext;
use profiler_ebpf::counter::Counter;
use profiler_ebpf::limits::MIN_BLOCK_NS;
use profiler_ebpf::record::{Capture, Exited, RecordHead, TurnEnded, kind, reason};
use profiler_ebpf::sleep::{may_lock_memory, sleeps_for_the_kernel};
use profiler_ebpf::turn::state::RUNNING;
use profiler_ebpf::turn::{Left, Loop, phase};

use crate::maps::{capture_at, change, count, forget, loop_at, param, slot_of};
use crate::task::Task;
use crate::{capture, emit, park, runnable, stats};

/// One task leaves a CPU, another comes onto it. Runs in the context of the one that leaves.
#[inline(always)]
pub fn switched(
    context: &BtfTracePointContext,
    preempted: bool,
    previous: Task,
    next: Task,
    previous_state: u64,
) {
    runnable::switched(previous, next);
    let target = param!(tgid) as u32;
    let (out, into) = (previous.tgid() == target, next.tgid() == target);
    if out && let Some(slot) = slot_of(previous.tid()) {
        left_cpu(context, slot, (preempted, previous_state), previous, next);
    }
    if into && let Some(slot) = slot_of(next.tid()) {
        came_back(slot, next);
    }
}

/// A task becomes runnable. May run on any CPU, while the task is on none.
#[inline(always)]
pub fn woken(task: Task) {
    if u64::from(task.tgid()) != param!(tgid) {
        return;
    }
    let Some(slot) = slot_of(task.tid()) else { return };
    let Some(state) = loop_at(slot) else { return };
    if state.phase != phase::TURN {
        return;
    }
    let now_ns = clock();
    if change(state, |state| state.woken(now_ns)) {
        runnable::begin(slot, &state.turn, task, None, now_ns);
    }
}

#[inline(always)]
fn clock() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn left_cpu(
    context: &BtfTracePointContext,
    slot: u32,
    (preempted, task_state): (bool, u64),
    task: Task,
    next: Task,
) {
    let Some(state) = loop_at(slot) else { return };
    let task_state = task.left_in(task_state);
    stats::left_cpu(slot, preempted || task_state == 0, task);
    if !state.minds_leaving(task_state) {
        return;
    }
    let now_ns = clock();
    runs(slot, state, now_ns);
    let faults = task.faults();
    let left = change(state, |state| {
        state.count_faults(faults);
        state.switched_out(preempted, task_state, now_ns)
    });
    match left {
        Left::Blocked => {
            let Some(capture) = capture_at(slot) else { return };
            // Before the turn is suspected registers do: if the block lasts, the daemon completes
            // the stack of a thread that cannot move.
            if !take_registers(capture, state, task_state, now_ns) {
                return;
            }
            if park::is_parked(slot, &capture.head.registers) {
                parked(slot, state, now_ns);
                capture.head.reason = 0;
                return;
            }
            take_stacks(context, capture, state, now_ns);
        }
        Left::Dead => {
            exited(slot, state, now_ns);
        }
        Left::Runnable => runnable::begin(slot, &state.turn, task, Some(next), now_ns),
        Left::Elsewhere => {}
    }
}

/// A thread that does something is on a CPU, also where the scheduler did not say so: what it was
/// thought to wait for is over now.
#[inline(always)]
pub fn runs(slot: u32, state: &mut Loop, now_ns: u64) {
    if state.phase == phase::TURN && state.state != RUNNING {
        came_unseen(slot, state, now_ns);
    }
}

#[inline(never)]
fn came_unseen(slot: u32, state: &mut Loop, now_ns: u64) {
    runnable::end(slot, now_ns);
    change(state, |state| state.switched_in(now_ns));
    count(Counter::SwitchMissed);
}

/// Takes the registers of the thread that goes to sleep. A function of its own, as are the next three,
/// because the kernel has 512 bytes of stack for a chain of calls, and a record takes a fifth of them.
#[inline(never)]
fn take_registers(capture: &mut Capture, state: &Loop, task_state: u64, now_ns: u64) -> bool {
    let taken = capture::take_registers(capture, state, reason::SWITCH_OUT, 0, now_ns);
    capture.head.task_state = task_state;
    taken
}

/// Takes the stacks of a sleep that the daemon may not be able to complete.
#[inline(never)]
fn take_stacks(context: &BtfTracePointContext, capture: &mut Capture, state: &Loop, now_ns: u64) {
    let Capture { head, .. } = capture;
    // What a thread waits for that maps or faults cannot be completed from outside.
    let is_locked = || {
        may_lock_memory(head.task_state, head.registers.syscall)
            && Task::current().may_have_locked_memory()
    };
    if !is_suspected(state, now_ns) && !is_locked() {
        return;
    }
    // What else it sleeps for, its system call tells.
    if sleeps_for_the_kernel(head.task_state) {
        capture::take_kernel_stack(context, capture);
    }
    capture::take_stacks(capture, state.python_tstate);
}

/// The turn is over: its thread went to sleep where it waits for work.
#[inline(never)]
fn parked(slot: u32, state: &mut Loop, now_ns: u64) {
    let turn = change(state, Loop::parked);
    stats::parked(slot, &state.turn);
    if turn.booked_ns() >= param!(threshold_ns) {
        runnable::tell(slot, turn.start_ns);
        let head = RecordHead { kind: kind::TURN_ENDED, tid: state.tid };
        emit::record(&TurnEnded { head, end_ns: now_ns, turn }, Counter::EndLost);
    }
}

/// The same, found out by the daemon, which tells of the turn.
#[inline(never)]
fn had_parked(slot: u32, state: &mut Loop, blocked_ns: u64) {
    change(state, |state| state.had_parked(blocked_ns));
    stats::parked(slot, &state.turn);
}

/// The thread is gone.
#[inline(never)]
fn exited(slot: u32, state: &mut Loop, now_ns: u64) {
    let in_turn = u64::from(state.phase == phase::TURN);
    let head = RecordHead { kind: kind::EXITED, tid: state.tid };
    if in_turn == 1 {
        stats::exited(slot, &state.turn);
        runnable::tell(slot, state.turn.start_ns);
    }
    let exited = Exited { head, at_ns: now_ns, in_turn, turn: state.turn };
    change(state, |state| state.phase = phase::DEAD);
    forget(state.tid);
    emit::record(&exited, Counter::RecordLost);
}

#[inline(always)]
fn came_back(slot: u32, task: Task) {
    let Some(state) = loop_at(slot) else { return };
    if state.phase != phase::TURN && state.phase != phase::PARKED {
        return;
    }
    let now_ns = clock();
    runnable::end(slot, now_ns);
    let Some(capture) = capture_at(slot) else { return };
    let head = &mut capture.head;
    let is_of_turn = head.turn_start_ns == state.turn.start_ns;
    if state.phase == phase::PARKED || is_of_turn && park::was_found(slot, head) {
        let faults = task.faults();
        if state.phase == phase::TURN {
            had_parked(slot, state, head.blocked_ns);
        }
        change(state, |state| {
            state.count_faults(faults);
            state.unparked(now_ns);
        });
        head.reason = 0;
        return;
    }
    if !change(state, |state| state.switched_in(now_ns)) {
        count(Counter::SwitchMissed);
    }
    if head.reason != reason::SWITCH_OUT || !is_of_turn {
        return;
    }
    let blocked_ns =
        (state.turn.blocked_ns + state.turn.stopped_ns).saturating_sub(head.blocked_ns);
    if blocked_ns >= MIN_BLOCK_NS && is_suspected(state, now_ns) {
        head.blocked_ns = blocked_ns;
        emit::capture(capture);
    }
    // Told, or too short to tell: either way this block is over.
    capture.head.reason = 0;
}

#[inline(always)]
pub fn is_suspected(state: &Loop, now_ns: u64) -> bool {
    now_ns.saturating_sub(state.turn.start_ns) >= param!(suspect_ns)
}
