//! A native frame to the functions it stands for, by module and file offset.
//!
//! Never by process: the file that was mapped is open (see [`Image`]), so names are found after the
//! target has died, across mount namespaces, and of deleted files. `blazesym` reads symbol tables
//! and debug information; what it keeps in memory is bounded here by keeping few images open at
//! once and dropping them on [`NativeSymbolizer::release`], while the names themselves stay.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolizer};
use object::{Object, ObjectSymbol};

use crate::frame::{Frame, Language};
use crate::gap::Gap;
use crate::process::image::{Identity, Image};
use crate::process::modules::{Module, Modules};
use crate::symbolize::debug_file::{DebugFiles, check_mini_debug_info};
use crate::symbolize::parts;
use crate::unwind::merge::{EVAL, NamedNativeStack};
use crate::unwind::native::{NativeFrame, NativeStack};

/// Images whose symbols and debug information are in memory at the same time.
const OPEN_IMAGES: usize = 4;

/// Addresses whose names are remembered: of a stack that recurs, all; some hundred bytes each.
const MAX_NAMED: usize = 16 * 1024;

/// Debug information used at most where it is mapped from the file: pages that were read count as
/// ours until [`NativeSymbolizer::release`]. Of libpython's 16 MB, naming a stack reads 7.
const MAX_DEBUG_BYTES: u64 = 128 * 1024 * 1024;

/// Debug information used at most where it is compressed, and so takes memory that malloc does not
/// give back. Debian's for libc would take 12 MB, for the line numbers of `nanosleep` and its kin;
/// the functions' names do not depend on it.
const MAX_INFLATED_BYTES: u64 = 4 * 1024 * 1024;

/// The same for the program itself, whose lines are what people look for: they are worth the memory.
const MAX_INFLATED_PROGRAM_BYTES: u64 = 32 * 1024 * 1024;

/// One function at one place: the frame's own, or one that was inlined there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    function: Option<String>,
    file: Option<String>,
    line: Option<u32>,
    inlined: bool,
}

const NAMELESS: Name = Name { function: None, file: None, line: None, inlined: false };

/// An image as blazesym sees it.
#[derive(Debug)]
struct Opened {
    identity: Identity,
    /// Keeps the path of `own` good.
    image: Arc<Image>,
    symbolizer: Symbolizer,
    /// The separate debug file, which is asked first.
    separate: Option<(Elf, Image)>,
    own: Option<Elf>,
}

/// Names native frames, and remembers the names.
#[derive(Debug, Default)]
pub struct NativeSymbolizer {
    names: HashMap<Identity, HashMap<u64, Arc<[Name]>>>,
    named: usize,
    /// The last used stands last.
    opened: Vec<Opened>,
    /// Images whose debug information blazesym could not make sense of; their symbols may do.
    symbols_only: HashSet<Identity>,
    /// By image: the parts of CPython's eval function, which must not be nameless, because Python's
    /// frames are put in their place.
    eval_parts: HashMap<Identity, Vec<Range<u64>>>,
    debug_files: DebugFiles,
    /// The path of the main executable, unless that is an interpreter.
    program: Option<String>,
    /// By the module's path.
    gaps: BTreeMap<Arc<str>, BTreeSet<Gap>>,
}

impl NativeSymbolizer {
    /// Debug files are looked for in our own file system alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Debug files are looked for in the file system of the process as well, while it lives.
    ///
    /// `program` is the file whose source lines are worth most, as the target sees it.
    pub fn of_process(pid: u32, program: Option<String>) -> Self {
        Self { debug_files: DebugFiles::of_process(pid), program, ..Self::default() }
    }

    /// A whole stack, ready to be merged with a runtime's frames.
    pub fn name_stack(&mut self, modules: &Modules, stack: &NativeStack) -> NamedNativeStack {
        let frames = stack.frames.iter().map(|frame| self.name(modules, frame)).collect();
        let stack_pointers = stack.frames.iter().map(|frame| frame.stack_pointer).collect();
        NamedNativeStack { frames, stack_pointers, truncated: stack.truncated.clone() }
    }

