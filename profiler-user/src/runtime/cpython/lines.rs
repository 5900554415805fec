//! A code object's line table to the line of each instruction: the three formats since 3.8.
//!
//! Specified in CPython's `Objects/lnotab_notes.txt` (to 3.10) and `Objects/locations.md` (3.11).
//! The bytes are the target's: nothing here can panic or loop beyond their number.

/// How a version writes its line tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineTableFormat {
    /// 3.8, 3.9 (`co_lnotab`): pairs of an address step and a signed line step.
    Lnotab,
    /// 3.10: pairs of a length and a signed line step that is taken first.
    Ranges,
    /// 3.11 and later: entries of variable length that also hold columns.
    Locations,
}

/// Why an instruction has no line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoLine {
    /// The compiler put the instruction there by itself.
    Artificial,
    /// The offset is not that of an instruction of this code.
    Outside,
    /// The table ends in the middle of an entry, before this instruction.
    Damaged,
}

impl NoLine {
    /// The end of the sentence "line: …".
    pub fn reason(self) -> &'static str {
        match self {
            Self::Artificial => "the compiler gave this instruction none",
            Self::Outside => "the instruction lies outside the code's line table",
            Self::Damaged => "the code's line table is damaged",
        }
    }
}

/// Instructions up to `end` (excluded), from where the range before ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    end: u32,
    line: Option<u32>,
}

/// A table, decoded: consecutive ranges of bytecode, each with one line or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineTable {
    first_line: u32,
    ranges: Vec<Range>,
    damaged: bool,
}

impl LineTable {
    /// Decodes a whole table. A damaged one is good as far as it could be read.
    pub fn parse(format: LineTableFormat, first_line: u32, table: &[u8]) -> Self {
        let mut building = Building { line: i64::from(first_line), ranges: Vec::new() };
        let complete = match format {
            LineTableFormat::Lnotab => building.lnotab(table),
            LineTableFormat::Ranges => building.pairs(table),
            LineTableFormat::Locations => building.locations(table).is_some(),
        };
        building.ranges.shrink_to_fit();
        Self { first_line, ranges: building.ranges, damaged: !complete }
    }

    /// The line of the instruction at `offset` bytes from the beginning of the bytecode.
    pub fn line_at(&self, offset: i64) -> Result<u32, NoLine> {
        // One instruction before the first: the frame exists, but has not begun to run.
        if offset == -1 || offset == -2 {
            return Ok(self.first_line);
        }
        let offset = u32::try_from(offset).map_err(|_| NoLine::Outside)?;
        let position = self.ranges.partition_point(|range| range.end <= offset);
        match self.ranges.get(position) {
            Some(range) => range.line.ok_or(NoLine::Artificial),
            None if self.damaged => Err(NoLine::Damaged),
            None => Err(NoLine::Outside),
        }
    }

    /// Bytes that it holds, for whoever keeps many.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.ranges.capacity() * size_of::<Range>()
    }
}

/// A table on its way.
struct Building {
    /// Signed and wide: a hostile table may step far below zero, and no table can overflow this.
    line: i64,
    ranges: Vec<Range>,
}

/// What a varint may hold at most: six groups of six bits, where lines and columns have 32 bits.
const MAX_VARINT_GROUPS: u32 = 6;

impl Building {
    fn end(&self) -> u32 {
        self.ranges.last().map_or(0, |range| range.end)
    }

    /// The next `bytes` of bytecode have this line. Neighbours with the same line become one.
    fn push(&mut self, bytes: u32, line: Option<i64>) {
        let line = line.and_then(|line| u32::try_from(line).ok());
        let end = self.end().saturating_add(bytes);
        match self.ranges.last_mut() {
            Some(last) if last.line == line => last.end = end,
            _ if bytes == 0 => {}
            _ => self.ranges.push(Range { end, line }),
        }
    }

    /// False where the table ends within a pair. It has no end of its own: the last line holds on.
    fn lnotab(&mut self, table: &[u8]) -> bool {
        let (pairs, rest) = table.as_chunks();
        for &[step, line_step] in pairs {
            self.push(u32::from(step), Some(self.line));
            self.line += i64::from(line_step.cast_signed());
        }
        if rest.is_empty() {
            self.push(u32::MAX, Some(self.line));
        }
        rest.is_empty()
    }

