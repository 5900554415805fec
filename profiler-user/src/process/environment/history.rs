//! Readings of a counter that only grows, to how much it grew in any stretch of the recent past.

use std::collections::VecDeque;

use crate::environment::Growth;

/// Different values kept. Beyond this every second one of the older half is let go: the further back
/// a stall began, the less exactly its beginning needs to be known.
const MAX_VALUES: usize = 256;

/// Readings of one counter.
#[derive(Debug, Default)]
pub struct History {
    /// In order of time. A value that stays the same takes one place.
    runs: VecDeque<Run>,
}

/// A value, and the first and last reading that showed it.
#[derive(Debug, Clone, Copy)]
struct Run {
    value: u64,
    first_ns: u64,
    last_ns: u64,
}

impl History {
    /// The counter showed `value` at `now_ns`.
    pub fn read(&mut self, now_ns: u64, value: u64) {
        match self.runs.back_mut() {
            Some(run) if run.value == value => run.last_ns = now_ns,
            // Whatever was counted before is another counter's.
            Some(run) if run.value > value => self.runs.clear(),
            _ => {}
        }
        if self.runs.back().is_none_or(|run| run.value != value) {
            self.runs.push_back(Run { value, first_ns: now_ns, last_ns: now_ns });
        }
        if self.runs.len() > MAX_VALUES {
            let mut place = 0;
            self.runs.retain(|_| {
                place += 1;
                place > MAX_VALUES / 2 || place % 2 == 1
            });
        }
    }

    /// How much it grew from one moment to another. None without a reading before the first.
    pub fn growth(&self, from_ns: u64, until_ns: u64) -> Option<Growth> {
        let before = self.runs.iter().rev().find(|run| run.first_ns <= from_ns)?;
        let inside = self.runs.iter().find(|run| run.last_ns >= from_ns);
        let until = self.runs.iter().rev().find(|run| run.first_ns <= until_ns)?;
        let last = self.runs.back()?;
        // Whoever asks has just read, if not in the same instant.
        let after = self.runs.iter().find(|run| run.last_ns >= until_ns).unwrap_or(last);
        let begun_ns = before.last_ns.min(from_ns);
        Some(Growth {
            at_least_ns: until.value.saturating_sub(inside.unwrap_or(last).value),
            at_most_ns: after.value.saturating_sub(before.value),
            over_ns: after.first_ns.max(until_ns).saturating_sub(begun_ns),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{History, MAX_VALUES};

    /// What was counted between two readings may lie on either side of a stall's beginning or end.
    #[test]
    fn growth_has_bounds() {
        // ns    100   200   300   400   500
        //       5     5  ├──7─────9──┤  20
        let mut history = History::default();
        for (now_ns, value) in [(100, 5), (200, 5), (300, 7), (400, 9), (500, 20)] {
            history.read(now_ns, value);
        }
        let growth = history.growth(250, 450).unwrap();
        assert_eq!((growth.at_least_ns, growth.at_most_ns, growth.over_ns), (2, 15, 300));
        let exact = history.growth(200, 400).unwrap();
        assert_eq!((exact.at_least_ns, exact.at_most_ns, exact.over_ns), (4, 4, 200));
        assert!(history.growth(99, 400).is_none(), "nothing was read before it");
        let late = history.growth(450, 600).unwrap();
        assert_eq!((late.at_least_ns, late.at_most_ns), (0, 11));
    }

    /// A counter that starts anew is another one.
    #[test]
    fn a_smaller_value_starts_anew() {
        let mut history = History::default();
        history.read(100, 50);
        history.read(200, 3);
        assert!(history.growth(150, 250).is_none());
        assert_eq!(history.growth(200, 250).unwrap().at_most_ns, 0);
    }

    /// However long it is read, little is kept, and the recent past is exact.
    #[test]
    fn old_readings_thin_out() {
        let mut history = History::default();
        for now_ns in 0..100_000 {
            history.read(now_ns, now_ns);
        }
        assert!(history.runs.len() <= MAX_VALUES);
        let recent = history.growth(99_950, 99_990).unwrap();
        assert_eq!((recent.at_least_ns, recent.at_most_ns), (40, 40));
        let all = history.growth(0, 99_990).unwrap();
        assert_eq!(all.at_most_ns, 99_990);
    }
}
