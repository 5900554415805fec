//! CPython as one of the runtimes: how it fulfils their contract.

use profiler_ebpf::python::PythonLayout;

use super::capture::PythonFrames;
use super::interpreter::Python;
use super::pools::{self, work_frame};
use super::spans::python_stack;
use crate::frame::{Frame, Language, Stack};
use crate::gap::Gap;
use crate::process::TargetMemory;
use crate::process::frozen::is_of_a_loop;
use crate::runtime::frames::{RuntimeFrames, WorkPlace};
use crate::runtime::park::{ParkState, Sleeper};
use crate::runtime::{Attached, Effort, Found, GlobalLock, Interpreter, Process, Runtime};
use crate::source::Captured;
use crate::task::Running;
use crate::unwind::merge::PythonStack;

/// Functions of CPython's collector, 3.8 to 3.15 (Modules/gcmodule.c, since 3.13 Python/gc.c). Beginnings: compilers add
/// suffixes.
const COLLECTORS: [&str; 6] = [
    "gc_collect_",
    "collect_with_callback",
    "deduce_unreachable",
    "PyGC_Collect",
    "_PyGC_Collect",
    "_Py_RunGC",
];

/// CPython's row in the table of runtimes.
#[derive(Debug)]
pub struct PythonRow;

impl Runtime for PythonRow {
    fn name(&self) -> &'static str {
        "CPython"
    }

    fn reads_frames(&self) -> bool {
        true
    }

    fn attach(&self, process: &Process<'_>) -> Result<Option<Found>, Gap> {
        let found = Python::detect(process.memory, process.regions, process.open)?;
        Ok(found.map(|python| {
            let found = Found::whole("cpython", Some(python.version().to_owned()));
            Found { attached: Some(Box::new(python)), ..found }
        }))
    }

    /// Of loops that are written for Python, also where it is C that runs.
    fn loop_kind(&self, frame: &Frame) -> Option<&'static str> {
        let module = frame.module.as_deref().unwrap_or_default();
        let file = frame.file.as_deref().unwrap_or_default();
        let function = frame.function.as_deref().unwrap_or_default();
        if module.contains("/uvloop/") {
            Some("uvloop")
        } else if module.contains("/gevent/_gevent_c") || file.ends_with("/gevent/hub.py") {
            Some("gevent")
        } else if file.ends_with("/eventlet/greenthread.py")
            || file.ends_with("/eventlet/hubs/hub.py")
        {
            Some("eventlet")
        } else if file.ends_with("/trio/_core/_run.py") {
            Some("trio")
        } else if file.ends_with("/twisted/internet/base.py") && function.ends_with("mainLoop") {
            // Its reactor on asyncio's loop does without.
            Some("twisted")
        } else if file.ends_with("/asyncio/base_events.py") {
            Some("asyncio")
        } else {
            None
        }
    }

    fn collects(&self, frame: &Frame) -> bool {
        let name = frame.function.as_deref().unwrap_or_default();
        frame.language == Language::Native && COLLECTORS.iter().any(|known| name.starts_with(known))
    }

    fn park_state(&self, sleeper: &Sleeper<'_>) -> Option<ParkState> {
        pools::park_state(sleeper)
    }
}

impl Attached for Python {
    fn frames(
        &mut self,
        memory: &dyn TargetMemory,
        captured: &Captured,
        effort: Effort,
    ) -> Option<Box<dyn RuntimeFrames>> {
        let mut frames = PythonFrames::of(captured, self, memory);
        if let Effort::Loop { state } = effort {
            frames.add_task(captured, self, memory, state);
        }
        Some(Box::new(frames))
    }

    fn unread(&self, why: &str) -> Option<Box<dyn RuntimeFrames>> {
        Some(Box::new(PythonFrames::missing(why)))
    }

    fn interpreter(&self) -> Option<&dyn Interpreter> {
        Some(self)
    }

    fn interpreter_mut(&mut self) -> Option<&mut dyn Interpreter> {
        Some(self)
    }
}

impl Interpreter for Python {
    fn layout(&self) -> PythonLayout {
        self.layout.walk
    }

    fn states(&self, memory: &dyn TargetMemory) -> Vec<(u64, u64)> {
        self.states_by_thread(memory)
    }

    fn state_of(&self, memory: &dyn TargetMemory, number: u32) -> Option<u64> {
        self.thread_state(memory, number, None).ok()
    }

