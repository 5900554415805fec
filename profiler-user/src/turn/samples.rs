//! Captures of one stalled turn, named, to a short list of stacks with the time that each stands for.

use std::collections::BTreeMap;

use profiler_ebpf::credit::Weight;
use profiler_ebpf::record::{CaptureHead, Registers};
use profiler_ebpf::turn::Turn;

use super::alike::{Was, is_same_entry, looks_same};
use super::futex::{FutexWait, FutexWaits};
use super::{Awaited, Calls, Lock, Sampled, StandsFor, ThreadState, Waited, activity_of};
use crate::call::Timeout;
use crate::frame::Stack;
use crate::task::{Running, Share};

/// Different stacks kept of one stall. A turn of thousands of short callbacks has as many; beyond
/// this the rest is counted.
const MAX_STACKS: usize = 256;

/// Tasks told apart in one stack. A task that is to blame is among the first.
const MAX_SHARES: usize = 64;

/// Calls told apart in one turn. A tick more comes every 10 ms.
const MAX_CALLS: usize = 1024;

/// Blocked stretches kept one by one. Beyond this the older half counts in the sums alone: who ended or
/// prolonged them has been asked by then.
const MAX_BLOCKS: usize = 8192;

/// Locks told apart in the sums.
const MAX_LOCKS: usize = 256;

/// A stretch in which the thread was blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    at_ns: u64,
    stack: usize,
    /// Which of the stack's shares it is in.
    share: Option<usize>,
    registers: Registers,
    /// Of a wait on a futex, as far as it was read.
    timeout: Option<Timeout>,
    /// Unknown while it lasts.
    length: Option<Length>,
    /// It was over by then, as the thread was found on a CPU.
    over_by_ns: u64,
}

/// How long a blocked stretch was, and for how much of the turn it stands: its own length, and those of
/// the short ones before it that nobody else stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Length {
    own_ns: u64,
    weight: Weight,
}

impl Length {
    /// That of the stretch in a capture, once it is over.
    pub fn of(head: &CaptureHead) -> Option<Self> {
        let own_ns = head.blocked_ns;
        let weight = Weight { ns: head.weight_ns.max(own_ns), waits: head.waits.max(1) };
        (own_ns > 0).then_some(Self { own_ns, weight })
    }

    fn stands_for(self) -> StandsFor {
        let Self { own_ns, weight } = self;
        let thousandths = u128::from(weight.ns) * 1000 / u128::from(own_ns.max(1));
        StandsFor {
            others_ns: weight.ns - own_ns,
            longest_ns: own_ns,
            counted: u64::from(weight.waits),
            thousandths: u64::try_from(thousandths).unwrap_or(u64::MAX),
        }
    }
}

/// Stretches whose ends were lost: how long they were together, at the longest, and what is left for them.
#[derive(Debug, Clone, Copy)]
struct LostEnds {
    longest_ns: u64,
    left_ns: u64,
}

impl LostEnds {
    /// The part of one of them.
    fn of(self, longest_ns: u64) -> u64 {
        let part_ns = u128::from(longest_ns) * u128::from(self.left_ns);
        u64::try_from(part_ns / u128::from(self.longest_ns.max(1))).unwrap_or(u64::MAX)
    }
}

/// A wait, as its capture showed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapturedWait {
    pub awaited: Awaited,
    pub registers: Registers,
}

impl CapturedWait {
    /// What another thread had to give up to end it.
    pub fn lock(&self) -> Option<Lock> {
        self.awaited.lock(&self.registers)
    }
}

/// The stacks of one turn.
#[derive(Debug, Default)]
pub struct Samples {
    stacks: Vec<Sampled>,
    blocks: Vec<Block>,
    /// How long it waited for locks in the stretches that are not kept any more.
    settled: BTreeMap<Lock, u64>,
    ticks_user: u64,
    ticks_kernel: u64,
    ticks_collecting: u64,
    /// Ticks by the call of a callback that they fell into.
    calls: BTreeMap<u64, u64>,
    /// Captures that came after [`MAX_STACKS`] different ones.
    pub dropped: u64,
}

