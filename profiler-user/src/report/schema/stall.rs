//! The JSON of a stall: its account, its cause, its culprit and its stacks.

use std::collections::BTreeMap;

#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::call::{Purpose, ReportedCall, ReportedPeer, ReportedWaker};
use super::line::{Common, ReportedRuntime};

/// One moment of a stall.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct StallLine {
    #[serde(flatten)]
    pub common: Common,
    pub stall: ReportedStall,
    pub thread: LoopThread,
    /// The language runtime, where one was recognised.
    pub runtime: Option<ReportedRuntime>,
    pub cause: Cause,
    /// The frame to look at first: of the longest part of the stall that has a line, where that is the cause
    /// or lasted for half the threshold and a tenth of the stall. `null` where all of it is somebody else's.
    pub culprit: Option<Culprit>,
    /// The task that ran, where that could be proved; null without a gap where it was none but a plain
    /// callback.
    pub task: Option<ReportedTask>,
    /// What people do about this cause.
    pub advice: Option<String>,
    /// Heaviest first. On `stall_open` and `stall_update` without those that an earlier line of the same stall had.
    pub stacks: Vec<ReportedStack>,
    /// Everything that could not be had, with its reason.
    pub gaps: Vec<String>,
    /// Records, samples and reports lost so far in this session, by reason; unless all stacks are written, without
    /// those that are 0.
    pub lost: BTreeMap<String, u64>,
}

/// The stall itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ReportedStall {
    /// The same on all lines of one stall.
    pub id: String,
    /// The same for the same culprit and cause in the same code, across restarts and hosts: what to group
    /// by. Made of the cause's kind, and of function, file name and language of the culprit and of its three
    /// nearest callers in the application; of the program's file where there is no culprit.
    pub signature: String,
    /// RFC 3339, UTC, µs.
    pub started_at: String,
    /// `CLOCK_MONOTONIC`: comparable with the target's own clock.
    pub start_monotonic_ns: u64,
    /// From the return of the loop's wait to the entry of its next, or to now while it lasts.
    pub duration_ns: u64,
    pub threshold_ns: u64,
    /// False where it had begun before stalltrace attached: the duration is then a lower bound.
    pub start_known: bool,
    /// False while it lasts, and where its end was not seen: the duration is then a lower bound.
    pub end_known: bool,
    pub time: Time,
    pub switches: Switches,
    /// What the wait after the stall returned: how many file descriptors had been kept waiting.
    /// `null` while the stall lasts.
    pub ready_events: Option<u64>,
    /// What the hypervisor took from the machine's CPUs meanwhile, at most: on which of them the thread
    /// was is not recorded.
    pub steal_ns: Option<u64>,
    /// The other threads of the same epoll instance or ring, none of which waited on it meanwhile. The line is
    /// told by the one that had left last.
    pub away: Vec<ReportedAway>,
    /// Connections that waited to be accepted by the process while the loop stalled, the most that were
    /// seen at once. Of TCP only; looked for when the stall is first told, and at growing intervals.
    pub waiting_connections: Vec<WaitingConnections>,
}

/// A thread that could have served the loop instead, and did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ReportedAway {
    pub thread: Thread,
    /// How it was when the line was made.
    pub state: ReportedState,
    /// How long it had been away by then.
    pub time_ns: u64,
    /// The frame to look at first; `null` where no stack of it was taken, or no frame has a name.
    pub culprit: Option<Culprit>,
}

/// Connections that nobody had accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct WaitingConnections {
    /// Of the listening socket.
    pub address: String,
    pub waiting: u64,
}

/// How a stall's time divides. The sum is its duration, exactly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Time {
    /// On a CPU. Running time is measured; its split between user and kernel is sampled.
    pub running_user_ns: u64,
    pub running_kernel_ns: u64,
    /// Off the CPU until something woke the thread.
    pub blocked_ns: u64,
    /// Ready, but without a CPU.
    pub runnable_ns: u64,
    /// Stopped by a signal, traced or frozen.
    pub stopped_ns: u64,
}

/// How often the thread left the CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Switches {
    pub voluntary: u32,
    pub preempted: u32,
}

