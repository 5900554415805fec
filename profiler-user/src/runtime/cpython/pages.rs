//! Bytes put at addresses to a target's memory: what tests read instead of a process.

use crate::process::{TargetMemory, Unreadable};

/// A few stretches of memory, and nothing between them.
#[derive(Debug, Default)]
pub struct CopiedPages(Vec<(u64, Vec<u8>)>);

impl CopiedPages {
    /// Makes these bytes readable. A later stretch lies over an earlier one.
    pub fn put(&mut self, address: u64, bytes: &[u8]) {
        let same = |old: &&mut (u64, Vec<u8>)| old.0 == address && old.1.len() == bytes.len();
        // Only the topmost may be written into: over any other one a later stretch may lie.
        match self.0.last_mut().filter(same) {
            Some((_, old)) => old.copy_from_slice(bytes),
            None => self.0.push((address, bytes.to_vec())),
        }
    }

    pub fn put_u64(&mut self, address: u64, value: u64) {
        self.put(address, &value.to_le_bytes());
    }
}

impl TargetMemory for CopiedPages {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
        let unreadable = Unreadable { address, bytes: buffer.len() };
        let end = address.checked_add(buffer.len() as u64).ok_or(unreadable)?;
        let mut covered = vec![false; buffer.len()];
        for (start, bytes) in &self.0 {
            let from = address.max(*start);
            let to = end.min(*start + bytes.len() as u64);
            if from < to {
                let within = |base: u64| (from - base) as usize..(to - base) as usize;
                buffer[within(address)].copy_from_slice(&bytes[within(*start)]);
                covered[within(address)].fill(true);
            }
        }
        if covered.contains(&false) { Err(unreadable) } else { Ok(()) }
    }
}
