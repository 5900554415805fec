//! A report to its line of JSON, short enough to survive on its way to whoever reads it.
//!
//! Syslog daemons cut lines at 8 KiB, container runtimes at 16 KiB, journald at 48 KiB, and a line that was cut is no
//! JSON. What stays, in this order: cause, culprit and the innermost frames; of the application's frames the innermost
//! and the outermost eight; what the culprit called; the kernel's frames; the heaviest other stacks, one frame each; the
//! interpreted frames that led to the culprit; more other stacks; the interpreter's own code ([`stacks`]). Where all else
//! is too long as well, lists and texts are cut ([`shrink`]). Whatever goes is counted in `omitted`. Pure: what is
//! remembered is which stacks a stall's lines had.

mod shrink;
mod stacks;
mod told;

use self::stacks::Outline;
use self::told::ToldStacks;
use super::Report;
use super::schema::session::StackCounts;
use super::schema::stall::StallLine;

/// What a line takes by default: whatever cuts lines leaves this one whole, with room for a header of syslog's.
pub const LINE_LIMIT_BYTES: usize = 8000;

/// With less, lines of a hostile target's words could not have cause and culprit: `PIPE_BUF`, what a pipe takes in
/// one piece.
pub const LEAST_LINE_LIMIT_BYTES: usize = 4096;

/// How lines are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// With the line feed.
    pub line_bytes: Option<usize>,
    pub stacks: StackCounts,
}

impl Default for Limits {
    fn default() -> Self {
        Self { line_bytes: Some(LINE_LIMIT_BYTES), stacks: StackCounts::App }
    }
}

/// Makes lines, and remembers what those of stalls that still last have told.
#[derive(Debug)]
pub struct Fitter {
    limits: Limits,
    told: ToldStacks,
}

impl Fitter {
    pub fn new(limits: Limits) -> Self {
        Self { limits, told: ToldStacks::default() }
    }

    /// The line, with its line feed.
    pub fn line(&mut self, report: &Report) -> serde_json::Result<String> {
        let limit = self.limits.line_bytes.unwrap_or(usize::MAX);
        let stall = match report {
            Report::StallOpen(line) | Report::StallUpdate(line) | Report::StallEnd(line) => line,
            _ => return finished(serde_json::to_string(report)?, report, limit),
        };
        if self.limits.stacks == StackCounts::Full {
            let whole = serde_json::to_string(report)?;
            if whole.len() < limit {
                return Ok(whole + "\n");
            }
        }
        let is_over = matches!(report, Report::StallEnd(_));
        let remembers = self.limits.stacks == StackCounts::App && !is_over;
        let outline = match self.limits.stacks {
            StackCounts::None => Outline::none(stall),
            StackCounts::App if remembers => {
                Outline::of(stall, |key, form| self.told.has(&stall.stall.id, key, form))
            }
            StackCounts::App | StackCounts::Full => Outline::of(stall, |_, _| false),
        };
        let (text, shortened, written) = within(report, stall, &outline, limit)?;
        if is_over {
            self.told.forget(&stall.stall.id);
        } else if remembers {
            self.told.add(&stall.stall.id, written);
        }
        finished(text, &shortened, limit)
    }
}

/// As much of the outline as there is room for, and at least what never goes.
fn within(
    report: &Report,
    line: &StallLine,
    outline: &Outline<'_>,
    limit: usize,
) -> serde_json::Result<(String, Report, Vec<stacks::Written>)> {
    let mut count = outline.len();
    loop {
        let (stacks, omitted) = outline.first(count);
        let shortened = with_stacks(report, line, stacks, omitted);
        let text = serde_json::to_string(&shortened)?;
        let excess = (text.len() + 1).saturating_sub(limit);
        let fewer = outline.without(count, excess);
        if excess == 0 || fewer == count {
            return Ok((text, shortened, outline.written(count)));
        }
        count = fewer;
    }
}

/// The same moment with other stacks.
fn with_stacks(
    report: &Report,
    line: &StallLine,
    stacks: Vec<super::schema::stall::ReportedStack>,
    omitted: Vec<(&'static str, u64)>,
) -> Report {
    let mut common = line.common.clone();
    let counted = omitted.into_iter().filter(|(_, count)| *count > 0);
    common.omitted.extend(counted.map(|(what, count)| (what.to_owned(), count)));
    let shortened = Box::new(StallLine {
        common,
        stall: line.stall.clone(),
        thread: line.thread.clone(),
        runtime: line.runtime.clone(),
        cause: line.cause.clone(),
        culprit: line.culprit.clone(),
        task: line.task.clone(),
        advice: line.advice.clone(),
        stacks,
        gaps: line.gaps.clone(),
        lost: line.lost.iter().filter(|(_, count)| **count > 0).map(owned).collect(),
    });
    match report {
        Report::StallOpen(_) => Report::StallOpen(shortened),
        Report::StallUpdate(_) => Report::StallUpdate(shortened),
        _ => Report::StallEnd(shortened),
    }
}

fn owned((reason, count): (&String, &u64)) -> (String, u64) {
    (reason.clone(), *count)
}

/// The line of a report's JSON, cut where it is still too long.
fn finished(mut text: String, report: &Report, limit: usize) -> serde_json::Result<String> {
    if text.len() >= limit {
        text = shrink::to(serde_json::to_value(report)?, limit.saturating_sub(1))?;
    }
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests;
