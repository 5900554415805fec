//! The instance that a loop waits on: which it is, whether it is still open, and who else waits on it.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use profiler_ebpf::counter::Counter;
use profiler_ebpf::limits::MAX_LOOPS;
use profiler_ebpf::record::{RecordHead, Registers, TurnEnded, WAITING, ended, kind};
use profiler_ebpf::turn::wait::EPOLL;
use profiler_ebpf::turn::{Loop, Turn, WaitCall, has_instance, phase, wait_of};

use crate::maps::{change, count, loop_at, param, slot_of};
use crate::runnable::tell_contenders;
use crate::task::{Task, read_field};
use crate::{emit, stats};

/// The wait that a system call of the current thread makes, if it is one.
#[inline(always)]
pub fn wait_call(syscall: u64, args: [u64; 4]) -> Option<WaitCall> {
    let (kind, fd) = wait_of(syscall, args)?;
    let file = if has_instance(kind, args) { Task::current().file(fd) } else { 0 };
    Some(WaitCall { kind, fd, file, syscall })
}

/// The instance that another thread waits on, by its registers, and what kind of file that is; zeros where it waits on
/// none.
#[inline(always)]
pub fn waited_on(task: Task, registers: &Registers) -> (u64, u64) {
    let [a, b, c, d, ..] = registers.args;
    let args = [a, b, c, d];
    match wait_of(registers.syscall as u64, args) {
        Some((kind, fd)) if has_instance(kind, args) => {
            let file = task.file(fd);
            (file, operations(file))
        }
        _ => (0, 0),
    }
}

/// Makes a wait the loop's own where it takes over: see [`Loop::takes_over`]. One on another instance of the
/// same kind does once the loop's own is closed (a second `asyncio.run`): that had ended the turn.
#[inline(never)]
pub fn take_over(slot: u32, state: &mut Loop, call: &WaitCall) {
    if state.takes_over(call) {
        adopt(state, call);
    } else if call.kind == state.home_kind {
        if call.file == 0 || state.home_file == 0 {
            count(Counter::InstanceUnreadable);
            return;
        }
        if Task::current().file(state.home_fd) != state.home_file {
            close(slot, state);
            adopt(state, call);
        }
    }
}

/// Makes this wait the loop's own.
#[inline(always)]
pub fn adopt(state: &mut Loop, call: &WaitCall) {
    let operations = operations(call.file);
    change(state, |state| {
        state.adopt(call);
        state.home_operations = operations;
    });
}

/// The current thread has made an epoll instance, or has failed to. A loop of its own that had this number is
/// closed; the file of the new one may lie where the old one's did.
#[inline(always)]
pub fn created(returned: i64) {
    let pid_tgid = bpf_get_current_pid_tgid();
    if pid_tgid >> 32 != param!(tgid) {
        return;
    }
    let Some(slot) = slot_of(pid_tgid as u32) else { return };
    let Some(state) = loop_at(slot) else { return };
    if state.has_instance() && state.home_kind == EPOLL && i64::from(state.home_fd) == returned {
        close(slot, state);
    }
}

/// The kind of a file.
#[inline(always)]
fn operations(file: u64) -> u64 {
    if file == 0 { 0 } else { read_field(file, param!(field.file_f_op)).unwrap_or(0) }
}

/// Ends the turn of a thread whose loop's instance is closed. True where that is so.
#[inline(never)]
pub fn is_closed(slot: u32, state: &mut Loop, task: Task) -> bool {
    let is_open = || {
        task.file(state.home_fd) == state.home_file
            && operations(state.home_file) == state.home_operations
    };
    let is_closed = state.has_instance() && !is_open();
    if is_closed {
        close(slot, state);
    }
    is_closed
}

#[inline(always)]
fn close(slot: u32, state: &mut Loop) {
    if state.phase != phase::TURN {
        return;
    }
    stats::over(slot, state);
    if state.turn.booked_ns() >= param!(threshold_ns) {
        tell_over(slot, ended::CLOSED);
    }
    change(state, Loop::closed);
}

/// Tells that a turn past the threshold is over. A function of its own because a record takes a fifth of the
/// stack that a chain of calls has.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tell_over(slot: u32, by: u32) -> u32 {
    let Some(state) = loop_at(slot) else { return 0 };
    let Turn { start_ns, .. } = state.turn;
    tell_contenders(slot, start_ns);
    let record = TurnEnded {
        head: RecordHead { kind: kind::TURN_ENDED, tid: state.tid },
        // Not the clock: a thread that was preempted on its way here read that before.
        end_ns: start_ns + state.turn.booked_ns(),
        turn: state.turn,
        left_ns: state.left_ns,
        others_left_ns: others_left_ns(slot),
        by,
        reserved: 0,
    };
    // After a wait comes what it returned.
    let read = if by == ended::WAIT { emit::Read::Later } else { emit::Read::Now };
    emit::record(&record, Counter::EndLost, read);
    0
}

/// See [`TurnEnded::others_left_ns`]. Looks through all slots: only where a turn was
/// long, or its thread waits for others.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn others_left_ns(slot: u32) -> u64 {
    let Some(state) = loop_at(slot) else { return 0 };
    let (tid, file) = (state.tid, state.home_file);
    let mut last_ns = 0;
    if file == 0 {
        return last_ns;
    }
    for slot in 0..MAX_LOOPS {
        let Some(other) = loop_at(slot) else { break };
        if other.home_file != file || other.tid == tid {
            continue;
        }
        let left_ns = if other.phase == phase::WAITING { WAITING } else { other.left_ns };
        if left_ns > last_ns {
            last_ns = left_ns;
        }
    }
    last_ns
}
