//! A suspected loop that waits for another thread: what for, who holds that, and whom the probes are to watch for it.

mod company;
mod outside;

use std::collections::{BTreeMap, BTreeSet};

use profiler_ebpf::record::{Registers, ThreadSnapshot, reason};
use profiler_ebpf::turn::FUTEX;
use profiler_ebpf::wanted::{Wanted, may_be_ended};

use self::outside::{Look, lock_owner};
use crate::gap::Gap;
use crate::job::{Bystander, Job, Sight};
use crate::process::TargetMemory;
use crate::runtime::{GlobalLock, Interpreter};
use crate::sleeping_threads::{self, MAX_THREADS, Standing};
use crate::source::{Captured, EventSource};
use crate::turn::{Awaited, Lock};

pub use self::outside::{Blocked, Outside};

/// Between two looks from outside at who holds what a loop waits for; in a long stall a tenth of its
/// age so far.
const LOOK_EVERY_NS: u64 = 50_000_000;

/// Between two listings of the interpreter's threads for the probes: threads come and go.
const LIST_EVERY_NS: u64 = 1_000_000_000;

/// The probes go on watching so long after the last wait: the next is often of the same kind.
const LINGER_NS: u64 = 250_000_000;

/// One loop that waits, or has waited, for another thread in its suspected turn.
#[derive(Debug, Clone, Copy)]
struct Wait {
    turn_start_ns: u64,
    global_lock: bool,
    futex: bool,
    /// It was in a system call that another task's may end.
    call: bool,
    /// The thread that owns the lock at this futex, as far as the lock says.
    owner: Option<(u32, u64)>,
    looked_ns: u64,
    next_look_ns: u64,
}

/// Who is to blame, as far as is known now.
#[derive(Debug, Default)]
pub struct HolderSearch {
    /// The interpreter's lock, once it was found.
    global_lock: Option<GlobalLock>,
    /// Where it is known that the interpreter collects garbage, or 0.
    collecting_at: u64,
    waits: BTreeMap<u32, Wait>,
    /// Whether every thread is of interest, and in which suspected turns.
    everyone: bool,
    /// The lock that any thread may have, where another waits on a futex: a runtime's global one, of which only stacks
    /// tell.
    hidden_lock: Option<Lock>,
    suspected: Vec<(u32, u64)>,
    /// Each loop's last turn that is known to be over: where other threads are since does not matter
    /// to it, however long a state that was read before still shows it.
    over: BTreeMap<u32, u64>,
    /// By loop, the threads that were looked at in its present wait.
    company: BTreeMap<u32, sleeping_threads::Read>,
    /// Threads whose names were told in the present stall.
    named: BTreeSet<u32>,
    next_list_ns: u64,
    wakers_until_ns: u64,
    /// So long their stacks are wanted as well.
    stacks_until_ns: u64,
    /// Why other threads cannot be watched, if they cannot.
    pub refused: Option<String>,
}

impl HolderSearch {
    /// From now on every thread of the target is of interest.
    pub fn want_everyone(&mut self) {
        self.everyone = true;
    }

    /// From now on whoever runs while a loop waits on a futex is of interest: it may have this lock.
    pub fn want_holders_of(&mut self, hidden: Lock) {
        self.hidden_lock = Some(hidden);
    }

    /// What a blocked thread waits for, as far as its registers and the interpreter tell.
    pub fn awaited(
        &mut self,
        interpreter: Option<&dyn Interpreter>,
        memory: &impl TargetMemory,
        captured: &Captured,
    ) -> Awaited {
        let head = &captured.head;
        if head.reason != reason::SWITCH_OUT {
            return Awaited::Syscall;
        }
        if head.registers.syscall != FUTEX {
            if may_be_ended(&head.registers) {
                self.wait(head.head.tid, head.turn_start_ns).call = true;
            }
            return Awaited::Syscall;
        }
        self.global_lock = self.global_lock.or_else(|| interpreter?.lock(memory));
        let awaited = self.awaited_in(&head.registers);
        let wait = self.wait(head.head.tid, head.turn_start_ns);
        wait.global_lock |= awaited == Awaited::Gil;
        wait.futex |= awaited == Awaited::Futex;
        awaited
    }

