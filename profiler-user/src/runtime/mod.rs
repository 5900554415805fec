//! Language runtimes, and event loops of libraries that are like them: what they know that the kernel and the native
//! stack do not tell.
//!
//! A runtime is known by a [`Runtime`], one row of the [`table`], without a state. It is asked in two places.
//!
//! *Once for each program*, while we attach, and again while the program may be only starting: does the process run this
//! runtime? There are three legal answers: no; yes, and this is how to read it; yes, but it cannot be read, with the
//! reason. What can be read or asked is [`Attached`] from then on, and belongs to the event path. As soon as raw frames
//! arrive it makes [`RuntimeFrames`] of them, because the target may free what they point to: one
//! named frame for each raw one, in the same order, and a gap where the name could not be had.
//!
//! *For each stack with names*, by the analyst: what do these frames tell? Which loop it is, whether the thread parks,
//! collects garbage, or waits for a lock of the runtime's. That holds for runtimes, too, of which nothing can be read.
//!
//! A runtime sees the target only through [`TargetMemory`] and the files that it is handed. Whatever it reads there is
//! the target's word, and every length, count and chain needs a bound with a name. Nobody outside of this folder asks
//! which runtime it is, but for the words that reports have of some of them: to add one, add its folder, and its row.

pub mod collector;
pub mod cpython;
pub mod frames;
pub mod go;
pub mod names;
pub mod park;
pub mod ruby;
pub mod runtimes;
pub mod table;
pub mod tokio;
pub mod v8;
pub mod worker_threads;

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::path::Path;

use profiler_ebpf::python::PythonLayout;

use self::frames::RuntimeFrames;
use self::park::{ParkState, Sleeper};
use crate::frame::Frame;
use crate::gap::Gap;
use crate::process::TargetMemory;
use crate::process::image::Image;
use crate::process::maps::Region;
use crate::process::target::WaitDescriptors;
use crate::source::Captured;
use crate::turn::{Awaited, Lock};

/// What reports call the name that a runtime has for a thread; gaps are about it, too.
pub const THREAD_NAME: &str = "thread.python_name";

/// A runtime that is known: how it is recognised, and what stacks tell of it. Each question has "no" for an answer.
pub trait Runtime: Debug + Sync {
    /// As its makers write it; no two have the same.
    fn name(&self) -> &'static str;

    /// Whether frames that it interprets are read where it is attached.
    fn reads_frames(&self) -> bool {
        false
    }

    /// Recognises the runtime by what the process has mapped. An error where it is there, and cannot be read: then the
    /// others are asked all the same. It may read files, and take milliseconds.
    fn attach(&self, _process: &Process<'_>) -> Result<Option<Found>, Gap> {
        Ok(None)
    }

    /// What a process has open to wait on, without what the runtime itself opens in every process.
    fn without_its_own(&self, found: WaitDescriptors, _regions: &[Region]) -> WaitDescriptors {
        found
    }

    /// Recognises a runtime of which nothing is mapped, by the frames of a stack.
    fn recognise(&self, _frames: &[Frame]) -> Option<RuntimeIdentity> {
        None
    }

    /// Which event loop a frame is of, as a report's `thread.loop` has it.
    fn loop_kind(&self, _frame: &Frame) -> Option<&'static str> {
        None
    }

    /// Whether a frame is of the runtime's garbage collector.
    fn collects(&self, _frame: &Frame) -> bool {
        false
    }

    /// Whether a thread waits for work there, or is inside its work. None: it is in no pool that the runtime knows.
    fn park_state(&self, _sleeper: &Sleeper<'_>) -> Option<ParkState> {
        None
    }

    /// What a thread with this stack waits for that sleeps on a futex, where nothing but the stack tells.
    fn awaited(&self, _frames: &[Frame]) -> Option<Awaited> {
        None
    }

    /// Whether a thread with this stack, which ran while another waited for this lock, is sure not to have it.
    fn cannot_have(&self, _lock: Lock, _frames: &[Frame]) -> bool {
        false
    }
}

/// A process that may run a runtime.
#[derive(Clone, Copy)]
#[allow(missing_debug_implementations, reason = "neither memory nor a function has one")]
pub struct Process<'a> {
    pub memory: &'a dyn TargetMemory,
    /// What it has mapped.
    pub regions: &'a [Region],
    /// Its executable, as it sees that, and what is in it; where they can be read.
    pub exe: Option<&'a Path>,
    pub program: Option<&'a Image>,
    /// How a mapped file is opened.
    pub open: &'a dyn Fn(&Region) -> io::Result<File>,
}

/// A runtime that a process runs.
#[derive(Debug)]
pub struct Found {
    pub identity: RuntimeIdentity,
    /// What is not seen of it all the same.
    pub gap: Option<Gap>,
    /// Whether a look a moment later may tell more, because the process is so young.
    pub is_early: bool,
    /// Where it can be read or asked.
    pub attached: Option<Box<dyn Attached>>,
}

impl Found {
    /// One that is all there.
    pub fn whole(name: &'static str, version: Option<String>) -> Self {
        let identity = RuntimeIdentity { name, version };
        Self { identity, gap: None, is_early: false, attached: None }
    }
}

/// As a report's `runtime` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeIdentity {
    pub name: &'static str,
    pub version: Option<String>,
}

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

    /// The lock under which its threads run one at a time, where nothing in memory tells who has it: stacks do, see
    /// [`Runtime::awaited`].
    fn hidden_lock(&self) -> Option<Lock> {
        None
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