/// The thread whose loop stalled, or the worker whose work did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct LoopThread {
    pub tid: u32,
    pub tid_in_container: Option<u32>,
    /// As the kernel has it: 15 bytes at most, and the program's own where nobody gave it another.
    pub name: Option<String>,
    /// As Python's `threading` has it; null where that does not know the thread.
    pub python_name: Option<String>,
    /// Whether it is the main thread of its process.
    pub is_main: bool,
    /// `asyncio`, `uvloop`, `trio`, `gevent`, `libuv`, `tokio`, `epoll`, …; of a worker its pool: `thread-pool`,
    /// `uwsgi`, `tokio`, `worker_threads`.
    #[serde(rename = "loop")]
    pub loop_kind: String,
}

/// A thread of the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Thread {
    pub tid: u32,
    pub name: Option<String>,
}

/// Why the loop stalled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Cause {
    #[serde(flatten)]
    pub kind: CauseKind,
    /// A phrase for a person.
    pub summary: String,
    pub confidence: Confidence,
    /// The part of the stall that went into it: no other part is larger.
    pub time_ns: u64,
    /// How often the thread waited so, as far as that was seen; `null` for what is sampled by the clock,
    /// and where `waits` tells.
    pub times: Option<u64>,
    /// The same where it was many times.
    pub waits: Option<ReportedWaits>,
    /// What kept the one that was waited for, link by link: the first is the thread that has what the loop
    /// waits for, the next what that one waits for. Empty where nobody was seen.
    pub because: Vec<Link>,
    /// It waits for itself, or those in `because` wait for each other: it will not go on by itself.
    pub deadlock: bool,
    /// What else a tenth of the stall or more went into, longest first.
    pub also: Vec<ReportedComponent>,
}

/// One of a chain of threads that wait for each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Link {
    pub thread: Thread,
    /// A phrase for a person: what it did, or waited for.
    pub doing: String,
    /// What its system call works on: `unix`, `tcp 10.0.0.5:443`, `pipe`.
    pub target: Option<String>,
    /// The frame to look at first; `null` where no frame of it has a name.
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
    /// How long it was seen to do so, at least.
    pub time_ns: u64,
}

/// A pause of everything that a runtime runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct StopTheWorld {
    pub pause: Pause,
    /// The thread that it was done in, where that was seen.
    pub thread: Option<Thread>,
    /// The thread that asked for it, or whose allocation did.
    pub set_off_by: Option<Thread>,
}

/// What for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Pause {
    GarbageCollection,
    /// Of a JVM, for whatever needs all its threads to stand still.
    Safepoint,
    /// Of a CPython without the interpreter's lock, for whatever needs all its threads to stand still.
    StopTheWorld,
    /// Of Ruby: one thread runs, and the others stand still until it gives its lock back.
    Gvl,
}

/// Many waits of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ReportedWaits {
    pub count: u64,
    pub mean_ns: u64,
    /// Waits of other kinds came between, and how many were of this is estimated from samples.
    pub is_estimate: bool,
}

/// Another part of the same stall.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ReportedComponent {
    #[serde(flatten)]
    pub kind: CauseKind,
    /// A phrase for a person.
    pub summary: String,
    pub time_ns: u64,
    /// As in the cause itself.
    pub times: Option<u64>,
    pub waits: Option<ReportedWaits>,
    /// The frame to look at first for this part; `null` where no stack shows it.
    pub culprit: Option<Culprit>,
}

/// How sure a cause is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// What was seen does not decide it; the gaps say what was missing.
    Unknown,
    /// Sampled, or measured for the larger part only.
    Likely,
    /// Measured.
    Certain,
}

