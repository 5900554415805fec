//! The unwind tables of an image to the promise that a walk by them ends.
//!
//! Tables may hold programs (DWARF expressions) that jump, and whoever evaluates them jumps along: a
//! loop in one would hold the walk forever. Compilers write no loops there. So all entries that a
//! lookup can find are read once, and tables are refused as a whole where an expression jumps back,
//! or where entries are so large or so entangled that looking at them again for each frame would
//! take minutes.

use std::collections::{BTreeSet, HashMap};

use gimli::{
    BaseAddresses, CallFrameInstruction, CallFrameInstructionIter, CieOrFde,
    CommonInformationEntry, EhFrame, EhFrameHdr, EhFrameOffset, Encoding, EndianSlice, Expression,
    FrameDescriptionEntry, LittleEndian, Operation, ParsedEhFrameHdr, Pointer, Reader, Section,
    UnwindExpression, UnwindSection,
};

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// Bytes of one function's entry at most; each frame of it runs through all. Of the functions of
/// node and Chromium none has more than a few kilobytes.
const MAX_FUNCTION_BYTES: usize = 64 * 1024;

/// Bytes of an entry that functions share at most. Compilers write about 24.
const MAX_SHARED_BYTES: usize = 1024;

/// Such entries at most. Linkers leave one of each kind, a handful.
const MAX_SHARED_ENTRIES: usize = 16 * 1024;

const ADDRESS_BYTES: u8 = 8;

/// The operations that jump: `DW_OP_bra` and `DW_OP_skip`.
const JUMPS: [u8; 2] = [0x28, 0x2f];

/// Refuses tables by which a walk might not end. `bases` are the addresses that the image states.
pub fn check(
    eh_frame: &[u8],
    eh_frame_hdr: Option<&[u8]>,
    bases: &BaseAddresses,
) -> Result<(), String> {
    let mut section = EhFrame::new(eh_frame, LittleEndian);
    section.set_address_size(ADDRESS_BYTES);
    // No more than all entries have, if none lies over another.
    let shared = Shared { section, bases, known: HashMap::new(), refused: false };
    let mut check = Check { section, bases, shared, bytes_left: eh_frame.len() };
    match eh_frame_hdr {
        None => check.all(),
        Some(index) => {
            let index = EhFrameHdr::new(index, LittleEndian).parse(bases, ADDRESS_BYTES);
            // An index that cannot be read leads to no entry.
            index.map_or(Ok(()), |index| check.indexed(&index))
        }
    }
}

struct Check<'a> {
    section: EhFrame<Bytes<'a>>,
    bases: &'a BaseAddresses,
    shared: Shared<'a>,
    bytes_left: usize,
}

/// Entries that functions share, by offset: read only once.
struct Shared<'a> {
    section: EhFrame<Bytes<'a>>,
    bases: &'a BaseAddresses,
    known: HashMap<usize, CommonInformationEntry<Bytes<'a>>>,
    /// There are too many, or one is too large.
    refused: bool,
}

impl<'a> Shared<'a> {
    fn entry(
        &mut self,
        at: EhFrameOffset<usize>,
    ) -> gimli::Result<CommonInformationEntry<Bytes<'a>>> {
        if let Some(entry) = self.known.get(&at.0) {
            return Ok(entry.clone());
        }
        // Before any of it is read: reading runs through all of it.
        let mut rest = *self.section.reader();
        rest.skip(at.0)?;
        let length = usize::try_from(rest.read_u32()?).unwrap_or(usize::MAX);
        if length > MAX_SHARED_BYTES || self.known.len() >= MAX_SHARED_ENTRIES {
            self.refused = true;
            return Err(gimli::Error::UnsupportedOffset);
        }
        let entry = self.section.cie_from_offset(self.bases, at)?;
        self.known.insert(at.0, entry.clone());
        Ok(entry)
    }
}

impl<'a> Check<'a> {
    /// What the index leads to: lookups go by nothing else.
    fn indexed(&mut self, index: &ParsedEhFrameHdr<Bytes<'a>>) -> Result<(), String> {
        let Some(table) = index.table() else { return Ok(()) };
        let damaged = |error| format!("the index of its unwind tables is damaged: {error}");
        let begin = match index.eh_frame_ptr() {
            Pointer::Direct(begin) => begin,
            // Without it no entry is found.
            Pointer::Indirect(_) => return Ok(()),
        };
        let mut rows = table.iter(self.bases);
        let mut offsets = Vec::new();
        while let Some((_, entry)) = rows.next().map_err(damaged)? {
            let Pointer::Direct(entry) = entry else { continue };
            let offset = usize::try_from(entry.wrapping_sub(begin)).unwrap_or(usize::MAX);
            if offset < self.section_bytes() {
                offsets.push(offset);
            }
        }
        offsets.sort_unstable();
        offsets.dedup();
        for offset in offsets {
            let shared = |_: &_, _: &_, at| self.shared.entry(at);
            let entry = self.section.fde_from_offset(self.bases, EhFrameOffset(offset), shared);
            // What cannot be read here cannot be read when it is looked up, either.
            if let Ok(entry) = entry {
                self.function(&entry)?;
            }
        }
        self.all_shared()
    }