    /// What a thread waits for that sleeps with these registers.
    fn awaited_in(&self, registers: &Registers) -> Awaited {
        let [futex, ..] = registers.args;
        match self.global_lock {
            _ if registers.syscall != FUTEX => Awaited::Syscall,
            Some(lock) if lock.contains(futex) => Awaited::Gil,
            _ => Awaited::Futex,
        }
    }

    /// The turns that are suspected now. What is known of others is forgotten.
    pub fn keep(&mut self, mut suspected: Vec<(u32, u64)>) {
        suspected.retain(|(tid, turn_start_ns)| self.over.get(tid) != Some(turn_start_ns));
        self.waits.retain(|tid, wait| suspected.contains(&(*tid, wait.turn_start_ns)));
        self.company.retain(|tid, _| self.waits.contains_key(tid));
        if suspected.is_empty() {
            self.named.clear();
        }
        self.suspected = suspected;
    }

    /// A turn is over, say the records, which are in order.
    pub fn turn_over(&mut self, loop_tid: u32, turn_start_ns: u64) {
        self.over.insert(loop_tid, turn_start_ns);
        let suspected = std::mem::take(&mut self.suspected);
        self.keep(suspected);
    }

    /// Whether running threads are to be sampled although the loops are blocked.
    pub fn wants_ticks(&self) -> bool {
        let Wanted { gil, everyone, owner, .. } = self.wanted();
        (gil, everyone, owner) != (0, 0, 0)
    }

    /// Has the probes watch for what is of interest now.
    pub fn watch<S: EventSource, M: TargetMemory>(
        &mut self,
        outside: Outside<'_, S, M>,
        now_ns: u64,
    ) {
        if self.waits.values().any(|wait| wait.futex) {
            self.stacks_until_ns = now_ns + LINGER_NS;
        }
        if self.waits.values().any(|wait| wait.futex || wait.call) {
            self.wakers_until_ns = now_ns + LINGER_NS;
        }
        self.refused = self.tell(outside, now_ns).err().map(|error| format!("{error:#}"));
    }

    fn tell<S: EventSource, M: TargetMemory>(
        &mut self,
        outside: Outside<'_, S, M>,
        now_ns: u64,
    ) -> anyhow::Result<()> {
        if !self.suspected.is_empty() {
            let interpreter = outside.runtimes.interpreter();
            let lock = || interpreter?.lock(outside.memory);
            self.global_lock = self.global_lock.or_else(lock);
            let collecting_at = interpreter.and_then(|it| it.collecting_at(outside.memory));
            self.collecting_at = collecting_at.unwrap_or(0);
        }
        let wanted = self.wanted();
        let wakers = now_ns < self.wakers_until_ns;
        let stacks = now_ns < self.stacks_until_ns;
        if let Some(interpreter) = outside.runtimes.interpreter()
            && (stacks || self.wants_ticks())
            && now_ns >= self.next_list_ns
        {
            self.next_list_ns = now_ns + LIST_EVERY_NS;
            outside.source.set_thread_states(&interpreter.states(outside.memory))?;
        }
        outside.source.set_wanted(wanted)?;
        outside.source.watch_wakers(wakers)
    }

    fn wanted(&self) -> Wanted {
        let owners: Vec<u32> =
            self.waits.values().filter_map(|wait| wait.owner).map(|(tid, _)| tid).collect();
        let lock = self.global_lock;
        let is_waited_for = lock.is_some() && self.waits.values().any(|wait| wait.global_lock);
        // The probes compare with one owner; of several, everybody's ticks are sorted here.
        let several = owners.iter().any(|owner| owners.first() != Some(owner));
        let may_be_hidden =
            self.hidden_lock.is_some() && self.waits.values().any(|wait| wait.futex);
        let everyone = several || may_be_hidden || (self.everyone && !self.suspected.is_empty());
        Wanted {
            gil: u32::from(is_waited_for),
            everyone: u32::from(everyone),
            owner: owners.first().copied().unwrap_or(0),
            reserved: 0,
            gil_holder_at: lock.map_or(0, |lock| lock.holder_at),
            gil_locked_at: lock.map_or(0, |lock| lock.locked_at),
            collecting_at: self.collecting_at,
        }
    }

