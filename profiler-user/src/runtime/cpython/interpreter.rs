//! The interpreter of one process: what its memory tells of threads, frames, tasks and locks.

use std::fs::File;
use std::io;
use std::path::Path;

use profiler_ebpf::python::{PythonFrame, PythonWalk};

use super::detect::{self, PythonImage};
use super::gil;
use super::layout::CpythonLayout;
use super::names::{CodeNames, NamedFrame};
use super::tasks::{Seen, Tasks};
use super::threading::Threading;
use super::threads::{self, PythonThread};
use super::{frames, rlock, version};
use crate::gap::Gap;
use crate::process::TargetMemory;
use crate::process::maps::Region;
use crate::runtime::GlobalLock;
use crate::task::Running;

/// The interpreter of one process.
#[derive(Debug)]
pub struct Python {
    pub(super) image: PythonImage,
    pub(super) version: String,
    pub(super) layout: CpythonLayout,
    pub(super) names: CodeNames,
    pub(super) tasks: Tasks,
    pub(super) threading: Threading,
}

impl Python {
    /// Looks for an interpreter among the files that a process has mapped. None: it runs no CPython.
    /// A gap: it does, but not one that can be read.
    pub fn detect(
        memory: &dyn TargetMemory,
        regions: &[Region],
        open: &dyn Fn(&Region) -> io::Result<File>,
    ) -> Result<Option<Self>, Gap> {
        let images = detect::images(regions, open)?;
        let mut first_failure = None;
        let mut idle = None;
        for image in images {
            match Self::attach(memory, image) {
                // Of two interpreters, one may be there only because something is linked with it.
                Ok(python) if python.has_interpreters(memory) => return Ok(Some(python)),
                Ok(python) => idle = idle.or(Some(python)),
                Err(gap) => first_failure = first_failure.or(Some(gap)),
            }
        }
        match (idle, first_failure) {
            (None, Some(gap)) => Err(gap),
            (idle, _) => Ok(idle),
        }
    }

    fn attach(memory: &dyn TargetMemory, image: PythonImage) -> Result<Self, Gap> {
        let (version, layout) = version::of(memory, &image)?;
        let (names, tasks, threading) = Default::default();
        Ok(Self { image, version, layout, names, tasks, threading })
    }

    /// False also while the interpreter is still being started.
    fn has_interpreters(&self, memory: &dyn TargetMemory) -> bool {
        let head = self.image.runtime.wrapping_add(self.layout.runtime_interpreters.into());
        memory.read_u64(head).is_ok_and(|interpreter| interpreter != 0)
    }

    /// `3.11.7`; before 3.11 the patch release is not to be had: `3.9`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Where the interpreter keeps its lock, once it has one.
    pub fn gil(&self, memory: &dyn TargetMemory) -> Option<GlobalLock> {
        gil::locate(memory, &self.layout, self.image.runtime)
    }

    /// The thread that holds the lock now, by its number in the innermost PID namespace.
    pub fn holder(&self, memory: &dyn TargetMemory, lock: &GlobalLock) -> Option<u32> {
        let address = gil::holder(memory, lock)?;
        let (states, _) = threads::list(memory, &self.layout, self.image.runtime);
        let state = states.into_iter().find(|state| state.address == address)?;
        threads::number(memory, &state)
    }

    /// The owner of the re-entrant lock that a thread with this stack waits for at this futex, if that
    /// is what it waits for; by its number in the innermost PID namespace.
    pub fn lock_owner(&self, memory: &dyn TargetMemory, stack: &[u8], futex: u64) -> Option<u32> {
        let thread_id = rlock::owner(memory, stack, futex)?;
        let (states, _) = threads::list(memory, &self.layout, self.image.runtime);
        let state = states.into_iter().find(|state| state.thread_id == thread_id)?;
        threads::number(memory, &state)
    }

    /// The thread state of each thread, by its thread pointer; of several the one in use.
    pub fn states_by_thread(&self, memory: &dyn TargetMemory) -> Vec<(u64, u64)> {
        let (states, _) = threads::list(memory, &self.layout, self.image.runtime);
        threads::by_thread(memory, &self.layout, &states)
    }

