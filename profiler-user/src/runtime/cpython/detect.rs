//! The files that a process has mapped to the address of its `_PyRuntime`, where there is one.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use object::LittleEndian;
use object::elf::{self, FileHeader64, ProgramHeader64, SectionHeader64, Sym64};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, SectionTable, Sym};
use object::read::{ReadCache, ReadRef};

use crate::gap::Gap;
use crate::process::live::OpenRegion;
use crate::process::maps::{Backing, Region};

/// Files looked into at most. Large services map a few hundred libraries.
const MAX_FILES: usize = 1024;

/// Bytes read of one symbol or string table at most: those of `libpython`, unstripped, have under
/// 1 MiB together.
const MAX_TABLE_BYTES: u64 = 16 << 20;

/// Section headers read at most. Linked images have about forty.
const MAX_SECTIONS: u16 = 4096;

/// Address bits within a page; segments are mapped in whole pages.
const PAGE_MASK: u64 = 4095;

/// A mapped file with an interpreter inside. Addresses are those of the running process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PythonImage {
    pub path: PathBuf,
    pub runtime: u64,
    /// `Py_Version`, since 3.11.
    pub version: Option<u64>,
    /// `PyCode_Type`, to tell code objects from other things.
    pub code_type: Option<u64>,
}

/// Which files to look into first. An executable may well hold an interpreter that stays unused,
/// because a library brings the one that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Library,
    Executable,
    Other,
}

/// All images of interpreters; empty where no mapped file has one. An error where the name of a file
/// says that it is one, and what is needed of it cannot be had.
pub fn images(regions: &[Region], open: OpenRegion<'_>) -> Result<Vec<PythonImage>, Gap> {
    let mut found = Vec::new();
    let mut failure = None;
    for (rank, path, region) in candidates(regions).into_iter().take(MAX_FILES) {
        if rank == Rank::Other && (!found.is_empty() || failure.is_some()) {
            break;
        }
        match examine(rank, path, region, open) {
            Ok(Some(image)) => found.push(image),
            Ok(None) if rank == Rank::Other => {}
            Ok(None) => {
                failure.get_or_insert_with(|| {
                    Gap::new("Python frames", format_args!("{} has no _PyRuntime", path.display()))
                });
            }
            // What has not the name of an interpreter may be anything that cannot be opened.
            Err(_) if rank == Rank::Other => {}
            Err(why) => {
                failure.get_or_insert_with(|| {
                    Gap::new("Python frames", format_args!("{}: {why}", path.display()))
                });
            }
        }
    }
    match failure {
        Some(gap) if found.is_empty() => Err(gap),
        _ => Ok(found),
    }
}

/// Each file with code that is mapped, once, by its first executable region.
fn candidates(regions: &[Region]) -> Vec<(Rank, &Path, &Region)> {
    let mut seen = HashSet::new();
    let mut files = Vec::new();
    for region in regions.iter().filter(|region| region.executable) {
        let Backing::File(path) = &region.backing else { continue };
        if seen.insert((path, region.device, region.inode)) {
            files.push((rank(path), path.as_path(), region));
        }
    }
    files.sort_by_key(|&(rank, _, region)| (rank, region.start));
    files
}

fn rank(path: &Path) -> Rank {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // A list of forwarding symbols that extension modules may be linked with.
    if name == "libpython3.so" {
        return Rank::Other;
    }
    let interpreter = |prefix| {
        name.strip_prefix(prefix).is_some_and(|rest| {
            rest.chars().next().is_none_or(|next| next.is_ascii_digit() || next == '.')
        })
    };
    if interpreter("libpython") {
        Rank::Library
    } else if interpreter("python") {
        Rank::Executable
    } else {
        Rank::Other
    }
}

/// The minor version that a file's name tells: `python3.9`, `libpython3.10.so.1.0`.
pub fn minor_of_name(path: &Path) -> Option<u8> {
    let name = path.file_name()?.to_str()?;
    let rest = name.strip_prefix("lib").unwrap_or(name).strip_prefix("python3.")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..digits)?.parse().ok()
}

/// Looks for the runtime in one file. None where it is not there.
fn examine(
    rank: Rank,
    path: &Path,
    region: &Region,
    open: OpenRegion<'_>,
) -> Result<Option<PythonImage>, String> {
    let cache = ReadCache::new(open(region).map_err(|error| error.to_string())?);
    let damaged = |error: object::Error| error.to_string();
    let elf = Elf::parse(&cache).map_err(damaged)?;
    let Some(symbols) = elf.symbols(rank).map_err(damaged)? else { return Ok(None) };
    let bias = elf.bias(region).ok_or("its segments do not match its mappings")?;
    Ok(Some(PythonImage {
        path: path.to_path_buf(),
        runtime: bias.wrapping_add(symbols.runtime),
        version: symbols.version.map(|address| bias.wrapping_add(address)),
        code_type: symbols.code_type.map(|address| bias.wrapping_add(address)),
    }))
}

