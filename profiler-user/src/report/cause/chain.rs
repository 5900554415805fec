//! What kept the thread that a loop waited for: who has it, what that one waits for itself, and so on, up to a cycle.

use std::collections::BTreeMap;

use super::verdict::Conclusion;
use super::{futex, gvl, locked, pause, phrase, wait};
use crate::process::executables::basename;
use crate::report::application::CodeOwner;
use crate::report::culprit;
use crate::report::portion::Portion;
use crate::report::schema::stall::{
    Cause, CauseKind, Confidence, Link, Pause, StopTheWorld, Thread,
};
use crate::runtime::collector::is_of_collector;
use crate::turn::{Awaited, Companion, Lock, Sampled, Stall, ThreadState};

/// Links of a chain that are told.
const MAX_LINKS: usize = 4;

/// Who is to end the wait, and how sure that is.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// It has what is waited for.
    Holder(u32, Option<Lock>),
    /// It ended the wait.
    Waker(u32),
    /// Nobody else could: all others wait for work.
    Only(u32),
}

/// Fills in the chain behind the cause, and says it in the summary.
pub fn attach<'a>(verdict: &mut Conclusion<'a>, stall: &'a Stall, owner: &CodeOwner<'_>) {
    if pause::attach(verdict, stall) {
        return;
    }
    let futex_wait = verdict.evidence.iter().find(|sampled| sampled.awaited == Awaited::Futex);
    let futex_wait = futex_wait.copied().filter(|_| verdict.blamed == stall.tid);
    let cause = &mut verdict.cause;
    if owns_itself(cause, stall) {
        deadlock(cause, "waiting for a lock that it holds itself", Confidence::Certain);
        return;
    }
    if let Some(sampled) = futex_wait
        && futex::is_guess(&cause.kind)
    {
        if futex::is_for_itself(stall, sampled) {
            let words = "waiting for itself: it has no other thread that could end the wait";
            deadlock(cause, words, Confidence::Certain);
            return;
        }
        if is_left_alone(stall) {
            let words = "waiting for itself, likely: all other threads wait for work";
            deadlock(cause, words, Confidence::Likely);
            return;
        }
    }
    let Some(first) = first(&cause.kind, stall) else { return };
    follow(cause, first, stall, owner);
}

fn deadlock(cause: &mut Cause, words: &str, most: Confidence) {
    cause.deadlock = true;
    cause.confidence = most;
    cause.summary = words.to_owned();
}

fn owns_itself(cause: &Cause, stall: &Stall) -> bool {
    let CauseKind::Lock { owner_thread: Some(owner), .. } = &cause.kind else { return false };
    owner.tid == stall.tid
}

/// Whether the wait goes on, and all the others were seen to wait for work and nothing else.
fn is_left_alone(stall: &Stall) -> bool {
    let company = &stall.company;
    futex::lasts(stall) && company.idle_looks > 1 && company.others.is_some_and(|others| others > 0)
}

fn first(kind: &CauseKind, stall: &Stall) -> Option<Next> {
    match kind {
        CauseKind::Gil { holder_thread: Some(holder), .. } => {
            let lock = if gvl::is_it(kind) { Lock::Gvl } else { Lock::Gil };
            Some(Next::Holder(holder.tid, Some(lock)))
        }
        CauseKind::Lock { owner_thread: Some(owner), .. } => {
            let held = stall.holders.iter().find(|it| it.tid == owner.tid && it.held != Lock::Gil);
            Some(Next::Holder(owner.tid, held.map(|holder| holder.held)))
        }
        CauseKind::Lock { woken_by: Some(waker), .. } => Some(Next::Waker(waker.tid)),
        CauseKind::Lock { .. } if futex::lasts(stall) || stall.futexes.lasting.is_some() => {
            only_candidate(stall).map(Next::Only)
        }
        _ => None,
    }
}

