//! A capture's registers and stack bytes, and the modules they are about, to return addresses.
//!
//! The unwind tables do the work (`framehop`); this file hands them over as they are needed, walks
//! over the frames that the kernel pushes for signal handlers, and says why a stack ends where it
//! ends. Registers and bytes are of one moment, and nothing here looks at the live process.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, FrameAddress, Unwinder};
use gimli::BaseAddresses;
use profiler_ebpf::record::Registers;

use crate::process::image::Image;
use crate::process::modules::{Module, ModuleId, Modules};
use crate::unwind::tables;

/// Frames of one stack at most. The 64 KiB of a capture hold this many of 64 bytes, which is less
/// than functions that do anything use on average.
pub(super) const MAX_FRAMES: usize = 1024;

/// Bytes of unwind tables kept at most, over all modules. A Python service needs about 1 MB.
const MAX_TABLE_BYTES: usize = 64 * 1024 * 1024;

/// Remembered answers to "does the kernel's return from a signal handler lie here"; forgotten all
/// at once when there are more.
const MAX_SIGRETURN_ANSWERS: usize = 4096;

/// `mov $15, %rax; syscall`: `rt_sigreturn`, as every libc and Go write it. A frame that returns to
/// this was called by the kernel, and the interrupted registers lie on the stack above it.
const SIGRETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05];

/// Offsets in `struct ucontext` of the interrupted `rbp`, `rsp` and `rip`
/// (arch/x86/include/uapi/asm/sigcontext.h).
const UCONTEXT_BP: u64 = 120;
const UCONTEXT_SP: u64 = 160;
const UCONTEXT_IP: u64 = 168;

/// Not a frame pointer: below every stack, and not the zero that marks an outermost frame.
const IMPOSSIBLE_BP: u64 = 1;

/// One frame of native code, not yet named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NativeFrame {
    pub address: u64,
    /// The call lies before the address; otherwise the address is the instruction itself.
    pub is_return_address: bool,
    /// `None` where no file is mapped at the address: code that was made at run time, or no code.
    pub module: Option<ModuleId>,
    /// Of the address, in the module's file.
    pub file_offset: Option<u64>,
    /// The stack pointer at the address. The word below it is the return address that led here.
    pub sp: u64,
}

/// Frames from the innermost outwards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NativeStack {
    pub frames: Vec<NativeFrame>,
    /// Why the stack stops before its outermost frame. `None`: the unwind tables of the last frame
    /// say that it has no caller.
    pub truncated: Option<String>,
}

/// Unwinds the threads of one process.
pub struct NativeUnwinder {
    unwinder: UnwinderX86_64<Vec<u8>>,
    cache: CacheX86_64,
    /// What was handed to `unwinder`: the bytes of the tables, or why there are none.
    loaded: HashMap<ModuleId, Result<Loaded, String>>,
    table_bytes: usize,
    sigreturns: HashMap<u64, bool>,
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
struct Loaded {
    start: u64,
    bytes: usize,
}

/// Where a walk stands.
#[derive(Clone, Copy)]
struct Position {
    address: FrameAddress,
    registers: UnwindRegsX86_64,
}

/// What one step outwards led to.
enum Step {
    Caller(Position),
    Outermost,
    Stopped(String),
}

/// The captured bytes, and whether something was wanted of what lies beyond them.
struct CapturedStack<'a> {
    start: u64,
    bytes: &'a [u8],
    wanted_more: bool,
}

