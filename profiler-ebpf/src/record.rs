//! The records in the ring buffer, and the capture that lies in a loop's slot until it is sent.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::limits::{KERNEL_FRAMES, PYTHON_FRAMES, STACK_BYTES};
use crate::python::PythonFrame;
use crate::turn::Turn;

/// What a record is: the first word of each.
pub mod kind {
    /// A [`super::TurnEnded`].
    pub const TURN_ENDED: u32 = 1;
    /// A [`super::Ready`].
    pub const READY: u32 = 2;
    /// A [`super::CaptureHead`] with what follows it.
    pub const CAPTURE: u32 = 3;
    /// A [`super::Exited`].
    pub const EXITED: u32 = 4;
    /// A capture of a thread that is in no suspected turn itself: as [`CAPTURE`].
    pub const OTHER: u32 = 5;
    /// A [`super::Woken`].
    pub const WOKEN: u32 = 6;
    /// A [`crate::contention::Contenders`], before the end of the turn that it is about.
    pub const CONTENDERS: u32 = 7;
    /// A [`super::RecordHead`] alone: the thread goes to sleep in a suspected turn.
    pub const ASLEEP: u32 = 8;
}

/// The beginning of every record.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RecordHead {
    /// One of [`kind`].
    pub kind: u32,
    /// The loop's thread, as the kernel numbers it.
    pub tid: u32,
}

/// A turn past the threshold is over.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TurnEnded {
    /// [`kind::TURN_ENDED`]
    pub head: RecordHead,
    /// When the next wait was entered, ns.
    pub end_ns: u64,
    /// The account; its sum is the duration.
    pub turn: Turn,
    /// When the thread left its loop's wait last, ns: as the turn began, unless it has parked since.
    pub left_ns: u64,
    /// When another thread left a wait on the same instance last, ns; [`WAITING`] where one waits now.
    pub others_left_ns: u64,
    /// By what it ended: one of [`ended`].
    pub by: u32,
    /// Always 0.
    pub reserved: u32,
}

/// See [`TurnEnded::others_left_ns`].
pub const WAITING: u64 = u64::MAX;

/// What a turn can end by.
pub mod ended {
    /// The entry of the loop's next wait.
    pub const WAIT: u32 = 0;
    /// The thread's going to sleep where it waits for work.
    pub const PARK: u32 = 1;
    /// The end of the loop's instance, which was closed: the turn lasted at least so long.
    pub const CLOSED: u32 = 2;
}

/// What the wait after a stall returned.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Ready {
    /// [`kind::READY`]
    pub head: RecordHead,
    /// The stalled turn's start, ns.
    pub turn_start_ns: u64,
    /// The wait's return value: events, or a negative error number.
    pub returned: i64,
}

/// A loop's thread has exited, or has left its program for another.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Exited {
    /// [`kind::EXITED`]
    pub head: RecordHead,
    /// When, ns.
    pub at_ns: u64,
    /// 1 where it happened inside a turn.
    pub in_turn: u32,
    /// 1 where the thread lives on, and executes another program.
    pub executed: u32,
    /// That turn's account.
    pub turn: Turn,
}

/// One thread of the target as a walk over all tasks found it: for threads that were frozen before we came.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ThreadSnapshot {
    /// The thread, as the kernel numbers it.
    pub tid: u32,
    /// 1 for the thread that the process began with.
    pub is_main: u32,
    /// Its state as in [`CaptureHead::task_state`]: 0 where it runs or could.
    pub task_state: u64,
    /// The user registers; of a thread that is running, those of its last entry into the kernel.
    pub registers: Registers,
    /// Where the main thread's stack ends; 0 for others.
    pub stack_top: u64,
    /// The thread pointer.
    pub fsbase: u64,
    /// Times the thread has left a CPU since it began.
    pub switches: u64,
    /// 1 where it is on a CPU.
    pub on_cpu: u64,
    /// Of a thread in a wait, on which instance, as the address of its file; 0 where there is none, or it could not be
    /// read.
    pub wait_file: u64,
    /// What kind of file that is, as the address of its operations; 0 likewise.
    pub wait_operations: u64,
}

/// The user registers that unwinding and naming a syscall need (x86-64).
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Registers {
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer, where the code keeps one.
    pub bp: u64,
    /// The syscall's number while inside one, else -1.
    pub syscall: i64,
    /// The syscall's six arguments; meaningful only inside one.
    pub args: [u64; 6],
}

