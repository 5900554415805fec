//! The probes' entry points: read the context, apply a rule, emit what it says, return 0.
//!
//! The verifier follows a function anew at each call, but one with external linkage only once, for all
//! arguments that it may have. So those that are large, or called in many places, take numbers alone,
//! are `extern "C"`, and return a number, as it asks for: 0 where there is nothing to say.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod log;
mod maps;
mod task;
mod emit;
mod capture;
mod park;
mod runnable;
mod stats;
mod instance;
mod wait;
mod sched;
mod other_threads;
mod births;
mod sample;

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_seq_write};
use aya_ebpf::macros::{btf_tracepoint, fentry, fexit, perf_event, tracepoint};
use aya_ebpf::programs::{
    BtfTracePointContext, FEntryContext, FExitContext, PerfEventContext, TracePointContext,
};
use profiler_ebpf::limits::MAX_LOOPS;
use profiler_ebpf::record::{ThreadSnapshot, reason};
use profiler_ebpf::turn::{Loop, phase};

use crate::maps::param;
use crate::sample::Interrupted;
use crate::task::Task;

/// The licence that the kernel asks for before it opens its helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// `TP_PROTO(bool preempt, struct task_struct *prev, struct task_struct *next, unsigned int prev_state)`;
/// the last since 5.18 (include/trace/events/sched.h).
#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(context: BtfTracePointContext) -> i32 {
    let preempted = context.arg::<u64>(0) & 1 == 1;
    let previous = Task::from_tracepoint(context.arg(1));
    let next = Task::from_tracepoint(context.arg(2));
    let state =
        if param!(switch_has_state) == 1 { context.arg::<u32>(3) } else { previous.state() };
    sched::switched(&context, preempted, previous, next, u64::from(state));
    0
}

/// `TP_PROTO(struct task_struct *p)`
#[btf_tracepoint(function = "sched_wakeup")]
pub fn sched_wakeup(context: BtfTracePointContext) -> i32 {
    sched::woken(Task::from_tracepoint(context.arg(0)));
    0
}

/// `TP_PROTO(struct task_struct *p)`. Runs on the CPU and in the context of whoever wakes `p`, where
/// `sched_wakeup` may run on the CPU that `p` is sent to. Attached only while it is wanted.
#[btf_tracepoint(function = "sched_waking")]
pub fn sched_waking(context: BtfTracePointContext) -> i32 {
    other_threads::waking(Task::from_tracepoint(context.arg(0)));
    0
}

/// `TP_PROTO(struct task_struct *parent, struct task_struct *child)`. Attached only where workers are watched.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn sched_process_fork(context: BtfTracePointContext) -> i32 {
    births::born(Task::from_tracepoint(context.arg(1)));
    0
}

/// `TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`. The new program is loaded, and has not
/// run yet. A thread that is not the first takes the number of the first.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(context: BtfTracePointContext) -> i32 {
    sched::executed(Task::from_tracepoint(context.arg(0)), context.arg(1));
    0
}

/// One cpu-clock sample. Switched on by the daemon only while a turn is suspected.
#[perf_event]
pub fn tick(context: PerfEventContext) -> u32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    if pid_tgid >> 32 != param!(tgid) {
        return 0;
    }
    // SAFETY: the context of a perf event begins with the interrupted registers.
    let code_segment = unsafe { (&raw const (*context.ctx).regs.cs).read_volatile() };
    let in_user = u32::from(code_segment & 3 == 3);
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    sampled(&context, pid_tgid as u32, Interrupted { in_user, kernel_ip: 0 }, now_ns);
    0
}

/// `TP_PROTO(struct hrtimer *hrtimer, ktime_t *now)`. One of this CPU's timers expires, as the one of its
/// tick does while it is busy. The sample where perf events are refused; attached as those are.
#[btf_tracepoint(function = "hrtimer_expire_entry")]
pub fn timer_expires(context: BtfTracePointContext) -> i32 {
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // Whoever runs: each CPU's time is sampled evenly, or shares of it could not be told.
    if !sample::is_due(now_ns) {
        return 0;
    }
    let pid_tgid = bpf_get_current_pid_tgid();
    if pid_tgid >> 32 == param!(tgid)
        && let Some(interrupted) = sample::interrupted()
    {
        sampled(&context, pid_tgid as u32, interrupted, now_ns);
    }
    0
}

