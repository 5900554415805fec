//! A thread that waits for one of Python's re-entrant locks to the thread that owns it.
//!
//! Up to 3.13 an `RLock` is a semaphore and, beside the pointer to it, the owner's identity. The
//! thread that waits is inside a method of the lock, so the lock's address lies on its stack: it is
//! the address at which a `_thread.RLock` points to that very semaphore. Plain locks have no owner, and
//! from 3.14 on the word that is waited on is none of the lock's.

use std::collections::BTreeSet;

use crate::process::{TargetMemory, Unreadable};

/// Words of the stack that are followed at most. The lock lies within the innermost few hundred.
const MAX_CANDIDATES: usize = 2048;

/// The type's name, with the zero that ends it.
const NAME: &[u8; 14] = b"_thread.RLock\0";

/// `ob_type` of every object, and `tp_name` of a type.
const OBJECT_TYPE: usize = 8;
const TYPE_NAME: u64 = 24;

/// `rlock_lock`, `rlock_owner`, `rlock_count`.
const SEMAPHORE: usize = 16;
const OWNER: usize = 24;
const COUNT: usize = 32;

/// Objects lie at multiples of this.
const ALIGNMENT: u64 = 16;

/// The thread pointer of the owner of the lock that a thread with this stack waits for at `futex`.
pub fn owner(memory: &dyn TargetMemory, stack: &[u8], futex: u64) -> Option<u64> {
    let mut tried = BTreeSet::new();
    let words = stack.chunks_exact(8).filter_map(|word| word.first_chunk());
    for address in words.copied().map(u64::from_le_bytes) {
        let is_address = address % ALIGNMENT == 0 && (0x1000..1 << 47).contains(&address);
        if !is_address || !tried.insert(address) {
            continue;
        }
        if tried.len() > MAX_CANDIDATES {
            return None;
        }
        // Most words are no addresses at all: what cannot be read is passed over.
        if let Ok(Some(owner)) = owner_of(memory, address, futex) {
            return Some(owner);
        }
    }
    None
}

/// The owner of the object at this address, if it is a lock with that semaphore.
fn owner_of(
    memory: &dyn TargetMemory,
    address: u64,
    futex: u64,
) -> Result<Option<u64>, Unreadable> {
    let mut object = [0; COUNT + 8];
    memory.read(address, &mut object)?;
    let word = |offset: usize| {
        object
            .get(offset..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .map_or(0, u64::from_le_bytes)
    };
    if word(SEMAPHORE) != futex || word(COUNT) == 0 || word(OWNER) == 0 {
        return Ok(None);
    }
    let name_at = memory.read_u64(word(OBJECT_TYPE).wrapping_add(TYPE_NAME))?;
    let mut name = [0; NAME.len()];
    memory.read(name_at, &mut name)?;
    Ok((name == *NAME).then_some(word(OWNER)))
}

#[cfg(test)]
mod tests {
    use super::owner;
    use crate::runtime::cpython::pages::CopiedPages;

    const SEMAPHORE: u64 = 0x5000;
    const LOCK: u64 = 0x2_0000;
    const TYPE: u64 = 0x3_0000;
    const NAME: u64 = 0x4_0000;

    fn process(name: &[u8], semaphore: u64, count: u64) -> CopiedPages {
        let mut pages = CopiedPages::default();
        for (word, value) in [1, TYPE, semaphore, 0x7777, count].into_iter().enumerate() {
            pages.put_u64(LOCK + 8 * word as u64, value);
        }
        pages.put_u64(TYPE + 24, NAME);
        pages.put(NAME, name);
        pages
    }

    fn stack(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// The lock is found among the words of a stack, most of which are something else.
    #[test]
    fn found_on_the_stack() {
        let memory = process(b"_thread.RLock\0", SEMAPHORE, 1);
        let words = stack(&[0, 7, u64::MAX, TYPE, 0xdead_0000, LOCK + 8, LOCK]);
        assert_eq!(owner(&memory, &words, SEMAPHORE), Some(0x7777));
        assert_eq!(owner(&memory, &stack(&[0, TYPE]), SEMAPHORE), None);
    }

    /// Another lock on the stack, a plain one, or one that is free, names nobody.
    #[test]
    fn not_that_lock() {
        let words = stack(&[LOCK]);
        let other = process(b"_thread.RLock\0", SEMAPHORE + 32, 1);
        assert_eq!(owner(&other, &words, SEMAPHORE), None);
        let plain = process(b"_thread.lock\0\0", SEMAPHORE, 1);
        assert_eq!(owner(&plain, &words, SEMAPHORE), None);
        let free = process(b"_thread.RLock\0", SEMAPHORE, 0);
        assert_eq!(owner(&free, &words, SEMAPHORE), None);
    }
}
