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
    /// The target runs no CPython that we know.
    NotPython,
    Named {
        frames: Vec<NamedFrame>,
        walk: PythonWalk,
        /// The coroutines among them, and whose task they are.
        running: Option<Running>,
        /// Of which call of a callback it is: the same number in one turn is the same call.
        call: Option<u64>,
    },
    Missing(Gap),
}

impl PythonFrames {
    /// Names what the probes, or a reader from outside, walked. At once: the target may free it.
    pub fn of(captured: &Captured, python: Option<&mut Python>, memory: &dyn TargetMemory) -> Self {
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
            PythonWalk::Complete
            | PythonWalk::Unreadable
            | PythonWalk::TooDeep
            | PythonWalk::Shortened(_) => {
                let frames = python.decode(memory, &captured.interpreted);
                Self::Named { frames, walk, running: None, call: None }
            }
        }
    }

    /// The thread had left the turn of the capture by the time that its task was asked for: whatever
    /// the answer was, the task may have been another.
    pub fn came_too_late(&mut self) {
        if let Self::Named { running: Some(running), .. } = self {
            running.task = Err(Gap::new("task", "the turn was over by the time it was asked"));
        }
    }
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
            let mut late = PythonFrames::Named { frames: Vec::new(), walk, running, call: None };
            late.came_too_late();
            let PythonFrames::Named { running, .. } = late else { panic!("frames were lost") };
            assert!(running.is_none_or(|running| running.task.is_err()));
        }
    }
}