    /// The functions that a frame stands for: the inlined ones, innermost first, then its own.
    pub fn name(&mut self, modules: &Modules, frame: &NativeFrame) -> Vec<Frame> {
        let module = frame.module.and_then(|id| modules.get(id));
        let image = module.and_then(|module| Some((module, module.image.as_ref().ok()?)));
        let names = match (image, frame.file_offset) {
            (Some((module, image)), Some(offset)) => {
                let call = offset.wrapping_sub(u64::from(frame.is_return_address));
                self.names_at(module, image, call)
            }
            _ => Arc::from([NAMELESS]),
        };
        let shown = |name: &Name| Frame {
            function: name.function.clone(),
            file: name.file.clone(),
            line: name.line,
            module: module.map(|module| module.path.to_string()),
            language: Language::Native,
            inlined: name.inlined,
            address: Some(frame.address),
            module_offset: frame.file_offset,
        };
        names.iter().map(shown).collect()
    }

    /// Gives back the memory that reading symbols took. Names that were found are kept.
    ///
    /// Measured for a stack of a Python service: 11 MB while open, 9 of them pages of libpython's
    /// file; after this, 2 MB, which malloc keeps for the next time. Opening again takes 5 ms.
    pub fn release(&mut self) {
        self.opened.clear();
    }

    /// Why names could not be had, of all images so far.
    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.gaps.values().flatten()
    }

    /// Why names in the modules of these frames could not be had, or not with their lines.
    pub fn gaps_of<'a>(&self, frames: impl Iterator<Item = &'a Frame>) -> Vec<Gap> {
        let modules: BTreeSet<&str> = frames.filter_map(|frame| frame.module.as_deref()).collect();
        modules.into_iter().filter_map(|module| self.gaps.get(module)).flatten().cloned().collect()
    }

    fn miss(&mut self, module: &Module, gap: Gap) {
        self.gaps.entry(Arc::clone(&module.path)).or_default().insert(gap);
    }

    fn names_at(&mut self, module: &Module, image: &Arc<Image>, offset: u64) -> Arc<[Name]> {
        let known = self.names.get(image.identity()).and_then(|names| names.get(&offset));
        if let Some(names) = known {
            return Arc::clone(names);
        }
        let names: Arc<[Name]> = self.look_up(module, image, offset).into();
        if self.named >= MAX_NAMED {
            self.names.clear();
            self.named = 0;
        }
        self.named += 1;
        let of_image = self.names.entry(image.identity().clone()).or_default();
        of_image.insert(offset, Arc::clone(&names));
        names
    }

    fn look_up(&mut self, module: &Module, image: &Arc<Image>, offset: u64) -> Vec<Name> {
        if let Some(bytes) = image.bytes() {
            return vec![dynamic_symbol(bytes, image.address_of(offset))];
        }
        let mut found = self.ask(module, image, offset);
        if found.is_err() && self.symbols_only.insert(image.identity().clone()) {
            found = self.ask(module, image, offset);
        }
        let names = found.unwrap_or_else(|why| {
            self.miss(module, Gap::new(&format!("function names in {}", module.path), why));
            vec![NAMELESS]
        });
        if names == [NAMELESS] && self.is_eval_part(image, offset) {
            return vec![Name { function: Some(format!("{EVAL}.cold")), ..NAMELESS }];
        }
        names
    }

    fn is_eval_part(&mut self, image: &Image, offset: u64) -> bool {
        let Some(address) = image.address_of(offset) else { return false };
        let parts = self
            .eval_parts
            .entry(image.identity().clone())
            .or_insert_with(|| parts::of_function(image, EVAL));
        parts.iter().any(|part| part.contains(&address))
    }

    fn ask(
        &mut self,
        module: &Module,
        image: &Arc<Image>,
        offset: u64,
    ) -> Result<Vec<Name>, String> {
        let opened =
            match self.opened.iter().position(|opened| opened.identity == *image.identity()) {
                Some(index) => self.opened.remove(index),
                None => self.open(module, image),
            };
        // The file is the target's; a reader that gives up on forged contents must not take us along.
        let found = catch_unwind(AssertUnwindSafe(|| opened.names(offset)))
            .unwrap_or_else(|_| Err("its symbols or debug information make no sense".to_owned()));
        if found.is_ok() {
            if self.opened.len() >= OPEN_IMAGES {
                self.opened.remove(0);
            }
            self.opened.push(opened);
        }
        found
    }

    fn open(&mut self, module: &Module, image: &Arc<Image>) -> Opened {
        let found = self.debug_files.find(&module.path, image);
        found.gaps.into_iter().for_each(|gap| self.miss(module, gap));
        let separate = found.image.and_then(|debug| {
            let path = debug.path()?;
            Some((self.source(module, image, path, &debug), debug))
        });
        let own = self.own_source(module, image);
        // Debug files are found above, by build id: by their links they would be looked for under
        // paths that mean something else in the target's mount namespace.
        let symbolizer = Symbolizer::builder()
            .enable_auto_reload(false)
            .set_debug_dirs(Some(std::iter::empty::<PathBuf>()))
            .build();
        let identity = image.identity().clone();
        Opened { identity, image: Arc::clone(image), symbolizer, separate, own }
    }

    /// The image itself; `None` where reading its symbols would take memory without bounds.
    fn own_source(&mut self, module: &Module, image: &Image) -> Option<Elf> {
        if !image.has_symbol_table()
            && let Err(why) = check_mini_debug_info(image)
        {
            let what = format!("the compressed symbols of {}", module.path);
            self.miss(module, Gap::new(&what, why));
            return None;
        }
        Some(self.source(module, image, image.path()?, image))
    }

    /// `file` is the image itself or its separate debug file.
    fn source(&mut self, module: &Module, image: &Image, path: PathBuf, file: &Image) -> Elf {
        let mut elf = Elf::new(path);
        let (all, inflated) = (file.debug_bytes(), file.compressed_debug_bytes());
        let limit = match self.program.as_deref() == Some(&*module.path) {
            true => MAX_INFLATED_PROGRAM_BYTES,
            false => MAX_INFLATED_BYTES,
        };
        let small = all <= MAX_DEBUG_BYTES && inflated <= limit;
        let readable = small && !self.symbols_only.contains(image.identity());
        elf.debug_syms = all > 0 && readable;
        if all > 0 && !readable {
            let what = format!("source lines and inlined functions of {}", module.path);
            let why = if small {
                "the debug information makes no sense"
            } else {
                "the debug information is too large to read"
            };
            self.miss(module, Gap::new(&what, why));
        }
        elf
    }
}

