//! What a target recorded and what stalltrace reported, to a verdict. Pure: no clock, no process.

use std::fmt;

use crate::clock::{milliseconds, slowdown};
use crate::failure::Failure;
use crate::lives::{self, Life};
use crate::report::{Arrived, StallExt as _, StallLine, basename, file_of};
use crate::truth::Truth;

/// The difference that is allowed between two measurements of the same stall, on a machine without noise:
/// a hypervisor takes a CPU away for tens of ms between the target's clock and the kernel's, and nobody in
/// the guest sees it. Half of the default threshold: two turns are not taken for one another.
const EXACT_NS: u64 = 50_000_000;
/// How long after the threshold a stall may stay unreported, on a machine of usual speed.
const OPEN_WITHIN_NS: u64 = 250_000_000;
/// The first word on a short stall may come so long after its end: naming the first stack takes its time,
/// too, where others need the CPU.
const WORD_NS: u64 = 100_000_000;

/// How exact the reports must be.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub threshold_ns: u64,
    /// What the machine's own delays add to every measurement.
    pub noise_ns: u64,
}

/// A session from outside: the target's records, the lines, and from when to when it was attached.
#[derive(Debug, Clone, Copy)]
pub struct Observation<'a> {
    pub truths: &'a [Truth],
    pub lines: &'a [Arrived],
    pub from_ns: u64,
    pub until_ns: u64,
}

/// What came out.
#[derive(Debug, Default)]
pub struct Verdict {
    pub failures: Vec<Failure>,
    /// Reports that were held against a record of the target, number by number.
    pub confirmed: usize,
    /// Those of the confirmed of which no place was to be compared, as others had the CPU.
    pub starved: usize,
    /// Reports of turns in which the target did nothing long itself, but whose lateness it noted.
    pub only_late: usize,
    /// The largest differences among the confirmed.
    pub start_apart_ns: u64,
    pub duration_apart_ns: u64,
    /// The longest that a stall went without a word.
    pub opened_after_ns: u64,
}

impl Verdict {
    pub fn is_right(&self) -> bool {
        self.failures.is_empty()
    }

    /// Whether the places of so many were compared that the verdict says something of them: of half.
    pub fn is_enough(&self) -> bool {
        self.starved * 2 <= self.confirmed
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} stalls confirmed", self.confirmed)?;
        if self.confirmed > 0 {
            let [start, duration, opened] =
                [self.start_apart_ns, self.duration_apart_ns, self.opened_after_ns]
                    .map(milliseconds);
            write!(to, " (starts within {start}, durations within {duration}, ")?;
            write!(to, "first word within {opened} of the start)")?;
        }
        if self.starved > 0 {
            write!(to, ", {} without a place as others had the CPU", self.starved)?;
        }
        if self.only_late > 0 {
            write!(to, ", {} only noted as late", self.only_late)?;
        }
        self.failures.iter().try_for_each(|failure| write!(to, "\n  wrong: {failure}"))
    }
}

/// Holds the reports against the records.
pub fn compare(seen: Observation<'_>, bounds: Bounds) -> Verdict {
    let mut verdict = Verdict::default();
    let lives = lives::of(seen.lines);
    for (id, life) in &lives {
        verdict.failures.extend(life.contradictions(id));
        if let Some((_, end)) = life.ended {
            judge(seen, bounds, life, end, &mut verdict);
        }
    }
    let ends: Vec<&StallLine> =
        lives.values().filter_map(|life| life.ended.map(|(_, end)| end)).collect();
    verdict.failures.extend(missed(seen, bounds, &ends));
    verdict.failures.extend(overlapping(&ends));
    verdict
}

/// A stall that the target recorded, as far as one report covers it. Several records are one where they
/// fell into one turn.
#[derive(Debug)]
struct Recorded<'a> {
    longest: &'a Truth,
    members: Vec<&'a Truth>,
    start_ns: u64,
    end_ns: u64,
}

impl<'a> Recorded<'a> {
    fn under(truths: &'a [Truth], report: &StallLine) -> Option<Self> {
        let (start_ns, end_ns) = (report.stall.start_monotonic_ns, report.end_ns());
        let members: Vec<&Truth> = truths
            .iter()
            .filter(|truth| !truth.is_lag() && mostly_covers(truth, start_ns, end_ns))
            .collect();
        Some(Self {
            longest: members.iter().max_by_key(|truth| truth.duration_ns())?,
            start_ns: members.iter().map(|truth| truth.start_ns).min()?,
            end_ns: members.iter().map(|truth| truth.end_ns).max()?,
            members,
        })
    }

    /// How much of it there was to see.
    fn visible_ns(&self, seen: Observation<'_>) -> u64 {
        self.end_ns.min(seen.until_ns).saturating_sub(self.start_ns.max(seen.from_ns))
    }
}

