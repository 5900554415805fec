//! A native frame to the functions it stands for, by module and file offset.
//!
//! Never by process: the file that was mapped is open (see [`Image`]), so names are found after the
//! target has died, across mount namespaces, and of deleted files. `blazesym` reads symbol tables
//! and debug information, out of a [`Snapshot`]; what is in memory is bounded here by keeping few
//! images open at once and dropping them on [`NativeSymbolizer::release`], while the names stay.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use blazesym::symbolize::Symbolizer;
use blazesym::symbolize::source::Elf;

use crate::frame::{Frame, Language};
use crate::gap::Gap;
use crate::process::image::{Identity, Image};
use crate::process::modules::{Module, Modules};
use crate::symbolize::debug_file::{DebugFile, DebugFiles, FileOwner};
use crate::symbolize::opened::{NAMELESS, Name, OpenedImage, Separate, dynamic_symbol};
use crate::symbolize::parts;
use crate::symbolize::snapshot::{MAX_DEBUG_BYTES, Snapshot};
use crate::unwind::merge::{EVAL, NamedNativeStack};
use crate::unwind::native::{NativeFrame, NativeStack};

/// Images whose symbols and debug information are in memory at the same time.
const OPEN_IMAGES: usize = 4;

/// Addresses whose names are remembered: of a stack that recurs, all; some hundred bytes each.
const MAX_NAMED: usize = 16 * 1024;

/// Bytes of copies in memory at the same time, unless a single one has more.
const MAX_OPEN_BYTES: u64 = 160 * 1024 * 1024;

/// Debug information used at most where it is compressed, and so takes memory that malloc does not
/// give back. Debian's for libc would take 12 MB, for the line numbers of `nanosleep` and its kin;
/// the functions' names do not depend on it.
const MAX_INFLATED_BYTES: u64 = 4 * 1024 * 1024;

/// The same for the program itself, whose lines are what people look for: they are worth the memory.
const MAX_INFLATED_PROGRAM_BYTES: u64 = 32 * 1024 * 1024;

/// Names native frames, and remembers the names.
#[derive(Debug, Default)]
pub struct NativeSymbolizer {
    names: HashMap<Identity, HashMap<u64, Arc<[Name]>>>,
    named: usize,
    /// The last used stands last.
    opened: Vec<OpenedImage>,
    /// Images whose debug information blazesym could not make sense of; their symbols may do.
    symbols_only: HashSet<Identity>,
    /// By image: the parts of CPython's eval function, which must not be nameless, because Python's
    /// frames are put in their place.
    eval_parts: HashMap<Identity, Vec<Range<u64>>>,
    debug_files: DebugFiles,
    /// The path of the main executable, unless that is an interpreter.
    program: Option<String>,
    /// Files whose source lines nobody wants: debug information is not read for them.
    is_lineless: Option<fn(&str) -> bool>,
    /// Why names could not be had, by image.
    gaps: HashMap<Identity, BTreeSet<Gap>>,
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

    /// Names functions alone of the files of which this is true.
    pub fn without_lines_of(self, is_lineless: fn(&str) -> bool) -> Self {
        Self { is_lineless: Some(is_lineless), ..self }
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
            module: module.map(|module| Arc::clone(&module.path)),
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
        let names = found.unwrap_or_else(|why| {
            self.miss(image, Gap::new(&format!("function names in {}", module.path), why));
            vec![NAMELESS]
        });
        if names == [NAMELESS] && self.is_eval_part(image, offset) {
            return vec![Name { function: Some(format!("{EVAL}.cold").into()), ..NAMELESS }];
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
            .map_err(|_| "its symbols or debug information make no sense".to_owned())?;
        // After a first failure it is opened anew, without debug information.
        if found.is_ok() || self.symbols_only.contains(image.identity()) {
            self.keep(opened);
        }
        found
    }

    /// Lets go of what was used least recently, as far as the bounds ask for it.
    fn keep(&mut self, opened: OpenedImage) {
        let bytes = |opened: &[OpenedImage]| opened.iter().map(OpenedImage::bytes).sum::<u64>();
        while !self.opened.is_empty()
            && (self.opened.len() >= OPEN_IMAGES
                || bytes(&self.opened).saturating_add(opened.bytes()) > MAX_OPEN_BYTES)
        {
            self.opened.remove(0);
        }
        self.opened.push(opened);
    }

    fn open(&mut self, module: &Module, image: &Arc<Image>) -> OpenedImage {
        let found = self.debug_files.find(&module.path, image);
        found.gaps.into_iter().for_each(|gap| self.miss(image, gap));
        let separate = found.image.and_then(|debug| self.separate(module, image, debug));
        let own = self.copy(module, image);
        // Debug files are found above, by build id: by their links they would be looked for under
        // paths that mean something else in the target's mount namespace.
        let symbolizer = Symbolizer::builder()
            .enable_auto_reload(false)
            .set_debug_dirs(Some(std::iter::empty::<PathBuf>()))
            .build();
        let identity = image.identity().clone();
        OpenedImage { identity, image: Arc::clone(image), symbolizer, separate, own }
    }

    /// The file that holds an image's debug information: ours as it lies there, the target's as a copy.
    fn separate(&mut self, module: &Module, image: &Image, found: DebugFile) -> Option<Separate> {
        let with_debug = self.reads_debug(module, image, &found.image);
        let (path, copy) = match found.owner {
            FileOwner::Us => (found.image.path()?, None),
            FileOwner::Target => {
                let most = self.most_inflated(module);
                match Snapshot::of(&found.image, with_debug, most) {
                    Ok(copy) => (copy.path(), Some(copy)),
                    Err(why) => {
                        self.without_lines(module, image, &why);
                        return None;
                    }
                }
            }
        };
        let mut elf = Elf::new(path);
        elf.debug_syms = with_debug;
        Some(Separate { elf, _image: found.image, copy })
    }

    /// The image's own symbols and debug information, as they are at this moment.
    fn copy(&mut self, module: &Module, image: &Image) -> Result<(Elf, Snapshot), String> {
        let mut with_debug = self.reads_debug(module, image, image);
        let mut copy = Snapshot::of(image, with_debug, self.most_inflated(module));
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
            self.miss(image, Gap::new(&format!("function names in {}", module.path), why));
        }
        let mut source = Elf::new(copy.path());
        source.debug_syms = with_debug;
        Ok((source, copy))
    }

    /// Whether the debug information of `file`, the image itself or its separate debug file, is there
    /// and to be read; where it is there and not to be read, a gap says so.
    fn reads_debug(&mut self, module: &Module, image: &Image, file: &Image) -> bool {
        if self.is_lineless.is_some_and(|is_lineless| is_lineless(&module.path)) {
            return false;
        }
        let (all, inflated) = (file.debug_bytes(), file.compressed_debug_bytes());
        let small = all <= MAX_DEBUG_BYTES && inflated <= self.most_inflated(module);
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
        let what = format!("source lines and inlined functions of {}", module.path);
        self.miss(image, Gap::new(&what, why));
    }

    fn most_inflated(&self, module: &Module) -> u64 {
        match self.program.as_deref() == Some(&*module.path) {
            true => MAX_INFLATED_PROGRAM_BYTES,
            false => MAX_INFLATED_BYTES,
        }
    }

    fn miss(&mut self, image: &Image, gap: Gap) {
        self.gaps.entry(image.identity().clone()).or_default().insert(gap);
    }
}
