//! A frame with its names, and the stack that it is part of: what unwinding and symbolization arrive at.

use std::sync::Arc;

use crate::gap::Gap;
use crate::task::Running;

/// What a frame's code was written in, as far as a reader of reports cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Language {
    Python,
    JavaScript,
    Native,
    Kernel,
}

/// One frame, cheap to copy: hundreds of samples have the same names. What is `None` could not be had; the stack's gaps say why.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Frame {
    /// The demangled name, or Python's qualified name.
    pub function: Option<Arc<str>>,
    /// The source file, as the code or its debug information names it.
    pub file: Option<Arc<str>>,
    /// Of JavaScript functions, that of their definition.
    pub line: Option<u32>,
    /// The mapped file that holds the code: a path as the target sees it, `[vdso]`, `[kernel]`.
    pub module: Option<Arc<str>>,
    pub language: Language,
    /// The frame has no stack frame of its own: the compiler put it into its caller.
    pub inlined: bool,
    /// The return address or instruction pointer in the target; of Python and JavaScript frames, none.
    pub address: Option<u64>,
    /// Address relative to the beginning of the module's file, for symbolizing later.
    pub module_offset: Option<u64>,
}

/// How many stacks and frames were had, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub stacks: u64,
    /// Of these, the ones that stop before their outermost frame.
    pub stacks_truncated: u64,
    /// Innermost native frames: where the registers were.
    pub registers: u64,
    pub unwind_table: u64,
    pub frame_pointer: u64,
    pub search: u64,
    pub signal: u64,
    pub python: u64,
    pub javascript: u64,
    /// Frames of any kind that nobody could name.
    pub nameless: u64,
}

impl Counts {
    /// As a session's last line has them.
    pub fn by_name(&self) -> [(&'static str, u64); 10] {
        [
            ("stacks", self.stacks),
            ("stacks_truncated", self.stacks_truncated),
            ("by_registers", self.registers),
            ("by_unwind_table", self.unwind_table),
            ("by_frame_pointer", self.frame_pointer),
            ("by_search", self.search),
            ("by_signal", self.signal),
            ("python", self.python),
            ("javascript", self.javascript),
            ("nameless", self.nameless),
        ]
    }

    /// A whole stack, as it is reported.
    pub fn add(&mut self, stack: &Stack) {
        self.stacks += 1;
        self.stacks_truncated += u64::from(stack.truncated.is_some());
        for frame in &stack.frames {
            self.python += u64::from(frame.language == Language::Python);
            self.javascript += u64::from(frame.language == Language::JavaScript);
            self.nameless += u64::from(frame.function.is_none());
        }
    }
}

/// Frames from the innermost outwards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stack {
    pub frames: Vec<Frame>,
    /// Innermost first; empty where the thread was in user mode, or where `gaps` says why.
    pub kernel: Vec<Frame>,
    /// Why the stack stops before its outermost frame, where it does.
    pub truncated: Option<String>,
    /// Frames of an interpreter that are left out in the middle of a deep stack.
    pub left_out: u32,
    /// The address of the first native frame that was searched for on the stack, as no unwind table led
    /// there: it and those outwards are likely, not certain.
    pub searched_from: Option<u64>,
    pub gaps: Vec<Gap>,
    /// What ran in the loop: None for a plain callback, and where nothing knows of coroutines.
    pub running: Option<Running>,
    /// Of which call of a callback it is, where that is known: the same number in one turn is the same
    /// call, another is another.
    pub call: Option<u64>,
}