impl Samples {
    /// A tick found the thread on a CPU at that time.
    pub fn tick(&mut self, at_ns: u64, stack: Stack, state: ThreadState, registers: Registers) {
        if let Some(block) = self.blocks.last_mut().filter(|block| block.at_ns <= at_ns) {
            block.over_by_ns = block.over_by_ns.min(at_ns);
        }
        match state {
            ThreadState::RunningUser => self.ticks_user += 1,
            _ => self.ticks_kernel += 1,
        }
        if let Some(call) = stack.call
            && (self.calls.len() < MAX_CALLS || self.calls.contains_key(&call))
        {
            *self.calls.entry(call).or_default() += 1;
        }
        self.add(
            stack,
            Was { state, registers, awaited: Awaited::Syscall, task_state: 0, call: None },
        );
    }

    /// The thread gave up its CPU at `at_ns`; for how long is known once it came back.
    pub fn block(&mut self, at_ns: u64, length: Option<Length>, stack: Stack, was: Was) {
        let registers = was.registers;
        let timeout = was.call.as_ref().and_then(|call| call.timeout);
        self.take_back(at_ns);
        if self.blocks.len() == MAX_BLOCKS {
            self.settle(at_ns);
        }
        if let Some((stack, share)) = self.add(stack, was) {
            let over_by_ns = u64::MAX;
            self.blocks.push(Block { at_ns, stack, share, registers, timeout, length, over_by_ns });
        }
    }

    /// The stretch that began at `at_ns` is over. False where no stack of it is known.
    pub fn block_ended(&mut self, at_ns: u64, length: Option<Length>) -> bool {
        let block = self.blocks.iter_mut().rev().find(|block| block.at_ns == at_ns);
        block.map(|block| block.length = length).is_some()
    }

    /// What the thread waited for in the stretch that began at `at_ns`.
    pub fn wait_at(&self, at_ns: u64) -> Option<CapturedWait> {
        self.wait(self.blocks.iter().rev().find(|block| block.at_ns == at_ns)?)
    }

    /// The stretch that still lasts: since when, and what for.
    pub fn open_wait(&self) -> Option<(u64, CapturedWait)> {
        let lasts = |block: &&Block| block.length.is_none() && block.over_by_ns == u64::MAX;
        let block = self.blocks.last().filter(lasts)?;
        Some((block.at_ns, self.wait(block)?))
    }

    fn wait(&self, block: &Block) -> Option<CapturedWait> {
        let awaited = self.stacks.get(block.stack)?.awaited;
        Some(CapturedWait { awaited, registers: block.registers })
    }

    /// How long the thread waited for each lock up to `now_ns`, the longest first.
    pub fn waited(&self, now_ns: u64) -> Vec<Waited> {
        let mut times = self.settled.clone();
        for (block, blocked_ns, _) in self.blocked(now_ns) {
            if let Some(lock) = self.wait(block).and_then(|wait| wait.lock()) {
                *times.entry(lock).or_default() += blocked_ns;
            }
        }
        let mut waited: Vec<Waited> =
            times.into_iter().map(|(lock, time_ns)| Waited { lock, time_ns }).collect();
        waited.sort_by_key(|waited| std::cmp::Reverse(waited.time_ns));
        waited
    }

    /// How its waits on futexes ended, by whether somebody was seen to end the one that began then.
    pub fn futexes(&self, now_ns: u64, is_woken: impl Fn(u64) -> bool) -> FutexWaits {
        let mut waits = FutexWaits::default();
        for (block, weight_ns, _) in self.blocked(now_ns) {
            if self.wait(block).is_some_and(|wait| wait.awaited == Awaited::Futex) {
                let length_ns = block.length.map(|length| length.own_ns);
                let is_woken = is_woken(block.at_ns);
                waits.add(FutexWait { length_ns, weight_ns, timeout: block.timeout, is_woken });
            }
        }
        waits
    }

    /// Each blocked stretch with the time and the waits that it stands for up to `now_ns`.
    fn blocked(&self, now_ns: u64) -> impl Iterator<Item = (&Block, u64, StandsFor)> {
        let begins = self.blocks.iter().skip(1).map(|block| block.at_ns).chain([now_ns]);
        self.blocks.iter().zip(begins).map(move |(block, next_ns)| match block.length {
            Some(length) => {
                // The account that it is held against may have been closed before it was over.
                let end_ns = block.at_ns.saturating_add(length.own_ns);
                let booked_ns = length.weight.ns.saturating_sub(end_ns.saturating_sub(now_ns));
                (block, booked_ns, length.stands_for())
            }
            // One whose end was lost was over at the latest when the next began, or the thread was seen to run.
            None => {
                let longest_ns = next_ns.min(block.over_by_ns).saturating_sub(block.at_ns);
                (block, longest_ns, StandsFor { longest_ns, ..StandsFor::ITSELF })
            }
        })
    }