/// The only thread that does anything but wait for work, if all were looked at.
fn only_candidate(stall: &Stall) -> Option<u32> {
    stall.company.others?;
    let works = |companion: &&Companion| {
        let waits_for_work = companion.is_parked
            || companion.seen.awaited == Awaited::Futex && companion.waits_for.is_none()
            || waits_for_events(&companion.seen);
        !waits_for_work
    };
    let mut tids: Vec<u32> =
        stall.company.threads.iter().filter(works).map(|companion| companion.tid).collect();
    tids.extend(&stall.company.moved);
    tids.sort_unstable();
    tids.dedup();
    match tids[..] {
        [only] => Some(only),
        _ => None,
    }
}

fn waits_for_events(seen: &Sampled) -> bool {
    let name = crate::syscall::name(seen.registers.syscall).unwrap_or_default();
    seen.state == ThreadState::Blocked && name.starts_with("epoll_")
}

fn follow(cause: &mut Cause, first: Next, stall: &Stall, owner: &CodeOwner<'_>) {
    let mut next = Some(first);
    let mut said = String::new();
    while let Some(one) = next.take().filter(|_| cause.because.len() < MAX_LINKS) {
        let (Next::Holder(tid, _) | Next::Waker(tid) | Next::Only(tid)) = one;
        let is_known = cause.because.iter().any(|link| link.thread.tid == tid);
        if tid == stall.tid || is_known {
            cause.deadlock = true;
            if tid == stall.tid {
                said.push_str(&own_place(stall, owner));
            }
            break;
        }
        let Some(seen) = Seen::of(one, stall) else { break };
        let mut link = seen.link(stall, owner);
        if matches!(one, Next::Holder(_, Some(Lock::Gvl))) {
            let is_blocked = seen.sampled.state == ThreadState::Blocked;
            link.doing.push_str(if is_blocked { "," } else { "" });
            link.doing.push_str(&gvl::place(stall, tid));
        }
        // Of Ruby it is told already for what the others stand still.
        if seen.is_collecting && cause.because.is_empty() && !gvl::is_it(&cause.kind) {
            let thread = Some(link.thread.clone());
            let pause = Pause::GarbageCollection;
            let set_off_by = thread.clone();
            cause.kind.set_stop_the_world(StopTheWorld { pause, thread, set_off_by });
        }
        said.push_str(&words(one, &link, cause.because.is_empty()));
        next = seen.waits_for.map(|(lock, tid)| Next::Holder(tid, Some(lock)));
        cause.because.push(link);
    }
    if cause.deadlock {
        said.push_str(": a deadlock");
    }
    cause.summary.push_str(&said);
}

/// How a link is said after what comes before it. The line of a holder is the culprit, and said as that.
fn words(one: Next, link: &Link, is_first: bool) -> String {
    let Link { doing, function, file, line, .. } = link.clone();
    let place = place(&Place { function, file, line });
    match one {
        Next::Holder(..) if is_first => format!(", {doing}"),
        Next::Holder(..) => format!(", which is {doing}{place}"),
        Next::Waker(_) => format!(", which was {doing}{place} until then"),
        Next::Only(_) => format!(", likely {}, {doing}{place}", locked::words(&link.thread)),
    }
}

/// A line of code.
struct Place {
    function: Option<String>,
    file: Option<String>,
    line: Option<u32>,
}

/// ` at run_query (repro.py:9)`
fn place(place: &Place) -> String {
    let Some(function) = &place.function else { return String::new() };
    let file = place.file.as_deref().map(basename);
    match (file, place.line) {
        (Some(file), Some(line)) => format!(" at {function} ({file}:{line})"),
        (Some(file), None) => format!(" at {function} ({file})"),
        (None, _) => format!(" at {function}"),
    }
}

/// Where the stalled thread itself waits.
fn own_place(stall: &Stall, owner: &CodeOwner<'_>) -> String {
    let waits: Vec<&Sampled> =
        stall.stacks.iter().filter(|it| it.awaited != Awaited::Syscall).collect();
    let portion = Portion::of(&waits, stall.tid, 0, true);
    let Some(found) = culprit::find(&waits, owner, portion) else { return String::new() };
    place(&Place { function: found.function, file: found.file, line: found.line })
}

/// What a thread was seen to do most.
struct Seen<'a> {
    thread: Thread,
    sampled: &'a Sampled,
    time_ns: u64,
    waits_for: Option<(Lock, u32)>,
    is_collecting: bool,
}

