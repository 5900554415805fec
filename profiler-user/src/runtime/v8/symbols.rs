//! A mapped ELF file to those of its symbols that tell how to read V8's heap and where its builtins lie.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;

use object::LittleEndian;
use object::elf::{self, FileHeader64, ProgramHeader64, SectionHeader64, Sym64};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, SectionTable, Sym};
use object::read::{ReadCache, ReadRef};

/// Bytes read of one symbol or string table at most. Of node 24, the names take 12 MB.
const MAX_TABLE_BYTES: u64 = 64 << 20;

/// Constants taken at most; V8 exports about 500.
const MAX_CONSTANTS: usize = 4096;

const ENDIAN: LittleEndian = LittleEndian;

/// What V8 exports for debuggers: `int` variables, each the value of one constant.
const CONSTANT: &[u8] = b"v8dbg_";

/// The code that V8 compiled for itself when it was built, in one piece of the text.
const BUILTIN: &[u8] = b"Builtins_";

/// V8's version, four `int` variables.
const VERSION: [&[u8]; 4] = [
    b"_ZN2v88internal7Version6major_E",
    b"_ZN2v88internal7Version6minor_E",
    b"_ZN2v88internal7Version6build_E",
    b"_ZN2v88internal7Version6patch_E",
];

/// `node::per_process::metadata`, which begins with node's version as a `std::string`.
const METADATA: &[u8] = b"_ZN4node11per_process8metadataE";

/// Addresses as the file states them.
#[derive(Debug, Default)]
pub struct Symbols {
    /// By name, without the prefix that all of them have.
    pub constants: HashMap<String, u64>,
    pub version: [Option<u64>; 4],
    pub metadata: Option<u64>,
    /// The builtins, as offsets in the file; `None` where the file is stripped of their names.
    pub builtins: Option<Range<u64>>,
}

impl Symbols {
    /// A file that brings no V8 has no constants.
    pub fn read(file: &File) -> Result<Self, String> {
        Self::parse(&ReadCache::new(file)).map_err(|error| error.to_string())
    }

    fn parse<'data, R: ReadRef<'data>>(data: R) -> object::Result<Self> {
        let mut found = Self::default();
        let header = FileHeader64::<LittleEndian>::parse(data)?;
        // Without these two, other numbers of the file would say how much to read.
        let counted = header.e_shnum(ENDIAN) != 0 || header.e_shoff(ENDIAN) == 0;
        if !header.is_little_endian() || !counted || header.e_phnum(ENDIAN) == elf::PN_XNUM {
            return Ok(found);
        }
        let sections = header.sections(ENDIAN, data)?;
        each_symbol(&sections, elf::SHT_DYNSYM, data, |name, symbol| found.exported(name, symbol))?;
        if found.constants.is_empty() {
            return Ok(found);
        }
        let mut builtins: Option<Range<u64>> = None;
        each_symbol(&sections, elf::SHT_SYMTAB, data, |name, symbol| {
            if name.starts_with(BUILTIN) && symbol.st_type() == elf::STT_FUNC {
                let start = symbol.st_value(ENDIAN);
                let end = start.saturating_add(symbol.st_size(ENDIAN));
                let all = builtins.get_or_insert(start..end);
                *all = all.start.min(start)..all.end.max(end);
            }
        })?;
        let segments = header.program_headers(ENDIAN, data)?;
        found.builtins = builtins.and_then(|addresses| in_file(segments, &addresses));
        Ok(found)
    }

    fn exported(&mut self, name: &[u8], symbol: &Sym64<LittleEndian>) {
        let address = symbol.st_value(ENDIAN);
        if let Some(constant) = name.strip_prefix(CONSTANT) {
            if let Ok(constant) = std::str::from_utf8(constant)
                && self.constants.len() < MAX_CONSTANTS
            {
                self.constants.insert(constant.to_owned(), address);
            }
        } else if let Some(part) = VERSION.iter().position(|version| *version == name) {
            self.version[part] = Some(address);
        } else if name == METADATA {
            self.metadata = Some(address);
        }
    }
}

/// Calls `take` for each symbol that is defined in tables of this type.
fn each_symbol<'data, R: ReadRef<'data>>(
    sections: &SectionTable<'data, FileHeader64<LittleEndian>, R>,
    table_type: elf::SectionType,
    data: R,
    mut take: impl FnMut(&[u8], &Sym64<LittleEndian>),
) -> object::Result<()> {
    let is_wanted =
        |section: &&SectionHeader64<LittleEndian>| section.sh_type(ENDIAN) == table_type;
    for section in sections.iter().filter(is_wanted) {
        let strings = sections.section(section.link(ENDIAN))?;
        if [section, strings].iter().any(|table| table.sh_size(ENDIAN) > MAX_TABLE_BYTES) {
            continue;
        }
        let names = strings.data(ENDIAN, data)?;
        let table: &[Sym64<LittleEndian>] = section.data_as_array(ENDIAN, data)?;
        for symbol in table.iter().filter(|symbol| !symbol.is_undefined(ENDIAN)) {
            let name = names.get(symbol.st_name(ENDIAN) as usize..).unwrap_or_default();
            // Most names are of no interest, and long: only those that may be are measured.
            if name.starts_with(CONSTANT) || name.starts_with(BUILTIN) || name.starts_with(b"_ZN") {
                let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
                take(&name[..end], symbol);
            }
        }
    }
    Ok(())
}

fn in_file(
    segments: &[ProgramHeader64<LittleEndian>],
    addresses: &Range<u64>,
) -> Option<Range<u64>> {
    let segment = segments.iter().find(|segment| {
        let start = segment.p_vaddr(ENDIAN);
        let end = start.saturating_add(segment.p_filesz(ENDIAN));
        segment.p_type(ENDIAN) == elf::PT_LOAD && start <= addresses.start && addresses.end <= end
    })?;
    let offset = |address: u64| address - segment.p_vaddr(ENDIAN) + segment.p_offset(ENDIAN);
    Some(offset(addresses.start)..offset(addresses.end))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::Symbols;

    /// A program without V8 has neither constants nor builtins, and what is no program at all is told.
    #[test]
    fn files_without_v8() {
        let own = Symbols::read(&File::open("/proc/self/exe").unwrap()).unwrap();
        assert!(own.constants.is_empty() && own.builtins.is_none() && own.metadata.is_none());
        assert!(Symbols::read(&File::open("/proc/self/maps").unwrap()).is_err());
    }
}
