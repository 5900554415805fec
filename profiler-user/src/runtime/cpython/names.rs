//! A raw frame to a named one: function, file and line out of its code object, and a cache of those.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use profiler_ebpf::python::PythonFrame;

use super::frames::{check_of, is_outermost};
use super::layout::{CpythonLayout, Shims};
use super::lines::LineTable;
use super::object::{Object, Width};
use super::strings;
use crate::gap::Gap;
use crate::process::{TargetMemory, Unreadable};

/// Bytes of one line table read at most. A module of ten thousand statements has about 100 KB.
pub(super) const MAX_LINE_TABLE_BYTES: u64 = 1 << 20;

/// Bytes of line tables read for one stack at most, so that naming it does not take seconds: the
/// tables of ordinary functions have a few hundred.
pub(super) const MAX_STACK_TABLE_BYTES: u64 = 4 << 20;

/// Copies of one code object's bytecode looked at: there is one a thread at most.
const MAX_COPIES: usize = 8192;

/// `PyVarObject.ob_size`: of a code object its instructions, of two bytes each.
const CODE_UNITS: u64 = 16;

/// Bytes of decoded code objects past which all are forgotten: some ten thousand ordinary functions.
/// Those of stalls are few and soon back.
const MAX_CACHE_BYTES: usize = 8 << 20;

/// `CO_COROUTINE`, `CO_ITERABLE_COROUTINE`, `CO_ASYNC_GENERATOR` in `co_flags`.
const COROUTINE_FLAGS: u32 = 0x80 | 0x100 | 0x200;

/// Those, and `CO_GENERATOR`: what can wait in the middle.
const RESUMABLE_FLAGS: u32 = COROUTINE_FLAGS | 0x20;

/// The owner bytes of frames that run Python code: a thread, a generator, a frame object.
const OWNERS: std::ops::RangeInclusive<u8> = 0..=2;

/// Whether a frame is Python code or interpreter plumbing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// Python code.
    Shown,
    /// Where C code called the interpreter. Not to be shown.
    CallBoundary,
    /// What a thread's chain ends in from 3.15 on, a part of its state: no call has put it there.
    Base,
}

/// What a raw frame turned out to be. Whatever is None of a shown frame, `gap` says why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFrame {
    pub kind: FrameKind,
    /// The qualified name (`Class.method`) since 3.11, before that the bare name.
    pub function: Option<Arc<str>>,
    /// As the code object has it: mostly absolute, else relative to where the target was started.
    pub file: Option<Arc<str>>,
    pub line: Option<u32>,
    /// Where the function begins; of a decorated one, its first decorator.
    pub first_line: Option<u32>,
    /// Coroutines and asynchronous generators; not plain generators.
    pub is_coroutine: bool,
    /// Coroutines and generators of all kinds; also where nothing is known of the frame.
    pub is_resumable: bool,
    /// Where the frame lies: that of a call boundary on the thread's stack.
    pub address: u64,
    /// The last frame, seen from inside, of one call of `_PyEval_EvalFrameDefault`.
    pub ends_eval: bool,
    pub gap: Option<Gap>,
}

impl NamedFrame {
    fn without_names(
        raw: &PythonFrame,
        kind: FrameKind,
        ends_eval: bool,
        gap: Option<Gap>,
    ) -> Self {
        Self {
            kind,
            function: None,
            file: None,
            line: None,
            first_line: None,
            is_coroutine: false,
            is_resumable: kind == FrameKind::Shown,
            address: raw.frame,
            ends_eval,
            gap,
        }
    }
}

/// A code object, read out.
#[derive(Debug)]
struct Code {
    function: Arc<str>,
    file: Arc<str>,
    first_line: u32,
    flags: u32,
    lines: LineTable,
    /// How long its bytecode is, where threads may have copies of it.
    bytecode_bytes: u64,
}

impl Code {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.function.len() + self.file.len() + self.lines.bytes()
    }
}