    /// Whether the stretch is over and nothing says since when.
    fn is_end_lost(&self, block: &Block) -> bool {
        let is_last = self.blocks.last().is_some_and(|last| last.at_ns == block.at_ns);
        block.length.is_none() && (!is_last || block.over_by_ns != u64::MAX)
    }

    /// What is left of the blocked time for stretches whose ends were lost: at the longest they would last until the
    /// thread was seen to run, although it was ready long before, or another stretch stands for them.
    fn lost_ends(&self, blocked_ns: u64, now_ns: u64) -> LostEnds {
        let (mut longest_ns, mut known_ns) = (0, 0_u64);
        for (block, time_ns, _) in self.blocked(now_ns) {
            let sum_ns = if self.is_end_lost(block) { &mut longest_ns } else { &mut known_ns };
            *sum_ns += time_ns;
        }
        let settled_ns: u64 = self.stacks.iter().map(|sampled| sampled.time_ns).sum();
        let left_ns = blocked_ns.saturating_sub(known_ns.saturating_add(settled_ns));
        LostEnds { longest_ns, left_ns: left_ns.min(longest_ns) }
    }

    pub fn ticks(&self) -> (u64, u64) {
        (self.ticks_user, self.ticks_kernel)
    }

    /// One of the ticks found the interpreter to collect garbage.
    pub fn collecting(&mut self) {
        self.ticks_collecting += 1;
    }

    pub fn ticks_collecting(&self) -> u64 {
        self.ticks_collecting
    }

    /// How the ticks spread over calls of callbacks.
    pub fn calls(&self) -> Calls {
        Calls {
            ticks: self.calls.values().sum(),
            seen: self.calls.len() as u64,
            heaviest_ticks: self.calls.values().copied().max().unwrap_or_default(),
        }
    }

    /// The stacks of a turn as they stand at `now_ns`, heaviest first.
    pub fn stacks_of(&self, turn: &Turn, now_ns: u64) -> Vec<Sampled> {
        self.stacks(turn.running_ns, turn.blocked_ns.saturating_add(turn.stopped_ns), now_ns)
    }

    /// A blocked stretch counts with its weight; the running time is shared out over the ticks.
    fn stacks(&self, running_ns: u64, blocked_ns: u64, now_ns: u64) -> Vec<Sampled> {
        let mut stacks = self.stacks.clone();
        let ticks = self.ticks_user + self.ticks_kernel;
        for sampled in &mut stacks {
            if is_running(sampled.state) {
                let part = |samples: u64| {
                    let part = u128::from(running_ns) * u128::from(samples);
                    (part / u128::from(ticks.max(1))) as u64
                };
                sampled.time_ns = part(sampled.samples);
                for share in &mut sampled.shares {
                    share.time_ns = part(share.samples);
                }
            }
        }
        let lost = self.lost_ends(blocked_ns, now_ns);
        for (block, longest_ns, waits) in self.blocked(now_ns) {
            let time_ns = if self.is_end_lost(block) { lost.of(longest_ns) } else { longest_ns };
            let sampled = &mut stacks[block.stack];
            sampled.time_ns += time_ns;
            sampled.waits.add(waits);
            if let Some(share) = block.share {
                sampled.shares[share].time_ns += time_ns;
            }
        }
        stacks.retain(|sampled| sampled.samples > 0);
        stacks.sort_by_key(|sampled| std::cmp::Reverse((sampled.time_ns, sampled.samples)));
        stacks
    }

    /// Adds the older half of the stretches to the sums, and lets go of them.
    fn settle(&mut self, now_ns: u64) {
        let older: Vec<(Block, u64, StandsFor)> = self
            .blocked(now_ns)
            .take(MAX_BLOCKS / 2)
            .map(|(block, blocked_ns, waits)| (*block, blocked_ns, waits))
            .collect();
        for (block, blocked_ns, waits) in &older {
            if let Some(lock) = self.wait(block).and_then(|wait| wait.lock())
                && (self.settled.len() < MAX_LOCKS || self.settled.contains_key(&lock))
            {
                *self.settled.entry(lock).or_default() += blocked_ns;
            }
            let sampled = &mut self.stacks[block.stack];
            sampled.time_ns += blocked_ns;
            sampled.waits.add(*waits);
            if let Some(share) = block.share {
                sampled.shares[share].time_ns += blocked_ns;
            }
        }
        self.blocks.drain(..older.len());
    }

