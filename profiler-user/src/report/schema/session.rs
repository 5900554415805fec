//! The JSON of a session's first and last line: what is attached, and what was seen.

use std::collections::BTreeMap;

#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::line::{Common, ReportedRuntime};

/// What is attached, and how it is set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct SessionStart {
    #[serde(flatten)]
    pub common: Common,
    /// stalltrace's own.
    pub version: String,
    /// The kernel's release.
    pub kernel: String,
    /// The language runtime, where one was recognised.
    pub runtime: Option<ReportedRuntime>,
    /// How the loops' waits are observed: what this costs the target depends on it.
    pub wait_hooks: ReportedWaitHooks,
    pub probes: Vec<ReportedHook>,
    pub configuration: Configuration,
    /// Everything that could not be had, with its reason.
    pub gaps: Vec<String>,
}

/// The kind of hook on the system calls in which loops wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ReportedWaitHooks {
    Fentry,
    Tracepoint,
    /// Some of each.
    Mixed,
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ReportedHook {
    /// What it is attached to: `epoll_wait`, `sched_switch`, …
    pub name: String,
    /// `fentry`, `tracepoint`, `btf tracepoint`, `perf event`, …
    pub hook: String,
    pub attached: bool,
    /// Why it is not attached, or why not by a better hook.
    pub reason: Option<String>,
}

/// The configuration in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Configuration {
    pub threshold_ns: u64,
    /// Stalls at least this long are errors.
    pub error_threshold_ns: u64,
    /// How long to watch; `null` for no end.
    pub duration_limit_ns: Option<u64>,
    /// `null` for no statistics.
    pub stats_interval_ns: Option<u64>,
    /// Samples a second of running time, while a stall is suspected.
    pub sample_frequency_hz: u64,
    /// The most bytes of a line of JSON, with its line feed; `null` for no limit.
    pub line_limit_bytes: Option<u64>,
    pub stacks: StackCounts,
}

/// How much of stacks is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StackCounts {
    /// All frames of all stacks, on every line; where the line's limit has no room for them, what `app` has.
    Full,
    /// Of the stack that the culprit is on what matters, of others the frame to look at first.
    App,
    None,
}

/// What was seen, and what was lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct SessionEnd {
    #[serde(flatten)]
    pub common: Common,
    pub reason: EndReason,
    /// How long the session lasted.
    pub watched_ns: u64,
    pub totals: Totals,
    /// Most stalled time first.
    pub top_culprits: Vec<TopCulprit>,
    /// How stacks and their frames were had: `stacks`, of these `stacks_truncated`; native frames
    /// `by_registers` (the innermost), `by_unwind_table`, `by_frame_pointer`, `by_search` (of the
    /// stack, where no table leads on), `by_signal`; frames of `python` and `javascript`; and `nameless`
    /// ones of any kind.
    pub frames: BTreeMap<String, u64>,
    /// Everything that could not be had, with its reason.
    pub gaps: Vec<String>,
    /// Records, samples and reports lost in this session, by reason.
    pub lost: BTreeMap<String, u64>,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    Detached,
    /// The process executed another program, which a session of its own follows: its `session_start` is the next
    /// line, unless it cannot be watched.
    Executed,
    TargetExited,
    DurationOver,
    Signal,
}

/// A session's sums.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Totals {
    pub turns: u64,
    pub stalls: u64,
    pub stalled_ns: u64,
    pub longest_ns: u64,
}

/// A function, and the stalls of which it was the culprit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct TopCulprit {
    pub function: Option<String>,
    pub file: Option<String>,
    /// Of its longest stall; of a JavaScript function, the line on which it is defined.
    pub line: Option<u32>,
    pub stalls: u64,
    /// Of these stalls the parts for which it stands: less than their durations where others had the rest.
    pub stalled_ns: u64,
}
