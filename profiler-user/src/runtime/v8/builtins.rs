//! The place of V8's builtins in a file that is stripped of their names.
//!
//! They are one piece of the text, made by V8 itself and put there as data, so no unwind table covers
//! them: the largest hole in the tables. The next largest, of other assembly, is a fifth of it.

use std::ops::Range;

use crate::process::image::{Image, Section};

/// Builtins take more than this: in node 18, 1.4 MB, and more in each version since.
const MIN_BYTES: u64 = 1 << 20;

/// `.eh_frame_hdr` as every linker writes it: addresses of four bytes, relative to their place or to
/// the section.
const HEADER: [u8; 4] = [1, 0x1b, 0x03, 0x3b];

/// Where the index begins, after the header, the address of the table, and the number of entries.
const INDEX: usize = 12;

/// Where a table's entry says how long its function is: after its own length, the place of what it
/// shares with others, and where its function begins.
const LENGTH_OF_FUNCTION: u64 = 12;

/// As offsets in the file.
pub fn find(image: &Image) -> Option<Range<u64>> {
    let (text, index, frames) = (image.text()?, image.eh_frame_hdr()?, image.eh_frame()?);
    let functions = functions(&image.read(index).ok()?, index.address.start)?;
    let hole = holes(&functions, text)
        .filter(|hole| hole.end - hole.start >= MIN_BYTES)
        .max_by_key(|hole| hole.end - hole.start)?;
    // What the index does not tell: how long the function before the hole is.
    let entry = functions.iter().find(|function| function.start == hole.start)?.entry;
    let offset = entry.checked_sub(frames.address.start)?.checked_add(frames.file.start)?;
    let mut length = [0; 4];
    image.read_at(offset.checked_add(LENGTH_OF_FUNCTION)?, &mut length).ok()?;
    let start = hole.start.checked_add(u32::from_le_bytes(length).into())?;
    let in_file = |address: u64| address - text.address.start + text.file.start;
    (start < hole.end).then(|| in_file(start)..in_file(hole.end))
}

/// One function that has unwind information.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Function {
    start: u64,
    /// The address of its table's entry.
    entry: u64,
}

/// From one function's beginning to the next one's, within the text.
fn holes<'a>(
    functions: &'a [Function],
    text: &'a Section,
) -> impl Iterator<Item = Range<u64>> + 'a {
    let within = |address: &u64| text.address.contains(address);
    functions
        .windows(2)
        .filter_map(|pair| <&[Function; 2]>::try_from(pair).ok())
        .filter(move |[one, next]| within(&one.start) && within(&next.start))
        .map(|[one, next]| one.start..next.start)
}

/// The index, which is sorted.
fn functions(index: &[u8], address: u64) -> Option<Vec<Function>> {
    if index.get(..HEADER.len())? != HEADER {
        return None;
    }
    let number = |bytes: &[u8]| {
        let relative = i32::from_le_bytes(*bytes.first_chunk()?);
        address.checked_add_signed(relative.into())
    };
    let function =
        |entry: &[u8]| Some(Function { start: number(entry)?, entry: number(entry.get(4..)?)? });
    index.get(INDEX..)?.chunks_exact(8).map(function).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::{Function, HEADER, Image, Section, find, functions, holes};

    fn index(entries: &[(i32, i32)]) -> Vec<u8> {
        let mut bytes = HEADER.to_vec();
        bytes.extend([0; 8]);
        for (start, entry) in entries {
            bytes.extend(start.to_le_bytes());
            bytes.extend(entry.to_le_bytes());
        }
        bytes
    }

    /// The index is relative to its own address, and what is encoded otherwise is not guessed at.
    #[test]
    fn entries_of_the_index() {
        let mut bytes = index(&[(-0x1000, 0x20), (-0x800, 0x40)]);
        let of = |start, entry| Function { start, entry };
        let expected = [of(0x4000, 0x5020), of(0x4800, 0x5040)];
        assert_eq!(functions(&bytes, 0x5000).as_deref(), Some(&expected[..]));
        bytes[3] = 0x3c;
        assert_eq!(functions(&bytes, 0x5000), None);
        assert_eq!(functions(&[], 0x5000), None);
    }

    /// What lies between the text and other sections is no hole in the text.
    #[test]
    fn holes_of_the_text() {
        let at = |start| Function { start, entry: 0 };
        let text = Section { address: 0x1000..0x9000, file: 0..0x8000 };
        let functions = [at(0x800), at(0x1000), at(0x1100), at(0x8000), at(0x10_0000)];
        let found: Vec<_> = holes(&functions, &text).collect();
        assert_eq!(found, [0x1000..0x1100, 0x1100..0x8000]);
    }

    /// An ordinary program has no hole of that size.
    #[test]
    fn ordinary_program() {
        let own = Image::from_file(File::open("/proc/self/exe").unwrap(), 0).unwrap();
        assert_eq!(find(&own), None);
    }
}
