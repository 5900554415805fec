//! An ELF file to the few facts of it that unwinding and naming need: where its segments and tables
//! lie, and which build it is.
//!
//! The file is the target's, so nothing in it is believed: counts and sizes are bounded before
//! anything is read, and only headers are kept. Tables are read when the first frame needs them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use object::elf::{self, FileHeader64};
use object::read::elf::{CompressionHeader, FileHeader, ProgramHeader, SectionHeader};
use object::{Endianness, ReadCache, ReadRef};

/// Program headers read at most; linkers write about a dozen.
pub const MAX_SEGMENTS: u32 = 256;

/// Section headers read at most: 64 bytes each. Linked images have about forty.
pub const MAX_SECTIONS: u32 = 4096;

/// Bytes of notes read at most; a build id takes 36.
const MAX_NOTE_BYTES: u64 = 64 * 1024;

/// Bytes of one table read at most. Chromium's `.eh_frame`, the largest in common use, has about 20 MB.
const MAX_TABLE_BYTES: u64 = 32 * 1024 * 1024;

/// What tells one image from another: names found in one are good for every image of equal identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    BuildId(Vec<u8>),
    /// An image without a build id is equal to itself only.
    Numbered(u64),
}

/// A section: where it lies in the image's own address space and in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    pub address: Range<u64>,
    pub file: Range<u64>,
}

/// A loadable segment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    executable: bool,
    address: u64,
    offset: u64,
    file_bytes: u64,
}

/// What an image's bytes come from.
#[derive(Debug)]
enum Source {
    File(File),
    Memory(Vec<u8>),
}

/// An ELF image that is mapped into the target, or the separate debug file of one.
#[derive(Debug)]
pub struct Image {
    source: Source,
    identity: Identity,
    headers: Headers,
}

/// Where symbols stand, and which words of the image the loader binds to some of them.
#[derive(Debug, Default)]
pub struct SymbolTables {
    pub symbols: Option<Section>,
    pub dynamic_symbols: Option<Section>,
    pub dynamic_names: Option<Section>,
    pub relocations: Option<Section>,
    pub plt_relocations: Option<Section>,
}

#[derive(Debug, Default)]
struct Headers {
    segments: Vec<Segment>,
    build_id: Option<Vec<u8>>,
    eh_frame: Option<Section>,
    eh_frame_hdr: Option<Section>,
    text: Option<Section>,
    got: Option<Section>,
    debug_link: Option<Section>,
    symbol_tables: SymbolTables,
    go_build_info: Option<Section>,
    is_go: bool,
    debug_bytes: u64,
    compressed_debug_bytes: u64,
}

impl Image {
    /// `number` becomes the identity of an image without a build id. Keeps the file open.
    pub fn from_file(file: File, number: u64) -> Result<Self, String> {
        let metadata = file.metadata().map_err(|error| error.to_string())?;
        if !metadata.is_file() {
            return Err("it is not a regular file".to_owned());
        }
        let headers = Headers::read(&ReadCache::new(&file))?;
        Ok(Self::new(Source::File(file), headers, number))
    }

    /// The same from bytes that were read out of the target: the vdso has no file.
    pub fn from_memory(bytes: Vec<u8>, number: u64) -> Result<Self, String> {
        let headers = Headers::read(bytes.as_slice())?;
        Ok(Self::new(Source::Memory(bytes), headers, number))
    }

    fn new(source: Source, headers: Headers, number: u64) -> Self {
        let identity =
            headers.build_id.clone().map_or(Identity::Numbered(number), Identity::BuildId);
        Self { source, identity, headers }
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn build_id(&self) -> Option<&[u8]> {
        self.headers.build_id.as_deref()
    }

    /// A path under which this process finds the very file that is mapped, whatever became of its
    /// name: good for as long as the image lives. `None` for an image that was read from memory.
    pub fn path(&self) -> Option<PathBuf> {
        match &self.source {
            Source::File(file) => Some(format!("/proc/self/fd/{}", file.as_raw_fd()).into()),
            Source::Memory(_) => None,
        }
    }

    /// The bytes of an image that was read from memory.
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.source {
            Source::File(_) => None,
            Source::Memory(bytes) => Some(bytes),
        }
    }

