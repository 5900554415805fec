//! What is known of workers: threads that are handed work, and wait for it on a futex instead of in a wait that is hooked.

use std::collections::{BTreeMap, BTreeSet};

use profiler_ebpf::parks::{MAX_PARKS, Park, Parks};
use profiler_ebpf::record::{CaptureHead, ThreadSnapshot, reason};
use profiler_ebpf::turn::{FUTEX, Loop, phase};

use crate::source::Slot;
use crate::turn::instance::Stand;

/// What is known of workers.
#[derive(Debug, Default)]
pub struct Workers {
    pub(super) wanted: bool,
    pub(super) next_search_ns: u64,
    /// Threads that were looked at, as they slept then.
    pub(super) looked_at: BTreeMap<u32, ThreadSnapshot>,
    /// The interpreter's states at the last search, by thread pointer: listing them once for each thread would
    /// take as long as there are threads, squared.
    pub(super) states: BTreeMap<u64, u64>,
    pub(super) parks: BTreeMap<u32, Parks>,
    /// Threads that were seen to be handed work.
    pub(super) known: BTreeSet<u32>,
    /// Those that wait for work in epoll: their turns end there.
    pub(super) by_messages: BTreeSet<u32>,
}

impl Workers {
    pub fn forget(&mut self, tid: u32) {
        self.looked_at.remove(&tid);
        self.parks.remove(&tid);
        self.known.remove(&tid);
        self.by_messages.remove(&tid);
    }

    /// A thread is handed to the analyst, as it sleeps now.
    pub fn look_at(&mut self, thread: ThreadSnapshot) {
        self.looked_at.insert(thread.tid, thread);
    }

    /// Whether a thread was seen to be handed work.
    pub fn is_known(&self, tid: u32) -> bool {
        self.known.contains(&tid)
    }

    /// Whether threads are watched that hold up nobody.
    pub fn are_wanted(&self) -> bool {
        self.wanted
    }

    /// Whether a thread is one of a pool that nobody asked to watch.
    pub fn is_unwanted(&self, state: &Loop) -> bool {
        (state.handed_work == 1 || self.by_messages.contains(&state.tid)) && !self.wanted
    }
}

/// Adds a place; where there is no room it takes the oldest one's. False where it was known.
pub fn add(parks: &mut Parks, park: Park) -> bool {
    if parks.known.contains(&park) {
        return false;
    }
    parks.known.rotate_right(1);
    parks.known[0] = park;
    debug_assert_eq!(parks.known.len(), MAX_PARKS);
    true
}

/// Whether others can serve the instance of a thread that blocked in a futex: they have waited on it, too. Where
/// such threads take turns at it, most that sleep on a futex have nothing to do.
pub fn is_replaced(head: &CaptureHead, slots: &[Slot]) -> bool {
    let mut living = slots.iter().filter(|slot| slot.state.phase != phase::DEAD);
    let Some(own) = slots.iter().find(|slot| slot.state.tid == head.head.tid) else { return false };
    let own = Stand::of(&own.state);
    head.reason == reason::SWITCH_OUT
        && head.registers.syscall == FUTEX
        && living.any(|slot| own.shares(&Stand::of(&slot.state)))
}

/// Whether one of them does, or has since.
pub fn is_served(head: &CaptureHead, slots: &[Slot]) -> bool {
    let stands = || slots.iter().map(|slot| Stand::of(&slot.state));
    let own = stands().find(|stand| stand.tid == head.head.tid);
    own.is_some_and(|own| {
        stands().any(|other| own.shares(&other) && other.served_after(head.at_ns))
    })
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::parks::{MAX_PARKS, Park, Parks};
    use profiler_ebpf::record::{CaptureHead, RecordHead, Registers, kind, reason};
    use profiler_ebpf::turn::{FUTEX, Loop, WaitCall, phase, wait};

    use super::{add, is_replaced};
    use crate::source::Slot;

    /// A place is kept once; the one learnt first makes room.
    #[test]
    fn parks_are_few() {
        let park = |sp| Park { sp, ..Park::default() };
        let mut parks = Parks::default();
        for sp in 1..=MAX_PARKS as u64 {
            assert!(add(&mut parks, park(sp)));
        }
        assert!(!add(&mut parks, park(2)));
        assert!(add(&mut parks, park(99)));
        assert!(parks.known.contains(&park(99)) && parks.known.contains(&park(2)));
        assert!(!parks.known.contains(&park(1)));
    }

    /// Whoever blocked in a futex can be replaced by one that serves the same epoll instance, whatever that
    /// does now; not by one with an instance of its own or one that is gone, and not when it blocked in
    /// anything else.
    #[test]
    fn another_takes_over() {
        let slot = |tid, file, phase, left_ns| {
            let mut state = Loop { tid, phase, left_ns, ..Loop::default() };
            state.adopt(&WaitCall { file, ..WaitCall::any(wait::EPOLL) });
            Slot { index: tid, state }
        };
        let head = |syscall| CaptureHead {
            head: RecordHead { kind: kind::CAPTURE, tid: 1 },
            at_ns: 500,
            reason: reason::SWITCH_OUT,
            registers: Registers { syscall, ..Registers::default() },
            ..CaptureHead::default()
        };
        let own = slot(1, 7, phase::TURN, 400);
        let table = [
            (FUTEX, slot(2, 7, phase::WAITING, 300), true),
            (FUTEX, slot(2, 7, phase::TURN, 600), true),
            (FUTEX, slot(2, 7, phase::TURN, 300), true),
            (FUTEX, slot(2, 7, phase::DEAD, 300), false),
            (FUTEX, slot(2, 8, phase::WAITING, 300), false),
            (0, slot(2, 7, phase::WAITING, 300), false),
        ];
        for (syscall, other, expected) in table {
            assert_eq!(is_replaced(&head(syscall), &[own, other]), expected, "{syscall} {other:?}");
        }
        assert!(!is_replaced(&head(FUTEX), &[own]));
    }
}
