//! An image's symbol tables to where its functions lie, and to what it imports by which word.
//!
//! Read only of images in which a stack is cut. Names stay bytes: they are compared, never shown.

use std::collections::HashMap;
use std::ops::Range;

use crate::process::image::{Identity, Image, Section};

/// Functions of one image at most. Chromium has about a million; a program that is not stripped and
/// linked statically has ten thousand.
const MAX_FUNCTIONS: usize = 1 << 20;

/// Exported functions and imports of one image at most.
const MAX_NAMES: usize = 1 << 16;

/// Symbol tables kept at the same time.
const MAX_IMAGES: usize = 4;

/// Bytes of a name at most; others are left out.
const MAX_NAME_BYTES: usize = 256;

const SYMBOL_BYTES: usize = 24;
const RELOCATION_BYTES: usize = 24;

/// `STT_FUNC`, and the types of relocations that bind a word to a function.
const FUNCTION: u8 = 2;
const GLOB_DAT: u32 = 6;
const JUMP_SLOT: u32 = 7;

/// All addresses are the image's own.
#[derive(Debug, Default)]
pub struct Functions {
    /// Beginning and length, by address. The length is 0 where assembly states none.
    ranges: Vec<(u64, u64)>,
    exports: HashMap<Box<[u8]>, u64>,
    imports: HashMap<u64, Box<[u8]>>,
}

/// One entry of a symbol table.
struct Symbol {
    name: u32,
    is_function: bool,
    is_defined: bool,
    address: u64,
    bytes: u64,
}

impl Functions {
    /// What cannot be read is not there.
    pub fn of(image: &Image) -> Self {
        let tables = image.symbol_tables();
        let read = |section: &Option<Section>| {
            section.as_ref().and_then(|section| image.read(section).ok()).unwrap_or_default()
        };
        let mut found = Self::default();
        found.take_ranges(&read(&tables.symbols));
        let (dynamic, names) = (read(&tables.dynamic_symbols), read(&tables.dynamic_names));
        found.take_ranges(&dynamic);
        found.ranges.sort_unstable();
        // Of several names of one function the one that knows its length.
        found.ranges.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            kept.1 = if same { kept.1.max(next.1) } else { kept.1 };
            same
        });
        found.take_exports(&dynamic, &names);
        for relocations in [&tables.relocations, &tables.plt_relocations] {
            found.take_imports(&read(relocations), &dynamic, &names);
        }
        found
    }

    /// The function that holds an address.
    pub fn at(&self, address: u64) -> Option<Range<u64>> {
        let after = self.ranges.partition_point(|(start, _)| *start <= address);
        let (start, bytes) = *self.ranges.get(after.checked_sub(1)?)?;
        let end = match bytes {
            0 => self.ranges.get(after).map_or(u64::MAX, |(next, _)| *next),
            _ => start.saturating_add(bytes),
        };
        (address < end).then_some(start..end)
    }

    /// Where the exported function of this name begins.
    pub fn export(&self, name: &[u8]) -> Option<u64> {
        self.exports.get(name).copied()
    }

    /// The name of the function that the loader binds the word at this address to.
    pub fn import(&self, word: u64) -> Option<&[u8]> {
        self.imports.get(&word).map(AsRef::as_ref)
    }

    fn take_ranges(&mut self, table: &[u8]) {
        let functions = symbols(table).filter(|symbol| symbol.is_function && symbol.is_defined);
        let left = MAX_FUNCTIONS.saturating_sub(self.ranges.len());
        self.ranges.extend(functions.map(|symbol| (symbol.address, symbol.bytes)).take(left));
    }

    fn take_exports(&mut self, dynamic: &[u8], names: &[u8]) {
        let functions = symbols(dynamic).filter(|symbol| symbol.is_function && symbol.is_defined);
        let named =
            functions.filter_map(|symbol| Some((name(names, symbol.name)?, symbol.address)));
        self.exports.extend(named.take(MAX_NAMES));
    }

    fn take_imports(&mut self, relocations: &[u8], dynamic: &[u8], names: &[u8]) {
        for entry in relocations.chunks_exact(RELOCATION_BYTES).take(MAX_NAMES) {
            let (Some(word), Some(info)) = (u64_at(entry, 0), u64_at(entry, 8)) else { continue };
            let (kind, index) = (info as u32, (info >> 32) as usize);
            let bytes = index.checked_mul(SYMBOL_BYTES).and_then(|at| dynamic.get(at..));
            let symbol = bytes.and_then(symbol).filter(|_| matches!(kind, GLOB_DAT | JUMP_SLOT));
            if let Some(name) = symbol.and_then(|symbol| name(names, symbol.name)) {
                self.imports.insert(word, name);
            }
        }
    }
}

