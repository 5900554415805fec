//! What the session leaves to the analyst: samples to unwind and name, and lines that are due.

use profiler_ebpf::python::PythonWalk;

use crate::gap::Gap;
use crate::report::Start;
use crate::runtime::cpython::NamedFrame;
use crate::source::Captured;
use crate::task::Running;
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
        /// The coroutines among them, and whose task they are.
        running: Option<Running>,
    },
    Missing(Gap),
}

impl PythonFrames {
    /// The thread had left the turn of the capture by the time that its task was asked for: whatever
    /// the answer was, the task may have been another.
    pub fn came_too_late(&mut self) {
        if let Self::Named { running: Some(running), .. } = self {
            running.task = Err(Gap::new("task", "the turn was over by the time it was asked"));
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
    Sample { captured: Box<Captured>, python: PythonFrames, kernel: KernelStack, awaited: Awaited },
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

#[cfg(test)]
mod tests {
    use profiler_ebpf::python::PythonWalk;

    use super::PythonFrames;
    use crate::task::{Running, Task};

    /// What was asked too late is no proof, whatever the answer was; a callback stays one.
    #[test]
    fn too_late() {
        let task = Task { name: Ok("t".to_owned()), frame: 1, root: 0, middleware: Vec::new() };
        let coroutine = Running { coroutines: vec![1], task: Ok(task) };
        for running in [Some(coroutine), None] {
            let walk = PythonWalk::Complete;
            let mut late = PythonFrames::Named { frames: Vec::new(), walk, running };
            late.came_too_late();
            let PythonFrames::Named { running, .. } = late else { panic!("frames were lost") };
            assert!(running.is_none_or(|running| running.task.is_err()));
        }
    }
}
