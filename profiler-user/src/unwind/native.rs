//! A capture's registers and stack bytes, and the modules they are about, to return addresses.
//!
//! The unwind tables do the work (`framehop`); this file hands them over as they are needed, walks
//! over the frames that the kernel pushes for signal handlers, and says why a stack ends where it
//! ends. Registers and bytes are of one moment, and nothing here looks at the live process.

use std::collections::HashMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, FrameAddress, Unwinder};
use profiler_ebpf::record::Registers;

use crate::process::modules::{Module, ModuleId, Modules};
use crate::unwind::sections::{bases, check, sections};

use super::expression::{Coverage, Index, Tables};
use super::functions::RecentSymbols;
pub use super::stack::{NativeFrame, NativeStack, Reached};
use super::step::{CapturedStack, Position, Step, by_frame_pointer, interrupted};

/// Frames of one stack at most. The 64 KiB of a capture hold this many of 64 bytes, which is less
/// than functions that do anything use on average.
pub(super) const MAX_FRAMES: usize = 1024;

/// Bytes of unwind tables kept at most, over all modules. A Python service needs about 1 MB.
const MAX_TABLE_BYTES: usize = 64 * 1024 * 1024;

/// Remembered answers to "does the kernel's return from a signal handler lie here"; forgotten all
/// at once when there are more.
const MAX_SIGRETURN_ANSWERS: usize = 4096;

/// Remembered answers to "what does the table say of this address"; forgotten all at once when
/// there are more.
const MAX_COVERAGE_ANSWERS: usize = 16 * 1024;

/// `mov $15, %rax; syscall`: `rt_sigreturn`, as every libc and Go write it. A frame that returns to
/// this was called by the kernel, and the interrupted registers lie on the stack above it.
const SIGRETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05];

/// Words looked at in all searches of one stack.
pub(super) const MAX_WORDS_OF_STACK: usize = 8192;

/// Not a frame pointer: below every stack, and not the zero that marks an outermost frame.
const IMPOSSIBLE_BP: u64 = 1;

/// Unwinds the threads of one process.
pub struct NativeUnwinder {
    unwinder: UnwinderX86_64<Arc<[u8]>>,
    cache: CacheX86_64,
    /// What was handed to `unwinder`: the bytes of the tables, or why there are none.
    pub(super) loaded: HashMap<ModuleId, Result<Loaded, String>>,
    table_bytes: usize,
    sigreturns: HashMap<u64, bool>,
    coverage: HashMap<u64, Coverage>,
    /// Of images in which a stack would end without them.
    pub(super) functions: RecentSymbols,
    /// What searches may still look at in the present stack.
    pub(super) words_left: usize,
    /// Code that no table covers and that keeps frame pointers: a file, and offsets in it.
    frame_pointer_code: Option<(String, Range<u64>)>,
}

impl std::fmt::Debug for NativeUnwinder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("NativeUnwinder")
            .field("loaded", &self.loaded)
            .field("table_bytes", &self.table_bytes)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(super) struct Loaded {
    start: u64,
    bytes: usize,
    tables: Option<Tables>,
}

impl Default for NativeUnwinder {
    fn default() -> Self {
        Self::new()
    }
}

impl NativeUnwinder {
    pub fn new() -> Self {
        Self {
            unwinder: UnwinderX86_64::new(),
            cache: CacheX86_64::new(),
            loaded: HashMap::new(),
            table_bytes: 0,
            sigreturns: HashMap::new(),
            coverage: HashMap::new(),
            functions: RecentSymbols::default(),
            words_left: 0,
            frame_pointer_code: None,
        }
    }

    /// Walks by frame pointers wherever a thread is in this part of a file. Where no table covers
    /// code, a thread in its innermost frame is otherwise taken to be about to return.
    pub fn trust_frame_pointers(&mut self, path: &str, offsets: Range<u64>) {
        if offsets.is_empty() {
            // Of a thread whose scripts nobody asked for: what is known of the others holds.
            return;
        }
        let known = self.frame_pointer_code.as_ref();
        if known.is_none_or(|(known, range)| known != path || *range != offsets) {
            self.frame_pointer_code = Some((path.to_owned(), offsets));
        }
    }

    /// `stack` are the bytes from `registers.sp` upwards; `modules` what was mapped at the time.
    pub fn unwind(
        &mut self,
        modules: &Modules,
        registers: &Registers,
        stack: &[u8],
    ) -> NativeStack {
        self.unload_gone(modules);
        self.words_left = MAX_WORDS_OF_STACK;
        let mut stack = CapturedStack { start: registers.sp, bytes: stack, wanted_more: false };
        let mut frames = Vec::new();
        // The tables are the target's, and a walk by forged ones is bounded but not proved not to panic.
        let walk = AssertUnwindSafe(|| self.walk(modules, registers, &mut stack, &mut frames));
        let truncated = catch_unwind(walk).unwrap_or_else(|_| {
            let frame_pointer_code = self.frame_pointer_code.take();
            *self = Self { frame_pointer_code, ..Self::new() };
            Some("the unwind tables make no sense".to_owned())
        });
        NativeStack { frames, truncated }
    }

