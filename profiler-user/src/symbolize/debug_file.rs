//! An image to the separate file that holds its debug information, and to no other build's.
//!
//! Distributions install such files under `/usr/lib/debug`, by build id or by the stripped file's own
//! path. They are looked for where the target sees its files, then where we see ours: a container
//! rarely has any, its host may. A file counts only if it is proven to be of the same build.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use crate::gap::Gap;
use crate::process::image::{Image, Section};

/// Where debug information is installed apart from the files it is about.
const DEBUG_DIRECTORY: &str = "usr/lib/debug";

/// Bytes of `.gnu_debuglink` read at most: a file's name, padding, and a checksum.
const MAX_LINK_BYTES: u64 = 512;

/// Bytes of a debug file read at most to compare its checksum. Files with a build id need none.
const MAX_CHECKED_BYTES: u64 = 64 * 1024 * 1024;

/// Where to look for debug files.
#[derive(Debug, Default)]
pub struct DebugFiles {
    /// The folder that is the target's `/`; `None` where it is not to be looked at, or is ours.
    target_root: Option<PathBuf>,
}

/// What was found for one image.
#[derive(Debug, Default)]
pub struct FoundFiles {
    pub image: Option<DebugFile>,
    /// Files that had the right name, and why they were not used.
    pub gaps: Vec<Gap>,
}

/// A file of the same build.
#[derive(Debug)]
pub struct DebugFile {
    pub image: Image,
    pub owner: FileOwner,
}

/// Who may change a file while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileOwner {
    Us,
    /// It lies in a file system that only the target has.
    Target,
}

/// What `.gnu_debuglink` says.
#[derive(Debug, PartialEq, Eq)]
struct Link {
    name: String,
    checksum: u32,
}

impl DebugFiles {
    /// Those that the process sees, and our own.
    pub fn of_process(pid: u32) -> Self {
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        let place = |path: &Path| path.metadata().ok().map(|it| (it.dev(), it.ino()));
        let is_ours = place(&root) == place(Path::new("/"));
        Self { target_root: (!is_ours).then_some(root) }
    }

    /// The debug file of an image that the target knows under this path.
    pub fn find(&self, path: &str, image: &Image) -> FoundFiles {
        let mut found = FoundFiles::default();
        let link = image.debug_link().and_then(|section| Link::read(image, section));
        let candidates = candidates(path, image.build_id(), link.as_ref());
        let target = self.target_root.as_deref().map(|root| (FileOwner::Target, root));
        let roots = target.into_iter().chain([(FileOwner::Us, Path::new("/"))]);
        for ((owner, root), candidate) in
            roots.flat_map(|root| candidates.iter().map(move |candidate| (root, candidate)))
        {
            let Ok(file) = open_beneath(root, candidate) else { continue };
            match accept(file, image, link.as_ref()) {
                Ok(image) => {
                    found.image = Some(DebugFile { image, owner });
                    return found;
                }
                Err(why) => {
                    let what = format!("debug information in /{}", candidate.display());
                    found.gaps.push(Gap::new(&what, why));
                }
            }
        }
        found
    }
}

/// Paths below a root, the surest first.
fn candidates(path: &str, build_id: Option<&[u8]>, link: Option<&Link>) -> Vec<PathBuf> {
    let debug = Path::new(DEBUG_DIRECTORY);
    let mut candidates: Vec<PathBuf> =
        build_id.and_then(build_id_path).map(|path| debug.join(path)).into_iter().collect();
    let path = path.trim_end_matches(" (deleted)");
    let folder = Path::new(path).parent().and_then(|folder| folder.strip_prefix("/").ok());
    if let (Some(link), Some(folder)) = (link, folder) {
        // The file's own folder may hold a file of the same name that is the stripped one itself.
        if Path::new(path).file_name().is_some_and(|name| name != link.name.as_str()) {
            candidates.push(folder.join(&link.name));
        }
        candidates.push(folder.join(".debug").join(&link.name));
        candidates.push(debug.join(folder).join(&link.name));
    }
    candidates
}

fn build_id_path(build_id: &[u8]) -> Option<PathBuf> {
    let (first, rest) = build_id.split_first()?;
    let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(Path::new(".build-id").join(format!("{first:02x}")).join(format!("{rest}.debug")))
}

/// Opens a file below a folder, whose links cannot lead out of it: the folder may be the target's.
fn open_beneath(root: &Path, path: &Path) -> io::Result<File> {
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root: OwnedFd = openat(CWD, root, folder, Mode::empty())?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let place = File::from(openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?);
    // To open a FIFO would hold us up, and a device may do something by being opened.
    if !place.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))
}

/// The file as an image, if it is of the same build.
fn accept(file: File, image: &Image, link: Option<&Link>) -> Result<Image, String> {
    let debug = Image::from_file(file.try_clone().map_err(|error| error.to_string())?, 0)?;
    match (image.build_id(), debug.build_id(), link) {
        (Some(wanted), Some(given), _) if wanted == given => Ok(debug),
        (Some(_), Some(_), _) => Err("it is of another build".to_owned()),
        (Some(_), None, _) => Err("it does not say of which build it is".to_owned()),
        (None, _, Some(link)) if checksum(&file)? == link.checksum => Ok(debug),
        (None, _, _) => Err("its checksum is not the one that the file asks for".to_owned()),
    }
}

