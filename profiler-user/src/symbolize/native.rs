//! A native frame to the functions it stands for, by module and file offset.
//!
//! Never by process: the file that was mapped is open (see [`Image`]), so names are found after the
//! target has died, across mount namespaces, and of deleted files. `blazesym` reads symbol tables
//! and debug information, out of a [`Snapshot`]; what is in memory is bounded here by keeping few
//! images open at once and dropping them on [`NativeSymbolizer::release`], while the names stay.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer};
use object::{Object, ObjectSymbol};

use crate::frame::{Frame, Language};
use crate::gap::Gap;
use crate::process::image::{Identity, Image};
use crate::process::modules::{Module, Modules};
use crate::symbolize::snapshot::Snapshot;
use crate::unwind::merge::NamedNativeStack;
use crate::unwind::native::{NativeFrame, NativeStack};

/// Images whose symbols and debug information are in memory at the same time.
const OPEN_IMAGES: usize = 4;

/// Addresses whose names are remembered: of a stack that recurs, all; some hundred bytes each.
const MAX_NAMED: usize = 16 * 1024;

/// Bytes of copies in memory at the same time, unless a single one has more.
const MAX_OPEN_BYTES: u64 = 160 * 1024 * 1024;

/// Debug information used at most. Of libpython's 16 MB, 12 are copied.
pub(super) const MAX_DEBUG_BYTES: u64 = 128 * 1024 * 1024;

/// Debug information used at most where it is compressed, and so takes memory that malloc does not
/// give back. Debian's for libc would take 12 MB, for the line numbers of `nanosleep` and its kin;
/// the functions' names do not depend on it.
const MAX_INFLATED_BYTES: u64 = 4 * 1024 * 1024;

