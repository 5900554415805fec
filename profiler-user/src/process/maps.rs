//! The text of `/proc/PID/maps` to regions.

use std::path::PathBuf;

/// What backs a region.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Backing {
    /// A file, by the path that the kernel shows (seen from the reader's root; `(deleted)` cut off).
    File(PathBuf),
    /// `[vdso]`, `[heap]`, `[stack]` and their kin, brackets included.
    Special(String),
    Anonymous,
}

/// One line of `/proc/PID/maps`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Region {
    pub start: u64,
    pub end: u64,
    pub executable: bool,
    pub writable: bool,
    /// Offset in the file, bytes.
    pub offset: u64,
    pub device: (u32, u32),
    pub inode: u64,
    pub backing: Backing,
}
