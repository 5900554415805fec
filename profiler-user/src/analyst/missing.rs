//! A named native stack to the reasons for what it lacks: each frame without a name has one.

use std::collections::BTreeSet;

use crate::gap::Gap;
use crate::process::modules::Modules;
use crate::report::application::{CodeOwner, Origin};
use crate::symbolize::native::NativeSymbolizer;
use crate::unwind::merge::NamedNativeStack;
use crate::unwind::native::{NativeStack, NativeUnwinder};

/// Why frames of this stack have no function, or no line where others of their file might have one,
/// and where callers are less sure than unwind tables make them. Of code that was made at run time,
/// those say it who might have named it.
pub fn missing(
    modules: &Modules,
    unwinder: &NativeUnwinder,
    symbolizer: &NativeSymbolizer,
    stack: &NativeStack,
    named: &NamedNativeStack,
    owner: &CodeOwner<'_>,
) -> Vec<Gap> {
    let mut gaps = BTreeSet::new();
    let mut without_symbol = BTreeSet::new();
    gaps.extend(searched(modules, stack, named));
    for (frame, functions) in stack.frames.iter().zip(&named.frames) {
        let has_name = functions.iter().any(|function| function.function.is_some());
        let Some(module) = frame.module.and_then(|id| modules.get(id)) else { continue };
        if let Some(why) = unwinder.without_tables(module.id) {
            let why = format_args!("{why}; they were looked for by the frame pointer");
            gaps.insert(Gap::new(&format!("callers of functions in {}", module.path), why));
        }
        match &module.image {
            Err(gap) => {
                gaps.insert(gap.clone());
            }
            Ok(image) => {
                // What is under everything has no lines to look for.
                if functions.iter().any(|function| owner.of(function) != Origin::Plumbing) {
                    gaps.extend(symbolizer.gaps(image).cloned());
                }
                if !has_name {
                    without_symbol.insert(&module.path);
                }
            }
        }
    }
    for path in without_symbol {
        // Not how many: the stacks of one stall have the same reason, and each would count anew.
        let why = "no symbol covers some of its frames";
        gaps.insert(Gap::new(&format!("function names in {path}"), why));
    }
    gaps.into_iter().collect()
}

/// From which frame on a stack is less sure, as no table led there.
fn searched(modules: &Modules, stack: &NativeStack, named: &NamedNativeStack) -> Option<Gap> {
    let (from, _) = stack.searched_from()?;
    let inner = stack.frames.get(from.checked_sub(1)?)?;
    let module = inner.module.and_then(|id| modules.get(id));
    let module = module.map_or("code without a file", |module| &module.path);
    // Of several functions in one place the outermost: the others are inlined into it.
    let names = named.frames.iter().skip(from).flatten().filter(|frame| !frame.inlined);
    let first = names.filter_map(|frame| frame.function.as_deref()).next();
    let what = format!("native frames from {} outwards", first.unwrap_or("a nameless one"));
    let why = format_args!(
        "no unwind table leads on from {module}: they are return addresses, found on the stack by the \
         calls before them"
    );
    Some(Gap::new(&what, why))
}

#[cfg(test)]
mod tests {
    use super::missing;
    use crate::hostile::{MAPPED_AT, libc, mapped};
    use crate::process::image::Image;
    use crate::report::application::CodeOwner;
    use crate::report::sample::session;
    use crate::symbolize::native::NativeSymbolizer;
    use crate::unwind::native::{NativeFrame, NativeStack, NativeUnwinder, Reached};
    use profiler_ebpf::record::Registers;

    /// The reasons for a stack of one frame, at this offset of a file.
    fn reasons(bytes: &[u8], offset: u64, is_mapped: bool) -> Vec<String> {
        let modules = mapped(bytes);
        let module = modules.iter().next().map(|module| module.id).filter(|_| is_mapped);
        let file_offset = is_mapped.then_some(offset);
        let address = MAPPED_AT + offset;
        let frame = NativeFrame {
            address,
            is_return_address: false,
            module,
            file_offset,
            stack_pointer: 0,
            reached: Reached::Registers,
            frame_pointer: 0,
        };
        let stack = NativeStack { frames: vec![frame], truncated: None };
        let mut symbolizer = NativeSymbolizer::new();
        let named = symbolizer.name_stack(&modules, &stack);
        let session = session();
        let owner = CodeOwner::new(&session.process);
        let unwinder = NativeUnwinder::new();
        let gaps = missing(&modules, &unwinder, &symbolizer, &stack, &named, &owner);
        gaps.into_iter().map(|gap| gap.0).collect()
    }

    /// A frame that has its name needs no reason; one that has none gets one, whatever it lacks.
    #[test]
    fn each_has_its_reason() {
        let whole = libc();
        let image = Image::from_memory(whole.clone(), 0).expect("an image");
        let code = image.text().expect("code").file.start;
        // Lines may be missing all the same.
        let has_name = |why: &String| !why.starts_with("function names");
        let named = |offset: &u64| reasons(&whole, *offset, true).iter().all(has_name);
        assert!((code..code + 0x10_0000).step_by(0x4000).any(|offset| named(&offset)));
        let behind = reasons(&whole, whole.len() as u64, true);
        assert!(
            behind.iter().any(|why| why.contains("no symbol covers some of its frames")),
            "{behind:?}"
        );
        assert!(reasons(&whole, code, false).is_empty(), "whoever names such code says why not");
        let no_image = reasons(b"no image", code, true);
        assert!(no_image.iter().any(|why| why.contains("not a 64-bit ELF")), "{no_image:?}");
    }

    /// Without tables the frame pointer may skip callers, and the report says so.
    #[test]
    fn callers_by_frame_pointer() {
        let mut whole = libc();
        let name = whole.windows(10).rposition(|bytes| bytes == b".eh_frame\0").expect("a table");
        whole[name + 1] = b'x';
        let modules = mapped(&whole);
        let text = Image::from_memory(whole, 0).expect("an image").text().expect("code").clone();
        let ip = MAPPED_AT + text.address.start;
        let registers = Registers { ip, sp: 0x7000, ..Registers::default() };
        let mut unwinder = NativeUnwinder::new();
        let stack = unwinder.unwind(&modules, &registers, &[0; 64]);
        let mut symbolizer = NativeSymbolizer::new();
        let named = symbolizer.name_stack(&modules, &stack);
        let session = session();
        let owner = CodeOwner::new(&session.process);
        let gaps = missing(&modules, &unwinder, &symbolizer, &stack, &named, &owner);
        let expected = "callers of functions in /bin/hostile: no .eh_frame";
        assert!(gaps.iter().any(|gap| gap.0.starts_with(expected)), "{gaps:?}");
    }
}