    /// The loops to which it matters where a thread was, and as the holder of what.
    pub fn concerned(&self, captured: &Captured) -> Vec<Sight> {
        let head = &captured.head;
        let mut sights = Vec::new();
        for (tid, wait) in self.waits.iter().filter(|(tid, _)| **tid != head.head.tid) {
            let sight = |held| Sight { loop_tid: *tid, turn_start_ns: wait.turn_start_ns, held };
            if wait.global_lock && head.holds_gil == 1 {
                sights.push(sight(Some(Lock::Gil)));
            }
            // Its stack will tell whether it has it, and the loop's whether that waits for it.
            sights.extend(self.hidden_lock.filter(|_| wait.futex).map(|lock| sight(Some(lock))));
            if let Some((owner, futex)) = wait.owner
                && owner == head.head.tid
            {
                sights.push(sight(Some(Lock::Futex(futex))));
            }
        }
        if self.everyone {
            let bystander = |(loop_tid, turn_start_ns): &(u32, u64)| Sight {
                loop_tid: *loop_tid,
                turn_start_ns: *turn_start_ns,
                held: None,
            };
            let others = self.suspected.iter().filter(|(tid, _)| *tid != head.head.tid);
            sights.extend(others.map(bystander));
        }
        sights
    }

    /// Looks from outside who holds what a blocked loop waits for, if it is time to.
    pub fn look<S: EventSource, M: TargetMemory>(
        &mut self,
        mut outside: Outside<'_, S, M>,
        blocked: Blocked<'_>,
        jobs: &mut Vec<Job>,
    ) {
        let Blocked { captured, awaited, now_ns } = blocked;
        let (loop_tid, turn_start_ns) = (captured.head.head.tid, captured.head.turn_start_ns);
        let wait = *self.wait(loop_tid, turn_start_ns);
        let [futex, ..] = captured.head.registers.args;
        let Some(lock) = awaited.lock(&captured.head.registers) else { return };
        if now_ns < wait.next_look_ns {
            return;
        }
        let pause_ns = LOOK_EVERY_NS.max(now_ns.saturating_sub(turn_start_ns) / 10);
        let weight_ns = match wait.looked_ns {
            0 => LOOK_EVERY_NS,
            before_ns => now_ns.saturating_sub(before_ns),
        };
        let holder = self.holder(&mut outside, awaited, captured);
        let wait = self.wait(loop_tid, turn_start_ns);
        (wait.looked_ns, wait.next_look_ns) = (now_ns, now_ns + pause_ns);
        wait.owner = holder.map(|tid| (tid, futex)).filter(|_| awaited == Awaited::Futex);
        let look = Look { loop_tid, turn_start_ns, now_ns, weight_ns };
        let Some(tid) = holder else {
            if awaited == Awaited::Futex {
                self.everybody(&mut outside, look, jobs);
            }
            return;
        };
        // The loop's own stack is known. Whoever is on a CPU is met by ticks.
        let seen = match tid == loop_tid {
            true => None,
            false => self.asleep(&mut outside, tid, now_ns),
        };
        // What was read counts only if the thread still holds it.
        if self.holder(&mut outside, awaited, captured) != Some(tid) {
            return;
        }
        let sight = Sight { loop_tid, turn_start_ns, held: Some(lock) };
        self.name(&mut outside, tid, jobs);
        let next = seen.as_ref().and_then(|seen| seen.waits_for).map(|(_, next)| next);
        jobs.push(Job::Holder { sight, tid, seen: seen.map(Box::new), weight_ns });
        self.chain(&mut outside, look, next, jobs);
    }

    /// When to look next for the holder of the lock that a loop waits for, if it waits for one.
    pub fn next_look_ns(&self, loop_tid: u32) -> Option<u64> {
        let wait = self.waits.get(&loop_tid).filter(|wait| wait.global_lock || wait.futex);
        wait.map(|wait| wait.next_look_ns)
    }

    /// The thread that holds what is waited for, now.
    fn holder<S, M: TargetMemory>(
        &self,
        outside: &mut Outside<'_, S, M>,
        awaited: Awaited,
        captured: &Captured,
    ) -> Option<u32> {
        let tid_in_container = match (awaited, &self.global_lock) {
            (Awaited::Gil, Some(lock)) => {
                outside.runtimes.interpreter()?.holder(outside.memory, lock)?
            }
            (Awaited::Futex, _) => lock_owner(outside, captured)?,
            _ => return None,
        };
        outside.target.tid_of(tid_in_container)
    }