    /// The address that the image itself states for a byte of its file, with executable segments
    /// before others: neighbouring segments may share a page of the file.
    pub fn address_of(&self, offset: u64) -> Option<u64> {
        let covering = |executable| {
            self.headers.segments.iter().find_map(move |segment| {
                (segment.executable == executable).then(|| segment.address_of(offset)).flatten()
            })
        };
        covering(true).or_else(|| covering(false))
    }

    /// The lowest address that the image states for itself, at a page's beginning.
    pub fn lowest_address(&self) -> u64 {
        let addresses = self.headers.segments.iter().map(|segment| segment.address & !PAGE_MASK);
        addresses.min().unwrap_or(0)
    }

    pub fn eh_frame(&self) -> Option<&Section> {
        self.headers.eh_frame.as_ref()
    }

    pub fn eh_frame_hdr(&self) -> Option<&Section> {
        self.headers.eh_frame_hdr.as_ref()
    }

    pub fn text(&self) -> Option<&Section> {
        self.headers.text.as_ref()
    }

    pub fn got(&self) -> Option<&Section> {
        self.headers.got.as_ref()
    }

    /// `.gnu_debuglink`: the name of the separate debug file, and its checksum.
    pub fn debug_link(&self) -> Option<&Section> {
        self.headers.debug_link.as_ref()
    }

    /// Whether Go's compiler made it: it has that one's table of functions.
    pub fn is_go(&self) -> bool {
        self.headers.is_go || self.headers.go_build_info.is_some()
    }

    /// `.go.buildinfo`: by which version of Go.
    pub fn go_build_info(&self) -> Option<&Section> {
        self.headers.go_build_info.as_ref()
    }

    pub fn symbol_tables(&self) -> &SymbolTables {
        &self.headers.symbol_tables
    }

    /// Bytes of debug information, as they are once decompressed; 0 where there is none.
    pub fn debug_bytes(&self) -> u64 {
        self.headers.debug_bytes
    }

    /// The part of [`Self::debug_bytes`] that has to be decompressed into memory of our own.
    pub fn compressed_debug_bytes(&self) -> u64 {
        self.headers.compressed_debug_bytes
    }

    /// All bytes of a section, if it is not larger than any real one.
    pub fn read(&self, section: &Section) -> Result<Vec<u8>, String> {
        let length = section.file.end.saturating_sub(section.file.start);
        if length > MAX_TABLE_BYTES {
            return Err(format!("the table has {length} bytes, more than {MAX_TABLE_BYTES}"));
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(|error| error.to_string())?];
        self.read_at(section.file.start, &mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    /// Fills the buffer from an offset in the file.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match &self.source {
            Source::File(file) => file.read_exact_at(buffer, offset),
            Source::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(buffer.len());
                let found = bytes.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
                buffer.copy_from_slice(found);
                Ok(())
            }
        }
    }
}

/// The build that the first bytes of an image say it is of, as they are mapped: its notes stand among them.
pub fn build_id_at_start(bytes: &[u8]) -> Option<Vec<u8>> {
    let header = FileHeader64::<Endianness>::parse(bytes).ok()?;
    let mut headers = Headers::default();
    // Other notes may lie behind these bytes.
    let _ = headers.read_segments(header, header.endian().ok()?, bytes);
    headers.build_id
}

/// The part of an offset within its page: files are mapped by whole pages.
const PAGE_MASK: u64 = 4095;

impl Segment {
    /// Also for the bytes before the segment's first that share its page.
    fn address_of(&self, offset: u64) -> Option<u64> {
        let first = self.offset & !PAGE_MASK;
        let end = self.offset.checked_add(self.file_bytes)?;
        if !(first..end).contains(&offset) {
            return None;
        }
        Some(self.address.wrapping_sub(self.offset).wrapping_add(offset))
    }
}

