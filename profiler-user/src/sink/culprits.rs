//! The stalls of a session to a table of what was to blame: how often, for how long, and the worst of them.

use super::page::{Page, Style, shortened};
use super::words::rounded;
use crate::report::message::place;
use crate::report::schema::stall::{CauseKind, StallLine};

/// Rows told apart. Of a program that is slow in more places, the rest is one row.
const MOST: usize = 1024;

/// Rows shown.
const SHOWN: usize = 10;

/// What is known of the stalls with one culprit.
#[derive(Debug)]
struct Entry {
    /// The function and its file, or the cause where no line is to blame.
    who: String,
    /// The same with the line of the longest.
    place: String,
    stalls: u64,
    total_ns: u64,
    worst_ns: u64,
}

/// The stalls so far.
#[derive(Debug, Default)]
pub struct Culprits {
    entries: Vec<Entry>,
    /// Stalls that found no room.
    others: u64,
}

impl Culprits {
    /// Counts a stall that is over. A culprit has the part of it that it stands for.
    pub fn observe(&mut self, line: &StallLine) {
        let (who, place, time_ns) = match &line.culprit {
            Some(culprit) => {
                let file = culprit.file.as_deref().or(culprit.module.as_deref());
                let function = culprit.function.as_deref().unwrap_or_default();
                let who = format!("{function} {}", file.unwrap_or_default());
                (who, place(culprit), culprit.time_ns)
            }
            None => {
                let name = nobody(&line.cause.kind).to_owned();
                (name.clone(), name, line.stall.duration_ns)
            }
        };
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.who == who) {
            entry.stalls += 1;
            entry.total_ns = entry.total_ns.saturating_add(time_ns);
            if time_ns > entry.worst_ns {
                (entry.worst_ns, entry.place) = (time_ns, place);
            }
        } else if self.entries.len() < MOST {
            let (total_ns, worst_ns) = (time_ns, time_ns);
            self.entries.push(Entry { who, place, stalls: 1, total_ns, worst_ns });
        } else {
            self.others += 1;
        }
    }

    /// Writes the table, most time first.
    pub fn table(&self, page: &mut Page) {
        if self.entries.is_empty() {
            return;
        }
        let mut entries: Vec<&Entry> = self.entries.iter().collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.total_ns));
        let head = format!("{:>6}  {:>9}  {:>9}  to blame", "stalls", "total", "worst");
        page.label("culprits").put(Style::Dim, &head).end_line();
        let columns = page.room().saturating_sub(6 + 2 + 9 + 2 + 9 + 2);
        for entry in entries.iter().take(SHOWN) {
            let (total, worst) = (rounded(entry.total_ns), rounded(entry.worst_ns));
            let figures = format!("{:>6}  {total:>9}  {worst:>9}  ", entry.stalls);
            page.label("").put(Style::Plain, &figures);
            page.put(Style::Culprit, &shortened(&entry.place, columns)).cut_line();
        }
        let left: u64 = entries.iter().skip(SHOWN).map(|entry| entry.stalls).sum();
        if left + self.others > 0 {
            let told = format!("{:>6}  of others", left + self.others);
            page.label("").put(Style::Dim, &told).end_line();
        }
    }
}

/// What to say where no line is to blame.
fn nobody(kind: &CauseKind) -> &'static str {
    match kind {
        CauseKind::RunQueue { .. } => "others had the CPU",
        CauseKind::CpuQuota { .. } => "the CPU quota was used up",
        CauseKind::Stopped { .. } => "stopped from outside",
        CauseKind::Memory { .. } => "the kernel was short of memory",
        CauseKind::Saturated { .. } => "many short callbacks",
        _ => "no line is known",
    }
}

#[cfg(test)]
mod tests {
    use super::{Culprits, MOST, SHOWN};
    use crate::report::schema::stall::{CauseKind, StallLine};
    use crate::report::{Report, sample};
    use crate::sink::page::{Colour, Page};
    use crate::turn::Moment;

    fn stall(function: &str, line_number: u32, time_ms: u64) -> StallLine {
        let Report::StallEnd(mut line) = sample::report(Moment::End, &sample::stall()) else {
            panic!("not an end")
        };
        let culprit = line.culprit.as_mut().unwrap();
        culprit.function = Some(function.to_owned());
        (culprit.line, culprit.time_ns) = (Some(line_number), time_ms * 1_000_000);
        *line
    }

    fn table(culprits: &Culprits) -> Vec<String> {
        let mut page = Page::new(Colour::Off, 80);
        culprits.table(&mut page);
        page.into_text().lines().map(str::to_owned).collect()
    }

    /// Each culprit has a row with its count, its time and its worst, and the line of that.
    #[test]
    fn rows() {
        let mut culprits = Culprits::default();
        assert_eq!(table(&culprits), [""; 0]);
        for (line, time_ms) in [(31, 100), (32, 300), (33, 200)] {
            culprits.observe(&stall("charge", line, time_ms));
        }
        culprits.observe(&stall("parse", 7, 42_000));
        let quota = CauseKind::CpuQuota {
            throttled_ns: None,
            quota_us: 1,
            period_us: 1,
            cgroup: "/".to_owned(),
        };
        let mut nobody = stall("", 0, 0);
        (nobody.culprit, nobody.cause.kind, nobody.stall.duration_ns) = (None, quota, 50_000_000);
        culprits.observe(&nobody);
        let expected = [
            "  culprits  stalls      total      worst  to blame",
            "                 1     42.0 s     42.0 s  parse (app.py:7)",
            "                 3     600 ms     300 ms  charge (app.py:32)",
            "                 1      50 ms      50 ms  the CPU quota was used up",
        ];
        assert_eq!(table(&culprits), expected);
    }

    /// The table is bounded, what it holds and what it shows, and nothing goes uncounted.
    #[test]
    fn bounded() {
        let mut culprits = Culprits::default();
        for n in 0..MOST + 9 {
            culprits.observe(&stall(&format!("f{n}"), 7, 1));
        }
        let rows = table(&culprits);
        assert_eq!(rows.len(), 1 + SHOWN + 1);
        let others = format!("{:>6}  of others", MOST + 9 - SHOWN);
        assert!(rows.last().is_some_and(|row| row.ends_with(&others)), "{rows:?}");
    }
}
