//! The kind of a cause to its words.

use super::{blocked, cpu, locked, run_queue};
use crate::report::schema::stall::{CauseKind, MemoryActivity, ReportedTracer, StoppedBy};
use crate::report::units::milliseconds;

/// A cause in words, to follow "stalled 5012 ms, ".
pub fn phrase(kind: &CauseKind) -> String {
    let on = |target: &Option<String>| {
        target.as_ref().map(|target| format!(" on {target}")).unwrap_or_default()
    };
    let fixed = match kind {
        CauseKind::Syscall { .. } | CauseKind::Sleep { .. } => return blocked::phrase(kind),
        CauseKind::Disk { syscall: Some(syscall), target, .. } => {
            return format!("waiting for the disk in {syscall}{}", on(target));
        }
        CauseKind::Disk { syscall: None, file_system: Some(file_system), .. } => {
            return format!("waiting for a page of a file ({file_system})");
        }
        CauseKind::Disk { syscall: None, .. } => "waiting for a page of a file",
        CauseKind::Cpu { .. } | CauseKind::Saturated { .. } => return cpu::phrase(kind),
        CauseKind::Lock { .. } | CauseKind::Gil { .. } => return locked::phrase(kind),
        CauseKind::Memory { activity, .. } => memory(*activity),
        CauseKind::RunQueue { .. } => return run_queue::phrase(kind),
        CauseKind::CpuQuota { throttled_ns, quota_us, period_us, .. } => {
            return quota(*throttled_ns, *quota_us, *period_us);
        }
        CauseKind::Stopped { by, tracer } => return stopped(*by, tracer.as_ref()),
        CauseKind::Unknown => "for an unknown reason",
    };
    fixed.to_owned()
}

fn memory(activity: Option<MemoryActivity>) -> &'static str {
    match activity {
        Some(MemoryActivity::Reclaim) => "freeing memory before it got any (direct reclaim)",
        Some(MemoryActivity::SwapIn) => "waiting for memory to come back from swap",
        Some(MemoryActivity::Migration) => "waiting for a page that the kernel was moving",
        Some(MemoryActivity::MmapLock) => "waiting for the lock of its address space (mmap_lock)",
        Some(MemoryActivity::Compaction) => "moving memory about for a large page (compaction)",
        None => "waiting for memory",
    }
}

/// `out of its CPU quota (0.2 CPUs), throttled for 240 ms`
fn quota(throttled_ns: Option<u64>, quota_us: u64, period_us: u64) -> String {
    let hundredths = quota_us.saturating_mul(100) / period_us.max(1);
    let (whole, rest) = (hundredths / 100, hundredths % 100);
    let cpus = match rest % 10 {
        0 => format!("{whole}.{}", rest / 10),
        _ => format!("{whole}.{rest:02}"),
    };
    let throttled = throttled_ns.map(|ns| format!(", throttled for {} ms", milliseconds(ns)));
    format!("out of its CPU quota ({cpus} CPUs){}", throttled.unwrap_or_default())
}

/// `stopped by a debugger (gdb, pid 4711)`
fn stopped(by: Option<StoppedBy>, tracer: Option<&ReportedTracer>) -> String {
    let by = match by {
        Some(StoppedBy::Signal) => "by a signal",
        Some(StoppedBy::Debugger) => "by a debugger",
        Some(StoppedBy::Freezer) => "by its control group's freezer",
        None => "by a signal, a debugger or the freezer",
    };
    let who = tracer.map(|tracer| match &tracer.name {
        Some(name) => format!(" ({name}, pid {})", tracer.pid),
        None => format!(" (pid {})", tracer.pid),
    });
    format!("stopped {by}{}", who.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::{quota, stopped};
    use crate::report::schema::stall::{ReportedTracer, StoppedBy};

    /// Quotas as people set them: a tenth of a CPU as well as several.
    #[test]
    fn quotas_in_cpus() {
        let throttled = "out of its CPU quota (0.2 CPUs), throttled for 240 ms";
        assert_eq!(quota(Some(239_700_000), 20_000, 100_000), throttled);
        assert_eq!(quota(None, 250_000, 100_000), "out of its CPU quota (2.5 CPUs)");
        assert_eq!(quota(None, 5_000, 100_000), "out of its CPU quota (0.05 CPUs)");
    }

    /// Who traced is told where it is known.
    #[test]
    fn who_stopped_it() {
        let gdb = ReportedTracer { pid: 4711, name: Some("gdb".to_owned()) };
        let by = Some(StoppedBy::Debugger);
        assert_eq!(stopped(by, Some(&gdb)), "stopped by a debugger (gdb, pid 4711)");
        assert_eq!(stopped(by, None), "stopped by a debugger");
    }
}
