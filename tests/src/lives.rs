//! A session's lines to the life of each stall: opened, updated, ended; and what contradicts itself there.

use std::collections::BTreeMap;

use crate::failure::Failure;
use crate::report::{Arrived, Event, SCHEMA, StallLine};

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
        let (moment, stall) = match &arrived.line.event {
            Event::StallOpen(stall) => (Moment::Open, stall),
            Event::StallUpdate(stall) => (Moment::Update, stall),
            Event::StallEnd(stall) => (Moment::End, stall),
            Event::SessionStart(_) | Event::Stats(_) | Event::SessionEnd(_) => continue,
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
    let (sum_ns, duration_ns) = (line.stall.time.sum_ns(), line.stall.duration_ns);
    let stall = line.stall.id.clone();
    (sum_ns != duration_ns).then_some(Failure::SumDiffers { stall, sum_ns, duration_ns })
}

/// What is wrong with the session as a whole, whatever its stalls.
pub fn broken_contract(lines: &[Arrived]) -> Vec<Failure> {
    let mut failures = Vec::new();
    let mut wrong = |sentence: String| failures.push(Failure::Contract(sentence));
    let starts = |line: &Arrived| matches!(line.line.event, Event::SessionStart(_));
    let ends = |line: &Arrived| matches!(line.line.event, Event::SessionEnd(_));

    if !lines.first().is_some_and(starts) || lines.iter().filter(|line| starts(line)).count() != 1 {
        wrong("session_start is not the one first line".to_owned());
    }
    if !lines.last().is_some_and(ends) || lines.iter().filter(|line| ends(line)).count() != 1 {
        wrong("session_end is not the one last line".to_owned());
    }
    for Arrived { line, .. } in lines {
        if line.schema != SCHEMA {
            wrong(format!("schema is {}", line.schema));
        }
        if lines.first().is_some_and(|first| {
            (&first.line.session, first.line.process.pid) != (&line.session, line.process.pid)
        }) {
            wrong("a line belongs to another session or process".to_owned());
        }
        if !is_rfc3339_microseconds(&line.timestamp) {
            wrong(format!("timestamp {} is not RFC 3339 in UTC with µs", line.timestamp));
        }
        if line.message.is_empty() || line.message.contains('\n') {
            wrong(format!("message {:?} is not one sentence", line.message));
        }
        let usual = if line.stall().is_some() { ["WARN", "ERROR"] } else { ["INFO", "INFO"] };
        if !usual.contains(&line.severity.as_str()) {
            wrong(format!("severity {} does not fit: {}", line.severity, line.message));
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
    use crate::report::Arrived;
    use crate::report::tests::{arrived, stall};

    fn open(at_ns: u64, duration_ns: u64) -> Arrived {
        arrived(at_ns, "stall_open", &stall("7", 100, duration_ns, "pay"))
    }

    fn end(at_ns: u64, duration_ns: u64) -> Arrived {
        arrived(at_ns, "stall_end", &stall("7", 100, duration_ns, "pay"))
    }

    fn contradictions(lines: &[Arrived]) -> Vec<String> {
        let lives = of(lines);
        lives["7"].contradictions("7").iter().map(ToString::to_string).collect()
    }

    /// Opened, updated, ended is a life without contradiction; so is an end that stands alone.
    #[test]
    fn a_whole_life_is_fine() {
        let update = arrived(2, "stall_update", &stall("7", 100, 60, "pay"));
        assert_eq!(contradictions(&[open(1, 50), update, end(3, 70)]), [""; 0]);
        assert_eq!(contradictions(&[end(3, 70)]), [""; 0]);
    }

    /// Each way in which the lines of a stall can contradict each other is told.
    #[test]
    fn each_contradiction_is_told() {
        let update = |at_ns| arrived(at_ns, "stall_update", &stall("7", 100, 60, "pay"));
        let moved = arrived(3, "stall_end", &stall("7", 101, 70, "pay"));
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
        let text = stall("7", 100, 60, "pay").replace("\"runnable_ns\":0", "\"runnable_ns\":1");
        let lines = [arrived(1, "stall_open", &text), end(2, 60)];
        assert_eq!(contradictions(&lines), ["stall 7: states sum to 61 ns, duration is 60 ns"]);
    }

    /// A session has one start before everything and one end after everything, and one name.
    #[test]
    fn a_session_is_framed() {
        let start = arrived(0, "session_start", r#""wait_hooks":"fentry""#);
        let last = arrived(9, "session_end", r#""reason":"signal""#);
        let calm = |mut line: Arrived| {
            line.line.severity = "INFO".to_owned();
            line
        };
        let (start, last) = (calm(start), calm(last));
        assert_eq!(broken_contract(&[start.clone(), open(1, 50), end(2, 60), last.clone()]), []);

        let unframed = broken_contract(&[open(1, 50), start.clone()]);
        assert_eq!(unframed.len(), 2, "{unframed:?}");

        let mut stranger = end(2, 60);
        stranger.line.session = "other".to_owned();
        stranger.line.message.clear();
        stranger.line.severity = "INFO".to_owned();
        stranger.line.timestamp = "yesterday".to_owned();
        stranger.line.schema = "stalltrace/2".to_owned();
        assert_eq!(broken_contract(&[start, stranger, last]).len(), 5);
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
