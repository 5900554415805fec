//! What hooks tell the statistics of the thread in a slot; nothing at all where none are wanted.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use profiler_ebpf::loop_counters::LoopCounters;
use profiler_ebpf::turn::{Entered, Loop, Turn};

use crate::maps::{accepts_of, reading_at};
use crate::task::Task;

/// The thread leaves its CPU: for someone else where it can go on, or to sleep.
#[inline(always)]
pub fn left_cpu(slot: u32, can_go_on: bool, task: Task) {
    if let Some(counters) = reading_at(slot) {
        counters.left_cpu(!can_go_on, task.run_delay_ns());
    }
}

/// The thread enters a wait, in this state since.
#[inline(always)]
pub fn wait_entered(slot: u32, entered: &Entered, state: &Loop) {
    let Some(counters) = reading_at(slot) else { return };
    match entered {
        Entered::Nested => return,
        Entered::TurnOver(_) => turn_over(counters, state),
        Entered::Idle | Entered::ReturnMissed => {}
    }
    counters.wait_entered();
}

/// The thread's own wait returned.
#[inline(always)]
pub fn wait_left(slot: u32, returned: i64) {
    if let Some(counters) = reading_at(slot) {
        counters.wait_left(returned);
    }
}

/// The thread's turn is over, by whatever else.
#[inline(always)]
pub fn over(slot: u32, state: &Loop) {
    if let Some(counters) = reading_at(slot) {
        turn_over(counters, state);
    }
}

#[inline(always)]
fn turn_over(counters: &mut LoopCounters, state: &Loop) {
    if state.counts() {
        counters.turn_over(&state.turn);
    } else {
        counters.add_time(&state.turn);
    }
}

/// The thread is gone in the middle of a turn.
#[inline(always)]
pub fn exited(slot: u32, turn: &Turn) {
    if let Some(counters) = reading_at(slot) {
        counters.add_time(turn);
    }
}

/// A call of `accept` or `accept4` returned in some process.
#[inline(always)]
pub fn accepted(returned: i64) {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if let Some(accepts) = accepts_of(tgid) {
        accepts.returned(returned);
    }
}
