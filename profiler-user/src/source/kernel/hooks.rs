//! What to watch by which hooks of the kernel, and what became of each.

/// What to watch, in the kernel's numbers.
#[derive(Debug, Clone, Copy)]
pub struct WatchParameters {
    pub tgid: u32,
    pub threshold_ns: u64,
    pub waits: HookedWaits,
    pub hooks: WaitHooks,
    pub samples: SampleHooks,
    /// Whether statistics are wanted.
    pub stats: bool,
    /// Whether threads that are handed work are watched.
    pub workers: bool,
}

/// Which waits are hooked. Each hooked syscall costs whoever calls it, so only what the target may
/// wait in is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HookedWaits {
    pub poll: bool,
    pub io_uring: bool,
}

/// Whether the better hook is tried first, or one of the two is asked for (by tests and benchmarks).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WaitHooks {
    #[default]
    Best,
    Fentry,
    Tracepoint,
}

/// What samples are taken at: the best that is allowed, or what is asked for (by tests and benchmarks).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SampleHooks {
    #[default]
    Best,
    PerfEvent,
    Timer,
}

/// One hook of the kernel and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookOutcome {
    /// What is hooked: `sched_switch`, `epoll_wait`.
    pub name: &'static str,
    /// By what: `btf-tracepoint`, `fentry`, `tracepoint`, `perf-event`, `timer-tick`; none where it is not
    /// attached.
    pub hook: Option<&'static str>,
    /// Why not, or why not by the better hook.
    pub reason: Option<String>,
}