    /// Forgets the stretch that began at `at_ns`, because more is known of it now.
    fn take_back(&mut self, at_ns: u64) {
        let Some(block) = self.blocks.pop_if(|block| block.at_ns == at_ns) else { return };
        let sampled = &mut self.stacks[block.stack];
        sampled.samples -= 1;
        if let Some(share) = block.share {
            sampled.shares[share].samples -= 1;
        }
    }

    /// Where the stack is in the list, and in which of its shares; equal ones of the same state are one.
    fn add(&mut self, stack: Stack, was: Was) -> Option<(usize, Option<usize>)> {
        let activity = activity_of(&stack, was.state);
        let alike = |known: &Sampled| {
            looks_same(&known.stack, &stack)
                // The same code may have been frozen, or have had to free memory, once.
                && known.activity() == activity
                && (!is_running(was.state) || is_same_entry(known, &stack, &was.registers))
        };
        let same = |known: &Sampled| was.is_of(known) && alike(known);
        let place = self.stacks.iter().position(same).or_else(|| {
            let is_full = self.stacks.len() == MAX_STACKS;
            let like = |known: &Sampled| was.is_like(known) && alike(known);
            is_full.then(|| self.stacks.iter().position(like)).flatten()
        });
        let Was { state, registers, awaited, task_state, .. } = was;
        if let Some(index) = place {
            let sampled = &mut self.stacks[index];
            sampled.samples += 1;
            sampled.registers = registers;
            if let Some(call) = was.call
                && sampled.call.as_ref().is_none_or(|known| call.says_as_much(known))
            {
                sampled.call = Some(Box::new(call));
            }
            return Some((index, share_of(&mut sampled.shares, stack.running)));
        }
        if self.stacks.len() == MAX_STACKS {
            self.dropped += 1;
            return None;
        }
        let mut shares = Vec::new();
        let share = share_of(&mut shares, stack.running.clone());
        self.stacks.push(Sampled {
            stack,
            state,
            samples: 1,
            time_ns: 0,
            waits: StandsFor::default(),
            registers,
            awaited,
            task_state,
            call: was.call.map(Box::new),
            shares,
        });
        Some((self.stacks.len() - 1, share))
    }
}

/// Counts one more sample in which this ran, and tells which share it is, unless there are too many.
fn share_of(shares: &mut Vec<Share>, running: Option<Running>) -> Option<usize> {
    if let Some(index) = shares.iter().position(|share| share.running == running) {
        shares[index].samples += 1;
        return Some(index);
    }
    if shares.len() == MAX_SHARES {
        return None;
    }
    shares.push(Share { running, samples: 1, time_ns: 0 });
    Some(shares.len() - 1)
}

fn is_running(state: ThreadState) -> bool {
    matches!(state, ThreadState::RunningUser | ThreadState::RunningKernel)
}

#[cfg(test)]
mod tests {
    use super::{
        Awaited, Length, Lock, MAX_BLOCKS, MAX_SHARES, MAX_STACKS, Sampled, Samples, StandsFor,
        Waited, Was, Weight, looks_same,
    };
    use crate::call::{Call, Descriptor, Kind};
    use crate::frame::{Frame, Language, Stack};
    use crate::gap::Gap;
    use crate::task::Running;
    use crate::turn::ThreadState::{Blocked, RunningKernel, RunningUser, Stopped};
    use profiler_ebpf::record::Registers;

    fn stack(function: &str, address: u64) -> Stack {
        let frame = Frame {
            function: Some(function.into()),
            file: None,
            line: Some(3),
            module: None,
            language: Language::Native,
            inlined: false,
            address: Some(address),
            module_offset: None,
        };
        Stack { frames: vec![frame], ..Stack::default() }
    }

    const WAS: Was = Was {
        state: Blocked,
        registers: Registers { ip: 0, sp: 0, bp: 0, syscall: 0, args: [0; 6] },
        awaited: Awaited::Syscall,
        task_state: 1,
        call: None,
    };