impl Opened {
    fn names(&self, offset: u64) -> Result<Vec<Name>, String> {
        // A debug file has the addresses of the file it is about, but not its offsets.
        if let (Some((elf, _)), Some(address)) = (&self.separate, self.image.address_of(offset)) {
            match self.ask(elf, Input::VirtOffset(address)) {
                Ok(Some(names)) => return Ok(names),
                // Its symbols may make sense.
                Err(why) if elf.debug_syms => return Err(why),
                _ => {}
            }
        }
        let Some(elf) = &self.own else { return Ok(vec![NAMELESS]) };
        let names = self.ask(elf, Input::FileOffset(offset))?;
        Ok(names.unwrap_or_else(|| vec![NAMELESS]))
    }

    fn ask(&self, elf: &Elf, at: Input<u64>) -> Result<Option<Vec<Name>>, String> {
        let found = self.look_up(elf, at)?;
        if !elf.debug_syms {
            return Ok(found);
        }
        let symbols = Elf { debug_syms: false, ..elf.clone() };
        // Debug information has no name where that lies in a file which is missing.
        let Some(mut names) = found else { return self.look_up(&symbols, at) };
        if let Some(name) = names.last_mut()
            && lacks_path(name)
        {
            let symbol = self.look_up(&symbols, at)?.and_then(|mut names| names.pop()?.function);
            name.function = symbol.filter(|symbol| symbol.contains("::")).or(name.function.take());
        }
        Ok(Some(names))
    }

    fn look_up(&self, elf: &Elf, at: Input<u64>) -> Result<Option<Vec<Name>>, String> {
        let found = self.symbolizer.symbolize_single(&Source::Elf(elf.clone()), at);
        Ok(found.map_err(|error| error.to_string())?.as_sym().and_then(names))
    }
}

/// Whether debug information gave a function's name without the modules that it lies in.
///
/// Where it was reduced to lines, `{async_fn#0}` is all that rustc writes; the symbol has the rest. C
/// has no more to say.
fn lacks_path(name: &Name) -> bool {
    let own = name.function.as_deref().and_then(|function| function.split(['<', '(']).next());
    let is_c = name.file.as_deref().is_none_or(|file| file.ends_with(".c"));
    !is_c && own.is_some_and(|own| !own.is_empty() && !own.contains("::"))
}