impl Headers {
    fn read<'data, R: ReadRef<'data>>(data: R) -> Result<Self, String> {
        let header = FileHeader64::<Endianness>::parse(data)
            .map_err(|_| "it is not a 64-bit ELF file".to_owned())?;
        let endian = header.endian().map_err(|error| error.to_string())?;
        if header.e_machine(endian) != elf::EM_X86_64 {
            return Err("it is not for x86-64".to_owned());
        }
        let mut headers = Self::default();
        headers.read_segments(header, endian, data).map_err(|error| error.to_string())?;
        headers.read_sections(header, endian, data).map_err(|error| error.to_string())?;
        Ok(headers)
    }

    fn read_segments<'data, R: ReadRef<'data>>(
        &mut self,
        header: &FileHeader64<Endianness>,
        endian: Endianness,
        data: R,
    ) -> object::Result<()> {
        if header.phnum(endian, data)? > MAX_SEGMENTS {
            return Ok(());
        }
        for segment in header.program_headers(endian, data)? {
            match segment.p_type(endian) {
                elf::PT_LOAD => self.segments.push(Segment {
                    executable: segment.p_flags(endian).contains(elf::PF_X),
                    address: segment.p_vaddr(endian),
                    offset: segment.p_offset(endian),
                    file_bytes: segment.p_filesz(endian),
                }),
                elf::PT_NOTE if segment.p_filesz(endian) <= MAX_NOTE_BYTES => {
                    let Some(mut notes) = segment.notes(endian, data)? else { continue };
                    while let Some(note) = notes.next()? {
                        if note.name() == elf::ELF_NOTE_GNU
                            && note.n_type(endian) == elf::NT_GNU_BUILD_ID
                        {
                            self.build_id = Some(note.desc().to_owned());
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read_sections<'data, R: ReadRef<'data>>(
        &mut self,
        header: &FileHeader64<Endianness>,
        endian: Endianness,
        data: R,
    ) -> object::Result<()> {
        if header.shnum(endian, data)? > MAX_SECTIONS {
            return Ok(());
        }
        let sections = header.sections(endian, data)?;
        for section in sections.iter() {
            let Ok(name) = sections.section_name(endian, section) else { continue };
            if name.starts_with(b".debug_") {
                let compressed = section.compression(endian, data).ok().flatten();
                let bytes = compressed.map(|(header, ..)| header.ch_size(endian));
                self.compressed_debug_bytes =
                    self.compressed_debug_bytes.saturating_add(bytes.unwrap_or(0));
                let bytes = bytes.unwrap_or(section.sh_size(endian));
                self.debug_bytes = self.debug_bytes.saturating_add(bytes);
                continue;
            }
            self.is_go |= matches!(name, b".gopclntab" | b".data.rel.ro.gopclntab");
            let place = match name {
                b".eh_frame" => &mut self.eh_frame,
                b".eh_frame_hdr" => &mut self.eh_frame_hdr,
                b".text" => &mut self.text,
                b".got" => &mut self.got,
                b".go.buildinfo" => &mut self.go_build_info,
                b".symtab" => &mut self.symbol_tables.symbols,
                b".dynsym" => &mut self.symbol_tables.dynamic_symbols,
                b".dynstr" => &mut self.symbol_tables.dynamic_names,
                b".rela.dyn" => &mut self.symbol_tables.relocations,
                b".rela.plt" => &mut self.symbol_tables.plt_relocations,
                b".gnu_debuglink" => &mut self.debug_link,
                _ => continue,
            };
            // A separate debug file has the headers of these sections, but not their bytes.
            let Some((offset, length)) = section.file_range(endian) else { continue };
            let address = section.sh_addr(endian);
            *place = Some(Section {
                address: address..address.saturating_add(length),
                file: offset..offset.saturating_add(length),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_file() -> File {
        File::open("/proc/self/exe").unwrap()
    }

    /// Our own file tells its build, its tables and its debug information, and where its code lies.
    #[test]
    fn own_image() {
        let image = Image::from_file(own_file(), 7).unwrap();
        let text = image.text().unwrap();
        assert_eq!(image.address_of(text.file.start), Some(text.address.start));
        assert!(image.debug_bytes() > 0);
        let table = image.read(image.eh_frame_hdr().unwrap()).unwrap();
        assert_eq!(table[0], 1, "the version of .eh_frame_hdr");
        assert_eq!(image.address_of(u64::MAX), None);
        match image.build_id() {
            Some(id) => assert_eq!(image.identity(), &Identity::BuildId(id.to_owned())),
            None => assert_eq!(image.identity(), &Identity::Numbered(7)),
        }
    }

    /// The beginning of an image tells its build as the whole file does; bytes that are no image tell none.
    #[test]
    fn build_of_a_beginning() {
        let maps =
            crate::process::maps::parse(&std::fs::read_to_string("/proc/self/maps").unwrap());
        let path = maps.into_iter().find_map(|region| match region.backing {
            crate::process::maps::Backing::File(path) => {
                path.to_string_lossy().contains("/libc.so").then_some(path)
            }
            _ => None,
        });
        let whole = Image::from_file(File::open(path.unwrap()).unwrap(), 0).unwrap();
        let mut start = vec![0; 4096];
        whole.read_at(0, &mut start).unwrap();
        assert!(whole.build_id().is_some());
        assert_eq!(build_id_at_start(&start).as_deref(), whole.build_id());
        assert_eq!(build_id_at_start(&start[..64]), None);
        assert_eq!(build_id_at_start(b"#!/bin/sh"), None);
    }

    /// The path of an image leads to the file that was opened.
    #[test]
    fn path_of_the_open_file() {
        use std::os::unix::fs::MetadataExt;
        let image = Image::from_file(own_file(), 0).unwrap();
        let found = std::fs::metadata(image.path().unwrap()).unwrap();
        assert_eq!(found.ino(), own_file().metadata().unwrap().ino());
    }

    /// What is no ELF file for this machine is refused with a reason.
    #[test]
    fn other_files() {
        let why = |bytes: &[u8]| Image::from_memory(bytes.to_owned(), 0).unwrap_err();
        assert!(why(b"").contains("not a 64-bit ELF"));
        assert!(why(b"#!/bin/sh\n").contains("not a 64-bit ELF"));
        let mut header = vec![0; 64];
        own_file().read_exact_at(&mut header, 0).unwrap();
        let mut other_class = header.clone();
        other_class[4] = 1;
        assert!(why(&other_class).contains("not a 64-bit ELF"));
        let mut other_machine = header.clone();
        other_machine[18] = 183;
        assert!(why(&other_machine).contains("x86-64"));
        assert!(Image::from_file(File::open("/dev/null").unwrap(), 0).is_err());
    }

    /// Whatever the first page of a file claims, reading it ends, with an image or a reason.
    #[test]
    fn forged_headers() {
        let mut page = vec![0; 4096];
        own_file().read_exact_at(&mut page, 0).unwrap();
        for index in 0..page.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let original = std::mem::replace(&mut page[index], value);
                if let Ok(image) = Image::from_memory(page.clone(), 0) {
                    image.lowest_address();
                    image.address_of(0x1000);
                    image.eh_frame().map(|section| image.read(section));
                }
                page[index] = original;
            }
        }
    }

    /// A table is not read on the word of a header that claims more than any table has.
    #[test]
    fn table_of_absurd_size() {
        let image = Image::from_file(own_file(), 0).unwrap();
        let section = Section { address: 0..1, file: 0..MAX_TABLE_BYTES + 1 };
        assert!(image.read(&section).unwrap_err().contains("more than"));
    }
}
