//! What was gathered about one loop's present turn: its stacks, who held what it waited for, and what
//! its descriptors stood for.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use profiler_ebpf::turn::Turn;

use crate::gap::Gap;
use crate::known::Known;
use crate::process::other_process::OtherProcess;
use crate::process::queues::AcceptQueue;
use crate::runtime::park::Pool;
use crate::turn::company::Companions;
use crate::turn::futex::FutexWaits;
use crate::turn::holders::Holders;
use crate::turn::samples::{CapturedWait, Samples};
use crate::turn::tracker::Due;
use crate::turn::{
    Awaited, Company, End, Holder, Lock, LockOwner, Moment, Other, Sampled, Waited, Waker,
};

/// Ends of waits kept of one turn; beyond this they are counted.
const MAX_WAKES: usize = 256;

/// Other threads kept of one turn; beyond this they are counted.
const MAX_OTHERS: usize = 256;

/// One end of a wait.
#[derive(Debug)]
struct Wake {
    blocked_at_ns: u64,
    at_ns: u64,
    by: Waker,
}

/// The captures of one loop's present turn.
#[derive(Debug, Default)]
pub struct StallBuilder {
    turn_start_ns: u64,
    /// Since when the thread has not been in a turn at all, although the probes took it for one: they
    /// had yet to learn where it parks.
    parked_ns: Option<u64>,
    pub samples: Samples,
    pub loop_kind: Option<&'static str>,
    /// The pool whose worker the thread is.
    pub pool: Option<Pool>,
    /// What its runtime calls the thread, as it was known last.
    own_name: Option<String>,
    /// Why that is not known, if it ought to be.
    nameless: Option<Gap>,
    /// Who was seen to hold what the thread waited for.
    pub holders: Holders,
    /// What the other threads were seen to do, where one of them was to end a wait.
    pub companions: Companions,
    /// The owner that a lock named last, and the lock's futex.
    owner: Option<(u32, u64)>,
    wakes: Vec<Wake>,
    /// Other threads, each as it was seen last.
    others: BTreeMap<u32, Sampled>,
    /// Threads that did not stand still when all others were looked at.
    ran: BTreeSet<u32>,
    /// The last turn, by its beginning, of which a line was kept back.
    kept_back_ns: Option<u64>,
    /// What the threads above are called: some may exit before they are reported.
    names: BTreeMap<u32, String>,
    /// What there was no room for.
    dropped: u64,
    pub gaps: Vec<Gap>,
    /// What the descriptors that it blocked on stood for.
    pub known: Known,
    /// The same of other threads: there may be many of them.
    pub known_of_others: Known,
    /// Connections that waited to be accepted, by address: the most that were seen at once.
    queues: BTreeMap<String, u64>,
    /// Processes that ran instead of the loop's thread.
    pub other_processes: BTreeMap<u32, OtherProcess>,
}

impl StallBuilder {
    /// Lets go of what belongs to another turn. Of what kind the loop is stays known.
    pub fn keep_to(&mut self, turn_start_ns: u64) {
        if self.turn_start_ns != turn_start_ns {
            let (loop_kind, pool) = (self.loop_kind, self.pool);
            let (own_name, nameless) = (self.own_name.take(), self.nameless.take());
            let kept_back_ns = self.kept_back_ns;
            let known =
                Self { loop_kind, pool, own_name, nameless, kept_back_ns, ..Self::default() };
            *self = Self { turn_start_ns, ..known };
        }
    }

    /// From then on the thread is not in the turn any more, whatever it does.
    pub fn idle_since(&mut self, at_ns: u64) {
        self.parked_ns = Some(self.parked_ns.map_or(at_ns, |known| known.min(at_ns)));
    }

    /// Whether the thread was only waiting for work at that time.
    pub fn is_idle_at(&self, at_ns: u64) -> bool {
        self.parked_ns.is_some_and(|parked_ns| at_ns > parked_ns)
    }

    /// What is due of a thread that waits for work is nothing, but for the end of a turn that was longer
    /// than the threshold before: the thread may have woken up, and parked once more, before its first
    /// park was found to be one. Where the end was missed, no more is known of it than of what was kept back.
    pub fn within_turn(&mut self, due: Due, threshold_ns: u64) -> Option<Due> {
        let start_ns = due.turn.start_ns;
        match self.parked_ns.filter(|parked_ns| due.at_ns > *parked_ns) {
            None if matches!(due.end, End::Unseen(_)) && self.kept_back_ns == Some(start_ns) => {
                None
            }
            None => Some(due),
            Some(parked_ns) if due.moment == Moment::End => {
                Some(due.cut_back(parked_ns)).filter(|due| due.turn.booked_ns() >= threshold_ns)
            }
            Some(_) => {
                self.kept_back_ns = Some(start_ns);
                None
            }
        }
    }

