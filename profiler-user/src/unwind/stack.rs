//! What unwinding arrives at: frames without names, and how each was found.

use crate::frame::Counts;
use crate::process::modules::ModuleId;

/// One frame of native code, not yet named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NativeFrame {
    pub address: u64,
    /// The call lies before the address; otherwise the address is the instruction itself.
    pub is_return_address: bool,
    /// The frame pointer's register while the frame ran its call, whatever the code used it for.
    pub frame_pointer: u64,
    /// `None` where no file is mapped at the address: code that was made at run time, or no code.
    pub module: Option<ModuleId>,
    /// Of the address, in the module's file.
    pub file_offset: Option<u64>,
    /// While the frame runs. Its part of the stack lies between this and its caller's.
    pub stack_pointer: u64,
    pub reached: Reached,
}

/// How a frame was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reached {
    /// It is the innermost: the registers say where.
    Registers,
    UnwindTable,
    FramePointer,
    /// No table led there: its address was searched for on the stack.
    Search,
    /// The kernel saved its registers for a signal handler.
    Signal,
}

/// Frames from the innermost outwards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NativeStack {
    pub frames: Vec<NativeFrame>,
    /// Why the stack stops before its outermost frame. `None`: the unwind tables of the last frame
    /// say that it has no caller.
    pub truncated: Option<String>,
}

impl NativeStack {
    /// The first frame that was searched for, and its place.
    pub fn searched_from(&self) -> Option<(usize, &NativeFrame)> {
        self.frames.iter().enumerate().find(|(_, frame)| frame.reached == Reached::Search)
    }

    /// Counts how its frames were found.
    pub fn count(&self, counts: &mut Counts) {
        for frame in &self.frames {
            *match frame.reached {
                Reached::Registers => &mut counts.registers,
                Reached::UnwindTable => &mut counts.unwind_table,
                Reached::FramePointer => &mut counts.frame_pointer,
                Reached::Search => &mut counts.search,
                Reached::Signal => &mut counts.signal,
            } += 1;
        }
    }
}
