//! A session's ended stalls to its sums, and to the functions that cost most.

use super::Report;
use super::schema::session::{TopCulprit, Totals};
use super::schema::stall::{Culprit, StallLine};
use crate::gap::Gap;

/// Functions told apart in one session. A program whose stalls have more culprits than this is slow
/// everywhere; the sums still count them all.
const MAX_CULPRITS: usize = 1024;

/// Functions listed at the end of a session.
const TOP: usize = 10;

/// What a session's stalls add up to so far.
#[derive(Debug, Default)]
pub struct Tally {
    stalls: u64,
    stalled_ns: u64,
    longest_ns: u64,
    culprits: Vec<Entry>,
    /// Stalls whose culprit found no room.
    unlisted: u64,
    /// Stalls without a culprit.
    nameless: u64,
}

#[derive(Debug)]
struct Entry {
    culprit: Culprit,
    stalls: u64,
    stalled_ns: u64,
    longest_ns: u64,
}

impl Tally {
    /// Counts the end of a stall; other lines are about stalls that are still to end.
    pub fn observe(&mut self, report: &Report) {
        let Report::StallEnd(line) = report else { return };
        let duration_ns = line.stall.duration_ns;
        self.stalls += 1;
        self.stalled_ns = self.stalled_ns.saturating_add(duration_ns);
        self.longest_ns = self.longest_ns.max(duration_ns);
        self.blame(line);
    }

    /// A culprit has the part of the stall that it stands for, and no more.
    fn blame(&mut self, line: &StallLine) {
        let Some(culprit) = &line.culprit else {
            self.nameless += 1;
            return;
        };
        let time_ns = culprit.time_ns;
        let is_same = |entry: &&mut Entry| {
            entry.culprit.function == culprit.function && entry.culprit.file == culprit.file
        };
        if let Some(entry) = self.culprits.iter_mut().find(is_same) {
            entry.stalls += 1;
            entry.stalled_ns = entry.stalled_ns.saturating_add(time_ns);
            if time_ns > entry.longest_ns {
                entry.longest_ns = time_ns;
                entry.culprit = culprit.clone();
            }
        } else if self.culprits.len() < MAX_CULPRITS {
            let culprit = culprit.clone();
            let (stalled_ns, longest_ns) = (time_ns, time_ns);
            self.culprits.push(Entry { culprit, stalls: 1, stalled_ns, longest_ns });
        } else {
            self.unlisted += 1;
        }
    }

    /// The sums, given how many turns there were.
    pub fn totals(&self, turns: u64) -> Totals {
        let Self { stalls, stalled_ns, longest_ns, .. } = *self;
        Totals { turns, stalls, stalled_ns, longest_ns }
    }

    /// The functions that cost most, most stalled time first; what the list does not hold is told.
    pub fn top_culprits(&self, gaps: &mut Vec<Gap>) -> Vec<TopCulprit> {
        let mut entries: Vec<&Entry> = self.culprits.iter().collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.stalled_ns));
        if self.nameless > 0 {
            let reason = match self.nameless {
                1 => "1 stall has no culprit".to_owned(),
                many => format!("{many} stalls have no culprit"),
            };
            gaps.push(Gap::new("top_culprits", reason));
        }
        if self.unlisted > 0 {
            let reason = format!(
                "{} stalls of functions past the first {MAX_CULPRITS} are in the totals only",
                self.unlisted
            );
            gaps.push(Gap::new("top_culprits", reason));
        }
        let listed = entries.into_iter().take(TOP);
        let top = listed.map(|entry| TopCulprit {
            function: entry.culprit.function.clone(),
            file: entry.culprit.file.clone(),
            line: entry.culprit.line,
            stalls: entry.stalls,
            stalled_ns: entry.stalled_ns,
        });
        top.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_CULPRITS, Tally};
    use crate::report::Report;
    use crate::report::sample;
    use crate::turn::Moment;

    /// The end of a stall of this length, at this line of this function.
    fn ended(function: &str, line: u32, duration_ns: u64) -> Report {
        let mut report = sample::report(Moment::End, &sample::stall());
        if let Report::StallEnd(end) = &mut report {
            end.stall.duration_ns = duration_ns;
            if let Some(culprit) = &mut end.culprit {
                culprit.function = Some(function.to_owned());
                (culprit.line, culprit.time_ns) = (Some(line), duration_ns);
            }
        }
        report
    }

    /// Stalls of one function are one entry, at the line of the longest, and only ends count.
    #[test]
    fn equal_culprits_together() {
        let mut tally = Tally::default();
        tally.observe(&sample::report(Moment::Open, &sample::open_stall()));
        tally.observe(&ended("slow", 3, 100));
        tally.observe(&ended("slower", 9, 250));
        tally.observe(&ended("slow", 5, 200));
        let totals = tally.totals(77);
        assert_eq!((totals.turns, totals.stalls), (77, 3));
        assert_eq!((totals.stalled_ns, totals.longest_ns), (550, 250));

        let mut gaps = Vec::new();
        let top = tally.top_culprits(&mut gaps);
        let top: Vec<_> = top
            .iter()
            .map(|top| (top.function.as_deref(), top.line, top.stalls, top.stalled_ns))
            .collect();
        assert_eq!(top, [(Some("slow"), Some(5), 2, 300), (Some("slower"), Some(9), 1, 250)]);
        assert!(gaps.is_empty());
    }

    /// However many functions stall, memory is bounded, and what is left out is told.
    #[test]
    fn bounded() {
        let mut tally = Tally::default();
        for number in 0..MAX_CULPRITS + 3 {
            tally.observe(&ended(&format!("f{number}"), 1, 10));
        }
        let mut nameless = ended("f", 1, 10);
        if let Report::StallEnd(line) = &mut nameless {
            line.culprit = None;
        }
        tally.observe(&nameless);
        let mut gaps = Vec::new();
        assert_eq!(tally.top_culprits(&mut gaps).len(), super::TOP);
        assert_eq!(gaps.len(), 2);
        assert_eq!(tally.totals(0).stalls, MAX_CULPRITS as u64 + 4);
    }
}
