//! The global interpreter lock: whether a thread waits for it, and who holds it.
//!
//! Offsets from 3.8 to 3.15, by `offsetof` over each version's internal headers: `_gil_runtime_state`
//! (Include/internal/pycore_gil.h) has kept its form throughout.

use super::layout::{CpythonLayout, LockPlace};
use crate::process::TargetMemory;
use crate::runtime::GlobalLock;

/// `last_holder`, a thread state.
const HOLDER: u64 = 8;

/// `locked`, an `int`: 1 while it is held.
const LOCKED: u64 = 16;

/// `cond`, `mutex`, `switch_cond` and `switch_mutex` lie next to each other: whoever waits on any of
/// them waits for the lock. The last is followed by nothing.
const WAITED_ON: std::ops::Range<u64> = 32..208;

/// `enabled`, an `int`, and what aligns the rest.
const IN_USE_BYTES: u64 = 8;

/// The lock of the first interpreter. None where the runtime cannot be read, or a free-threaded build does without.
/// Sub-interpreters may have locks of their own from 3.12 on; a wait for one of those is not recognised.
pub fn locate(
    memory: &dyn TargetMemory,
    layout: &CpythonLayout,
    runtime: u64,
) -> Option<GlobalLock> {
    let address = match layout.gil {
        LockPlace::Runtime(offset) => runtime.checked_add(offset.into())?,
        LockPlace::Interpreter(offset) | LockPlace::Optional(offset) => {
            let head = runtime.checked_add(layout.runtime_interpreters.into())?;
            let interpreter = memory.read_u64(head).ok().filter(|address| *address != 0)?;
            memory.read_u64(interpreter.checked_add(offset.into())?).ok()?
        }
    };
    if address == 0 {
        return None;
    }
    match layout.gil {
        LockPlace::Optional(_) if memory.read_u32(address).ok()? == 0 => None,
        LockPlace::Optional(_) => Some(lock_at(address.checked_add(IN_USE_BYTES)?)),
        LockPlace::Runtime(_) | LockPlace::Interpreter(_) => Some(lock_at(address)),
    }
}

fn lock_at(address: u64) -> GlobalLock {
    GlobalLock {
        waited_on_from: address.saturating_add(WAITED_ON.start),
        waited_on_to: address.saturating_add(WAITED_ON.end),
        holder_at: address.wrapping_add(HOLDER),
        locked_at: address.wrapping_add(LOCKED),
    }
}

/// The thread state of the thread that holds it now.
pub fn holder(memory: &dyn TargetMemory, lock: &GlobalLock) -> Option<u64> {
    let locked = memory.read_u32(lock.locked_at).ok()?;
    let holder = memory.read_u64(lock.holder_at).ok()?;
    (locked == 1 && holder != 0).then_some(holder)
}

#[cfg(test)]
mod tests {
    use super::{LockPlace, holder, locate};
    use crate::process::{TargetMemory, Unreadable};
    use crate::runtime::cpython::offsets::of_minor;

    /// Words by address.
    struct Words(Vec<(u64, u64)>);

    impl TargetMemory for Words {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
            let found = self.0.iter().find(|(at, _)| *at == address);
            let (_, word) = found.ok_or(Unreadable { address, bytes: buffer.len() })?;
            buffer.copy_from_slice(&word.to_le_bytes()[..buffer.len()]);
            Ok(())
        }
    }

    /// In the runtime, or behind the interpreter's pointer; free or held.
    #[test]
    fn where_and_who() {
        let layout = of_minor(11).expect("known");
        let held = Words(vec![(1000 + 360 + 16, 1), (1000 + 360 + 8, 0x77)]);
        let gil = locate(&held, &layout, 1000).expect("in the runtime");
        assert_eq!(holder(&held, &gil), Some(0x77));
        assert_eq!(holder(&Words(vec![(1376, 0), (1368, 0x77)]), &gil), None);
        assert!(gil.contains(1360 + 72) && !gil.contains(1360 + 16) && !gil.contains(1360 + 208));

        let layout = of_minor(12).expect("known");
        assert_eq!(layout.gil, LockPlace::Interpreter(384));
        let words = Words(vec![(1000 + 40, 5000), (5000 + 384, 9000)]);
        let gil = locate(&words, &layout, 1000).expect("behind the pointer");
        assert!(gil.contains(9040));
        assert_eq!(locate(&Words(Vec::new()), &layout, 1000), None);
    }
}
