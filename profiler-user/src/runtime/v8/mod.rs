//! V8 10 to 14, as node 18 to 26 have it: from a copied stack to functions, files and lines.
//!
//! JavaScript runs in three places: in code that V8 made at run time, which no file backs; in its
//! interpreter, which is one of its builtins; and in other builtins. All of it keeps frame pointers,
//! and below a frame pointer lies the function that runs there: in an interpreted frame as in one of
//! optimised code. So frames need no flag on the target, and no list of code addresses.
//!
//! The rule by which they get into the native stack: where the native unwinder is in code of V8's, by
//! the place in the *file* for builtins (node maps them twice), and arrives at a frame pointer below
//! which a function of a script was found, there that function stands for the native frame. A builtin
//! that has a frame of its own keeps its name.
//!
//! Functions are read as soon as a capture arrives, and only what has the type that it should have is
//! believed: the collector may have moved it, and then a frame has no name. Two things are not read:
//! the line at which a function is (V8 makes the tables for that when it first needs them, which may
//! be never; the line of the *definition* is told), and which functions were inlined into optimised
//! code: their callers stand for them.

mod builtins;
mod detect;
mod frames;
mod heap;
mod layout;
pub mod merge;
mod names;
mod script;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
pub mod sample;
mod symbols;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use profiler_ebpf::record::Registers;

use crate::frame::{Frame, Language};
use crate::gap::Gap;
use crate::process::TargetMemory;
use crate::process::maps::Region;
use crate::runtime::frames::RuntimeFrames;
use crate::runtime::{Attached, Effort, Found, Process, Runtime};
use crate::source::Captured;

use layout::V8Layout;
use names::{FunctionNames, NamedFunction};

pub use names::Function;
pub use script::{Code, ScriptFrame, ScriptFrames};

/// The V8 of one process.
#[derive(Debug)]
pub struct V8 {
    layout: V8Layout,
    names: FunctionNames,
    version: String,
    /// Whether it is Node's, which has a version of its own.
    is_node: bool,
    code: Arc<Code>,
}

impl V8 {
    /// Looks for a V8 among the files that a process has mapped. None: it runs none. A gap: it does,
    /// but not one that can be read.
    pub fn detect(
        memory: &dyn TargetMemory,
        regions: &[Region],
        exe: Option<&Path>,
        open: &dyn Fn(&Region) -> io::Result<File>,
    ) -> Result<Option<Self>, Gap> {
        let Some(found) = detect::detect(memory, regions, exe, open)? else { return Ok(None) };
        let code = Code {
            path: found.path.to_string_lossy().into_owned(),
            builtins: found.builtins,
            frame_types: found.frame_types,
            context_slot: found.layout.slots.context,
        };
        Ok(Some(Self {
            layout: found.layout,
            names: FunctionNames::default(),
            version: found.version,
            is_node: found.is_node,
            code: Arc::new(code),
        }))
    }

    /// What reports call this runtime.
    pub fn name(&self) -> &'static str {
        if self.is_node { "node" } else { "v8" }
    }

    /// Node's, or `V8 11.3.244.8` of another program.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The functions on a stack that was copied a moment ago.
    pub fn script_frames(
        &mut self,
        memory: &dyn TargetMemory,
        registers: &Registers,
        stack: &[u8],
    ) -> ScriptFrames {
        let mut found = Vec::new();
        self.names.begin_stack();
        for candidate in frames::candidates(&self.layout.slots, registers, stack) {
            let named = self.names.function(memory, &self.layout, candidate.function);
            let Some(NamedFunction::Script(function)) = named else { continue };
            let bytecode = candidate.bytecode_array;
            found.push(ScriptFrame {
                frame_pointer: candidate.frame_pointer,
                function,
                without_bytecode: !self.names.is_bytecode(memory, &self.layout, bytecode),
            });
        }
        ScriptFrames { frames: found, code: Arc::clone(&self.code) }
    }
}

/// Functions of V8's collector (src/heap/). Beginnings.
const COLLECTORS: [&str; 6] = [
    "v8::internal::Heap::CollectGarbage",
    "v8::internal::Heap::PerformGarbageCollection",
    "v8::internal::Heap::CollectAllGarbage",
    "v8::internal::MarkCompactCollector::",
    "v8::internal::ScavengerCollector::",
    "v8::internal::IncrementalMarking::",
];

/// V8's row in the table of runtimes.
#[derive(Debug)]
pub struct V8Row;

impl Runtime for V8Row {
    fn name(&self) -> &'static str {
        "V8"
    }

    fn reads_frames(&self) -> bool {
        true
    }

    fn attach(&self, process: &Process<'_>) -> Result<Option<Found>, Gap> {
        let Process { memory, regions, exe, open, .. } = *process;
        let Some(v8) = V8::detect(memory, regions, exe, open)? else { return Ok(None) };
        // Node's own version is there a moment later.
        let is_early = v8.is_node && v8.version.starts_with("V8 ");
        let found = Found::whole(v8.name(), Some(v8.version().to_owned()));
        Ok(Some(Found { is_early, attached: Some(Box::new(v8)), ..found }))
    }

    /// Node's loop, which others link as well.
    fn loop_kind(&self, frame: &Frame) -> Option<&'static str> {
        (frame.function.as_deref() == Some("uv_run")).then_some("libuv")
    }

    fn collects(&self, frame: &Frame) -> bool {
        let name = frame.function.as_deref().unwrap_or_default();
        frame.language == Language::Native && COLLECTORS.iter().any(|known| name.starts_with(known))
    }
}

impl Attached for V8 {
    fn frames(
        &mut self,
        memory: &dyn TargetMemory,
        captured: &Captured,
        effort: Effort,
    ) -> Option<Box<dyn RuntimeFrames>> {
        if effort == Effort::Walked {
            return None;
        }
        let frames = self.script_frames(memory, &captured.head.registers, &captured.stack);
        Some(Box::new(frames))
    }
}