    /// Why callers of a module's functions were looked for by the frame pointer alone.
    pub fn without_tables(&self, id: ModuleId) -> Option<&str> {
        self.loaded.get(&id)?.as_ref().err().map(String::as_str)
    }

    /// Bytes of unwind tables in memory.
    pub fn table_bytes(&self) -> usize {
        self.table_bytes
    }

    /// Appends the frames; says why it stopped, if that was not at the outermost.
    fn walk(
        &mut self,
        modules: &Modules,
        registers: &Registers,
        stack: &mut CapturedStack<'_>,
        frames: &mut Vec<NativeFrame>,
    ) -> Option<String> {
        let mut position = Position {
            address: FrameAddress::from_instruction_pointer(registers.ip),
            registers: UnwindRegsX86_64::new(registers.ip, registers.sp, registers.bp),
        };
        let (mut reached, mut unsure) = (Reached::Registers, false);
        loop {
            let sigreturn = self.is_sigreturn(modules, position.address);
            frames.push(NativeFrame { reached, ..frame(modules, position, sigreturn) });
            if frames.len() == MAX_FRAMES {
                return Some(format!("deeper than {MAX_FRAMES} frames"));
            }
            let step = if sigreturn {
                reached = Reached::Signal;
                interrupted(position, stack)
            } else {
                unsure |= reached == Reached::Search;
                let (step, by) = self.outwards(modules, position, stack, unsure);
                reached = by;
                step
            };
            match step {
                Step::Caller(caller) => position = caller,
                Step::Outermost => return None,
                Step::Stopped(why) => return Some(why),
            }
        }
    }

    pub(super) fn step(
        &mut self,
        modules: &Modules,
        position: Position,
        stack: &mut CapturedStack<'_>,
    ) -> Step {
        let module = modules.find(position.address.address_for_lookup());
        if let Some(module) = module {
            if self.keeps_frame_pointer(module, position.address) {
                return by_frame_pointer(position, stack);
            }
            self.load(module);
            if self.coverage(module, position.address) == Some(Coverage::Expression) {
                return self.by_expression(module, position, stack);
            }
        }
        let mut caller = position.registers;
        let mut read = |address| stack.read(address);
        let found =
            self.unwinder.unwind_frame(position.address, &mut caller, &mut self.cache, &mut read);
        // A table that needs a byte beyond the copy makes framehop fall back to the frame pointer,
        // and what that finds is not the caller.
        if stack.wanted_more {
            return Step::Stopped(stack.goes_on());
        }
        match found.map(|address| address.map(FrameAddress::from_return_address)) {
            Ok(Some(Some(address))) => Step::Caller(Position { address, registers: caller }),
            Ok(Some(None)) => Step::Stopped(self.no_caller(module, position)),
            Ok(None) if self.outermost_by_table(position, stack) => Step::Outermost,
            Ok(None) | Err(_) => Step::Stopped(self.no_caller(module, position)),
        }
    }

    /// By which means a step from here leads outwards.
    pub(super) fn way_out(&mut self, modules: &Modules, address: FrameAddress) -> Reached {
        let Some(module) = modules.find(address.address_for_lookup()) else {
            return Reached::FramePointer;
        };
        if self.keeps_frame_pointer(module, address) {
            return Reached::FramePointer;
        }
        self.load(module);
        if self.without_tables(module.id).is_some() {
            return Reached::FramePointer;
        }
        match self.coverage(module, address) {
            Some(Coverage::None) => Reached::FramePointer,
            _ => Reached::UnwindTable,
        }
    }

    pub(super) fn coverage(&mut self, module: &Module, address: FrameAddress) -> Option<Coverage> {
        let tables = tables_of(&self.loaded, module.id)?;
        if self.coverage.len() >= MAX_COVERAGE_ANSWERS {
            self.coverage.clear();
        }
        let address = address.address_for_lookup();
        Some(*self.coverage.entry(address).or_insert_with(|| tables.coverage(address)))
    }

    fn by_expression(
        &self,
        module: &Module,
        position: Position,
        stack: &mut CapturedStack<'_>,
    ) -> Step {
        let address = position.address.address_for_lookup();
        let caller = tables_of(&self.loaded, module.id)
            .and_then(|tables| tables.caller(address, position.registers, &mut |at| stack.read(at)))
            .and_then(|registers| {
                let address = FrameAddress::from_return_address(registers.ip())?;
                Some(Position { address, registers })
            });
        match caller {
            Some(caller) => Step::Caller(caller),
            None if stack.wanted_more => Step::Stopped(stack.goes_on()),
            None => Step::Stopped(format!(
                "the unwind table of {} asks for what was not captured: a register, or memory below the \
                 stack pointer",
                module.path
            )),
        }
    }

    pub(super) fn keeps_frame_pointer(&self, module: &Module, address: FrameAddress) -> bool {
        self.frame_pointer_code.as_ref().is_some_and(|(path, offsets)| {
            *module.path == **path
                && offsets.contains(&module.file_offset(address.address_for_lookup()))
        })
    }