/// Why a capture was taken.
pub mod reason {
    /// A cpu-clock tick found the thread on a CPU.
    pub const TICK: u32 = 1;
    /// The thread gave up its CPU.
    pub const SWITCH_OUT: u32 = 2;
    /// The thread woke a loop's thread that was blocked on a futex.
    pub const WAKING: u32 = 3;
}

/// Where a thread was, at one moment. All of it is of that moment: it was taken in the thread's own context.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CaptureHead {
    /// [`kind::CAPTURE`]
    pub head: RecordHead,
    /// The moment, ns; 0 while the capture is being written.
    pub at_ns: u64,
    /// The turn in which it lies.
    pub turn_start_ns: u64,
    /// How long the thread stayed blocked from that moment on; 0 for a tick. In a slot: what the
    /// turn had been blocked for before.
    pub blocked_ns: u64,
    /// For how much of the turn's blocked time the capture stands: see [`crate::credit`]. 0 for a tick, and
    /// while the stretch lasts.
    pub weight_ns: u64,
    /// One of [`reason`].
    pub reason: u32,
    /// 1 where the tick interrupted user code.
    pub in_user: u32,
    /// What the thread was about to be: one of [`crate::turn::state`].
    pub state: u32,
    /// 1 where a tick found the thread to hold the interpreter's lock, and the daemon had told where that
    /// is; of threads in no suspected turn, only where it had asked.
    pub holds_gil: u32,
    /// The thread's `__state` as it gave up its CPU, 0 for a tick. A set of bits: SIGSTOP 0x4 (seen as
    /// 0x104: only a fatal signal wakes it), a debugger 0x8, the freezer 0x8000 (the first version's since
    /// 6.1; for the second's see [`crate::sleep::left_in`]).
    pub task_state: u64,
    /// What stood at [`crate::turn::Loop::python_callback`] at a tick, else 0.
    pub callback: u64,
    /// 1 where a tick found the interpreter to collect garbage.
    pub collecting: u32,
    /// How many waits `weight_ns` is of.
    pub waits: u32,
    /// The user registers.
    pub registers: Registers,
    /// Where the stack ends as far as is known: of the main thread, `mm->start_stack`; else 0.
    pub stack_top: u64,
    /// The thread pointer.
    pub fsbase: u64,
    /// Bytes of stack copied, from `registers.sp` upwards.
    pub stack_bytes: u32,
    /// Kernel return addresses that follow.
    pub kernel_frames: u32,
    /// Interpreter frames that follow.
    pub python_frames: u32,
    /// How the walk along them ended: a [`crate::python::PythonWalk`].
    pub python_walk: u32,
}

/// A capture as it lies in a loop's slot. A record of it ends with the last copied byte of the stack.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_debug_implementations, reason = "nobody prints 70 KB")]
pub struct Capture {
    /// What everything below is about.
    pub head: CaptureHead,
    /// Kernel return addresses, innermost first.
    pub kernel: [u64; KERNEL_FRAMES],
    /// Interpreter frames, innermost first.
    pub python: [PythonFrame; PYTHON_FRAMES],
    /// The stack from the stack pointer upwards, and room for the page that the verifier must
    /// believe could be read past the last.
    pub stack: [u8; STACK_BYTES + crate::limits::PAGE_BYTES],
}

/// A loop's thread that was blocked in a suspected turn was woken from within a system call of the
/// kind that ends such waits: see [`crate::wanted::ends_wait`].
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Woken {
    /// [`kind::WOKEN`]; the thread is the loop's.
    pub head: RecordHead,
    /// When, ns.
    pub at_ns: u64,
    /// The turn in which it lies.
    pub turn_start_ns: u64,
    /// When the thread had given up its CPU.
    pub blocked_at_ns: u64,
    /// The process that woke it, as the kernel numbers it.
    pub by_tgid: u32,
    /// The thread that woke it.
    pub by_tid: u32,
    /// What that thread was called, ended by a zero.
    pub by_name: [u8; 16],
    /// The system call that it was in: `exit` for a task that exits, whatever made it.
    pub by_syscall: i64,
    /// The first two arguments of that.
    pub by_args: [u64; 2],
}