/// Code objects by address and check word. Memory that was freed and used again has another check
/// word, so an entry is right for as long as it is asked for.
#[derive(Debug, Default)]
pub struct CodeNames {
    codes: HashMap<(u64, u32), Code>,
    bytes: usize,
    /// Of line tables, read for the stack that is being named.
    table_bytes: u64,
}

impl CodeNames {
    /// The frames that are named from here on are those of another stack.
    pub fn begin_stack(&mut self) {
        self.table_bytes = 0;
    }

    /// Names one raw frame.
    pub fn decode(
        &mut self,
        memory: &dyn TargetMemory,
        layout: &CpythonLayout,
        code_type: Option<u64>,
        raw: &PythonFrame,
    ) -> NamedFrame {
        if is_boundary(layout.shims, raw.owner) {
            let is_base = layout.shims == Shims::ThreeAndBase
                && is_outermost(memory, &layout.walk, raw.frame);
            let kind = if is_base { FrameKind::Base } else { FrameKind::CallBoundary };
            return NamedFrame::without_names(raw, kind, !is_base, None);
        }
        let ends_eval = ends_eval(layout, raw);
        if !OWNERS.contains(&raw.owner) {
            let why = format_args!("its owner {} is none that CPython knows", raw.owner);
            let gap = Gap::new("Python frame", why);
            return NamedFrame::without_names(raw, FrameKind::Shown, ends_eval, Some(gap));
        }
        match self.code(memory, layout, code_type, raw) {
            Ok(code) => {
                let offset = offset(memory, layout, raw, code.bytecode_bytes);
                named(code, raw, offset, ends_eval)
            }
            Err(gap) => NamedFrame::without_names(raw, FrameKind::Shown, ends_eval, Some(gap)),
        }
    }

    fn code(
        &mut self,
        memory: &dyn TargetMemory,
        layout: &CpythonLayout,
        code_type: Option<u64>,
        raw: &PythonFrame,
    ) -> Result<&Code, Gap> {
        if self.bytes > MAX_CACHE_BYTES {
            self.codes.clear();
            self.bytes = 0;
        }
        match self.codes.entry((raw.code, raw.check)) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => {
                let code = read(memory, layout, code_type, raw, &mut self.table_bytes)?;
                self.bytes += code.bytes();
                Ok(place.insert(code))
            }
        }
    }
}

fn is_boundary(shims: Shims, owner: u8) -> bool {
    match shims {
        Shims::None => false,
        Shims::Three | Shims::ThreeAndBase => owner == 3,
        Shims::ThreeAndFour => owner == 3 || owner == 4,
    }
}

/// To 3.10 each frame is an evaluation call of its own. 3.11 marks the frame with which a call
/// began. From 3.12 on only the shim frame, outside of all frames of its call, ends it.
fn ends_eval(layout: &CpythonLayout, raw: &PythonFrame) -> bool {
    match (layout.shims, layout.code_bytecode) {
        (Shims::None, None) => true,
        (Shims::None, Some(_)) => raw.entry != 0,
        _ => false,
    }
}

/// How far into the bytecode a frame is, in bytes.
fn offset(memory: &dyn TargetMemory, layout: &CpythonLayout, raw: &PythonFrame, bytes: u64) -> i64 {
    match layout.code_bytecode {
        Some(bytecode) => {
            let begin = raw.code.wrapping_add(bytecode.into());
            let offset = raw.instruction.wrapping_sub(begin);
            let in_copy = || in_copy(memory, raw, layout.code_copies?, bytes);
            let in_copy = if offset < bytes { None } else { in_copy() };
            in_copy.unwrap_or(offset).cast_signed()
        }
        // A signed number of 32 bits: -1 before the first instruction.
        None => {
            let [a, b, c, d, ..] = raw.instruction.to_le_bytes();
            i64::from(i32::from_le_bytes([a, b, c, d])) * layout.index_bytes
        }
    }
}

