//! Threads of the target that are in no suspected turn themselves: they may hold, or give back, what a loop waits for.

use aya_ebpf::helpers::generated::{bpf_get_current_comm, bpf_ktime_get_ns};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, Queue};
use profiler_ebpf::counter::Counter;
use profiler_ebpf::limits::{BYSTANDER_EVERY_NS, MAX_BUFFERS, MAX_THREAD_STATES, MIN_BLOCK_NS};
use profiler_ebpf::python::PythonWalk;
use profiler_ebpf::record::{Capture, CaptureHead, RecordHead, Woken, kind, reason};
use profiler_ebpf::turn::{FUTEX, phase, state};
use profiler_ebpf::wanted::{Wanted, call_of, ends_wait, is_of_kind};

use crate::maps::{capture_at, count, loop_at, param, slot_of};
use crate::task::Task;
use crate::{capture, emit, sched};

/// What the daemon wants to know; written by it whenever that changes.
#[map]
static WANTED: Array<Wanted> = Array::with_max_entries(1, 0);

/// Thread pointer to the interpreter's thread state, for threads without a slot; written by the
/// daemon, checked by the walk.
#[map]
static THREAD_STATES: HashMap<u64, u64> = HashMap::with_max_entries(MAX_THREAD_STATES, 0);

/// Desks not in use. Filled by the daemon; one is taken for as long as a capture is put together.
#[map]
static FREE_BUFFERS: Queue<u32> = Queue::with_max_entries(MAX_BUFFERS, 0);

/// When a thread was last captured for no other reason than that all are wanted.
#[map]
static LAST_BYSTANDER: Array<u64> = Array::with_max_entries(1, 0);

/// How a thread was met.
struct Met {
    tid: u32,
    reason: u32,
    in_user: u32,
    holds_gil: u32,
    collecting: u32,
    tstate: u64,
    now_ns: u64,
}

/// A tick found a thread of the target that is in no suspected turn. Where that is of interest, its
/// registers are taken, and the caller does the rest.
#[inline(always)]
pub fn tick(tid: u32, in_user: u32, now_ns: u64) -> Option<Begun> {
    let wanted = WANTED.get(0)?;
    if wanted.gil | wanted.everyone | wanted.owner == 0 {
        return None;
    }
    let tstate = thread_state(Task::current().fsbase());
    let holds_gil = wanted.gil == 1 && holds_gil(wanted, tstate);
    if !holds_gil && wanted.owner != tid && !(wanted.everyone == 1 && is_time(now_ns)) {
        return None;
    }
    // Whoever collects holds the lock.
    let collecting = if holds_gil { capture::word_at(wanted.collecting_at) as u32 } else { 0 };
    let met = Met {
        tid,
        reason: reason::TICK,
        in_user,
        holds_gil: u32::from(holds_gil),
        collecting: collecting.min(1),
        tstate,
        now_ns,
    };
    begin(&met)
}

/// 1 where the current thread, with this state, holds the interpreter's lock, if it is known where that is.
#[inline(always)]
pub fn gil_is_held_by(tstate: u64) -> u32 {
    WANTED.get(0).map_or(0, |wanted| u32::from(holds_gil(wanted, tstate)))
}

