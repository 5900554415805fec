//! The `stats` lines' loops and accepts, as far as tests look at them.

use serde::Deserialize;

use crate::report::Thread;

#[derive(Debug, Clone, Deserialize)]
pub struct LoopStats {
    pub thread: Thread,
    pub turns: u64,
    pub busy_share: f64,
    pub turn_duration_ns: Percentiles,
    pub run_queue_delay_ns: Delays,
    pub ready_events: Option<ReadyEvents>,
    pub empty_wakeups: Option<u64>,
    pub stalls: u64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Percentiles {
    pub p50: Option<u64>,
    pub p90: Option<u64>,
    pub p99: Option<u64>,
    pub p999: Option<u64>,
    pub max: Option<u64>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Delays {
    pub count: u64,
    #[serde(flatten)]
    pub percentiles: Percentiles,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub struct ReadyEvents {
    pub mean: Option<f64>,
    pub max: Option<u64>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Accepts {
    pub pid: u32,
    pub name: String,
    pub accepted: u64,
    pub would_block: u64,
    pub failed: u64,
}
