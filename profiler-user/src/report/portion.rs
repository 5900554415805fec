//! Which part of a stall a culprit stands for, by the stacks that show it.

use super::account::Part;
use super::schema::stall::PartOfStall;
use crate::turn::{Sampled, ThreadState};

/// Which part of a stall a culprit stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Portion {
    /// Whose stacks show it.
    pub tid: u32,
    pub time_ns: u64,
    pub part: PartOfStall,
}

impl Portion {
    /// The portion of a part that these stacks show. `is_of_loop`: they are those of the thread that stalled;
    /// where it waited for another, it was blocked whatever that one did.
    pub fn of(stacks: &[&Sampled], tid: u32, time_ns: u64, is_of_loop: bool) -> Self {
        let running = stacks.iter().filter(|sampled| Part::Running.shows(sampled));
        let running_ns: u64 = sum(running.map(|sampled| sampled.time_ns));
        let all_ns = sum(stacks.iter().map(|sampled| sampled.time_ns));
        // Where nothing was timed, the first stack decides, as for the culprit.
        let first_runs = stacks.first().is_some_and(|first| Part::Running.shows(first));
        let is_running = if all_ns > 0 { running_ns > all_ns / 2 } else { first_runs };
        let part = match is_of_loop && is_running {
            true => PartOfStall::Running,
            false => PartOfStall::Blocked,
        };
        Self { tid, time_ns, part }
    }

    /// The portion of a thread that was away from its loop all the while.
    pub fn of_away(tid: u32, time_ns: u64, state: ThreadState) -> Self {
        let part = match state {
            ThreadState::RunningUser | ThreadState::RunningKernel => PartOfStall::Running,
            ThreadState::Runnable => PartOfStall::Runnable,
            ThreadState::Blocked | ThreadState::Stopped => PartOfStall::Blocked,
        };
        Self { tid, time_ns, part }
    }
}

fn sum(times: impl Iterator<Item = u64>) -> u64 {
    times.fold(0, u64::saturating_add)
}
