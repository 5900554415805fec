//! The bytes before an address to the call instruction that they are, if they are one.

/// Bytes of the longest call that is looked for: `call *disp32(base,index,scale)`.
pub const LONGEST: usize = 7;

/// Where a call leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallTarget {
    /// To this address.
    To(u64),
    /// To where the word at this address points: an import, mostly.
    Through(u64),
    /// By a register or a word in memory: a function pointer or a virtual function.
    Anywhere,
}

/// The call that returns to `address`. `code` are the bytes before that.
pub fn before(address: u64, code: &[u8; LONGEST]) -> Option<CallTarget> {
    let relative =
        |distance: [u8; 4]| address.wrapping_add_signed(i64::from(i32::from_le_bytes(distance)));
    match *code {
        [_, _, 0xe8, a, b, c, d] => Some(CallTarget::To(relative([a, b, c, d]))),
        [_, 0xff, 0x15, a, b, c, d] => Some(CallTarget::Through(relative([a, b, c, d]))),
        _ => (2..=LONGEST)
            .any(|length| is_indirect(&code[LONGEST - length..]))
            .then_some(CallTarget::Anywhere),
    }
}

/// Whether these bytes are one `call` by a register or by memory, `FF /2`, and nothing besides.
fn is_indirect(code: &[u8]) -> bool {
    let [0xff, modrm, operands @ ..] = code else { return false };
    let (mode, kind, base) = (modrm >> 6, (modrm >> 3) & 7, modrm & 7);
    let has_index = mode != 3 && base == 4;
    let bytes = match (mode, base) {
        (0, 5) | (2, _) => 4,
        // An index without a base has a displacement instead.
        (0, 4) if operands.first().is_some_and(|index| index & 7 == 5) => 4,
        (1, _) => 1,
        _ => 0,
    };
    kind == 2 && operands.len() == bytes + usize::from(has_index)
}

/// Where the jumps lead with which code goes over into a part of it that lies elsewhere, or hands its
/// call on to another function: `jmp rel32` and `jcc rel32`, and `jmp rel8`.
///
/// Instructions are not decoded, so a few of these are none. That one of them leads by chance to where
/// it would matter is next to impossible.
pub fn jumps(code: &[u8], start: u64) -> impl Iterator<Item = u64> {
    (0..code.len()).filter_map(move |at| {
        let tail = code.get(at..)?;
        let (distance, length) = match *tail {
            [0xe9, a, b, c, d, ..] => (i64::from(i32::from_le_bytes([a, b, c, d])), 5),
            [0x0f, condition, a, b, c, d, ..] if condition & 0xf0 == 0x80 => {
                (i64::from(i32::from_le_bytes([a, b, c, d])), 6)
            }
            [0xeb, distance, ..] => (i64::from(distance as i8), 2),
            _ => return None,
        };
        Some(start.wrapping_add(at as u64 + length).wrapping_add_signed(distance))
    })
}

/// Whether code hands its call on to what a register or a word in memory points to: `FF /4`. A word at a
/// fixed place is a stub's.
pub fn jumps_anywhere(code: &[u8]) -> bool {
    code.windows(2).any(|bytes| {
        let [0xff, modrm] = *bytes else { return false };
        let (mode, kind, base) = (modrm >> 6, (modrm >> 3) & 7, modrm & 7);
        kind == 4 && (mode, base) != (0, 5)
    })
}

/// The word through which a stub of the procedure linkage table jumps: `jmp *disp32(%rip)`, with or
/// without a landing mark before it.
pub fn stub(code: &[u8], start: u64) -> Option<u64> {
    let marks = if code.starts_with(&[0xf3, 0x0f, 0x1e, 0xfa]) { 4 } else { 0 };
    let marks = marks + usize::from(code.get(marks) == Some(&0xf2));
    let [0xff, 0x25, a, b, c, d, ..] = *code.get(marks..)? else { return None };
    let next = start.wrapping_add(marks as u64 + 6);
    Some(next.wrapping_add_signed(i64::from(i32::from_le_bytes([a, b, c, d]))))
}

