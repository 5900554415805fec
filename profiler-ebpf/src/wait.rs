//! The entry and the return of waits, whichever hook saw them, to turns.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use profiler_ebpf::counter::Counter;
use profiler_ebpf::record::{Ready, RecordHead, ended, kind};
use profiler_ebpf::turn::{Entered, INTERRUPTED, Loop, RESTART, WaitCall, phase, wait, wait_of};

use crate::instance::{adopt, take_over, tell_over, wait_call};
use crate::maps::{change, count, loop_at, param, slot_of, take_slot};
use crate::task::{Task, clock};
use crate::{emit, log, sched, stats};

/// The current thread, if it is one of the target's: (tid, whether it is the main one).
#[inline(always)]
fn watched() -> Option<(u32, bool)> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let (tgid, tid) = (pid_tgid >> 32, pid_tgid as u32);
    (tgid == param!(tgid)).then_some((tid, u64::from(tid) == tgid))
}

/// The slot of a thread that waits. Threads with poll alone count only where the process has no
/// epoll loop, and then only the main one: others wait so for one socket each.
#[inline(always)]
fn slot_for(tid: u32, is_main: bool, kind: u32) -> Option<u32> {
    if let Some(slot) = slot_of(tid) {
        return Some(slot);
    }
    if kind == wait::POLL && (param!(poll_waits) == 0 || !is_main) {
        return None;
    }
    take_slot(tid)
}

/// A syscall that may be a wait begins.
#[inline(always)]
pub fn entered<C: EbpfContext>(context: &C, syscall: u64, args: [u64; 4]) {
    let Some((tid, is_main)) = watched() else { return };
    let Some((kind, _)) = wait_of(syscall, args) else { return };
    let Some(slot) = slot_for(tid, is_main, kind) else { return };
    let Some(state) = loop_at(slot) else { return };
    let Some(call) = wait_call(syscall, args) else { return };
    if state.handed_work == 0 && !state.is_home(&call) {
        take_over(slot, state, &call);
        log::adopted(context, tid, kind, call.fd);
    }
    enter(slot, call.kind, call.fd, call.file, call.syscall);
}

/// The entry of a wait, as it happens or as it is found out.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn enter(slot: u32, kind: u32, fd: u32, file: u64, syscall: u64) -> u32 {
    let Some(state) = loop_at(slot) else { return 0 };
    let call = WaitCall { kind, fd, file, syscall };
    let now_ns = clock();
    sched::runs(slot, state, now_ns);
    let faults = Task::current().faults();
    let entered = change(state, |state| {
        state.count_faults(faults);
        state.wait_entered(&call, now_ns)
    });
    stats::wait_entered(slot, &entered, state);
    match entered {
        Entered::TurnOver(turn) if turn.booked_ns() >= param!(threshold_ns) => {
            state.ready_owed = 1;
            state.stalled_ns = turn.start_ns;
            tell_over(slot, ended::WAIT);
        }
        Entered::ReturnMissed => count(Counter::WaitReturnMissed),
        Entered::TurnOver(_) | Entered::Idle | Entered::Nested => {}
    }
    0
}

/// The current thread is inside a system call, asleep or about to return. Where that is its loop's own wait,
/// whose entry was missed, its turn ends here. On a preemptible kernel the program of an entry is skipped
/// on a CPU where another thread was preempted inside it.
#[inline(never)]
pub fn entered_unseen(slot: u32, state: &mut Loop) -> bool {
    if state.handed_work == 1 {
        return false;
    }
    let mut call = WaitCall::default();
    if !is_waiting(&mut call) || !state.is_home(&call) {
        return false;
    }
    count(Counter::WaitEntryHealed);
    enter(slot, call.kind, call.fd, call.file, call.syscall);
    true
}

/// The current thread goes on with its own wait after it was stopped in it, which is the kernel's doing.
#[inline(never)]
pub fn goes_on(slot: u32, state: &mut Loop) -> bool {
    if state.wait_syscall != RESTART {
        return false;
    }
    let Loop { home_kind: kind, home_fd: fd, home_file: file, .. } = *state;
    enter(slot, kind, fd, file, RESTART);
    true
}

/// The wait that the current thread is in, by its registers. A function of its own because they need much of the stack.
#[inline(never)]
fn is_waiting(call: &mut WaitCall) -> bool {
    let Some(registers) = Task::current().registers() else { return false };
    let [a, b, c, d, ..] = registers.args;
    let Some(found) = wait_call(registers.syscall as u64, [a, b, c, d]) else { return false };
    *call = found;
    true
}

/// A syscall that may have been a wait returns.
#[inline(always)]
pub fn left<C: EbpfContext>(context: &C, returned: i64) {
    let Some((tid, is_main)) = watched() else { return };
    let known = slot_of(tid).or_else(|| {
        // It was in its wait when we came.
        let state = first_seen(tid, is_main)?;
        log::adopted(context, tid, state.home_kind, state.home_fd);
        slot_of(tid)
    });
    let Some(slot) = known else { return };
    let Some(state) = loop_at(slot) else { return };
    if returned == INTERRUPTED && state.phase == phase::WAITING {
        state.wait_syscall = RESTART;
        return;
    }
    if state.phase == phase::TURN && !entered_unseen(slot, state) {
        // The end of a nested wait.
        return;
    }
    if !leave(state) {
        return;
    }
    stats::wait_left(slot, returned);
    if state.ready_owed == 1 {
        state.ready_owed = 0;
        let head = RecordHead { kind: kind::READY, tid };
        let ready = Ready { head, turn_start_ns: state.stalled_ns, returned };
        emit::record(&ready, Counter::RecordLost, emit::Read::Now);
    }
}

/// The wait is over. True where that begins a turn.
#[inline(always)]
fn leave(state: &mut Loop) -> bool {
    let task = Task::current();
    let faults = task.faults();
    let switches = task.switches();
    let now_ns = clock();
    let begins = change(state, |state| {
        state.count_faults(faults);
        state.wait_left(now_ns)
    });
    if begins && task.switches() != switches {
        // Preempted after the clock was read: before there was a turn to book that to, or amid its making,
        // which has then undone what the switch booked.
        let now_ns = clock();
        change(state, |state| {
            state.begin(now_ns, 0);
            state.left_ns = now_ns;
        });
    }
    begins
}

/// A slot for a thread whose wait's entry nobody saw: it is taken from the syscall's registers.
#[inline(never)]
fn first_seen(tid: u32, is_main: bool) -> Option<&'static mut Loop> {
    let mut call = WaitCall::default();
    if !is_waiting(&mut call) {
        return None;
    }
    let state = loop_at(slot_for(tid, is_main, call.kind)?)?;
    adopt(state, &call);
    change(state, |state| state.phase = phase::WAITING);
    Some(state)
}