/// Whether the record and the interval are about the same turn: half of the shorter is in the longer.
fn mostly_covers(truth: &Truth, start_ns: u64, end_ns: u64) -> bool {
    let shorter_ns = truth.duration_ns().min(end_ns.saturating_sub(start_ns));
    shorter_ns > 0 && truth.overlap_ns(start_ns, end_ns) >= shorter_ns / 2
}

fn judge(
    seen: Observation<'_>,
    bounds: Bounds,
    life: &Life<'_>,
    end: &StallLine,
    verdict: &mut Verdict,
) {
    let failures = &mut verdict.failures;
    let whole = end.stall.start_known && end.stall.end_known;
    if whole && end.stall.duration_ns < bounds.threshold_ns {
        failures.push(Failure::BelowThreshold {
            stall: end.stall.id.clone(),
            duration_ns: end.stall.duration_ns,
            threshold_ns: bounds.threshold_ns,
        });
    }
    let explained_ns = explained_ns(seen.truths, end.stall.start_monotonic_ns, end.end_ns());
    // What the target does around a stall takes up to the noise, and no more than a fifth.
    let unexplained_ns = end.stall.duration_ns.saturating_sub(explained_ns);
    if unexplained_ns > end.stall.duration_ns / 5 {
        failures.push(Failure::Invented {
            stall: end.stall.id.clone(),
            duration_ns: end.stall.duration_ns,
            explained_ns,
            culprit: blamed(end),
        });
        return;
    }
    let recorded = Recorded::under(seen.truths, end);
    // Below the threshold the target did not stall by itself: something made its turn longer.
    let Some(recorded) = recorded.filter(|r| r.longest.duration_ns() >= bounds.threshold_ns) else {
        verdict.only_late += 1;
        return;
    };
    failures.extend(wrong_times(&recorded, end, bounds));
    failures.extend(wrong_culprit(&recorded, end));
    failures.extend(opened_late(&recorded, seen, life, bounds));
    verdict.measure(&recorded, seen, life, end);
}

impl Verdict {
    /// Counts a confirmed report, and remembers how far it was from the record.
    fn measure(
        &mut self,
        recorded: &Recorded<'_>,
        seen: Observation<'_>,
        life: &Life<'_>,
        end: &StallLine,
    ) {
        self.confirmed += 1;
        self.starved += usize::from(has_no_place(end));
        if end.stall.start_known && end.stall.end_known {
            let start_ns = end.stall.start_monotonic_ns.abs_diff(recorded.start_ns);
            let lasted_ns = recorded.end_ns.saturating_sub(recorded.start_ns);
            let duration_ns = end.stall.duration_ns.abs_diff(lasted_ns);
            self.start_apart_ns = self.start_apart_ns.max(start_ns);
            self.duration_apart_ns = self.duration_apart_ns.max(duration_ns);
        }
        if let Some((at_ns, _)) = life.opened {
            let after_ns = at_ns.saturating_sub(recorded.start_ns.max(seen.from_ns));
            self.opened_after_ns = self.opened_after_ns.max(after_ns);
        }
    }
}

/// How much of an interval the records cover together.
fn explained_ns(truths: &[Truth], start_ns: u64, end_ns: u64) -> u64 {
    let mut spans: Vec<(u64, u64)> = truths
        .iter()
        .map(|truth| (truth.start_ns.max(start_ns), truth.end_ns.min(end_ns)))
        .filter(|(from, to)| from < to)
        .collect();
    spans.sort_unstable();
    let mut covered_until_ns = start_ns;
    let mut covered_ns = 0;
    for (from, to) in spans {
        covered_ns += to.saturating_sub(from.max(covered_until_ns));
        covered_until_ns = covered_until_ns.max(to);
    }
    covered_ns
}

/// Start and duration where they are known; where they are not, the report must keep within the record.
fn wrong_times(recorded: &Recorded<'_>, end: &StallLine, bounds: Bounds) -> Vec<Failure> {
    let bound_ns = EXACT_NS + bounds.noise_ns;
    let (id, kind) = (end.stall.id.clone(), recorded.longest.kind.clone());
    let mut failures = Vec::new();
    let (reported_ns, recorded_ns) = (end.stall.start_monotonic_ns, recorded.start_ns);
    let start_is_wrong = if end.stall.start_known {
        reported_ns.abs_diff(recorded_ns) > bound_ns
    } else {
        // A lower bound: it may begin later than the stall, not before it.
        reported_ns + bound_ns < recorded_ns
    };
    if start_is_wrong {
        let (stall, kind) = (id.clone(), kind.clone());
        failures.push(Failure::WrongStart { stall, kind, reported_ns, recorded_ns });
    }
    // From the same start, the ends differ as the durations do.
    let start_ns = if end.stall.start_known { recorded.start_ns } else { reported_ns };
    let recorded_ns = recorded.end_ns.saturating_sub(start_ns);
    let reported_ns = end.stall.duration_ns;
    let duration_is_wrong = if end.stall.end_known {
        reported_ns.abs_diff(recorded_ns) > bound_ns
    } else {
        reported_ns > recorded_ns + bound_ns
    };
    if duration_is_wrong {
        failures.push(Failure::WrongDuration {
            stall: id,
            kind,
            reported_ns,
            recorded_ns,
            bound_ns,
        });
    }
    failures
}