    fn asleep<S: EventSource, M: TargetMemory>(
        &mut self,
        outside: &mut Outside<'_, S, M>,
        tid: u32,
        now_ns: u64,
    ) -> Option<Bystander> {
        let is_it = |thread: &ThreadSnapshot| thread.tid == tid;
        let interpreter = outside.runtimes.interpreter();
        let found = sleeping_threads::read(
            outside.source,
            outside.memory,
            interpreter,
            is_it,
            None,
            now_ns,
        );
        let captured = match found {
            Ok(mut found) => found.still.pop()?,
            Err(error) => {
                self.refused = Some(format!("{error:#}"));
                return None;
            }
        };
        Some(self.bystander(outside, captured))
    }

    fn wait(&mut self, loop_tid: u32, turn_start_ns: u64) -> &mut Wait {
        let new = Wait {
            turn_start_ns,
            global_lock: false,
            futex: false,
            call: false,
            owner: None,
            looked_ns: 0,
            next_look_ns: 0,
        };
        let known = self.waits.get(&loop_tid).map(|wait| wait.turn_start_ns);
        if known != Some(turn_start_ns) {
            // Threads may have come since they were last listed, and one of them may be the holder.
            self.next_list_ns = 0;
            self.company.remove(&loop_tid);
            self.waits.insert(loop_tid, new);
        }
        self.waits.entry(loop_tid).or_insert(new)
    }

    /// Every other thread of the process where it stands, if all are of interest.
    pub fn bystanders<S: EventSource, M: TargetMemory>(
        &mut self,
        mut outside: Outside<'_, S, M>,
        loop_tid: u32,
        turn_start_ns: u64,
        now_ns: u64,
    ) -> Option<Job> {
        if !self.everyone {
            return None;
        }
        let is_other = |thread: &ThreadSnapshot| thread.tid != loop_tid;
        let interpreter = outside.runtimes.interpreter();
        let read = sleeping_threads::read(
            outside.source,
            outside.memory,
            interpreter,
            is_other,
            None,
            now_ns,
        );
        let mut gaps = Vec::new();
        let found = read.unwrap_or_else(|error| {
            gaps.push(Gap::new("stacks of the other threads", format!("{error:#}")));
            Standing::default()
        });
        if found.left_out > 0 {
            let what = format!("stacks of {} more threads", found.left_out);
            gaps.push(Gap::new(&what, format!("no more than {MAX_THREADS} are read")));
        }
        let still = found.still.into_iter().map(|it| self.bystander(&mut outside, it)).collect();
        Some(Job::Bystanders { loop_tid, turn_start_ns, still, moving: found.moving, gaps })
    }
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::record::{CaptureHead, RecordHead, Registers, reason};
    use profiler_ebpf::turn::FUTEX;
    use profiler_ebpf::wanted::Wanted;

    use super::HolderSearch;
    use crate::job::Sight;
    use crate::process::{TargetMemory, Unreadable};
    use crate::runtime::GlobalLock;
    use crate::source::Captured;
    use crate::turn::{Awaited, Lock};

    const LOOP: u32 = 77;
    const TURN: u64 = 5000;

    struct Nothing;

