//! What may be JavaScript on one stack: functions by their frame pointers, and where V8's own code is.

use std::ops::Range;
use std::sync::Arc;

use super::layout::FrameTypes;
use super::names::Function;

/// Where V8's own code is, and what frames in it may be.
#[derive(Debug, Default)]
pub struct Code {
    /// As modules are called.
    pub path: String,
    /// Where in the file.
    pub builtins: Range<u64>,
    pub frame_types: FrameTypes,
    /// How far below a frame pointer, in bytes.
    pub context_slot: u64,
}

/// A frame of a script's function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptFrame {
    pub frame_pointer: u64,
    pub function: Arc<Function>,
    /// The frame has no bytecode: if its code was made at run time, it was optimised, and other
    /// functions may have been inlined into it.
    pub without_bytecode: bool,
}

/// What may be on one stack.
#[derive(Debug, Clone, Default)]
pub struct ScriptFrames {
    /// By frame pointer.
    pub frames: Vec<ScriptFrame>,
    pub code: Arc<Code>,
}

impl Code {
    /// False where there is no V8 that can be read.
    pub fn is_known(&self) -> bool {
        !self.builtins.is_empty()
    }

    /// Whether a place in a mapped file is in one of the builtins.
    pub fn is_builtin(&self, module: &str, offset: u64) -> bool {
        self.builtins.contains(&offset) && module == self.path
    }

    /// The file that holds the builtins, and where in it they are.
    pub fn builtins(&self) -> (&str, Range<u64>) {
        (&self.path, self.builtins.clone())
    }

    /// The slot below a frame pointer that tells of what kind the frame is.
    pub fn context_slot(&self, frame_pointer: u64) -> u64 {
        frame_pointer.wrapping_sub(self.context_slot)
    }

    /// The kind of a frame that belongs to no function, by that slot.
    pub fn frame_type(&self, context: u64) -> Option<&str> {
        self.frame_types.name(context)
    }
}
