//! What the scheduler does to a loop's thread inside a turn: left the CPU, why, woken, came back.

use aya_ebpf::programs::BtfTracePointContext;
use profiler_ebpf::counter::Counter;
use profiler_ebpf::credit::Stretch;
use profiler_ebpf::limits::CLOSE_LOOK_NS;
use profiler_ebpf::record::{Capture, Exited, RecordHead, ended, kind, reason};
use profiler_ebpf::sleep::task::DEAD;
use profiler_ebpf::sleep::{may_lock_memory, sleeps_for_the_kernel, waits_for_events};
use profiler_ebpf::turn::state::{RUNNING, STOPPED};
use profiler_ebpf::turn::{FUTEX, Left, Loop, RESTART, may_be_wait, phase};

use crate::instance::tell_over;
use crate::maps::{capture_at, change, count, forget, has_executed, loop_at, param, slot_of};
use crate::task::{Task, clock};
use crate::{capture, emit, instance, park, runnable, stats, wait};

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
    let waits = state.phase == phase::WAITING && task_state & DEAD == 0;
    if waits && state.has_left_unseen(task.syscall()) {
        left_unseen(slot);
    } else if state.back_ns != 0 {
        // It was woken for nothing, or is preempted before it returns.
        change(state, |state| state.back_ns = 0);
    }
    if !state.minds_leaving(task_state) {
        return;
    }
    let sleeps = !preempted && task_state != 0 && task_state & DEAD == 0;
    if sleeps && is_in_no_turn(slot, state, task, task_state) {
        return;
    }
    let now_ns = clock();
    // Who is preempted may stay off the CPU past the threshold.
    if preempted && is_suspected(state, now_ns) && instance::is_closed(slot, state, task) {
        return;
    }
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
            if park::is_parked(slot, &capture.head.registers) || hands_over(slot, state, capture) {
                parked(slot);
                capture.head.reason = 0;
                return;
            }
            take_stacks(context, slot, state, now_ns);
            tell_asleep(slot, state, now_ns);
        }
        Left::Dead => {
            exited(slot, now_ns, 0);
        }
        Left::Runnable => runnable::begin(slot, &state.turn, task, Some(next), now_ns),
        Left::Elsewhere => {}
    }
}

/// Whether a thread that goes to sleep, and is taken to be in a turn, is in none: it sleeps in its own wait, whose
/// entry was missed, or its loop's instance is closed.
#[inline(always)]
fn is_in_no_turn(slot: u32, state: &mut Loop, task: Task, task_state: u64) -> bool {
    state.phase == phase::TURN
        && (waits_for_events(task_state) && is_in_wait(slot, state, task.syscall())
            || instance::is_closed(slot, state, task))
}

/// Whether a thread that waits for others has left its instance to one that waits on it, or has since: for work, or
/// for a lock inside its work, which cannot be told, and holds up nobody.
#[inline(never)]
fn hands_over(slot: u32, state: &Loop, capture: &Capture) -> bool {
    state.shares == 1
        && capture.head.registers.syscall == FUTEX
        && instance::others_left_ns(slot) > state.left_ns
}

#[inline(always)]
fn is_in_wait(slot: u32, state: &mut Loop, syscall: u64) -> bool {
    may_be_wait(syscall) && wait::entered_unseen(slot, state)
        || syscall == RESTART && wait::goes_on(slot, state)
}

/// A thread is outside of its own wait, whose return was missed. A function that the linker leaves alone, because the
/// stacks of its callers are nearly full.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn left_unseen(slot: u32) -> u32 {
    let Some(state) = loop_at(slot) else { return 0 };
    let now_ns = clock();
    change(state, |state| state.had_left(now_ns));
    count(Counter::WaitReturnHealed);
    0
}

