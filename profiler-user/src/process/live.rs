//! A running process to the bytes of its memory and the files behind its mappings.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use rustix::fs::{major, minor};

use super::image::build_id_at_start;
use super::maps::{self, Backing, Region};
use super::{TargetMemory, Unreadable};
use crate::urgency::before_lock;

/// The memory of a process that runs. Nothing is stopped: what another thread writes meanwhile may
/// come back half old, half new.
#[derive(Debug, Clone, Copy)]
pub struct LiveMemory {
    pid: Pid,
}

impl LiveMemory {
    /// `pid` as our own /proc numbers it. A number beyond what the kernel gives out reads nothing.
    pub fn new(pid: u32) -> Self {
        Self { pid: Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX)) }
    }
}

impl TargetMemory for LiveMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
        let bytes = buffer.len();
        let unreadable = Unreadable { address, bytes };
        let base = usize::try_from(address).map_err(|_| unreadable)?;
        before_lock();
        let remote = [RemoteIoVec { base, len: bytes }];
        match process_vm_readv(self.pid, &mut [IoSliceMut::new(buffer)], &remote) {
            Ok(read) if read == bytes => Ok(()),
            // Fewer bytes: the range runs into a page that is not there.
            Ok(_) | Err(_) => Err(unreadable),
        }
    }
}

/// How the file behind a region is opened.
pub type OpenRegion<'a> = &'a dyn Fn(&Region) -> io::Result<File>;

/// Opens the file behind a region: also one that was deleted or replaced since, or that only the
/// target's mount namespace knows. Never another that lies where it lay.
pub fn open_region(pid: u32, region: &Region) -> io::Result<File> {
    let Backing::File(path) = &region.backing else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no file backs this region"));
    };
    before_lock();
    // The names in map_files carry no leading zeros, unlike those in maps. The kernel asks for CAP_SYS_ADMIN or
    // CAP_CHECKPOINT_RESTORE.
    let mapped = format!("/proc/{pid}/map_files/{:x}-{:x}", region.start, region.end);
    if let Ok(file) = open_regular(Path::new(&mapped)) {
        return Ok(file);
    }
    // The program itself can be had without, whatever became of its name.
    let program = open_regular(Path::new(&format!("/proc/{pid}/exe")));
    if let Ok(file) = program
        && is_backed_by(region, &file)?
    {
        return Ok(file);
    }
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let file = open_regular(&root.join(path.strip_prefix("/").unwrap_or(path)))?;
    if is_backed_by(region, &file)? || is_of_mapped_build(pid, region, &file) {
        return Ok(file);
    }
    let why = "the file at this path is not the one that is mapped: it was replaced since, and the one before can be \
               opened with CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE alone";
    Err(io::Error::other(why))
}

/// Whether the file is the region's, by device and inode. On btrfs, and in an overlay of an older kernel, a file and
/// its mapping are told to lie on different devices.
fn is_backed_by(region: &Region, file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    let device = (major(metadata.dev()), minor(metadata.dev()));
    Ok(device == region.device && metadata.ino() == region.inode)
}

/// Bytes of an image's beginning that are read for its build id. Linkers put the notes before the tables of symbols.
const MAX_START: u64 = 16 * 1024;

/// Whether the file is of the build that is mapped, by the build ids in both.
fn is_of_mapped_build(pid: u32, region: &Region, file: &File) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/maps")) else { return false };
    let is_start = |other: &Region| {
        other.offset == 0
            && other.backing == region.backing
            && (other.device, other.inode) == (region.device, region.inode)
    };
    let Some(start) = maps::parse(&text).into_iter().find(is_start) else { return false };
    let length = start.end.saturating_sub(start.start).min(MAX_START);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    if LiveMemory::new(pid).read(start.start, &mut bytes).is_err() {
        return false;
    }
    let mapped = build_id_at_start(&bytes);
    let Ok(read) = file.read_at(&mut bytes, 0) else { return false };
    let found = build_id_at_start(bytes.get(..read).unwrap_or_default());
    mapped.is_some() && mapped == found
}