    fn pairs(&mut self, table: &[u8]) -> bool {
        /// A line step that means "no line here".
        const NO_LINE: i8 = -128;
        let (pairs, rest) = table.as_chunks();
        for &[length, line_step] in pairs {
            let step = line_step.cast_signed();
            if step == NO_LINE {
                self.push(u32::from(length), None);
            } else {
                self.line += i64::from(step);
                self.push(u32::from(length), Some(self.line));
            }
        }
        rest.is_empty()
    }

    /// None where the table ends within an entry.
    fn locations(&mut self, table: &[u8]) -> Option<()> {
        let mut bytes = table.iter().copied();
        while let Some(head) = bytes.next() {
            // Every entry's first byte has the highest bit, and no other byte has it.
            if head & 0x80 == 0 {
                return None;
            }
            let units = u32::from(head & 7) + 1;
            let mut line = true;
            match (head >> 3) & 15 {
                15 => line = false,
                // Line step, end line, column, end column.
                14 => {
                    self.line += signed(&mut bytes)?;
                    for _ in 0..3 {
                        varint(&mut bytes)?;
                    }
                }
                // Line step only.
                13 => self.line += signed(&mut bytes)?,
                // A line step of 0 to 2 and two columns.
                kind @ 10..=12 => {
                    self.line += i64::from(kind) - 10;
                    bytes.next()?;
                    bytes.next()?;
                }
                // The same line; both columns in one byte.
                _ => {
                    bytes.next()?;
                }
            }
            self.push(2 * units, line.then_some(self.line));
        }
        Some(())
    }
}

/// Groups of six bits, the least significant first; the seventh bit says that more follow.
fn varint(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let mut value = 0;
    for group in 0..MAX_VARINT_GROUPS {
        let byte = bytes.next()?;
        if byte & 0x80 != 0 {
            return None;
        }
        value |= u64::from(byte & 0x3f) << (6 * group);
        if byte & 0x40 == 0 {
            return Some(value);
        }
    }
    None
}

/// A varint whose lowest bit is the sign.
fn signed(bytes: &mut impl Iterator<Item = u8>) -> Option<i64> {
    let value = varint(bytes)?;
    let magnitude = i64::try_from(value >> 1).ok()?;
    Some(if value & 1 == 1 { -magnitude } else { magnitude })
}

#[cfg(test)]
mod tests {
    use super::{LineTable, LineTableFormat, NoLine};

    fn lines(table: &LineTable, offsets: impl IntoIterator<Item = i64>) -> Vec<Option<u32>> {
        offsets.into_iter().map(|offset| table.line_at(offset).ok()).collect()
    }

    /// 3.8: lines step forward and back, large steps are split over pairs, the last line holds on.
    #[test]
    fn lnotab() {
        //           0..6: 10   6..10: 12   10..: 9   (255 bytes on, and 45): 9+127+3
        let bytes = [6, 2, 4, 0xfd, 255, 0, 45, 127, 0, 3];
        let table = LineTable::parse(LineTableFormat::Lnotab, 10, &bytes);
        assert_eq!(lines(&table, [0, 5]), [Some(10); 2]);
        assert_eq!(lines(&table, [6, 9]), [Some(12); 2]);
        assert_eq!(lines(&table, [10, 265, 309]), [Some(9); 3]);
        assert_eq!(lines(&table, [310, 1_000_000]), [Some(139); 2]);
    }

    /// A 3.8 function of one line has an empty table.
    #[test]
    fn lnotab_may_be_empty() {
        let table = LineTable::parse(LineTableFormat::Lnotab, 7, &[]);
        assert_eq!(lines(&table, [-1, 0, 40]), [Some(7); 3]);
    }

    /// 3.10: the step comes before its range, -128 means no line and leaves the counter alone.
    #[test]
    fn ranges() {
        let bytes = [4, 1, 2, 0x80, 0, 127, 6, 1, 2, 0xff];
        let table = LineTable::parse(LineTableFormat::Ranges, 20, &bytes);
        assert_eq!(lines(&table, [0, 2]), [Some(21); 2]);
        assert_eq!(table.line_at(4), Err(NoLine::Artificial));
        assert_eq!(lines(&table, [6, 11, 12, 13]), [Some(149), Some(149), Some(148), Some(148)]);
        assert_eq!(table.line_at(14), Err(NoLine::Outside));
    }

