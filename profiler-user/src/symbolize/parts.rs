//! A function to the parts that the compiler split off it.
//!
//! Compilers move what they hold for rarely used out of a function, as a part with a name of its own
//! (`function.cold`), which stripping takes away. The jumps between the two stay, and so do the unwind
//! tables, which tell a part from a function: a part is entered with its function's stack frame in place.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, FrameDescriptionEntry, LittleEndian as Endian,
    UnwindContext, UnwindSection, X86_64,
};
use object::LittleEndian;
use object::elf::{FileHeader64, SHT_DYNSYM};
use object::read::ReadCache;
use object::read::elf::{FileHeader, SectionHeader, Sym};

use crate::process::image::{Image, Section};

/// Bytes of a function or a part at most: CPython's main loop has up to 90 KB.
const MAX_CODE_BYTES: u64 = 1 << 20;

/// Bytes of dynamic symbols or of their names at most: those of libpython have 60 KB. A program with
/// more than this, such as node, takes a tenth of a second to search.
const MAX_SYMBOL_BYTES: u64 = 4 << 20;

/// As in [`Image`]: linked images have about forty.
const MAX_SECTIONS: u32 = 4096;

type Reader<'a> = gimli::EndianSlice<'a, Endian>;

/// The addresses, as the image states them, of the parts of a function that the image exports. Empty
/// where it does not, and where nothing was split off.
pub fn of_function(image: &Image, name: &str) -> Vec<Range<u64>> {
    find(image, name).unwrap_or_default()
}

fn find(image: &Image, name: &str) -> Option<Vec<Range<u64>>> {
    let text = image.text()?;
    let function = exported(image, name)?;
    let out: BTreeSet<u64> = jumps(&code(image, text, &function)?, function.start)
        .filter(|target| text.address.contains(target) && !function.contains(target))
        .collect();
    let section = image.eh_frame().filter(|_| !out.is_empty())?;
    let bytes = image.read(section).ok()?;
    let tables = Tables::new(&bytes, section);
    let is_part = |fde: &FrameDescriptionEntry<Reader<'_>>| {
        let part = fde.initial_address()..fde.end_address();
        let is_entered_by_jumps = || {
            // To the first instruction of a function everybody may jump; into its midst, only its parts.
            let back = code(image, text, &part).is_some_and(|bytes| {
                jumps(&bytes, part.start)
                    .any(|target| target > function.start && target < function.end)
            });
            back && tables.begins_within_a_frame(fde)
        };
        let is_reached = !part.is_empty() && out.range(part.clone()).next().is_some();
        (is_reached && is_entered_by_jumps()).then_some(part.clone())
    };
    Some(tables.entries().filter_map(|fde| is_part(&fde)).collect())
}

/// Where an exported function lies.
fn exported(image: &Image, name: &str) -> Option<Range<u64>> {
    let cache = ReadCache::new(File::open(image.path()?).ok()?);
    let header = FileHeader64::<LittleEndian>::parse(&cache).ok()?;
    if header.shnum(LittleEndian, &cache).ok()? > MAX_SECTIONS {
        return None;
    }
    let sections = header.sections(LittleEndian, &cache).ok()?;
    let table = sections.iter().find(|section| section.sh_type(LittleEndian) == SHT_DYNSYM)?;
    let names = sections.section(table.link(LittleEndian)).ok()?;
    if [table, names].iter().any(|section| section.sh_size(LittleEndian) > MAX_SYMBOL_BYTES) {
        return None;
    }
    let symbols = sections.symbols(LittleEndian, &cache, SHT_DYNSYM).ok()?;
    let symbol = symbols.iter().find(|symbol| {
        let found = symbol.name(LittleEndian, symbols.strings());
        !symbol.is_undefined(LittleEndian) && found.is_ok_and(|found| found == name.as_bytes())
    })?;
    let start = symbol.st_value(LittleEndian);
    Some(start..start.checked_add(symbol.st_size(LittleEndian))?)
}

/// The machine code of a range.
fn code(image: &Image, text: &Section, range: &Range<u64>) -> Option<Vec<u8>> {
    let length = range.end.checked_sub(range.start).filter(|bytes| *bytes <= MAX_CODE_BYTES)?;
    if range.start < text.address.start || range.end > text.address.end {
        return None;
    }
    let offset = range.start - text.address.start + text.file.start;
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    image.read_at(offset, &mut bytes).ok()?;
    Some(bytes)
}

/// Where jumps with a distance of four bytes lead. Instructions are not decoded, so a few of these are
/// none; that one leads by chance to where it would matter, and another one back, is next to impossible.
fn jumps(code: &[u8], start: u64) -> impl Iterator<Item = u64> {
    code.windows(6).enumerate().filter_map(move |(at, bytes)| {
        let (distance, length) = match *bytes {
            [0xe9, a, b, c, d, _] => ([a, b, c, d], 5),
            [0x0f, condition, a, b, c, d] if condition & 0xf0 == 0x80 => ([a, b, c, d], 6),
            _ => return None,
        };
        let next = start.wrapping_add(at as u64 + length);
        Some(next.wrapping_add_signed(i32::from_le_bytes(distance).into()))
    })
}

/// The unwind tables of an image.
struct Tables<'a> {
    eh_frame: EhFrame<Reader<'a>>,
    bases: BaseAddresses,
}

impl<'a> Tables<'a> {
    fn new(bytes: &'a [u8], section: &Section) -> Self {
        let mut eh_frame = EhFrame::new(bytes, Endian);
        eh_frame.set_address_size(8);
        Self { eh_frame, bases: BaseAddresses::default().set_eh_frame(section.address.start) }
    }

    fn entries(&self) -> impl Iterator<Item = FrameDescriptionEntry<Reader<'a>>> {
        let mut entries = self.eh_frame.entries(&self.bases);
        let next = move || entries.next().ok().flatten();
        std::iter::from_fn(next).filter_map(|entry| match entry {
            CieOrFde::Cie(_) => None,
            CieOrFde::Fde(partial) => partial.parse(EhFrame::cie_from_offset).ok(),
        })
    }

    /// Whether the code begins with more on the stack than the return address that a call puts there.
    fn begins_within_a_frame(&self, fde: &FrameDescriptionEntry<Reader<'_>>) -> bool {
        let mut context = UnwindContext::new();
        let at = fde.initial_address();
        let row = fde.unwind_info_for_address(&self.eh_frame, &self.bases, &mut context, at);
        let called = CfaRule::RegisterAndOffset { register: X86_64::RSP, offset: 8 };
        row.is_ok_and(|row| *row.cfa() != called)
    }
}

#[cfg(test)]
mod tests {
    use super::jumps;

    /// Jumps with and without a condition, forwards and backwards; short ones stay within a function.
    #[test]
    fn targets_of_jumps() {
        let code = [
            0x90, 0xe9, 0x10, 0, 0, 0, // jmp
            0x0f, 0x84, 0xf4, 0xff, 0xff, 0xff, // je
            0xeb, 0x10, 0xe8, 0x10, 0, 0, 0, 0x90, // jmp short, call
        ];
        assert_eq!(jumps(&code, 0x1000).collect::<Vec<_>>(), [0x1016, 0x1000]);
        assert_eq!(jumps(&code[..5], 0).count(), 0, "cut off");
    }
}