/// Addresses as the file has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Symbols {
    runtime: u64,
    version: Option<u64>,
    code_type: Option<u64>,
}

/// A 64-bit little-endian ELF file, of which only headers have been read.
struct Elf<'data, R: ReadRef<'data>> {
    data: R,
    segments: &'data [ProgramHeader64<LittleEndian>],
    sections: SectionTable<'data, FileHeader64<LittleEndian>, R>,
}

const ENDIAN: LittleEndian = LittleEndian;

impl<'data, R: ReadRef<'data>> Elf<'data, R> {
    fn parse(data: R) -> object::Result<Self> {
        let header = FileHeader64::<LittleEndian>::parse(data)?;
        // Without these two, other numbers of the file would say how much to read.
        let sections = header.e_shnum(ENDIAN);
        let counted = (1..=MAX_SECTIONS).contains(&sections) || header.e_shoff(ENDIAN) == 0;
        if !header.is_little_endian() || !counted || header.e_phnum(ENDIAN) == elf::PN_XNUM {
            return Ok(Self { data, segments: &[], sections: SectionTable::default() });
        }
        Ok(Self {
            data,
            segments: header.program_headers(ENDIAN, data)?,
            sections: header.sections(ENDIAN, data)?,
        })
    }

    /// Where the runtime and its companions are. Stripping leaves the dynamic symbols, because
    /// extension modules are linked against them; since 3.10 the runtime has a section of its own.
    fn symbols(&self, rank: Rank) -> object::Result<Option<Symbols>> {
        // Whatever embeds an interpreter exports it, too; full tables can have tens of megabytes.
        let tables: &[_] = if rank == Rank::Other {
            &[elf::SHT_DYNSYM]
        } else {
            &[elf::SHT_DYNSYM, elf::SHT_SYMTAB]
        };
        for table in tables {
            // A linked file has one of each.
            let section = self.sections.iter().find(|section| section.sh_type(ENDIAN) == *table);
            if let Some(section) = section
                && let Some(symbols) = self.symbols_in(section)?
            {
                return Ok(Some(symbols));
            }
        }
        let own = self.sections.section_by_name(ENDIAN, b".PyRuntime");
        let address = own.map(|(_, section)| section.sh_addr(ENDIAN)).filter(|&at| at != 0);
        Ok(address.map(|runtime| Symbols { runtime, version: None, code_type: None }))
    }

    fn symbols_in(
        &self,
        section: &SectionHeader64<LittleEndian>,
    ) -> object::Result<Option<Symbols>> {
        let strings = self.sections.section(section.link(ENDIAN))?;
        if [section, strings].iter().any(|table| table.sh_size(ENDIAN) > MAX_TABLE_BYTES) {
            return Ok(None);
        }
        let names = strings.data(ENDIAN, self.data)?;
        let table: &[Sym64<LittleEndian>] = section.data_as_array(ENDIAN, self.data)?;
        let (mut runtime, mut version, mut code_type) = (None, None, None);
        // Extension modules name the same symbols without defining them.
        for symbol in table.iter().filter(|symbol| !symbol.is_undefined(ENDIAN)) {
            let name = names.get(symbol.st_name(ENDIAN) as usize..).unwrap_or_default();
            let wanted = if name.starts_with(b"_PyRuntime\0") {
                &mut runtime
            } else if name.starts_with(b"Py_Version\0") {
                &mut version
            } else if name.starts_with(b"PyCode_Type\0") {
                &mut code_type
            } else {
                continue;
            };
            *wanted = Some(symbol.st_value(ENDIAN));
        }
        Ok(runtime.map(|runtime| Symbols { runtime, version, code_type }))
    }

    /// What to add to the file's addresses to get those of the process, told by one executable region.
    fn bias(&self, region: &Region) -> Option<u64> {
        let segment = self.segments.iter().find(|segment| {
            let begin = segment.p_offset(ENDIAN) & !PAGE_MASK;
            let end = segment.p_offset(ENDIAN).saturating_add(segment.p_filesz(ENDIAN));
            segment.p_type(ENDIAN) == elf::PT_LOAD
                && segment.p_flags(ENDIAN).contains(elf::PF_X)
                && (begin..end).contains(&region.offset)
        })?;
        let address = segment.p_vaddr(ENDIAN) & !PAGE_MASK;
        let into_segment = region.offset - (segment.p_offset(ENDIAN) & !PAGE_MASK);
        Some(region.start.wrapping_sub(address.wrapping_add(into_segment)))
    }
}