fn checksum(file: &File) -> Result<u32, String> {
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    if length > MAX_CHECKED_BYTES {
        return Err(format!("it has {length} bytes, too many to compare its checksum"));
    }
    let mut hasher = crc32fast::Hasher::new();
    let mut chunk = vec![0; 64 * 1024];
    let mut offset = 0;
    while offset < length {
        let read = file.read_at(&mut chunk, offset).map_err(|error| error.to_string())?;
        // It was cut short meanwhile.
        let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        hasher.update(bytes);
        offset += read as u64;
    }
    Ok(hasher.finalize())
}

impl Link {
    fn read(image: &Image, section: &Section) -> Option<Self> {
        if section.file.end.saturating_sub(section.file.start) > MAX_LINK_BYTES {
            return None;
        }
        Self::parse(&image.read(section).ok()?)
    }

    /// A name that ends in a zero, padding up to a multiple of four, four bytes of checksum.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == 0)?;
        let name = std::str::from_utf8(bytes.get(..end)?).ok()?;
        // A name, not a path: it comes from the target.
        if name.is_empty() || name == "." || name == ".." || name.contains('/') {
            return None;
        }
        let at = (end + 1).next_multiple_of(4);
        let checksum = u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?);
        Some(Self { name: name.to_owned(), checksum })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name ends at its zero, the checksum stands at the next multiple of four.
    #[test]
    fn links() {
        let link = |name: &str| Link { name: name.to_owned(), checksum: 0x0403_0201 };
        assert_eq!(Link::parse(b"a.d\0\x01\x02\x03\x04"), Some(link("a.d")));
        assert_eq!(Link::parse(b"a.db\0\0\0\0\x01\x02\x03\x04"), Some(link("a.db")));
        assert_eq!(Link::parse(b"a.db\0\0\0\0\x01\x02\x03"), None);
        assert_eq!(Link::parse(b"a.debug"), None);
        assert_eq!(Link::parse(b"\0\0\0\0\x01\x02\x03\x04"), None);
        assert_eq!(Link::parse(b"../../x\0\x01\x02\x03\x04"), None);
        assert_eq!(Link::parse(b"..\0\0\x01\x02\x03\x04"), None);
    }

    /// The build id comes first; a link is followed in the places where debuggers look.
    #[test]
    fn places() {
        let link = Link { name: "prog.debug".to_owned(), checksum: 0 };
        let shown = |path, id, link| {
            let paths = candidates(path, id, link).into_iter();
            paths.map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            shown("/usr/bin/prog (deleted)", Some(&[0xab, 0x01, 0xf0]), Some(&link)),
            [
                "usr/lib/debug/.build-id/ab/01f0.debug",
                "usr/bin/prog.debug",
                "usr/bin/.debug/prog.debug",
                "usr/lib/debug/usr/bin/prog.debug",
            ]
        );
        assert_eq!(shown("/usr/bin/prog.debug", None, Some(&link)).len(), 2);
        assert!(shown("[vdso]", Some(&[]), Some(&link)).is_empty());
        assert!(shown("/usr/bin/prog", None, None).is_empty());
    }

    /// Links in the target's files end in the target's files.
    #[test]
    fn links_stay_beneath() {
        let folder = std::env::temp_dir().join(format!("debug-files-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink("/proc/self/exe", folder.join("out")).unwrap();
        std::fs::write(folder.join("file"), "x").unwrap();
        std::os::unix::fs::symlink("/file", folder.join("in")).unwrap();
        assert!(open_beneath(&folder, Path::new("out")).is_err());
        assert!(open_beneath(&folder, Path::new("in")).is_ok());
        assert!(open_beneath(&folder, Path::new("../../../../proc/self/exe")).is_err());
        let fifo = folder.join("fifo");
        rustix::fs::mkfifoat(CWD, &fifo, Mode::RUSR).unwrap();
        assert!(open_beneath(&folder, Path::new("fifo")).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// What the target has installed is found below its root, by build id.
    #[test]
    fn in_the_targets_root() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let library = maps.lines().find_map(|line| line.split_once(" /")?.1.split_once("/libc.so"));
        let (folder, rest) = library.unwrap();
        let path = format!("/{folder}/libc.so{rest}");
        let image = Image::from_file(File::open(&path).unwrap(), 0).unwrap();
        let root = std::env::temp_dir().join(format!("debug-root-{}", std::process::id()));
        let below = build_id_path(image.build_id().unwrap()).unwrap();
        let debug = root.join(DEBUG_DIRECTORY).join(&below);
        std::fs::create_dir_all(debug.parent().unwrap()).unwrap();
        // Of the same build it is, if no debug file.
        std::fs::copy(&path, &debug).unwrap();
        let files = DebugFiles { target_root: Some(root.clone()) };
        let found = files.find("/lib/libc.so.6", &image);
        let place =
            std::fs::read_link(found.image.as_ref().unwrap().image.path().unwrap()).unwrap();
        assert_eq!(place, debug);
        assert_eq!(found.image.unwrap().owner, FileOwner::Target);
        // Without it, ours may be found; never another's.
        std::fs::copy("/proc/self/exe", &debug).unwrap();
        let found = files.find("/lib/libc.so.6", &image);
        assert!(
            found.gaps.iter().any(|gap| gap.0.contains("which build") || gap.0.contains("another"))
        );
        std::fs::remove_dir_all(root).unwrap();
    }
}