/// The path is the target's choice: opening a device has effects, and opening a pipe waits.
fn open_regular(path: &Path) -> io::Result<File> {
    let refused = || io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
    if !fs::metadata(path)?.is_file() {
        return Err(refused());
    }
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    // The path may have been turned to something else between the look and the opening.
    if !file.metadata()?.is_file() {
        return Err(refused());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::{LiveMemory, is_of_mapped_build, open_region};
    use crate::process::maps::{self, Backing, Region};
    use crate::process::{TargetMemory, Unreadable};
    use std::path::PathBuf;

    fn region(path: &str) -> Region {
        Region {
            // No mapping lies here, so map_files knows no such name.
            start: 0x1000,
            end: 0x2000,
            executable: true,
            writable: false,
            offset: 0,
            device: (0, 0),
            inode: 0,
            backing: Backing::File(PathBuf::from(path)),
        }
    }

    /// A process reads its own memory through the kernel and finds what it wrote.
    #[test]
    fn reads_what_is_there() {
        let word = 0x0123_4567_89ab_cdef_u64;
        let memory = LiveMemory::new(std::process::id());
        assert_eq!(memory.read_u64(&raw const word as u64), Ok(word));
    }

    /// Neither an unmapped address nor one past the address space nor a dead process gives bytes.
    #[test]
    fn says_what_is_not_there() {
        let memory = LiveMemory::new(std::process::id());
        for address in [0, 8, u64::MAX - 3, 0xffff_8000_0000_0000] {
            assert_eq!(memory.read_u64(address), Err(Unreadable { address, bytes: 8 }));
        }
        let word = 1_u64;
        assert!(LiveMemory::new(u32::MAX).read_u64(&raw const word as u64).is_err());
    }

    /// A region of this very process, as if at an address that map_files does not know.
    fn own(part: &str) -> Region {
        let regions = maps::parse(&std::fs::read_to_string("/proc/self/maps").unwrap());
        let is_it = |region: &Region| match &region.backing {
            Backing::File(path) => region.executable && path.to_string_lossy().contains(part),
            _ => false,
        };
        Region { start: 0x1000, end: 0x2000, ..regions.into_iter().find(is_it).unwrap() }
    }

    /// Without a name in map_files the path is taken from the target's root, if device and inode are the mapping's.
    #[test]
    fn opens_by_path_from_the_root() {
        let library = own("/libc.so");
        assert!(open_region(std::process::id(), &library).is_ok());
        let replaced = Region { inode: library.inode + 1, ..library };
        let error = open_region(std::process::id(), &replaced).expect_err("another file");
        assert!(error.to_string().contains("it was replaced since"), "{error}");
    }

    /// The program itself is opened by whatever name.
    #[test]
    fn opens_the_program() {
        let exe = std::env::current_exe().unwrap();
        let program = own(exe.to_str().unwrap());
        let moved = Region { backing: Backing::File("/gone/program".into()), ..program.clone() };
        assert!(open_region(std::process::id(), &moved).is_ok());
        let other = Region { inode: program.inode + 1, ..moved };
        assert!(open_region(std::process::id(), &other).is_err());
    }

    /// Where the device of a file is not that of its mapping, the build tells: the mapped one's, and no other's.
    #[test]
    fn told_by_its_build() {
        let me = std::process::id();
        let library = own("/libc.so");
        let Backing::File(path) = library.backing.clone() else { unreachable!() };
        let same = std::fs::File::open(&path).unwrap();
        assert!(is_of_mapped_build(me, &library, &same));
        let other = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(!is_of_mapped_build(me, &library, &other));
        let nowhere = Region { inode: library.inode + 1, ..library };
        assert!(!is_of_mapped_build(me, &nowhere, &same));
    }

    /// Devices and directories are not opened, whatever the target mapped.
    #[test]
    fn refuses_what_is_no_file() {
        let me = std::process::id();
        for path in ["/dev/zero", "/"] {
            let error = open_region(me, &region(path)).expect_err("not a regular file");
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{path}");
        }
        let anonymous = Region { backing: Backing::Anonymous, ..region("/") };
        assert!(open_region(me, &anonymous).is_err());
    }
}
