//! The stack of a thread that cannot move, out of its memory; and a copy of a stack, as memory.

use profiler_ebpf::limits::{PAGE_BYTES, STACK_BYTES};
use profiler_ebpf::record::CaptureHead;

use super::{TargetMemory, Unreadable};

/// What a stack's copy still shows of a thread that has gone on.
#[derive(Debug, Clone, Copy)]
pub struct CopiedStack<'a> {
    pub from: u64,
    pub bytes: &'a [u8],
}

impl TargetMemory for CopiedStack<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
        let unreadable = Unreadable { address, bytes: buffer.len() };
        let start = address.checked_sub(self.from).and_then(|at| usize::try_from(at).ok());
        let end = start.and_then(|start| start.checked_add(buffer.len()));
        let copied = start.zip(end).and_then(|(start, end)| self.bytes.get(start..end));
        buffer.copy_from_slice(copied.ok_or(unreadable)?);
        Ok(())
    }
}

/// From the stack pointer up to its top, or as much of it as can be read.
pub fn read_stack(memory: &impl TargetMemory, head: &CaptureHead) -> Vec<u8> {
    let sp = head.registers.sp;
    // As in the probes: glibc puts a thread's control block at the end of its stack.
    let top = if head.stack_top != 0 { head.stack_top } else { head.fsbase };
    let length = top.saturating_sub(sp).min(STACK_BYTES as u64);
    let mut stack = vec![0; length as usize];
    if length > 0 && memory.read(sp, &mut stack).is_ok() {
        return stack;
    }
    stack.clear();
    while stack.len() < STACK_BYTES {
        let at = sp.saturating_add(stack.len() as u64);
        let mut page = vec![0; PAGE_BYTES - (at % PAGE_BYTES as u64) as usize];
        if memory.read(at, &mut page).is_err() {
            break;
        }
        stack.extend_from_slice(&page);
    }
    stack
}

#[cfg(test)]
mod tests {
    use super::{CopiedStack, TargetMemory};

    /// What was copied can be read, and nothing around it.
    #[test]
    fn copies_are_memory() {
        let bytes: Vec<u8> = (0..16).collect();
        let copy = CopiedStack { from: 0x7ff0, bytes: &bytes };
        assert_eq!(copy.read_u64(0x7ff8), Ok(u64::from_le_bytes([8, 9, 10, 11, 12, 13, 14, 15])));
        assert!(copy.read_u64(0x7ff9).is_err() && copy.read_u64(0x7fef).is_err());
        let last = CopiedStack { from: 8, bytes: &bytes };
        assert!(last.read_u64(u64::MAX).is_err());
    }
}
