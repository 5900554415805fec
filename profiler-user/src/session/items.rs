//! What a worker has in hand: a worker whose queue is never empty does not park between two pieces of work.
//!
//! To the probes that is one long turn. So while a worker's turn is suspected, the piece of work that its
//! pool's loop holds is looked at every few milliseconds, and the turn is cut where it is another one. What
//! begins there has an unknown beginning, at most one look before.

use profiler_ebpf::record::Woken;
use profiler_ebpf::turn::{Loop, Turn, phase, state};

use super::attachment::Session;
use super::followed::Followed;
use super::work::{Cut, Item};
use crate::job::Job;
use crate::process::TargetMemory;
use crate::runtime::frames::Frames;
use crate::source::{Captured, EventSource, Slot};

impl Followed {
    /// The turn as far as it is about the work in hand.
    pub fn cut(&self, turn: &mut Turn) {
        if let Some(cut) = &self.cut {
            cut.apply(turn);
        }
    }

    /// The same for the turn that a capture lies in.
    pub fn cut_capture(&self, captured: &mut Captured) {
        let head = &mut captured.head;
        let start_ns = self.start_at(head.turn_start_ns, head.at_ns);
        if start_ns != head.turn_start_ns {
            // Of the short waits that it stands for, some may have been of the work before.
            let since_ns = head.at_ns.saturating_add(head.blocked_ns).saturating_sub(start_ns);
            head.weight_ns = head.weight_ns.min(since_ns);
        }
        head.turn_start_ns = start_ns;
    }

    /// And for the turn in which a thread was woken.
    pub fn cut_wake(&self, woken: &mut Woken) {
        woken.turn_start_ns = self.start_at(woken.turn_start_ns, woken.blocked_at_ns);
    }

    /// Where the turn began that a moment lies in, if the probes have it begin at `turn_start_ns`.
    fn start_at(&self, turn_start_ns: u64, at_ns: u64) -> u64 {
        let cut = self
            .cut
            .as_ref()
            .filter(|cut| cut.turn_start_ns == turn_start_ns && cut.at_ns <= at_ns);
        cut.map_or(turn_start_ns, |cut| cut.at_ns)
    }
}

impl<S: EventSource, M: TargetMemory> Session<S, M> {
    /// Remembers what work a worker has in hand, from the frames of its turn's first capture. To be
    /// called before the capture is cut.
    pub fn note_work(&mut self, captured: &Captured, frames: &Frames) {
        let turn_start_ns = captured.head.turn_start_ns;
        let Some(followed) = self.loops.get_mut(&captured.head.head.tid) else { return };
        if followed.item.is_some_and(|item| item.turn_start_ns == turn_start_ns) {
            return;
        }
        followed.item = frames.work().and_then(|place| {
            let work = place.read(&self.memory)?;
            Some(Item { turn_start_ns, place, work })
        });
    }

    /// Cuts the turn of a worker that has other work in hand than before. Returns the slot as cut.
    pub fn cut_at_work(&mut self, mut slot: Slot, now_ns: u64, jobs: &mut Vec<Job>) -> Slot {
        let Loop { phase, tid, handed_work, turn, .. } = slot.state;
        let in_turn = handed_work == 1 && phase == phase::TURN;
        let known = self.loops.get(&tid).and_then(|followed| followed.item);
        if let Some(mut item) = known.filter(|item| in_turn && item.turn_start_ns == turn.start_ns)
        {
            let work = item.place.read(&self.memory);
            // A thread cannot take up work while it is blocked: all of that block is of this work. But one that has
            // come back since its state was read may have done with it.
            let is_blocked = slot.state.state == state::BLOCKED;
            if work != Some(item.work) && (!is_blocked || self.still_blocks(&slot)) {
                let at_ns = if is_blocked { slot.state.booked_until_ns } else { now_ns };
                self.look_who_runs(slot, at_ns);
                self.end_of_work(slot, at_ns, jobs);
                let followed = self.followed(tid);
                let before = slot.state.account(at_ns);
                let turn_start_ns = turn.start_ns;
                let instead_before = followed.whole_instead(turn_start_ns);
                followed.cut = Some(Cut { turn_start_ns, at_ns, before, instead_before });
                item.work = work.unwrap_or_default();
                followed.item = Some(item);
            }
        }
        if let Some(followed) = self.loops.get(&tid) {
            followed.cut(&mut slot.state.turn);
        }
        slot
    }

    /// Whether the thread has not moved since its state was read, while it was blocked.
    pub(super) fn still_blocks(&mut self, slot: &Slot) -> bool {
        let place = |state: &Loop| (state.tid, state.state, state.booked_until_ns);
        self.source.loops().iter().any(|now| place(&now.state) == place(&slot.state))
    }

    /// A stall that was announced of the work before ends here.
    fn end_of_work(&mut self, slot: Slot, at_ns: u64, jobs: &mut Vec<Job>) {
        let Some(followed) = self.loops.get(&slot.state.tid) else { return };
        if followed.tracker.is_open() {
            let mut turn = slot.state.account(at_ns);
            followed.cut(&mut turn);
            self.with(slot.state.tid, jobs, |tracker, due| {
                tracker.ended_without_wait(turn, at_ns, due)
            });
        }
    }
}
