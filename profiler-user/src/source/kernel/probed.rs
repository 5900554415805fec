//! Every probe tried on this machine, and how each hook would be taken here.

use super::hooks::{HookOutcome, HookedWaits, SampleHooks, WaitHooks, WatchParameters};
use super::preflight::{Requirement, RequirementState};
use super::{KernelSource, Loaded};

/// Loads every probe against a process that is none, and says how each hook would be taken here.
pub fn machine() -> Vec<Requirement> {
    match KernelSource::load(everything()).and_then(Loaded::attach) {
        Ok(source) => found(source.probes()),
        Err(error) => {
            vec![Requirement {
                what: "probes",
                state: RequirementState::Missing(format!("{error:#}")),
            }]
        }
    }
}

/// Every probe, on a process that is none.
pub(super) fn everything() -> WatchParameters {
    WatchParameters {
        tgid: 0,
        threshold_ns: u64::MAX,
        waits: HookedWaits { poll: true, io_uring: true },
        hooks: WaitHooks::Best,
        samples: SampleHooks::Best,
        stats: true,
        workers: true,
    }
}

/// One line for all that are hooked alike, in the order of the first of each kind.
fn found(probes: &[HookOutcome]) -> Vec<Requirement> {
    let mut kinds: Vec<(&HookOutcome, Vec<&str>)> = Vec::new();
    for probe in probes {
        let is_alike = |kind: &&mut (&HookOutcome, _)| {
            (kind.0.hook, &kind.0.reason) == (probe.hook, &probe.reason)
        };
        match kinds.iter_mut().find(is_alike) {
            Some((_, names)) => names.push(probe.name),
            None => kinds.push((probe, vec![probe.name])),
        }
    }
    let check = |(probe, names): (&HookOutcome, Vec<&str>)| {
        let (what, names) = match names.as_slice() {
            [_] => (probe.name, String::new()),
            [first, ..] if first.starts_with("sched") => {
                ("scheduler", format!("{} ", names.join(", ")))
            }
            _ => ("system calls", format!("{} ", names.join(", "))),
        };
        let state = match (probe.hook, &probe.reason) {
            (Some(hook), None) => RequirementState::Fine(format!("{names}by {hook}")),
            (Some(hook), Some(reason)) => {
                RequirementState::Worse(format!("{names}by {hook}, because {reason}"))
            }
            (None, reason) => {
                let reason = reason.as_deref().unwrap_or_default();
                RequirementState::Worse(format!("{names}not hooked: {reason}"))
            }
        };
        Requirement { what, state }
    };
    kinds.into_iter().map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::{HookOutcome, RequirementState, found};

    /// What is hooked alike is said once, and a hook of its own kind by its own name.
    #[test]
    fn hooks_are_told_by_kind() {
        let refused = "fentry: Operation not permitted (os error 1)".to_owned();
        let probe = |name, hook, reason: Option<&String>| HookOutcome {
            name,
            hook,
            reason: reason.cloned(),
        };
        let probes = [
            probe("sched_switch", Some("btf-tracepoint"), None),
            probe("sched_wakeup", Some("btf-tracepoint"), None),
            probe("epoll_wait", Some("tracepoint"), Some(&refused)),
            probe("accept4", Some("tracepoint"), Some(&refused)),
            probe("cpu-clock", Some("perf-event"), None),
        ];
        let lines = found(&probes);
        let names: Vec<_> = lines.iter().map(|check| check.what).collect();
        assert_eq!(names, ["scheduler", "system calls", "cpu-clock"]);
        let RequirementState::Worse(text) = &lines[1].state else { panic!("{lines:?}") };
        assert!(text.starts_with("epoll_wait, accept4 by tracepoint, because fentry: "), "{text}");
    }
}
