//! A file that the target has mapped to a copy of what naming needs of it, which nobody else can change.
//!
//! Whoever controls the target may write to its files at any moment. What names symbols maps whole
//! files: a file that is cut off meanwhile would end us (`SIGBUS`), and one that is exchanged would
//! not be the one whose headers were checked. It also inflates whatever a section says, however much
//! that is, and opens other files by names that it finds. The copy lies in memory of ours, has the
//! headers and the few sections that names come from, inflated within bounds, and leads nowhere else.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use object::elf;
use rustix::fs::{MemfdFlags, memfd_create};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::process::image::{Image, MAX_SECTIONS, MAX_SEGMENTS};
use crate::symbolize::nesting;

/// Bytes of symbols and their names copied at most. node has 12 MB, an unstripped Chromium more than
/// this.
const MAX_SYMBOL_BYTES: u64 = 128 * 1024 * 1024;

/// Bytes of line tables used at most: each may stand for a line in memory, thirty times as large.
/// libpython has 2.5 MB.
const MAX_LINE_BYTES: u64 = 16 * 1024 * 1024;

/// Bytes of the names of sections read at most.
const MAX_NAME_BYTES: u64 = 1024 * 1024;

/// Debug information used at most. Of libpython's 16 MB, 12 are copied.
pub(super) const MAX_DEBUG_BYTES: u64 = 128 * 1024 * 1024;

/// Bytes of the whole copy at most.
const MAX_BYTES: u64 = MAX_DEBUG_BYTES + MAX_SYMBOL_BYTES;

/// Of a compressed stream, the binary logarithm of the bytes that it may refer back to.
const MAX_WINDOW_LOG: u32 = 23;

/// Bytes that the compressed symbols that Fedora adds to stripped files may have at most, inflated. Its
/// libpython, with 20,000 functions, has 1.5 MB.
const MAX_ADDED_BYTES: u64 = 16 * 1024 * 1024;

/// Memory that inflating them may take. `xz -9` needs 65 MB.
const MAX_XZ_MEMORY: u64 = 80 * 1024 * 1024;

/// Bytes copied at once; more would not stay in the caches of a CPU.
const CHUNK: usize = 64 * 1024;

/// Where sections begin: tables of symbols are read in place.
const ALIGNMENT: u64 = 16;

const SYMBOLS: [&[u8]; 4] = [b".symtab", b".strtab", b".dynsym", b".dynstr"];

/// Symbols of a stripped file, which take the place of `.symtab`.
const COMPRESSED_SYMBOLS: &[u8] = b".gnu_debugdata";

const LINES: &[u8] = b".debug_line";

/// What lines and inlined functions are read from; where variables lie is in other sections.
const DEBUG: [&[u8]; 10] = [
    LINES,
    b".debug_abbrev",
    b".debug_addr",
    b".debug_aranges",
    b".debug_info",
    b".debug_line_str",
    b".debug_ranges",
    b".debug_rnglists",
    b".debug_str",
    b".debug_str_offsets",
];

/// `Elf64_Ehdr`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct FileHeader {
    identity: [u8; 16],
    kind: u16,
    machine: u16,
    version: u32,
    entry: u64,
    segments_at: u64,
    sections_at: u64,
    flags: u32,
    header_bytes: u16,
    segment_bytes: u16,
    segments: u16,
    section_bytes: u16,
    sections: u16,
    names_index: u16,
}

/// `Elf64_Phdr`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct SegmentHeader([u64; 7]);

/// `Elf64_Shdr`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct SectionHeader {
    name: u32,
    kind: u32,
    flags: u64,
    address: u64,
    offset: u64,
    bytes: u64,
    link: u32,
    info: u32,
    alignment: u64,
    entry_bytes: u64,
}

/// `Elf64_Chdr`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct CompressionHeader {
    kind: u32,
    reserved: u32,
    bytes: u64,
    alignment: u64,
}

/// A copy, for as long as it lives.
#[derive(Debug)]
pub struct Snapshot {
    file: File,
    bytes: u64,
    /// Bytes that sections may still be inflated to.
    inflatable: u64,
    /// Why symbols that the file has are not in the copy.
    left_out: Option<String>,
}

impl Snapshot {
    /// Of an image's symbols, and of its debug information if that is wanted.
    pub fn of(image: &Image, with_debug: bool, most_inflated: u64) -> Result<Self, String> {
        let file = memfd_create("stalltrace-symbols", MemfdFlags::CLOEXEC)
            .map_err(|error| error.to_string())?;
        let file = File::from(file);
        let mut copy = Self { file, bytes: 0, inflatable: most_inflated, left_out: None };
        copy.fill(image, with_debug)?;
        Ok(copy)
    }

    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Why symbols that the file has cannot be found in the copy.
    pub fn left_out(&self) -> Option<&str> {
        self.left_out.as_deref()
    }