/// Whoever had the CPU instead is to blame, and no line of the target.
fn has_no_place(end: &StallLine) -> bool {
    end.culprit.is_none() && end.is_starved()
}

/// The function, the file and the line of a record that fell into the turn: of the longest, or of one
/// nearly as long.
fn wrong_culprit(recorded: &Recorded<'_>, end: &StallLine) -> Option<Failure> {
    if has_no_place(end) {
        return None;
    }
    let long_ns = recorded.longest.duration_ns() / 10 * 8;
    let mut suspects = recorded.members.iter().filter(|truth| truth.duration_ns() >= long_ns);
    if suspects.any(|truth| is_blamed(truth, end)) {
        return None;
    }
    let truth = recorded.longest;
    Some(Failure::WrongCulprit {
        stall: end.stall.id.clone(),
        recorded: place(truth.function.as_deref(), truth.file.as_deref(), truth.line),
        reported: blamed(end),
    })
}

fn is_blamed(truth: &Truth, end: &StallLine) -> bool {
    let Some(function) = truth.function.as_deref() else { return true };
    let Some(culprit) = &end.culprit else { return false };
    let same_file =
        truth.file.as_deref().is_none_or(|file| file_of(culprit) == Some(basename(file)));
    culprit.function.as_deref() == Some(function) && same_file && truth.blocks_at(culprit.line)
}

fn blamed(end: &StallLine) -> String {
    end.culprit.as_ref().map_or_else(
        || "nothing".to_owned(),
        |culprit| place(culprit.function.as_deref(), culprit.file.as_deref(), culprit.line),
    )
}

fn place(function: Option<&str>, file: Option<&str>, line: Option<u32>) -> String {
    let line = line.map_or_else(|| "?".to_owned(), |line| line.to_string());
    format!("{} ({}:{line})", function.unwrap_or("?"), file.map_or("?", basename))
}

/// The first word must come soon after the threshold passes, and while the stall still lasts or just after.
fn opened_late(
    recorded: &Recorded<'_>,
    seen: Observation<'_>,
    life: &Life<'_>,
    bounds: Bounds,
) -> Option<Failure> {
    if recorded.visible_ns(seen) < 2 * bounds.threshold_ns {
        return None;
    }
    let (stall, kind) = (life.ended?.1.stall.id.clone(), recorded.longest.kind.clone());
    let Some((at_ns, _)) = life.opened else {
        return Some(Failure::NeverOpened { stall, kind });
    };
    let from_ns = recorded.start_ns.max(seen.from_ns);
    let lasted_ns = recorded.end_ns.saturating_sub(from_ns);
    // Naming is work, which an emulated machine does slower.
    let slower = u64::from(slowdown());
    let soon_ns = bounds.threshold_ns + OPEN_WITHIN_NS * slower;
    let allowed_ns = soon_ns.min(lasted_ns + WORD_NS * slower) + bounds.noise_ns;
    let after_ns = at_ns.saturating_sub(from_ns);
    (after_ns > allowed_ns).then_some(Failure::OpenedLate { stall, kind, after_ns, allowed_ns })
}

/// Every stall that was visible for twice the threshold must be in some report.
fn missed(seen: Observation<'_>, bounds: Bounds, ends: &[&StallLine]) -> Vec<Failure> {
    let mut failures = Vec::new();
    for truth in seen.truths.iter().filter(|truth| !truth.is_lag()) {
        let visible_ns = truth.overlap_ns(seen.from_ns, seen.until_ns);
        let is_reported =
            ends.iter().any(|end| mostly_covers(truth, end.stall.start_monotonic_ns, end.end_ns()));
        if visible_ns >= 2 * bounds.threshold_ns && !is_reported {
            let (kind, start_ns) = (truth.kind.clone(), truth.start_ns);
            failures.push(Failure::Missed { kind, start_ns, visible_ns });
        }
    }
    failures
}

/// A thread is in one turn at a time.
fn overlapping(ends: &[&StallLine]) -> Vec<Failure> {
    let mut in_time: Vec<&StallLine> = ends.to_vec();
    in_time.sort_by_key(|end| (end.thread.tid, end.stall.start_monotonic_ns));
    let pairs = in_time.windows(2).filter_map(|pair| <&[&StallLine; 2]>::try_from(pair).ok());
    pairs
        .filter(|[a, b]| a.thread.tid == b.thread.tid && b.stall.start_monotonic_ns < a.end_ns())
        .map(|[a, b]| Failure::Overlapping { stall: a.stall.id.clone(), other: b.stall.id.clone() })
        .collect()
}

#[cfg(test)]
mod tests;