    /// A stretch of that length, which stands for itself.
    fn whole(ns: u64) -> Option<Length> {
        short(ns, ns, 1)
    }

    /// One that stands for others.
    fn short(own_ns: u64, ns: u64, waits: u32) -> Option<Length> {
        Some(Length { own_ns, weight: Weight { ns, waits } })
    }

    /// Blocked in a read from this descriptor.
    fn reading(number: u64) -> Was {
        let registers = Registers { syscall: 0, args: [number; 6], ..Registers::default() };
        Was { registers, ..WAS }
    }

    /// What lies in the registers at a page fault is no argument; and where there is no room for another thing
    /// that the same code works on, its time still counts as that code's.
    #[test]
    fn many_things_in_turn() {
        let mut samples = Samples::default();
        for number in 0..2 * MAX_STACKS as u64 {
            let fault = Registers { syscall: -1, args: [number; 6], ..Registers::default() };
            let fault = Was { registers: fault, ..WAS };
            samples.block(1000 * number, whole(10), stack("touch", 1), fault);
            samples.block(1000 * number + 500, whole(10), stack("read", 1), reading(number));
        }
        let stacks = samples.stacks(0, u64::MAX, u64::MAX);
        let is_of = |function| move |it: &&Sampled| looks_same(&it.stack, &stack(function, 1));
        let sum =
            |function| stacks.iter().filter(is_of(function)).map(|it| it.time_ns).sum::<u64>();
        assert_eq!((stacks.len(), samples.dropped), (MAX_STACKS, 0));
        assert_eq!(stacks.iter().filter(is_of("touch")).count(), 1);
        assert_eq!([sum("touch"), sum("read")], [20 * MAX_STACKS as u64; 2]);
    }

    /// Equal stacks in calls on different things are different waits, and what was seen of a call while it
    /// lasted stays.
    #[test]
    fn calls_are_told_apart() {
        let on = |link: &str, is_seen| {
            let link = link.to_owned();
            let descriptor = Descriptor { link, ..Descriptor::new(7, Kind::Pipe, "pipe") };
            let call = Call { is_seen, descriptor: Some(descriptor), ..Call::default() };
            Was { call: Some(call), ..reading(7) }
        };
        let mut samples = Samples::default();
        samples.block(100, whole(50), stack("read", 1), reading(8));
        samples.block(200, whole(40), stack("read", 1), on("pipe:[1]", true));
        samples.block(300, whole(4), stack("read", 1), on("pipe:[1]", false));
        samples.block(400, whole(30), stack("read", 1), on("pipe:[2]", true));
        let stacks = samples.stacks(0, u64::MAX, 500);
        let times: Vec<_> = stacks.iter().map(|sampled| sampled.time_ns).collect();
        assert_eq!(times, [50, 44, 30]);
        assert!(stacks[1].call.as_ref().is_some_and(|call| call.is_seen));
        // The interpreter's lock is waited for at changing addresses.
        let mut samples = Samples::default();
        for number in [7, 8] {
            let wait = Was { awaited: Awaited::Gil, ..reading(number) };
            samples.block(100 * number, whole(5), stack("take", 1), wait);
        }
        assert_eq!(samples.stacks(0, u64::MAX, 0).len(), 1);
    }

    /// A thread that a signal stopped and one that a debugger did are two, whatever their stacks; how
    /// a thread sleeps makes no difference.
    #[test]
    fn stops_are_told_apart() {
        let mut samples = Samples::default();
        for (at_ns, state, task_state) in [
            (100, Stopped, 4),
            (200, Stopped, 8),
            (300, Stopped, 4),
            (400, Blocked, 1),
            (500, Blocked, 2),
        ] {
            samples.block(at_ns, whole(10), stack("f", 1), Was { state, task_state, ..WAS });
        }
        let stacks = samples.stacks(0, u64::MAX, 1000);
        let mut seen: Vec<_> = stacks.iter().map(|it| (it.task_state, it.samples)).collect();
        seen.sort_unstable();
        assert_eq!(seen, [(1, 2), (4, 2), (8, 1)]);
    }

