//! A stall as data: what the probes told about one turn past the threshold, gathered.

pub mod alike;
mod commands;
pub mod company;
pub mod futex;
pub mod holders;
pub mod instance;
pub mod contention;
pub mod samples;
pub mod tracker;

use profiler_ebpf::record::Registers;
use profiler_ebpf::turn::Turn;

use self::contention::Contention;
use self::futex::FutexWaits;
use crate::activity::Activity;
use crate::call::Call;
use crate::environment::Environment;
use crate::frame::Stack;
use crate::gap::Gap;
use crate::process::queues::AcceptQueue;
use crate::task::Share;

/// Which line of a stall's life a report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// It has just passed the threshold and is still going on.
    Open,
    /// It is still going on.
    Update,
    /// It is over, or we lost sight of it.
    End,
}

/// How a stall ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Still going on.
    NotYet,
    /// The loop entered its next wait.
    Seen,
    /// The reason why its end was not seen.
    Unseen(String),
}

/// What a thread was doing when its stack was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ThreadState {
    RunningUser,
    RunningKernel,
    Blocked,
    Runnable,
    Stopped,
}

/// A stack of the stalled thread, with the time it stands for. Samples with equal frames and state are one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sampled {
    pub stack: Stack,
    pub state: ThreadState,
    /// How many captures showed it.
    pub samples: u64,
    /// The part of the stall that it stands for: exact for a long blocked stretch, for short ones the
    /// time of those that went by between two captures, a share for ticks.
    pub time_ns: u64,
    /// Which waits it stands for; of one that ran, none.
    pub waits: StandsFor,
    /// The user registers of the last capture that showed it: which syscall it was in.
    pub registers: Registers,
    /// What it waited for, where the syscall alone does not tell.
    pub awaited: Awaited,
    /// What was known of the system call that it was blocked in.
    pub call: Option<Box<Call>>,
    /// The kernel's `__state` of a thread that gave up its CPU, a set of bits: stopped by a signal 0x4,
    /// by a debugger 0x8, frozen 0x8000, and others. 0 of one that ran.
    pub task_state: u64,
    /// Whose coroutines it was seen in. The stack's own say only whose were the first.
    pub shares: Vec<Share>,
}

impl Sampled {
    /// What the kernel was doing with the thread, where its system call does not tell.
    pub fn activity(&self) -> Option<Activity> {
        activity_of(&self.stack, self.state)
    }
}

/// The same of a stack that was taken in this state.
fn activity_of(stack: &Stack, state: ThreadState) -> Option<Activity> {
    match state {
        ThreadState::Blocked => Activity::of_sleep(&stack.kernel),
        _ => Activity::of(&stack.kernel),
    }
}

/// The waits that a blocked stack stands for: of short ones more than it was taken in, see
/// [`profiler_ebpf::credit`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StandsFor {
    /// The part of the stack's time that lies in other waits than those it was taken in.
    pub others_ns: u64,
    /// The longest of those that it was taken in.
    pub longest_ns: u64,
    /// How many waits there were, whatever each was for.
    pub counted: u64,
    /// How many there were if all were like it, in thousandths: the sums of several kinds are to each
    /// other as the numbers of their waits, because those that last longer are taken more often.
    pub thousandths: u64,
}

impl StandsFor {
    /// One wait whose stack was taken.
    pub const ITSELF: Self = Self { others_ns: 0, longest_ns: 0, counted: 1, thousandths: 1000 };

    pub const fn add(&mut self, more: Self) {
        self.others_ns = self.others_ns.saturating_add(more.others_ns);
        if more.longest_ns > self.longest_ns {
            self.longest_ns = more.longest_ns;
        }
        self.counted = self.counted.saturating_add(more.counted);
        self.thousandths = self.thousandths.saturating_add(more.thousandths);
    }
}

/// What a blocked thread waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Awaited {
    /// What its syscall says.
    #[default]
    Syscall,
    /// The interpreter's global lock. CPython waits for it in slices of 5 ms.
    Gil,
    /// The global lock of Ruby's virtual machine, by its stack: which thread has it is not in the futex.
    Gvl,
    /// Another thread, by way of a futex: a lock, a condition, a semaphore.
    Futex,
}

impl Awaited {
    /// What another thread has to give up, where a thread sleeps with these registers.
    pub const fn lock(self, registers: &Registers) -> Option<Lock> {
        let [futex, ..] = registers.args;
        match self {
            Self::Syscall => None,
            Self::Gil => Some(Lock::Gil),
            Self::Gvl => Some(Lock::Gvl),
            Self::Futex => Some(Lock::Futex(futex)),
        }
    }
}

/// What one thread has and another waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lock {
    /// The interpreter's global lock.
    Gil,
    /// That of Ruby.
    Gvl,
    /// Whatever the futex at this address stands for.
    Futex(u64),
}