fn symbols(table: &[u8]) -> impl Iterator<Item = Symbol> {
    table.chunks_exact(SYMBOL_BYTES).filter_map(symbol)
}

fn symbol(bytes: &[u8]) -> Option<Symbol> {
    let name = u32::from_le_bytes(*bytes.first_chunk()?);
    let (kind, section) =
        (bytes.get(4)? & 0xf, u16::from_le_bytes([*bytes.get(6)?, *bytes.get(7)?]));
    Some(Symbol {
        name,
        is_function: kind == FUNCTION,
        is_defined: section != 0,
        address: u64_at(bytes, 8)?,
        bytes: u64_at(bytes, 16)?,
    })
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn name(names: &[u8], at: u32) -> Option<Box<[u8]>> {
    let tail = names.get(usize::try_from(at).ok()?..)?;
    let bytes = tail.get(..MAX_NAME_BYTES.min(tail.len()))?;
    let end = bytes.iter().position(|byte| *byte == 0)?;
    (end > 0).then(|| bytes[..end].into())
}

/// The symbol tables that were needed last.
#[derive(Debug, Default)]
pub struct RecentSymbols(Vec<(Identity, Functions)>);

impl RecentSymbols {
    pub fn of(&mut self, image: &Image) -> &Functions {
        let known = self.0.iter().position(|(identity, _)| identity == image.identity());
        let known = known.unwrap_or_else(|| {
            if self.0.len() >= MAX_IMAGES {
                self.0.remove(0);
            }
            self.0.push((image.identity().clone(), Functions::of(image)));
            self.0.len() - 1
        });
        &self.0[known].1
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::{Functions, name};
    use crate::process::image::Image;

    /// Our own functions are found by their addresses, and what we import by the words for it; libc
    /// exports it.
    #[test]
    fn own_functions() {
        let image = Image::from_file(File::open("/proc/self/exe").unwrap(), 0).unwrap();
        let functions = Functions::of(&image);
        let range = functions.ranges.iter().find(|(_, bytes)| *bytes > 16).copied().unwrap();
        assert_eq!(functions.at(range.0), functions.at(range.0 + 15));
        assert_eq!(functions.at(range.0).unwrap().start, range.0);
        assert_eq!(functions.at(0), None);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let libc = maps
            .lines()
            .find_map(|line| {
                line.split_whitespace().nth(5).filter(|path| path.contains("/libc.so"))
            })
            .unwrap();
        let libc = Functions::of(&Image::from_file(File::open(libc).unwrap(), 0).unwrap());
        let imported = functions.imports.values().filter(|name| libc.export(name).is_some());
        assert!(imported.count() > 10);
        let word = functions.imports.keys().next().copied().unwrap();
        assert!(functions.import(word).is_some());
        assert!(functions.import(word.wrapping_add(1)).is_none());
    }

    /// Names end; one that does not is none.
    #[test]
    fn names() {
        assert_eq!(name(b"\0read\0", 1).as_deref(), Some(&b"read"[..]));
        for at in [0, 5, 6, 900, u32::MAX] {
            assert_eq!(name(b"\0read\0", at), None, "{at}");
        }
        assert_eq!(name(&[b'a'; 4096], 0), None);
        assert_eq!(name(b"read", 0), None, "not ended");
    }
}
