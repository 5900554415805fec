//! The JSON of a line of statistics: how loops fared in one interval, stalls or not.

use std::collections::BTreeMap;

#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::line::Common;
use super::stall::LoopThread;

/// What was measured in one interval. Intervals follow each other without a gap; the session's last
/// line of this kind covers what is left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Stats {
    #[serde(flatten)]
    pub common: Common,
    /// How long the interval was. It ended when the line was made.
    pub interval_ns: u64,
    /// Every loop's thread that is watched, and those that exited after a turn in this interval.
    pub loops: Vec<LoopStats>,
    /// The target, and the children of it and of its parent that have one of its listening sockets
    /// open (the same socket: one of `SO_REUSEPORT` is another). Empty where it has none.
    pub accepts: Vec<Accepts>,
    /// Everything that could not be had, with its reason.
    pub gaps: Vec<String>,
    /// Records, samples and reports lost so far in this session, by reason.
    pub lost: BTreeMap<String, u64>,
}

/// One loop's thread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct LoopStats {
    pub thread: LoopThread,
    /// Turns that ended in the interval.
    pub turns: u64,
    /// The share of the interval that the loop spent in turns, instead of waiting for events: 0 to 1.
    pub busy_share: f64,
    pub time: TurnTime,
    /// Of turns that ended in the interval, in whole.
    pub turn_duration_ns: Percentiles,
    /// From wakeup or preemption to being on a CPU again, in turns and in waits: scheduler lag. A delay
    /// counts when the thread leaves that CPU.
    pub run_queue_delay_ns: Delays,
    /// What the loop's own waits returned; `null` where they do not tell.
    pub ready_events: Option<ReadyEvents>,
    /// Waits that slept and then returned nothing: a timer was due, or a timeout over. Waits that were
    /// not to sleep are not among them. `null` where waits do not tell.
    pub empty_wakeups: Option<u64>,
    /// Stalls of this thread whose end was told in the interval.
    pub stalls: u64,
}

/// Time in turns by what the thread did; of turns that reach beyond the interval, the part within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct TurnTime {
    /// On a CPU.
    pub running_ns: u64,
    /// Off the CPU until something woke it.
    pub blocked_ns: u64,
    /// Ready, without a CPU.
    pub runnable_ns: u64,
    /// Stopped, traced or frozen.
    pub stopped_ns: u64,
}

/// Percentiles: within 6.25 % of the true value from 256 ns to 18 minutes, and never above `max`.
/// `null` where nothing was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Percentiles {
    pub p50: Option<u64>,
    pub p90: Option<u64>,
    pub p99: Option<u64>,
    /// 99.9 %.
    pub p999: Option<u64>,
    /// Exact.
    pub max: Option<u64>,
}

/// Percentiles, and of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Delays {
    /// Times that the thread came onto a CPU after having been ready.
    pub count: u64,
    #[serde(flatten)]
    pub percentiles: Percentiles,
}

/// Events that waits returned.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ReadyEvents {
    /// Per wait that returned, also of those that returned nothing; `null` where none did.
    pub mean: Option<f64>,
    /// `null` where no wait returned.
    pub max: Option<u64>,
}

/// How one process's calls of `accept` and `accept4` ended, on whatever socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Accepts {
    pub pid: u32,
    pub name: String,
    /// With a connection.
    pub accepted: u64,
    /// With EAGAIN: another process was faster, or there was no further connection.
    pub would_block: u64,
    /// With any other error.
    pub failed: u64,
}
