//! A loop's thread that is ready and has no CPU: who runs on the CPU that it waits for, switch by switch.
//!
//! A switch of two tasks that nobody watches asks one word and goes on, unless a loop's thread waits
//! somewhere. What is said here by CPU is a hint, and checked against the waiting thread itself: a
//! race can lose somebody's time, and can give nobody another's.

use aya_ebpf::helpers::generated::{
    bpf_get_current_comm, bpf_get_smp_processor_id, bpf_ktime_get_ns,
};
use profiler_ebpf::contention::{Contenders, Queued, TaskId};
use profiler_ebpf::counter::Counter;
use profiler_ebpf::limits::{MAX_CPUS, MAX_LOOPS, MAX_WAITERS};
use profiler_ebpf::record::{RecordHead, kind};
use profiler_ebpf::turn::{Loop, Turn, phase, state};
use profiler_ebpf::version;

use crate::emit;
use crate::maps::{add, contenders_at, loop_at, param};
use crate::task::{Task, read_field};

/// 1 while a loop's thread may be waiting for a CPU: then every switch is looked at.
static mut ANYBODY_WAITS: u64 = 0;

/// Since when it is so, ns. A switch before may have gone unseen.
static mut FOLLOWED_SINCE: u64 = 0;

/// By slot, 1 while its thread waits; written on the CPU that it waits for or comes onto.
static mut WAITS: [u64; MAX_LOOPS as usize / 8] = [0; MAX_LOOPS as usize / 8];

/// By CPU, the slots whose threads may be waiting for it, a bit each. Both hooks hold the lock of
/// that CPU's run queue as they write it, except for a thread that was moved.
static mut WAIT_HERE: [u64; MAX_CPUS] = [0; MAX_CPUS];

/// By CPU, its last switch while a loop's thread waited for it, ns.
static mut LAST_SWITCH: [u64; MAX_CPUS] = [0; MAX_CPUS];

const _: () = assert!(MAX_LOOPS == u64::BITS && MAX_CPUS.is_power_of_two());

/// One task leaves this CPU and another comes onto it: before anything else is made of that.
#[inline(always)]
pub fn switched(previous: Task, next: Task) {
    // SAFETY: an aligned word of our own; whatever it is read as is checked below.
    if unsafe { (&raw const ANYBODY_WAITS).read_volatile() } == 0 {
        return;
    }
    let cpu = this_cpu();
    let here = here(cpu);
    // SAFETY: as above.
    let slots = unsafe { here.read_volatile() };
    if slots != 0 {
        book_all(slots, cpu, pack(id(previous)), pack(id(next)));
    }
}

/// A loop's thread is ready from now on, and waits for a CPU. `next` comes onto that CPU, if it is known.
#[inline(always)]
pub fn begin(slot: u32, turn: &Turn, waiter: Task, next: Option<Task>, now_ns: u64) {
    let Some(contenders) = contenders_at(slot) else { return };
    let (cpu, tid) = (waiter.cpu(), waiter.tid());
    let on_cpu = next.map_or(TaskId::UNKNOWN, id);
    let before = Queued { delay_ns: waiter.run_delay_ns(), migrations: waiter.migrations() };
    write(contenders, |contenders| {
        contenders.head = RecordHead { kind: kind::CONTENDERS, tid };
        contenders.before = before;
        contenders.begin(turn.start_ns, waiter.address(), cpu, on_cpu, now_ns);
    });
    set_waits(slot, 1);
    let here = here(cpu);
    // SAFETY: an aligned word of our own.
    let slots = unsafe { here.read_volatile() };
    // SAFETY: as above.
    unsafe { here.write_volatile(slots | bit(slot)) };
    follow(now_ns);
}

/// From now on, every switch is looked at.
#[inline(always)]
fn follow(now_ns: u64) {
    let follows = &raw mut ANYBODY_WAITS;
    // SAFETY: an aligned word of our own, as is the other.
    if unsafe { follows.read_volatile() } == 0 {
        // SAFETY: as above.
        unsafe { (&raw mut FOLLOWED_SINCE).write_volatile(now_ns) };
    }
    // SAFETY: as above.
    unsafe { follows.write_volatile(1) };
}

