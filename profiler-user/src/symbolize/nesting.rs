//! Debug information to the promise that reading it neither nests without bound nor multiplies.
//!
//! What reads inlined functions calls itself once for each that lies within another. Compilers nest
//! them a few dozen deep; a forged file may nest millions, and a stack that overflows ends us.

use std::io;

use gimli::{Abbreviations, DebugAbbrev, DebugAbbrevOffset, DebugInfo, LittleEndian, UnitHeader};

/// Entries within entries at most. In large programs of C++ and Rust there are about fifty.
const MAX_DEPTH: isize = 256;

/// Units at most: source files, about. Each takes memory of its own once it is looked at.
const MAX_UNITS: usize = 64 * 1024;

/// Bytes of a unit's length, in the longer of its two forms.
const LENGTH_BYTES: u64 = 12;

/// Where a length in 64 bits follows.
const LONG_FORM: u32 = 0xffff_ffff;

type Bytes<'a> = gimli::EndianSlice<'a, LittleEndian>;

/// Reads all units of `.debug_info`, which has `length` bytes, one after another.
pub fn check(
    length: u64,
    read: impl Fn(u64, &mut [u8]) -> io::Result<()>,
    abbreviations: &[u8],
) -> Result<(), String> {
    let abbreviations = DebugAbbrev::new(abbreviations, LittleEndian);
    let mut last = None;
    let (mut at, mut units) = (0, 0);
    let mut unit = Vec::new();
    while at < length {
        units += 1;
        if units > MAX_UNITS {
            return Err(format!("its debug information has more than {MAX_UNITS} units"));
        }
        let left = length - at;
        let mut begin = [0; LENGTH_BYTES as usize];
        let known = LENGTH_BYTES.min(left) as usize;
        read(at, &mut begin[..known]).map_err(|error| error.to_string())?;
        // Beyond what ends within itself nobody reads.
        let Some(whole) = unit_bytes(begin).filter(|whole| *whole <= left) else { return Ok(()) };
        unit.resize(usize::try_from(whole).map_err(|error| error.to_string())?, 0);
        read(at, &mut unit).map_err(|error| error.to_string())?;
        at += whole;
        if let Ok(Some(header)) = DebugInfo::new(&unit, LittleEndian).units().next() {
            check_unit(&header, &abbreviations, &mut last)?;
        }
    }
    Ok(())
}

/// A unit's length together with the field that tells it.
fn unit_bytes(begin: [u8; LENGTH_BYTES as usize]) -> Option<u64> {
    let [a, b, c, d, long @ ..] = begin;
    match u32::from_le_bytes([a, b, c, d]) {
        LONG_FORM => u64::from_le_bytes(long).checked_add(LENGTH_BYTES),
        short => Some(u64::from(short) + 4),
    }
}

/// `last` are the abbreviations of the unit before, which many units share.
fn check_unit(
    header: &UnitHeader<Bytes<'_>>,
    all: &DebugAbbrev<Bytes<'_>>,
    last: &mut Option<(DebugAbbrevOffset, Abbreviations)>,
) -> Result<(), String> {
    let offset = header.debug_abbrev_offset();
    if last.as_ref().is_none_or(|(known, _)| *known != offset) {
        let Ok(found) = header.abbreviations(all) else { return Ok(()) };
        *last = Some((offset, found));
    }
    let Some((_, abbreviations)) = last else { return Ok(()) };
    let Ok(mut entries) = header.entries_raw(abbreviations, None) else { return Ok(()) };
    while !entries.is_empty() {
        if entries.next_depth() > MAX_DEPTH {
            return Err(format!("its debug information nests more than {MAX_DEPTH} entries deep"));
        }
        // Where an entry cannot be read, whoever reads the unit stops as well.
        let Ok(abbreviation) = entries.read_abbreviation() else { return Ok(()) };
        let Some(abbreviation) = abbreviation else { continue };
        if entries.skip_attributes(abbreviation.attributes()).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{MAX_DEPTH, MAX_UNITS, check};

    /// An inlined function without attributes that has others within it.
    const ABBREVIATIONS: [u8; 7] = [1, 0x1d, 1, 0, 0, 0, 0];

    /// A unit of version 4 with so many inlined functions within each other.
    fn unit(depth: usize) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&[4, 0, 0, 0, 0, 0, 8]);
        bytes.resize(bytes.len() + depth, 1);
        let length = bytes.len() as u32 - 4;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    fn found(info: &[u8]) -> Result<(), String> {
        let read = |at: u64, buffer: &mut [u8]| {
            buffer.copy_from_slice(&info[at as usize..][..buffer.len()]);
            Ok(())
        };
        check(info.len() as u64, read, &ABBREVIATIONS)
    }

    /// As deep as compilers nest, and deeper, also in a unit that is not the first.
    #[test]
    fn depth() {
        let (deep, deeper) = (MAX_DEPTH as usize, MAX_DEPTH as usize + 2);
        assert_eq!(found(&[unit(3), unit(deep)].concat()), Ok(()));
        assert!(found(&[unit(3), unit(deeper)].concat()).unwrap_err().contains("nests"));
    }

    /// Many units, and one that claims more than there is.
    #[test]
    fn units() {
        assert!(found(&unit(0).repeat(MAX_UNITS + 1)).unwrap_err().contains("units"));
        let mut cut = unit(9);
        cut.pop();
        assert_eq!(found(&cut), Ok(()));
        assert_eq!(found(&[0xff; 12]), Ok(()));
        assert_eq!(found(&[1]), Ok(()));
    }
}