impl CapturedStack<'_> {
    fn read(&mut self, address: u64) -> Result<u64, ()> {
        let Some(offset) = address.checked_sub(self.start) else { return Err(()) };
        let tail = usize::try_from(offset).ok().and_then(|offset| self.bytes.get(offset..));
        match tail.and_then(|tail| tail.first_chunk::<8>()) {
            Some(word) => Ok(u64::from_le_bytes(*word)),
            None => {
                self.wanted_more = true;
                Err(())
            }
        }
    }

    fn goes_on(&self) -> String {
        format!("the stack goes on past the {} bytes copied", self.bytes.len())
    }
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
        let mut stack = CapturedStack { start: registers.sp, bytes: stack, wanted_more: false };
        let mut frames = Vec::new();
        // The tables are the target's, and a walk by forged ones is bounded but not proved not to panic.
        let walk = AssertUnwindSafe(|| self.walk(modules, registers, &mut stack, &mut frames));
        let truncated = catch_unwind(walk).unwrap_or_else(|_| {
            *self = Self::new();
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
        loop {
            let sigreturn = self.is_sigreturn(modules, position.address);
            frames.push(frame(modules, position, sigreturn));
            if frames.len() == MAX_FRAMES {
                return Some(format!("deeper than {MAX_FRAMES} frames"));
            }
            let step = if sigreturn {
                interrupted(position, stack)
            } else {
                self.step(modules, position, stack)
            };
            match step {
                Step::Caller(caller) => position = caller,
                Step::Outermost => return None,
                Step::Stopped(why) => return Some(why),
            }
        }
    }

    fn step(
        &mut self,
        modules: &Modules,
        position: Position,
        stack: &mut CapturedStack<'_>,
    ) -> Step {
        let module = modules.find(position.address.address_for_lookup());
        if let Some(module) = module {
            self.load(module);
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

    /// Whether the table says that there is no caller. Where no table speaks, a frame pointer of
    /// zero ends the walk as well, but in code that keeps no frame pointer that zero means nothing.
    fn outermost_by_table(&mut self, position: Position, stack: &mut CapturedStack<'_>) -> bool {
        let Position { address, registers } = position;
        let mut registers = UnwindRegsX86_64::new(registers.ip(), registers.sp(), IMPOSSIBLE_BP);
        let mut read = |address| stack.read(address);
        let found = self.unwinder.unwind_frame(address, &mut registers, &mut self.cache, &mut read);
        matches!(found, Ok(None))
    }

    fn no_caller(&self, module: Option<&Module>, position: Position) -> String {
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

    fn is_sigreturn(&mut self, modules: &Modules, address: FrameAddress) -> bool {
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

    fn load(&mut self, module: &Module) {
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
            .map(Vec::len)
            .sum::<usize>();
        if self.table_bytes.saturating_add(bytes) > MAX_TABLE_BYTES {
            return Err(format!("the tables of all modules exceed {MAX_TABLE_BYTES} bytes"));
        }
        self.table_bytes += bytes;
        let base = bias.wrapping_add(sections.base_svma);
        let name = module.path.to_string();
        let range = module.range.clone();
        self.unwinder.add_module(framehop::Module::new(name, range, base, sections));
        Ok(Loaded { start: module.range.start, bytes })
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
        }
    }
}

fn sections(image: &Image) -> Result<ExplicitModuleSectionInfo<Vec<u8>>, String> {
    let eh_frame = image.eh_frame().ok_or("no .eh_frame")?;
    let eh_frame_hdr = image.eh_frame_hdr();
    Ok(ExplicitModuleSectionInfo {
        base_svma: image.lowest_address(),
        text_svma: image.text().map(|section| section.address.clone()),
        got_svma: image.got().map(|section| section.address.clone()),
        eh_frame_svma: Some(eh_frame.address.clone()),
        eh_frame: Some(image.read(eh_frame)?),
        eh_frame_hdr_svma: eh_frame_hdr.map(|section| section.address.clone()),
        eh_frame_hdr: eh_frame_hdr.map(|section| image.read(section)).transpose()?,
        ..ExplicitModuleSectionInfo::default()
    })
}

/// Tables are the target's, and a walk by forged ones might not end.
fn check(sections: &ExplicitModuleSectionInfo<Vec<u8>>) -> Result<(), String> {
    let start =
        |range: &Option<std::ops::Range<u64>>| range.as_ref().map_or(0, |range| range.start);
    let bases = BaseAddresses::default()
        .set_eh_frame(start(&sections.eh_frame_svma))
        .set_eh_frame_hdr(start(&sections.eh_frame_hdr_svma))
        .set_text(start(&sections.text_svma))
        .set_got(start(&sections.got_svma));
    let eh_frame = sections.eh_frame.as_deref().unwrap_or_default();
    // Slips in arithmetic over forged numbers stop a program that was built to look for them.
    let found = || tables::check(eh_frame, sections.eh_frame_hdr.as_deref(), &bases);
    catch_unwind(AssertUnwindSafe(found))
        .unwrap_or_else(|_| Err("its unwind tables make no sense".to_owned()))
}

fn frame(modules: &Modules, position: Position, sigreturn: bool) -> NativeFrame {
    let Position { address, registers } = position;
    // No call lies before the return from a signal handler: the kernel wrote that address.
    let is_return_address = address.is_return_address() && !sigreturn;
    let module = modules.find(address.address().wrapping_sub(u64::from(is_return_address)));
    NativeFrame {
        address: address.address(),
        is_return_address,
        module: module.map(|module| module.id),
        file_offset: module.map(|module| module.file_offset(address.address())),
        sp: registers.sp(),
    }
}

/// From the frame that the kernel made for a signal handler to the code that the signal interrupted.
/// Tables describe this too, by expressions over memory, which framehop does not evaluate.
fn interrupted(position: Position, stack: &mut CapturedStack<'_>) -> Step {
    let context = position.registers.sp();
    let mut register = |offset| stack.read(context.wrapping_add(offset));
    let (Ok(bp), Ok(sp), Ok(ip)) =
        (register(UCONTEXT_BP), register(UCONTEXT_SP), register(UCONTEXT_IP))
    else {
        return Step::Stopped(stack.goes_on());
    };
    // Going back would let a forged stack lead in circles.
    if sp <= context {
        return Step::Stopped("the signal handler ran on a stack of its own".to_owned());
    }
    Step::Caller(Position {
        address: FrameAddress::from_instruction_pointer(ip),
        registers: UnwindRegsX86_64::new(ip, sp, bp),
    })
}
