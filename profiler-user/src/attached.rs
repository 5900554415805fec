//! What was found of a target and what is attached to it, to the program's own log.

use tracing::info;

use crate::report::Start;
use crate::report::facts::SessionFacts;
use crate::report::schema::session::ReportedHook;

/// Writes it, for who asked for more words.
pub fn log(facts: &SessionFacts, start: &Start) {
    lines(facts, start).iter().for_each(|line| info!("{line}"));
}

fn lines(facts: &SessionFacts, start: &Start) -> Vec<String> {
    let process = &facts.process;
    let exe = process.exe.as_deref().unwrap_or("its executable cannot be read");
    let mut lines = vec![format!("process {} ({}): {exe}", process.pid, process.name)];
    lines.extend(process.container_id.as_ref().map(|id| format!("it is in container {id}")));
    lines.push(match &facts.runtime {
        Some(runtime) => {
            let version = runtime.version.as_deref().unwrap_or("of unknown version");
            format!("its runtime is {} {version}", runtime.name)
        }
        None => "no runtime was recognised: native frames only".to_owned(),
    });
    let (attached, missing): (Vec<&ReportedHook>, Vec<&ReportedHook>) =
        start.probes.iter().partition(|probe| probe.attached);
    let named = |probe: &&ReportedHook| format!("{} ({})", probe.name, probe.hook);
    let attached: Vec<String> = attached.iter().map(named).collect();
    lines.push(format!("attached: {}", attached.join(", ")));
    lines.extend(missing.iter().map(|probe| {
        let reason = probe.reason.as_deref().unwrap_or("no reason was given");
        format!("not attached: {}: {reason}", probe.name)
    }));
    let gaps = facts.gaps.iter().chain(&start.gaps);
    lines.extend(gaps.map(|gap| format!("missing: {gap}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::lines;
    use crate::gap::Gap;
    use crate::report::Start;
    use crate::report::sample;
    use crate::report::schema::session::{
        Configuration, ReportedHook, ReportedWaitHooks, StackCounts,
    };

    /// Target, runtime, probes and what is missing are told, each with its reason.
    #[test]
    fn told() {
        let probe = |name: &str, attached| ReportedHook {
            name: name.to_owned(),
            hook: if attached { "fentry" } else { "none" }.to_owned(),
            attached,
            reason: (!attached).then(|| "the kernel has no such system call".to_owned()),
        };
        let start = Start {
            gaps: vec![Gap::new("accepts by io_uring", "not counted")],
            version: "0.1.0".to_owned(),
            kernel: "6.1".to_owned(),
            wait_hooks: ReportedWaitHooks::Fentry,
            probes: vec![probe("epoll_wait", true), probe("io_uring_enter", false)],
            configuration: Configuration {
                threshold_ns: 1,
                error_threshold_ns: 10,
                duration_limit_ns: None,
                stats_interval_ns: None,
                sample_frequency_hz: 199,
                line_limit_bytes: None,
                stacks: StackCounts::App,
            },
        };
        let text = lines(&sample::session(), &start).join("\n");
        for part in [
            "process 4242 (uvicorn): ",
            "its runtime is cpython 3.11.2",
            "attached: epoll_wait (fentry)\n",
            "not attached: io_uring_enter: the kernel has no such system call",
            "missing: accepts by io_uring: not counted",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
