//! How often a part of a stall was waited, and how long each wait was.

use super::component::{Component, Nature};
use crate::report::account::Part;
use crate::report::schema::stall::ReportedWaits;
use crate::report::units::is_percent;
use crate::turn::{Sampled, Stall, StandsFor};

/// Fewer are told as a number alone.
const MANY: u64 = 3;

/// From here on a part of a time is most of it.
const MOST_PERCENT: u64 = 50;

/// How often a part was waited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Where it was a few times.
    pub few: Option<u64>,
    pub many: Option<ReportedWaits>,
}

/// Nothing where stacks are taken by the clock.
pub fn of(component: &Component<'_>, stall: &Stall) -> Times {
    let is_wait = match component.nature {
        Nature::Waiting(_) => true,
        // One that was frozen in its sleep left no stack of it.
        Nature::Stopped => !component.stacks.is_empty(),
        Nature::Memory(_) => component.stacks.iter().all(|it| Part::Blocked.shows(it)),
        _ => false,
    };
    if !is_wait {
        return Times::default();
    }
    let (count, is_estimate) = count(component, stall);
    // One that took most of the time is what matters, and the others came before or after it.
    let longest_ns = sum(component.stacks.iter().copied()).longest_ns;
    if count < MANY || is_percent(longest_ns, component.time_ns, MOST_PERCENT) {
        return Times { few: Some(count), many: None };
    }
    let mean_ns = component.time_ns / count;
    Times { few: None, many: Some(ReportedWaits { count, mean_ns, is_estimate }) }
}

/// Each wait whose stack was taken counts, and the short ones that it stands for. Where all are of one
/// kind their number was counted; of several kinds each has its share.
fn count(component: &Component<'_>, stall: &Stall) -> (u64, bool) {
    let off_cpu = stall.stacks.iter();
    let all = sum(off_cpu.filter(|it| Part::Blocked.shows(it) || Part::Stopped.shows(it)));
    let own = sum(component.stacks.iter().copied());
    let is_sampled = component.inferred_ns() > 0;
    if own.thousandths == all.thousandths {
        // The last of them may have been too few for another capture.
        let voluntary = u64::from(stall.turn.voluntary);
        let rest = voluntary.saturating_sub(all.counted);
        let is_rest = is_sampled && rest <= all.counted / 10;
        return (if is_rest { voluntary.max(all.counted) } else { all.counted }, false);
    }
    let share = u128::from(all.counted) * u128::from(own.thousandths);
    let whole = u128::from(all.thousandths.max(1));
    let count = u64::try_from((share + whole / 2) / whole).unwrap_or(u64::MAX);
    (count.max(1), is_sampled)
}

fn sum<'a>(stacks: impl Iterator<Item = &'a Sampled>) -> StandsFor {
    let mut sum = StandsFor::default();
    stacks.for_each(|sampled| sum.add(sampled.waits));
    sum
}
