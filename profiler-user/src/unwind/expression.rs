//! The caller of a frame whose unwind table computes, from registers and the stack, where it is.
//!
//! Hand-written assembly that aligns its stack has such tables (OpenSSL's hashes keep the old stack
//! pointer in memory). framehop evaluates no expression that reads memory, and walks by the frame
//! pointer instead, which such code uses for other things.

use std::ops::Range;
use std::sync::Arc;

use framehop::x86_64::UnwindRegsX86_64;
use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EhFrameHdr, Encoding, EndianSlice, EvaluationResult,
    Expression, Format, LittleEndian, Location, RegisterRule, UnwindContext, UnwindSection,
    UnwindTableRow, Value, X86_64,
};

/// Steps of one expression at most; those of OpenSSL have four.
const MAX_STEPS: u32 = 1000;

/// Functions of a table without an index at most.
const MAX_FUNCTIONS: usize = 1 << 20;

const ADDRESS_BYTES: u8 = 8;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// The tables of one module.
#[derive(Debug)]
pub struct Tables {
    pub eh_frame: Arc<[u8]>,
    pub index: Index,
    pub bases: BaseAddresses,
    /// From the addresses that the file states to those of the process.
    pub bias: u64,
}

/// By what the entry of an address is found.
#[derive(Debug)]
pub enum Index {
    /// The linker's.
    EhFrameHdr(Arc<[u8]>),
    /// Where there is none, the bounds of all functions, as the file states them, by address. It tells
    /// which are covered, and no more: what it takes to find one entry without an index is too much.
    Bounds(Vec<(u64, u64)>),
}

impl Index {
    /// The bounds of all functions of a table.
    pub fn of_bounds(eh_frame: &[u8], bases: &BaseAddresses) -> Self {
        let eh_frame = EhFrame::new(eh_frame, LittleEndian);
        let mut entries = eh_frame.entries(bases);
        let mut bounds = Vec::new();
        while let Ok(Some(entry)) = entries.next()
            && bounds.len() < MAX_FUNCTIONS
        {
            let CieOrFde::Fde(partial) = entry else { continue };
            if let Ok(entry) = partial.parse(EhFrame::cie_from_offset) {
                bounds.push((entry.initial_address(), entry.end_address()));
            }
        }
        bounds.sort_unstable();
        Self::Bounds(bounds)
    }
}

/// How the caller of one frame is found.
#[derive(Debug, Clone, Copy)]
struct Rule<'a> {
    /// Where the stack pointer of the caller is.
    cfa: Expression<Bytes<'a>>,
    bp: Option<i64>,
}

/// What a table says of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    None,
    Rule,
    /// Where the caller's frame is, an expression computes.
    Expression,
    /// It counts from a register that nothing is known of: some assembly keeps the old stack pointer in one.
    Unknown,
}