    fn is_state_of(&self, memory: &dyn TargetMemory, state: u64, thread_pointer: u64) -> bool {
        let at = state.wrapping_add(self.layout.walk.tstate_thread_id.into());
        memory.read_u64(at) == Ok(thread_pointer)
    }

    fn innermost_at(&self, memory: &dyn TargetMemory, state: u64) -> Option<u64> {
        Self::innermost_at(self, memory, state)
    }

    fn walk(&self, memory: &dyn TargetMemory, state: u64, captured: &mut Captured) {
        let (frames, walk) = Self::walk(self, memory, state, Some(captured.head.fsbase));
        captured.interpreted = frames;
        captured.head.python_walk = walk.number();
    }

    fn shows_loop(&mut self, memory: &dyn TargetMemory, state: u64, thread_pointer: u64) -> bool {
        let (frames, _) = Self::walk(self, memory, state, Some(thread_pointer));
        let named = self.decode(memory, &frames);
        named.iter().any(|frame| frame.file.as_deref().is_some_and(is_of_a_loop))
    }

    fn thread_name(
        &mut self,
        memory: &dyn TargetMemory,
        state: u64,
    ) -> Result<Option<String>, Gap> {
        Self::thread_name(self, memory, state)
    }

    fn collecting_at(&self, memory: &dyn TargetMemory) -> Option<u64> {
        Self::collecting_at(self, memory)
    }

    fn lock(&self, memory: &dyn TargetMemory) -> Option<GlobalLock> {
        self.gil(memory)
    }

    fn holder(&self, memory: &dyn TargetMemory, lock: &GlobalLock) -> Option<u32> {
        Self::holder(self, memory, lock)
    }

    fn lock_owner(&self, memory: &dyn TargetMemory, stack: &[u8], futex: u64) -> Option<u32> {
        Self::lock_owner(self, memory, stack, futex)
    }
}

impl RuntimeFrames for PythonFrames {
    fn boxed(&self) -> Box<dyn RuntimeFrames> {
        Box::new(self.clone())
    }

    fn spans(&self) -> Option<PythonStack> {
        match self {
            Self::Named(named) => Some(python_stack(&named.frames, named.walk)),
            Self::Missing(_) => None,
        }
    }

    fn complete(&self, stack: &mut Stack) {
        match self {
            Self::Named(named) => {
                stack.running.clone_from(&named.running);
                stack.call = named.call;
                stack.gaps.extend(named.frames.iter().filter_map(|frame| frame.gap.clone()));
            }
            Self::Missing(gap) => {
                stack.gaps.push(gap.clone());
                // Nobody knows whether a coroutine ran.
                stack.running = Some(Running { coroutines: Vec::new(), task: Err(gap.clone()) });
            }
        }
    }

    fn came_too_late(&mut self) {
        if let Self::Named(named) = self
            && let Some(running) = &mut named.running
        {
            // Whatever the answer was, the task may have been another.
            running.task = Err(Gap::new("task", "the turn was over by the time it was asked"));
        }
    }

    fn callback_at(&self) -> Option<u64> {
        match self {
            Self::Named(named) => named.callback_at,
            Self::Missing(_) => None,
        }
    }

    fn set_call(&mut self, call: u64) {
        if let Self::Named(named) = self {
            named.call = Some(call);
        }
    }

    /// The first variable of the frame of the call with which a pool's loop does the work.
    fn work(&self) -> Option<WorkPlace> {
        let Self::Named(named) = self else { return None };
        let frame = work_frame(&named.frames)?;
        Some(WorkPlace { at: frame.wrapping_add(named.variables_at), tags: named.tags })
    }
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::python::PythonWalk;

    use super::PythonFrames;
    use crate::runtime::cpython::capture::Named;
    use crate::runtime::frames::RuntimeFrames;
    use crate::task::{Running, Task};

    /// What was asked too late is no proof, whatever the answer was; a callback stays one.
    #[test]
    fn too_late() {
        let task = Task { name: Ok("t".to_owned()), frame: 1, root: 0, middleware: Vec::new() };
        let coroutine = Running { coroutines: vec![1], task: Ok(task) };
        for running in [Some(coroutine), None] {
            let named = Named { running, ..Named::new(Vec::new(), PythonWalk::Complete) };
            let mut late = PythonFrames::Named(named);
            late.came_too_late();
            let PythonFrames::Named(Named { running, .. }) = late else {
                panic!("frames were lost")
            };
            assert!(running.is_none_or(|running| running.task.is_err()));
        }
    }
}
