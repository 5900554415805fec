//! A list of hooks to an eBPF object with a program on each that does nothing: what a probe is compared with.

use anyhow::{Context as _, Result};
use object::write::{Object, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
};

/// `r0 = 0` and `exit`, as eight bytes each (Documentation/bpf/standardization/instruction-set.rst).
const RETURN_ZERO: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// The object, with a program for each (name, section); the section's name tells the loader its type.
pub fn object(programs: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let license = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    object.append_section_data(license, b"GPL\0", 1);
    for (name, section) in programs {
        let section =
            object.add_section(Vec::new(), section.as_bytes().to_vec(), SectionKind::Text);
        let value = object.append_section_data(section, &RETURN_ZERO, 8);
        object.add_symbol(Symbol {
            name: name.as_bytes().to_vec(),
            value,
            size: RETURN_ZERO.len() as u64,
            kind: SymbolKind::Text,
            scope: SymbolScope::Linkage,
            weak: false,
            section: SymbolSection::Section(section),
            flags: SymbolFlags::None,
        });
    }
    object.write().context("the empty programs cannot be written as ELF")
}
