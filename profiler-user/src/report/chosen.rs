//! The parts of a stall to the lines that stand for them, and of these to the one to look at first.

use super::application::CodeOwner;
use super::cause::verdict::Conclusion;
use super::culprit;
use super::portion::Portion;
use super::schema::stall::{Culprit, ReportedComponent};
use crate::turn::Sampled;

/// A part that is not the longest has a culprit of its own from this fraction of the threshold on. Of the
/// stall it is a tenth at least, or it would not be listed.
const THRESHOLD_FRACTION: u64 = 2;

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
    verdict: &mut Conclusion<'_>,
    owner: &CodeOwner<'_>,
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
    let lasted = |part: &&ReportedComponent| part.time_ns >= threshold_ns / THRESHOLD_FRACTION;
    let lasted = verdict.cause.also.iter().filter(lasted);
    let culprit = lasted.filter_map(|part| part.culprit.clone()).next()?;
    Some(Chosen { culprit, is_of_cause: false })
}