impl<'a> Seen<'a> {
    fn of(one: Next, stall: &'a Stall) -> Option<Self> {
        let (Next::Holder(tid, _) | Next::Waker(tid) | Next::Only(tid)) = one;
        let company = || stall.company.threads.iter().filter(move |it| it.tid == tid);
        if let Next::Holder(_, Some(held)) = one
            && let Some(holder) = stall.holders.iter().find(|it| (it.tid, it.held) == (tid, held))
        {
            let samples = || stall.holders.iter().filter(|it| (it.tid, it.held) == (tid, held));
            let all: u64 = samples().map(|holder| holder.seen.samples).sum();
            let collecting: u64 = samples().map(|holder| holder.collecting).sum();
            let time_ns = samples().map(|holder| holder.seen.time_ns).sum();
            let of_it = |companion: &&Companion| {
                companion.seen.registers.syscall == holder.seen.registers.syscall
            };
            return Some(Self {
                thread: Thread { tid, name: holder.name.clone() },
                sampled: &holder.seen,
                time_ns,
                waits_for: company().find(of_it).and_then(|it| it.waits_for),
                is_collecting: collecting > all / 2 || is_collector(&holder.seen),
            });
        }
        let companion = company().find(|companion| !companion.is_parked)?;
        Some(Self {
            thread: Thread { tid, name: companion.name.clone() },
            sampled: &companion.seen,
            time_ns: companion.seen.time_ns,
            waits_for: companion.waits_for,
            is_collecting: is_collector(&companion.seen),
        })
    }

    fn link(&self, stall: &Stall, owner: &CodeOwner<'_>) -> Link {
        let stacks = [self.sampled];
        let portion = Portion::of(&stacks, self.thread.tid, self.time_ns, false);
        let place = culprit::find(&stacks, owner, portion);
        let (doing, target) = self.doing(stall);
        Link {
            thread: self.thread.clone(),
            doing,
            target,
            function: place.as_ref().and_then(|place| place.function.clone()),
            file: place.as_ref().and_then(|place| place.file.clone()),
            line: place.as_ref().and_then(|place| place.line),
            time_ns: self.time_ns,
        }
    }

    fn doing(&self, stall: &Stall) -> (String, Option<String>) {
        let fixed = match self.sampled.state {
            _ if self.is_collecting => "collecting garbage",
            ThreadState::RunningUser => "computing",
            ThreadState::RunningKernel => "on the CPU, in the kernel",
            ThreadState::Runnable => "ready, but without a CPU",
            ThreadState::Stopped => "stopped",
            ThreadState::Blocked => return self.waiting(stall),
        };
        (fixed.to_owned(), None)
    }

    fn waiting(&self, stall: &Stall) -> (String, Option<String>) {
        let of = |tid: u32| {
            let mut named = stall.company.threads.iter().filter(|it| it.tid == tid);
            let name = named.next().and_then(|it| it.name.clone());
            locked::words(&Thread { tid, name })
        };
        match (self.sampled.awaited, self.waits_for) {
            (_, Some((_, tid))) if tid == stall.tid => {
                let what = if self.sampled.awaited == Awaited::Gil { "the GIL" } else { "a lock" };
                return (format!("waiting for {what}, which the stalled thread holds"), None);
            }
            (Awaited::Gil, Some((_, tid))) => {
                return (format!("waiting for the GIL, held by {}", of(tid)), None);
            }
            (Awaited::Gil, None) => return ("waiting for the GIL".to_owned(), None),
            (Awaited::Gvl, _) => return ("waiting for Ruby's GVL".to_owned(), None),
            (Awaited::Futex, Some((_, tid))) => {
                return (format!("waiting for a lock held by {}", of(tid)), None);
            }
            (Awaited::Futex, None) => {
                return ("waiting for another thread (futex)".to_owned(), None);
            }
            (Awaited::Syscall, _) => {}
        }
        // Its gaps are not the loop's.
        let kind = wait::wait_kind(stall, self.sampled, 0, &BTreeMap::new(), &mut Vec::new());
        let target = match &kind {
            CauseKind::Syscall { target, .. } | CauseKind::Disk { target, .. } => target.clone(),
            _ => None,
        };
        match kind {
            CauseKind::Unknown => ("blocked".to_owned(), None),
            kind => (phrase::phrase(&kind), target),
        }
    }
}