    /// Every entry: without an index, one is made of them.
    fn all(&mut self) -> Result<(), String> {
        let damaged = |error| format!("its unwind tables are damaged: {error}");
        let section = self.section;
        let mut entries = section.entries(self.bases);
        while let Some(entry) = entries.next().map_err(damaged)? {
            let CieOrFde::Fde(partial) = entry else { continue };
            let entry = partial.parse(|_, _, at| self.shared.entry(at)).map_err(damaged)?;
            self.function(&entry)?;
        }
        self.all_shared()
    }

    fn section_bytes(&self) -> usize {
        self.section.reader().len()
    }

    fn function(&mut self, entry: &FrameDescriptionEntry<Bytes<'a>>) -> Result<(), String> {
        self.take(entry.entry_len(), MAX_FUNCTION_BYTES)?;
        let instructions = entry.instructions(&self.section, self.bases);
        self.instructions(instructions, entry.cie().encoding())
    }

    fn all_shared(&mut self) -> Result<(), String> {
        if self.shared.refused {
            return Err("its unwind tables share entries as no compiler writes them".to_owned());
        }
        for entry in std::mem::take(&mut self.shared.known).into_values() {
            self.take(entry.entry_len(), MAX_SHARED_BYTES)?;
            let instructions = entry.instructions(&self.section, self.bases);
            self.instructions(instructions, entry.encoding())?;
        }
        Ok(())
    }

    fn take(&mut self, bytes: usize, most: usize) -> Result<(), String> {
        if bytes > most {
            return Err(format!("an entry of its unwind tables has {bytes} bytes"));
        }
        let left = self.bytes_left.checked_sub(bytes);
        self.bytes_left = left.ok_or("entries of its unwind tables lie over each other")?;
        Ok(())
    }

    fn instructions(
        &self,
        mut instructions: CallFrameInstructionIter<'_, Bytes<'a>>,
        encoding: Encoding,
    ) -> Result<(), String> {
        // Nothing that follows an instruction that cannot be read is carried out.
        while let Ok(Some(instruction)) = instructions.next() {
            let expression = match instruction {
                CallFrameInstruction::DefCfaExpression { expression }
                | CallFrameInstruction::Expression { expression, .. }
                | CallFrameInstruction::ValExpression { expression, .. } => expression,
                _ => continue,
            };
            if self.jumps_back(expression, encoding) {
                return Err("an expression in its unwind tables jumps back".to_owned());
            }
        }
        Ok(())
    }

    fn jumps_back(&self, expression: UnwindExpression<usize>, encoding: Encoding) -> bool {
        expression
            .get(&self.section)
            .is_ok_and(|Expression(program)| jumps_back(&program, encoding))
    }
}

