//! Captures of one stalled turn, named, to a short list of stacks with the time that each stands for.

use std::collections::BTreeMap;

use profiler_ebpf::record::Registers;

use super::{Awaited, Calls, Lock, Sampled, ThreadState, Waited, activity_of};
use crate::call::Call;
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
    /// Unknown while it lasts.
    blocked_ns: Option<u64>,
}

/// How a thread was when its stack was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Was {
    pub state: ThreadState,
    pub registers: Registers,
    pub awaited: Awaited,
    /// As [`Sampled::task_state`].
    pub task_state: u64,
    /// As [`Sampled::call`].
    pub call: Option<Call>,
}

impl Was {
    /// Whether a stack that is known was taken in the same wait, as far as that can be told without its
    /// frames. What a lock's or the interpreter's waits are called with changes from one to the next.
    fn is_of(&self, known: &Sampled) -> bool {
        let [first, ..] = self.registers.args;
        let [known_first, ..] = known.registers.args;
        let same_call = self.awaited != Awaited::Syscall
            || self.state != ThreadState::Blocked
            || (self.registers.syscall, first) == (known.registers.syscall, known_first);
        // Who was stopped differs by who stopped it.
        let told_by =
            |task_state: u64| if self.state == ThreadState::Stopped { task_state } else { 0 };
        (self.state, self.awaited) == (known.state, known.awaited)
            && told_by(self.task_state) == told_by(known.task_state)
            && same_call
            && match (&self.call, &known.call) {
                (Some(call), Some(known)) => call.is_on_the_same(known),
                _ => true,
            }
    }
}

/// A wait, as its capture showed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    pub awaited: Awaited,
    pub registers: Registers,
}

