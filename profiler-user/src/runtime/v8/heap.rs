//! A tagged word to the object that it points to: its type, its fields, its text.
//!
//! The heap is read while its owner may run and move objects, so nothing is believed before its type
//! was looked at, and every length has a bound.

use super::layout::V8Layout;
use crate::process::TargetMemory;

/// Strings below a string at most: what is joined is mostly flattened before it becomes a name or a
/// source.
pub const MAX_DEPTH: usize = 16;

/// Stretches of characters of one string at most.
pub const MAX_PIECES: usize = 64;

/// Bytes of characters read at once.
pub const BLOCK_BYTES: u64 = 64 * 1024;

/// The heap of one process. Every method answers `None` where what is there is something else.
#[derive(Clone, Copy)]
pub struct Heap<'a> {
    pub memory: &'a dyn TargetMemory,
    pub layout: &'a V8Layout,
}

/// Characters that lie next to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    address: u64,
    one_byte: bool,
    characters: u64,
}

/// The address of the object that a word points to.
pub fn object(word: u64) -> Option<u64> {
    (word & 3 == 1).then(|| word - 1)
}

/// The small integer that a word is.
pub fn small_integer(word: u64) -> Option<u32> {
    (word & 0xffff_ffff == 0).then_some((word >> 32) as u32)
}

impl Heap<'_> {
    pub fn word(&self, address: u64) -> Option<u64> {
        self.memory.read_u64(address).ok()
    }

    /// A field of the object that a word points to.
    pub fn field(&self, tagged: u64, offset: u64) -> Option<u64> {
        self.word(object(tagged)?.checked_add(offset)?)
    }

    /// The instance type that a map gives to its objects.
    pub fn type_of_map(&self, map: u64) -> Option<u16> {
        let mut bytes = [0; 2];
        let address = object(map)?.checked_add(self.layout.map_type)?;
        self.memory.read(address, &mut bytes).ok()?;
        Some(u16::from_le_bytes(bytes))
    }

    pub fn type_of(&self, tagged: u64) -> Option<u16> {
        // While an object is being moved its first word is no map but the new place.
        self.type_of_map(self.field(tagged, 0)?)
    }

    pub fn is_string(&self, tagged: u64) -> bool {
        self.type_of(tagged).is_some_and(|kind| kind < self.layout.strings.first_other)
    }

    /// Characters that a string says it has.
    pub fn length(&self, tagged: u64) -> Option<u64> {
        let length = object(tagged)?.checked_add(self.layout.string_length)?;
        self.is_string(tagged).then(|| self.memory.read_u32(length).ok().map(u64::from))?
    }

    /// A string of at most so many characters.
    pub fn text(&self, tagged: u64, max_characters: u64) -> Option<String> {
        let mut units: Vec<u16> = Vec::new();
        self.characters(tagged, max_characters, &mut |unit| units.push(unit))?;
        Some(String::from_utf16_lossy(&units))
    }

    /// Calls `take` with each character of a string, as UTF-16.
    pub fn characters(
        &self,
        tagged: u64,
        max_characters: u64,
        take: &mut dyn FnMut(u16),
    ) -> Option<()> {
        let mut pieces = Vec::new();
        self.pieces(tagged, MAX_DEPTH, &mut pieces)?;
        let all = pieces.iter().try_fold(0_u64, |sum, piece| sum.checked_add(piece.characters))?;
        if all > max_characters {
            return None;
        }
        pieces.iter().try_for_each(|piece| self.read(*piece, take))
    }

    fn read(&self, piece: Piece, take: &mut dyn FnMut(u16)) -> Option<()> {
        let mut left = piece.characters.checked_mul(piece.width())?;
        let mut address = piece.address;
        let mut block = vec![0; left.min(BLOCK_BYTES) as usize];
        while left > 0 {
            let bytes = block.get_mut(..left.min(BLOCK_BYTES) as usize)?;
            self.memory.read(address, bytes).ok()?;
            if piece.one_byte {
                bytes.iter().for_each(|byte| take(u16::from(*byte)));
            } else {
                let units = bytes.chunks_exact(2).filter_map(|unit| unit.first_chunk::<2>());
                units.for_each(|unit| take(u16::from_le_bytes(*unit)));
            }
            address = address.checked_add(bytes.len() as u64)?;
            left -= bytes.len() as u64;
        }
        Some(())
    }

    /// Where a string's characters lie, in order.
    fn pieces(&self, tagged: u64, depth: usize, pieces: &mut Vec<Piece>) -> Option<()> {
        let (layout, kinds) = (self.layout, &self.layout.strings);
        let kind = self.type_of(tagged).filter(|kind| *kind < kinds.first_other)?;
        let depth = depth.checked_sub(1)?;
        let length = object(tagged)?.checked_add(layout.string_length)?;
        let characters = u64::from(self.memory.read_u32(length).ok()?);
        let piece = |address| Piece { address, one_byte: kind & kinds.one_byte != 0, characters };
        match kind & kinds.mask {
            // Joined, and perhaps flattened since: then the second is empty.
            joined if joined == kinds.cons => {
                self.pieces(self.field(tagged, layout.cons_first)?, depth, pieces)?;
                return self.pieces(self.field(tagged, layout.cons_second)?, depth, pieces);
            }
            thin if thin == kinds.thin => {
                return self.pieces(self.field(tagged, layout.string_other)?, depth, pieces);
            }
            part if part == kinds.sliced => {
                let mut whole = Vec::new();
                self.pieces(self.field(tagged, layout.string_other)?, depth, &mut whole)?;
                let [whole] = whole[..] else { return None };
                let skipped = small_integer(self.field(tagged, layout.sliced_offset)?)?;
                pieces.push(whole.part(skipped.into(), characters)?);
            }
            sequential if sequential == kinds.sequential => {
                pieces.push(piece(object(tagged)?.checked_add(layout.string_characters)?));
            }
            external if external == kinds.external => {
                pieces.push(piece(self.field(tagged, layout.external_data)?));
            }
            _ => return None,
        }
        (pieces.len() <= MAX_PIECES).then_some(())
    }
}

