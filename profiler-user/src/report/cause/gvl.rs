//! A wait for Ruby's GVL to who has it: nothing that is read says so, but only one thread at a time runs Ruby.

use std::collections::BTreeMap;

use super::{held, is_percent};
use crate::gap::Gap;
use crate::report::application::basename;
use crate::report::schema::stall::{CauseKind, Pause, StopTheWorld, Thread};
use crate::report::syscalls;
use crate::runtime::ruby;
use crate::turn::{Awaited, Companion, Lock, Sampled, Stall, ThreadState};

/// A function that is on this part of the holder's samples, or more, is told as what it was in.
const MOST_PERCENT: u64 = 50;

/// The cause of a wait for it. Who ran Ruby meanwhile had it; else who gave it back; else the only one that stood
/// still where Ruby does not give it back.
pub fn cause(stall: &Stall, gaps: &mut Vec<Gap>) -> CauseKind {
    let holders = held::shares(stall, Lock::Gvl);
    let seen = holders.first().map(|it| Thread { tid: it.tid, name: it.name.clone() });
    let by_gvl = |waker: &&crate::turn::Waker| waker.awaited == Awaited::Gvl;
    let gave_back = stall.wakers.iter().find(by_gvl);
    let gave_back = gave_back.map(|it| Thread { tid: it.tid, name: Some(it.name.clone()) });
    let stood_still =
        || blocked_with_it(stall).map(|it| Thread { tid: it.tid, name: it.name.clone() });
    let holder_thread = seen.or(gave_back).or_else(stood_still);
    let why = match (&holder_thread, holders.is_empty()) {
        (None, _) => {
            "no sample fell onto a thread that runs Ruby, and none was seen to give it back"
        }
        (Some(_), true) => {
            "who has the GVL is not read: it is who gave it back, or waited in a call with it"
        }
        (Some(_), false) => "who has the GVL is not read: it is who ran Ruby while the loop waited",
    };
    gaps.push(Gap::new("holder_thread", why));
    let (pause, thread) = (Pause::Gvl, holder_thread.clone());
    let stop_the_world = Some(StopTheWorld { pause, set_off_by: thread.clone(), thread });
    CauseKind::Gil { holder_thread, holders, stop_the_world }
}

/// Whether it is a wait for the GVL.
pub fn is_it(kind: &CauseKind) -> bool {
    let CauseKind::Gil { stop_the_world: Some(pause), .. } = kind else { return false };
    pause.pause == Pause::Gvl
}

/// Whether who has it was inferred.
pub fn is_inferred(kind: &CauseKind) -> bool {
    is_it(kind) && matches!(kind, CauseKind::Gil { holder_thread: Some(_), .. })
}

/// The only thread that waits in a call which Ruby has not given the GVL back for. What waits for events, for a time or
/// for another thread does without it.
fn blocked_with_it(stall: &Stall) -> Option<&Companion> {
    let has = |it: &&Companion| {
        let name = syscalls::name(it.seen.registers.syscall).unwrap_or_default();
        let waits_without = ["poll", "select", "epoll", "sleep"];
        it.seen.state == ThreadState::Blocked
            && it.seen.awaited == Awaited::Syscall
            && it.seen.registers.syscall >= 0
            && !it.is_parked
            && !waits_without.iter().any(|part| name.contains(part))
            && ruby::may_have_gvl(&it.seen.stack.frames)
    };
    let mut all = stall.company.threads.iter().filter(has);
    let first = all.next()?;
    all.all(|other| other.tid == first.tid).then_some(first)
}

/// The stacks of whoever has it that were seen while it had it.
pub fn stacks(stall: &Stall, tid: u32) -> Vec<&Sampled> {
    let of_it = stall.holders.iter().filter(|it| (it.tid, it.held) == (tid, Lock::Gvl));
    let mut stacks: Vec<&Sampled> = of_it.map(|holder| &holder.seen).collect();
    if stacks.is_empty() {
        let stood_still = blocked_with_it(stall).filter(|it| it.tid == tid);
        stacks.extend(stood_still.map(|it| &it.seen));
    }
    stacks
}

/// ` in rb_ary_sort (libruby-3.1.so.3.1.2)`: the C function that Ruby's code called, where most of its samples have it.
/// Ruby's own methods have no names here.
pub fn place(stall: &Stall, tid: u32) -> String {
    let stacks = stacks(stall, tid);
    let weight = |seen: &Sampled| seen.samples.max(1);
    let all: u64 = stacks.iter().map(|seen| weight(seen)).sum();
    let mut called: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for seen in &stacks {
        if let Some(frame) = ruby::called(&seen.stack.frames)
            && let (Some(function), Some(module)) = (&frame.function, &frame.module)
        {
            *called.entry((function, module)).or_default() += weight(seen);
        }
    }
    let most = called.into_iter().max_by_key(|(_, samples)| *samples);
    match most.filter(|(_, samples)| is_percent(*samples, all, MOST_PERCENT)) {
        Some(((function, module), _)) => format!(" in {function} ({})", basename(module)),
        None => String::new(),
    }
}
