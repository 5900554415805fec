//! Whether the interpreter collects garbage: a flag that its collector sets for as long as it is at work.
//!
//! Offsets of 3.8 to 3.13 by `offsetof` over each version's internal headers, of 3.14 by what it publishes:
//! `_gc_runtime_state.collecting` (Include/internal/pycore_gc.h) is an `int` in all of them.

use super::layout::{Collecting, CpythonLayout};
use crate::process::TargetMemory;

impl Collecting {
    /// The flag of the first interpreter. None where the runtime cannot be read.
    pub fn locate(
        self,
        memory: &dyn TargetMemory,
        layout: &CpythonLayout,
        runtime: u64,
    ) -> Option<u64> {
        match self {
            Self::Runtime(offset) => runtime.checked_add(offset.into()),
            Self::Interpreter { collector, flag } => {
                let head = runtime.checked_add(layout.runtime_interpreters.into())?;
                let interpreter = memory.read_u64(head).ok().filter(|address| *address != 0)?;
                interpreter.checked_add(collector.into())?.checked_add(flag.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::process::{TargetMemory, Unreadable};
    use crate::runtime::cpython::offsets::of_minor;

    /// A runtime whose first interpreter is at 5000.
    struct Runtime;

    impl TargetMemory for Runtime {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
            if address != 1000 + 40 {
                return Err(Unreadable { address, bytes: buffer.len() });
            }
            buffer.copy_from_slice(&5000_u64.to_le_bytes()[..buffer.len()]);
            Ok(())
        }
    }

    /// In the runtime itself, or in the interpreter, if there is one.
    #[test]
    fn where_it_is() {
        let locate = |minor, runtime| {
            let layout = of_minor(minor).expect("known");
            layout.collecting.locate(&Runtime, &layout, runtime)
        };
        assert_eq!(locate(8, 1000), Some(1544));
        assert_eq!(locate(11, 1000), Some(5000 + 848));
        assert_eq!(locate(12, 1000), Some(5000 + 312));
        assert_eq!(locate(11, 9000), None);
    }
}
