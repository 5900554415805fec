//! Every map: who writes it, who reads it, how large it is and why; and the safe ways to reach a slot.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuHashMap, Queue, RingBuf};
use profiler_ebpf::contention::Contenders;
use profiler_ebpf::counter::Counter;
use profiler_ebpf::limits::{MAX_ACCEPTORS, MAX_BUFFERS, MAX_LOOPS, MAX_SLOTLESS, RING_BYTES};
use profiler_ebpf::loop_counters::{Accepts, LoopCounters};
use profiler_ebpf::param::{Field, Params};
use profiler_ebpf::parks::Parks;
use profiler_ebpf::python::PythonLayout;
use profiler_ebpf::record::Capture;
use profiler_ebpf::turn::Loop;
use profiler_ebpf::version;

const UNRESOLVED: Field = Field { offset: 0, bytes: 0 };

/// Set by the daemon before loading, frozen after.
#[unsafe(no_mangle)]
pub static PARAMS: Params = Params {
    tgid: 0,
    threshold_ns: 0,
    suspect_ns: 0,
    poll_waits: 0,
    switch_has_state: 0,
    stats: 0,
    field: profiler_ebpf::param::Fields {
        task_pid: UNRESOLVED,
        task_tgid: UNRESOLVED,
        task_state: UNRESOLVED,
        task_mm: UNRESOLVED,
        task_files: UNRESOLVED,
        task_fsbase: UNRESOLVED,
        mm_start_stack: UNRESOLVED,
        mm_lock_count: UNRESOLVED,
        files_fdt: UNRESOLVED,
        fdtable_max_fds: UNRESOLVED,
        fdtable_fd: UNRESOLVED,
        file_f_op: UNRESOLVED,
        task_nvcsw: UNRESOLVED,
        task_nivcsw: UNRESOLVED,
        task_on_cpu: UNRESOLVED,
        task_cpu: UNRESOLVED,
        task_min_flt: UNRESOLVED,
        task_maj_flt: UNRESOLVED,
        task_flags: UNRESOLVED,
        task_run_delay: UNRESOLVED,
        task_migrations: UNRESOLVED,
        task_jobctl: UNRESOLVED,
    },
};

/// A field of the parameters, as the constant that the verifier sees.
macro_rules! param {
    ($($field:ident).+) => {
        // SAFETY: the static is never written; the volatile read keeps the compiler from folding
        // the zeros that stand in the source.
        unsafe { core::ptr::read_volatile(&raw const crate::maps::PARAMS.$($field).+) }
    };
}
pub(crate) use param;

/// Thread to slot. Written here when a thread first waits and when it exits, and by the daemon for
/// threads that were frozen before it came.
#[map]
static SLOTS: HashMap<u32, u32> = HashMap::with_max_entries(MAX_LOOPS, 0);

/// Slots not in use. Filled by the daemon, because programs have no atomic counter to draw from.
#[map]
static FREE_SLOTS: Queue<u32> = Queue::with_max_entries(MAX_LOOPS, 0);

/// Threads that waited like event loops while every slot was taken, each counted once; the daemon names them.
#[map]
static SLOTLESS: HashMap<u32, u32> = HashMap::with_max_entries(MAX_SLOTLESS, 0);

/// One loop per slot; the daemon maps it and looks without a syscall.
#[map]
static LOOPS: Array<Loop> = Array::with_max_entries(MAX_LOOPS, BPF_F_MMAPABLE);

/// Where each loop's thread last gave up its CPU in a turn; also the place where ticks are put together.
/// Behind them buffers for the captures of threads that have no slot.
#[map]
static CAPTURES: Array<Capture> = Array::with_max_entries(MAX_LOOPS + MAX_BUFFERS, BPF_F_MMAPABLE);

/// Where each loop's thread sleeps when it is idle, if not in a wait that is hooked; written by the daemon.
#[map]
static PARKS: Array<Parks> = Array::with_max_entries(MAX_LOOPS, BPF_F_MMAPABLE);

/// Who ran instead of each loop's thread while that was ready; the daemon maps it.
#[map]
static CONTENDERS: Array<Contenders> = Array::with_max_entries(MAX_LOOPS, BPF_F_MMAPABLE);

/// The statistics of the thread in each slot. The daemon makes it one slot long where none are wanted.
#[map]
static LOOP_COUNTERS: Array<LoopCounters> = Array::with_max_entries(MAX_LOOPS, BPF_F_MMAPABLE);

/// When the target executed another program, ns; 0: not since the probes are attached. The daemon maps it.
#[map]
static EXECUTED: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Processes whose accepts are counted, by process; filled by the daemon. For each CPU its own value,
/// because programs cannot add atomically.
#[map]
static ACCEPTS: PerCpuHashMap<u32, Accepts> = PerCpuHashMap::with_max_entries(MAX_ACCEPTORS, 0);

/// How the target's CPython is laid out; written by the daemon.
#[map]
static PYTHON: Array<PythonLayout> = Array::with_max_entries(1, 0);

