//! A loop that waited for another thread: which one, and which stacks show why.

use super::shares::shares;
use super::{gvl, woken};
use crate::gap::Gap;
use crate::report::schema::stall::{CauseKind, Thread};
use crate::report::units::{hexadecimal, is_percent, short_milliseconds};
use crate::syscall;
use crate::turn::{self, Awaited, End, Lock, Sampled, Stall, Waited};

/// Whoever had one of several locks carries the waits for all from this part of the time on.
const ALL_PERCENT: u64 = 75;

/// The cause of a wait for the interpreter's lock.
pub fn gil(stall: &Stall, gaps: &mut Vec<Gap>) -> CauseKind {
    let holders = shares(stall, Lock::Gil);
    if holders.is_empty() {
        let reason =
            "no sample fell onto a thread that held the lock, and none stood still with it";
        gaps.push(Gap::new("holder_thread", reason));
    }
    let holder_thread = holders.first().map(|holder| thread(holder.tid, &holder.name));
    CauseKind::Gil { holder_thread, holders, stop_the_world: None }
}

/// The lock that a stack of such a wait is told about: of several the one that was waited for longest.
pub fn lock_of(stall: &Stall, sampled: &Sampled) -> Option<Lock> {
    match sampled.awaited {
        Awaited::Gil => return Some(Lock::Gil),
        Awaited::Gvl => return Some(Lock::Gvl),
        Awaited::Futex | Awaited::Syscall => {}
    }
    let [futex, ..] = sampled.registers.args;
    let own = syscall::is_futex(&sampled.registers).then_some(Lock::Futex(futex))?;
    Some(longest(stall).map_or(own, |waited| waited.lock))
}

/// The futex that it waited for longest.
fn longest(stall: &Stall) -> Option<&Waited> {
    stall.waited.iter().find(|waited| is_futex(waited))
}

fn is_futex(waited: &Waited) -> bool {
    matches!(waited.lock, Lock::Futex(_))
}

/// Whether who had one lock explains the waits for all of them, `whole_ns` together. If not, a gap says so.
pub fn is_all(stall: &Stall, kind: &CauseKind, whole_ns: u64, gaps: &mut Vec<Gap>) -> bool {
    let CauseKind::Lock { owner_thread: Some(_), .. } = kind else { return true };
    let Some(longest) = longest(stall) else { return true };
    let is_all = is_percent(longest.time_ns, whole_ns, ALL_PERCENT);
    if !is_all {
        let others = stall.waited.iter().filter(|waited| is_futex(waited)).count() - 1;
        let rest_ns = whole_ns.saturating_sub(longest.time_ns);
        let reason = format!(
            "{} of {} ms went into waits for other locks ({others} at least), and this is only who had \
             the one that was waited for longest",
            short_milliseconds(rest_ns),
            short_milliseconds(whole_ns)
        );
        gaps.push(Gap::new("owner_thread", reason));
    }
    is_all
}

/// The cause of a wait on any other futex.
pub fn lock(stall: &Stall, futex: u64, gaps: &mut Vec<Gap>) -> CauseKind {
    let holders = shares(stall, Lock::Futex(futex));
    let seen = holders.first();
    let of_futex = |owner: &&turn::LockOwner| owner.futex == futex;
    let named = stall.owner.as_ref().filter(of_futex);
    let named = named.map(|owner| thread(owner.tid, &owner.name));
    let owner_thread = seen.map(|holder| thread(holder.tid, &holder.name)).or(named);
    let by_futex = |waker: &&turn::Waker| waker.awaited == Awaited::Futex;
    let woken_by = stall.wakers.iter().find(by_futex).map(woken::of);
    if owner_thread.is_none() {
        let reason = "the futex names nobody: mutexes of glibc do, and Python's RLock up to 3.13; \
                      semaphores, conditions and other locks do not";
        gaps.push(Gap::new("owner_thread", reason));
    }
    if woken_by.is_none() && stall.end != End::NotYet {
        let reason = "the wait was not seen to be ended by another thread's futex call";
        gaps.push(Gap::new("woken_by", reason));
    }
    let address = hexadecimal(futex);
    CauseKind::Lock {
        address,
        owner_thread,
        holders,
        woken_by,
        awaited: None,
        stop_the_world: None,
    }
}

/// The stacks that show why it took so long, and whose they are, where they are another thread's. The
/// line that waits for the interpreter's lock is innocent in any case: every line of Python would. The
/// line that waits for a lock is the one to look at where nobody knows who held it.
pub fn evidence<'a>(
    stall: &'a Stall,
    kind: &CauseKind,
    lock: Lock,
    gaps: &mut Vec<Gap>,
) -> Option<(Vec<&'a Sampled>, u32)> {
    let holder = match kind {
        CauseKind::Gil { holder_thread, .. } => holder_thread.as_ref(),
        CauseKind::Lock { owner_thread, .. } => owner_thread.as_ref(),
        _ => return None,
    };
    let tid = holder.map_or(stall.tid, |thread| thread.tid);
    if lock == Lock::Gvl {
        return Some((gvl::stacks(stall, tid), tid));
    }
    let of_holder = stall.holders.iter().filter(|seen| seen.tid == tid && seen.held == lock);
    let evidence: Vec<_> = of_holder.map(|holder| &holder.seen).collect();
    if evidence.is_empty() && lock != Lock::Gil {
        // A thread that waits for a lock of its own has told by its own stack what there is to tell.
        if holder.is_some_and(|thread| thread.tid != stall.tid) {
            let reason = "it did not stand still, and no sample fell onto it";
            gaps.push(Gap::new("stack of the lock's owner", reason));
        }
        return None;
    }
    Some((evidence, tid))
}

