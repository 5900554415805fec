//! Where events come from: the first of the two doors to the outside.

pub mod decode;
pub mod kernel;

use profiler_ebpf::contention::Contenders;
use profiler_ebpf::loop_counters::{Accepts, LoopCounters};
use profiler_ebpf::parks::Parks;
use profiler_ebpf::python::{PythonFrame, PythonWalk};
use profiler_ebpf::record::{CaptureHead, ThreadSnapshot, Woken};
use profiler_ebpf::turn::{Loop, Turn, phase};
use profiler_ebpf::wanted::Wanted;

/// Something that the kernel side told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A turn past the threshold is over.
    TurnEnded { tid: u32, end_ns: u64, turn: Turn, ended: Ended },
    /// What the wait after a stall returned: events, or a negative error number.
    Ready { tid: u32, turn_start_ns: u64, returned: i64 },
    /// Where a thread was at one moment of a suspected turn.
    Captured(Box<Captured>),
    /// Where a thread was that is in no suspected turn itself.
    Other(Box<Captured>),
    /// Who ended a suspected loop's wait.
    Woken(Woken),
    /// Who ran while a loop's thread was ready and had no CPU; comes before the end of that turn.
    Rivals(Box<Contenders>),
    /// A loop's thread goes to sleep in a suspected turn. It is there to wake us.
    Asleep,
    /// A loop's thread has exited, inside a turn or not.
    Exited { tid: u32, at_ns: u64, turn: Option<Turn>, by: ExitedBy },
}

/// By what a turn ended, and how the loop's instance was served up to then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub by: EndedBy,
    /// When the thread left its wait last: as the turn began, unless it has parked since.
    pub left_ns: u64,
    pub others: OtherWaiters,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedBy {
    /// The loop's next wait.
    Wait,
    /// The thread sleeps where it waits for work.
    Park,
    /// The loop's instance was closed; the turn may have been a little longer than was seen.
    Close,
}

/// How a thread left the program that it ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitedBy {
    Exit,
    /// The thread lives on, in another program.
    Exec,
}

/// The other threads that wait on a loop's instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherWaiters {
    /// One of them waits.
    Waiting,
    /// None does; when the last of them left, 0 where there are none.
    LeftAt(u64),
}

/// A capture, taken out of the ring or completed from a thread that cannot move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    pub head: CaptureHead,
    /// Kernel return addresses, innermost first.
    pub kernel: Vec<u64>,
    /// Interpreter frames, innermost first, undecoded.
    pub interpreted: Vec<PythonFrame>,
    /// The stack from `head.registers.sp` upwards; empty where only registers were taken.
    pub stack: Vec<u8>,
}

impl Captured {
    /// One of a thread that is looked at from outside: with its copied stack, and nothing walked.
    pub fn of_outside(head: CaptureHead, stack: Vec<u8>) -> Self {
        Self { head, kernel: Vec::new(), interpreted: Vec::new(), stack }
    }

    /// Whether the interpreter's state that the probes were told of is another thread's by now.
    pub fn shows_another_thread(&self) -> bool {
        PythonWalk::from_u32(self.head.python_walk) == PythonWalk::WrongThread
    }
}

/// One loop as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub index: u32,
    pub state: Loop,
}

impl Slot {
    /// Whether the kernel side has changed nothing since: by its count, as some fields are the daemon's own.
    pub const fn is_unchanged(&self, now: &Loop) -> bool {
        self.state.version == now.version && self.state.tid == now.tid
    }
}

/// What the probes read of a thread's interpreter: addresses in the target, 0 where not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InterpreterPlaces {
    /// Of the thread.
    pub state: u64,
    /// Whether garbage is being collected.
    pub collecting: u64,
    /// Which callback the loop runs.
    pub callback: u64,
}

/// What happened, and how things stand.
pub trait EventSource {
    /// Everything told since the last call, oldest first: one ring serves all CPUs, so the order in
    /// which records were reserved is the order of time.
    fn drain(&mut self) -> Vec<Event>;

    /// Every loop that is known. Costs no syscall.
    fn loops(&mut self) -> Vec<Slot>;

    /// When the target executed another program, if it did: what its memory shows since is that one's. To be asked
    /// before the records are read. Costs no syscall.
    fn executed_ns(&mut self) -> Option<u64> {
        None
    }

