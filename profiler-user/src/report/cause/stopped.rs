//! Time in which the thread was stopped, traced or frozen to a cause: by whom.

use super::component::Component;
use super::explanation::{Basis, Explanation};
use crate::activity::Activity;
use crate::gap::Gap;
use crate::report::schema::stall::{CauseKind, ReportedTracer, StoppedBy};
use crate::turn::{Sampled, Stall, ThreadState};

/// Bits of `task_struct.__state` (include/linux/sched.h); the freezer has one since 6.1.
const STATE_STOPPED: u64 = 0x4;
const STATE_TRACED: u64 = 0x8;
const STATE_FROZEN: u64 = 0x8000;

pub fn explain<'a>(component: &Component<'a>, stall: &Stall) -> Explanation<'a> {
    // Heaviest first.
    let activity = component.stacks.iter().find_map(|sampled| by_whom(sampled));
    let was_frozen = stall.environment.frozen_ns > 0;
    let tracer = stall.environment.tracer.as_ref();
    let by = match activity {
        Some(Activity::Traced) => Some(StoppedBy::Debugger),
        Some(Activity::Frozen) => Some(StoppedBy::Freezer),
        Some(Activity::SignalStop) => Some(StoppedBy::Signal),
        _ if was_frozen => Some(StoppedBy::Freezer),
        _ => None,
    };
    let mut gaps = Vec::new();
    if by.is_none() {
        let reason = "no stack was taken of it while it was stopped";
        gaps.push(Gap::new("by", reason));
    }
    // What is told by looks at the freezer alone is sampled.
    let basis =
        if component.stacks.is_empty() && was_frozen { Basis::Sampled } else { Basis::Measured };
    let tracer = tracer.filter(|_| by == Some(StoppedBy::Debugger));
    if by == Some(StoppedBy::Debugger) && tracer.is_none() {
        gaps.push(Gap::new("tracer", "it had gone before it was asked for"));
    }
    // No line of the program is to blame: it could have been any.
    let tracer = tracer.map(|it| ReportedTracer { pid: it.pid, name: it.name.clone() });
    let kind = CauseKind::Stopped { by, tracer };
    Explanation { gaps, ..Explanation::new(kind, basis, Vec::new(), stall.tid) }
}

/// By where the kernel kept it; a stop that was short has no kernel stack, only the scheduler's state.
fn by_whom(sampled: &Sampled) -> Option<Activity> {
    let told = sampled.activity().filter(|activity| activity.is_stop());
    told.or_else(|| match sampled.task_state {
        _ if sampled.state != ThreadState::Stopped => None,
        state if state & STATE_TRACED != 0 => Some(Activity::Traced),
        state if state & STATE_STOPPED != 0 => Some(Activity::SignalStop),
        state if state & STATE_FROZEN != 0 => Some(Activity::Frozen),
        _ => None,
    })
}
