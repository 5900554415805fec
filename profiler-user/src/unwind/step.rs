//! Steps outwards that need no unwind table: along frame pointers, and out of signal handlers.

use framehop::FrameAddress;
use framehop::x86_64::UnwindRegsX86_64;

/// Offsets in `struct ucontext` of the interrupted `rbp`, `rsp` and `rip`
/// (arch/x86/include/uapi/asm/sigcontext.h).
const UCONTEXT_BP: u64 = 120;
const UCONTEXT_SP: u64 = 160;
const UCONTEXT_IP: u64 = 168;

/// Where a walk stands.
#[derive(Clone, Copy)]
pub struct Position {
    pub address: FrameAddress,
    pub registers: UnwindRegsX86_64,
}

/// What one step outwards led to.
pub enum Step {
    Caller(Position),
    Outermost,
    Stopped(String),
}

/// The captured bytes, and whether something was wanted of what lies beyond them.
pub struct CapturedStack<'a> {
    pub start: u64,
    pub bytes: &'a [u8],
    pub wanted_more: bool,
}

impl CapturedStack<'_> {
    pub fn read(&mut self, address: u64) -> Result<u64, ()> {
        let Some(offset) = address.checked_sub(self.start) else { return Err(()) };
        let tail = usize::try_from(offset).ok().and_then(|offset| self.bytes.get(offset..));
        match tail.and_then(|tail| tail.first_chunk::<8>()) {
            Some(word) => Ok(u64::from_le_bytes(*word)),
            None => {
                self.wanted_more = true;
                Err(())
            }
        }
    }

    pub fn goes_on(&self) -> String {
        format!("the stack goes on past the {} bytes copied", self.bytes.len())
    }
}

/// The caller's frame pointer and the return address lie where the frame pointer points to.
pub fn by_frame_pointer(position: Position, stack: &mut CapturedStack<'_>) -> Step {
    let registers = position.registers;
    let frame = registers.bp();
    let nowhere = || Step::Stopped(format!("the frame pointer {frame:#x} leads nowhere"));
    // Going back would let a forged stack lead in circles.
    let Some(sp) = frame.checked_add(16).filter(|sp| *sp > registers.sp()) else {
        return nowhere();
    };
    let (Ok(bp), Ok(ip)) = (stack.read(frame), stack.read(sp - 8)) else {
        return if stack.wanted_more { Step::Stopped(stack.goes_on()) } else { nowhere() };
    };
    match FrameAddress::from_return_address(ip) {
        Some(address) => {
            Step::Caller(Position { address, registers: UnwindRegsX86_64::new(ip, sp, bp) })
        }
        None => nowhere(),
    }
}

/// From the frame that the kernel made for a signal handler to the code that the signal interrupted.
/// Tables describe this too, by expressions over memory, which framehop does not evaluate.
pub fn interrupted(position: Position, stack: &mut CapturedStack<'_>) -> Step {
    let context = position.registers.sp();
    let mut register = |offset| stack.read(context.wrapping_add(offset));
    let (Ok(bp), Ok(sp), Ok(ip)) =
        (register(UCONTEXT_BP), register(UCONTEXT_SP), register(UCONTEXT_IP))
    else {
        return Step::Stopped(stack.goes_on());
    };
    // Going back would let a forged stack lead in circles.
    if sp <= context {
        return Step::Stopped("the signal handler ran on a stack of its own".to_owned());
    }
    Step::Caller(Position {
        address: FrameAddress::from_instruction_pointer(ip),
        registers: UnwindRegsX86_64::new(ip, sp, bp),
    })
}

#[cfg(test)]
mod tests {
    use super::{CapturedStack, FrameAddress, Position, Step, UnwindRegsX86_64, by_frame_pointer};

    const SP: u64 = 0x7ffe_0000_1000;

    /// Where the step from a frame pointer leads to: return address, stack pointer, frame pointer.
    fn step(sp: u64, bp: u64) -> Result<(u64, u64, u64), String> {
        let words = [7, 0x7ffe_0000_2000, 0x40_1234, 9, 1, 0_u64];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut stack = CapturedStack { start: SP, bytes: &bytes, wanted_more: false };
        let position = Position {
            address: FrameAddress::from_instruction_pointer(0x40_0000),
            registers: UnwindRegsX86_64::new(0x40_0000, sp, bp),
        };
        match by_frame_pointer(position, &mut stack) {
            Step::Caller(Position { registers, .. }) => {
                Ok((registers.ip(), registers.sp(), registers.bp()))
            }
            Step::Stopped(why) => Err(why),
            Step::Outermost => Err("outermost".to_owned()),
        }
    }

    /// The caller is found above the frame pointer; one that leads back, or to no code, ends the walk.
    #[test]
    fn frame_pointers() {
        assert_eq!(step(SP, SP + 8), Ok((0x40_1234, SP + 24, 0x7ffe_0000_2000)));
        for bp in [0, 8, SP - 16, SP + 32, u64::MAX, u64::MAX - 7] {
            let why = step(SP, bp).unwrap_err();
            assert!(why.contains("leads nowhere"), "{bp:#x}: {why}");
        }
        assert!(step(SP + 24, SP + 8).unwrap_err().contains("leads nowhere"), "back");
        assert!(step(SP, SP + 40).unwrap_err().contains("goes on"), "past the copy");
    }
}
