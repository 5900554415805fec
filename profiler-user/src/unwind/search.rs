//! Code without unwind tables to its callers: return addresses that are searched for on the stack.
//!
//! musl and some assembly have no tables, or tables that count from what is not known, and use the frame
//! pointer for other things. What called such code lies on the stack as a return address, among others that
//! were left there by calls long over. So an address is taken for one only if a `call` lies before it in the
//! mapped file, and that call can have led here: a direct one into the very function that was reached, or
//! into one that jumps there; one by an import to what exports that name; an indirect one to anywhere.
//! Besides, it has to lead on: its own caller, by its table, must have called it in the same way. A chain
//! that is over fails there, as the live one has overwritten the address that both have in the same place.
//!
//! First only direct calls and imports are followed. Where they lead nowhere, indirect ones are, if they
//! allow one answer; if two, the stack ends. Where a found frame has a table, unwinding goes on by
//! tables, with the stack pointer just above the address, and each further step has to be a call, too:
//! the frame pointer is not known there, but the register's, or the word below the address that makes
//! the table lead on.

use std::ops::Range;

use framehop::FrameAddress;
use framehop::x86_64::UnwindRegsX86_64;

use super::call::{self, CallTarget, LONGEST};
use super::expression::Coverage;
use super::native::{MAX_WORDS_OF_STACK, NativeUnwinder, tables_of};
use super::stack::Reached;
use super::step::{CapturedStack, Position, Step};
use crate::process::modules::{Module, Modules};

/// Words looked at in one search: 16 KiB of stack, if nothing is found on the way.
const MAX_WORDS: usize = MAX_WORDS_OF_STACK / 4;

/// A step by unwind tables costs as much as this many words.
const WORDS_OF_STEP: usize = 16;

/// Frames without tables in a row; between a program and a system call musl has four.
const MAX_DEPTH: usize = 8;

/// Saved frame pointers that are tried for one found frame.
const MAX_FRAME_POINTERS: usize = 16;

/// Frames of a found chain that another answer is compared with.
const MAX_CHAIN: usize = 64;

/// How far from its beginning code may lie in a function of which no table and no symbol tells the end.
const MAX_NAMELESS_BYTES: u64 = 4096;

/// Bytes in which a function's jumps are looked for.
const MAX_CODE_BYTES: u64 = 4096;

/// How well a return address fits the code that it would return from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// Its call leads to code that jumps on by a register or a word in memory. Enough for what leads on, too
    /// little for what is searched for.
    Relayed,
    /// Its call leads to anywhere, or where it leads to has no known bounds.
    Possible,
    /// Its call leads here.
    Proved,
}

/// What was found: the caller, and the first frame from it outwards that has a table.
struct Found {
    caller: Position,
    landing: Position,
}

/// One search: what it may still look at, and what it takes.
struct Search<'a> {
    modules: &'a Modules,
    start: u64,
    bytes: &'a [u8],
    wanted: Fit,
    words_left: usize,
}

impl Search<'_> {
    fn word(&self, address: u64) -> Option<u64> {
        let offset = usize::try_from(address.checked_sub(self.start)?).ok()?;
        Some(u64::from_le_bytes(*self.bytes.get(offset..)?.first_chunk()?))
    }

    fn stack(&self) -> CapturedStack<'_> {
        CapturedStack { start: self.start, bytes: self.bytes, wanted_more: false }
    }
}

impl NativeUnwinder {
    /// One step outwards, and by which means. From a frame that was searched for on, `unsure`, no step
    /// is taken that is not the return from a call.
    pub(super) fn outwards(
        &mut self,
        modules: &Modules,
        position: Position,
        stack: &mut CapturedStack<'_>,
        unsure: bool,
    ) -> (Step, Reached) {
        let by = self.way_out(modules, position.address);
        let step = self.step(modules, position, stack);
        // OpenSSL's AVX2 hashes keep what their tables need just below the stack, which is not copied.
        let is_short = matches!(step, Step::Stopped(_)) && !stack.wanted_more;
        let is_short = is_short && self.is_covered(modules, position.address, Coverage::Expression);
        let without_table = is_short || self.is_without_table(modules, position.address);
        if !without_table && !unsure {
            return (step, by);
        }
        // A frame pointer that is none may have led beyond the copy.
        stack.wanted_more = false;
        let fit = match &step {
            Step::Caller(caller) => self.fit(modules, position.address, caller.address.address()),
            Step::Outermost if !without_table => return (step, by),
            Step::Outermost | Step::Stopped(_) => None,
        };
        if fit == Some(Fit::Proved) || (!without_table && fit.is_some()) {
            return (step, by);
        }
        if let Some(caller) = self.search(modules, position, stack, Fit::Proved) {
            return (Step::Caller(caller), Reached::Search);
        }
        let is_made = |caller: &Position| modules.is_made_at_run_time(caller.address.address());
        if fit.is_some() || matches!(&step, Step::Caller(caller) if is_made(caller)) {
            return (step, by);
        }
        // Of assembly with a table it is known where it began, and who can call that.
        let may_guess = !is_short && !self.is_covered(modules, position.address, Coverage::Unknown);
        let guessed = may_guess.then(|| self.search(modules, position, stack, Fit::Possible));
        match guessed.flatten() {
            Some(caller) => (Step::Caller(caller), Reached::Search),
            None if matches!(step, Step::Caller(_)) => {
                let module = modules.find(position.address.address_for_lookup());
                (Step::Stopped(self.no_caller(module, position)), by)
            }
            None => (step, by),
        }
    }

