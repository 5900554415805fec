//! When two captures of one turn show the same: the same code, in the same state, in the same call.

use profiler_ebpf::record::Registers;

use super::{Awaited, Sampled, ThreadState};
use crate::call::Call;
use crate::frame::Stack;

/// How a thread was when its stack was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Was {
    pub state: ThreadState,
    pub registers: Registers,
    pub awaited: Awaited,
    /// As [`Sampled::task_state`].
    pub task_state: u64,
    /// As [`Sampled::call`].
    pub call: Option<Call>,
}

impl Was {
    /// Whether a stack that is known was taken in the same wait, as far as that can be told without its
    /// frames. What a lock's or the interpreter's waits are called with changes from one to the next.
    pub fn is_of(&self, known: &Sampled) -> bool {
        let same_call = self.awaited != Awaited::Syscall
            || self.state != ThreadState::Blocked
            || first_of(&self.registers) == first_of(&known.registers);
        self.is_like(known)
            && same_call
            && match (&self.call, &known.call) {
                (Some(call), Some(known)) => call.is_on_the_same(known),
                _ => true,
            }
    }

    /// The same whatever its system call works on: that may be something else each time.
    pub fn is_like(&self, known: &Sampled) -> bool {
        let told_by = |was: &Registers, task_state| match self.state {
            ThreadState::Blocked => (was.syscall, 0),
            // Who was stopped differs by who stopped it.
            ThreadState::Stopped => (0, task_state),
            _ => (0, 0),
        };
        (self.state, self.awaited) == (known.state, known.awaited)
            && told_by(&self.registers, self.task_state)
                == told_by(&known.registers, known.task_state)
    }
}

/// The system call and its first argument. Outside of any, what lies in that register is no argument.
fn first_of(registers: &Registers) -> (i64, Option<u64>) {
    let [first, ..] = registers.args;
    (registers.syscall, (registers.syscall >= 0).then_some(first))
}

/// Whether both came into the kernel the same way: by the same system call, a fault, or not at all.
pub fn is_same_entry(known: &Sampled, stack: &Stack, registers: &Registers) -> bool {
    let entry = |stack: &Stack| stack.kernel.last().and_then(|frame| frame.function.clone());
    known.registers.syscall == registers.syscall && entry(&known.stack) == entry(stack)
}

/// Equal to a reader: the same functions at the same lines, whatever the addresses.
pub fn looks_same(one: &Stack, other: &Stack) -> bool {
    one.frames.len() == other.frames.len()
        && one.frames.iter().zip(&other.frames).all(|(a, b)| {
            a.function == b.function
                && a.file == b.file
                && a.line == b.line
                && a.module == b.module
                && (a.function.is_some() || a.module_offset == b.module_offset)
        })
}