    /// Whether the table says that there is no caller. Where no table speaks, a frame pointer of
    /// zero ends the walk as well, but in code that keeps no frame pointer that zero means nothing.
    fn outermost_by_table(&mut self, position: Position, stack: &mut CapturedStack<'_>) -> bool {
        let Position { address, registers } = position;
        let mut registers = UnwindRegsX86_64::new(registers.ip(), registers.sp(), IMPOSSIBLE_BP);
        let mut read = |address| stack.read(address);
        let found = self.unwinder.unwind_frame(address, &mut registers, &mut self.cache, &mut read);
        matches!(found, Ok(None))
    }

    pub(super) fn no_caller(&self, module: Option<&Module>, position: Position) -> String {
        let address = position.address.address();
        let Some(module) = module else {
            return format!(
                "no file is mapped at {address:#x}, and the frame pointer leads nowhere"
            );
        };
        let offset = module.file_offset(address);
        match self.loaded.get(&module.id) {
            Some(Err(why)) => format!(
                "{} has no unwind tables ({why}), and the frame pointer leads nowhere",
                module.path
            ),
            // Not covered, or by rules that this stack does not bear out.
            _ => format!(
                "neither the unwind tables nor the frame pointer lead on from {}+{offset:#x}",
                module.path
            ),
        }
    }

    pub(super) fn is_sigreturn(&mut self, modules: &Modules, address: FrameAddress) -> bool {
        if !address.is_return_address() {
            return false;
        }
        let address = address.address();
        let Some(module) = modules.find(address) else { return false };
        let Ok(image) = &module.image else { return false };
        if self.sigreturns.len() >= MAX_SIGRETURN_ANSWERS {
            self.sigreturns.clear();
        }
        *self.sigreturns.entry(address).or_insert_with(|| {
            let mut code = [0; SIGRETURN.len()];
            image.read_at(module.file_offset(address), &mut code).is_ok() && code == SIGRETURN
        })
    }

    pub(super) fn load(&mut self, module: &Module) {
        if self.loaded.contains_key(&module.id) {
            return;
        }
        let loaded = self.load_tables(module);
        self.loaded.insert(module.id, loaded);
    }

    fn load_tables(&mut self, module: &Module) -> Result<Loaded, String> {
        let image = module.image.as_ref().map_err(|gap| gap.to_string())?;
        let bias = module.bias().ok_or("its program headers do not cover the mapping")?;
        let sections = sections(image)?;
        check(&sections)?;
        let bytes = [&sections.eh_frame, &sections.eh_frame_hdr]
            .into_iter()
            .flatten()
            .map(|table| table.len())
            .sum::<usize>();
        if self.table_bytes.saturating_add(bytes) > MAX_TABLE_BYTES {
            return Err(format!("the tables of all modules exceed {MAX_TABLE_BYTES} bytes"));
        }
        self.table_bytes += bytes;
        let base = bias.wrapping_add(sections.base_svma);
        let tables = tables(&sections, bias);
        let name = module.path.to_string();
        let range = module.range.clone();
        self.unwinder.add_module(framehop::Module::new(name, range, base, sections));
        Ok(Loaded { start: module.range.start, bytes, tables })
    }

    fn unload_gone(&mut self, modules: &Modules) {
        let gone: Vec<_> =
            self.loaded.keys().copied().filter(|id| modules.get(*id).is_none()).collect();
        for id in gone {
            if let Some(Ok(loaded)) = self.loaded.remove(&id) {
                self.unwinder.remove_module(loaded.start);
                self.table_bytes = self.table_bytes.saturating_sub(loaded.bytes);
            }
            self.sigreturns.clear();
            self.coverage.clear();
        }
    }
}

pub(super) fn tables_of(
    loaded: &HashMap<ModuleId, Result<Loaded, String>>,
    module: ModuleId,
) -> Option<&Tables> {
    loaded.get(&module)?.as_ref().ok()?.tables.as_ref()
}

fn tables(sections: &ExplicitModuleSectionInfo<Arc<[u8]>>, bias: u64) -> Option<Tables> {
    let eh_frame = Arc::clone(sections.eh_frame.as_ref()?);
    let bases = bases(sections);
    let index = match &sections.eh_frame_hdr {
        Some(header) => Index::EhFrameHdr(Arc::clone(header)),
        None => Index::of_bounds(&eh_frame, &bases),
    };
    Some(Tables { eh_frame, index, bases, bias })
}

fn frame(modules: &Modules, position: Position, sigreturn: bool) -> NativeFrame {
    let Position { address, registers } = position;
    // No call lies before the return from a signal handler: the kernel wrote that address.
    let is_return_address = address.is_return_address() && !sigreturn;
    let module = modules.find(address.address().wrapping_sub(u64::from(is_return_address)));
    NativeFrame {
        address: address.address(),
        is_return_address,
        frame_pointer: registers.bp(),
        module: module.map(|module| module.id),
        file_offset: module.map(|module| module.file_offset(address.address())),
        stack_pointer: registers.sp(),
        reached: Reached::Registers,
    }
}