/// Somebody wakes a task. Runs in the waker's context, or in whatever an interrupt came upon.
#[inline(always)]
pub fn waking(task: Task) {
    if u64::from(task.tgid()) != param!(tgid) {
        return;
    }
    let Some(slot) = slot_of(task.tid()) else { return };
    let (Some(state), Some(capture)) = (loop_at(slot), capture_at(slot)) else { return };
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if state.phase != phase::TURN
        || state.state != state::BLOCKED
        || !sched::is_suspected(state, now_ns)
    {
        return;
    }
    let head = &capture.head;
    if head.reason != reason::SWITCH_OUT || head.at_ns != state.booked_until_ns {
        return;
    }
    let is_futex = head.registers.syscall == FUTEX;
    if !is_futex && now_ns.saturating_sub(head.at_ns) < MIN_BLOCK_NS {
        return;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    let (by_tgid, by_tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    let same_process = u64::from(by_tgid) == param!(tgid);
    let told = tell_woken(capture, state.turn.start_ns, pid_tgid, now_ns);
    if told && is_futex && same_process {
        let tstate = thread_state(Task::current().fsbase());
        let met = Met {
            tid: by_tid,
            reason: reason::WAKING,
            in_user: 0,
            holds_gil: 0,
            collecting: 0,
            tstate,
            now_ns,
        };
        let Some(Begun { buffer, tstate }) = begin(&met) else { return };
        if let Some(capture) = capture_at(buffer) {
            capture::take_stacks(buffer, tstate);
            emit::capture(capture, emit::Read::Later);
        }
        leave(buffer);
    }
}

/// Tells that the current thread ended the wait that the capture is of, if its system call explains that.
///
/// A function of its own, as is `fill`: the kernel allows 512 bytes of stack for all that are being
/// called together, and the walk of the interpreter's frames needs a third of it.
#[inline(never)]
fn tell_woken(capture: &Capture, turn_start_ns: u64, by: u64, now_ns: u64) -> bool {
    let task = Task::current();
    let Some(mut call) = task.registers() else { return false };
    call.syscall = call_of(call.syscall, task.flags());
    let wait = &capture.head.registers;
    let explains = if wait.syscall == FUTEX {
        ends_wait(wait, &call, by >> 32 == param!(tgid))
    } else {
        is_of_kind(wait, call.syscall)
    };
    if !explains {
        return false;
    }
    let mut woken = Woken {
        head: RecordHead { kind: kind::WOKEN, tid: capture.head.head.tid },
        at_ns: now_ns,
        turn_start_ns,
        blocked_at_ns: capture.head.at_ns,
        by_tgid: (by >> 32) as u32,
        by_tid: by as u32,
        by_name: [0; 16],
        by_syscall: call.syscall,
        by_args: [call.args[0], call.args[1]],
    };
    // SAFETY: the buffer is of that size.
    unsafe { bpf_get_current_comm(woken.by_name.as_mut_ptr().cast(), 16) };
    emit::record(&woken, Counter::RecordLost, emit::Read::Later);
    true
}

/// Whether the last bystander was captured long enough ago. Two CPUs that ask at the same moment may
/// both be told yes.
#[inline(always)]
fn is_time(now_ns: u64) -> bool {
    let Some(last) = LAST_BYSTANDER.get_ptr_mut(0) else { return false };
    // SAFETY: the pointer is to the map's one element, of that type.
    let before_ns = unsafe { last.read_volatile() };
    let is_time = now_ns.saturating_sub(before_ns) >= BYSTANDER_EVERY_NS;
    if is_time {
        // SAFETY: as above.
        unsafe { last.write_volatile(now_ns) };
    }
    is_time
}

/// The interpreter's state of a thread, as far as the daemon has told.
#[inline(always)]
fn thread_state(fsbase: u64) -> u64 {
    // SAFETY: the value is copied out at once; a stale one is found out by the walk.
    unsafe { THREAD_STATES.get(fsbase).copied() }.unwrap_or(0)
}

/// Whether the current thread holds the interpreter's lock. Nobody else can take it from a thread,
/// so the answer holds for as long as we keep the thread from running on.
#[inline(always)]
fn holds_gil(wanted: &Wanted, tstate: u64) -> bool {
    // SAFETY: the helpers fail instead of faulting.
    let holder = unsafe { bpf_probe_read_user(wanted.gil_holder_at as *const u64) };
    // SAFETY: as above.
    let locked = unsafe { bpf_probe_read_user(wanted.gil_locked_at as *const u32) };
    tstate != 0 && holder == Ok(tstate) && locked == Ok(1)
}

/// A buffer where a capture of the current thread has been begun.
pub struct Begun {
    pub buffer: u32,
    pub tstate: u64,
}

/// Takes a buffer and puts the current thread's registers there.
#[inline(always)]
fn begin(met: &Met) -> Option<Begun> {
    let Ok(Some(buffer)) = FREE_BUFFERS.pop() else {
        count(Counter::OtherUntaken);
        return None;
    };
    if capture_at(buffer).is_some_and(|capture| fill(capture, met)) {
        return Some(Begun { buffer, tstate: met.tstate });
    }
    leave(buffer);
    None
}

/// The capture has been sent.
#[inline(always)]
pub fn leave(buffer: u32) {
    // A full queue is impossible: it has room for every buffer there is.
    let _ = FREE_BUFFERS.push(buffer, 0);
}

#[inline(never)]
fn fill(capture: &mut Capture, met: &Met) -> bool {
    let task = Task::current();
    let Some(registers) = task.registers() else { return false };
    let is_main = task.tgid() == met.tid;
    capture.head = CaptureHead {
        head: RecordHead { kind: kind::OTHER, tid: met.tid },
        at_ns: met.now_ns,
        turn_start_ns: 0,
        blocked_ns: 0,
        weight_ns: 0,
        reason: met.reason,
        in_user: met.in_user,
        state: state::RUNNING,
        holds_gil: met.holds_gil,
        task_state: 0,
        callback: 0,
        collecting: met.collecting,
        waits: 0,
        registers,
        stack_top: if is_main { task.start_stack() } else { 0 },
        fsbase: task.fsbase(),
        stack_bytes: 0,
        kernel_frames: 0,
        python_frames: 0,
        python_walk: PythonWalk::NotTried.number(),
    };
    true
}
