//! What the session leaves to the analyst: samples to unwind and name, and lines that are due.

use profiler_ebpf::python::PythonWalk;

use crate::gap::Gap;
use crate::process::TargetMemory;
use crate::report::Start;
use crate::runtime::cpython::{NamedFrame, Python};
use crate::runtime::v8::ScriptFrames;
use crate::source::Captured;
use crate::turn::Awaited;
use crate::turn::tracker::Due;

/// Interpreter frames of one capture, or why there are none.
#[derive(Debug, Clone)]
pub enum PythonFrames {
    /// The target runs no CPython that we know.
    NotPython,
    Named {
        frames: Vec<NamedFrame>,
        walk: PythonWalk,
    },
    Missing(Gap),
}

impl PythonFrames {
    /// Names the frames that a capture brought.
    pub fn decode(
        python: Option<&mut Python>,
        memory: &impl TargetMemory,
        captured: &Captured,
    ) -> Self {
        let Some(python) = python else { return Self::NotPython };
        let walk = PythonWalk::from_u32(captured.head.python_walk);
        match walk {
            PythonWalk::NotTried => {
                let why = if captured.stack.is_empty() {
                    "it blocked before the turn was suspected, and not for long after"
                } else {
                    "the thread has no interpreter state that we know"
                };
                Self::Missing(Gap::new("python frames", why))
            }
            PythonWalk::WrongThread => {
                let why = "the interpreter state that we know belongs to another thread";
                Self::Missing(Gap::new("python frames", why))
            }
            PythonWalk::Complete | PythonWalk::Unreadable | PythonWalk::TooDeep => {
                Self::Named { frames: python.decode(memory, &captured.python), walk }
            }
        }
    }
}

/// What was lost, by name.
pub type Losses = Vec<(&'static str, u64)>;

/// Where a capture's kernel stack is.
#[derive(Debug, Clone)]
pub enum KernelStack {
    /// In the capture itself, if it lay in the kernel when a tick found it.
    Captured,
    /// The text of /proc/PID/task/TID/stack of a blocked thread, if that could be read.
    Text(Option<String>),
}

/// Work for the analyst, in order.
#[derive(Debug)]
pub enum Job {
    /// The session's first line is due, once what the first stall needs has been read by way of
    /// these captures.
    Begin { start: Box<Start>, warm_up: Vec<Captured> },
    /// Where a loop's thread was at one moment.
    Sample {
        captured: Box<Captured>,
        python: PythonFrames,
        javascript: ScriptFrames,
        kernel: KernelStack,
        awaited: Awaited,
    },
    /// Who held the interpreter's lock while a loop's thread waited for it.
    Holder {
        loop_tid: u32,
        turn_start_ns: u64,
        tid: u32,
        frames: Vec<NamedFrame>,
        walk: PythonWalk,
    },
    /// A blocked stretch is over whose stack may have been sent before.
    BlockEnded { captured: Box<Captured> },
    /// A line is due; with what has been lost so far.
    Report { tid: u32, due: Box<Due>, losses: Losses },
}
