//! A loop that waited for another thread: which one, in the words of a report, and which stacks show why.

use super::woken;
use crate::gap::Gap;
use crate::report::schema::stall::{CauseKind, Holder, Thread, Waker};
use crate::turn::{self, Awaited, End, Sampled, Stall};

/// The cause of a wait for the interpreter's lock.
pub fn gil(stall: &Stall, gaps: &mut Vec<Gap>) -> CauseKind {
    let holders = shares(stall, Awaited::Gil);
    if holders.is_empty() {
        let reason =
            "no sample fell onto a thread that held the lock, and none stood still with it";
        gaps.push(Gap::new("holder_thread", reason));
    }
    let holder_thread = holders.first().map(|holder| thread(holder.tid, &holder.name));
    CauseKind::Gil { holder_thread, holders }
}

/// The cause of a wait on any other futex.
pub fn lock(stall: &Stall, address: String, gaps: &mut Vec<Gap>) -> CauseKind {
    let holders = shares(stall, Awaited::Futex);
    let seen = holders.first();
    let named = stall.owner.as_ref().map(|owner| thread(owner.tid, &owner.name));
    let owner_thread = seen.map(|holder| thread(holder.tid, &holder.name)).or(named);
    let of_futex = |waker: &&turn::Waker| waker.awaited == Awaited::Futex;
    let woken_by = stall.wakers.iter().find(of_futex).map(woken::of);
    if owner_thread.is_none() {
        let reason = "the futex names nobody: mutexes of glibc do, and Python's RLock up to 3.13; \
                      semaphores, conditions and other locks do not";
        gaps.push(Gap::new("owner_thread", reason));
    }
    if woken_by.is_none() && stall.end != End::NotYet {
        let reason = "the wait was not seen to be ended by another thread's futex call";
        gaps.push(Gap::new("woken_by", reason));
    }
    CauseKind::Lock { address, owner_thread, holders, woken_by }
}

/// The stacks that show why it took so long, and whose they are, where they are another thread's. The
/// line that waits for the interpreter's lock is innocent in any case: every line of Python would. The
/// line that waits for a lock is the one to look at where nobody knows who held it.
pub fn evidence<'a>(
    stall: &'a Stall,
    kind: &CauseKind,
    gaps: &mut Vec<Gap>,
) -> Option<(Vec<&'a Sampled>, u32)> {
    let (held, holder) = match kind {
        CauseKind::Gil { holder_thread, .. } => (Awaited::Gil, holder_thread.as_ref()),
        CauseKind::Lock { owner_thread, .. } => (Awaited::Futex, owner_thread.as_ref()),
        _ => return None,
    };
    let tid = holder.map_or(stall.tid, |thread| thread.tid);
    let of_holder = stall.holders.iter().filter(|seen| seen.tid == tid && seen.held == held);
    let evidence: Vec<_> = of_holder.map(|holder| &holder.seen).collect();
    if evidence.is_empty() && held == Awaited::Futex {
        // A thread that waits for a lock of its own has told by its own stack what there is to tell.
        if holder.is_some_and(|thread| thread.tid != stall.tid) {
            let reason = "it did not stand still, and no sample fell onto it";
            gaps.push(Gap::new("stack of the lock's owner", reason));
        }
        return None;
    }
    Some((evidence, tid))
}

/// `waiting for a lock held by thread 77 (reports)`
pub fn phrase(kind: &CauseKind) -> String {
    match kind {
        CauseKind::Gil { holder_thread: Some(holder), holders } => {
            format!("waiting for the GIL, held by {}", in_turn(holder, holders))
        }
        CauseKind::Gil { holder_thread: None, .. } => "waiting for the GIL".to_owned(),
        CauseKind::Lock { owner_thread: Some(owner), holders, .. } => {
            format!("waiting for a lock held by {}", in_turn(owner, holders))
        }
        CauseKind::Lock { woken_by: Some(waker), .. } => {
            let Waker { tid, name, .. } = waker;
            format!("waiting for another thread (futex), released by thread {tid} ({name})")
        }
        _ => "waiting for another thread (futex)".to_owned(),
    }
}

/// `thread 77 (reports)`, or how many there were where each had it for a while: a convoy.
fn in_turn(most: &Thread, holders: &[Holder]) -> String {
    match holders.len() {
        0 | 1 => words(most),
        count => format!("{count} threads in turn, most by {}", words(most)),
    }
}

fn words(thread: &Thread) -> String {
    match &thread.name {
        Some(name) => format!("thread {} ({name})", thread.tid),
        None => format!("thread {}", thread.tid),
    }
}

fn thread(tid: u32, name: &Option<String>) -> Thread {
    Thread { tid, name: name.clone() }
}