    /// Equal stacks are one entry, whatever their addresses; running time is shared by ticks.
    #[test]
    fn equal_stacks_are_one() {
        let mut samples = Samples::default();
        for address in 0..3 {
            samples.tick(address, stack("hot", address), RunningUser, Registers::default());
        }
        samples.tick(9, stack("cold", 9), RunningUser, Registers::default());
        let stacks = samples.stacks(400, u64::MAX, 1000);
        let seen: Vec<_> = stacks.iter().map(|s| (s.samples, s.time_ns)).collect();
        assert_eq!(seen, [(3, 300), (1, 100)]);
        assert_eq!(samples.ticks(), (4, 0));
    }

    /// A stretch that is told again, because more is known of it, counts once; one whose end was lost
    /// ends where the next begins.
    #[test]
    fn stretches_count_once() {
        let mut samples = Samples::default();
        samples.block(100, None, stack("libc", 1), WAS);
        samples.block(100, whole(50), stack("handler", 1), WAS);
        samples.block(200, None, stack("lost", 1), WAS);
        samples.block(230, whole(70), stack("handler", 1), WAS);
        let stacks = samples.stacks(0, u64::MAX, 1000);
        let seen: Vec<_> = stacks.iter().map(|it| (it.samples, it.time_ns)).collect();
        assert_eq!(seen, [(2, 120), (1, 30)]);
    }

    /// A stretch whose end was lost ends where the thread is first seen to run.
    #[test]
    fn a_lost_end() {
        let mut samples = Samples::default();
        samples.block(100, None, stack("read", 1), WAS);
        assert!(samples.open_wait().is_some());
        for at_ns in [180, 400] {
            samples.tick(at_ns, stack("parse", 2), RunningUser, Registers::default());
        }
        assert!(samples.open_wait().is_none());
        let stacks = samples.stacks(300, u64::MAX, 500);
        let seen: Vec<_> = stacks.iter().map(|s| (s.state, s.time_ns)).collect();
        assert_eq!(seen, [(RunningUser, 300), (Blocked, 80)]);
        let blocked_ns = |sampled: &Sampled| (sampled.state == Blocked).then_some(sampled.time_ns);
        assert_eq!(
            samples.stacks(300, 60, 500).iter().find_map(blocked_ns),
            Some(60),
            "not blocked for longer"
        );
        // A tick of before it, which comes later, says nothing of it.
        samples.block(500, None, stack("read", 1), WAS);
        samples.tick(450, stack("parse", 2), RunningUser, Registers::default());
        assert!(samples.open_wait().is_some());
    }

    /// Stretches whose ends were lost share what is left of the time that was booked.
    #[test]
    fn lost_ends_share_what_is_left() {
        let mut samples = Samples::default();
        samples.block(100, whole(50), stack("send", 1), WAS);
        samples.block(200, None, stack("read", 1), WAS);
        samples.block(300, None, stack("write", 1), WAS);
        samples.block(600, None, stack("recv", 1), WAS);
        let times = |booked_ns| {
            let stacks = samples.stacks(0, booked_ns, 700).into_iter();
            let times = stacks.map(|it| (it.stack.frames[0].function.clone(), it.time_ns));
            let of =
                |name: &str| times.clone().find(|(it, _)| it.as_deref() == Some(name)).unwrap().1;
            ["send", "read", "write", "recv"].map(of)
        };
        assert_eq!(times(u64::MAX), [50, 100, 300, 100]);
        assert_eq!(times(350), [50, 50, 150, 100]);
        assert_eq!(times(90), [50, 0, 0, 100], "what lasts still is what it is");
    }

    /// A block counts in full, also while it lasts; the same code on a CPU is another entry.
    #[test]
    fn blocks_count_exactly() {
        // ns   100        150      200            260
        //       ├ blocked ──┤ running  ├ blocked ... now
        let mut samples = Samples::default();
        samples.block(100, None, stack("read", 1), WAS);
        assert!(samples.block_ended(100, whole(50)));
        samples.tick(170, stack("read", 1), RunningKernel, Registers::default());
        samples.block(200, None, stack("read", 1), WAS);
        let stacks = samples.stacks(50, u64::MAX, 260);
        let seen: Vec<_> = stacks.iter().map(|s| (s.state, s.samples, s.time_ns)).collect();
        assert_eq!(seen, [(Blocked, 2, 110), (RunningKernel, 1, 50)]);
        assert!(!samples.block_ended(99, whole(1)), "no stack of that stretch is known");
    }