    fn fill(&mut self, image: &Image, with_debug: bool) -> Result<(), String> {
        let mut head = table::<FileHeader>(image, 0, 1)?.pop().ok_or("it has no header")?;
        if u32::from(head.segments) > MAX_SEGMENTS || u32::from(head.sections) > MAX_SECTIONS {
            return Err("it has more segments or sections than any linked file".to_owned());
        }
        let segments = table::<SegmentHeader>(image, head.segments_at, head.segments)?;
        let mut sections = table::<SectionHeader>(image, head.sections_at, head.sections)?;
        let names =
            sections.get(usize::from(head.names_index)).ok_or("its sections have no names")?;
        let mut names = bytes(image, names.offset, names.bytes.min(MAX_NAME_BYTES))?;

        self.append(head.as_bytes())?;
        head.segments_at = self.append(segments.as_bytes())?;
        let mut symbol_bytes = 0;
        let mut seen = HashSet::new();
        for section in &mut sections {
            let name = name(&names, section.name);
            // Of two with one name the first is found.
            if section.kind == elf::SHT_NOBITS.0 || !seen.insert(name) {
                section.forget();
            } else if SYMBOLS.contains(&name) {
                symbol_bytes = section.bytes.saturating_add(symbol_bytes);
                if symbol_bytes > MAX_SYMBOL_BYTES {
                    return Err(format!("its symbols have more than {MAX_SYMBOL_BYTES} bytes"));
                }
                self.copy(image, section)?;
            } else if name == COMPRESSED_SYMBOLS {
                if inflates(image, section)? {
                    self.copy(image, section)?;
                } else {
                    let why = format!("its added symbols have more than {MAX_ADDED_BYTES} bytes");
                    self.left_out = Some(why);
                    section.forget();
                }
            } else if with_debug && DEBUG.contains(&name) {
                self.copy_debug(image, section)?;
                if name == LINES && section.bytes > MAX_LINE_BYTES {
                    return Err(format!("its line tables have more than {MAX_LINE_BYTES} bytes"));
                }
            } else {
                section.forget();
            }
        }
        if with_debug {
            self.check_nesting(&sections, &names)?;
        }
        // The name of what was left out.
        if let Some(first) = names.first_mut() {
            *first = 0;
        }
        let bytes = names.len() as u64;
        let offset = self.append(&names)?;
        let index = usize::from(head.names_index);
        if let Some(names) = sections.get_mut(index) {
            *names = SectionHeader { kind: elf::SHT_STRTAB.0, flags: 0, offset, bytes, ..*names };
        }
        head.sections_at = self.append(sections.as_bytes())?;
        self.write(head.as_bytes(), 0)
    }

    fn copy(&mut self, image: &Image, section: &mut SectionHeader) -> Result<(), String> {
        let from = section.offset;
        section.offset = self.room(section.bytes)?;
        section.flags &= !elf::SHF_COMPRESSED.0;
        let mut chunk = vec![0; CHUNK.min(section.bytes as usize)];
        let mut done = 0;
        while done < section.bytes {
            let length = chunk.len().min((section.bytes - done) as usize);
            let part = &mut chunk[..length];
            let at = from.checked_add(done).ok_or("a section ends behind all files")?;
            image.read_at(at, part).map_err(|error| error.to_string())?;
            self.write(part, section.offset + done)?;
            done += length as u64;
        }
        Ok(())
    }

    fn copy_debug(&mut self, image: &Image, section: &mut SectionHeader) -> Result<(), String> {
        if section.flags & elf::SHF_COMPRESSED.0 == 0 {
            return self.copy(image, section);
        }
        let head = table::<CompressionHeader>(image, section.offset, 1)?;
        let head = head.first().ok_or("a compressed section has no header")?;
        let header_bytes = size_of::<CompressionHeader>() as u64;
        self.take(head.bytes)?;
        let packed = section.bytes.saturating_sub(header_bytes);
        // Hardly ever does compressing make something larger.
        if packed / 2 > head.bytes {
            return Err("a compressed section is larger than what is in it".to_owned());
        }
        let packed = bytes(image, section.offset.saturating_add(header_bytes), packed)?;
        let whole = inflate(head.kind, &packed, head.bytes).map_err(|error| error.to_string())?;
        section.offset = self.append(&whole)?;
        section.bytes = whole.len() as u64;
        section.flags &= !elf::SHF_COMPRESSED.0;
        Ok(())
    }

