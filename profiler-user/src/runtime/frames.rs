//! What the runtimes of a process have read of one capture, and how that gets into the native stack.
//!
//! It is read on the event path, while the target may still change it, and put into its place by the analyst, who has
//! the native frames.

use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;

use profiler_ebpf::record::Registers;

use crate::frame::Stack;
use crate::gap::Gap;
use crate::process::TargetMemory;
use crate::process::modules::Modules;
use crate::unwind::merge::{NamedNativeStack, PythonStack, merge};
use crate::unwind::native::NativeStack;

/// What one runtime has read of one capture: frames with their names, or why there are none.
///
/// There are two ways into the native stack, and a runtime takes the one by which it can be proved where its frames
/// belong: [`place`](Self::place), where each frame of its code has a native frame of its own, and
/// [`spans`](Self::spans), where one native function runs many of them.
pub trait RuntimeFrames: Any + Debug + Send {
    /// A copy.
    fn boxed(&self) -> Box<dyn RuntimeFrames>;

    /// The mapped file with code of the runtime's that keeps frame pointers and has no unwind tables, and where in it
    /// that is. Whoever tells it says in [`place`](Self::place) why a frame of generated code has no name.
    fn own_code(&self) -> Option<(&str, Range<u64>)> {
        None
    }

    /// Replaces native frames by those that they stand for. `copy` is what the stack was unwound from. Returns what could
    /// not be named.
    fn place(
        &self,
        _named: &mut NamedNativeStack,
        _native: &NativeStack,
        _modules: &Modules,
        _copy: (&Registers, &[u8]),
    ) -> Vec<Gap> {
        Vec::new()
    }

    /// The frames that calls of the interpreter's main function ran, call by call.
    fn spans(&self) -> Option<PythonStack> {
        None
    }

    /// Adds to the finished stack what is no frame: what is missing, which task ran.
    fn complete(&self, _stack: &mut Stack) {}

    /// The thread had left the turn of the capture before all was read: what can be another turn's is not told.
    fn came_too_late(&mut self) {}

    /// Where the event loop on this stack keeps which callback it runs.
    fn callback_at(&self) -> Option<u64> {
        None
    }

    /// Of which call of a callback the capture is: the same number in one turn is the same call.
    fn set_call(&mut self, _call: u64) {}

    /// Where the thread has the piece of work that its pool handed it, as long as it is inside.
    fn work(&self) -> Option<WorkPlace> {
        None
    }
}

impl Clone for Box<dyn RuntimeFrames> {
    fn clone(&self) -> Self {
        (**self).boxed()
    }
}

/// A word of the target's that is another for every piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkPlace {
    pub at: u64,
    /// Bits of the word that are not of the work.
    pub tags: u64,
}

impl WorkPlace {
    /// Which work is in hand now.
    pub fn read(self, memory: &dyn TargetMemory) -> Option<u64> {
        Some(memory.read_u64(self.at).ok()? & !self.tags)
    }
}

/// What all runtimes of a process have read of one capture. Empty where nothing but native code is known to run.
#[derive(Debug, Clone, Default)]
pub struct Frames(Vec<Box<dyn RuntimeFrames>>);

impl FromIterator<Box<dyn RuntimeFrames>> for Frames {
    fn from_iter<I: IntoIterator<Item = Box<dyn RuntimeFrames>>>(all: I) -> Self {
        Self(all.into_iter().collect())
    }
}

impl Frames {
    /// What the runtime has read whose frames are of this type.
    pub fn of<T: RuntimeFrames>(&self) -> Option<&T> {
        self.0.iter().map(|frames| &**frames as &dyn Any).find_map(|any| any.downcast_ref())
    }

    pub fn own_code(&self) -> Option<(&str, Range<u64>)> {
        self.0.iter().find_map(|frames| frames.own_code())
    }

    pub fn place(
        &self,
        named: &mut NamedNativeStack,
        native: &NativeStack,
        modules: &Modules,
        copy: (&Registers, &[u8]),
    ) -> Vec<Gap> {
        let mut gaps = Vec::new();
        for frames in &self.0 {
            gaps.extend(frames.place(named, native, modules, copy));
        }
        gaps
    }

    /// One stack of the native frames and all others.
    pub fn merge(&self, named: NamedNativeStack) -> Stack {
        let spans = self.0.iter().find_map(|frames| frames.spans());
        let mut stack = merge(named, spans.unwrap_or_default());
        for frames in &self.0 {
            frames.complete(&mut stack);
        }
        stack
    }

    pub fn came_too_late(&mut self) {
        for frames in &mut self.0 {
            frames.came_too_late();
        }
    }

    pub fn callback_at(&self) -> Option<u64> {
        self.0.iter().find_map(|frames| frames.callback_at())
    }

    pub fn set_call(&mut self, call: u64) {
        for frames in &mut self.0 {
            frames.set_call(call);
        }
    }

    pub fn work(&self) -> Option<WorkPlace> {
        self.0.iter().find_map(|frames| frames.work())
    }
}