/// The kinds of cause. What belongs to one kind stands in `detail`, so that a table of all of them has few
/// columns; `unknown` has none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(tag = "kind", content = "detail", rename_all = "snake_case")]
pub enum CauseKind {
    /// One piece of code kept the CPU.
    Cpu {
        /// The part of it that was spent in the kernel, 0 to 1, by samples; `null` without any.
        kernel_share: Option<f64>,
        /// The system call that most of the kernel's part was spent in.
        syscall: Option<String>,
        activity: Option<ReportedActivity>,
        /// Page faults of the whole turn: exact, but for what came after the thread's last switch while
        /// the stall lasts.
        minor_faults: u32,
        /// The same for faults that waited for a disk.
        major_faults: u32,
        /// Whether most of it was one call of a callback; `null` where calls were not told apart.
        single_call: Option<bool>,
    },
    /// No single call is to blame: many short callbacks in one turn.
    Saturated {
        /// The callbacks that most samples fell into, heaviest first; at most five.
        callbacks: Vec<Callback>,
        /// How many different callbacks were seen: at least so many ran.
        callbacks_seen: u64,
        /// How many different calls of them were seen; `null` where calls were not told apart.
        calls_seen: Option<u64>,
    },
    /// Blocked in a system call.
    Syscall {
        syscall: String,
        /// The six argument registers; the call takes the first few of them.
        args: Vec<String>,
        /// What it works on: `tcp 10.0.0.5:443`, `/var/lib/app/config.json`, `pipe`, `child 4711`.
        target: Option<String>,
        #[serde(flatten)]
        call: Box<ReportedCall>,
    },
    /// Asleep for a time that the code asked for.
    Sleep {
        syscall: String,
        /// How long the last of the sleeps was to be.
        asked_ns: Option<u64>,
        /// What for, where it slept to try again later.
        purpose: Option<Purpose>,
        /// The SQLite database that was locked.
        path: Option<String>,
        /// Who has locked it.
        held_by: Vec<ReportedPeer>,
        /// Of waits in a futex whose time ran out: the times.
        ran_out_ns: Vec<u64>,
    },
    /// Waiting in a futex for another thread.
    Lock {
        /// The futex.
        address: String,
        /// Who owns the lock, where the lock itself says so; of several who owned it longest.
        owner_thread: Option<Thread>,
        /// Everybody who was seen to own it meanwhile, longest first.
        holders: Vec<ReportedHolder>,
        /// Who ended the longest of the waits: it may have held the lock all the time, or only last.
        /// `null` while the wait lasts, and where a timeout or a signal ended it.
        woken_by: Option<ReportedWaker>,
        /// What the thread was to give, where its stack tells.
        awaited: Option<AwaitedOf>,
        /// A collection or another pause of the whole runtime that it waited for.
        stop_the_world: Option<StopTheWorld>,
    },
    /// Waiting for the global lock of an interpreter: Python's, or Ruby's, where `stop_the_world.pause` is `gvl`.
    Gil {
        /// Who held it longest.
        holder_thread: Option<Thread>,
        /// Everybody who was seen to hold it meanwhile, longest first.
        holders: Vec<ReportedHolder>,
        /// The collection that the holder did; of Ruby's in any case who had it.
        stop_the_world: Option<StopTheWorld>,
    },
    /// Uninterruptible I/O, or a page that had to come from a file.
    Disk {
        /// `null` for a page fault.
        syscall: Option<String>,
        target: Option<String>,
        /// Of a file, the type of its file system.
        file_system: Option<String>,
    },
    /// Direct reclaim, compaction, swap, a page that was being moved, or the lock of the address space.
    Memory {
        activity: Option<MemoryActivity>,
        /// Time in the stall in which some task waited for memory, at most.
        pressure_ns: Option<u64>,
        pressure_of: Option<ReportedPressureOf>,
    },
    /// Ready, but without a CPU. `preempted_ns` and `woken_ns` add up to `stall.time.runnable_ns`.
    RunQueue {
        /// Its CPU had been taken from it.
        preempted_ns: u64,
        /// It had been woken, and waited for a CPU.
        woken_ns: u64,
        /// The CPU that it waited for idled: it was not allowed to run there, by a quota or its
        /// affinity; or it was about to come onto it.
        idle_ns: u64,
        /// Who ran on the CPU that it waited for, longest first, each process once; `null` where
        /// nothing of that was seen. Their times and `idle_ns` add up to no more than `runnable_ns`.
        preempted_by: Option<Vec<Preemptor>>,
        /// How many of the machine's CPUs the thread may use.
        allowed_cpus: Option<u32>,
        /// Which they are, where they are fewer than all: `0-1,4`.
        confined_to: Option<String>,
    },
    /// The cgroup, or one above it, had used up its CPU time.
    CpuQuota {
        /// Counted by the kernel when each wait for the next period ends, and summed over the CPUs: no
        /// more than the time in which the thread had no CPU.
        throttled_ns: Option<u64>,
        /// CPU time in each period.
        quota_us: u64,
        period_us: u64,
        /// Whose quota it is.
        cgroup: String,
    },
    /// Stopped by a signal, a debugger or the freezer.
    Stopped {
        by: Option<StoppedBy>,
        /// The debugger.
        tracer: Option<ReportedTracer>,
    },
    /// Not to be told from what was seen.
    Unknown,
}