/// A thread that held what the loop waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub tid: u32,
    pub name: Option<String>,
    pub held: Lock,
    /// One of its stacks. `time_ns` is its share of the time that the loop waited.
    pub seen: Sampled,
    /// In how many of its samples it collected garbage.
    pub collecting: u64,
}

/// A thread whose system call ended the loop's waits of one kind. It need not have held anything all
/// the time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waker {
    pub pid: u32,
    pub tid: u32,
    pub name: String,
    /// The command of its process, if that is another than the target.
    pub command: Option<String>,
    /// The system call that it was in as it did, and its first two arguments. Of a futex the call was
    /// checked to be on the same; of other waits it is one of the kind that ends them.
    pub syscall: i64,
    pub args: [u64; 2],
    /// What the loop waited for: [`Awaited::Futex`], or what the syscall in `wait` says.
    pub awaited: Awaited,
    /// The loop's registers in the last of the waits that it ended, as in the [`Sampled`] of that wait.
    pub wait: Registers,
    /// How long the waits had lasted that it ended.
    pub ended_ns: u64,
    /// Where it was when it did, if it is a thread of the target. `time_ns` is `ended_ns`.
    pub seen: Option<Sampled>,
}

/// Another thread of the process, and where it was while the loop stalled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    pub tid: u32,
    pub name: Option<String>,
    pub seen: Sampled,
}

/// One thing that another thread was seen to do while the loop waited for one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Companion {
    pub tid: u32,
    pub name: Option<String>,
    /// Where it stood. `time_ns` is how long it was seen to.
    pub seen: Sampled,
    /// Whether it waited for work: nothing of it would end the loop's wait.
    pub is_parked: bool,
    /// The lock that it waited for itself, and the thread that had it.
    pub waits_for: Option<(Lock, u32)>,
}

/// The other threads while the loop waited for one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Company {
    /// What each was seen to do, longest first.
    pub threads: Vec<Companion>,
    /// Those that ran when they were looked at.
    pub moved: Vec<u32>,
    /// How many others there were at most; none where nobody has looked at all of them.
    pub others: Option<usize>,
    /// In so many of the last looks at all of them, each waited for work.
    pub idle_looks: u64,
}

/// How the ticks of a turn spread over calls of the loop's callbacks, as far as these were told apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls {
    /// Ticks of which the call is known.
    pub ticks: u64,
    /// Different calls among these.
    pub seen: u64,
    /// Ticks that fell into the one which had most.
    pub heaviest_ticks: u64,
}

/// Another thread of the same instance that was away from it, too, while the loop stalled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Away {
    pub tid: u32,
    pub name: Option<String>,
    pub state: ThreadState,
    /// How long it had been away by then: no less than the stall.
    pub time_ns: u64,
    /// Where it was, heaviest first.
    pub stacks: Vec<Sampled>,
}

/// The owner of a lock, by the lock's own word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockOwner {
    /// The lock's futex.
    pub futex: u64,
    pub tid: u32,
    pub name: Option<String>,
}

/// A lock that the loop waited for, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waited {
    pub lock: Lock,
    pub time_ns: u64,
}

/// One stalled turn of one loop, up to some moment. Times in ns of CLOCK_MONOTONIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stall {
    /// The loop's thread, as this process's /proc numbers it.
    pub tid: u32,
    /// The account; its sum is the duration. `turn.start_ns` names the stall within the thread.
    pub turn: Turn,
    pub end: End,
    /// What the thread is doing now, while the stall lasts.
    pub now: Option<ThreadState>,
    /// Ticks that found the thread in user code, and in the kernel.
    pub ticks_user: u64,
    pub ticks_kernel: u64,
    /// Ticks that found the interpreter to collect garbage.
    pub ticks_collecting: u64,
    /// How the ticks spread over calls of callbacks.
    pub calls: Calls,
    /// Heaviest first.
    pub stacks: Vec<Sampled>,
    /// Who held what the loop waited for; heaviest first.
    pub holders: Vec<Holder>,
    /// How long it waited for each lock; the longest first.
    pub waited: Vec<Waited>,
    /// Who was found to own the lock that the loop waited for last.
    pub owner: Option<LockOwner>,
    /// Who ran while the thread was ready and had no CPU.
    pub contention: Contention,
    /// How the waits on futexes ended.
    pub futexes: FutexWaits,
    /// The other threads, where one of them was to end a wait.
    pub company: Company,
    /// Who ended the loop's waits; the one of the longest waits first.
    pub wakers: Vec<Waker>,
    /// The other threads, where they were asked for.
    pub others: Vec<Other>,
    /// Threads that could have served the loop's instance instead, and did not.
    pub away: Vec<Away>,
    /// What went on around the thread meanwhile.
    pub environment: Environment,
    /// What the wait after the stall returned: file descriptors kept waiting.
    pub ready_events: Option<u64>,
    /// Connections that nobody accepted meanwhile.
    pub queues: Vec<AcceptQueue>,
    pub gaps: Vec<Gap>,
}
