//! The address of one of the interpreter's structures to its fields, in a single read.

use super::layout::CpythonLayout;
use crate::process::{TargetMemory, Unreadable};

/// `PyTypeObject.tp_flags`, and what it says of subclasses of `int`, `str` and `dict`: public since 2.6.
pub const TYPE_FLAGS: u64 = 168;
pub const IS_INT: u64 = 1 << 24;
pub const IS_TEXT: u64 = 1 << 28;
pub const IS_DICT: u64 = 1 << 29;

/// More than any structure is read of at once: a thread state up to its identity is the longest
/// with under 200 bytes, and published offsets stay below 1024.
pub(super) const MAX_BYTES: usize = 1024 + 8;

/// The beginning of one structure, as it was at one moment.
pub struct Object {
    address: u64,
    bytes: [u8; MAX_BYTES],
    length: usize,
}

impl Object {
    /// Reads so far that each of these fields, of up to eight bytes, is inside.
    pub fn read(
        memory: &dyn TargetMemory,
        address: u64,
        fields: &[(u32, Width)],
    ) -> Result<Self, Unreadable> {
        let end = fields.iter().map(|&(offset, width)| offset as usize + width as usize).max();
        let length = end.unwrap_or(0);
        let mut bytes = [0; MAX_BYTES];
        let buffer = bytes.get_mut(..length).ok_or(Unreadable { address, bytes: length })?;
        memory.read(address, buffer)?;
        Ok(Self { address, bytes, length })
    }

    pub fn u64(&self, offset: u32) -> Result<u64, Unreadable> {
        self.field(offset).map(u64::from_le_bytes)
    }

    pub fn u32(&self, offset: u32) -> Result<u32, Unreadable> {
        self.field(offset).map(u32::from_le_bytes)
    }

    pub fn u8(&self, offset: u32) -> Result<u8, Unreadable> {
        self.field(offset).map(u8::from_le_bytes)
    }

    fn field<const N: usize>(&self, offset: u32) -> Result<[u8; N], Unreadable> {
        let begin = offset as usize;
        self.bytes
            .get(..self.length)
            .and_then(|bytes| bytes.get(begin..)?.first_chunk())
            .copied()
            .ok_or(Unreadable { address: self.address.wrapping_add(begin as u64), bytes: N })
    }
}

/// How many bytes a field has.
#[derive(Debug, Clone, Copy)]
#[repr(usize)]
pub enum Width {
    Byte = 1,
    Half = 4,
    Word = 8,
}

/// An object's type, and that type's flags.
pub fn type_of(
    memory: &dyn TargetMemory,
    layout: &CpythonLayout,
    object: u64,
) -> Result<(u64, u64), Unreadable> {
    let kind = memory.read_u64(object.wrapping_add(layout.object_type.into()))?;
    Ok((kind, memory.read_u64(kind.wrapping_add(layout.in_object(TYPE_FLAGS)))?))
}

#[cfg(test)]
mod tests {
    use super::{Object, Width};
    use crate::process::Unreadable;
    use crate::runtime::cpython::pages::CopiedPages;

    /// Exactly the bytes up to the last field are read: a structure may end where its page ends.
    #[test]
    fn reads_no_further_than_asked() {
        let mut pages = CopiedPages::default();
        pages.put(0x1000, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let object = Object::read(&pages, 0x1000, &[(8, Width::Byte), (0, Width::Half)])
            .expect("nine bytes are there");
        assert_eq!(object.u8(8), Ok(9));
        assert_eq!(object.u32(0), Ok(0x0403_0201));
        assert_eq!(object.u64(1), Ok(0x0908_0706_0504_0302));
        assert_eq!(object.u64(2), Err(Unreadable { address: 0x1002, bytes: 8 }));
        assert!(Object::read(&pages, 0x1000, &[(8, Width::Half)]).is_err());
    }

    /// An offset beyond any structure is refused before memory is asked.
    #[test]
    fn refuses_absurd_offsets() {
        let pages = CopiedPages::default();
        assert!(Object::read(&pages, 0, &[(u32::MAX, Width::Word)]).is_err());
    }
}