fn is_collector(seen: &Sampled) -> bool {
    seen.stack.frames.iter().any(is_of_collector)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::judge;
    use super::attach;
    use crate::call::{Call, Descriptor, Kind, Timeout};
    use crate::report::application::CodeOwner;
    use crate::report::facts::ProcessFacts;
    use crate::report::sample::{self, blocked_in, native, on_cpu, python};
    use crate::report::schema::stall::{Cause, Confidence};
    use crate::turn::futex::FutexWaits;
    use crate::turn::{
        Awaited, Companion, Company, End, Holder, Lock, LockOwner, Sampled, Stall, Waited, Waker,
    };

    const FUTEX: u64 = 0x7f10;
    const WHOLE_NS: u64 = 5_000_000_000;

    /// A loop that waits on a futex for all of its turn.
    fn waiting(awaited: Awaited) -> Stall {
        let mut wait = blocked_in(202, [FUTEX, 128, 0, 0, 0, 0], WHOLE_NS);
        wait.awaited = awaited;
        wait.stack.frames = vec![python("load_order", "/srv/app.py", 13)];
        let lock = if awaited == Awaited::Gil { Lock::Gil } else { Lock::Futex(FUTEX) };
        let waited = vec![Waited { lock, time_ns: WHOLE_NS }];
        let futexes = FutexWaits { lasting: Some(Some(Timeout::None)), ..FutexWaits::default() };
        let end = End::NotYet;
        Stall { stacks: vec![wait], waited, futexes, end, wakers: Vec::new(), ..sample::stall() }
    }

    fn receiving() -> Sampled {
        let descriptor = Some(Descriptor::new(7, Kind::Socket, "unix /run/db.sock"));
        let call = Call { descriptor, is_seen: true, ..Call::default() };
        let mut seen = blocked_in(45, [7, 0, 0, 0, 0, 0], 900);
        seen.call = Some(Box::new(call));
        seen.stack.frames = vec![python("run_query", "/srv/app.py", 9)];
        seen
    }

    fn companion(tid: u32, seen: Sampled) -> Companion {
        let name = Some(format!("pool-{tid}"));
        Companion { tid, name, seen, is_parked: false, waits_for: None }
    }

    fn parked(tid: u32) -> Companion {
        let mut seen = blocked_in(202, [9, 128, 0, 0, 0, 0], 900);
        seen.awaited = Awaited::Futex;
        Companion { is_parked: true, ..companion(tid, seen) }
    }

    fn cause(stall: &Stall) -> Cause {
        let process = ProcessFacts::default();
        let mut verdict = judge(stall, &BTreeMap::new());
        attach(&mut verdict, stall, &CodeOwner::new(&process));
        verdict.cause
    }

    fn holding(tid: u32, held: Lock, seen: Sampled, collecting: u64) -> Holder {
        Holder { tid, name: Some("poller".to_owned()), held, seen, collecting }
    }

    /// What the holder of the GIL does is said: waits, computes, or collects garbage.
    #[test]
    fn what_holders_do() {
        let with = |seen, collecting| {
            let mut stall = waiting(Awaited::Gil);
            stall.holders = vec![holding(77, Lock::Gil, seen, collecting)];
            cause(&stall)
        };
        let waits = with(receiving(), 0);
        let expected = "waiting for the GIL, held by thread 77 (poller), blocked in recvfrom on \
                        unix /run/db.sock";
        assert_eq!(waits.summary, expected);
        let [link] = waits.because.as_slice() else { panic!("{waits:?}") };
        assert_eq!((link.function.as_deref(), link.line), (Some("run_query"), Some(9)));
        assert_eq!(link.target.as_deref(), Some("unix /run/db.sock"));
        let computing = || on_cpu(vec![native("f", "/lib/x.so")], 900);
        assert!(with(computing(), 0).summary.ends_with(", computing"));
        let collects = with(computing(), 1);
        assert!(collects.summary.ends_with(", collecting garbage"), "{}", collects.summary);
        let pause = collects.kind.stop_the_world().unwrap();
        assert!(pause.set_off_by.as_ref().is_some_and(|it| it.tid == 77));
    }

    /// The thread that gave the result is told with what it was blocked in until then; while the wait lasts,
    /// the only one that works is the likely one, and of two neither.
    #[test]
    fn results_of_others() {
        let mut stall = waiting(Awaited::Futex);
        stall.company.threads = vec![companion(8, receiving()), parked(9)];
        stall.company.others = Some(2);
        let so_far = cause(&stall);
        assert!(so_far.summary.contains(", likely thread 8 (pool-8), blocked in recvfrom"));
        assert_eq!(so_far.confidence, Confidence::Likely);
        stall.company.others = None;
        assert!(cause(&stall).because.is_empty(), "there are more than were looked at");
        stall.company.others = Some(3);
        stall.company.threads.push(companion(10, receiving()));
        assert!(cause(&stall).because.is_empty(), "it may be either");
        stall.end = End::Seen;
        stall.wakers = vec![Waker {
            tid: 8,
            name: "pool-8".to_owned(),
            awaited: Awaited::Futex,
            ..Waker::default()
        }];
        let over = cause(&stall);
        let told = "released by thread 8 (pool-8), which was blocked in recvfrom on \
                    unix /run/db.sock at run_query (app.py:9) until then";
        assert!(over.summary.contains(told), "{}", over.summary);
        assert!(!over.deadlock);
    }

    /// A chain is followed to its end, and a cycle is a deadlock.
    #[test]
    fn chains() {
        let mut stall = waiting(Awaited::Futex);
        let owner = |tid| Some(LockOwner { futex: FUTEX, tid, name: None });
        stall.owner = owner(7);
        let waits_for = |tid: u32, lock: Lock, next: u32| {
            let mut seen = blocked_in(202, [9, 128, 0, 0, 0, 0], 900);
            seen.awaited = if lock == Lock::Gil { Awaited::Gil } else { Awaited::Futex };
            seen.stack.frames = vec![python("write", "/srv/app.py", 4)];
            Companion { waits_for: Some((lock, next)), ..companion(tid, seen) }
        };
        stall.company.threads = vec![waits_for(7, Lock::Futex(0x99), 8), companion(8, receiving())];
        let chain = cause(&stall);
        let expected = "waiting for a lock held by thread 7, waiting for a lock held by thread 8 \
                        (pool-8), which is blocked in recvfrom on unix /run/db.sock at run_query \
                        (app.py:9)";
        assert_eq!(chain.summary, expected);
        assert_eq!((chain.because.len(), chain.deadlock), (2, false));
        stall.company.threads = vec![waits_for(7, Lock::Gil, stall.tid)];
        let cycle = cause(&stall);
        assert!(cycle.deadlock && cycle.summary.ends_with(": a deadlock"), "{}", cycle.summary);
        stall.owner = owner(stall.tid);
        let itself = cause(&stall);
        assert_eq!(itself.summary, "waiting for a lock that it holds itself");
        assert!(itself.deadlock && itself.confidence == Confidence::Certain);
    }

    /// Alone, a loop waits for itself for certain; among threads that wait for work, likely; beside one that
    /// works, not.
    #[test]
    fn for_itself() {
        let mut stall = waiting(Awaited::Futex);
        stall.company = Company { others: Some(0), ..Company::default() };
        let alone = cause(&stall);
        assert!(alone.deadlock && alone.confidence == Confidence::Certain, "{}", alone.summary);
        stall.company = Company {
            threads: vec![parked(9)],
            others: Some(1),
            idle_looks: 2,
            ..Company::default()
        };
        let idle = cause(&stall);
        assert!(idle.deadlock && idle.confidence == Confidence::Likely, "{}", idle.summary);
        stall.company.idle_looks = 0;
        assert!(!cause(&stall).deadlock);
    }
}
