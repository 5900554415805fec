//! The entry and the return of waits, whichever hook saw them, to turns.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated::bpf_ktime_get_ns};
use profiler_ebpf::counter::Counter;
use profiler_ebpf::record::{Ready, RecordHead, TurnEnded, kind};
use profiler_ebpf::turn::{Entered, Loop, wait, wait_of};

use crate::maps::{change, count, loop_at, param, slot_of, take_slot};
use crate::task::Task;
use crate::{emit, log, runnable, sched, stats};

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
    let Some((kind, fd)) = wait_of(syscall, args) else { return };
    let Some(slot) = slot_for(tid, is_main, kind) else { return };
    let Some(state) = loop_at(slot) else { return };
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };

    if state.handed_work == 0 && !state.is_home(kind, fd) && takes_over(state, kind, fd) {
        log::adopted(context, tid, kind, fd);
        change(state, |state| state.adopt(kind, fd));
    }
    sched::runs(slot, state, now_ns);
    let faults = Task::current().faults();
    let entered = change(state, |state| {
        state.count_faults(faults);
        state.wait_entered(kind, fd, now_ns)
    });
    stats::wait_entered(slot, &entered, &state.turn);
    match entered {
        Entered::TurnOver(turn) if turn.booked_ns() >= param!(threshold_ns) => {
            state.ready_owed = 1;
            state.stalled_ns = turn.start_ns;
            runnable::tell(slot, turn.start_ns);
            let head = RecordHead { kind: kind::TURN_ENDED, tid };
            emit::record(&TurnEnded { head, end_ns: now_ns, turn }, Counter::EndLost);
        }
        Entered::ReturnMissed => count(Counter::WaitReturnMissed),
        Entered::TurnOver(_) | Entered::Idle | Entered::Nested => {}
    }
}

/// Whether a wait that is not the loop's own becomes it: the first, one of a greater kind, or one on
/// another instance once the loop's own is closed (a second `asyncio.run`).
#[inline(always)]
fn takes_over(state: &Loop, kind: u32, fd: u32) -> bool {
    if kind != state.home_kind {
        return kind > state.home_kind;
    }
    // What is being waited on is such an instance; is what stands under the loop's own number?
    let instance = Task::current().kind_of_file(fd);
    if instance == 0 {
        count(Counter::InstanceUnreadable);
        return false;
    }
    Task::current().kind_of_file(state.home_fd) != instance
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
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let faults = Task::current().faults();
    let begins = change(state, |state| {
        state.count_faults(faults);
        state.wait_left(now_ns)
    });
    if !begins {
        return;
    }
    stats::wait_left(slot, returned);
    if state.ready_owed == 1 {
        state.ready_owed = 0;
        let head = RecordHead { kind: kind::READY, tid };
        let ready = Ready { head, turn_start_ns: state.stalled_ns, returned };
        emit::record(&ready, Counter::RecordLost);
    }
}

/// A slot for a thread whose wait's entry nobody saw: it is taken from the syscall's registers.
#[inline(never)]
fn first_seen(tid: u32, is_main: bool) -> Option<&'static mut Loop> {
    let registers = Task::current().registers()?;
    let [a, b, c, d, ..] = registers.args;
    let (kind, fd) = wait_of(registers.syscall as u64, [a, b, c, d])?;
    let state = loop_at(slot_for(tid, is_main, kind)?)?;
    change(state, |state| {
        state.adopt(kind, fd);
        state.phase = profiler_ebpf::turn::phase::WAITING;
    });
    Some(state)
}
