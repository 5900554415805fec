//! Language runtimes: from a target's memory to frames that only the runtime can name.
//!
//! A runtime is asked three things, in this order. *Detect*, once per process: does it run this
//! runtime? There are three legal answers: no; yes, and this is how to read it; yes, but it cannot
//! be read, with the reason. *Walk*, for a thread that stands still: which frames, raw. Mostly the
//! probes have done that already, in the thread's own context. *Decode*, as soon as raw frames
//! arrive, because the target may free what they point to: one named frame for each raw one, in the
//! same order, and a gap where the name could not be had.
//!
//! A runtime sees the target only through [`crate::process::TargetMemory`] and the files that it is
//! handed. Its frames also say where one call of the interpreter's own evaluation function ends,
//! because that is what ties them to the native stack.

pub mod collector;
pub mod cpython;
pub mod frames;
pub mod go;
pub mod loops;
pub mod names;
pub mod park;
pub mod ruby;
pub mod runtimes;
pub mod table;
pub mod tokio;
pub mod v8;
pub mod worker_threads;

use std::fmt::Debug;

use profiler_ebpf::python::PythonLayout;

use self::frames::RuntimeFrames;
use crate::gap::Gap;
use crate::process::TargetMemory;
use crate::source::Captured;

/// What reports call the name that a runtime has for a thread; gaps are about it, too.
pub const THREAD_NAME: &str = "thread.python_name";

/// How much is read of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// Of a thread that others wait for: what was walked of it.
    Walked,
    /// Of one that may be a worker: what its copied stack shows, too.
    Copied,
    /// Of a loop's thread: which task runs, too. `state` is its state in the interpreter, where that is known.
    Loop { state: Option<u64> },
}

/// One process's runtime, for as long as the process runs that program. The event path has it: whatever is asked here is
/// answered at once, out of memory that may change meanwhile, and never out of files.
pub trait Attached: Debug + Send {
    /// What a capture shows of this runtime. None: nothing, not even that something is missing.
    fn frames(
        &mut self,
        _memory: &dyn TargetMemory,
        _captured: &Captured,
        _effort: Effort,
    ) -> Option<Box<dyn RuntimeFrames>> {
        None
    }

    /// The same where the target's memory cannot be read now, for this reason.
    fn unread(&self, _why: &str) -> Option<Box<dyn RuntimeFrames>> {
        None
    }

    /// Whether its threads run one at a time, under a lock of which nothing in memory tells who has it: stacks do, see
    /// [`Awaited::Gvl`](crate::turn::Awaited).
    fn hides_its_lock(&self) -> bool {
        false
    }

    /// This runtime, if it keeps a state for each of its threads.
    fn interpreter(&self) -> Option<&dyn Interpreter> {
        None
    }

    fn interpreter_mut(&mut self) -> Option<&mut dyn Interpreter> {
        None
    }
}

/// A runtime that keeps a state for each of its threads, from which the probes walk the thread's frames.
///
/// A process has one at most, as the probes have one table of offsets. A state is known by its address in the target, a
/// thread by its thread pointer (`fsbase`) or by its number in the innermost PID namespace.
pub trait Interpreter {
    /// What the probes need to walk the frames.
    fn layout(&self) -> PythonLayout;

    /// The state of each thread, by its thread pointer; of several the one in use.
    fn states(&self, memory: &dyn TargetMemory) -> Vec<(u64, u64)>;

    /// The state of the thread with this number. None: it runs none of the interpreter's code.
    fn state_of(&self, memory: &dyn TargetMemory, number: u32) -> Option<u64>;

    /// Whether a state that was listed a while ago still is the thread's with this thread pointer.
    fn is_state_of(&self, memory: &dyn TargetMemory, state: u64, thread_pointer: u64) -> bool;

    /// Where the address of the innermost frame of a thread stands now.
    fn innermost_at(&self, memory: &dyn TargetMemory, state: u64) -> Option<u64>;

    /// Walks the frames of a thread that is known to stand still, as the probes would have; they and how the walk ended
    /// go into the capture.
    fn walk(&self, memory: &dyn TargetMemory, state: u64, captured: &mut Captured);

    /// Whether an event loop is on the thread's stack.
    fn shows_loop(&mut self, memory: &dyn TargetMemory, state: u64, thread_pointer: u64) -> bool;

    /// What the runtime calls the thread with this state; `None` where it does not know it. A gap is about
    /// [`THREAD_NAME`].
    fn thread_name(&mut self, memory: &dyn TargetMemory, state: u64)
    -> Result<Option<String>, Gap>;

    /// Where it stands whether garbage is being collected.
    fn collecting_at(&self, memory: &dyn TargetMemory) -> Option<u64>;

    /// The lock under which one thread runs at a time, once there is one.
    fn lock(&self, memory: &dyn TargetMemory) -> Option<GlobalLock>;

    /// The thread that has it now, by its number.
    fn holder(&self, memory: &dyn TargetMemory, lock: &GlobalLock) -> Option<u32>;

    /// The owner of a lock of the language's own for which a thread with this stack waits at this futex; by its number.
    fn lock_owner(&self, memory: &dyn TargetMemory, stack: &[u8], futex: u64) -> Option<u32>;
}

/// Where an interpreter keeps its global lock. All are addresses in the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GlobalLock {
    /// Whoever waits on a futex from here on waits for the lock,
    pub waited_on_from: u64,
    /// up to here, which is not of it any more.
    pub waited_on_to: u64,
    /// The state of the thread that had it last.
    pub holder_at: u64,
    /// 1 while it is held.
    pub locked_at: u64,
}

impl GlobalLock {
    /// Whether a futex at this address is part of the lock.
    pub fn contains(&self, futex: u64) -> bool {
        (self.waited_on_from..self.waited_on_to).contains(&futex)
    }
}
