//! The kind of a cause to its words.

use super::{cpu, held, run_queue};
use crate::report::schema::stall::CauseKind;

/// A cause in words, to follow "stalled 5012 ms, ".
pub fn phrase(kind: &CauseKind) -> String {
    let on = |target: &Option<String>| {
        target.as_ref().map(|target| format!(" on {target}")).unwrap_or_default()
    };
    let fixed = match kind {
        CauseKind::Syscall { syscall, target, .. } => {
            return format!("blocked in {syscall}{}", on(target));
        }
        CauseKind::Sleep { syscall } => return format!("asleep in {syscall}"),
        CauseKind::Disk { syscall: Some(syscall), target } => {
            return format!("waiting for the disk in {syscall}{}", on(target));
        }
        CauseKind::Disk { syscall: None, .. } => "waiting for the disk in a page fault",
        CauseKind::Cpu { .. } | CauseKind::Saturated { .. } => return cpu::phrase(kind),
        CauseKind::Lock { .. } | CauseKind::Gil { .. } => return held::phrase(kind),
        CauseKind::Memory => "waiting for memory",
        CauseKind::RunQueue { .. } => return run_queue::phrase(kind),
        CauseKind::CpuQuota { .. } => "out of its CPU quota",
        CauseKind::Stopped => "stopped by a signal, a debugger or the freezer",
        CauseKind::Unknown => "for an unknown reason",
    };
    fixed.to_owned()
}
