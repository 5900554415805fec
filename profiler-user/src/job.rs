//! What the session leaves to the analyst: samples to unwind and name, and lines that are due.

use profiler_ebpf::python::PythonWalk;

use crate::gap::Gap;
use crate::report::Start;
use crate::runtime::cpython::NamedFrame;
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
