//! The target: what it has mapped, which threads it has, and what its memory holds.

pub mod target;
mod diagnosis;
pub mod maps;
pub mod live;
pub mod cgroup;
pub mod frozen;
pub mod arguments;
pub mod mounts;
pub mod sockets;
pub mod peers;
pub mod queues;
pub mod fanotify;
pub mod grpc;
pub mod file_locks;
pub mod borrowed;
pub mod descriptors;
pub mod listeners;
pub mod kernel_stack;
pub mod listing;
pub mod executables;
pub mod image;
pub mod modules;
pub mod stack;
pub mod thread;
pub mod lock;
pub mod other_process;
pub mod source_line;
pub mod environment;
#[cfg(test)]
mod fuzz;

use std::fmt;

/// Why bytes of the target could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable {
    pub address: u64,
    pub bytes: usize,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes at {:#x} are not readable", self.bytes, self.address)
    }
}

impl std::error::Error for Unreadable {}

/// The target's memory: a live process, or pages that a test made.
///
/// Whatever comes back is the target's word: every length, count and pointer chain read through
/// this needs a named bound.
pub trait TargetMemory {
    /// Fills the whole buffer from `address`, or says which read failed.
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable>;

    fn read_u64(&self, address: u64) -> Result<u64, Unreadable> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn read_u32(&self, address: u64) -> Result<u32, Unreadable> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
}