/// `None` where the symbol does not cover the address, or does not say how far it reaches: it is then
/// only the nearest one.
fn names(symbol: &Sym<'_>) -> Option<Vec<Name>> {
    let covers = match symbol.size {
        Some(size) => symbol.offset < size,
        // Of a function in several pieces, debug information gives neither a beginning nor a size.
        None => symbol.offset == 0 || (symbol.addr == 0 && symbol.code_info.is_some()),
    };
    if symbol.name.is_empty() || !covers {
        return None;
    }
    let name = |function: &str, code: Option<&CodeInfo<'_>>, inlined| Name {
        function: (!function.is_empty()).then(|| public_name(function).to_owned()),
        file: code.map(|code| code.to_path().to_string_lossy().into_owned()),
        line: code.and_then(|code| code.line),
        inlined,
    };
    let inlined = symbol.inlined.iter().rev();
    let mut names: Vec<_> =
        inlined.map(|function| name(&function.name, function.code_info.as_ref(), true)).collect();
    names.push(name(&symbol.name, symbol.code_info.as_deref(), false));
    Some(names)
}

/// glibc's functions carry a second name for calls from within, and debug information tells that one.
fn public_name(function: &str) -> &str {
    function.strip_prefix("__GI_").unwrap_or(function)
}

/// The vdso has a few dozen dynamic symbols and nothing else.
fn dynamic_symbol(bytes: &[u8], address: Option<u64>) -> Name {
    let found = || {
        let file = object::File::parse(bytes).ok()?;
        let address = address?;
        let covers = |symbol: &object::Symbol<'_, '_>| {
            let end = symbol.address().saturating_add(symbol.size());
            (symbol.address()..end).contains(&address)
        };
        let symbol = file.dynamic_symbols().find(covers)?;
        Some(symbol.name().ok()?.to_owned())
    };
    Name { function: found(), ..NAMELESS }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::Path;

    use blazesym::symbolize::InlinedFn;

    use super::*;

    fn code(line: u32) -> CodeInfo<'static> {
        CodeInfo {
            dir: Some(Path::new("/src").into()),
            file: OsStr::new("a.c").into(),
            line: Some(line),
            column: None,
            _non_exhaustive: (),
        }
    }

    fn symbol(offset: usize, size: Option<usize>) -> Sym<'static> {
        let inlined = |name: &'static str, line| InlinedFn {
            name: name.into(),
            code_info: Some(code(line)),
            _non_exhaustive: (),
        };
        Sym {
            name: "__GI_outer".into(),
            module: None,
            addr: 0x1000,
            offset,
            size,
            code_info: Some(Box::new(code(10))),
            inlined: Box::new([inlined("middle", 20), inlined("inner", 30)]),
            _non_exhaustive: (),
        }
    }

    /// Inlined functions come innermost first, each with the line at which it stands.
    #[test]
    fn inlined_functions() {
        let names = names(&symbol(8, Some(16))).unwrap();
        let shown: Vec<_> = names
            .iter()
            .map(|name| (name.function.as_deref().unwrap(), name.line.unwrap(), name.inlined))
            .collect();
        assert_eq!(shown, [("inner", 30, true), ("middle", 20, true), ("outer", 10, false)]);
        assert_eq!(names[0].file.as_deref(), Some("/src/a.c"));
    }

    /// Names that debug information cut short are told from whole ones, and from C's.
    #[test]
    fn names_without_path() {
        let lacks = |function: &str, file: &str| {
            let (function, file) = (Some(function.to_owned()), Some(file.to_owned()));
            lacks_path(&Name { function, file, ..NAMELESS })
        };
        assert!(lacks("{async_fn#0}", "/srv/main.rs"));
        assert!(lacks("poll<shop::pay::{async_fn_env#0}>", "/srv/core.rs"));
        assert!(lacks("pop(int)", "/srv/queue.cpp"));
        assert!(!lacks("shop::pay::{{closure}}", "/srv/main.rs"));
        assert!(!lacks("<shop::Queue as core::fmt::Debug>::fmt", "/srv/main.rs"));
        assert!(!lacks("dictFind", "/build/dict.c"));
    }

    /// The nearest symbol is no name for an address behind its end, nor behind the beginning of one
    /// of unknown size.
    #[test]
    fn symbols_that_end_before_the_address() {
        assert!(names(&symbol(15, Some(16))).is_some());
        assert_eq!(names(&symbol(16, Some(16))), None);
        assert_eq!(names(&symbol(1, None)), None);
        assert!(names(&symbol(0, None)).is_some());
        let in_pieces = Sym { addr: 0, ..symbol(0x1001, None) };
        assert!(names(&in_pieces).is_some());
        assert_eq!(names(&Sym { code_info: None, ..in_pieces }), None);
        assert_eq!(names(&Sym { name: "".into(), ..symbol(0, None) }), None);
    }
}
