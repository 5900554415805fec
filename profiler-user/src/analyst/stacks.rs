//! Captures to named stacks: native frames, the interpreters' frames in their places, and the kernel's.

use super::Analyst;
use super::missing::missing;
use crate::frame::{Frame, Stack};
use crate::gap::Gap;
use crate::process::live::open_region;
use crate::report::application::CodeOwner;
use crate::runtime::frames::Frames;
use crate::runtime::park::{ParkState, Sleeper};
use crate::runtime::table;
use crate::source::Captured;
use crate::symbolize::kernel::KernelSymbols;
use crate::unwind::greenlet;

impl Analyst {
    /// The stack, and what its thread is about.
    pub fn stack(&mut self, captured: &Captured, frames: &Frames) -> (Stack, ParkState) {
        let registers = &captured.head.registers;
        let own_code = frames.own_code();
        let is_named = own_code.is_some();
        if let Some((path, range)) = own_code {
            self.unwinder.trust_frame_pointers(path, range);
        }
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
        let sleeper = Sleeper { registers, native: &native, named: &named, frames };
        let park_state = table::park_state(&sleeper);
        let greenlet_end = greenlet::end(&mut named);
        let copy = (registers, &*captured.stack);
        let mut gaps = frames.place(&mut named, &native, &self.modules, copy);
        let unlisted = self.perf_map.name_stack(&mut named, &native, &self.modules);
        // Whose runtime is read, it has been said above why a frame has no name.
        gaps.extend(unlisted.filter(|_| !is_named));
        // What nobody has named by now has no name.
        let owner = CodeOwner::new(&self.facts.process);
        let (unwinder, symbolizer) = (&self.unwinder, &self.symbolizer);
        gaps.extend(missing(&self.modules, unwinder, symbolizer, &native, &named, &owner));
        let mut stack = frames.merge(named);
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