    /// The mapped file that holds the interpreter, as the target sees it.
    pub fn runtime_module(&self) -> &Path {
        &self.image.path
    }

    /// The thread state of a thread: by its thread pointer where that is known, else by its number
    /// in the innermost PID namespace.
    pub fn thread_state(
        &self,
        memory: &dyn TargetMemory,
        tid_in_container: u32,
        fsbase: Option<u64>,
    ) -> Result<u64, Gap> {
        let (states, gap) = threads::list(memory, &self.layout, self.image.runtime);
        threads::of_thread(memory, &self.layout, &states, tid_in_container, fsbase).ok_or_else(
            || {
                gap.unwrap_or_else(|| {
                Gap::new(
                    "Python frames",
                    format_args!(
                        "thread {tid_in_container} is not among the {} that the interpreter knows",
                        states.len()
                    ),
                )
            })
            },
        )
    }

    /// All thread states, or why not all could be reached. Threads that come and go meanwhile may
    /// break the list; asking again is then worthwhile.
    pub fn thread_states(&self, memory: &dyn TargetMemory) -> Result<Vec<PythonThread>, Gap> {
        match threads::list(memory, &self.layout, self.image.runtime) {
            (states, None) => Ok(states),
            (_, Some(gap)) => Err(gap),
        }
    }

    /// The frames of a thread that is known to stand still, as the probes would have found them.
    /// With `thread_id`, only if the state still belongs to that thread.
    pub fn walk(
        &self,
        memory: &dyn TargetMemory,
        tstate: u64,
        thread_id: Option<u64>,
    ) -> (Vec<PythonFrame>, PythonWalk) {
        frames::walk(memory, &self.layout.walk, tstate, thread_id)
    }

    /// Where asyncio's loop keeps which callback it runs, if one of these frames is the one that does:
    /// the handle whose method it is. All handles of a turn were made before it, so that two are never
    /// in one place.
    pub fn callback_at(&self, raw: &[PythonFrame], named: &[NamedFrame]) -> Option<u64> {
        let runs_callback = |frame: &NamedFrame| {
            let is = |text: Option<&str>, end| text.is_some_and(|it| it.ends_with(end));
            is(frame.file.as_deref(), "/asyncio/events.py") && is(frame.function.as_deref(), "_run")
        };
        let at = named.iter().position(runs_callback)?;
        Some(raw.get(at)?.frame.wrapping_add(self.layout.frame_variables.into()))
    }

    /// Where the interpreter keeps whether it collects garbage.
    pub fn collecting_at(&self, memory: &dyn TargetMemory) -> Option<u64> {
        self.layout.collecting.locate(memory, &self.layout, self.image.runtime)
    }

    /// Where the address of the innermost frame of a thread stands now.
    pub fn innermost_at(&self, memory: &dyn TargetMemory, tstate: u64) -> Option<u64> {
        frames::innermost_at(memory, &self.layout.walk, tstate).ok()
    }

    /// One named frame for each raw one, in the same order.
    pub fn decode(&mut self, memory: &dyn TargetMemory, frames: &[PythonFrame]) -> Vec<NamedFrame> {
        let code_type = self.image.code_type;
        self.names.begin_stack();
        frames.iter().map(|raw| self.names.decode(memory, &self.layout, code_type, raw)).collect()
    }

    /// What Python's `threading` calls the thread with this state; `None` where it does not know it.
    pub fn thread_name(
        &mut self,
        memory: &dyn TargetMemory,
        tstate: u64,
    ) -> Result<Option<String>, Gap> {
        self.threading.name(memory, &self.layout, tstate)
    }

    /// Whose coroutine ran in this thread when the frames were captured.
    pub fn running(
        &mut self,
        memory: &dyn TargetMemory,
        raw: &[PythonFrame],
        named: &[NamedFrame],
        walk: PythonWalk,
        tstate: Option<u64>,
    ) -> Option<Running> {
        let seen = Seen { raw, named, walk };
        self.tasks.running(memory, &self.layout, tstate, &seen)
    }
}
