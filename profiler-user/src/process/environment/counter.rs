//! A small file of the kernel that is kept open and read again and again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of one reading: `cpu.stat` of version 2 has some 300, and of `/proc/stat` the first line matters.
const MAX_BYTES: usize = 4096;

#[derive(Debug)]
pub struct Counter(File);

impl Counter {
    pub fn open(path: &Path) -> Option<Self> {
        File::open(path).ok().map(Self)
    }

    /// What `parse` finds in it now. The file of a group that is gone cannot be read.
    pub fn read<T>(&self, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let mut bytes = [0; MAX_BYTES];
        let length = self.0.read_at(&mut bytes, 0).ok()?;
        parse(std::str::from_utf8(bytes.get(..length)?).ok()?)
    }
}
