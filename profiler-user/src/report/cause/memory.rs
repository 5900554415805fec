//! Time that the kernel took to get memory for the thread to a cause.

use super::component::Component;
use super::explanation::{Basis, Explanation};
use crate::activity::Activity;
use crate::environment::PressureOf as SeenOf;
use crate::gap::Gap;
use crate::report::account::Part;
use crate::report::schema::stall::{CauseKind, MemoryActivity, ReportedPressureOf};
use crate::report::units::is_percent;
use crate::turn::{Sampled, Stall};

/// A wait is measured; time on the CPU is sampled. What is of both is as good as the larger.
const MOSTLY_PERCENT: u64 = 50;

/// What the kernel was doing for memory when this stack was taken.
pub fn activity(sampled: &Sampled) -> Option<MemoryActivity> {
    match sampled.activity()? {
        Activity::Reclaim => Some(MemoryActivity::Reclaim),
        Activity::Compaction => Some(MemoryActivity::Compaction),
        Activity::SwapIn => Some(MemoryActivity::SwapIn),
        Activity::Migration => Some(MemoryActivity::Migration),
        Activity::MmapLock => Some(MemoryActivity::MmapLock),
        Activity::SignalStop | Activity::Traced | Activity::Frozen => None,
    }
}

pub fn explain<'a>(
    component: &Component<'a>,
    activity: MemoryActivity,
    stall: &Stall,
) -> Explanation<'a> {
    let mut gaps = Vec::new();
    let pressure = stall.environment.pressure;
    if pressure.is_none() {
        let reason = "the kernel keeps no pressure of memory, or it was not read before the stall";
        gaps.push(Gap::new("pressure_ns", reason));
    }
    if activity == MemoryActivity::MmapLock {
        let reason = "who held the address space's lock is not recorded: another thread of the \
                      process that mapped, unmapped or faulted, or a reader of its /proc files";
        gaps.push(Gap::new("owner_thread", reason));
    }
    let waited = component.stacks.iter().filter(|sampled| Part::Blocked.shows(sampled));
    let waited_ns = waited.map(|sampled| sampled.time_ns).fold(0, u64::saturating_add);
    let basis = if is_percent(waited_ns, component.time_ns, MOSTLY_PERCENT) {
        Basis::Measured
    } else {
        Basis::Sampled
    };
    let kind = CauseKind::Memory {
        activity: Some(activity),
        pressure_ns: pressure.map(|it| it.waited.at_most_ns.min(stall.turn.booked_ns())),
        pressure_of: pressure.map(|it| match it.of {
            SeenOf::Cgroup => ReportedPressureOf::Cgroup,
            SeenOf::Machine => ReportedPressureOf::Machine,
        }),
    };
    Explanation { gaps, ..Explanation::new(kind, basis, component.stacks.clone(), stall.tid) }
}