/// What a thread waits for that waits for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum AwaitedOf {
    /// The result of work that was handed over.
    Result,
    /// The thread's end.
    End,
    /// Something out of a queue, or room in it.
    Queue,
    /// The answer to a call of gRPC's, whose own thread takes it out of a completion queue.
    Grpc,
    /// A module that another thread imports.
    Import,
    /// An object that another thread uses: in a CPython without the interpreter's lock each has its own.
    Object,
    /// An event, a condition or a barrier.
    Event,
}

impl CauseKind {
    /// As `kind` has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cpu { .. } => "cpu",
            Self::Saturated { .. } => "saturated",
            Self::Syscall { .. } => "syscall",
            Self::Sleep { .. } => "sleep",
            Self::Lock { .. } => "lock",
            Self::Gil { .. } => "gil",
            Self::Disk { .. } => "disk",
            Self::Memory { .. } => "memory",
            Self::RunQueue { .. } => "run_queue",
            Self::CpuQuota { .. } => "cpu_quota",
            Self::Stopped { .. } => "stopped",
            Self::Unknown => "unknown",
        }
    }

    /// The pause of the whole runtime that was waited for, if it was one.
    pub fn stop_the_world(&self) -> Option<&StopTheWorld> {
        match self {
            Self::Lock { stop_the_world, .. } | Self::Gil { stop_the_world, .. } => {
                stop_the_world.as_ref()
            }
            _ => None,
        }
    }

    /// Says which pause it was. Only who waits for another thread waits for one.
    pub fn set_stop_the_world(&mut self, pause: StopTheWorld) {
        if let Self::Lock { stop_the_world, .. } | Self::Gil { stop_the_world, .. } = self {
            *stop_the_world = Some(pause);
        }
    }

    /// Whether no line of the program is to blame: it was kept from running, wherever it was.
    pub fn is_from_outside(&self) -> bool {
        matches!(self, Self::RunQueue { .. } | Self::CpuQuota { .. } | Self::Stopped { .. })
    }
}

/// What a thread did in the kernel instead of its work, to get memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum MemoryActivity {
    /// It freed memory before it got some.
    Reclaim,
    /// It waited for a page that had been swapped out.
    SwapIn,
    /// It waited for a page that the kernel was moving.
    Migration,
    /// It waited for the lock of its process's address space.
    MmapLock,
    /// It moved pages about before it got a large one.
    Compaction,
}

/// Whose tasks waited for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ReportedPressureOf {
    /// Those of the process's control group.
    Cgroup,
    /// Anybody's: the kernel keeps none of the group.
    Machine,
}

/// Who kept a thread from running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StoppedBy {
    /// Whoever sent SIGSTOP, or stopped the job.
    Signal,
    /// A process that traces it.
    Debugger,
    /// Whoever froze its control group.
    Freezer,
}

/// A process that traces the thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ReportedTracer {
    pub pid: u32,
    pub name: Option<String>,
}

/// What code on the CPU was about, where most of it was not its own work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ReportedActivity {
    /// The interpreter's garbage collector.
    GarbageCollection,
    /// The kernel brought in memory that was touched.
    PageFaults,
    /// The kernel mapped memory, or took it back.
    Allocation,
}

/// A callback of the loop, by the function with which the application's part of it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Callback {
    pub function: Option<String>,
    pub file: Option<String>,
    /// The line that most samples fell on; of a JavaScript function, the one on which it is defined.
    pub line: Option<u32>,
    pub samples: u64,
}

/// A thread, and its share of the time that the loop waited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ReportedHolder {
    pub tid: u32,
    pub name: Option<String>,
    /// By samples.
    pub time_ns: u64,
}