    impl TargetMemory for Nothing {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
            Err(Unreadable { address, bytes: buffer.len() })
        }
    }

    fn captured(tid: u32, reason: u32, syscall: i64) -> Captured {
        let head = CaptureHead {
            head: RecordHead { kind: 0, tid },
            turn_start_ns: TURN,
            reason,
            registers: Registers { syscall, ..Registers::default() },
            ..CaptureHead::default()
        };
        Captured::of_outside(head, Vec::new())
    }

    /// One loop that waits for another thread by a futex.
    fn waiting() -> HolderSearch {
        let mut holders = HolderSearch::default();
        let blocked = captured(LOOP, reason::SWITCH_OUT, FUTEX);
        assert_eq!(holders.awaited(None, &Nothing, &blocked), Awaited::Futex);
        holders.keep(vec![(LOOP, TURN)]);
        holders
    }

    /// Only a thread that gave up its CPU in a futex call waits for another.
    #[test]
    fn what_is_waited_for() {
        let mut holders = HolderSearch::default();
        const NANOSLEEP: i64 = 35;
        for (reason, syscall) in [(reason::SWITCH_OUT, NANOSLEEP), (reason::TICK, FUTEX)] {
            let blocked = captured(LOOP, reason, syscall);
            assert_eq!(holders.awaited(None, &Nothing, &blocked), Awaited::Syscall);
        }
        assert!(holders.waits.is_empty());
        let reads = captured(LOOP, reason::SWITCH_OUT, 0);
        assert_eq!(holders.awaited(None, &Nothing, &reads), Awaited::Syscall);
        assert!(
            holders.waits.values().all(|wait| wait.call && !wait.futex),
            "who ends it is asked"
        );
    }

    /// Where the interpreter's lock is, the probes are told before anybody waits for it: a loop's own ticks
    /// say whether it holds it. That alone asks for nobody else.
    #[test]
    fn lock_that_nobody_waits_for() {
        let (holder_at, locked_at) = (0x7008, 0x7010);
        let lock =
            GlobalLock { waited_on_from: 0x7020, waited_on_to: 0x70d0, holder_at, locked_at };
        let mut holders = HolderSearch { global_lock: Some(lock), ..HolderSearch::default() };
        let known =
            Wanted { gil_holder_at: holder_at, gil_locked_at: locked_at, ..Wanted::default() };
        assert_eq!(holders.wanted(), known);
        assert!(!holders.wants_ticks());
        holders.wait(LOOP, TURN).global_lock = true;
        assert_eq!(holders.wanted(), Wanted { gil: 1, ..known });
        assert!(holders.wants_ticks());
    }

    /// An owner is watched for from when it is known; of several, everybody is, and they are told apart
    /// here.
    #[test]
    fn owners_are_watched() {
        let mut holders = waiting();
        assert_eq!(holders.wanted(), Wanted::default(), "nobody is known to own it");
        holders.wait(LOOP, TURN).owner = Some((8, 0x7f10));
        assert_eq!(holders.wanted(), Wanted { owner: 8, ..Wanted::default() });
        let held = Some(Lock::Futex(0x7f10));
        let sight = Sight { loop_tid: LOOP, turn_start_ns: TURN, held };
        assert_eq!(holders.concerned(&captured(8, reason::TICK, -1)), [sight]);
        assert_eq!(holders.concerned(&captured(9, reason::TICK, -1)), []);

        let second = holders.wait(LOOP + 1, TURN);
        (second.futex, second.owner) = (true, Some((9, 0x7f10)));
        assert_eq!((holders.wanted().owner, holders.wanted().everyone), (8, 1));
        let sight = Sight { loop_tid: LOOP + 1, ..sight };
        assert_eq!(holders.concerned(&captured(9, reason::TICK, -1)), [sight]);
    }

    /// Once a turn is over nobody is watched for it, though a state that was read before still shows it.
    #[test]
    fn what_is_over_concerns_nobody() {
        let mut holders = waiting();
        holders.wait(LOOP, TURN).owner = Some((8, 0x7f10));
        holders.turn_over(LOOP, TURN);
        assert_eq!(holders.concerned(&captured(8, reason::TICK, -1)), []);
        holders.keep(vec![(LOOP, TURN)]);
        assert!(holders.suspected.is_empty());
        holders.keep(vec![(LOOP, TURN + 1)]);
        assert_eq!(holders.suspected, [(LOOP, TURN + 1)]);
    }

    /// The loop itself is none of the others.
    #[test]
    fn everyone_but_the_loop() {
        let mut holders = HolderSearch::default();
        holders.want_everyone();
        assert_eq!(holders.wanted(), Wanted::default(), "nothing is suspected");
        holders.keep(vec![(LOOP, TURN), (LOOP + 1, TURN)]);
        assert_eq!(holders.wanted().everyone, 1);
        let sight = Sight { loop_tid: LOOP + 1, turn_start_ns: TURN, held: None };
        assert_eq!(holders.concerned(&captured(LOOP, reason::TICK, -1)), [sight]);
    }
}
