//! A wait for Ruby's GVL to who has it: nothing that is read says so, but only one thread at a time runs Ruby.

use std::collections::BTreeMap;

use super::shares::shares;
use crate::gap::Gap;
use crate::process::executables::basename;
use crate::report::schema::stall::{CauseKind, Pause, StopTheWorld, Thread};
use crate::report::units::is_percent;
use crate::runtime::ruby;
use crate::syscall;
use crate::turn::{Awaited, Companion, Lock, Sampled, Stall, ThreadState};

/// A function that is on this part of the holder's samples, or more, is told as what it was in.
const MOST_PERCENT: u64 = 50;

/// The cause of a wait for it. Who ran Ruby meanwhile had it; else who gave it back; else the only one that stood
/// still where Ruby does not give it back.
pub fn cause(stall: &Stall, gaps: &mut Vec<Gap>) -> CauseKind {
    let holders = shares(stall, Lock::Gvl);
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

/// The only thread that waits in a call which Ruby has not given the GVL back for. Where
/// Ruby itself waits for events, a time or another thread, it does so without.
fn blocked_with_it(stall: &Stall) -> Option<&Companion> {
    let has = |it: &&Companion| {
        let name = syscall::name(it.seen.registers.syscall).unwrap_or_default();
        let waits_without = ["poll", "select"];
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{chain, judge};
    use super::place;
    use crate::report::application::CodeOwner;
    use crate::report::facts::ProcessFacts;
    use crate::report::sample::{self, blocked_in, native, on_cpu};
    use crate::report::schema::stall::{Cause, Confidence, Pause};
    use crate::turn::{Awaited, Companion, Holder, Lock, Sampled, Stall, Waited, Waker};

    const LIBRUBY: &str = "/usr/lib/libruby-3.1.so.3.1.2";
    const WHOLE_NS: u64 = 5_000_000_000;

    /// A loop that waits for the GVL for all of its turn.
    fn waiting() -> Stall {
        let mut wait = blocked_in(202, [0x7f10, 128, 0, 0, 0, 0], WHOLE_NS);
        wait.awaited = Awaited::Gvl;
        let waited = vec![Waited { lock: Lock::Gvl, time_ns: WHOLE_NS }];
        Stall { stacks: vec![wait], waited, wakers: Vec::new(), ..sample::stall() }
    }

    fn in_ruby(mut seen: Sampled, called: &[&str]) -> Sampled {
        let names = called.iter().chain(&["rb_vm_exec"]);
        seen.stack.frames = names.map(|name| native(name, LIBRUBY)).collect();
        seen
    }

    fn computing(called: &[&str], samples: u64) -> Holder {
        let seen = Sampled { samples, ..in_ruby(on_cpu(Vec::new(), 900), called) };
        let name = Some("reports".to_owned());
        Holder { tid: 77, name, held: Lock::Gvl, seen, collecting: 0 }
    }

    fn cause(stall: &Stall) -> Cause {
        let process = ProcessFacts::default();
        let mut verdict = judge(stall, &BTreeMap::new());
        chain::attach(&mut verdict, stall, &CodeOwner::new(&process));
        verdict.cause
    }

    /// Who ran Ruby meanwhile had it, likely; of nobody it is certain all the same what was waited for.
    #[test]
    fn who_has_it() {
        let nobody = cause(&waiting());
        assert_eq!(nobody.summary, "waiting for Ruby's GVL");
        assert_eq!(nobody.confidence, Confidence::Certain);

        let holders = vec![computing(&["rb_str_cmp", "rb_ary_sort"], 9)];
        let told = cause(&Stall { holders, ..waiting() });
        let expected = "waiting for Ruby's GVL, held by thread 77 (reports), computing in \
                        rb_ary_sort (libruby-3.1.so.3.1.2)";
        assert_eq!(told.summary, expected);
        assert_eq!(told.confidence, Confidence::Likely);
        let pause = told.kind.stop_the_world().unwrap();
        assert_eq!((pause.pause, pause.set_off_by.as_ref().unwrap().tid), (Pause::Gvl, 77));
    }

    /// No sample falls onto a thread that waits with it: it is the only one that stands where Ruby does not give it
    /// back, or who gave it back.
    #[test]
    fn nobody_ran() {
        let companion = |tid, syscall, called: &[&str]| {
            let seen = in_ruby(blocked_in(syscall, [7, 0, 0, 0, 0, 0], 900), called);
            Companion { tid, name: None, seen, is_parked: false, waits_for: None }
        };
        let mut stall = waiting();
        let (recv, poll) = (45, 7);
        stall.company.threads = vec![
            companion(7, poll, &["rb_io_puts"]),
            companion(8, recv, &["rb_nogvl"]),
            companion(9, recv, &["db_query"]),
        ];
        let told = cause(&stall).summary;
        let expected = "waiting for Ruby's GVL, held by thread 9, blocked in recvfrom";
        assert!(told.starts_with(expected), "{told}");
        stall.company.threads.push(companion(10, recv, &["db_query"]));
        assert_eq!(cause(&stall).summary, "waiting for Ruby's GVL", "one of two");

        let (name, awaited) = ("worker".to_owned(), Awaited::Gvl);
        stall.wakers = vec![Waker { tid: 11, name, awaited, ..Waker::default() }];
        assert_eq!(cause(&stall).summary, "waiting for Ruby's GVL, held by thread 11 (worker)");
    }

    /// What Ruby called is told where most of the samples agree.
    #[test]
    fn what_it_was_in() {
        let of = |samples: [u64; 2]| {
            let holders = [["rb_ary_sort"], ["rb_big_pow"]].into_iter().zip(samples);
            let holders = holders.map(|(called, samples)| computing(&called, samples)).collect();
            place(&Stall { holders, ..waiting() }, 77)
        };
        assert_eq!(of([3, 5]), " in rb_big_pow (libruby-3.1.so.3.1.2)");
        let mut stall = waiting();
        stall.holders = vec![computing(&[], 5), computing(&["rb_ary_sort"], 4)];
        assert_eq!(place(&stall, 77), "", "Ruby itself, mostly");
    }
}
