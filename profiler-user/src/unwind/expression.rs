//! The caller of a frame whose unwind table computes, from registers and the stack, where it is.
//!
//! Hand-written assembly that aligns its stack has such tables (OpenSSL's hashes keep the old stack
//! pointer in memory). framehop evaluates no expression that reads memory, and walks by the frame
//! pointer instead, which such code uses for other things.

use std::sync::Arc;

use framehop::x86_64::UnwindRegsX86_64;
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameHdr, Encoding, EndianSlice, EvaluationResult,
    Expression, Format, LittleEndian, Location, RegisterRule, UnwindContext, UnwindSection,
    UnwindTableRow, Value, X86_64,
};

/// Steps of one expression at most; those of OpenSSL have four.
const MAX_STEPS: u32 = 1000;

const ADDRESS_BYTES: u8 = 8;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// The tables of one module.
#[derive(Debug)]
pub struct Tables {
    pub eh_frame: Arc<[u8]>,
    pub eh_frame_hdr: Arc<[u8]>,
    pub bases: BaseAddresses,
    /// From the addresses that the file states to those of the process.
    pub bias: u64,
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
}

impl Tables {
    /// What the table says of code at this address.
    pub fn coverage(&self, address: u64) -> Coverage {
        let is_expression = |_: &EhFrame<Bytes<'_>>, row: &UnwindTableRow<usize>| {
            matches!(row.cfa(), CfaRule::Expression(_))
        };
        match self.with_row(address, is_expression) {
            None => Coverage::None,
            Some(false) => Coverage::Rule,
            Some(true) => Coverage::Expression,
        }
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
            let bp = match row.register(X86_64::RBP) {
                Some(RegisterRule::Offset(offset)) => Some(offset),
                _ => None,
            };
            Some(Rule { cfa: expression.get(eh_frame).ok()?, bp })
        })?
    }

    /// Looks at the row of an address, if there is one.
    fn with_row<'a, R>(
        &'a self,
        address: u64,
        look: impl FnOnce(&EhFrame<Bytes<'a>>, &UnwindTableRow<usize>) -> R,
    ) -> Option<R> {
        let eh_frame = EhFrame::new(&self.eh_frame, LittleEndian);
        let header = EhFrameHdr::new(&self.eh_frame_hdr, LittleEndian);
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
