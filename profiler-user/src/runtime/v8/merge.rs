//! JavaScript functions into the native stack, in place of the code that ran them.
//!
//! The unwinder's frames and the functions that were read of the same stack are tied by their frame
//! pointers. Only in V8's own code does a frame pointer mean that: what C++ has at the same place
//! below it is left over from others.

use std::ops::Range;
use std::sync::Arc;

use profiler_ebpf::record::Registers;

use super::script::{ScriptFrame, ScriptFrames};
use crate::frame::{Frame, Language};
use crate::gap::Gap;
use crate::process::modules::Modules;
use crate::runtime::frames::RuntimeFrames;
use crate::unwind::merge::NamedNativeStack;
use crate::unwind::native::{NativeFrame, NativeStack};

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
                    shown.function = Some(format!("v8::internal::{name}").into());
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

impl RuntimeFrames for ScriptFrames {
    fn boxed(&self) -> Box<dyn RuntimeFrames> {
        Box::new(self.clone())
    }

    fn own_code(&self) -> Option<(&str, Range<u64>)> {
        self.code.is_known().then(|| self.code.builtins())
    }

    fn place(
        &self,
        named: &mut NamedNativeStack,
        native: &NativeStack,
        modules: &Modules,
        copy: (&Registers, &[u8]),
    ) -> Vec<Gap> {
        place(named, native, modules, self, copy)
    }
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
        function: Some(Arc::clone(&found.function.name)),
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use profiler_ebpf::record::Registers;

    use super::{Frame, Gap, Language, ScriptFrame, ScriptFrames, place};
    use crate::process::maps::{Backing, Region};
    use crate::process::modules::Modules;
    use crate::runtime::v8::{Function, sample};
    use crate::unwind::merge::NamedNativeStack;
    use crate::unwind::native::{NativeFrame, NativeStack, Reached};

    const NODE: &str = "/usr/bin/node";
    const SP: u64 = 0x7ffe_0000_0000;
    /// Where the builtins are mapped, and where code that was made at run time is.
    const TEXT: u64 = 0x40_0000;
    const MADE: u64 = 0x7f00_0000;
    const IRREGEXP: u64 = 27;

    fn modules() -> Modules {
        let region = |start, backing| Region {
            start,
            end: start + 0x10_0000,
            executable: true,
            writable: false,
            offset: 0,
            device: (1, 0),
            inode: 7,
            backing,
        };
        let regions = [region(TEXT, Backing::File(NODE.into())), region(MADE, Backing::Anonymous)];
        let mut modules = Modules::new();
        let refused = |_: &Region| Err(io::ErrorKind::PermissionDenied.into());
        modules.update(&regions, &refused, &sample::Pages::default());
        modules
    }

    fn frame_at(modules: &Modules, address: u64, frame_pointer: u64) -> NativeFrame {
        let module = modules.find(address);
        NativeFrame {
            address,
            is_return_address: true,
            frame_pointer,
            stack_pointer: 0,
            reached: Reached::Registers,
            module: module.map(|module| module.id),
            file_offset: module.map(|module| module.file_offset(address)),
        }
    }

    /// Native frames by address and frame pointer, with the frame pointers of functions, as shown.
    fn placed(native: &[(u64, u64)], functions: &[(u64, bool)]) -> (Vec<String>, Vec<Gap>) {
        let modules = modules();
        let frames: Vec<_> =
            native.iter().map(|(address, bp)| frame_at(&modules, *address, *bp)).collect();
        let native = NativeStack { frames, truncated: None };
        let shown = |frame: &NativeFrame| {
            let function = frame.module.map(|_| "native".into());
            vec![Frame {
                function,
                file: None,
                line: None,
                module: None,
                language: Language::Native,
                inlined: false,
                address: Some(frame.address),
                module_offset: None,
            }]
        };
        let mut named = NamedNativeStack {
            frames: native.frames.iter().map(shown).collect(),
            stack_pointers: Vec::new(),
            truncated: None,
        };
        let function = |(frame_pointer, without_bytecode): &(u64, bool)| ScriptFrame {
            frame_pointer: *frame_pointer,
            function: Arc::new(Function {
                name: format!("f{frame_pointer:x}").into(),
                file: None,
                line: Some(3),
            }),
            without_bytecode: *without_bytecode,
        };
        let code = sample::code(NODE, 0x1000..0x2000, (IRREGEXP, "IrregexpFrame"));
        let script =
            ScriptFrames { frames: functions.iter().map(function).collect(), code: Arc::new(code) };
        // A frame of the regular expressions' kind at SP + 16.
        let words = [0, IRREGEXP << 1, SP + 0x100, 0];
        let stack: Vec<u8> = words.iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
        let registers = Registers { sp: SP, ..Registers::default() };
        let gaps = place(&mut named, &native, &modules, &script, (&registers, &stack));
        let name = |frame: &Frame| frame.function.as_deref().unwrap_or("?").to_owned();
        (named.frames.iter().flatten().map(name).collect(), gaps)
    }

    /// A function takes the place of the code that runs it, in a builtin and in code made at run time,
    /// and nowhere else.
    #[test]
    fn places() {
        let native = [
            (TEXT + 0x800, 0x10),
            (MADE + 0x20, 0x20),
            (TEXT + 0x1800, 0x30),
            (TEXT + 0x1900, 0x40),
            (TEXT + 0x3000, 0x50),
        ];
        let functions = [(0x10, false), (0x20, false), (0x30, false), (0x50, false)];
        let (names, gaps) = placed(&native, &functions);
        assert_eq!(names, ["native", "f20", "f30", "native", "native"]);
        assert_eq!(gaps, []);
    }

    /// A return address just past the builtins is still of a call in them.
    #[test]
    fn last_call() {
        let functions = [(0x20, false)];
        assert_eq!(placed(&[(TEXT + 0x2000, 0x20)], &functions).0, ["f20"]);
        assert_eq!(placed(&[(TEXT + 0x2001, 0x20)], &functions).0, ["native"]);
        assert_eq!(placed(&[(TEXT + 0x1000, 0x20)], &functions).0, ["native"]);
    }

    /// Code that belongs to no function is named by its kind; what was not read is a gap, and so is what
    /// optimised code may hide.
    #[test]
    fn what_is_not_known() {
        let (names, gaps) = placed(&[(MADE + 1, SP + 16)], &[]);
        assert_eq!((names, gaps.len()), (vec!["v8::internal::IrregexpFrame".to_owned()], 0));
        let (names, gaps) = placed(&[(MADE + 1, SP + 8)], &[]);
        assert_eq!((names, gaps.len()), (vec!["?".to_owned()], 1));
        let (_, gaps) = placed(&[(MADE + 1, 0x20), (TEXT + 0x1800, 0x30)], &[(0x20, true)]);
        assert!(matches!(&gaps[..], [Gap(text)] if text.contains("inlined")), "{gaps:?}");
        let (_, gaps) = placed(&[(TEXT + 0x1800, 0x30)], &[(0x30, true)]);
        assert_eq!(gaps, [], "the interpreter's frames are not optimised");
    }
}