/// The same in the copy of the bytecode that the frame's thread has of its own.
fn in_copy(memory: &dyn TargetMemory, raw: &PythonFrame, copies: u32, bytes: u64) -> Option<u64> {
    let word = u64::BITS as usize / 8;
    let list = memory.read_u64(raw.code.wrapping_add(copies.into())).ok()?;
    let count = usize::try_from(memory.read_u64(list).ok()?).ok()?.min(MAX_COPIES);
    let mut begins = vec![0; count * word];
    memory.read(list.wrapping_add(word as u64), &mut begins).ok()?;
    let (begins, _) = begins.as_chunks();
    let offsets = begins.iter().map(|&it| raw.instruction.wrapping_sub(u64::from_le_bytes(it)));
    offsets.into_iter().find(|&offset| offset < bytes)
}

fn named(code: &Code, raw: &PythonFrame, offset: i64, ends_eval: bool) -> NamedFrame {
    let line = code.lines.line_at(offset);
    NamedFrame {
        kind: FrameKind::Shown,
        function: Some(code.function.clone()),
        file: Some(code.file.clone()),
        line: line.ok(),
        first_line: Some(code.first_line),
        is_coroutine: code.flags & COROUTINE_FLAGS != 0,
        is_resumable: code.flags & RESUMABLE_FLAGS != 0,
        address: raw.frame,
        ends_eval,
        gap: line.err().map(|why| {
            Gap::new("Python line", format_args!("{}: {}", code.function, why.reason()))
        }),
    }
}

/// Reads a code object that the target may free at any moment: before and after, the check word must
/// be the one that was seen with the frame.
fn read(
    memory: &dyn TargetMemory,
    layout: &CpythonLayout,
    code_type: Option<u64>,
    raw: &PythonFrame,
    table_bytes: &mut u64,
) -> Result<Code, Gap> {
    let what = "Python function";
    let unreadable = |error: Unreadable| Gap::new(what, error);
    let still_there = || match check_of(memory, &layout.walk, raw.code) {
        Ok(check) if check == raw.check => Ok(()),
        Ok(_) => Err(Gap::new(what, "the code object was freed")),
        Err(error) => Err(unreadable(error)),
    };
    still_there()?;
    let object = Object::read(
        memory,
        raw.code,
        &[
            (layout.object_type, Width::Word),
            (layout.code_flags, Width::Half),
            (layout.walk.code_firstlineno, Width::Half),
            (layout.code_filename, Width::Word),
            (layout.code_function, Width::Word),
            (layout.walk.code_linetable, Width::Word),
        ],
    )
    .map_err(unreadable)?;
    let found = object.u64(layout.object_type).map_err(unreadable)?;
    if code_type.is_some_and(|expected| expected != found) {
        return Err(Gap::new(what, "the frame points to something that is no code object"));
    }
    let text = |at, what| {
        let address = object.u64(at).map_err(unreadable)?;
        strings::read(memory, &layout.text, address, what)
    };
    let bytecode_bytes = match layout.code_copies {
        Some(_) => {
            let units = memory.read_u64(raw.code.wrapping_add(layout.in_object(CODE_UNITS)));
            units.map_err(unreadable)?.saturating_mul(2)
        }
        None => 0,
    };
    let first_line = object.u32(layout.walk.code_firstlineno).map_err(unreadable)?;
    let table = object.u64(layout.walk.code_linetable).map_err(unreadable)?;
    let code = Code {
        function: text(layout.code_function, what)?.into(),
        file: text(layout.code_filename, "Python file name")?.into(),
        first_line,
        flags: object.u32(layout.code_flags).map_err(unreadable)?,
        lines: line_table(memory, layout, first_line, table, table_bytes)?,
        bytecode_bytes,
    };
    still_there()?;
    Ok(code)
}