/// Takes a sample of the current thread of the target, if that is of interest.
#[inline(always)]
fn sampled<C: EbpfContext>(context: &C, tid: u32, interrupted: Interrupted, now_ns: u64) {
    let Interrupted { in_user, kernel_ip } = interrupted;
    let slot = maps::slot_of(tid);
    if let Some(slot) = slot
        && let Some(state) = maps::loop_at(slot)
    {
        found_running(slot, state, in_user, now_ns);
    }
    let in_turn =
        |state: &&mut Loop| state.phase == phase::TURN && sched::is_suspected(state, now_ns);
    let (place, tstate) = match (slot, slot.and_then(maps::loop_at).filter(in_turn)) {
        (Some(slot), Some(state)) => {
            if !loop_registers(slot, state, in_user, now_ns) {
                return;
            }
            (slot, state.python_tstate)
        }
        _ => match other_threads::tick(tid, in_user, now_ns) {
            Some(other) => (other.buffer, other.tstate),
            None => return,
        },
    };
    // Both ways meet here, and neither compiler nor verifier may tell them apart: the verifier would
    // follow the walk of the interpreter's frames twice, and may not follow a million instructions.
    let place = core::hint::black_box(place);
    if let Some(capture) = maps::capture_at(place) {
        if in_user == 0 {
            capture::take_kernel_stack(context, capture);
            sample::leave_out_interrupt(context, capture, kernel_ip);
        }
        capture::take_stacks(place, tstate);
        emit::capture(capture, emit::Read::Later);
    }
    if place >= MAX_LOOPS {
        other_threads::leave(place);
    }
}

/// What it tells of a loop that its thread is on a CPU: outside of its wait, or past its instance's end.
#[inline(never)]
fn found_running(slot: u32, state: &mut Loop, in_user: u32, now_ns: u64) {
    let task = Task::current();
    if in_user == 1 && state.phase == phase::WAITING {
        sched::left_unseen(slot);
    } else if state.has_instance()
        && sched::is_suspected(state, now_ns)
        && !instance::is_closed(slot, state, task)
    {
        sched::runs(slot, state, now_ns);
        maps::change(state, |state| state.is_open(now_ns));
    }
}

/// Takes the registers of a loop's thread. A function of its own because they need much of the 512
/// bytes of stack that a program has.
#[inline(never)]
fn loop_registers(slot: u32, state: &mut Loop, in_user: u32, now_ns: u64) -> bool {
    let Some(capture) = maps::capture_at(slot) else { return false };
    sched::runs(slot, state, now_ns);
    let taken = capture::take_registers(capture, state, reason::TICK, in_user, now_ns);
    // Another loop may wait for what this one holds.
    capture.head.holds_gil = other_threads::gil_is_held_by(state.python_tstate);
    capture.head.callback = capture::word_at(state.python_callback);
    // The lower half: an `int`.
    capture.head.collecting = (capture::word_at(state.python_collecting) as u32).min(1);
    taken
}

/// `sys_enter_*` (events/syscalls): common fields in 8 bytes, the number, the arguments. The kernel
/// refuses a program that reads past an event's last argument, and `poll` has but three.
#[tracepoint]
pub fn wait_entered(context: TracePointContext) -> u32 {
    let number = enter_field(&context, 8) & 0xffff_ffff;
    wait::entered(&context, number, [enter_field(&context, 16), enter_field(&context, 24), 0, 0]);
    0
}

/// `sys_enter_io_uring_enter`, whose third and fourth argument tell whether it waits.
#[tracepoint]
pub fn ring_entered(context: TracePointContext) -> u32 {
    let number = enter_field(&context, 8) & 0xffff_ffff;
    let args = [16, 24, 32, 40].map(|offset| enter_field(&context, offset));
    wait::entered(&context, number, args);
    0
}

#[inline(always)]
fn enter_field(context: &TracePointContext, offset: usize) -> u64 {
    // SAFETY: within the event, or the kernel does not attach the program.
    unsafe { context.as_ptr().cast::<u8>().add(offset).cast::<u64>().read_volatile() }
}

