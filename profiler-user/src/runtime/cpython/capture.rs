//! The interpreter's frames of one capture, named.

use profiler_ebpf::python::PythonWalk;

use super::interpreter::Python;
use super::names::NamedFrame;
use crate::gap::Gap;
use crate::process::TargetMemory;
use crate::source::Captured;
use crate::task::Running;

/// Interpreter frames of one capture, or why there are none.
#[derive(Debug, Clone)]
pub enum PythonFrames {
    Named(Named),
    Missing(Gap),
}

/// The frames, and what they tell.
#[derive(Debug, Clone)]
pub struct Named {
    pub frames: Vec<NamedFrame>,
    pub walk: PythonWalk,
    /// The coroutines among them, and whose task they are.
    pub running: Option<Running>,
    /// Of which call of a callback it is: the same number in one turn is the same call.
    pub call: Option<u64>,
    /// Where the loop keeps which callback it runs.
    pub callback_at: Option<u64>,
    /// Where in a frame its variables begin, in bytes, and which bits of them are tags.
    pub variables_at: u64,
    pub tags: u64,
}

impl Named {
    /// Frames of which nothing else is known.
    pub fn new(frames: Vec<NamedFrame>, walk: PythonWalk) -> Self {
        let (running, call, callback_at) = Default::default();
        Self { frames, walk, running, call, callback_at, variables_at: 0, tags: 0 }
    }
}

impl PythonFrames {
    /// There are none, for this reason.
    pub fn missing(why: &str) -> Self {
        Self::Missing(Gap::new("python frames", why))
    }

    /// Names what the probes, or a reader from outside, walked. At once: the target may free it.
    pub fn of(captured: &Captured, python: &mut Python, memory: &dyn TargetMemory) -> Self {
        let walk = PythonWalk::from_u32(captured.head.python_walk);
        match walk {
            PythonWalk::NotTried => Self::missing(if captured.stack.is_empty() {
                "it blocked before the turn was suspected, and not for long after"
            } else {
                "the thread has no interpreter state that we know"
            }),
            PythonWalk::WrongThread => {
                Self::missing("the interpreter state that we know belongs to another thread")
            }
            PythonWalk::Complete
            | PythonWalk::Unreadable
            | PythonWalk::TooDeep
            | PythonWalk::Shortened(_) => Self::Named(Named {
                variables_at: python.layout.frame_variables.into(),
                tags: python.layout.walk.code_tag_mask.into(),
                ..Named::new(python.decode(memory, &captured.interpreted), walk)
            }),
        }
    }

    /// Asks as well whose coroutine ran in the thread with this state, and which callback.
    pub fn add_task(
        &mut self,
        captured: &Captured,
        python: &mut Python,
        memory: &dyn TargetMemory,
        state: Option<u64>,
    ) {
        let Self::Named(named) = self else { return };
        let (raw, frames) = (&captured.interpreted, &named.frames);
        named.running = python.running(memory, raw, frames, named.walk, state);
        named.callback_at = python.callback_at(raw, frames);
        // Where the callback is not known, its coroutine tells calls apart.
        named.call = named.running.as_ref().and_then(|it| it.coroutines.last().copied());
    }
}