impl Tables {
    /// What the table says of code at this address.
    pub fn coverage(&self, address: u64) -> Coverage {
        let of_row = |_: &EhFrame<Bytes<'_>>, row: &UnwindTableRow<usize>| match row.cfa() {
            CfaRule::Expression(_) => Coverage::Expression,
            CfaRule::RegisterAndOffset { register: X86_64::RSP | X86_64::RBP, .. } => {
                Coverage::Rule
            }
            CfaRule::RegisterAndOffset { .. } => Coverage::Unknown,
        };
        if let Index::Bounds(_) = &self.index {
            return self.function(address).map_or(Coverage::None, |_| Coverage::Rule);
        }
        self.with_row(address, of_row).unwrap_or(Coverage::None)
    }

    /// Where the caller's frame pointer is saved, from the caller's stack pointer on.
    pub fn saved_frame_pointer(&self, address: u64) -> Option<i64> {
        self.with_row(address, |_, row| saved_frame_pointer(row))?
    }

    /// The bounds of the function, or of the part of one, that holds an address.
    pub fn function(&self, address: u64) -> Option<Range<u64>> {
        let stated = address.wrapping_sub(self.bias);
        let (start, end) = match &self.index {
            Index::EhFrameHdr(header) => {
                let eh_frame = EhFrame::new(&self.eh_frame, LittleEndian);
                let header = EhFrameHdr::new(header, LittleEndian);
                let header = header.parse(&self.bases, ADDRESS_BYTES).ok()?;
                let read_shared = EhFrame::cie_from_offset;
                let table = header.table()?;
                let entry =
                    table.fde_for_address(&eh_frame, &self.bases, stated, read_shared).ok()?;
                (entry.initial_address(), entry.end_address())
            }
            Index::Bounds(bounds) => {
                let after = bounds.partition_point(|(start, _)| *start <= stated);
                *bounds.get(after.checked_sub(1)?)?
            }
        };
        let in_process = |address: u64| address.wrapping_add(self.bias);
        (start..end).contains(&stated).then(|| in_process(start)..in_process(end))
    }

    /// The caller's registers. `address` is the instruction or, of a caller, the byte before the
    /// return address.
    pub fn caller(
        &self,
        address: u64,
        registers: UnwindRegsX86_64,
        read: &mut dyn FnMut(u64) -> Result<u64, ()>,
    ) -> Option<UnwindRegsX86_64> {
        let rule = self.rule(address)?;
        let cfa = evaluate(rule.cfa, registers, read)?;
        // Going back would let a forged table lead in circles.
        if cfa <= registers.sp() {
            return None;
        }
        let ip = read(cfa.checked_sub(8)?).ok()?;
        let bp = match rule.bp {
            Some(offset) => read(cfa.checked_add_signed(offset)?).ok()?,
            None => registers.bp(),
        };
        Some(UnwindRegsX86_64::new(ip, cfa, bp))
    }

    fn rule(&self, address: u64) -> Option<Rule<'_>> {
        self.with_row(address, |eh_frame, row| {
            let CfaRule::Expression(expression) = row.cfa() else { return None };
            Some(Rule { cfa: expression.get(eh_frame).ok()?, bp: saved_frame_pointer(row) })
        })?
    }

    /// Looks at the row of an address, if there is one.
    fn with_row<'a, R>(
        &'a self,
        address: u64,
        look: impl FnOnce(&EhFrame<Bytes<'a>>, &UnwindTableRow<usize>) -> R,
    ) -> Option<R> {
        let eh_frame = EhFrame::new(&self.eh_frame, LittleEndian);
        let Index::EhFrameHdr(header) = &self.index else { return None };
        let header = EhFrameHdr::new(header, LittleEndian);
        let header = header.parse(&self.bases, ADDRESS_BYTES).ok()?;
        let mut context = UnwindContext::new();
        let row = header
            .table()?
            .unwind_info_for_address(
                &eh_frame,
                &self.bases,
                &mut context,
                address.wrapping_sub(self.bias),
                EhFrame::cie_from_offset,
            )
            .ok()?;
        Some(look(&eh_frame, row))
    }
}

fn saved_frame_pointer(row: &UnwindTableRow<usize>) -> Option<i64> {
    match row.register(X86_64::RBP) {
        Some(RegisterRule::Offset(offset)) => Some(offset),
        _ => None,
    }
}

fn evaluate(
    expression: Expression<Bytes<'_>>,
    registers: UnwindRegsX86_64,
    read: &mut dyn FnMut(u64) -> Result<u64, ()>,
) -> Option<u64> {
    let encoding = Encoding { address_size: ADDRESS_BYTES, format: Format::Dwarf32, version: 1 };
    let mut evaluation = expression.evaluation(encoding);
    evaluation.set_max_iterations(MAX_STEPS);
    let mut result = evaluation.evaluate().ok()?;
    loop {
        result = match result {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register, .. } => {
                let value = match register {
                    X86_64::RA => registers.ip(),
                    X86_64::RSP => registers.sp(),
                    X86_64::RBP => registers.bp(),
                    // Of the others, nothing is known.
                    _ => return None,
                };
                evaluation.resume_with_register(Value::Generic(value)).ok()?
            }
            EvaluationResult::RequiresMemory { address, size: ADDRESS_BYTES, .. } => {
                evaluation.resume_with_memory(Value::Generic(read(address).ok()?)).ok()?
            }
            _ => return None,
        };
    }
    match evaluation.as_result() {
        [piece] => match piece.location {
            Location::Address { address } => Some(address),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Expression, LittleEndian, UnwindRegsX86_64, evaluate};

    const SP: u64 = 0x7ffe_0000_1000;

    fn cfa(bytes: &[u8]) -> Option<u64> {
        let expression = Expression(Bytes::new(bytes, LittleEndian));
        let registers = UnwindRegsX86_64::new(0x40_0000, SP, 0);
        let mut read = |address| if address == SP + 152 { Ok(SP + 0x300) } else { Err(()) };
        evaluate(expression, registers, &mut read)
    }

    /// OpenSSL's `%rsp+152,deref,+8`.
    #[test]
    fn saved_stack_pointer() {
        assert_eq!(cfa(&[0x77, 0x98, 0x01, 0x06, 0x23, 0x08]), Some(SP + 0x308));
    }

    /// What needs memory that was not copied, or a register that is not known, or never ends, is
    /// nothing.
    #[test]
    fn what_cannot_be_told() {
        assert_eq!(cfa(&[0x77, 0x08, 0x06]), None, "memory");
        assert_eq!(cfa(&[0x73, 0x00]), None, "rbx");
        assert_eq!(cfa(&[0x2f, 0xfd, 0xff]), None, "a jump to itself");
        assert_eq!(cfa(&[0x77, 0x00, 0x1c]), None, "an empty stack");
        assert_eq!(cfa(&[]), None);
    }
}