/// Where distributions install debug information apart from the files it is about.
const DEBUG_DIRECTORY: &str = "/usr/lib/debug/.build-id";

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
    image: Arc<Image>,
    symbolizer: Symbolizer,
    /// The separate debug file, which is asked first.
    separate: Option<(Source<'static>, Image)>,
    /// The copy keeps the path of the source good.
    own: Result<(Source<'static>, Snapshot), String>,
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
    /// Why names could not be had, by image.
    gaps: HashMap<Identity, BTreeSet<Gap>>,
}

impl NativeSymbolizer {
    pub fn new() -> Self {
        Self::default()
    }

    /// A whole stack, ready to be merged with a runtime's frames.
    pub fn name_stack(&mut self, modules: &Modules, stack: &NativeStack) -> NamedNativeStack {
        let frames = stack.frames.iter().map(|frame| self.name(modules, frame)).collect();
        NamedNativeStack { frames, truncated: stack.truncated.clone() }
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
    /// Measured for a stack of a Python service: 14 MB while open, 11 of them the copy of libpython's
    /// tables; after this, 3 MB, which malloc keeps for the next time. Opening again takes 25 ms.
    pub fn release(&mut self) {
        self.opened.clear();
    }

    /// Why names of an image could not be had, as far as that was found out.
    pub fn gaps(&self, image: &Image) -> impl Iterator<Item = &Gap> {
        self.gaps.get(image.identity()).into_iter().flatten()
    }

    fn names_at(&mut self, module: &Module, image: &Arc<Image>, offset: u64) -> Arc<[Name]> {
        let known = self.names.get(image.identity()).and_then(|names| names.get(&offset));
        if let Some(names) = known {
            return Arc::clone(names);
        }
        let names: Arc<[Name]> = self.look_up(module, image, offset).into();
        if self.named >= MAX_NAMED {
            self.names.clear();
            self.symbols_only.clear();
            self.gaps.clear();
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
        found.unwrap_or_else(|why| {
            self.miss(image, &format!("function names in {}", module.path), &why);
            vec![NAMELESS]
        })
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
            .map_err(|_| "its symbols or debug information make no sense".to_owned())?;
        // After a first failure it is opened anew, without debug information.
        if found.is_ok() || self.symbols_only.contains(image.identity()) {
            self.keep(opened);
        }
        found
    }

    /// Lets go of what was used least recently, as far as the bounds ask for it.
    fn keep(&mut self, opened: Opened) {
        let bytes = |opened: &[Opened]| opened.iter().map(Opened::bytes).sum::<u64>();
        while !self.opened.is_empty()
            && (self.opened.len() >= OPEN_IMAGES
                || bytes(&self.opened).saturating_add(opened.bytes()) > MAX_OPEN_BYTES)
        {
            self.opened.remove(0);
        }
        self.opened.push(opened);
    }

    fn open(&mut self, module: &Module, image: &Arc<Image>) -> Opened {
        let separate = image.build_id().and_then(debug_path).and_then(|path| {
            let debug = File::open(&path).map_err(|error| error.to_string());
            match debug.and_then(|file| Image::from_file(file, 0)) {
                Ok(debug) => {
                    let mut source = Elf::new(path);
                    source.debug_syms = self.reads_debug(module, image, &debug);
                    Some((Source::Elf(source), debug))
                }
                Err(why) => {
                    self.miss(image, &format!("debug information in {}", path.display()), &why);
                    None
                }
            }
        });
        let own = self.copy(module, image);
        // Debug files are found above, by build id: by their links they would be looked for under
        // paths that mean something else in the target's mount namespace.
        let symbolizer = Symbolizer::builder()
            .enable_auto_reload(false)
            .set_debug_dirs(Some(std::iter::empty::<PathBuf>()))
            .build();
        let identity = image.identity().clone();
        Opened { identity, image: Arc::clone(image), symbolizer, separate, own }
    }

    /// The image's own symbols and debug information, as they are at this moment.
    fn copy(
        &mut self,
        module: &Module,
        image: &Image,
    ) -> Result<(Source<'static>, Snapshot), String> {
        let mut with_debug = self.reads_debug(module, image, image);
        let mut copy = Snapshot::of(image, with_debug, MAX_INFLATED_BYTES);
        if let Err(why) = &copy
            && with_debug
        {
            self.without_lines(module, image, why);
            self.symbols_only.insert(image.identity().clone());
            with_debug = false;
            copy = Snapshot::of(image, with_debug, 0);
        }
        let copy = copy?;
        if let Some(why) = copy.left_out() {
            self.miss(image, &format!("function names in {}", module.path), why);
        }
        let mut source = Elf::new(copy.path());
        source.debug_syms = with_debug;
        Ok((Source::Elf(source), copy))
    }

    /// Whether the debug information of `file`, the image itself or its separate debug file, is there
    /// and to be read; where it is there and not to be read, a gap says so.
    fn reads_debug(&mut self, module: &Module, image: &Image, file: &Image) -> bool {
        let (all, inflated) = (file.debug_bytes(), file.compressed_debug_bytes());
        let small = all <= MAX_DEBUG_BYTES && inflated <= MAX_INFLATED_BYTES;
        let readable = small && !self.symbols_only.contains(image.identity());
        if all > 0 && !readable {
            let why = if small {
                "the debug information makes no sense"
            } else {
                "the debug information is too large to read"
            };
            self.without_lines(module, image, why);
        }
        all > 0 && readable
    }

    fn without_lines(&mut self, module: &Module, image: &Image, why: &str) {
        self.miss(image, &format!("source lines and inlined functions of {}", module.path), why);
    }

    fn miss(&mut self, image: &Image, what: &str, why: &str) {
        let gaps = self.gaps.entry(image.identity().clone()).or_default();
        gaps.insert(Gap::new(what, why));
    }
}

impl Opened {
    fn bytes(&self) -> u64 {
        self.own.as_ref().map_or(0, |(_, copy)| copy.bytes())
    }

    fn names(&self, offset: u64) -> Result<Vec<Name>, String> {
        // A debug file has the addresses of the file it is about, but not its offsets.
        if let (Some((source, _)), Some(address)) = (&self.separate, self.image.address_of(offset))
        {
            let found = self.symbolizer.symbolize_single(source, Input::VirtOffset(address));
            if let Ok(Symbolized::Sym(symbol)) = found
                && let Some(names) = names(&symbol)
            {
                return Ok(names);
            }
        }
        let (source, _) = self.own.as_ref().map_err(Clone::clone)?;
        let found = self
            .symbolizer
            .symbolize_single(source, Input::FileOffset(offset))
            .map_err(|error| error.to_string())?;
        Ok(found.as_sym().and_then(names).unwrap_or_else(|| vec![NAMELESS]))
    }
}

/// `None` where the symbol ends before the address: it is then only the nearest one.
fn names(symbol: &Sym<'_>) -> Option<Vec<Name>> {
    if symbol.name.is_empty() || symbol.size.is_some_and(|size| symbol.offset >= size) {
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

fn debug_path(build_id: &[u8]) -> Option<PathBuf> {
    let (first, rest) = build_id.split_first()?;
    let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    let path =
        Path::new(DEBUG_DIRECTORY).join(format!("{first:02x}")).join(format!("{rest}.debug"));
    path.exists().then_some(path)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

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

    /// The nearest symbol is no name for an address behind its end; one of unknown size may be.
    #[test]
    fn symbols_that_end_before_the_address() {
        assert!(names(&symbol(15, Some(16))).is_some());
        assert_eq!(names(&symbol(16, Some(16))), None);
        assert!(names(&symbol(16, None)).is_some());
        assert_eq!(names(&Sym { name: "".into(), ..symbol(0, None) }), None);
    }
}