    /// Whether the code lies in a file that can be read, whose tables do not tell its caller.
    fn is_without_table(&mut self, modules: &Modules, address: FrameAddress) -> bool {
        let module = modules.find(address.address_for_lookup());
        let Some(module) = module.filter(|module| module.image.is_ok()) else { return false };
        if self.keeps_frame_pointer(module, address) {
            return false;
        }
        self.load(module);
        self.without_tables(module.id).is_some()
            || matches!(self.coverage(module, address), Some(Coverage::None | Coverage::Unknown))
    }

    fn is_covered(&mut self, modules: &Modules, address: FrameAddress, by: Coverage) -> bool {
        let module = modules.find(address.address_for_lookup());
        module.is_some_and(|module| self.coverage(module, address) == Some(by))
    }

    fn search(
        &mut self,
        modules: &Modules,
        from: Position,
        stack: &CapturedStack<'_>,
        wanted: Fit,
    ) -> Option<Position> {
        let (start, bytes) = (stack.start, stack.bytes);
        let words_left = MAX_WORDS.min(self.words_left);
        let mut search = Search { modules, start, bytes, wanted, words_left };
        let found = self.search_from(&mut search, from, MAX_DEPTH);
        let is_sure =
            |found: &Found| wanted == Fit::Proved || self.is_only_answer(&mut search, from, found);
        let found = found.filter(is_sure);
        self.words_left -= words_left.saturating_sub(search.words_left);
        found.map(|found| found.caller)
    }

    /// The innermost address above the stack pointer that can be the caller's.
    fn search_from(
        &mut self,
        search: &mut Search<'_>,
        from: Position,
        depth: usize,
    ) -> Option<Found> {
        let mut at = from.registers.sp().checked_next_multiple_of(8)?;
        while search.words_left > 0 {
            search.words_left -= 1;
            let caller = self.candidate(search, from, at);
            at = at.checked_add(8)?;
            let Some(caller) = caller? else { continue };
            if !self.is_without_table(search.modules, caller.address) {
                if let Some(landing) = self.leading_on(search, from, caller) {
                    return Some(Found { caller: landing, landing });
                }
            } else if let Some(depth) = depth.checked_sub(1)
                && let Some(further) = self.search_from(search, caller, depth)
            {
                return Some(Found { caller, landing: further.landing });
            }
        }
        None
    }

    /// The caller that the word at this place would be the return address of: none, if it is no such
    /// address; outer none where the copy ends.
    fn candidate(
        &mut self,
        search: &Search<'_>,
        from: Position,
        at: u64,
    ) -> Option<Option<Position>> {
        let word = search.word(at)?;
        let fit = self.fit(search.modules, from.address, word);
        let address = FrameAddress::from_return_address(word);
        let (Some(address), true) = (address, fit >= Some(search.wanted)) else {
            return Some(None);
        };
        let sp = at.checked_add(8)?;
        let bp = self.saved_frame_pointer(search, from.address, sp);
        let registers = UnwindRegsX86_64::new(word, sp, bp.unwrap_or(from.registers.bp()));
        Some(Some(Position { address, registers }))
    }

    /// The frame pointer of a caller whose stack pointer is known, where a table tells where it is saved.
    fn saved_frame_pointer(
        &self,
        search: &Search<'_>,
        inner: FrameAddress,
        caller_sp: u64,
    ) -> Option<u64> {
        let address = inner.address_for_lookup();
        let tables = tables_of(&self.loaded, search.modules.find(address)?.id)?;
        search.word(caller_sp.checked_add_signed(tables.saved_frame_pointer(address)?)?)
    }

    /// A found frame with the frame pointer with which its table leads on to who called it.
    fn leading_on(
        &mut self,
        search: &mut Search<'_>,
        from: Position,
        found: Position,
    ) -> Option<Position> {
        let registers = found.registers;
        if self.leads_on(search, found) {
            return Some(found);
        }
        let end = search.start.saturating_add(search.bytes.len() as u64);
        let saved = (from.registers.sp()..registers.sp())
            .step_by(8)
            .filter_map(|at| search.word(at))
            .filter(|word| (registers.sp()..end).contains(word) && word % 8 == 0);
        let saved: Vec<u64> = saved.take(MAX_FRAME_POINTERS).collect();
        saved.into_iter().find_map(|bp| {
            let registers = UnwindRegsX86_64::new(registers.ip(), registers.sp(), bp);
            let found = Position { registers, ..found };
            self.leads_on(search, found).then_some(found)
        })
    }

