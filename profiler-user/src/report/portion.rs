//! The parts of a stall to the lines that stand for them, and of these to the one to look at first.

use super::account::Part;
use super::application::Owner;
use super::cause::Verdict;
use super::culprit;
use super::schema::stall::{Component, Culprit, PartOfStall};
use crate::turn::{Sampled, ThreadState};

/// A part that is not the longest has a culprit of its own from this fraction of the threshold on. Of the
/// stall it is a tenth at least, or it would not be listed.
const THRESHOLD_FRACTION: u64 = 2;

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

/// The line of a stall to look at first.
#[derive(Debug)]
pub struct Chosen {
    pub culprit: Culprit,
    /// It is of the part that is the cause.
    pub is_of_cause: bool,
}

/// Gives each part its line, and chooses: the line of the longest part that has one, be it the cause or
/// another that lasted long enough.
pub fn choose(
    verdict: &mut Verdict<'_>,
    owner: &Owner<'_>,
    loop_tid: u32,
    threshold_ns: u64,
) -> Option<Chosen> {
    let line = |evidence: &[&Sampled], blamed: u32, time_ns: u64| {
        let portion = Portion::of(evidence, blamed, time_ns, blamed == loop_tid);
        culprit::find(evidence, owner, portion)
    };
    for (part, (evidence, blamed)) in verdict.cause.also.iter_mut().zip(&verdict.also) {
        part.culprit = line(evidence, *blamed, part.time_ns);
    }
    if let Some(culprit) = line(&verdict.evidence, verdict.blamed, verdict.cause.time_ns) {
        return Some(Chosen { culprit, is_of_cause: true });
    }
    // Longest first.
    let lasted = |part: &&Component| part.time_ns >= threshold_ns / THRESHOLD_FRACTION;
    let lasted = verdict.cause.also.iter().filter(lasted);
    let culprit = lasted.filter_map(|part| part.culprit.clone()).next()?;
    Some(Chosen { culprit, is_of_cause: false })
}