/// The threads that held something, with the sums of their stacks' shares, longest first.
fn shares(stall: &Stall, held: Awaited) -> Vec<Holder> {
    let mut shares: Vec<Holder> = Vec::new();
    for holder in stall.holders.iter().filter(|holder| holder.held == held) {
        let time_ns = holder.seen.time_ns;
        match shares.iter_mut().find(|share| share.tid == holder.tid) {
            Some(share) => share.time_ns = share.time_ns.saturating_add(time_ns),
            None => shares.push(Holder { tid: holder.tid, name: holder.name.clone(), time_ns }),
        }
    }
    shares.sort_by_key(|share| std::cmp::Reverse(share.time_ns));
    shares
}

#[cfg(test)]
mod tests {
    use super::{evidence, gil, lock, phrase};
    use crate::report::sample::{self, on_cpu, python};
    use crate::turn::{Awaited, End, Holder, Named, Stall, Waker};

    fn holder(tid: u32, held: Awaited, function: &str, time_ns: u64) -> Holder {
        let seen = on_cpu(vec![python(function, "/srv/app.py", 7)], time_ns);
        Holder { tid, name: Some(format!("t{tid}")), held, seen }
    }

    fn waker(tid: u32) -> Waker {
        let (pid, name, awaited) = (4242, format!("t{tid}"), Awaited::Futex);
        Waker { pid, tid, name, ended_ns: 9, awaited, ..Waker::default() }
    }

    fn lock_of(stall: &Stall) -> (String, Vec<String>) {
        let mut gaps = Vec::new();
        let kind = lock(stall, "0x7f10".to_owned(), &mut gaps);
        (phrase(&kind), gaps.into_iter().map(|gap| gap.0).collect())
    }

    /// Several holders in turn: the one with the largest sum is named, and the others are counted.
    #[test]
    fn several_holders() {
        let mut stall = sample::stall();
        stall.holders = vec![
            holder(7, Awaited::Gil, "one", 40),
            holder(8, Awaited::Gil, "two", 35),
            holder(8, Awaited::Gil, "three", 20),
            holder(9, Awaited::Futex, "four", 99),
        ];
        let mut gaps = Vec::new();
        let kind = gil(&stall, &mut gaps);
        let expected = "waiting for the GIL, held by 2 threads in turn, most by thread 8 (t8)";
        assert_eq!(phrase(&kind), expected);
        let (stacks, blamed) = evidence(&stall, &kind, &mut gaps).unwrap();
        assert_eq!((stacks.len(), blamed), (2, 8));
        assert!(gaps.is_empty(), "{gaps:?}");
    }

    /// A lock's owner is blamed by its own stacks; one that is only known by number leaves the blame
    /// with the line that waits, and says why.
    #[test]
    fn owners() {
        let mut stall = sample::stall();
        stall.owner = Some(Named { tid: 7, name: None });
        assert_eq!(lock_of(&stall).0, "waiting for a lock held by thread 7");
        let mut gaps = Vec::new();
        let kind = lock(&stall, String::new(), &mut Vec::new());
        assert!(evidence(&stall, &kind, &mut gaps).is_none());
        assert!(gaps[0].0.starts_with("stack of the lock's owner"), "{gaps:?}");

        stall.holders = vec![holder(8, Awaited::Futex, "keep", 9)];
        let kind = lock(&stall, String::new(), &mut Vec::new());
        assert_eq!(phrase(&kind), "waiting for a lock held by thread 8 (t8)");
        assert_eq!(evidence(&stall, &kind, &mut gaps).unwrap().1, 8);

        stall.holders.insert(0, holder(9, Awaited::Futex, "keep", 8));
        let convoy = "waiting for a lock held by 2 threads in turn, most by thread 8 (t8)";
        assert_eq!(lock_of(&stall).0, convoy);
    }

    /// Who released it is told, and blamed for nothing; while the wait lasts, nobody is missed.
    #[test]
    fn wakers() {
        let mut stall = sample::stall();
        stall.end = End::NotYet;
        let (words, gaps) = lock_of(&stall);
        assert_eq!((words.as_str(), gaps.len()), ("waiting for another thread (futex)", 1));
        stall.end = End::Seen;
        assert_eq!(lock_of(&stall).1.len(), 2);
        let of_a_pipe = Waker { awaited: Awaited::Syscall, ..waker(6) };
        stall.wakers = vec![of_a_pipe, waker(7), waker(8)];
        let (words, gaps) = lock_of(&stall);
        let expected = "waiting for another thread (futex), released by thread 7 (t7)";
        assert_eq!((words.as_str(), gaps.len()), (expected, 1));
        let kind = lock(&stall, String::new(), &mut Vec::new());
        assert!(evidence(&stall, &kind, &mut Vec::new()).is_none());
    }
}