/// Whether an operation that can be reached jumps to itself or to before it. A jump forwards may lead
/// into the middle of an operation, and what is read from there on is another program.
fn jumps_back(program: &Bytes<'_>, encoding: Encoding) -> bool {
    if !program.slice().iter().any(|byte| JUMPS.contains(byte)) {
        return false;
    }
    let mut reached = BTreeSet::from([0]);
    while let Some(at) = reached.pop_first() {
        let mut rest = *program;
        if rest.skip(at).is_err() || rest.is_empty() {
            continue;
        }
        let Ok(operation) = Operation::parse(&mut rest, encoding) else { continue };
        let next = program.len() - rest.len();
        match operation {
            Operation::Bra { target } | Operation::Skip { target } => {
                let Some(target) = next.checked_add_signed(target.into()) else { return true };
                if target <= at {
                    return true;
                }
                reached.insert(target);
                if matches!(operation, Operation::Bra { .. }) {
                    reached.insert(next);
                }
            }
            _ => {
                reached.insert(next);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use gimli::{BaseAddresses, Encoding, EndianSlice, Format, LittleEndian};

    use super::{MAX_SHARED_BYTES, check, jumps_back};
    use crate::process::image::Image;

    const SKIP: u8 = 0x2f;
    const BRA: u8 = 0x28;
    const LIT0: u8 = 0x30;
    const CONST2U: u8 = 0x0a;
    const DEF_CFA_EXPRESSION: u8 = 0x0f;

    /// A length, and that many bytes after it.
    fn entry(mut body: Vec<u8>) -> Vec<u8> {
        body.resize(body.len().next_multiple_of(4), 0);
        let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
        bytes.append(&mut body);
        bytes
    }

    /// A table with one function, whose canonical frame address is what the program computes.
    fn eh_frame(program: &[u8], in_shared: bool) -> Vec<u8> {
        let mut instructions = vec![DEF_CFA_EXPRESSION, program.len() as u8];
        instructions.extend_from_slice(program);
        // Identifier 0, version 1, no augmentation, alignment factors 1 and -8, register 16.
        let mut shared = vec![0, 0, 0, 0, 1, 0, 1, 0x78, 16];
        let mut function = vec![0; 20];
        function[12] = 64;
        if in_shared { &mut shared } else { &mut function }.extend_from_slice(&instructions);
        let mut bytes = entry(shared);
        // How far back the shared entry lies.
        function[..4].copy_from_slice(&(bytes.len() as u32 + 4).to_le_bytes());
        bytes.extend(entry(function));
        bytes
    }

    /// An index with one row, which leads to this offset.
    fn eh_frame_hdr(offset: u64) -> Vec<u8> {
        // All numbers in eight bytes, absolute.
        let mut bytes = vec![1, 4, 4, 4];
        for number in [0, 1, 0, offset] {
            bytes.extend_from_slice(&u64::to_le_bytes(number));
        }
        bytes
    }

    fn refusal(eh_frame: &[u8], eh_frame_hdr: Option<&[u8]>) -> String {
        check(eh_frame, eh_frame_hdr, &BaseAddresses::default()).unwrap_err()
    }

    /// A loop is found in what a function has of its own and in what it shares, with and without index.
    #[test]
    fn endless_expressions() {
        let endless = [SKIP, 0xfd, 0xff];
        for in_shared in [false, true] {
            let table = eh_frame(&endless, in_shared);
            let function = 4 + u64::from(table[0]);
            assert!(refusal(&table, None).contains("jumps back"));
            assert!(refusal(&table, Some(&eh_frame_hdr(function))).contains("jumps back"));
            let table = eh_frame(&[LIT0], in_shared);
            let bases = BaseAddresses::default();
            assert_eq!(check(&table, None, &bases), Ok(()));
            assert_eq!(check(&table, Some(&eh_frame_hdr(function)), &bases), Ok(()));
        }
    }

    /// Jumps forwards are followed, also to where they land inside of an operation; what is never
    /// reached does no harm.
    #[test]
    fn jumps() {
        let encoding = Encoding { address_size: 8, format: Format::Dwarf32, version: 1 };
        let endless =
            |program: &[u8]| jumps_back(&EndianSlice::new(program, LittleEndian), encoding);
        assert!(!endless(&[]) && !endless(&[LIT0, SKIP]));
        assert!(!endless(&[LIT0, BRA, 1, 0, LIT0, LIT0]));
        assert!(endless(&[LIT0, BRA, 0xfc, 0xff]));
        assert!(endless(&[SKIP, 0xf0, 0xff]), "to before the program");
        // Over the first byte of an operation whose operand is a jump to itself.
        let inside = [SKIP, 1, 0, CONST2U, SKIP, 0xfd, 0xff];
        assert!(endless(&inside));
        assert!(!endless(&inside[3..]), "read from its beginning it is a number");
        assert!(!endless(&[SKIP, 3, 0, SKIP, 0xfd, 0xff, LIT0]), "jumped over");
    }

    /// Entries that take long to read, or are read over and over, are refused before that.
    #[test]
    fn large_and_entangled_entries() {
        let mut table = eh_frame(&[LIT0], true);
        let function = 4 + u64::from(table[0]);
        let mut rows = eh_frame_hdr(function);
        // The same function twice is one entry; a second one that lies over it is not.
        rows[12] = 2;
        rows.extend([[0; 8], function.to_le_bytes()].concat());
        assert_eq!(check(&table, Some(&rows), &BaseAddresses::default()), Ok(()));
        rows[12] = 3;
        assert!(refusal(&table, Some(&rows)).contains("index"), "rows that are not there");
        table[..4].copy_from_slice(&(MAX_SHARED_BYTES as u32 + 1).to_le_bytes());
        table.resize(2 * MAX_SHARED_BYTES, 0);
        assert!(refusal(&table, Some(&eh_frame_hdr(function))).contains("share"));
    }

    /// What compilers and linkers write is let through.
    #[test]
    fn real_tables() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let libc = maps.lines().find(|line| line.contains("libc.so")).unwrap();
        let libc = libc.split_whitespace().last().unwrap();
        for path in ["/proc/self/exe", "/bin/true", libc] {
            let image = Image::from_file(File::open(path).unwrap(), 0).unwrap();
            let (table, index) = (image.eh_frame().unwrap(), image.eh_frame_hdr().unwrap());
            let bases = BaseAddresses::default()
                .set_eh_frame(table.address.start)
                .set_eh_frame_hdr(index.address.start);
            let (table, index) = (image.read(table).unwrap(), image.read(index).unwrap());
            assert_eq!(check(&table, Some(&index), &bases), Ok(()), "{path}");
            assert_eq!(check(&table, None, &bases), Ok(()), "{path}");
        }
    }
}
