//! The address of a Python `str` to its text.

use super::layout::StrLayout;
use super::object::{Object, Width};
use crate::gap::Gap;
use crate::process::TargetMemory;

/// Characters read at most, after which a text is cut: no file name on Linux is longer.
pub(super) const MAX_CHARACTERS: usize = 4096;

/// What stands for the rest of a text that was cut.
const CUT: char = '…';

/// How the characters lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Latin-1, of which ASCII is a part.
    One,
    /// One UTF-16 code unit per character.
    Two,
    /// UTF-32.
    Four,
}

/// Reads names and paths. Strings inside code objects are always compact: the characters follow the
/// header. `what` begins the sentence of a gap.
pub fn read(
    memory: &dyn TargetMemory,
    layout: &StrLayout,
    address: u64,
    what: &str,
) -> Result<String, Gap> {
    let gap = |why: &dyn std::fmt::Display| Gap::new(what, why);
    let header =
        Object::read(memory, address, &[(layout.length, Width::Word), (layout.state, Width::Half)])
            .map_err(|error| gap(&error))?;
    let length = header.u64(layout.length).map_err(|error| gap(&error))?;
    let state = header.u32(layout.state).map_err(|error| gap(&error))?;
    let (kind, ascii) =
        kind_of(state, layout.interned_bits).ok_or_else(|| gap(&"no text lies where it should"))?;

    let whole = usize::try_from(length).unwrap_or(usize::MAX);
    let characters = whole.min(MAX_CHARACTERS);
    let data = if ascii { layout.ascii_data } else { layout.compact_data };
    let width = match kind {
        Kind::One => 1,
        Kind::Two => 2,
        Kind::Four => 4,
    };
    let mut bytes = vec![0; characters * width];
    memory.read(address.wrapping_add(u64::from(data)), &mut bytes).map_err(|error| gap(&error))?;
    let mut text = decode(kind, &bytes);
    if whole > characters {
        text.push(CUT);
    }
    Ok(text)
}

/// Reads the bits of `state`: those of interning, two or eight, then three of the kind, one each for compact and
/// ASCII. None where they contradict each other, as they do in memory that is no `str`.
fn kind_of(state: u32, interned_bits: u32) -> Option<(Kind, bool)> {
    let state = state.checked_shr(interned_bits)?;
    let compact = state >> 3 & 1 == 1;
    let ascii = state >> 4 & 1 == 1;
    let kind = match state & 7 {
        1 => Kind::One,
        2 => Kind::Two,
        4 => Kind::Four,
        _ => return None,
    };
    (compact && (!ascii || kind == Kind::One)).then_some((kind, ascii))
}

/// Surrogates (of file names that are not UTF-8) become the replacement character.
fn decode(kind: Kind, bytes: &[u8]) -> String {
    let character = |code| char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
    match kind {
        Kind::One => bytes.iter().copied().map(char::from).collect(),
        Kind::Two => {
            let (units, _) = bytes.as_chunks();
            units.iter().map(|&unit| character(u32::from(u16::from_le_bytes(unit)))).collect()
        }
        Kind::Four => {
            let (codes, _) = bytes.as_chunks();
            codes.iter().map(|&code| character(u32::from_le_bytes(code))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CUT, MAX_CHARACTERS, read};
    use crate::gap::Gap;
    use crate::runtime::cpython::offsets::of_minor;
    use crate::runtime::cpython::pages::CopiedPages;

    /// Interned, compact; the kind and whether it is ASCII differ.
    const ASCII: u32 = 1 << 6 | 1 << 5 | 1 << 2 | 1;
    const LATIN_1: u32 = 1 << 5 | 1 << 2 | 1;
    const TWO_BYTES: u32 = 1 << 5 | 2 << 2 | 1;
    const FOUR_BYTES: u32 = 1 << 5 | 4 << 2 | 1;

    const ADDRESS: u64 = 0x7000;

    /// Reads back a string object as `minor` would lay it out.
    fn read_back(minor: u8, state: u32, length: u64, data: &[u8]) -> Result<String, Gap> {
        let layout = of_minor(minor).expect("known").text;
        let at = if state == ASCII { layout.ascii_data } else { layout.compact_data };
        let mut pages = CopiedPages::default();
        pages.put(ADDRESS, &[0; 72]);
        pages.put_u64(ADDRESS + u64::from(layout.length), length);
        pages.put(ADDRESS + u64::from(layout.state), &state.to_le_bytes());
        pages.put(ADDRESS + u64::from(at), data);
        read(&pages, &layout, ADDRESS, "name")
    }

    /// All four forms, in the short and the long header, before and after 3.12.
    #[test]
    fn every_form() {
        for minor in [8, 11, 12, 13, 14, 15] {
            let text = |state, length, data: &[u8]| {
                read_back(minor, state, length, data).expect("readable")
            };
            assert_eq!(text(ASCII, 7, b"handler"), "handler");
            assert_eq!(text(LATIN_1, 5, b"Gr\xf6\xdfe"), "Größe");
            assert_eq!(text(TWO_BYTES, 2, &[0x2c, 0x67, 0x9e, 0x8a]), "本語");
            assert_eq!(text(FOUR_BYTES, 1, &[0x4a, 0xd4, 0x01, 0]), "\u{1d44a}");
            assert_eq!(text(ASCII, 0, b""), "");
        }
    }

    /// Half a surrogate pair and a number that is no character do not break the text around them.
    #[test]
    fn unencodable_characters() {
        let text = read_back(12, TWO_BYTES, 2, &[0x80, 0xdc, 0x41, 0]).expect("readable");
        assert_eq!(text, "\u{fffd}A");
        let text = read_back(12, FOUR_BYTES, 1, &[0xff; 4]).expect("readable");
        assert_eq!(text, "\u{fffd}");
    }

    /// A length that memory does not bear out is a gap, and one beyond the bound is cut.
    #[test]
    fn absurd_lengths() {
        let gap = read_back(12, ASCII, u64::MAX, b"short").expect_err("the data ends");
        assert!(gap.0.starts_with("name: "), "{gap}");
        let long = vec![b'x'; MAX_CHARACTERS + 1];
        let text = read_back(12, ASCII, long.len() as u64, &long).expect("readable");
        assert_eq!(text.chars().count(), MAX_CHARACTERS + 1);
        assert!(text.ends_with(CUT));
    }

    /// What has not the bits of a compact string is not read as one.
    #[test]
    fn not_a_string() {
        for state in [0, u32::MAX, ASCII & !(1 << 5), ASCII | 2 << 2, 3 << 2 | 1 << 5] {
            assert!(read_back(12, state, 1, b"x").is_err(), "{state:#b}");
        }
        let layout = of_minor(12).expect("known").text;
        assert!(read(&CopiedPages::default(), &layout, ADDRESS, "name").is_err());
    }
}