    fn leads_on(&mut self, search: &mut Search<'_>, found: Position) -> bool {
        let Some(words_left) = search.words_left.checked_sub(WORDS_OF_STEP) else { return false };
        search.words_left = words_left;
        match self.step(search.modules, found, &mut search.stack()) {
            Step::Caller(caller) => {
                self.fit(search.modules, found.address, caller.address.address()).is_some()
            }
            Step::Outermost => true,
            Step::Stopped(_) => false,
        }
    }

    /// Whether no other frame with a table could have called, but for those that a found one leads to.
    fn is_only_answer(&mut self, search: &mut Search<'_>, from: Position, found: &Found) -> bool {
        let mut chain = vec![found.landing.registers.sp()];
        let mut position = found.landing;
        while chain.len() < MAX_CHAIN
            && let Step::Caller(caller) = self.step(search.modules, position, &mut search.stack())
        {
            chain.push(caller.registers.sp());
            position = caller;
        }
        let outermost = chain.last().copied().unwrap_or(0);
        let mut at = found.landing.registers.sp();
        while at < outermost {
            let Some(words_left) = search.words_left.checked_sub(1) else { return false };
            search.words_left = words_left;
            let Some(other) = self.candidate(search, from, at) else { break };
            at += 8;
            if let Some(other) = other.filter(|other| !chain.contains(&other.registers.sp()))
                && !self.is_without_table(search.modules, other.address)
                && self.leading_on(search, from, other).is_some()
            {
                return false;
            }
        }
        true
    }

    /// How well an address fits as that to which the code at `inner` returns; none if it does not.
    fn fit(&mut self, modules: &Modules, inner: FrameAddress, address: u64) -> Option<Fit> {
        let module = modules.find(address.checked_sub(1)?)?;
        let image = module.image.as_ref().ok()?;
        let mut code = [0; LONGEST];
        let offset = module.file_offset(address).checked_sub(LONGEST as u64)?;
        image.read_at(offset, &mut code).ok()?;
        let called = call::before(address, &code);
        let Some(called) = called else {
            // The kernel called the handler of a signal, and wrote this address.
            let returned = FrameAddress::from_return_address(address)?;
            return self.is_sigreturn(modules, returned).then_some(Fit::Proved);
        };
        let word = match called {
            CallTarget::Anywhere => return Some(Fit::Possible),
            CallTarget::Through(word) => word,
            CallTarget::To(target) => match stub(modules, target) {
                Some(word) => word,
                None => return self.reaches(modules, target, inner.address_for_lookup()),
            },
        };
        let bias = module.bias()?;
        let functions = self.functions.of(image);
        let name = functions.import(word.wrapping_sub(bias)).map(Box::<[u8]>::from);
        let callee = modules.find(inner.address_for_lookup());
        let exported = callee.zip(name).and_then(|(callee, name)| {
            let start = self.functions.of(callee.image.as_ref().ok()?).export(&name)?;
            Some(start.wrapping_add(callee.bias()?))
        });
        match exported {
            Some(target) => self.reaches(modules, target, inner.address_for_lookup()),
            None => Some(Fit::Possible),
        }
    }

    /// Whether a call to `target` leads to the code at `inner`, maybe by a jump.
    fn reaches(&mut self, modules: &Modules, target: u64, inner: u64) -> Option<Fit> {
        let (fit, reached) = match self.function(modules, inner) {
            Some(range) => (Fit::Proved, range),
            None => {
                (Fit::Possible, inner.saturating_sub(MAX_NAMELESS_BYTES)..inner.checked_add(1)?)
            }
        };
        if reached.contains(&target) {
            return Some(fit);
        }
        let whole = self.function(modules, target);
        let end = whole.map_or(target.saturating_add(MAX_NAMELESS_BYTES), |range| range.end);
        let code = code(modules, target, end.saturating_sub(target).min(MAX_CODE_BYTES))?;
        if call::jumps(&code, target).any(|target| reached.contains(&target)) {
            return Some(fit);
        }
        call::jumps_anywhere(&code).then_some(Fit::Relayed)
    }

    /// The bounds of the function at an address: by the unwind table, else by symbols.
    fn function(&mut self, modules: &Modules, address: u64) -> Option<Range<u64>> {
        let module = modules.find(address)?;
        self.load(module);
        let by_table =
            tables_of(&self.loaded, module.id).and_then(|tables| tables.function(address));
        if by_table.is_some() {
            return by_table;
        }
        let (image, bias) = (module.image.as_ref().ok()?, module.bias()?);
        let found = self.functions.of(image).at(address.wrapping_sub(bias))?;
        Some(found.start.wrapping_add(bias)..found.end.saturating_add(bias))
    }
}

/// The word that a stub of the procedure linkage table jumps by, if that is what lies there.
fn stub(modules: &Modules, target: u64) -> Option<u64> {
    call::stub(&code(modules, target, 16)?, target)
}

/// Bytes of mapped code.
fn code(modules: &Modules, address: u64, bytes: u64) -> Option<Vec<u8>> {
    let module: &Module = modules.find(address)?;
    let bytes = bytes.min(module.range.end - address);
    let mut code = vec![0; usize::try_from(bytes).ok()?];
    module.image.as_ref().ok()?.read_at(module.file_offset(address), &mut code).ok()?;
    Some(code)
}