    /// 3.11: each kind of entry, with the lengths and steps that it may have.
    #[test]
    fn locations() {
        let bytes = [
            0x80 | 2,
            0x11, // kind 0, 3 units, same line: 0..6 line 5
            0x80 | (11 << 3) | 1,
            4,
            9, // kind 11, 2 units, one line on: 6..10 line 6
            0x80 | (12 << 3),
            4,
            9, // kind 12: 10..12 line 8
            0x80 | (13 << 3) | 7,
            0x07,             // kind 13, 8 units, 3 lines back: 12..28 line 5
            0x80 | (15 << 3), // no location: 28..30
            0x80 | (14 << 3),
            0x48,
            0x03,
            0x02,
            0x41,
            0x01,
            0x05, // 100 lines on: 30..32 line 105
        ];
        let table = LineTable::parse(LineTableFormat::Locations, 5, &bytes);
        assert_eq!(lines(&table, [-2, 0, 4]), [Some(5); 3]);
        assert_eq!(lines(&table, [6, 8]), [Some(6); 2]);
        assert_eq!(lines(&table, [10, 12, 26]), [Some(8), Some(5), Some(5)]);
        assert_eq!(table.line_at(28), Err(NoLine::Artificial));
        assert_eq!(lines(&table, [30, 31]), [Some(105); 2]);
        assert_eq!(table.line_at(32), Err(NoLine::Outside));
        assert_eq!(table.line_at(-3), Err(NoLine::Outside));
        assert_eq!(table.line_at(i64::MAX), Err(NoLine::Outside));
    }

    /// A table that ends within an entry is good up to there and says why it is not beyond.
    #[test]
    fn truncated() {
        let whole = [0x80, 0x11, 0x80 | (14 << 3), 0x48, 0x03, 0x02, 0x41, 0x01, 0x05];
        for length in 3..whole.len() {
            let table = LineTable::parse(LineTableFormat::Locations, 5, &whole[..length]);
            assert_eq!(table.line_at(0), Ok(5));
            assert_eq!(table.line_at(2), Err(NoLine::Damaged), "{length} bytes");
        }
        assert_eq!(
            LineTable::parse(LineTableFormat::Ranges, 5, &[2, 1, 2]).line_at(2),
            Err(NoLine::Damaged)
        );
        assert_eq!(
            LineTable::parse(LineTableFormat::Lnotab, 5, &[2, 1, 2]).line_at(2),
            Err(NoLine::Damaged)
        );
    }

    /// Numbers without end, steps below line 0 and bytes out of place neither panic nor invent lines.
    #[test]
    fn hostile() {
        let endless = [0x80 | (13 << 3), 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x01];
        let table = LineTable::parse(LineTableFormat::Locations, 5, &endless);
        assert_eq!(table.line_at(0), Err(NoLine::Damaged));
        let below_zero = LineTable::parse(LineTableFormat::Lnotab, 5, &[2, 0x80]);
        assert_eq!(below_zero.line_at(2), Err(NoLine::Artificial));
        let no_head = LineTable::parse(LineTableFormat::Locations, 5, &[0x11, 0x11]);
        assert_eq!(no_head.line_at(0), Err(NoLine::Damaged));
    }

    /// Whatever the bytes are, decoding ends, and lookups agree with the ranges' order.
    #[test]
    fn garbage() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for round in 0..2000_u32 {
            let bytes: Vec<u8> = (0..round % 67)
                .map(|_| {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    seed.to_le_bytes()[3]
                })
                .collect();
            for format in
                [LineTableFormat::Lnotab, LineTableFormat::Ranges, LineTableFormat::Locations]
            {
                let table = LineTable::parse(format, round, &bytes);
                assert!(table.ranges.is_sorted_by(|before, after| before.end < after.end));
                for offset in [i64::MIN, -1, 0, 1, 77, i64::from(u32::MAX), i64::MAX] {
                    let _ = table.line_at(offset);
                }
            }
        }
    }
}