    /// As a report's `thread.loop` has it.
    pub fn kind(&self) -> Option<&'static str> {
        self.pool.map(|pool| pool.name).or(self.loop_kind)
    }

    /// What its runtime calls the thread. What was known before stays so where it could not be read.
    pub fn named(&mut self, name: Result<Option<String>, Gap>) {
        match name {
            Ok(name) => (self.own_name, self.nameless) = (name, None),
            Err(_) if self.own_name.is_some() => {}
            Err(why) => self.nameless = Some(why),
        }
    }

    pub fn own_name(&self) -> (Option<String>, Option<Gap>) {
        (self.own_name.clone(), self.nameless.clone())
    }

    pub fn descriptors(&self) -> BTreeMap<u32, String> {
        self.known.texts()
    }

    /// The stacks as [`Samples::stacks_of`] has them. What a number stood for in calls that were over before it
    /// was looked up is not told where it stood for several things in the same turn.
    pub fn stacks(&self, turn: &Turn, now_ns: u64) -> Vec<Sampled> {
        let mut stacks = self.samples.stacks_of(turn, now_ns);
        let over = stacks.iter_mut().filter_map(|sampled| sampled.call.as_deref_mut());
        for call in over.filter(|call| !call.is_seen) {
            if let Some(seen) = call.descriptor.take_if(|seen| self.known.is_ambiguous(seen.number))
            {
                let why = format!("number {} stood for several things in turn", seen.number);
                call.gaps.push(Gap::new("descriptor", why));
            }
        }
        stacks
    }

    /// The turn that all this is about.
    pub fn turn_start_ns(&self) -> u64 {
        self.turn_start_ns
    }

    /// Remembers what a thread is called. The name is asked for once.
    pub fn know(&mut self, tid: u32, name: impl FnOnce() -> Option<String>) {
        if let Entry::Vacant(entry) = self.names.entry(tid)
            && let Some(name) = name()
        {
            entry.insert(name);
        }
    }

    /// A thread owns the lock, by the lock's own word.
    pub fn owned_by(&mut self, tid: u32, futex: u64) {
        self.owner = Some((tid, futex));
    }

    /// Where another thread was.
    pub fn met(&mut self, tid: u32, seen: Sampled) {
        if self.others.len() >= MAX_OTHERS && !self.others.contains_key(&tid) {
            self.dropped += 1;
            return;
        }
        self.others.insert(tid, seen);
    }

    /// Somebody ended a wait that had begun at `blocked_at_ns`.
    pub fn woken(&mut self, blocked_at_ns: u64, at_ns: u64, by: Waker) {
        if self.wakes.len() == MAX_WAKES {
            self.dropped += 1;
            return;
        }
        self.wakes.push(Wake { blocked_at_ns, at_ns, by });
    }

    /// Where the one stood that woke the thread at this moment. None where that is not known.
    pub fn wake_seen(&mut self, tid: u32, at_ns: u64, seen: &Sampled) {
        let is_it = |wake: &&mut Wake| wake.at_ns == at_ns && wake.by.tid == tid;
        if let Some(wake) = self.wakes.iter_mut().rev().find(is_it) {
            wake.by.seen = Some(seen.clone());
        }
    }

    /// A blocked stretch is over: whoever was seen to hold in it what the thread waited for counts.
    pub fn block_over(&mut self, at_ns: u64, blocked_ns: u64) {
        if let Some(wait) = self.samples.wait_at(at_ns) {
            self.holders.settle(at_ns, at_ns.saturating_add(blocked_ns), wait.lock());
        }
    }

    /// The holders' stacks, with their shares of the time that the loop waited for what they held.
    pub fn holders(&self, waited: &[Waited]) -> Vec<Holder> {
        let waited_ns = |lock: Lock| {
            waited.iter().find(|waited| waited.lock == lock).map_or(0, |waited| waited.time_ns)
        };
        let open = self.samples.open_wait().map(|(from_ns, wait)| (from_ns, wait.lock()));
        let mut holders = self.holders.shares(open, waited_ns);
        for holder in &mut holders {
            holder.name = self.names.get(&holder.tid).cloned();
        }
        holders
    }

    pub fn owner(&self) -> Option<LockOwner> {
        let (tid, futex) = self.owner?;
        Some(LockOwner { futex, tid, name: self.names.get(&tid).cloned() })
    }

    /// Who ended waits, with what those waits had lasted; the longest first. The waits of one thread
    /// count as of one kind where they were on futexes, or in the same system call on the same descriptor.
    pub fn wakers(&self) -> Vec<Waker> {
        let mut wakers: Vec<Waker> = Vec::new();
        for wake in &self.wakes {
            let Some(waited) = self.samples.wait_at(wake.blocked_at_ns) else { continue };
            // That is given back every few milliseconds, to whoever asks for it.
            if waited.awaited == Awaited::Gil {
                continue;
            }
            let ended_ns = wake.at_ns.saturating_sub(wake.blocked_at_ns);
            let CapturedWait { awaited, registers: wait } = waited;
            let of_kind = |known: &&mut Waker| {
                // Many locks are made anew for each wait.
                let is_alike = awaited == Awaited::Futex
                    || (known.wait.syscall, known.wait.args[0]) == (wait.syscall, wait.args[0]);
                (known.tid, known.awaited) == (wake.by.tid, awaited) && is_alike
            };
            match wakers.iter_mut().find(of_kind) {
                Some(known) => {
                    known.ended_ns = known.ended_ns.saturating_add(ended_ns);
                    known.seen = wake.by.seen.clone().or(known.seen.take());
                    (known.syscall, known.args, known.wait) = (wake.by.syscall, wake.by.args, wait);
                }
                None => wakers.push(Waker { ended_ns, awaited, wait, ..wake.by.clone() }),
            }
        }
        for waker in &mut wakers {
            if let Some(name) = self.names.get(&waker.tid) {
                waker.name.clone_from(name);
            }
            if let Some(seen) = &mut waker.seen {
                seen.time_ns = waker.ended_ns;
            }
        }
        wakers.sort_by_key(|waker| std::cmp::Reverse(waker.ended_ns));
        wakers
    }

    /// How the waits on futexes ended, or have gone on up to `now_ns`.
    pub fn futexes(&self, now_ns: u64) -> FutexWaits {
        let is_woken = |at_ns| self.wakes.iter().any(|wake| wake.blocked_at_ns == at_ns);
        self.samples.futexes(now_ns, is_woken)
    }

    pub fn company(&self) -> Company {
        self.companions.told(|tid| self.names.get(&tid).cloned())
    }

    /// These threads ran when all others were looked at: ticks may show where.
    pub fn ran(&mut self, tids: &[u32]) {
        self.ran.extend(tids);
    }

    /// What is missing of the other threads.
    pub fn gaps(&self) -> Vec<Gap> {
        let dropped = self.dropped + self.holders.dropped + self.companions.dropped;
        let why = || format!("{dropped} records of them are more than are kept of one turn");
        let dropped = (dropped > 0).then(|| Gap::new("other threads", why()));
        self.gaps.iter().cloned().chain(self.unmet()).chain(dropped).collect()
    }

    fn unmet(&self) -> Option<Gap> {
        let unmet: Vec<String> = self
            .ran
            .iter()
            .filter(|tid| !self.others.contains_key(tid))
            .map(|tid| match self.names.get(tid) {
                Some(name) => format!("{tid} ({name})"),
                None => tid.to_string(),
            })
            .collect();
        let why = "they were not standing still, and no sample fell onto them";
        let what = format!("stacks of threads {}", unmet.join(", "));
        (!unmet.is_empty()).then(|| Gap::new(&what, why))
    }

    pub fn others(&self) -> Vec<Other> {
        let other = |(tid, seen): (&u32, &Sampled)| Other {
            tid: *tid,
            name: self.names.get(tid).cloned(),
            seen: seen.clone(),
        };
        self.others.iter().map(other).collect()
    }

    /// What cannot be had is asked for again and again, and said once.
    pub fn miss(&mut self, gap: Option<Gap>) {
        let new = gap.filter(|gap| !self.gaps.contains(gap));
        self.gaps.extend(new);
    }

    /// So many connections wait now.
    pub fn queued(&mut self, queues: Vec<AcceptQueue>) {
        for AcceptQueue { address, waiting } in queues {
            let most = self.queues.entry(address).or_default();
            *most = waiting.max(*most);
        }
    }

    pub fn queues(&self) -> Vec<AcceptQueue> {
        let queue = |(address, waiting): (&String, &u64)| AcceptQueue {
            address: address.clone(),
            waiting: *waiting,
        };
        self.queues.iter().map(queue).collect()
    }
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::record::{CaptureHead, Registers};
    use profiler_ebpf::turn::Loop;

    use super::StallBuilder;
    use crate::call::{Call, Descriptor, Kind};
    use crate::frame::Stack;
    use crate::gap::Gap;
    use crate::report::sample::on_cpu;
    use crate::turn::alike::Was;
    use crate::turn::holders::Sighting;
    use crate::turn::samples::Length;
    use crate::turn::tracker::Tracker;
    use crate::turn::{Awaited, Lock, Sampled, StandsFor, ThreadState, Waker};

    /// That of a stretch that stands for itself.
    fn length(blocked_ns: u64) -> Option<Length> {
        Length::of(&CaptureHead { blocked_ns, ..CaptureHead::default() })
    }

    fn waits(builder: &mut StallBuilder, at_ns: u64, blocked_ns: u64, awaited: Awaited) {
        let (stack, state) = (Stack::default(), ThreadState::Blocked);
        let registers = Registers::default();
        let was = Was { state, registers, awaited, task_state: 1, call: None };
        builder.samples.block(at_ns, length(blocked_ns), stack, was);
        builder.block_over(at_ns, blocked_ns);
    }

    fn sighting(at_ns: u64, tid: u32) -> Sighting {
        Sighting {
            at_ns,
            tid,
            held: Lock::Gil,
            seen: on_cpu(Vec::new(), 0),
            is_collecting: false,
            weight_ns: 10,
        }
    }

    /// What was kept back of a thread that only waited for work stays so where its end was missed, also once more is
    /// known of a later turn, and of that turn alone.
    #[test]
    fn kept_back() {
        let mut tracker = Tracker::new(100);
        let mut due = Vec::new();
        let state = |start_ns| {
            let mut state = Loop::default();
            state.begin(start_ns, 0);
            state
        };
        tracker.look(&state(1000), 1150, &mut due);
        tracker.look(&state(2000), 2050, &mut due);
        let [opened, ended] = &due[..] else { panic!("{due:?}") };
        let mut builder = StallBuilder::default();
        builder.keep_to(1000);
        assert!(builder.within_turn(opened.clone(), 100).is_some(), "it may be at work");
        assert!(builder.within_turn(ended.clone(), 100).is_some());
        builder.idle_since(1005);
        assert!(builder.within_turn(opened.clone(), 100).is_none());
        builder.keep_to(2000);
        builder.keep_to(1000);
        assert!(builder.within_turn(ended.clone(), 100).is_none());
        let mut other = ended.clone();
        other.turn.start_ns = 1500;
        assert!(builder.within_turn(other, 100).is_some());
    }

    /// Holders share the time that the loop waited for the lock, by how often each was seen while it
    /// did; other waits are not theirs.
    #[test]
    fn holders_share_the_wait() {
        let mut builder = StallBuilder::default();
        for (at_ns, tid) in [(1010, 7), (1020, 8), (1030, 8), (1040, 8), (1500, 9)] {
            builder.holders.sight(sighting(at_ns, tid));
            builder.know(tid, || Some(format!("t{tid}")));
        }
        waits(&mut builder, 1000, 400, Awaited::Gil);
        waits(&mut builder, 1400, 1000, Awaited::Syscall);
        let holders = builder.holders(&builder.samples.waited(3000));
        let seen: Vec<_> = holders.iter().map(|holder| (holder.tid, holder.seen.time_ns)).collect();
        assert_eq!(seen, [(8, 300), (7, 100)]);
        assert_eq!(holders[0].name.as_deref(), Some("t8"));
    }

    fn by_thread(tid: u32) -> Waker {
        Waker {
            command: None,
            pid: 1,
            tid,
            name: format!("t{tid}"),
            syscall: 1,
            args: [9, 0],
            awaited: Awaited::Syscall,
            wait: Registers::default(),
            ended_ns: 0,
            seen: None,
        }
    }

    /// Of one thread, the waits on each descriptor are of a kind of their own, each with what it was
    /// that it ended.
    #[test]
    fn wakers_by_what_was_waited_on() {
        let mut builder = StallBuilder::default();
        let read = |fd| Registers { args: [fd, 0, 0, 0, 0, 0], ..Registers::default() };
        for (at_ns, fd) in [(1000, 4), (2000, 5), (3000, 4)] {
            let (state, awaited) = (ThreadState::Blocked, Awaited::Syscall);
            let was = Was { state, registers: read(fd), awaited, task_state: 1, call: None };
            builder.samples.block(at_ns, length(100), Stack::default(), was);
            builder.woken(at_ns, at_ns + 100, by_thread(7));
        }
        let wakers = builder.wakers();
        let ended: Vec<_> = wakers.iter().map(|it| (it.wait.args[0], it.ended_ns)).collect();
        assert_eq!(ended, [(4, 200), (5, 100)]);
        assert_eq!((wakers[0].tid, wakers[0].syscall, wakers[0].args), (7, 1, [9, 0]));
    }

    /// A number that stood for two things in one turn may have stood for either in a call that was over by
    /// the time it was looked up; in one that was looked at while it lasted it is known.
    #[test]
    fn numbers_that_stood_for_several_things() {
        let mut builder = StallBuilder::default();
        for (at_ns, text, is_seen) in [(1000, "tcp a:1", false), (2000, "tcp b:1", true)] {
            let mut descriptor = Descriptor::new(7, Kind::Socket, text);
            text.clone_into(&mut descriptor.link);
            let call = Some(Call { is_seen, descriptor: Some(descriptor), ..Call::default() });
            let (state, awaited) = (ThreadState::Blocked, Awaited::Syscall);
            let registers = Registers::default();
            let was = Was { state, registers, awaited, task_state: 1, call };
            builder.known.note(7, text);
            builder.samples.block(at_ns, length(100), Stack::default(), was);
        }
        let stacks = builder.stacks(&Default::default(), 3000);
        let told = stacks.iter().filter_map(|sampled| sampled.call.as_ref());
        let told: Vec<_> = told
            .map(|call| (call.descriptor.as_ref().map(|it| it.text.clone()), call.gaps.len()))
            .collect();
        assert_eq!(told, [(None, 1), (Some("tcp b:1".to_owned()), 0)]);
    }

    /// Whoever ended the longest waits comes first, with where it stood; who ended a wait for the
    /// interpreter's lock is left out, because that is given back every few milliseconds.
    #[test]
    fn wakers_by_the_waits_they_ended() {
        let mut builder = StallBuilder::default();
        let by = by_thread;
        waits(&mut builder, 1000, 50, Awaited::Gil);
        waits(&mut builder, 2000, 90, Awaited::Futex);
        waits(&mut builder, 3000, 80, Awaited::Futex);
        waits(&mut builder, 4000, 40, Awaited::Futex);
        for (blocked_at_ns, at_ns, tid) in
            [(1000, 1050, 6), (2000, 2090, 7), (3000, 3080, 8), (4000, 4040, 8), (5000, 5001, 9)]
        {
            builder.woken(blocked_at_ns, at_ns, by(tid));
        }
        let seen = Sampled {
            stack: Stack::default(),
            state: ThreadState::RunningKernel,
            samples: 1,
            time_ns: 0,
            waits: StandsFor::default(),
            registers: Registers::default(),
            awaited: Awaited::Syscall,
            call: None,
            task_state: 0,
            shares: Vec::new(),
        };
        builder.wake_seen(8, 3080, &seen);
        builder.wake_seen(7, 3080, &seen);
        let wakers = builder.wakers();
        let ended: Vec<_> = wakers.iter().map(|waker| (waker.tid, waker.ended_ns)).collect();
        assert_eq!(ended, [(8, 120), (7, 90)]);
        let times: Vec<_> =
            wakers.iter().map(|waker| waker.seen.as_ref().map(|seen| seen.time_ns)).collect();
        assert_eq!(times, [Some(120), None]);
    }

    /// A name that was read stays known where it cannot be read again, and only where it never was its
    /// absence is a gap; the next turn knows it as well.
    #[test]
    fn names_stay() {
        let mut builder = StallBuilder::default();
        let unreadable = || Err(Gap::new("thread.own_name", "x"));
        builder.named(unreadable());
        assert_eq!(builder.own_name(), (None, Some(Gap::new("thread.own_name", "x"))));
        let ingest = || Some("ingest".to_owned());
        builder.named(Ok(ingest()));
        builder.named(unreadable());
        builder.keep_to(7);
        assert_eq!(builder.own_name(), (ingest(), None));
        builder.named(Ok(None));
        assert_eq!(builder.own_name(), (None, None));
    }

    /// What was gathered of one turn does not show in the next.
    #[test]
    fn turns_do_not_mix() {
        let mut builder = StallBuilder { loop_kind: Some("asyncio"), ..StallBuilder::default() };
        builder.keep_to(5);
        builder.owned_by(7, 0x7f10);
        builder.keep_to(5);
        assert!(builder.owner().is_some());
        builder.keep_to(6);
        assert!(builder.owner().is_none());
        assert_eq!(builder.loop_kind, Some("asyncio"));
    }
}
