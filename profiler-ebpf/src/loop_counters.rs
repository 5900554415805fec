//! What is counted of one loop's thread while statistics are wanted: the rules that run in the kernel.
//!
//! All sums only grow; the daemon takes differences. There is no sequence lock: whoever copies a
//! reading while it is written misses one event at most, and has it the next time.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::histogram::Histogram;
use crate::turn::Turn;

/// One thread's sums since it got its slot.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LoopCounters {
    /// Which of two cells keeps the greatest values: 0 or 1. Written by the daemon alone.
    pub cell: u64,
    /// 1 where the thread has slept since it entered its own wait.
    pub slept: u64,
    /// For how long it had been ready without a CPU in all its life when it last left one, ns; 0 where
    /// it was not seen to.
    pub run_delay_ns: u64,
    /// Running in turns that have ended, ns.
    pub running_ns: u64,
    /// Blocked in turns that have ended, ns.
    pub blocked_ns: u64,
    /// Ready without a CPU in turns that have ended, ns.
    pub runnable_ns: u64,
    /// Stopped, traced or frozen in turns that have ended, ns.
    pub stopped_ns: u64,
    /// Own waits that returned and did not fail.
    pub waits: u64,
    /// Events that they returned.
    pub ready_events: u64,
    /// The most that one returned, by cell.
    pub most_ready: [u64; 2],
    /// Waits that slept, and then returned nothing: their time was over. One that was not to sleep
    /// (timeout 0) is not among them.
    pub empty_wakeups: u64,
    /// How long turns lasted that have ended.
    pub turns: Histogram,
    /// From wakeup or preemption to being on a CPU again, inside turns and outside; counted as the thread
    /// leaves that CPU.
    pub delays: Histogram,
}

impl LoopCounters {
    /// The thread leaves the CPU, to sleep or for someone else. `run_delay_ns` is the kernel's own sum
    /// (`sched_info.run_delay`): what it has grown by is how long the thread waited for this CPU. One
    /// load, where reading the clock at the wakeup and at the return would be two calls.
    #[inline(always)]
    pub fn left_cpu(&mut self, sleeps: bool, run_delay_ns: u64) {
        if sleeps {
            self.slept = 1;
        }
        let before_ns = self.run_delay_ns;
        // One that was woken before it had left the CPU went on without a delay.
        if before_ns != 0 && run_delay_ns > before_ns {
            self.delays.add(run_delay_ns - before_ns, self.cell);
        }
        self.run_delay_ns = run_delay_ns;
    }

    /// A turn is over, by a wait or by parking.
    #[inline(always)]
    pub fn turn_over(&mut self, turn: &Turn) {
        self.turns.add(turn.booked_ns(), self.cell);
        self.add_time(turn);
    }

    /// The time of a turn that never ended as one: its thread exited.
    #[inline(always)]
    pub fn add_time(&mut self, turn: &Turn) {
        self.running_ns += turn.running_ns;
        self.blocked_ns += turn.blocked_ns;
        self.runnable_ns += turn.runnable_ns;
        self.stopped_ns += turn.stopped_ns;
    }

    /// The thread enters its own wait.
    #[inline(always)]
    pub fn wait_entered(&mut self) {
        self.slept = 0;
    }

    /// Its own wait returned: a number of events, or a negative error number.
    #[inline(always)]
    pub fn wait_left(&mut self, returned: i64) {
        if returned < 0 {
            return;
        }
        let events = returned as u64;
        self.waits += 1;
        self.ready_events += events;
        let cell = self.cell as usize & 1;
        if events > self.most_ready[cell] {
            self.most_ready[cell] = events;
        }
        if events == 0 && self.slept == 1 {
            self.empty_wakeups += 1;
        }
    }
}

/// How one process's calls of `accept` and `accept4` ended.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Accepts {
    /// With a connection.
    pub accepted: u64,
    /// With EAGAIN: another process was faster, or there was none left.
    pub would_block: u64,
    /// With any other error.
    pub failed: u64,
}

/// `EAGAIN` and `EWOULDBLOCK` (include/uapi/asm-generic/errno-base.h).
const EAGAIN: i64 = 11;

impl Accepts {
    /// A call returned: a descriptor, or a negative error number.
    #[inline(always)]
    pub fn returned(&mut self, returned: i64) {
        if returned >= 0 {
            self.accepted += 1;
        } else if returned == -EAGAIN {
            self.would_block += 1;
        } else {
            self.failed += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::{Accepts, LoopCounters};
    use crate::histogram::bucket_of;
    use crate::turn::Turn;

    fn delays(counters: &LoopCounters) -> Vec<(usize, u64)> {
        let counted = counters.delays.counts.iter().copied().enumerate();
        counted.filter(|(_, count)| *count > 0).collect()
    }

    /// A delay is what the kernel's sum grew by since the thread last left a CPU. What it was before it
    /// was first seen to leave is none, nor is a stay that nobody delayed.
    #[test]
    fn delays_of_a_thread() {
        let mut counters = LoopCounters::new_zeroed();
        counters.left_cpu(true, 7_000_000);
        assert_eq!(delays(&counters), []);
        counters.left_cpu(true, 7_008_000);
        counters.left_cpu(false, 7_008_000);
        assert_eq!(delays(&counters), [(bucket_of(8_000), 1)]);
        counters.left_cpu(false, 7_108_000);
        assert_eq!(delays(&counters), [(bucket_of(8_000), 1), (bucket_of(100_000), 1)]);
        assert_eq!(counters.delays.greatest_ns, [100_000, 0]);
    }

    /// A turn counts with its duration, and its time by state; one that never ended only with its time.
    #[test]
    fn turns_and_their_time() {
        let turn = Turn {
            running_ns: 1,
            blocked_ns: 20,
            runnable_ns: 300,
            stopped_ns: 4_000,
            ..Turn::default()
        };
        let mut counters = LoopCounters::new_zeroed();
        counters.cell = 1;
        counters.turn_over(&turn);
        counters.add_time(&turn);
        assert_eq!((counters.turns.count(), counters.turns.greatest_ns), (1, [0, 4_321]));
        let LoopCounters { running_ns, blocked_ns, runnable_ns, stopped_ns, .. } = counters;
        assert_eq!([running_ns, blocked_ns, runnable_ns, stopped_ns], [2, 40, 600, 8_000]);
    }

    /// Nothing found after a sleep is an empty wakeup; nothing found by a mere look, or after a signal,
    /// is none.
    #[test]
    fn empty_wakeups() {
        let mut counters = LoopCounters::new_zeroed();
        let mut wait = |sleeps: bool, returned| {
            counters.wait_entered();
            counters.left_cpu(sleeps, 1);
            counters.wait_left(returned);
            (counters.waits, counters.empty_wakeups)
        };
        assert_eq!(wait(true, 3), (1, 0));
        assert_eq!(wait(false, 0), (2, 0));
        assert_eq!(wait(true, 0), (3, 1));
        assert_eq!(wait(true, -4), (3, 1));
        assert_eq!((counters.ready_events, counters.most_ready), (3, [3, 0]));
    }

    /// The herd's empty hands are told from failures.
    #[test]
    fn accepts_by_their_end() {
        let mut accepts = Accepts::default();
        [5, 0, -11, -24, -4, -11].into_iter().for_each(|returned| accepts.returned(returned));
        assert_eq!(accepts, Accepts { accepted: 2, would_block: 2, failed: 2 });
    }
}
