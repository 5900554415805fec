//! A running process to the bytes of its memory and the files behind its mappings.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::maps::{Backing, Region};
use super::{TargetMemory, Unreadable};

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
        let remote = [RemoteIoVec { base, len: bytes }];
        match process_vm_readv(self.pid, &mut [IoSliceMut::new(buffer)], &remote) {
            Ok(read) if read == bytes => Ok(()),
            // Fewer bytes: the range runs into a page that is not there.
            Ok(_) | Err(_) => Err(unreadable),
        }
    }
}

/// Opens the file behind a region: also one that was deleted or replaced since, or that only the
/// target's mount namespace knows.
pub fn open_region(pid: u32, region: &Region) -> io::Result<File> {
    let Backing::File(path) = &region.backing else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no file backs this region"));
    };
    // The names in map_files carry no leading zeros, unlike those in maps.
    let mapped =
        PathBuf::from(format!("/proc/{pid}/map_files/{:x}-{:x}", region.start, region.end));
    open_regular(&mapped).or_else(|_| {
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        open_regular(&root.join(path.strip_prefix("/").unwrap_or(path)))
    })
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
    use super::{LiveMemory, open_region};
    use crate::process::maps::{Backing, Region};
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

    /// Without a name in map_files the path is taken from the target's root.
    #[test]
    fn opens_by_path_from_the_root() {
        let exe = std::env::current_exe().expect("a running test has a file");
        let path = exe.to_str().expect("the build directory is UTF-8");
        assert!(open_region(std::process::id(), &region(path)).is_ok());
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