    /// Short waits count with what they stand for, also once they are not kept one by one; how many of
    /// each kind there were shows in how their lengths fit into their weights.
    #[test]
    fn short_waits_have_weights() {
        // ms   300 of 0.9 on "get", every captured one alone; 900 of 0.1 on "set", every tenth
        let mut samples = Samples::default();
        let sets = (0..90).map(|at_ns| (at_ns, "set", short(100, 1000, 10)));
        let gets = (90..390).map(|at_ns| (at_ns, "get", whole(900)));
        for (at_ns, function, length) in sets.chain(gets) {
            samples.block(at_ns, length, stack(function, 1), WAS);
        }
        let waits = |samples: &Samples| {
            let stacks = samples.stacks(0, u64::MAX, 10_000).into_iter();
            stacks.map(|it| (it.samples, it.time_ns, it.waits)).collect::<Vec<_>>()
        };
        let get = StandsFor { others_ns: 0, longest_ns: 900, counted: 300, thousandths: 300_000 };
        let set =
            StandsFor { others_ns: 81_000, longest_ns: 100, counted: 900, thousandths: 900_000 };
        let expected = [(300, 270_000, get), (90, 90_000, set)];
        assert_eq!(waits(&samples), expected);
        samples.settle(10_000);
        assert_eq!(waits(&samples), expected);
        samples.block(20_000, None, stack("get", 1), WAS);
        let [open, _] = &samples.stacks(0, u64::MAX, 20_500)[..] else { panic!("not two stacks") };
        assert_eq!((open.time_ns, open.waits.counted), (270_500, 301));
        // No more than is booked: 60 of the 100 before 9,940 lie after it.
        let mut samples = Samples::default();
        samples.block(9_900, short(100, 1000, 10), stack("set", 1), WAS);
        let [cut] = &samples.stacks(0, u64::MAX, 9_940)[..] else { panic!("not one stack") };
        assert_eq!(cut.time_ns, 940);
    }

    /// However many stretches there are, few are kept, and every one counts.
    #[test]
    fn many_blocks() {
        let mut samples = Samples::default();
        let many = 3 * MAX_BLOCKS as u64;
        for number in 0..many {
            let registers = Registers { args: [0x7f10; 6], ..Registers::default() };
            let was = Was { registers, awaited: Awaited::Futex, ..WAS };
            samples.block(number * 100, whole(7), stack("lock", 1), was);
        }
        assert!(samples.blocks.len() <= MAX_BLOCKS);
        let [stack] = &samples.stacks(0, u64::MAX, many * 100)[..] else { panic!("not one stack") };
        assert_eq!((stack.samples, stack.time_ns), (many, many * 7));
        let waited = Waited { lock: Lock::Futex(0x7f10), time_ns: many * 7 };
        assert_eq!(samples.waited(many * 100), [waited]);
    }

    /// One stack that several tasks were seen in tells each one's share; past a bound they count in
    /// the stack alone.
    #[test]
    fn shares_of_tasks() {
        let running = |frame| {
            let task = Err(Gap::new("task", "not proved"));
            Some(Running { coroutines: vec![frame], task })
        };
        let seen_in = |running| Stack { running, ..stack("hot", 1) };
        let mut samples = Samples::default();
        for frame in [Some(1), Some(2), Some(1), None] {
            let stack = seen_in(frame.and_then(running));
            samples.tick(1, stack, RunningUser, Registers::default());
        }
        let [stack] = &samples.stacks(400, u64::MAX, 0)[..] else { panic!("not one stack") };
        let shares: Vec<_> = stack.shares.iter().map(|it| (it.samples, it.time_ns)).collect();
        assert_eq!((shares, stack.time_ns), (vec![(2, 200), (1, 100), (1, 100)], 400));

        let mut samples = Samples::default();
        for frame in 0..MAX_SHARES as u64 + 5 {
            let at_ns = 100 * frame;
            let stack = seen_in(running(frame));
            samples.block(at_ns, whole(7), stack, WAS);
        }
        let [stack] = &samples.stacks(0, u64::MAX, 10_000)[..] else { panic!("not one stack") };
        assert_eq!((stack.shares.len(), stack.samples), (MAX_SHARES, MAX_SHARES as u64 + 5));
        assert!(stack.shares.iter().all(|share| share.time_ns == 7));
        assert_eq!(stack.time_ns, 7 * (MAX_SHARES as u64 + 5));
    }
}