/// A loop's thread comes onto this CPU.
#[inline(always)]
pub fn end(slot: u32, now_ns: u64) {
    if contenders_at(slot).is_some_and(|contenders| contenders.waiter != 0) {
        has_come(slot, now_ns);
    }
}

/// The same of one that is known to have waited.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn has_come(slot: u32, now_ns: u64) -> u32 {
    let Some(contenders) = contenders_at(slot) else { return 0 };
    let cpu = this_cpu();
    write(contenders, |contenders| {
        if contenders.cpu != cpu {
            let queued = queued(contenders.waiter);
            let task = contenders.stays(seen_since(contenders.cpu));
            leave(contenders, task, queued, now_ns, false);
        }
        contenders.end();
    });
    let here = here(cpu);
    // SAFETY: an aligned word of our own.
    let slots = unsafe { here.read_volatile() };
    if slots & bit(slot) != 0 {
        // SAFETY: as above.
        unsafe { here.write_volatile(slots & !bit(slot)) };
    }
    set_waits(slot, 0);
    follow_while_wanted(now_ns);
    0
}

/// Switches are looked at no more where nobody waits.
#[inline(always)]
fn follow_while_wanted(now_ns: u64) {
    if !anybody_waits() {
        // SAFETY: an aligned word of our own.
        unsafe { (&raw mut ANYBODY_WAITS).write_volatile(0) };
        // Another's wait may have begun meanwhile.
        if anybody_waits() {
            follow(now_ns);
        }
    }
}

/// Sends who ran instead in a turn that is over, if anybody did. A function of its own, as the records
/// of the turn's end are.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tell_contenders(slot: u32, turn_start_ns: u64) -> u32 {
    if let Some(contenders) = contenders_at(slot)
        && contenders.turn_start_ns == turn_start_ns
    {
        emit::record(contenders, Counter::RecordLost, emit::Read::Later);
    }
    0
}

/// Gives the time since the last switch on this CPU to the task that leaves it, for all that wait here.
#[inline(never)]
fn book_all(slots: u64, cpu: u32, previous: u64, next: u64) {
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let since_ns = seen_since(cpu);
    let (mut left, mut gone) = (slots, 0);
    for _ in 0..MAX_WAITERS {
        if left == 0 {
            break;
        }
        let first = left & left.wrapping_neg();
        left ^= first;
        if book(first.trailing_zeros(), previous, next, since_ns, now_ns) == 0 {
            gone |= first;
        }
    }
    // SAFETY: an aligned word of our own.
    unsafe { last_switch(cpu).write_volatile(now_ns) };
    if gone != 0 {
        let here = here(cpu);
        // SAFETY: an aligned word of our own.
        let slots = unsafe { here.read_volatile() };
        // SAFETY: as above.
        unsafe { here.write_volatile(slots & !gone) };
        follow_while_wanted(now_ns);
    }
}

/// 0 where the slot's thread does not wait for this CPU: it may leave it right now, although nobody
/// saw it come.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn book(slot: u32, previous: u64, next: u64, since_ns: u64, now_ns: u64) -> u32 {
    let (Some(contenders), Some(state)) = (contenders_at(slot), loop_at(slot)) else { return 0 };
    let (cpu, previous) = (this_cpu(), unpack(previous));
    let waits = contenders.waiter != 0 && contenders.cpu == cpu && is_ready(state);
    if !is_ready(state) {
        // Its wait ended unseen: it is watched no more.
        set_waits(slot, 0);
    }
    if !waits || previous.tid == state.tid {
        return 0;
    }
    let at = read_field(contenders.waiter, param!(field.task_cpu)).map_or(cpu, |at| at as u32);
    if at == cpu {
        write(contenders, |contenders| {
            let ran = contenders.ran(previous, since_ns);
            contenders.book(ran, now_ns, current_name);
            contenders.on_cpu = unpack(next);
        });
        return 1;
    }
    let queued = queued(contenders.waiter);
    write(contenders, |contenders| {
        let ran = contenders.ran(previous, since_ns);
        leave(contenders, ran, queued, now_ns, true);
        contenders.cpu = at;
    });
    let there = here(at);
    // SAFETY: an aligned word of our own. That CPU may write it at the same time: then one of both is
    // lost, which its own checks find out.
    let slots = unsafe { there.read_volatile() };
    // SAFETY: as above.
    unsafe { there.write_volatile(slots | bit(slot)) };
    0
}

