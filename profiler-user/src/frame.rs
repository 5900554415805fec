//! A frame with its names, and the stack that it is part of: what unwinding and symbolization arrive at.

use crate::gap::Gap;
use crate::task::Running;

/// What a frame's code was written in, as far as a reader of reports cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Language {
    Python,
    Native,
    Kernel,
}

/// One frame. What is `None` could not be had; the stack's gaps say why.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Frame {
    /// The demangled name, or Python's qualified name.
    pub function: Option<String>,
    /// The source file, as the code or its debug information names it.
    pub file: Option<String>,
    pub line: Option<u32>,
    /// The mapped file that holds the code: a path as the target sees it, `[vdso]`, `[kernel]`.
    pub module: Option<String>,
    pub language: Language,
    /// The frame has no stack frame of its own: the compiler put it into its caller.
    pub inlined: bool,
    /// The return address or instruction pointer in the target; of Python frames, none.
    pub address: Option<u64>,
    /// Address relative to the beginning of the module's file, for symbolizing later.
    pub module_offset: Option<u64>,
}

/// Frames from the innermost outwards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stack {
    pub frames: Vec<Frame>,
    /// Innermost first; empty where the thread was in user mode, or where `gaps` says why.
    pub kernel: Vec<Frame>,
    /// Why the stack stops before its outermost frame, where it does.
    pub truncated: Option<String>,
    pub gaps: Vec<Gap>,
    /// What ran in the loop: None for a plain callback, and where nothing knows of coroutines.
    pub running: Option<Running>,
}