#[cfg(test)]
mod tests {
    use super::{Rank, candidates, images, minor_of_name, rank};
    use crate::process::maps::{Backing, Region};
    use std::fs::File;
    use std::io;
    use std::path::{Path, PathBuf};

    fn region(path: &str, start: u64, executable: bool) -> Region {
        Region {
            start,
            end: start + 0x1000,
            executable,
            writable: false,
            offset: 0,
            device: (8, 1),
            inode: start >> 12,
            backing: Backing::File(PathBuf::from(path)),
        }
    }

    fn nothing_opens(_: &Region) -> io::Result<File> {
        Err(io::Error::from(io::ErrorKind::PermissionDenied))
    }

    /// Names that interpreters have, and names that only look similar.
    #[test]
    fn ranks() {
        assert_eq!(rank(Path::new("/usr/lib/libpython3.11.so.1.0")), Rank::Library);
        assert_eq!(rank(Path::new("/usr/bin/python3.11")), Rank::Executable);
        assert_eq!(rank(Path::new("/opt/venv/bin/python")), Rank::Executable);
        for other in [
            "/usr/bin/uwsgi",
            "/opt/libpython3.so",
            "/opt/libboost_python311.so",
            "/usr/bin/python-launcher",
            "/",
        ] {
            assert_eq!(rank(Path::new(other)), Rank::Other, "{other}");
        }
    }

    /// Only the minor version can be read off a name, and only where it is there.
    #[test]
    fn versions_in_names() {
        assert_eq!(minor_of_name(Path::new("/usr/bin/python3.9")), Some(9));
        assert_eq!(minor_of_name(Path::new("/usr/lib/libpython3.10.so.1.0")), Some(10));
        assert_eq!(minor_of_name(Path::new("/usr/lib/libpython3.8d.so")), Some(8));
        for none in ["/usr/bin/python3", "/usr/bin/uwsgi", "/usr/bin/python3.", "/a/python3.999"] {
            assert_eq!(minor_of_name(Path::new(none)), None, "{none}");
        }
    }

    /// Every file once, by its code; libraries first, whatever order the maps have.
    #[test]
    fn order_of_candidates() {
        let maps = [
            region("/usr/bin/python3.11", 0x1000, false),
            region("/usr/bin/python3.11", 0x2000, true),
            region("/lib/libc.so.6", 0x3000, true),
            region("/lib/libpython3.11.so.1.0", 0x9000, true),
            Region { backing: Backing::Anonymous, ..region("", 0xa000, true) },
        ];
        let starts: Vec<u64> = candidates(&maps).iter().map(|(_, _, found)| found.start).collect();
        assert_eq!(starts, [0x9000, 0x2000, 0x3000]);
    }

    /// A process without Python is no gap, even if none of its files can be opened; one with is.
    #[test]
    fn unopenable_files() {
        let without = [region("/lib/libc.so.6", 0x3000, true)];
        assert_eq!(images(&without, &nothing_opens), Ok(Vec::new()));
        let with = [region("/lib/libc.so.6", 0x3000, true), region("/bin/python3.9", 0x1000, true)];
        let gap = images(&with, &nothing_opens).expect_err("it is named python");
        assert!(gap.0.contains("/bin/python3.9: permission denied"), "{gap}");
    }

    /// Files that are no ELF at all, or cut off anywhere in their headers, neither panic nor match.
    #[test]
    fn damaged_files() {
        let whole = std::fs::read("/proc/self/exe").expect("the test's own file");
        let directory = std::env::temp_dir().join(format!("stalltrace-elf-{}", std::process::id()));
        for length in [0, 3, 16, 63, 64, 65, 200, 4096, whole.len() / 2] {
            std::fs::write(&directory, &whole[..length])
                .expect("the temporary directory is writable");
            let open = |_: &Region| File::open(&directory);
            let python = [region("/bin/python3.9", 0x1000, true)];
            assert!(images(&python, &open).is_err(), "{length} bytes");
            let other = [region("/bin/cat", 0x1000, true)];
            assert_eq!(images(&other, &open), Ok(Vec::new()), "{length} bytes");
        }
        std::fs::remove_file(&directory).expect("it was written above");
    }
}
