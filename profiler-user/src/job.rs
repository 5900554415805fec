//! What the session leaves to the analyst (samples to unwind and name, lines that are due), and the one
//! thing that it is told in return.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use profiler_ebpf::record::{CaptureHead, Woken};

use crate::gap::Gap;
use crate::interval::Interval;
use crate::process::arguments::Arguments;
use crate::process::target::Target;
use crate::report::Start;
use crate::report::facts::{ProgramFacts, SessionFacts};
use crate::report::schema::session::EndReason;
use crate::runtime::frames::Frames;
use crate::runtime::park::ParkState;
use crate::source::Captured;
use crate::turn::tracker::Due;
use crate::turn::{Awaited, Lock};

/// Another thread that stood still while it was looked at from outside.
#[derive(Debug, Clone)]
pub struct Bystander {
    pub captured: Captured,
    pub frames: Frames,
    /// What the pointers among the arguments of its system call point to.
    pub arguments: Option<Arguments>,
    pub awaited: Awaited,
    /// The lock that it waits for itself, and the thread that has it, as far as that is known.
    pub waits_for: Option<(Lock, u32)>,
}

/// One look at the threads that may end what a loop waits for.
#[derive(Debug)]
pub struct OtherThreadsSeen {
    pub loop_tid: u32,
    pub turn_start_ns: u64,
    /// The time that the look stands for.
    pub weight_ns: u64,
    pub still: Vec<Bystander>,
    /// Those that have not moved since the look before.
    pub unmoved: Vec<u32>,
    /// Those that were on a CPU, or were on one meanwhile.
    pub moving: Vec<u32>,
    /// How many more there are than were read; none where only some of them were wanted.
    pub left_out: Option<usize>,
}

/// To which suspected turn it matters where another thread is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    pub loop_tid: u32,
    pub turn_start_ns: u64,
    /// What the thread holds, if that is why.
    pub held: Option<Lock>,
}

/// What was lost, by name.
pub type Losses = Vec<(&'static str, u64)>;

/// Where a capture's kernel stack is.
#[derive(Debug, Clone)]
pub enum KernelStack {
    /// In the capture itself, if it lay in the kernel when a tick found it.
    Captured,
    /// The text of /proc/PID/task/TID/stack of a blocked thread, if that could be read.
    Text(Option<String>),
}

/// What the last line of a session needs.
#[derive(Debug)]
pub struct Ending {
    pub reason: EndReason,
    pub watched_ns: u64,
    pub turns: u64,
    pub losses: Losses,
}

/// The program to which another gave way.
#[derive(Debug)]
pub struct Successor {
    pub target: Arc<Target>,
    pub facts: SessionFacts,
    /// What is made of its threads goes here, and to nobody who knew the program before.
    pub verdicts: SyncSender<ParkVerdict>,
}

/// Work for the analyst, in order.
#[derive(Debug)]
pub enum Job {
    /// The session's first line is due, once what the first stall needs has been read by way of
    /// these captures.
    Begin { start: Box<Start>, warm_up: Vec<Captured> },
    /// Where a loop's thread was at one moment.
    Sample {
        captured: Box<Captured>,
        frames: Frames,
        kernel: KernelStack,
        awaited: Awaited,
        /// What the pointers among the arguments of its system call point to, as far as that was read.
        arguments: Option<Arguments>,
        /// Whether it sleeps on a futex, and other threads have its epoll instance, too.
        is_replaced: bool,
        /// Whether one does so now, or has since.
        is_served: bool,
    },
    /// A thread that is no loop of ours sleeps: it may be a worker.
    Look { captured: Box<Captured>, frames: Frames },
    /// What its runtime calls a loop's thread, or why that is not known.
    Named { tid: u32, name: Result<Option<String>, Gap> },
    /// What it calls another.
    Called { tid: u32, name: String },
    /// A thread that waits as event loops do: its stack shows which loop it is.
    Show { captured: Box<Captured>, frames: Frames },
    /// Who held what a loop's thread waited for, by a look from outside, and where it stood, if it
    /// stood still.
    Holder {
        sight: Sight,
        tid: u32,
        seen: Option<Box<Bystander>>,
        /// The time that the look stands for.
        weight_ns: u64,
    },
    /// A tick found another thread on a CPU, or it woke a loop's.
    Other { sights: Vec<Sight>, captured: Box<Captured>, frames: Frames },
    /// Who ended a loop's wait on a futex.
    Woken(Woken),
    /// All other threads that stood still when a stall was first told, and what is missing of the rest.
    Bystanders {
        loop_tid: u32,
        turn_start_ns: u64,
        still: Vec<Bystander>,
        /// Threads that ran, and whose ticks are to show where.
        moving: Vec<u32>,
        gaps: Vec<Gap>,
    },
    /// A loop waits for another thread: what those that may end it do.
    Others(Box<OtherThreadsSeen>),
    /// A stall goes on: connections may wait to be accepted.
    CountQueues { tid: u32, turn_start_ns: u64 },
    /// A blocked stretch is over whose stack may have been sent before.
    BlockEnded { captured: Box<Captured> },
    /// A line is due; with what has been lost so far.
    Report { tid: u32, due: Box<Due>, losses: Losses },
    /// A line of statistics is due.
    Statistics(Box<Interval>),
    /// A runtime has turned up that was not there when the session began.
    Program(Box<ProgramFacts>),
    /// The session is over, and this one's last line due: the process executes another program.
    GaveWay(Box<Ending>),
    /// The session of that program begins.
    Successor(Box<Successor>),
}

impl Job {
    /// Whether it has nothing of the target's memory in it: a line that is due, or what lines are told by.
    pub const fn is_line(&self) -> bool {
        matches!(
            self,
            Self::Begin { .. }
                | Self::Report { .. }
                | Self::Statistics(_)
                | Self::Program(_)
                | Self::GaveWay(_)
                | Self::Successor(_)
        )
    }

    /// Whether somebody waits for what comes of it: who reads the lines, or the session, to know where a thread parks.
    pub const fn is_urgent(&self) -> bool {
        self.is_line() || matches!(self, Self::Look { .. })
    }
}

/// What the analyst made of a thread's stack.
#[derive(Debug, Clone, Copy)]
pub struct ParkVerdict {
    /// Of the capture that it was made of.
    pub head: CaptureHead,
    pub park_state: ParkState,
}