    /// By the copies, which nobody changes any more.
    fn check_nesting(&self, sections: &[SectionHeader], names: &[u8]) -> Result<(), String> {
        let of = |wanted: &[u8]| sections.iter().find(|it| name(names, it.name) == wanted);
        let (Some(info), Some(short)) = (of(b".debug_info"), of(b".debug_abbrev")) else {
            return Ok(());
        };
        let mut abbreviations = vec![0; short.bytes as usize];
        let read = |offset, bytes: &mut [u8]| self.file.read_exact_at(bytes, offset);
        read(short.offset, &mut abbreviations).map_err(|error| error.to_string())?;
        let unit = |offset, bytes: &mut [u8]| read(info.offset + offset, bytes);
        nesting::check(info.bytes, unit, &abbreviations)
    }

    /// Takes from what may be inflated in all.
    fn take(&mut self, bytes: u64) -> Result<(), String> {
        let left = self.inflatable.checked_sub(bytes);
        self.inflatable = left.ok_or("its compressed sections are too large")?;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<u64, String> {
        let offset = self.room(bytes.len() as u64)?;
        self.write(bytes, offset)?;
        Ok(offset)
    }

    /// Where the next so many bytes go.
    fn room(&mut self, bytes: u64) -> Result<u64, String> {
        let offset = self.bytes.next_multiple_of(ALIGNMENT);
        let end = offset.checked_add(bytes).filter(|end| *end <= MAX_BYTES);
        self.bytes = end.ok_or("its symbols and debug information are too large")?;
        Ok(offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), String> {
        self.file.write_all_at(bytes, offset).map_err(|error| error.to_string())
    }
}

impl SectionHeader {
    /// A section that is not there; its number stays, so that those of the others do.
    fn forget(&mut self) {
        let kind = elf::SHT_NOBITS.0;
        *self = Self { name: 0, kind, flags: 0, offset: 0, bytes: 0, ..*self };
    }
}

/// Whether compressed symbols stay within the bounds. They are inflated again where they are read.
fn inflates(image: &Image, section: &SectionHeader) -> Result<bool, String> {
    if section.bytes > MAX_ADDED_BYTES {
        return Ok(false);
    }
    let packed = bytes(image, section.offset, section.bytes)?;
    let stream = xz2::stream::Stream::new_stream_decoder(MAX_XZ_MEMORY, 0);
    let Ok(stream) = stream else { return Ok(false) };
    let whole = xz2::read::XzDecoder::new_stream(packed.as_slice(), stream);
    let inflated = io::copy(&mut whole.take(MAX_ADDED_BYTES + 1), &mut io::sink());
    Ok(inflated.is_ok_and(|bytes| bytes <= MAX_ADDED_BYTES))
}

fn name(names: &[u8], at: u32) -> &[u8] {
    let tail = names.get(at as usize..).unwrap_or_default();
    tail.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn bytes(image: &Image, offset: u64, length: u64) -> Result<Vec<u8>, String> {
    let length = usize::try_from(length).map_err(|error| error.to_string())?;
    let mut bytes = vec![0; length];
    image.read_at(offset, &mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn table<T: FromBytes>(image: &Image, offset: u64, count: u16) -> Result<Vec<T>, String> {
    let bytes = bytes(image, offset, u64::from(count) * size_of::<T>() as u64)?;
    Ok(bytes.chunks_exact(size_of::<T>()).filter_map(|row| T::read_from_bytes(row).ok()).collect())
}

/// To exactly as many bytes as are claimed.
fn inflate(kind: u32, packed: &[u8], length: u64) -> io::Result<Vec<u8>> {
    let mut whole = Vec::new();
    let most = length.saturating_add(1);
    match kind {
        kind if kind == elf::ELFCOMPRESS_ZLIB.0 => {
            flate2::read::ZlibDecoder::new(packed).take(most).read_to_end(&mut whole)?;
        }
        kind if kind == elf::ELFCOMPRESS_ZSTD.0 => {
            let mut decoder = zstd::stream::read::Decoder::new(packed)?;
            decoder.window_log_max(MAX_WINDOW_LOG)?;
            decoder.take(most).read_to_end(&mut whole)?;
        }
        _ => return Err(io::ErrorKind::Unsupported.into()),
    }
    if whole.len() as u64 != length {
        return Err(io::Error::other("a compressed section has another length than it claims"));
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;
    use object::{Object, ObjectSection, ObjectSymbol};

    use super::{CompressionHeader, MAX_ADDED_BYTES, Snapshot, inflate};
    use crate::hostile::{file_of, libc};
    use crate::process::image::Image;

    fn image(bytes: &[u8]) -> Image {
        Image::from_file(file_of(bytes), 0).expect("an image")
    }

    fn copied(bytes: &[u8], with_debug: bool) -> Result<Vec<u8>, String> {
        let copy = Snapshot::of(&image(bytes), with_debug, 1 << 20)?;
        std::fs::read(copy.path()).map_err(|error| error.to_string())
    }

    /// Names of dynamic symbols by their addresses.
    fn symbols(bytes: &[u8]) -> Vec<(u64, String)> {
        let file = object::File::parse(bytes).expect("an image");
        let symbols = file.dynamic_symbols();
        symbols.map(|it| (it.address(), it.name().expect("a name").to_owned())).collect()
    }

    /// A small image with one section more, of this name and these contents.
    fn with_section(name: &str, flags: u64, contents: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        bytes[16..20].copy_from_slice(&[3, 0, 62, 0]);
        let names = format!("\0.shstrtab\0{name}\0");
        let places = [(1_u32, 3_u32, 0, names.as_bytes()), (11, 1, flags, contents)];
        let mut headers = vec![0; 64];
        for (name, kind, flags, contents) in places {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[8..16].copy_from_slice(&flags.to_le_bytes());
            header[24..32].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(contents.len() as u64).to_le_bytes());
            headers.extend_from_slice(&header);
            bytes.extend_from_slice(contents);
        }
        let at = bytes.len() as u64;
        bytes[40..48].copy_from_slice(&at.to_le_bytes());
        bytes[58..64].copy_from_slice(&[64, 0, 3, 0, 1, 0]);
        bytes.extend_from_slice(&headers);
        bytes
    }

    fn compressed(contents: &[u8], claimed: u64) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(contents).expect("memory");
        let head = CompressionHeader { kind: 1, reserved: 0, bytes: claimed, alignment: 1 };
        [zerocopy::IntoBytes::as_bytes(&head), &encoder.finish().expect("memory")].concat()
    }

    /// The copy has the symbols of the file, and neither its code nor what leads to other files.
    #[test]
    fn symbols_and_nothing_else() {
        let whole = libc();
        let copy = copied(&whole, true).expect("a copy");
        assert_eq!(symbols(&copy), symbols(&whole));
        assert!(symbols(&copy).len() > 1000);
        assert!(copy.len() < whole.len() / 2, "{} of {} bytes", copy.len(), whole.len());
        let file = object::File::parse(copy.as_slice()).expect("an image");
        assert!(file.section_by_name(".text").is_none());
        assert!(file.gnu_debuglink().expect("no link").is_none());
    }

    /// A file that is cut off or overwritten after the copy was made changes nothing.
    #[test]
    fn later_changes() {
        let whole = libc();
        let file = Arc::new(file_of(&whole));
        let image = Image::from_file(file.try_clone().expect("another"), 0).expect("an image");
        let copy = Snapshot::of(&image, true, 0).expect("a copy");
        file.set_len(0).expect("ours");
        let copy = std::fs::read(copy.path()).expect("still there");
        assert_eq!(symbols(&copy), symbols(&whole));
        assert!(Snapshot::of(&image, true, 0).is_err(), "too late");
    }

    /// What is compressed is in the copy as it was, once it keeps to what it claims and is not too much.
    #[test]
    fn compressed_sections() {
        let contents = b"line by line ".repeat(100);
        let section = |claimed, contents: &[u8]| {
            let packed = compressed(contents, claimed);
            copied(&with_section(".debug_line", 0x800, &packed), true)
        };
        let copy = section(contents.len() as u64, &contents).expect("a copy");
        let file = object::File::parse(copy.as_slice()).expect("an image");
        let found = file.section_by_name(".debug_line").expect("it is there");
        assert_eq!(found.data(), Ok(contents.as_slice()));
        assert!(section(contents.len() as u64 - 1, &contents).is_err(), "more than it claims");
        assert!(section(contents.len() as u64 + 1, &contents).is_err(), "less than it claims");
        let bomb = vec![0; 2 << 20];
        assert!(section(bomb.len() as u64, &bomb).unwrap_err().contains("too large"));
        assert!(section(u64::MAX, &bomb).unwrap_err().contains("too large"));
        let forged = compressed(&bomb, 16);
        assert!(inflate(1, &forged[24..], 16).is_err(), "it stops reading");
    }

    /// Added symbols that inflate to more than is allowed are left out, and that is said.
    #[test]
    fn added_symbols() {
        let packed = |bytes: u64| {
            let mut encoder = xz2::write::XzEncoder::new(Vec::new(), 1);
            std::io::copy(&mut std::io::Read::take(std::io::repeat(0), bytes), &mut encoder)
                .expect("memory");
            with_section(".gnu_debugdata", 0, &encoder.finish().expect("memory"))
        };
        let of = |bytes| Snapshot::of(&image(&packed(bytes)), true, 0).expect("a copy");
        assert_eq!(of(1000).left_out(), None);
        assert!(of(MAX_ADDED_BYTES + 1).left_out().is_some_and(|why| why.contains("more than")));
    }
}
