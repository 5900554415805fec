//! Captures to named stacks: native frames, the interpreters' frames in their places, and the kernel's.

use super::Analyst;
use super::missing::missing;
use crate::frame::{Frame, Stack};
use crate::gap::Gap;
use crate::process::live::open_region;
use crate::report::application::Owner;
use crate::runtime::cpython::capture::PythonFrames;
use crate::runtime::cpython::python_stack;
use crate::runtime::park::{ParkState, Sleeper};
use crate::runtime::table;
use crate::runtime::v8::{self, ScriptFrames};
use crate::source::Captured;
use crate::symbolize::kernel::KernelSymbols;
use crate::task::Running;
use crate::unwind::greenlet;
use crate::unwind::merge::{PythonStack, merge};

impl Analyst {
    /// The stack, and what its thread is about.
    pub fn stack(
        &mut self,
        captured: &Captured,
        python: &PythonFrames,
        script: &ScriptFrames,
    ) -> (Stack, ParkState) {
        let registers = &captured.head.registers;
        let (path, builtins) = script.code.builtins();
        self.unwinder.trust_frame_pointers(path, builtins);
        let mut native = self.unwinder.unwind(&self.modules, registers, &captured.stack);
        // Code that nobody had mapped when we last looked: a library loaded since.
        let is_unknown = |address| {
            self.modules.find(address).is_none() && !self.modules.is_made_at_run_time(address)
        };
        let is_incomplete = self.modules.wants_more()
            || native.frames.iter().any(|frame| is_unknown(frame.address));
        if is_incomplete && self.update_modules() {
            native = self.unwinder.unwind(&self.modules, registers, &captured.stack);
        }
        let mut named = self.symbolizer.name_stack(&self.modules, &native);
        let sleeper = Sleeper { registers, native: &native, named: &named, python };
        let park_state = table::park_state(&sleeper);
        let greenlet_end = greenlet::end(&mut named);
        let copy = (registers, &*captured.stack);
        let mut gaps = v8::merge::place(&mut named, &native, &self.modules, script, copy);
        let unlisted = self.perf_map.name_stack(&mut named, &native, &self.modules);
        // Where V8 is read, it has been said above why a frame has no name.
        gaps.extend(unlisted.filter(|_| !script.code.is_known()));
        // What nobody has named by now has no name.
        let owner = Owner::new(&self.facts.process);
        let (unwinder, symbolizer) = (&self.unwinder, &self.symbolizer);
        gaps.extend(missing(&self.modules, unwinder, symbolizer, &native, &named, &owner));
        let mut stack = match python {
            PythonFrames::NotPython => merge(named, PythonStack::default()),
            PythonFrames::Missing(gap) => {
                let mut stack = merge(named, PythonStack::default());
                stack.gaps.push(gap.clone());
                // Nobody knows whether a coroutine ran.
                stack.running = Some(Running { coroutines: Vec::new(), task: Err(gap.clone()) });
                stack
            }
            PythonFrames::Named { frames, walk, running, call } => {
                let mut stack = merge(named, python_stack(frames, *walk));
                stack.running.clone_from(running);
                stack.call = *call;
                stack.gaps.extend(frames.iter().filter_map(|frame| frame.gap.clone()));
                stack
            }
        };
        stack.gaps.extend(gaps);
        stack.searched_from = native.searched_from().map(|(_, frame)| frame.address);
        stack.truncated = stack.truncated.or(greenlet_end);
        native.count(&mut self.counts);
        self.counts.add(&stack);
        (stack, park_state)
    }

    /// False where the process is gone: what we know of it is all there will be.
    pub fn update_modules(&mut self) -> bool {
        let regions = match self.target.regions() {
            Ok(regions) if !regions.is_empty() => regions,
            _ => return false,
        };
        let pid = self.target.pid();
        self.modules.update(&regions, &|region| open_region(pid, region), &self.memory);
        true
    }

    pub fn kernel_frames(&mut self, addresses: &[u64], gaps: &mut Vec<Gap>) -> Vec<Frame> {
        if addresses.is_empty() {
            return Vec::new();
        }
        match self.kernel.get_or_insert_with(KernelSymbols::read) {
            Ok(symbols) => symbols.name(addresses),
            Err(gap) => {
                gaps.push(gap.clone());
                Vec::new()
            }
        }
    }
}