/// A process that had the CPU meanwhile. The target's own pid stands for other threads of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Preemptor {
    pub pid: u32,
    /// The thread, where only one of the process's ran.
    pub tid: Option<u32>,
    /// That thread's name, or the process's.
    pub name: Option<String>,
    /// The beginning of its command line; `null` without `--show-commands`, of kernel threads, and where the
    /// process is gone.
    pub command: Option<String>,
    pub container_id: Option<String>,
    /// Measured.
    pub time_ns: u64,
    /// Whether it is the target itself: for the summary.
    #[serde(skip)]
    pub is_target: bool,
}

/// A frame, and the thread in which it was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Culprit {
    pub function: Option<String>,
    pub file: Option<String>,
    /// Of a JavaScript function, the line on which it is defined.
    pub line: Option<u32>,
    /// The mapped file that holds the code; Python and JavaScript frames have none.
    pub module: Option<String>,
    pub language: ReportedLanguage,
    /// May be another thread than the loop's.
    pub thread: u32,
    /// How long the part of the stall lasted that it stands for.
    pub time_ns: u64,
    pub part: PartOfStall,
}

/// What the loop's thread was in that part of the stall for which a culprit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PartOfStall {
    /// On a CPU: the culprit is what ran.
    Running,
    /// Blocked: the culprit is what waited, or what it waited for.
    Blocked,
    /// Ready, but without a CPU: of a thread that was away from its loop, where it was then.
    Runnable,
}

/// A task of the loop. Function, file and line are of the application's outermost code in it: of a web
/// framework the handler, whatever middleware is above it. Where none of its code is the
/// application's, they are of the handler all the same, or else of the task's own coroutine. The line
/// is the one where that now stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ReportedTask {
    /// As asyncio has it: `Task-7`, or what the program called it.
    pub name: Option<String>,
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
}

/// A stack, and how much of the stall it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ReportedStack {
    pub thread: Thread,
    pub role: Role,
    pub state: ReportedState,
    /// How many captures showed it.
    pub samples: u64,
    /// Exact for a blocked stretch of the loop's, a share of the samples for running time. Of a holder
    /// its share of the time that the loop waited, of a waker what the waits had lasted that it ended,
    /// of others 0.
    pub time_ns: u64,
    /// Innermost first; absent where the thread was in user code.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel: Vec<ReportedFrame>,
    /// Innermost first; frames of all languages in true calling order. By default all that matters of the
    /// stack that the culprit is on, and of others the frame to look at first: see `left_out`.
    pub frames: Vec<ReportedFrame>,
    /// Why it stops before its outermost frame; absent where it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncated: Option<String>,
    /// Frames of `frames` that are left out: those that the line has no room for or that lead nowhere, and of a
    /// deep stack an interpreter's between its innermost and its outermost ones. Absent where there are none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u32,
}

/// What a stack's thread has to do with the stall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It stalled.
    Loop,
    /// It held what the loop waited for.
    Holder,
    /// It ended the loop's wait: the stack is of that moment.
    Waker,
    /// Any other, where all were asked for.
    Other,
}

/// What a stack's thread was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ReportedState {
    Running,
    Blocked,
    Runnable,
    Stopped,
}

/// One frame. What is not known, or not so, is absent: there are many of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ReportedFrame {
    /// Demangled, or Python's qualified name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Of a JavaScript function, the line on which it is defined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// The mapped file that holds the code; Python and JavaScript frames have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    pub language: ReportedLanguage,
    /// The compiler put it into its caller.
    #[serde(default, skip_serializing_if = "is_false")]
    pub inlined: bool,
    /// Whether it is the application's own code, not a library's or the runtime's.
    #[serde(default, skip_serializing_if = "is_false")]
    pub in_app: bool,
    /// Hexadecimal; Python and JavaScript frames have none. Only with `--stacks full`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Hexadecimal, relative to the beginning of the module's file: for symbolizing later. Only with `--stacks full`,
    /// and of code without a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module_offset: Option<String>,
    /// Frames left out between this one and the next that is listed, its callers.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// What a frame's code was written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ReportedLanguage {
    Python,
    Native,
    #[serde(rename = "javascript")]
    JavaScript,
    Kernel,
}