impl Piece {
    fn width(self) -> u64 {
        if self.one_byte { 1 } else { 2 }
    }

    fn part(self, skipped: u64, characters: u64) -> Option<Self> {
        let end = skipped.checked_add(characters)?;
        if end > self.characters {
            return None;
        }
        let address = self.address.checked_add(skipped.checked_mul(self.width())?)?;
        Some(Self { address, characters, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Objects, layout};
    use super::{Heap, object, small_integer};

    /// Words tell objects from small integers by their lowest bits.
    #[test]
    fn tags() {
        assert_eq!((object(0x1001), object(0x1000), object(0x1003)), (Some(0x1000), None, None));
        assert_eq!((small_integer(7 << 32), small_integer(0x1001)), (Some(7), None));
    }

    /// Strings of every representation come out as what they say.
    #[test]
    fn strings() {
        let mut objects = Objects::default();
        let one = objects.one_byte("handle");
        let two = objects.two_byte("grüße→");
        let joined = objects.cons(one, two);
        let thin = objects.thin(joined);
        let sliced = objects.sliced(two, 2, 3);
        let outside = objects.external("const a = 1;\n");
        let layout = layout();
        let heap = Heap { memory: &objects.memory, layout: &layout };
        let text = |tagged| heap.text(tagged, 100);
        assert_eq!(text(one).as_deref(), Some("handle"));
        assert_eq!(text(two).as_deref(), Some("grüße→"));
        assert_eq!(text(joined).as_deref(), Some("handlegrüße→"));
        assert_eq!(text(thin).as_deref(), Some("handlegrüße→"));
        assert_eq!(text(sliced).as_deref(), Some("üße"));
        assert_eq!(text(outside).as_deref(), Some("const a = 1;\n"));
    }

    /// What is too long, too deep, cut off or no string at all is nothing.
    #[test]
    fn damaged_strings() {
        let mut objects = Objects::default();
        let text = objects.one_byte("a name");
        let endless = objects.endless_cons();
        let beyond = objects.sliced(text, 4, 3);
        // There would be something to read.
        objects.memory.put(text - 1 + 16 + 6, b"beyond");
        let function = objects.function("f", "/srv/app.js", "function f() {}", (10, 15));
        let layout = layout();
        let heap = Heap { memory: &objects.memory, layout: &layout };
        assert_eq!(heap.text(text, 6).as_deref(), Some("a name"));
        assert_eq!(heap.text(text, 5), None);
        assert_eq!(heap.text(endless, 1 << 40), None);
        assert_eq!(heap.text(beyond, 100), None);
        assert_eq!(heap.text(function, 100), None);
        assert_eq!(heap.text(0xdead_beef_0001, 100), None);
        assert_eq!(heap.text(u64::MAX - 2, 100), None);
    }
}
