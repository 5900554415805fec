//! The stack of a thread that cannot move, out of its memory.

use profiler_ebpf::limits::{PAGE_BYTES, STACK_BYTES};
use profiler_ebpf::record::CaptureHead;

use super::TargetMemory;

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
