//! A session's lines to the life of each stall: opened, updated, ended; and what contradicts itself there.

use std::collections::BTreeMap;

use crate::failure::Failure;
use crate::report::{Arrived, Report, ReportExt as _, Severity, StallExt as _, StallLine};

/// The lines of one stall, in order of arrival.
#[derive(Debug, Default)]
pub struct Life<'a> {
    pub opened: Option<(u64, &'a StallLine)>,
    pub ended: Option<(u64, &'a StallLine)>,
    lines: Vec<(u64, Moment, &'a StallLine)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    Open,
    Update,
    End,
}

/// Every stall of a session by its id.
pub fn of(lines: &[Arrived]) -> BTreeMap<&str, Life<'_>> {
    let mut lives: BTreeMap<&str, Life<'_>> = BTreeMap::new();
    for arrived in lines {
        let (moment, stall) = match &arrived.line {
            Report::StallOpen(stall) => (Moment::Open, stall),
            Report::StallUpdate(stall) => (Moment::Update, stall),
            Report::StallEnd(stall) => (Moment::End, stall),
            Report::SessionStart(_) | Report::Stats(_) | Report::SessionEnd(_) => continue,
        };
        let life = lives.entry(&stall.stall.id).or_default();
        life.lines.push((arrived.at_ns, moment, stall));
        match moment {
            Moment::Open => life.opened = life.opened.or(Some((arrived.at_ns, stall))),
            Moment::Update => {}
            Moment::End => life.ended = life.ended.or(Some((arrived.at_ns, stall))),
        }
    }
    lives
}

impl Life<'_> {
    /// What the lines of this stall say against each other.
    pub fn contradictions(&self, id: &str) -> Vec<Failure> {
        let mut failures = Vec::new();
        let mut wrong = |what| failures.push(Failure::Disordered { stall: id.to_owned(), what });
        if self.ended.is_none() {
            wrong("was never ended");
        }
        for pair in self.lines.windows(2) {
            let [(_, before, earlier), (_, after, later)] = pair else { continue };
            match (before, after) {
                (Moment::End, Moment::End) => wrong("ended twice"),
                (Moment::Open, Moment::Open) => wrong("opened twice"),
                (Moment::End, _) => wrong("went on after its end"),
                (Moment::Update, Moment::Open) => wrong("was updated before it was opened"),
                _ => {}
            }
            if later.stall.duration_ns < earlier.stall.duration_ns {
                wrong("grew shorter");
            }
            let start = |line: &StallLine| (line.stall.start_monotonic_ns, line.thread.tid);
            if start(earlier) != start(later) {
                wrong("changed its start or its thread");
            }
        }
        failures.extend(self.lines.iter().filter_map(|(_, _, line)| sum_differs(line)));
        failures
    }
}

fn sum_differs(line: &StallLine) -> Option<Failure> {
    let (sum_ns, duration_ns) = (line.sum_ns(), line.stall.duration_ns);
    let stall = line.stall.id.clone();
    (sum_ns != duration_ns).then_some(Failure::SumDiffers { stall, sum_ns, duration_ns })
}

/// What is wrong with the session as a whole, whatever its stalls.
pub fn broken_contract(lines: &[Arrived]) -> Vec<Failure> {
    let mut failures = Vec::new();
    let mut wrong = |sentence: String| failures.push(Failure::Contract(sentence));
    let starts = |line: &Arrived| matches!(line.line, Report::SessionStart(_));
    let ends = |line: &Arrived| matches!(line.line, Report::SessionEnd(_));

    if !lines.first().is_some_and(starts) || lines.iter().filter(|line| starts(line)).count() != 1 {
        wrong("session_start is not the one first line".to_owned());
    }
    if !lines.last().is_some_and(ends) || lines.iter().filter(|line| ends(line)).count() != 1 {
        wrong("session_end is not the one last line".to_owned());
    }
    let first = lines.first().map(|first| first.line.common());
    for Arrived { line, .. } in lines {
        let common = line.common();
        if first.is_some_and(|first| {
            (&first.session, first.process.pid) != (&common.session, common.process.pid)
        }) {
            wrong("a line belongs to another session or process".to_owned());
        }
        if !is_rfc3339_microseconds(&common.timestamp) {
            wrong(format!("timestamp {} is not RFC 3339 in UTC with µs", common.timestamp));
        }
        if common.message.is_empty() || common.message.contains('\n') {
            wrong(format!("message {:?} is not one sentence", common.message));
        }
        let is_calm = common.severity == Severity::Info;
        if is_calm == line.stall().is_some() {
            wrong(format!("severity {:?} does not fit: {}", common.severity, common.message));
        }
    }
    failures
}