/// A thread that does something is on a CPU, also where the scheduler did not say so: what it was
/// thought to wait for is over now.
#[inline(always)]
pub fn runs(slot: u32, state: &mut Loop, now_ns: u64) {
    if state.phase == phase::TURN && state.state != RUNNING {
        came_unseen(slot, now_ns);
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn came_unseen(slot: u32, now_ns: u64) -> u32 {
    let Some(state) = loop_at(slot) else { return 0 };
    runnable::end(slot, now_ns);
    change(state, |state| state.switched_in(now_ns));
    count(Counter::SwitchMissed);
    0
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
fn take_stacks(context: &BtfTracePointContext, slot: u32, state: &Loop, now_ns: u64) {
    let Some(capture) = capture_at(slot) else { return };
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
    capture::take_stacks(slot, state.python_tstate);
}

/// Has the daemon look at a thread that goes to sleep in a suspected turn, unless it has just looked: who holds what it
/// waits for is seen while it waits.
#[inline(always)]
fn tell_asleep(slot: u32, state: &Loop, now_ns: u64) {
    if is_suspected(state, now_ns) && now_ns.saturating_sub(state.told_asleep_ns) >= CLOSE_LOOK_NS {
        asleep(slot, now_ns);
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn asleep(slot: u32, now_ns: u64) -> u32 {
    let Some(state) = loop_at(slot) else { return 0 };
    change(state, |state| state.told_asleep_ns = now_ns);
    let asleep = RecordHead { kind: kind::ASLEEP, tid: state.tid };
    emit::record(&asleep, Counter::RecordLost, emit::Read::Now);
    0
}

/// The turn is over: its thread went to sleep where it waits for work.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn parked(slot: u32) -> u32 {
    let Some(state) = loop_at(slot) else { return 0 };
    let turn = change(state, Loop::parked);
    stats::over(slot, state);
    if turn.booked_ns() >= param!(threshold_ns) {
        tell_over(slot, ended::PARK);
    }
    0
}

/// The same, found out by the daemon, which tells of the turn.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn had_parked(slot: u32, blocked_ns: u64) -> u32 {
    let Some(state) = loop_at(slot) else { return 0 };
    change(state, |state| state.had_parked(blocked_ns));
    stats::over(slot, state);
    0
}

/// The target executes another program. The thread that asked for it had this number until now, and has the first
/// thread's from here on; all others have exited before.
#[inline(always)]
pub fn executed(task: Task, tid: u32) {
    if u64::from(task.tgid()) != param!(tgid) {
        return;
    }
    let now_ns = clock();
    left_program(tid, now_ns);
    // The first thread may have given its number away before the scheduler told of its end.
    left_program(task.tgid(), now_ns);
    // Last: whoever sees it has the records already.
    has_executed(now_ns);
}

/// What a thread did in the program that is no more ends here.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn left_program(tid: u32, now_ns: u64) -> u32 {
    let Some(slot) = slot_of(tid) else { return 0 };
    let Some(state) = loop_at(slot) else { return 0 };
    change(state, |state| state.switched_out(false, DEAD, now_ns));
    exited(slot, now_ns, 1)
}

/// The thread is gone, or what it was.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn exited(slot: u32, now_ns: u64, executed: u32) -> u32 {
    let Some(state) = loop_at(slot) else { return 0 };
    let in_turn = u32::from(state.phase == phase::TURN);
    let head = RecordHead { kind: kind::EXITED, tid: state.tid };
    if in_turn == 1 {
        stats::exited(slot, &state.turn);
        runnable::tell_contenders(slot, state.turn.start_ns);
    }
    let exited = Exited { head, at_ns: now_ns, in_turn, executed, turn: state.turn };
    // Before its state tells: whoever sees that has the record already.
    emit::record(&exited, Counter::RecordLost, emit::Read::Later);
    change(state, |state| state.phase = phase::DEAD);
    forget(state.tid);
    0
}

#[inline(always)]
fn came_back(slot: u32, task: Task) {
    let Some(state) = loop_at(slot) else { return };
    if state.is_in_first_wait() {
        let now_ns = clock();
        change(state, |state| state.back_ns = now_ns);
        return;
    }
    if state.phase != phase::TURN && state.phase != phase::PARKED {
        return;
    }
    let now_ns = clock();
    if is_suspected(state, now_ns) && instance::is_closed(slot, state, task) {
        runnable::end(slot, now_ns);
        return;
    }
    runnable::end(slot, now_ns);
    let Some(capture) = capture_at(slot) else { return };
    let head = &mut capture.head;
    let is_of_turn = head.turn_start_ns == state.turn.start_ns;
    if state.phase == phase::PARKED || is_of_turn && park::was_found(slot, head) {
        let faults = task.faults();
        if state.phase == phase::TURN {
            had_parked(slot, head.blocked_ns);
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
    let stretch = Stretch {
        ns: blocked_ns,
        syscall: head.registers.syscall,
        is_stop: head.state == STOPPED,
        has_stack: head.stack_bytes > 0,
        is_suspected: is_suspected(state, now_ns),
    };
    if let Some(weight) = state.credit.spend(stretch, param!(suspect_ns)) {
        head.blocked_ns = blocked_ns;
        (head.weight_ns, head.waits) = (weight.ns, weight.waits);
        let was_calm = stretch.is_suspected && blocked_ns >= CLOSE_LOOK_NS;
        emit::capture(capture, if was_calm { emit::Read::Now } else { emit::Read::Later });
    }
    // Told, or too short to tell: either way this block is over.
    capture.head.reason = 0;
}

#[inline(always)]
pub fn is_suspected(state: &Loop, now_ns: u64) -> bool {
    now_ns.saturating_sub(state.turn.start_ns) >= param!(suspect_ns)
}
