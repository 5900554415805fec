//! A native frame to the functions it stands for, by module and file offset.
//!
//! Never by process: the file that was mapped is open (see [`Image`]), so names are found after the
//! target has died, across mount namespaces, and of deleted files. `blazesym` reads symbol tables
//! and debug information; what it keeps in memory is bounded here by keeping few images open at
//! once and dropping them on [`NativeSymbolizer::release`], while the names themselves stay.

use std::collections::{BTreeSet, HashMap};
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
use crate::process::modules::Modules;
use crate::unwind::native::NativeFrame;

/// Images whose symbols and debug information are in memory at the same time.
const OPEN_IMAGES: usize = 4;

/// Addresses whose names are remembered: of a stack that recurs, all; some hundred bytes each.
const MAX_NAMED: usize = 16 * 1024;

/// Debug information used at most, mapped from the file: its pages count as ours while it is open.
const MAX_DEBUG_BYTES: u64 = 256 * 1024 * 1024;

/// Debug information used at most where it is compressed, and so takes memory of our own.
const MAX_INFLATED_BYTES: u64 = 16 * 1024 * 1024;

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
    /// Keeps the path of `own` good.
    image: Arc<Image>,
    symbolizer: Symbolizer,
    /// The separate debug file, which is asked first.
    separate: Option<(Source<'static>, Image)>,
    own: Option<Source<'static>>,
}

/// Names native frames, and remembers the names.
#[derive(Debug, Default)]
pub struct NativeSymbolizer {
    names: HashMap<Identity, HashMap<u64, Arc<[Name]>>>,
    named: usize,
    /// The last used stands last.
    opened: Vec<Opened>,
    gaps: BTreeSet<Gap>,
}

impl NativeSymbolizer {
    pub fn new() -> Self {
        Self::default()
    }

    /// The functions that a frame stands for: the inlined ones, innermost first, then its own.
    pub fn name(&mut self, modules: &Modules, frame: &NativeFrame) -> Vec<Frame> {
        let module = frame.module.and_then(|id| modules.get(id));
        let image = module.and_then(|module| module.image.as_ref().ok());
        let names = match (image, frame.file_offset) {
            (Some(image), Some(offset)) => {
                self.names_at(image, offset.wrapping_sub(u64::from(frame.is_return_address)))
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
    pub fn release(&mut self) {
        self.opened.clear();
    }

    /// Why names could not be had, of all images so far.
    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.gaps.iter()
    }

    fn names_at(&mut self, image: &Arc<Image>, offset: u64) -> Arc<[Name]> {
        let known = self.names.get(image.identity()).and_then(|names| names.get(&offset));
        if let Some(names) = known {
            return Arc::clone(names);
        }
        let names: Arc<[Name]> = self.look_up(image, offset).into();
        if self.named >= MAX_NAMED {
            self.names.clear();
            self.named = 0;
        }
        self.named += 1;
        let of_image = self.names.entry(image.identity().clone()).or_default();
        of_image.insert(offset, Arc::clone(&names));
        names
    }

    fn look_up(&mut self, image: &Arc<Image>, offset: u64) -> Vec<Name> {
        if let Some(bytes) = image.bytes() {
            return vec![dynamic_symbol(bytes, image.address_of(offset))];
        }
        let opened = match self.opened.iter().position(|opened| opened.identity == *image.identity()) {
            Some(index) => self.opened.remove(index),
            None => self.open(image),
        };
        // The file is the target's; a reader that gives up on forged contents must not take us along.
        match catch_unwind(AssertUnwindSafe(|| opened.names(offset))) {
            Ok(Ok(names)) => {
                if self.opened.len() >= OPEN_IMAGES {
                    self.opened.remove(0);
                }
                self.opened.push(opened);
                names
            }
            Ok(Err(why)) => {
                self.gaps.insert(Gap::new("function names", why));
                vec![NAMELESS]
            }
            Err(_) => {
                let why = "the symbols or debug information of a module make no sense";
                self.gaps.insert(Gap::new("function names", why));
                vec![NAMELESS]
            }
        }
    }

    fn open(&mut self, image: &Arc<Image>) -> Opened {
        let separate = image.build_id().and_then(debug_path).and_then(|path| {
            let image = File::open(&path).map_err(|error| error.to_string());
            match image.and_then(|file| Image::from_file(file, 0)) {
                Ok(image) => Some((path, image)),
                Err(why) => {
                    self.gaps.insert(Gap::new(&format!("debug information in {}", path.display()), why));
                    None
                }
            }
        });
        let separate = separate.map(|(path, image)| (self.source(path, &image), image));
        let own = image.path().map(|path| self.source(path, image));
        // Debug files are found above, by build id: by their links they would be looked for under
        // paths that mean something else in the target's mount namespace.
        let symbolizer = Symbolizer::builder()
            .enable_auto_reload(false)
            .set_debug_dirs(Some(std::iter::empty::<PathBuf>()))
            .build();
        let identity = image.identity().clone();
        Opened { identity, image: Arc::clone(image), symbolizer, separate, own }
    }

    fn source(&mut self, path: PathBuf, image: &Image) -> Source<'static> {
        let mut elf = Elf::new(path);
        let (all, inflated) = (image.debug_bytes(), image.compressed_debug_bytes());
        elf.debug_syms = all > 0 && all <= MAX_DEBUG_BYTES && inflated <= MAX_INFLATED_BYTES;
        if all > 0 && !elf.debug_syms {
            let why = format!("a module's debug information is too large to read ({all} bytes)");
            self.gaps.insert(Gap::new("source lines and inlined functions", why));
        }
        Source::Elf(elf)
    }
}

impl Opened {
    fn names(&self, offset: u64) -> Result<Vec<Name>, String> {
        // A debug file has the addresses of the file it is about, but not its offsets.
        if let (Some((source, _)), Some(address)) = (&self.separate, self.image.address_of(offset)) {
            let found = self.symbolizer.symbolize_single(source, Input::VirtOffset(address));
            if let Ok(Symbolized::Sym(symbol)) = found
                && let Some(names) = names(&symbol)
            {
                return Ok(names);
            }
        }
        let Some(source) = &self.own else { return Ok(vec![NAMELESS]) };
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
    let path = Path::new(DEBUG_DIRECTORY).join(format!("{first:02x}")).join(format!("{rest}.debug"));
    path.exists().then_some(path)
}