/// Reads the `bytes` object that holds a line table.
fn line_table(
    memory: &dyn TargetMemory,
    layout: &CpythonLayout,
    first_line: u32,
    address: u64,
    table_bytes: &mut u64,
) -> Result<LineTable, Gap> {
    let what = "Python line table";
    let unreadable = |error: Unreadable| Gap::new(what, error);
    let length =
        memory.read_u64(address.wrapping_add(layout.bytes_length.into())).map_err(unreadable)?;
    if length > MAX_LINE_TABLE_BYTES {
        return Err(Gap::new(what, format_args!("{length} bytes are more than is read")));
    }
    *table_bytes += length;
    if *table_bytes > MAX_STACK_TABLE_BYTES {
        let why = format_args!("those of one stack have more than {MAX_STACK_TABLE_BYTES} bytes");
        return Err(Gap::new(what, why));
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    memory.read(address.wrapping_add(layout.bytes_data.into()), &mut bytes).map_err(unreadable)?;
    Ok(LineTable::parse(layout.lines, first_line, &bytes))
}

#[cfg(test)]
mod tests {
    use super::{CodeNames, FrameKind, MAX_CACHE_BYTES, NamedFrame};
    use crate::process::TargetMemory;
    use crate::runtime::cpython::frames::check_of;
    use crate::runtime::cpython::layout::CpythonLayout;
    use crate::runtime::cpython::offsets::of_minor;
    use crate::runtime::cpython::pages::CopiedPages;
    use profiler_ebpf::python::PythonFrame;

    const CODE: u64 = 0x30_0000;
    const CODE_TYPE: u64 = 0x66_6000;
    const NAME: u64 = 0x41_0000;
    const FILE: u64 = 0x42_0000;
    const TABLE: u64 = 0x43_0000;

    fn layout(minor: u8) -> CpythonLayout {
        of_minor(minor).expect("known")
    }

    fn put_text(pages: &mut CopiedPages, layout: &CpythonLayout, address: u64, text: &str) {
        /// Compact, ASCII, one byte per character.
        const STATE: u32 = 1 << 6 | 1 << 5 | 1 << 2;
        pages.put(address, &[0; 72]);
        pages.put_u64(address + u64::from(layout.text.length), text.len() as u64);
        pages.put(address + u64::from(layout.text.state), &STATE.to_le_bytes());
        pages.put(address + u64::from(layout.text.ascii_data), text.as_bytes());
    }

    /// A target with the coroutine `charge`, defined in line 20: two lines of four bytes each.
    fn target(layout: &CpythonLayout) -> CopiedPages {
        let mut pages = CopiedPages::default();
        pages.put(CODE, &[0; 256]);
        pages.put_u64(CODE + u64::from(layout.object_type), CODE_TYPE);
        pages.put(CODE + u64::from(layout.code_flags), &0x83_u32.to_le_bytes());
        pages.put(CODE + u64::from(layout.walk.code_firstlineno), &20_u32.to_le_bytes());
        pages.put_u64(CODE + u64::from(layout.walk.code_name), NAME);
        pages.put_u64(CODE + u64::from(layout.code_function), NAME);
        pages.put_u64(CODE + u64::from(layout.code_filename), FILE);
        pages.put_u64(CODE + u64::from(layout.walk.code_linetable), TABLE);
        put_text(&mut pages, layout, NAME, "charge");
        put_text(&mut pages, layout, FILE, "/srv/app.py");
        let table: &[u8] = match layout.code_bytecode {
            // Two entries of two code units, each one line on; then one unit without any.
            Some(_) => &[0x80 | 11 << 3 | 1, 0, 0, 0x80 | 11 << 3 | 1, 0, 0, 0x80 | 15 << 3],
            None if layout.index_bytes == 2 => &[4, 1, 4, 1, 2, 0x80],
            None => &[0, 1, 4, 1],
        };
        pages.put_u64(TABLE + u64::from(layout.bytes_length), table.len() as u64);
        pages.put(TABLE + u64::from(layout.bytes_data), table);
        pages
    }

    /// A frame that stands at the second of the two lines.
    fn frame(layout: &CpythonLayout, memory: &dyn TargetMemory, owner: u8) -> PythonFrame {
        PythonFrame {
            frame: 0x20_0000,
            code: CODE,
            instruction: match layout.code_bytecode {
                Some(at) => CODE + u64::from(at) + 4,
                None if layout.index_bytes == 2 => 2,
                None => 4,
            },
            check: check_of(memory, &layout.walk, CODE).expect("the code is there"),
            owner,
            entry: 0,
            reserved: 0,
        }
    }

    fn decode(layout: &CpythonLayout, memory: &dyn TargetMemory, raw: &PythonFrame) -> NamedFrame {
        CodeNames::default().decode(memory, layout, Some(CODE_TYPE), raw)
    }

    fn reason(named: &NamedFrame) -> &str {
        named.gap.as_ref().map_or("no gap", |gap| &gap.0)
    }

    /// In every version a frame gets its function, file and line.
    #[test]
    fn names_a_frame() {
        for minor in 8..=15 {
            let layout = layout(minor);
            let pages = target(&layout);
            let named = decode(&layout, &pages, &frame(&layout, &pages, 0));
            assert_eq!(named.kind, FrameKind::Shown);
            assert_eq!(named.function.as_deref(), Some("charge"), "3.{minor}");
            assert_eq!(named.file.as_deref(), Some("/srv/app.py"));
            assert_eq!((named.line, named.first_line), (Some(22), Some(20)), "3.{minor}");
            assert!(named.is_coroutine);
            assert_eq!(named.gap, None);
        }
    }

    /// A thread of a free-threaded build runs a copy of the bytecode of its own; an instruction in none of the
    /// copies has no line.
    #[test]
    fn copies_of_bytecode() {
        let layout = CpythonLayout { code_copies: Some(224), ..layout(15) };
        let mut pages = target(&layout);
        pages.put_u64(CODE + 16, 5);
        let (list, copy) = (0x50_0000, 0x51_0000);
        pages.put_u64(CODE + 224, list);
        for (word, value) in [2, CODE + 208, copy].into_iter().enumerate() {
            pages.put_u64(list + 8 * word as u64, value);
        }
        let line_at = |instruction| {
            let raw = PythonFrame { instruction, ..frame(&layout, &pages, 0) };
            decode(&layout, &pages, &raw).line
        };
        assert_eq!(line_at(CODE + 208 + 4), Some(22), "its own");
        assert_eq!((line_at(copy), line_at(copy + 4)), (Some(21), Some(22)));
        assert_eq!(line_at(copy + 10), None);
        pages.put_u64(list, u64::MAX);
        let raw = PythonFrame { instruction: copy + 4, ..frame(&layout, &pages, 0) };
        assert_eq!(decode(&layout, &pages, &raw).line, None, "more copies than are read");
    }

    /// A frame that has not begun stands at its function's first line.
    #[test]
    fn not_begun() {
        for minor in [8, 10, 11] {
            let layout = layout(minor);
            let pages = target(&layout);
            let mut raw = frame(&layout, &pages, 0);
            raw.instruction = match layout.code_bytecode {
                Some(at) => CODE + u64::from(at) - 2,
                None => u64::from(u32::MAX),
            };
            assert_eq!(decode(&layout, &pages, &raw).line, Some(20), "3.{minor}");
        }
    }

    /// Which frame ends an evaluation call: each, the marked one, or the one that is not shown.
    #[test]
    fn ends_of_evaluation_calls() {
        let of = |minor, owner, entry| {
            let layout = layout(minor);
            let pages = target(&layout);
            let raw = PythonFrame { entry, ..frame(&layout, &pages, owner) };
            let named = decode(&layout, &pages, &raw);
            (named.kind, named.ends_eval)
        };
        assert_eq!(of(10, 0, 0), (FrameKind::Shown, true));
        assert_eq!(of(11, 0, 0), (FrameKind::Shown, false));
        assert_eq!(of(11, 1, 1), (FrameKind::Shown, true));
        for minor in [12, 13, 14] {
            assert_eq!(of(minor, 1, 0), (FrameKind::Shown, false));
            assert_eq!(of(minor, 3, 0), (FrameKind::CallBoundary, true));
        }
        assert_eq!(of(13, 4, 0), (FrameKind::Shown, false));
        assert_eq!(of(14, 4, 0), (FrameKind::CallBoundary, true));
    }

    /// Memory that was freed and serves something else is a gap, never a wrong name.
    #[test]
    fn freed_code() {
        let layout = layout(13);
        let mut pages = target(&layout);
        let raw = frame(&layout, &pages, 0);
        pages.put(CODE + u64::from(layout.walk.code_firstlineno), &99_u32.to_le_bytes());
        let named = decode(&layout, &pages, &raw);
        assert_eq!((named.function.as_deref(), named.line), (None, None));
        assert!(reason(&named).contains("the code object was freed"), "{}", reason(&named));
    }

    /// What has the right check word but is no code object, or an owner out of the blue, is a gap.
    #[test]
    fn not_code() {
        let layout = layout(13);
        let mut pages = target(&layout);
        let raw = frame(&layout, &pages, 0);
        let odd = decode(&layout, &pages, &PythonFrame { owner: 77, ..raw });
        assert!(reason(&odd).contains("owner 77"));
        pages.put_u64(CODE + u64::from(layout.object_type), CODE_TYPE + 8);
        assert!(reason(&decode(&layout, &pages, &raw)).contains("no code object"));
    }

    /// Instructions without a line keep their function, with the reason; tables too long are refused.
    #[test]
    fn lines_that_are_missing() {
        let layout = layout(12);
        let mut pages = target(&layout);
        let raw = frame(&layout, &pages, 0);
        let artificial = PythonFrame { instruction: raw.instruction + 4, ..raw };
        let named = decode(&layout, &pages, &artificial);
        assert_eq!((named.function.as_deref(), named.line), (Some("charge"), None));
        assert!(reason(&named).contains("charge: the compiler gave"), "{}", reason(&named));
        pages.put_u64(TABLE + u64::from(layout.bytes_length), 1 << 40);
        assert!(reason(&decode(&layout, &pages, &raw)).contains("more than is read"));
    }

    /// What was read once is not read again, also after the target is gone.
    #[test]
    fn remembers() {
        let layout = layout(11);
        let pages = target(&layout);
        let raw = frame(&layout, &pages, 0);
        let mut names = CodeNames::default();
        let first = names.decode(&pages, &layout, None, &raw);
        let again = names.decode(&CopiedPages::default(), &layout, None, &raw);
        assert_eq!(first.function.as_deref(), Some("charge"));
        assert_eq!(again, first);
    }

    /// The cache forgets rather than grows.
    #[test]
    fn forgets_when_full() {
        let layout = layout(11);
        let mut pages = target(&layout);
        let long = "x".repeat(4000);
        put_text(&mut pages, &layout, NAME, &long);
        let mut names = CodeNames::default();
        let mut most = 0;
        for line in 0..3000_u32 {
            pages = target_with_line(pages, &layout, line);
            let raw = frame(&layout, &pages, 0);
            let named = names.decode(&pages, &layout, None, &raw);
            assert_eq!(named.function.as_deref(), Some(long.as_str()));
            assert!(names.bytes <= MAX_CACHE_BYTES + 2 * long.len(), "one function too many");
            most = most.max(names.codes.len());
        }
        assert!(names.codes.len() < most, "it was emptied at least once");
    }

    /// The same target after its code object was replaced by one of another line.
    fn target_with_line(mut pages: CopiedPages, layout: &CpythonLayout, line: u32) -> CopiedPages {
        pages.put(CODE + u64::from(layout.walk.code_firstlineno), &line.to_le_bytes());
        pages
    }
}
