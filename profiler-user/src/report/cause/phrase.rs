//! The kind of a cause to its words.

use super::{called, held, run_queue};
use crate::report::schema::stall::CauseKind;

/// A cause in words, to follow "stalled 5012 ms, ".
pub fn phrase(kind: &CauseKind) -> String {
    let on = |target: &Option<String>| {
        target.as_ref().map(|target| format!(" on {target}")).unwrap_or_default()
    };
    let fixed = match kind {
        CauseKind::Syscall { .. } | CauseKind::Sleep { .. } => return called::phrase(kind),
        CauseKind::Disk { syscall: Some(syscall), target, .. } => {
            return format!("waiting for the disk in {syscall}{}", on(target));
        }
        CauseKind::Disk { syscall: None, file_system: Some(file_system), .. } => {
            return format!("waiting for a page of a file ({file_system})");
        }
        CauseKind::Disk { syscall: None, .. } => "waiting for a page of a file",
        CauseKind::Cpu => "on the CPU",
        CauseKind::Saturated => "on the CPU in many short callbacks",
        CauseKind::Lock { .. } | CauseKind::Gil { .. } => return held::phrase(kind),
        CauseKind::Memory => "waiting for memory",
        CauseKind::RunQueue { .. } => return run_queue::phrase(kind),
        CauseKind::CpuQuota { .. } => "out of its CPU quota",
        CauseKind::Stopped => "stopped by a signal, a debugger or the freezer",
        CauseKind::Unknown => "for an unknown reason",
    };
    fixed.to_owned()
}