#[cfg(test)]
mod tests {
    use super::{CallTarget, LONGEST, before, jumps, jumps_anywhere, stub};

    fn call(code: &[u8]) -> Option<CallTarget> {
        let mut bytes = [0x90; LONGEST];
        bytes[LONGEST - code.len()..].copy_from_slice(code);
        before(0x1000, &bytes)
    }

    /// A jump by a register or by memory is one, a stub's and a call are none.
    #[test]
    fn indirect_jumps() {
        for code in [&[0x90, 0xff, 0xe0][..], &[0x41, 0xff, 0xe3], &[0xff, 0x60, 0x30]] {
            assert!(jumps_anywhere(code), "{code:x?}");
        }
        for code in [&[0xff, 0x25, 1, 2, 3, 4][..], &[0xff, 0xd0], &[0xe9, 0, 0, 0, 0], &[0xff]] {
            assert!(!jumps_anywhere(code), "{code:x?}");
        }
    }

    /// Every form of a call is one, and nothing that only ends like it.
    #[test]
    fn calls() {
        assert_eq!(call(&[0xe8, 0x10, 0, 0, 0]), Some(CallTarget::To(0x1010)));
        assert_eq!(call(&[0xe8, 0xf0, 0xff, 0xff, 0xff]), Some(CallTarget::To(0xff0)));
        assert_eq!(call(&[0xff, 0x15, 8, 0, 0, 0]), Some(CallTarget::Through(0x1008)));
        let anywhere: [&[u8]; 9] = [
            &[0xff, 0xd0],                      // call *%rax
            &[0x41, 0xff, 0xd4],                // call *%r12
            &[0xff, 0x10],                      // call *(%rax)
            &[0xff, 0x50, 0x18],                // call *0x18(%rax)
            &[0xff, 0x14, 0xc8],                // call *(%rax,%rcx,8)
            &[0xff, 0x54, 0x24, 8],             // call *8(%rsp)
            &[0xff, 0x90, 0, 1, 0, 0],          // call *0x100(%rax)
            &[0xff, 0x94, 0x24, 0, 1, 0, 0],    // call *0x100(%rsp)
            &[0xff, 0x14, 0xc5, 0, 0x40, 0, 0], // call *0x4000(,%rax,8)
        ];
        for code in anywhere {
            assert_eq!(call(code), Some(CallTarget::Anywhere), "{code:x?}");
        }
        let none: [&[u8]; 6] = [
            &[0x90],
            &[0xff, 0xe0],             // jmp *%rax
            &[0xff, 0x25, 8, 0, 0, 0], // jmp *8(%rip)
            &[0xff, 0x30],             // push (%rax)
            &[0xe9, 0x10, 0, 0, 0],    // jmp
            &[0xff, 0x50],             // half of a call
        ];
        for code in none {
            assert_eq!(call(code), None, "{code:x?}");
        }
    }

    /// Jumps lead forwards and back, near and far; a stub leads to its word.
    #[test]
    fn jumps_and_stubs() {
        let code = [0xe9, 0x10, 0, 0, 0, 0x0f, 0x84, 0xf5, 0xff, 0xff, 0xff, 0xeb, 0xfe];
        assert_eq!(jumps(&code, 0x1000).collect::<Vec<_>>(), [0x1015, 0x1000, 0x100b]);
        assert_eq!(stub(&[0xff, 0x25, 2, 0, 0, 0, 0x68], 0x1000), Some(0x1008));
        let marked = [0xf3, 0x0f, 0x1e, 0xfa, 0xf2, 0xff, 0x25, 2, 0, 0, 0];
        assert_eq!(stub(&marked, 0x1000), Some(0x100d));
        assert_eq!(stub(&[0xff, 0x15, 2, 0, 0, 0], 0x1000), None);
    }
}