fn thread(tid: u32, name: &Option<String>) -> Thread {
    Thread { tid, name: name.clone() }
}

#[cfg(test)]
mod tests {
    use super::super::locked::phrase;
    use super::{evidence, gil, is_all, lock};
    use crate::report::sample::{self, on_cpu, python};
    use crate::turn::{Awaited, End, Holder, Lock, LockOwner, Stall, Waited, Waker};

    const ADDRESS: u64 = 0x7f10;
    const FUTEX: Lock = Lock::Futex(ADDRESS);

    fn holder(tid: u32, held: Lock, function: &str, time_ns: u64) -> Holder {
        let seen = on_cpu(vec![python(function, "/srv/app.py", 7)], time_ns);
        Holder { tid, name: Some(format!("t{tid}")), held, seen, collecting: 0 }
    }

    fn waker(tid: u32) -> Waker {
        let (pid, name, awaited) = (4242, format!("t{tid}"), Awaited::Futex);
        Waker { pid, tid, name, ended_ns: 9, awaited, ..Waker::default() }
    }

    fn lock_of(stall: &Stall) -> (String, Vec<String>) {
        let mut gaps = Vec::new();
        let kind = lock(stall, ADDRESS, &mut gaps);
        (phrase(&kind), gaps.into_iter().map(|gap| gap.0).collect())
    }

    /// Several holders in turn: the one with the largest sum is named, and the others are counted.
    #[test]
    fn several_holders() {
        let mut stall = sample::stall();
        stall.holders = vec![
            holder(7, Lock::Gil, "one", 40),
            holder(8, Lock::Gil, "two", 35),
            holder(8, Lock::Gil, "three", 20),
            holder(9, FUTEX, "four", 99),
        ];
        let mut gaps = Vec::new();
        let kind = gil(&stall, &mut gaps);
        let expected = "waiting for the GIL, held by 2 threads in turn, most by thread 8 (t8)";
        assert_eq!(phrase(&kind), expected);
        let (stacks, blamed) = evidence(&stall, &kind, Lock::Gil, &mut gaps).unwrap();
        assert_eq!((stacks.len(), blamed), (2, 8));
        assert!(gaps.is_empty(), "{gaps:?}");
    }

    /// A lock's owner is blamed by its own stacks; one that is only known by number leaves the blame
    /// with the line that waits, and says why.
    #[test]
    fn owners() {
        let mut stall = sample::stall();
        stall.owner = Some(LockOwner { futex: ADDRESS, tid: 7, name: None });
        assert_eq!(lock_of(&stall).0, "waiting for a lock held by thread 7");
        let mut gaps = Vec::new();
        let kind = lock(&stall, ADDRESS, &mut Vec::new());
        assert!(evidence(&stall, &kind, FUTEX, &mut gaps).is_none());
        assert!(gaps[0].0.starts_with("stack of the lock's owner"), "{gaps:?}");

        stall.holders = vec![holder(8, FUTEX, "keep", 9)];
        let kind = lock(&stall, ADDRESS, &mut Vec::new());
        assert_eq!(phrase(&kind), "waiting for a lock held by thread 8 (t8)");
        assert_eq!(evidence(&stall, &kind, FUTEX, &mut gaps).unwrap().1, 8);

        stall.holders.insert(0, holder(9, FUTEX, "keep", 8));
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
        let kind = lock(&stall, ADDRESS, &mut Vec::new());
        assert!(evidence(&stall, &kind, FUTEX, &mut Vec::new()).is_none());
    }

    /// Of several locks one is told about; whoever had it is not said to have had the others, and who had
    /// another is not said to have had this.
    #[test]
    fn several_locks() {
        let mut stall = sample::stall();
        let waited = |futex, time_ns| Waited { lock: Lock::Futex(futex), time_ns };
        stall.waited = vec![waited(ADDRESS, 60_000_000), waited(0x7f20, 40_000_000)];
        stall.owner = Some(LockOwner { futex: 0x7f20, tid: 7, name: None });
        stall.holders = vec![holder(9, Lock::Futex(0x7f20), "other", 40)];
        assert_eq!(lock_of(&stall).0, "waiting for another thread (futex)");

        stall.holders.push(holder(8, FUTEX, "keep", 60));
        let kind = lock(&stall, ADDRESS, &mut Vec::new());
        assert_eq!(phrase(&kind), "waiting for a lock held by thread 8 (t8)");
        let mut gaps = Vec::new();
        assert!(is_all(&stall, &kind, 80_000_000, &mut gaps) && gaps.is_empty());
        assert!(!is_all(&stall, &kind, 100_000_000, &mut gaps));
        assert!(gaps[0].0.starts_with("owner_thread: 40 of 100 ms"), "{gaps:?}");
    }
}
