//! The futex that a thread is blocked on to the thread that owns the lock, where the lock's own words say so.
//!
//! A futex is a word whose meaning is its library's. Two are told apart with certainty: those whose
//! owner the kernel itself must know (priority inheritance, robust ones), and glibc's mutex, by its
//! neighbouring fields. Everything else (semaphores, conditions, locks of other libraries) names nobody.

use profiler_ebpf::record::Registers;
use profiler_ebpf::turn::FUTEX;

use super::TargetMemory;

/// `FUTEX_TID_MASK` and `FUTEX_WAITERS` (include/uapi/linux/futex.h).
const TID: u32 = 0x3fff_ffff;
const WAITERS: u32 = 0x8000_0000;

/// glibc's mutex is locked, and somebody waits for it.
const LOCKED_AND_AWAITED: u32 = 2;

/// The low bits of `__kind`: normal, recursive, error-checking, adaptive.
const KINDS: u32 = 3;

/// `PTHREAD_MUTEX_ROBUST_NORMAL_NP`: the word is the owner's number.
const ROBUST: u32 = 16;

/// Bits of `__kind` that glibc gives a meaning to: the kind, robust, priority inheritance and
/// protection, shared between processes, and two of lock elision.
const KNOWN_KIND: u32 = KINDS | ROBUST | 32 | 64 | 128 | 256 | 512;

/// `PTHREAD_MUTEX_RECURSIVE_NP`: only such a mutex counts.
const RECURSIVE: u32 = 1;

/// glibc's `pthread_mutex_t` on 64-bit machines: `__lock`, `__count`, `__owner`, `__nusers`, `__kind`,
/// two short numbers, and the list that robust mutexes are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mutex {
    lock: u32,
    count: u32,
    owner: u32,
    users: u32,
    kind: u32,
    list: [u64; 2],
}

impl Mutex {
    fn read(memory: &dyn TargetMemory, address: u64) -> Option<Self> {
        let mut bytes = [0; 40];
        memory.read(address, &mut bytes).ok()?;
        let word = |offset: usize| {
            bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().map(u32::from_le_bytes)
        };
        let link = |offset: usize| {
            bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().map(u64::from_le_bytes)
        };
        Some(Self {
            lock: word(0)?,
            count: word(4)?,
            owner: word(8)?,
            users: word(12)?,
            kind: word(16)?,
            list: [link(24)?, link(32)?],
        })
    }

    /// Its owner, if the words are those of a mutex that a thread is waiting for with this value.
    fn owner(self, expected: u32) -> Option<u32> {
        let robust = self.kind & ROBUST != 0;
        let locked = if robust {
            self.lock & WAITERS != 0 && self.lock & TID == self.owner
        } else {
            self.lock == LOCKED_AND_AWAITED
        };
        // Other locks have the same first word for the same state, and whatever they guard after it:
        // a tid in its place is not enough.
        let counts = self.kind & KINDS == RECURSIVE;
        let is_mutex = self.kind & !KNOWN_KIND == 0
            && (robust || (self.users > 0 && self.list == [0; 2]))
            && (counts || self.count == 0);
        (locked && is_mutex && self.lock == expected && self.owner != 0).then_some(self.owner)
    }
}

/// The owner's number in its PID namespace. The thread must still be blocked when this returns, and a
/// number that no thread of the process has is not to be believed.
pub fn owner(memory: &dyn TargetMemory, registers: &Registers) -> Option<u32> {
    let [address, operation, expected, ..] = registers.args;
    if registers.syscall != FUTEX {
        return None;
    }
    match operation & 0x7f {
        // LOCK_PI, LOCK_PI2: the kernel wakes by this word.
        6 | 13 => {
            let word = memory.read_u32(address).ok()?;
            Some(word & TID).filter(|tid| *tid != 0)
        }
        // WAIT, WAIT_BITSET. The kernel compares 32 bits.
        0 | 9 => {
            let mutex = Mutex::read(memory, address)?;
            let owner = mutex.owner(expected as u32)?;
            // Words that change meanwhile are not those of a lock that is kept.
            (Mutex::read(memory, address) == Some(mutex)).then_some(owner)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::record::Registers;

    use super::owner;
    use crate::process::{TargetMemory, Unreadable};

    const AT: u64 = 0x7000;

    /// The words at one address.
    struct Words(Vec<u32>);

    impl TargetMemory for Words {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
            let bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_le_bytes()).collect();
            let found = bytes.get(..buffer.len()).filter(|_| address == AT);
            buffer.copy_from_slice(found.ok_or(Unreadable { address, bytes: buffer.len() })?);
            Ok(())
        }
    }

    fn blocked(operation: u64, expected: u64) -> Registers {
        let args = [AT, operation, expected, 0, 0, 0];
        Registers { syscall: 202, args, ..Registers::default() }
    }

    /// The words, and zeros up to the size of a mutex.
    fn of(words: &[u32], operation: u64, expected: u64) -> Option<u32> {
        let mut words = words.to_vec();
        words.resize(10, 0);
        owner(&Words(words), &blocked(operation, expected))
    }

    /// A mutex that is waited for names its owner, whatever its kind.
    #[test]
    fn mutexes() {
        for kind in [0, 1, 2, 3, 128, 129] {
            assert_eq!(of(&[2, 0, 4711, 1, kind], 128, 2), Some(4711), "kind {kind}");
        }
        assert_eq!(of(&[2, 3, 4711, 1, 1], 0, 2), Some(4711), "recursive");
        let robust = 0x8000_0000 | 4711;
        assert_eq!(of(&[robust, 0, 4711, 0, 16], 0, robust.into()), Some(4711));
    }

    /// What is no mutex, or not one that is waited for, names nobody.
    #[test]
    fn others_name_nobody() {
        assert_eq!(of(&[1, 0, 4711, 1, 0], 128, 1), None, "nobody waits");
        assert_eq!(of(&[2, 0, 4711, 1, 0], 128, 0), None, "a wait for another value");
        assert_eq!(of(&[2, 0, 0, 0, 0], 128, 2), None, "a counter");
        assert_eq!(of(&[2, 0, 4711, 0, 0], 128, 2), None, "nobody uses it");
        assert_eq!(of(&[2, 0, 4711, 1, 0x7f00], 128, 2), None, "no kind of mutex");
        assert_eq!(of(&[2, 9, 4711, 1, 0], 128, 2), None, "a count without recursion");
        let data = [2, 0, 4711, 1, 0, 0, 0, 0, 1, 0];
        assert_eq!(of(&data, 128, 2), None, "another library's lock and what it guards");
        assert_eq!(owner(&Words(vec![2, 0, 4711]), &blocked(128, 2)), None, "unreadable");
        assert_eq!(of(&[2, 0, 4711, 1, 0], 1, 2), None, "a call that wakes");
    }

    /// The kernel's own word for a lock with priority inheritance.
    #[test]
    fn priority_inheritance() {
        assert_eq!(of(&[0xc000_0000 | 4711], 6 | 128, 0), Some(4711));
        assert_eq!(of(&[0x8000_0000], 13, 0), None);
    }
}
