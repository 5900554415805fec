//! JavaScript functions into the native stack, in place of the code that ran them.
//!
//! The unwinder's frames and the functions that were read of the same stack are tied by their frame
//! pointers. Only in V8's own code does a frame pointer mean that: what C++ has at the same place
//! below it is left over from others.

use profiler_ebpf::record::Registers;

use crate::frame::{Frame, Language};
use crate::gap::Gap;
use crate::process::modules::Modules;
use crate::runtime::v8::{ScriptFrame, ScriptFrames};

use super::merge::NamedNativeStack;
use super::native::{NativeFrame, NativeStack};

/// Puts the functions of scripts to their places; says what could not be named, or only in part.
pub fn place(
    named: &mut NamedNativeStack,
    native: &NativeStack,
    modules: &Modules,
    script: &ScriptFrames,
    (registers, stack): (&Registers, &[u8]),
) -> Vec<Gap> {
    let (mut nameless, mut optimised) = (0, false);
    for (shown, frame) in named.frames.iter_mut().zip(&native.frames) {
        let Some(kind) = kind(frame, modules, script) else { continue };
        let of_frame = |seen: &&ScriptFrame| seen.frame_pointer == frame.frame_pointer;
        if let Some(found) = script.frames.iter().find(of_frame) {
            optimised |= kind == Kind::MadeAtRunTime && found.without_bytecode;
            *shown = vec![shown_as(found)];
        } else if kind == Kind::MadeAtRunTime {
            let slot = script.code.context_slot(frame.frame_pointer);
            let context = word(registers.sp, stack, slot);
            // `RegExp` code, WebAssembly and V8's own stubs are of no function.
            match context.and_then(|context| script.code.frame_type(context)) {
                Some(name) => shown.iter_mut().for_each(|shown| {
                    shown.function = Some(format!("v8::internal::{name}"));
                }),
                None => nameless += 1,
            }
        }
    }
    let mut gaps = Vec::new();
    if nameless > 0 && script.code.is_known() {
        let why = format!(
            "{nameless} frames had only just begun or were about to end, or what ran in them was \
             moved before it was read"
        );
        gaps.push(Gap::new("JavaScript functions", why));
    }
    if optimised {
        let why = "V8's tables of them are not read; their callers stand for them";
        gaps.push(Gap::new("functions inlined into optimised JavaScript", why));
    }
    gaps
}

/// Which of V8's code a frame is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    MadeAtRunTime,
    Builtin,
}

fn kind(frame: &NativeFrame, modules: &Modules, script: &ScriptFrames) -> Option<Kind> {
    let call = u64::from(frame.is_return_address);
    let (Some(id), Some(offset)) = (frame.module, frame.file_offset) else {
        let is_code = modules.is_made_at_run_time(frame.address.wrapping_sub(call));
        return is_code.then_some(Kind::MadeAtRunTime);
    };
    let path = &modules.get(id)?.path;
    script.code.is_builtin(path, offset.wrapping_sub(call)).then_some(Kind::Builtin)
}

fn shown_as(found: &ScriptFrame) -> Frame {
    Frame {
        function: Some(found.function.name.clone()),
        file: found.function.file.clone(),
        line: found.function.line,
        module: None,
        language: Language::JavaScript,
        inlined: false,
        address: None,
        module_offset: None,
    }
}

fn word(sp: u64, stack: &[u8], address: u64) -> Option<u64> {
    let offset = usize::try_from(address.checked_sub(sp)?).ok()?;
    stack.get(offset..)?.first_chunk().copied().map(u64::from_le_bytes)
}