/// The thread was moved from where `task` ran: that has the time until then.
#[inline(always)]
fn leave(contenders: &mut Contenders, task: TaskId, queued: Queued, now_ns: u64, is_current: bool) {
    let moved_ns = contenders.moved_at(queued);
    if let Some(moved_ns) = moved_ns {
        let until_ns = if moved_ns < now_ns { moved_ns } else { now_ns };
        contenders.book(task, until_ns, |name| {
            if is_current {
                current_name(name);
            }
        });
    }
    contenders.moved(moved_ns, queued, now_ns);
}

#[inline(always)]
fn is_ready(state: &Loop) -> bool {
    state.phase == phase::TURN && state::is_ready(state.state)
}

/// How a task that waits for a CPU has waited so far.
#[inline(always)]
fn queued(task: u64) -> Queued {
    Queued {
        delay_ns: read_field(task, param!(field.task_run_delay)).unwrap_or(0),
        migrations: read_field(task, param!(field.task_migrations)).unwrap_or(0),
    }
}

#[inline(always)]
fn current_name(name: &mut [u8; 16]) {
    // SAFETY: the buffer is of that size.
    unsafe { bpf_get_current_comm(name.as_mut_ptr().cast(), 16) };
}

#[inline(always)]
fn this_cpu() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_smp_processor_id() }
}

/// The word of a CPU. Those past [`MAX_CPUS`] share words with others, and are told apart by the checks.
#[inline(always)]
fn here(cpu: u32) -> *mut u64 {
    // SAFETY: the index is within the array.
    unsafe { (&raw mut WAIT_HERE).cast::<u64>().add(index(cpu)) }
}

/// The other word of a CPU: where it is shared, it is the later switch, which gives less to somebody.
#[inline(always)]
fn last_switch(cpu: u32) -> *mut u64 {
    // SAFETY: the index is within the array.
    unsafe { (&raw mut LAST_SWITCH).cast::<u64>().add(index(cpu)) }
}

#[inline(always)]
fn index(cpu: u32) -> usize {
    // The black box keeps the mask, which the verifier needs.
    (core::hint::black_box(u64::from(cpu)) & (MAX_CPUS as u64 - 1)) as usize
}

/// Since when whoever is on this CPU has been there, if its time is not known from longer ago.
#[inline(always)]
fn seen_since(cpu: u32) -> u64 {
    // SAFETY: an aligned word of our own, as is the other.
    let switched_ns = unsafe { last_switch(cpu).read_volatile() };
    // SAFETY: as above.
    let followed_ns = unsafe { (&raw const FOLLOWED_SINCE).read_volatile() };
    if switched_ns > followed_ns { switched_ns } else { followed_ns }
}

#[inline(always)]
fn set_waits(slot: u32, waits: u8) {
    let index = core::hint::black_box(u64::from(slot)) & (u64::from(MAX_LOOPS) - 1);
    // SAFETY: the array has a byte for each slot.
    unsafe { (&raw mut WAITS).cast::<u8>().add(index as usize).write_volatile(waits) };
}

#[inline(always)]
fn anybody_waits() -> bool {
    let mut all = 0;
    for index in 0..MAX_LOOPS as usize / 8 {
        // SAFETY: the index is within the array.
        all |= unsafe { (&raw const WAITS).cast::<u64>().add(index).read_volatile() };
    }
    all != 0
}

#[inline(always)]
fn bit(slot: u32) -> u64 {
    1 << (slot & (u64::BITS - 1))
}

#[inline(always)]
fn id(task: Task) -> TaskId {
    TaskId { tgid: task.tgid(), tid: task.tid() }
}

#[inline(always)]
fn pack(task: TaskId) -> u64 {
    u64::from(task.tgid) << 32 | u64::from(task.tid)
}

#[inline(always)]
fn unpack(task: u64) -> TaskId {
    TaskId { tgid: (task >> 32) as u32, tid: task as u32 }
}

/// Changes who ran instead so that the daemon can tell a half-done change from a whole one.
#[inline(always)]
fn write(contenders: &mut Contenders, rule: impl FnOnce(&mut Contenders)) {
    add(&raw mut contenders.version, version::BEGIN);
    rule(contenders);
    add(&raw mut contenders.version, version::END);
}