impl Wait {
    /// What another thread had to give up to end it.
    pub fn lock(&self) -> Option<Lock> {
        match self.awaited {
            Awaited::Syscall => None,
            Awaited::Gil => Some(Lock::Gil),
            Awaited::Futex => Some(Lock::Futex(self.registers.args[0])),
        }
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
    /// A tick found the thread on a CPU.
    pub fn tick(&mut self, stack: Stack, state: ThreadState, registers: Registers) {
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

    /// The thread gave up its CPU at `at_ns`; `blocked_ns` is known once it came back.
    pub fn block(&mut self, at_ns: u64, blocked_ns: Option<u64>, stack: Stack, was: Was) {
        let registers = was.registers;
        self.take_back(at_ns);
        if self.blocks.len() == MAX_BLOCKS {
            self.settle(at_ns);
        }
        if let Some((stack, share)) = self.add(stack, was) {
            self.blocks.push(Block { at_ns, stack, share, registers, blocked_ns });
        }
    }

    /// The stretch that began at `at_ns` is over. False where no stack of it is known.
    pub fn block_ended(&mut self, at_ns: u64, blocked_ns: u64) -> bool {
        let block = self.blocks.iter_mut().rev().find(|block| block.at_ns == at_ns);
        block.map(|block| block.blocked_ns = Some(blocked_ns)).is_some()
    }

    /// What the thread waited for in the stretch that began at `at_ns`.
    pub fn wait_at(&self, at_ns: u64) -> Option<Wait> {
        self.wait(self.blocks.iter().rev().find(|block| block.at_ns == at_ns)?)
    }

    /// The stretch that still lasts: since when, and what for.
    pub fn open_wait(&self) -> Option<(u64, Wait)> {
        let block = self.blocks.last().filter(|block| block.blocked_ns.is_none())?;
        Some((block.at_ns, self.wait(block)?))
    }

    fn wait(&self, block: &Block) -> Option<Wait> {
        let awaited = self.stacks.get(block.stack)?.awaited;
        Some(Wait { awaited, registers: block.registers })
    }

    /// How long the thread waited for each lock up to `now_ns`, the longest first.
    pub fn waited(&self, now_ns: u64) -> Vec<Waited> {
        let mut times = self.settled.clone();
        for (block, blocked_ns) in self.blocked(now_ns) {
            if let Some(lock) = self.wait(block).and_then(|wait| wait.lock()) {
                *times.entry(lock).or_default() += blocked_ns;
            }
        }
        let mut waited: Vec<Waited> =
            times.into_iter().map(|(lock, time_ns)| Waited { lock, time_ns }).collect();
        waited.sort_by_key(|waited| std::cmp::Reverse(waited.time_ns));
        waited
    }

    /// Each blocked stretch with its length up to `now_ns`.
    fn blocked(&self, now_ns: u64) -> impl Iterator<Item = (&Block, u64)> {
        let begins = self.blocks.iter().skip(1).map(|block| block.at_ns).chain([now_ns]);
        self.blocks.iter().zip(begins).map(|(block, next_ns)| {
            // One whose end was lost was over at the latest when the next began.
            let until_ns = next_ns.saturating_sub(block.at_ns);
            (block, block.blocked_ns.unwrap_or(until_ns))
        })
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

    /// The stacks as they stand at `now_ns` in a turn that ran for `running_ns`, heaviest first.
    /// A blocked stretch counts in full; the running time is shared out over the ticks.
    pub fn stacks(&self, running_ns: u64, now_ns: u64) -> Vec<Sampled> {
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
        for (block, blocked_ns) in self.blocked(now_ns) {
            let sampled = &mut stacks[block.stack];
            sampled.time_ns += blocked_ns;
            if let Some(share) = block.share {
                sampled.shares[share].time_ns += blocked_ns;
            }
        }
        stacks.retain(|sampled| sampled.samples > 0);
        stacks.sort_by_key(|sampled| std::cmp::Reverse((sampled.time_ns, sampled.samples)));
        stacks
    }

    /// Adds the older half of the stretches to the sums, and lets go of them.
    fn settle(&mut self, now_ns: u64) {
        let older: Vec<(Block, u64)> = self
            .blocked(now_ns)
            .take(MAX_BLOCKS / 2)
            .map(|(block, blocked_ns)| (*block, blocked_ns))
            .collect();
        for (block, blocked_ns) in &older {
            if let Some(lock) = self.wait(block).and_then(|wait| wait.lock())
                && (self.settled.len() < MAX_LOCKS || self.settled.contains_key(&lock))
            {
                *self.settled.entry(lock).or_default() += blocked_ns;
            }
            let sampled = &mut self.stacks[block.stack];
            sampled.time_ns += blocked_ns;
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
        let same = |known: &Sampled| {
            was.is_of(known)
                && looks_same(&known.stack, &stack)
                // The same code may have been frozen, or have had to free memory, once.
                && known.activity() == activity
                && (!is_running(was.state) || is_same_entry(known, &stack, &was.registers))
        };
        let Was { state, registers, awaited, task_state, .. } = was;
        if let Some(index) = self.stacks.iter().position(same) {
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

/// Whether both came into the kernel the same way: by the same system call, a fault, or not at all.
fn is_same_entry(known: &Sampled, stack: &Stack, registers: &Registers) -> bool {
    let entry = |stack: &Stack| stack.kernel.last().and_then(|frame| frame.function.clone());
    known.registers.syscall == registers.syscall && entry(&known.stack) == entry(stack)
}

/// Equal to a reader: the same functions at the same lines, whatever the addresses.
pub fn looks_same(one: &Stack, other: &Stack) -> bool {
    one.frames.len() == other.frames.len()
        && one.frames.iter().zip(&other.frames).all(|(a, b)| {
            a.function == b.function
                && a.file == b.file
                && a.line == b.line
                && a.module == b.module
                && (a.function.is_some() || a.module_offset == b.module_offset)
        })
}

#[cfg(test)]
mod tests {
    use super::{Awaited, Lock, MAX_BLOCKS, MAX_SHARES, Samples, Waited, Was};
    use crate::call::{Call, Descriptor, Kind};
    use crate::frame::{Frame, Language, Stack};
    use crate::gap::Gap;
    use crate::task::Running;
    use crate::turn::ThreadState::{Blocked, RunningKernel, RunningUser, Stopped};
    use profiler_ebpf::record::Registers;

    fn stack(function: &str, address: u64) -> Stack {
        let frame = Frame {
            function: Some(function.to_owned()),
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

    /// Blocked in a read from this descriptor.
    fn reading(number: u64) -> Was {
        let registers = Registers { syscall: 0, args: [number; 6], ..Registers::default() };
        Was { registers, ..WAS }
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
        samples.block(100, Some(50), stack("read", 1), reading(8));
        samples.block(200, Some(40), stack("read", 1), on("pipe:[1]", true));
        samples.block(300, Some(4), stack("read", 1), on("pipe:[1]", false));
        samples.block(400, Some(30), stack("read", 1), on("pipe:[2]", true));
        let stacks = samples.stacks(0, 500);
        let times: Vec<_> = stacks.iter().map(|sampled| sampled.time_ns).collect();
        assert_eq!(times, [50, 44, 30]);
        assert!(stacks[1].call.as_ref().is_some_and(|call| call.is_seen));
        // The interpreter's lock is waited for at changing addresses.
        let mut samples = Samples::default();
        for number in [7, 8] {
            let wait = Was { awaited: Awaited::Gil, ..reading(number) };
            samples.block(100 * number, Some(5), stack("take", 1), wait);
        }
        assert_eq!(samples.stacks(0, 0).len(), 1);
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
            samples.block(at_ns, Some(10), stack("f", 1), Was { state, task_state, ..WAS });
        }
        let stacks = samples.stacks(0, 1000);
        let mut seen: Vec<_> = stacks.iter().map(|it| (it.task_state, it.samples)).collect();
        seen.sort_unstable();
        assert_eq!(seen, [(1, 2), (4, 2), (8, 1)]);
    }

    /// Equal stacks are one entry, whatever their addresses; running time is shared by ticks.
    #[test]
    fn equal_stacks_are_one() {
        let mut samples = Samples::default();
        for address in 0..3 {
            samples.tick(stack("hot", address), RunningUser, Registers::default());
        }
        samples.tick(stack("cold", 9), RunningUser, Registers::default());
        let stacks = samples.stacks(400, 1000);
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
        samples.block(100, Some(50), stack("handler", 1), WAS);
        samples.block(200, None, stack("lost", 1), WAS);
        samples.block(230, Some(70), stack("handler", 1), WAS);
        let stacks = samples.stacks(0, 1000);
        let seen: Vec<_> = stacks.iter().map(|it| (it.samples, it.time_ns)).collect();
        assert_eq!(seen, [(2, 120), (1, 30)]);
    }

    /// A block counts in full, also while it lasts; the same code on a CPU is another entry.
    #[test]
    fn blocks_count_exactly() {
        // ns   100        150      200            260
        //       ├ blocked ──┤ running  ├ blocked ... now
        let mut samples = Samples::default();
        samples.block(100, None, stack("read", 1), WAS);
        assert!(samples.block_ended(100, 50));
        samples.tick(stack("read", 1), RunningKernel, Registers::default());
        samples.block(200, None, stack("read", 1), WAS);
        let stacks = samples.stacks(50, 260);
        let seen: Vec<_> = stacks.iter().map(|s| (s.state, s.samples, s.time_ns)).collect();
        assert_eq!(seen, [(Blocked, 2, 110), (RunningKernel, 1, 50)]);
        assert!(!samples.block_ended(99, 1), "no stack of that stretch is known");
    }

    /// However many stretches there are, few are kept, and every one counts.
    #[test]
    fn many_blocks() {
        let mut samples = Samples::default();
        let many = 3 * MAX_BLOCKS as u64;
        for number in 0..many {
            let registers = Registers { args: [0x7f10; 6], ..Registers::default() };
            let was = Was { registers, awaited: Awaited::Futex, ..WAS };
            samples.block(number * 100, Some(7), stack("lock", 1), was);
        }
        assert!(samples.blocks.len() <= MAX_BLOCKS);
        let [stack] = &samples.stacks(0, many * 100)[..] else { panic!("not one stack") };
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
            samples.tick(stack, RunningUser, Registers::default());
        }
        let [stack] = &samples.stacks(400, 0)[..] else { panic!("not one stack") };
        let shares: Vec<_> = stack.shares.iter().map(|it| (it.samples, it.time_ns)).collect();
        assert_eq!((shares, stack.time_ns), (vec![(2, 200), (1, 100), (1, 100)], 400));

        let mut samples = Samples::default();
        for frame in 0..MAX_SHARES as u64 + 5 {
            let at_ns = 100 * frame;
            let stack = seen_in(running(frame));
            samples.block(at_ns, Some(7), stack, WAS);
        }
        let [stack] = &samples.stacks(0, 0)[..] else { panic!("not one stack") };
        assert_eq!((stack.shares.len(), stack.samples), (MAX_SHARES, MAX_SHARES as u64 + 5));
        assert!(stack.shares.iter().all(|share| share.time_ns == 7));
        assert_eq!(stack.time_ns, 7 * (MAX_SHARES as u64 + 5));
    }
}
