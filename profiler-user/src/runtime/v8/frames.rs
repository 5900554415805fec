//! A copied stack to the JavaScript frames that may be on it, by their frame pointers.
//!
//! Which of them are on it, the native unwinder tells later: it arrives at the same frame pointers.
//! Here everything is taken that looks like such a frame, because the functions have to be read
//! before the collector moves them, and unwinding takes too long for that.

use profiler_ebpf::record::Registers;

use super::layout::FrameSlots;

/// Frames of one stack at most: 64 KiB have room for no more of the smallest, of 64 bytes.
pub const MAX_FRAMES: usize = 1024;

/// Bytes from one frame to its caller's at most: V8's own limit for a whole stack is 984 KiB.
const MAX_FRAME_BYTES: u64 = 1 << 20;

/// A frame by its words, none of which has been followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameCandidate {
    pub frame_pointer: u64,
    pub function: u64,
    pub bytecode_array: u64,
}

/// Innermost first.
pub fn candidates(slots: &FrameSlots, registers: &Registers, stack: &[u8]) -> Vec<FrameCandidate> {
    let words: Vec<u64> = stack
        .chunks_exact(8)
        .map_while(<[u8]>::first_chunk)
        .copied()
        .map(u64::from_le_bytes)
        .collect();
    let at =
        |index: usize, below: u64| words.get(index.checked_sub((below / 8) as usize)?).copied();
    let mut found = Vec::new();
    for (index, saved) in words.iter().enumerate() {
        let frame_pointer = registers.sp.wrapping_add(8 * index as u64);
        let distance = saved.wrapping_sub(frame_pointer);
        // Two words, the return address among them, are the smallest of frames.
        if !(16..MAX_FRAME_BYTES).contains(&distance) {
            continue;
        }
        let (Some(context), Some(function)) = (at(index, slots.context), at(index, slots.function))
        else {
            continue;
        };
        if is_pointer(context) && is_pointer(function) {
            let bytecode_array = at(index, slots.bytecode_array).unwrap_or_default();
            found.push(FrameCandidate { frame_pointer, function, bytecode_array });
            if found.len() == MAX_FRAMES {
                break;
            }
        }
    }
    found
}

/// To an object: the kernel gives no process the lowest page.
fn is_pointer(word: u64) -> bool {
    word & 3 == 1 && word > 4096
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::record::Registers;

    use super::super::sample::layout;
    use super::{FrameCandidate, candidates};

    const SP: u64 = 0x7ffe_0000_1000;

    fn found(words: &[u64]) -> Vec<FrameCandidate> {
        let stack: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let registers = Registers { sp: SP, ..Registers::default() };
        candidates(&layout().slots, &registers, &stack)
    }

    /// A frame is found by its saved frame pointer, its context and its function.
    #[test]
    fn frames_among_other_words() {
        let (function, context, bytecode) = (0x10_0001, 0x20_0001, 0x30_0001);
        let (own, callers) = (SP + 6 * 8, SP + 20 * 8);
        let words = [7, 0, bytecode, 9, function, context, callers, 0x5555_0000, 1, 2];
        let expected = FrameCandidate { frame_pointer: own, function, bytecode_array: bytecode };
        assert_eq!(found(&words), [expected]);
        // One whose context slot holds the number of another kind of frame is not JavaScript's.
        assert_eq!(found(&[7, 0, bytecode, 9, function, 0x24, callers, 0x5555_0000]), []);
        // A caller's frame lies further out.
        assert_eq!(found(&[7, 0, bytecode, 9, function, context, SP, 0x5555_0000]), []);
    }

    /// A stack that begins inside a frame, or holds nothing but pointers, is no reason to read past it.
    #[test]
    fn odd_stacks() {
        assert_eq!(found(&[]), []);
        assert_eq!(found(&[SP + 64, 1]), []);
        assert_eq!(found(&[0x20_0001, SP + 64, 1]), []);
        let words: Vec<u64> = (0..8192).map(|_| u64::MAX - 2).collect();
        assert_eq!(found(&words), []);
        let stack = [1, 2, 3];
        assert_eq!(candidates(&layout().slots, &Registers::default(), &stack), []);
    }
}