/// `2026-11-21T05:00:00.000001Z`
fn is_rfc3339_microseconds(text: &str) -> bool {
    const SHAPE: &str = "dddd-dd-ddTdd:dd:dd.ddddddZ";
    text.len() == SHAPE.len()
        && text.bytes().zip(SHAPE.bytes()).all(|(byte, shape)| match shape {
            b'd' => byte.is_ascii_digit(),
            _ => byte == shape,
        })
}

#[cfg(test)]
mod tests {
    use super::{broken_contract, is_rfc3339_microseconds, of};
    use crate::report::tests::{arrived, session_end, session_start, stall};
    use crate::report::{Arrived, Report, Severity};

    fn open(at_ns: u64, duration_ns: u64) -> Arrived {
        arrived(at_ns, Report::StallOpen(stall("7", 100, duration_ns, "pay")))
    }

    fn update(at_ns: u64) -> Arrived {
        arrived(at_ns, Report::StallUpdate(stall("7", 100, 60, "pay")))
    }

    fn end(at_ns: u64, duration_ns: u64) -> Arrived {
        arrived(at_ns, Report::StallEnd(stall("7", 100, duration_ns, "pay")))
    }

    fn contradictions(lines: &[Arrived]) -> Vec<String> {
        let lives = of(lines);
        lives["7"].contradictions("7").iter().map(ToString::to_string).collect()
    }

    /// Opened, updated, ended is a life without contradiction; so is an end that stands alone.
    #[test]
    fn a_whole_life_is_fine() {
        assert_eq!(contradictions(&[open(1, 50), update(2), end(3, 70)]), [""; 0]);
        assert_eq!(contradictions(&[end(3, 70)]), [""; 0]);
    }

    /// Each way in which the lines of a stall can contradict each other is told.
    #[test]
    fn each_contradiction_is_told() {
        let moved = arrived(3, Report::StallEnd(stall("7", 101, 70, "pay")));
        assert_eq!(contradictions(&[open(1, 50)]), ["stall 7: was never ended"]);
        assert_eq!(contradictions(&[end(1, 60), open(2, 60)]), ["stall 7: went on after its end"]);
        assert_eq!(contradictions(&[end(1, 60), end(2, 60)]), ["stall 7: ended twice"]);
        assert_eq!(
            contradictions(&[open(1, 60), open(2, 60), end(3, 60)]),
            ["stall 7: opened twice"]
        );
        assert_eq!(
            contradictions(&[update(1), open(2, 60), end(3, 60)]),
            ["stall 7: was updated before it was opened"]
        );
        assert_eq!(contradictions(&[open(1, 60), end(2, 50)]), ["stall 7: grew shorter"]);
        assert_eq!(
            contradictions(&[open(1, 60), moved]),
            ["stall 7: changed its start or its thread"]
        );
    }

    /// One nanosecond that belongs to no state is one too many, on any line of the stall.
    #[test]
    fn the_sum_is_exact() {
        let mut longer = stall("7", 100, 60, "pay");
        longer.stall.time.runnable_ns = 1;
        let lines = [arrived(1, Report::StallOpen(longer)), end(2, 60)];
        assert_eq!(contradictions(&lines), ["stall 7: states sum to 61 ns, duration is 60 ns"]);
    }

    /// A session has one start before everything and one end after everything, and one name.
    #[test]
    fn a_session_is_framed() {
        let (start, last) = (arrived(0, session_start()), arrived(9, session_end()));
        assert_eq!(broken_contract(&[start.clone(), open(1, 50), end(2, 60), last.clone()]), []);

        let unframed = broken_contract(&[open(1, 50), start.clone()]);
        assert_eq!(unframed.len(), 2, "{unframed:?}");

        let mut stranger = stall("7", 100, 60, "pay");
        stranger.common.session = "other".to_owned();
        stranger.common.message.clear();
        stranger.common.severity = Severity::Info;
        stranger.common.timestamp = "yesterday".to_owned();
        let stranger = arrived(2, Report::StallEnd(stranger));
        assert_eq!(broken_contract(&[start, stranger, last]).len(), 4);
    }

    /// Microseconds and UTC, nothing else.
    #[test]
    fn timestamps_have_one_shape() {
        assert!(is_rfc3339_microseconds("2026-11-21T05:00:00.000001Z"));
        for wrong in ["2026-11-21T05:00:00.001Z", "2026-11-21T05:00:00.000001+00:00", "", "now"] {
            assert!(!is_rfc3339_microseconds(wrong), "{wrong}");
        }
    }
}