/// `sys_exit_*`: common fields in 8 bytes, the number, the return value.
#[tracepoint]
pub fn wait_left(context: TracePointContext) -> u32 {
    wait::left(&context, exit_value(&context));
    0
}

#[inline(always)]
fn exit_value(context: &TracePointContext) -> i64 {
    // SAFETY: the return value lies at offset 16 of every exit tracepoint.
    unsafe { context.as_ptr().cast::<u8>().add(16).cast::<i64>().read_volatile() }
}

/// `sys_exit_epoll_create` and `sys_exit_epoll_create1`.
#[tracepoint]
pub fn instance_made(context: TracePointContext) -> u32 {
    instance::created(exit_value(&context));
    0
}

/// The better hook on `epoll_create`.
#[fexit]
pub fn leave_epoll_create(context: FExitContext) -> i32 {
    instance::created(context.arg(1));
    0
}

/// The better hook on `epoll_create1`.
#[fexit]
pub fn leave_epoll_create1(context: FExitContext) -> i32 {
    instance::created(context.arg(1));
    0
}

/// `sys_exit_accept` and `sys_exit_accept4`.
#[tracepoint]
pub fn accept_left(context: TracePointContext) -> u32 {
    stats::accepted(exit_value(&context));
    0
}

/// The better hook on `accept`.
#[fexit]
pub fn leave_accept(context: FExitContext) -> i32 {
    stats::accepted(context.arg(1));
    0
}

/// The better hook on `accept4`.
#[fexit]
pub fn leave_accept4(context: FExitContext) -> i32 {
    stats::accepted(context.arg(1));
    0
}

/// One pair of programs per syscall function: fentry binds a program to one function when it is loaded.
macro_rules! wait_function {
    ($enter:ident, $leave:ident) => {
        #[fentry]
        pub fn $enter(context: FEntryContext) -> i32 {
            let (number, args) = task::syscall_of(context.arg(0));
            wait::entered(&context, number, args);
            0
        }

        #[fexit]
        pub fn $leave(context: FExitContext) -> i32 {
            // The return value follows the one argument; `bpf_get_func_ret` would need 5.17.
            wait::left(&context, context.arg(1));
            0
        }
    };
}

wait_function!(enter_epoll_wait, leave_epoll_wait);
wait_function!(enter_epoll_pwait, leave_epoll_pwait);
wait_function!(enter_epoll_pwait2, leave_epoll_pwait2);
wait_function!(enter_io_uring_enter, leave_io_uring_enter);
wait_function!(enter_poll, leave_poll);
wait_function!(enter_ppoll, leave_ppoll);
wait_function!(enter_select, leave_select);
wait_function!(enter_pselect6, leave_pselect6);

/// `struct bpf_iter__task`, and the part of `struct bpf_iter_meta` that is used.
#[repr(C)]
struct TaskIteration {
    meta: *const *mut aya_ebpf::bindings::seq_file,
    task: *const u8,
}

/// Tells about every thread of the target, asleep or not. Since 5.8; registers since 5.15.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn threads(context: *mut core::ffi::c_void) -> i32 {
    // SAFETY: the kernel calls a task iterator with this structure.
    let TaskIteration { meta, task } = unsafe { context.cast::<TaskIteration>().read_volatile() };
    if core::hint::black_box(task).is_null() {
        return 0;
    }
    let task = Task::from_tracepoint(task);
    if u64::from(task.tgid()) != param!(tgid) {
        return 0;
    }
    let is_main = task.tid() == task.tgid();
    let registers = task.registers().unwrap_or_default();
    let (wait_file, wait_operations) = instance::waited_on(task, &registers);
    let snapshot = ThreadSnapshot {
        tid: task.tid(),
        is_main: u32::from(is_main),
        task_state: task.left_in(u64::from(task.state())),
        registers,
        stack_top: if is_main { task.start_stack() } else { 0 },
        fsbase: task.fsbase(),
        switches: task.switches(),
        on_cpu: u64::from(task.on_cpu()),
        wait_file,
        wait_operations,
    };
    // SAFETY: the first field of `bpf_iter_meta` is the sequence file to write to, and the
    // snapshot has no padding.
    unsafe {
        bpf_seq_write(
            *meta,
            (&raw const snapshot).cast_mut().cast(),
            size_of::<ThreadSnapshot>() as u32,
        );
    }
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