/// To the daemon. Never wakes it: a wakeup costs the target ten times the record.
#[map]
pub static RECORDS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// Losses by [`Counter`]. They are seldom enough for one number of all CPUs, which the daemon maps.
#[map]
static COUNTERS: Array<u64> = Array::with_max_entries(Counter::ALL.len() as u32, BPF_F_MMAPABLE);

/// Counts one loss.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(sum) = COUNTERS.get_ptr_mut(counter as u32) {
        add(sum, 1);
    }
}

/// The slot of a thread that is watched.
#[inline(always)]
pub fn slot_of(tid: u32) -> Option<u32> {
    // SAFETY: the value is copied out at once; an entry is removed only when its thread exits.
    unsafe { SLOTS.get(tid).copied() }
}

/// The target executes another program. What follows is not of the one that the daemon knows.
#[inline(always)]
pub fn has_executed(now_ns: u64) {
    if let Some(at_ns) = EXECUTED.get_ptr_mut(0) {
        // SAFETY: one aligned word. A process executes one program at a time.
        unsafe { at_ns.write_volatile(now_ns) };
    }
}

/// Takes a slot for a thread that is to be watched from now on; none in a program that the daemon does not know.
#[inline(always)]
pub fn take_slot(tid: u32) -> Option<u32> {
    if EXECUTED.get(0).is_none_or(|at_ns| *at_ns != 0) {
        return None;
    }
    let Ok(Some(slot)) = FREE_SLOTS.pop() else {
        const ONLY_IF_NEW: u64 = 1;
        if SLOTLESS.insert(tid, 0, ONLY_IF_NEW).is_ok() {
            count(Counter::NoSlot);
        }
        return None;
    };
    let state = loop_at(slot)?;
    let version = state.version;
    *state = Loop { version, tid, ..Loop::default() };
    if let Some(capture) = capture_at(slot) {
        capture.head.at_ns = 0;
    }
    SLOTS.insert(tid, slot, 0).ok()?;
    Some(slot)
}

/// The thread is gone. The daemon hands the slot out again once it has read the last of it.
#[inline(always)]
pub fn forget(tid: u32) {
    let _ = SLOTS.remove(tid);
}

#[inline(always)]
pub fn loop_at(slot: u32) -> Option<&'static mut Loop> {
    // SAFETY: a slot belongs to one thread. Its hooks run on the CPU that runs it or, for a wakeup,
    // while it is off every CPU, so there is one writer at a time; the daemon checks `version`.
    LOOPS.get_ptr_mut(slot).map(|state| unsafe { &mut *state })
}

#[inline(always)]
pub fn capture_at(slot: u32) -> Option<&'static mut Capture> {
    // SAFETY: as for `loop_at`; captures are written on the thread's own CPU only.
    CAPTURES.get_ptr_mut(slot).map(|capture| unsafe { &mut *capture })
}

#[inline(always)]
pub fn contenders_at(slot: u32) -> Option<&'static mut Contenders> {
    // SAFETY: as for `loop_at`, but that a switch on a CPU that the thread was just moved from may
    // come between: a number may be lost, and all are plain.
    CONTENDERS.get_ptr_mut(slot).map(|contenders| unsafe { &mut *contenders })
}

/// The statistics of the thread in a slot, where they are wanted.
#[inline(always)]
pub fn reading_at(slot: u32) -> Option<&'static mut LoopCounters> {
    if param!(stats) == 0 {
        return None;
    }
    // SAFETY: as for `loop_at`. The daemon writes `cell`, which is only read here, and the greatest
    // values of the other cell.
    LOOP_COUNTERS.get_ptr_mut(slot).map(|counters| unsafe { &mut *counters })
}

/// How this process's accepts ended on this CPU, if they are counted.
#[inline(always)]
pub fn accepts_of(tgid: u32) -> Option<&'static mut Accepts> {
    // SAFETY: the value is this CPU's own. A thread that is preempted within the increment by another of
    // its process can make it lose one; entries are removed when their process is gone.
    ACCEPTS.get_ptr_mut(&tgid).map(|accepts| unsafe { &mut *accepts })
}

/// How the thread in a slot parks.
#[inline(always)]
pub fn parks_at(slot: u32) -> Option<&'static Parks> {
    PARKS.get(slot)
}

/// How the target's CPython is laid out, if it runs one.
#[inline(always)]
pub fn python_layout() -> Option<&'static PythonLayout> {
    PYTHON.get(0).filter(|layout| layout.known == 1)
}

/// Changes a loop so that the daemon can tell a half-done change from a whole one.
#[inline(always)]
pub fn change<R>(state: &mut Loop, rule: impl FnOnce(&mut Loop) -> R) -> R {
    add(&raw mut state.version, version::BEGIN);
    let result = rule(state);
    add(&raw mut state.version, version::END);
    result
}

/// Adds in one instruction, which no interrupt and no other CPU divides. As an instruction by hand, because
/// Rust has none for this machine; the compiler moves no load and no store across it.
#[inline(always)]
pub fn add(sum: *mut u64, value: u64) {
    // SAFETY: the caller's pointer is to a word of a map's element. x86-64 keeps stores in order.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) sum, in(reg) value);
    }
}