    /// Whether a thread is still in the turn that began at that time.
    fn is_in_turn(&mut self, tid: u32, turn_start_ns: u64) -> bool {
        let is_it = |state: Loop| {
            state.tid == tid && state.phase == phase::TURN && state.turn.start_ns == turn_start_ns
        };
        self.loops().iter().any(|slot| is_it(slot.state))
    }

    /// Where the thread in a slot last gave up its CPU, if that lies in the turn it is in now.
    fn last_block(&mut self, slot: Slot) -> Option<Captured>;

    /// Who has run so far while the thread in a slot was ready and had no CPU. Costs no syscall.
    fn contenders(&mut self, slot: Slot) -> Option<Contenders>;

    /// Watches a thread that was inside a turn when we came. False where it is watched already, or gone.
    fn seed(&mut self, state: Loop, capture: CaptureHead) -> anyhow::Result<bool>;

    /// Whether a thread is in the system call of this capture. To be asked once it is watched: what it does later shows.
    fn is_still_in(&self, capture: &CaptureHead) -> bool;

    /// Tells the probes how the thread in a slot parks.
    fn set_parks(&mut self, slot: Slot, parks: Parks);

    /// Tells the probes whether the thread in a slot is handed work through a queue: then none of its
    /// waits is its own.
    fn set_handed_work(&mut self, slot: Slot, is_handed: bool);

    /// Tells the probes whether other threads wait on the instance of the thread in a slot, and nothing is known
    /// of where it parks.
    fn set_shares(&mut self, slot: Slot, shares: bool);

    /// Tells the probes where a thread keeps what they read of its interpreter.
    fn set_interpreter(&mut self, slot: Slot, places: InterpreterPlaces);

    /// Switches the sampling of running threads on or off; it costs all CPUs, so it is off while
    /// nothing is suspected.
    fn set_ticks(&mut self, wanted: Sampling) -> anyhow::Result<()>;

    /// Every thread of the target as it is now, asleep or not.
    fn threads(&mut self) -> anyhow::Result<Vec<ThreadSnapshot>>;

    /// Which threads outside of suspected turns are captured at ticks from now on.
    fn set_wanted(&mut self, wanted: Wanted) -> anyhow::Result<()>;

    /// Tells the probes where threads, by their thread pointers, keep their interpreter's state.
    fn set_thread_states(&mut self, states: &[(u64, u64)]) -> anyhow::Result<()>;

    /// Whether it is told who wakes a suspected loop; costs every wakeup of every process.
    fn watch_wakers(&mut self, wanted: bool) -> anyhow::Result<()>;

    /// A loop's thread is gone and everything it told has been read: its slot may serve another.
    fn release(&mut self, slot: Slot);

    /// A thread lives on, and is none of ours: its slot may serve another from the next look on.
    fn unwatch(&mut self, slot: Slot);

    /// The sums of the thread in a slot, where statistics are wanted, and its state at the same moment.
    /// The greatest values are those since the last call.
    fn take_reading(&mut self, _slot: Slot) -> Option<(Loop, LoopCounters)> {
        None
    }

    /// From now on the accepts of this process are counted.
    fn count_accepts(&mut self, _pid: u32) -> anyhow::Result<()> {
        Ok(())
    }

    /// Its accepts since then.
    fn accepts(&mut self, _pid: u32) -> Option<Accepts> {
        None
    }

    /// No longer; returns its last count.
    fn stop_counting_accepts(&mut self, _pid: u32) -> Option<Accepts> {
        None
    }

    /// Threads that wait like event loops and are not watched, because too many are; none where no other has come
    /// since the last call.
    fn slotless(&mut self) -> Vec<u32> {
        Vec::new()
    }

    /// What was lost so far, by name.
    fn losses(&mut self) -> Vec<(&'static str, u64)>;
}

/// Whether running threads are sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampling {
    On,
    Off,
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::turn::Loop;

    use super::Slot;

    /// What the daemon itself writes is no change of the loop's; another thread in its slot is.
    #[test]
    fn changes() {
        let state = Loop { tid: 7, version: 12, ..Loop::default() };
        let slot = Slot { index: 0, state };
        assert!(slot.is_unchanged(&Loop { python_tstate: 0x7000, ..state }));
        assert!(!slot.is_unchanged(&Loop { version: 14, ..state }));
        assert!(!slot.is_unchanged(&Loop { tid: 8, ..state }));
    }
}
