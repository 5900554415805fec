//! Measured rows to a table for people and to JSON for programs.

use std::fmt;

use serde::Serialize;

use crate::paired::{Spread, differences, ratios};

/// How the figures of a row become its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compare {
    /// `on` divided by `off`, round by round.
    Ratio,
    /// `on` less `off`, round by round.
    Difference,
    /// There is nothing to compare `on` with.
    Alone,
}

/// What a result should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    AtLeast(f64),
    AtMost(f64),
}

impl Aim {
    fn is_met(self, result: f64) -> bool {
        match self {
            Self::AtLeast(least) => result >= least,
            Self::AtMost(most) => result <= most,
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "≥ {least}"),
            Self::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

/// One thing that was measured, a figure a round.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub what: String,
    pub unit: &'static str,
    pub off: Vec<f64>,
    pub on: Vec<f64>,
    pub compare: Compare,
    pub aim: Option<Aim>,
}

impl Row {
    /// `None` where no round gave a figure.
    pub fn result(&self) -> Option<Spread> {
        match self.compare {
            Compare::Ratio => Spread::of(&ratios(&self.off, &self.on)),
            Compare::Difference => Spread::of(&differences(&self.off, &self.on)),
            Compare::Alone => Spread::of(&self.on),
        }
    }

    fn verdict(&self) -> &'static str {
        match (self.result(), self.aim) {
            (Some(result), Some(aim)) if aim.is_met(result.median) => "met",
            (Some(_), Some(_)) => NOT_MET,
            (None, _) => "no figures",
            (_, None) => "",
        }
    }

    fn result_text(&self, result: f64) -> String {
        match self.compare {
            Compare::Ratio => format!("{result:.3}"),
            Compare::Difference => format!("{result:+.1}"),
            Compare::Alone => figure(result),
        }
    }

    fn cells(&self) -> [String; COLUMNS] {
        let median = |figures: &[f64]| {
            Spread::of(figures).map_or(String::new(), |spread| figure(spread.median))
        };
        let on = if self.compare == Compare::Alone { String::new() } else { median(&self.on) };
        let (result, spread) = match self.result() {
            Some(Spread { low, median, high }) => {
                let spread = format!("{} … {}", self.result_text(low), self.result_text(high));
                (self.result_text(median), spread)
            }
            None => (String::new(), String::new()),
        };
        [
            self.what.clone(),
            self.unit.to_owned(),
            median(&self.off),
            on,
            result,
            spread,
            self.aim.map_or(String::new(), |aim| aim.to_string()),
            self.verdict().to_owned(),
        ]
    }
}

const NOT_MET: &str = "not met";
const COLUMNS: usize = 8;
const TITLES: [&str; COLUMNS] = ["", "unit", "off", "on", "result", "quartiles", "aim", ""];
/// Columns of words; the others are of numbers and end at the same place.
const LEFT: [bool; COLUMNS] = [true, true, false, false, false, false, false, true];

/// As many digits as mean something.
fn figure(value: f64) -> String {
    match value.abs() {
        at if at >= 1000.0 => format!("{value:.0}"),
        at if at >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// What a measurement gave.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Measured {
    /// What `off`, `on` and the result mean here.
    pub meaning: &'static str,
    pub rows: Vec<Row>,
    /// What the reader of the figures should know.
    pub notes: Vec<String>,
}

/// A measurement under its title.
#[derive(Debug, Clone, Serialize)]
pub struct Section {
    pub title: &'static str,
    #[serde(flatten)]
    pub measured: Measured,
    /// Why there are no figures, if there are none.
    pub failure: Option<String>,
}

/// All sections as one table.
pub fn text(sections: &[Section]) -> String {
    let cells = sections.iter().flat_map(|section| section.measured.rows.iter().map(Row::cells));
    let mut widths = TITLES.map(|title| title.chars().count());
    for row in cells {
        for (width, cell) in widths.iter_mut().zip(&row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut lines = vec![line(&TITLES.map(str::to_owned), &widths)];
    for Section { title, measured, failure } in sections {
        lines.push(String::new());
        lines.push(match failure {
            None => format!("{title} — {}", measured.meaning),
            Some(reason) => format!("{title} — could not be measured: {reason}"),
        });
        lines.extend(measured.rows.iter().map(|row| line(&row.cells(), &widths)));
        lines.extend(measured.notes.iter().map(|note| format!("  note: {note}")));
    }
    lines.push(String::new());
    lines.push(summary(sections));
    lines.join("\n")
}

/// How many aims were met, and which were not.
fn summary(sections: &[Section]) -> String {
    let rows = || sections.iter().flat_map(|section| &section.measured.rows);
    let judged = rows().filter(|row| row.aim.is_some()).count();
    let missed = rows().filter(|row| row.verdict() == NOT_MET);
    let missed: Vec<_> = missed.map(|row| row.what.trim()).collect();
    match missed.as_slice() {
        [] => format!("All of {judged} aims are met."),
        missed => {
            let met = judged.saturating_sub(missed.len());
            format!("{met} of {judged} aims are met; not met: {}.", missed.join("; "))
        }
    }
}

fn line(cells: &[String; COLUMNS], widths: &[usize; COLUMNS]) -> String {
    let mut line = String::new();
    for ((cell, width), is_left) in cells.iter().zip(widths).zip(LEFT) {
        let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
        let (before, after) = if is_left { ("", padding.as_str()) } else { (padding.as_str(), "") };
        line += &format!("  {before}{cell}{after}");
    }
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::{Aim, Compare, Measured, Row, Section, text};

    fn row(compare: Compare, off: &[f64], on: &[f64], aim: Option<Aim>) -> Row {
        let (off, on) = (off.to_vec(), on.to_vec());
        Row { what: "redis".to_owned(), unit: "requests/s", off, on, compare, aim }
    }

    /// The result is judged by its median, at the bound included.
    #[test]
    fn aims_are_judged() {
        let ratio = |on| row(Compare::Ratio, &[100.0], &[on], Some(Aim::AtLeast(0.98)));
        assert_eq!(ratio(98.0).verdict(), "met");
        assert_eq!(ratio(97.0).verdict(), "not met");
        let ns = |on| row(Compare::Difference, &[62.0], &[on], Some(Aim::AtMost(8.0)));
        assert_eq!(ns(70.0).verdict(), "met");
        assert_eq!(ns(71.0).verdict(), "not met");
        assert_eq!(row(Compare::Alone, &[], &[], Some(Aim::AtMost(8.0))).verdict(), "no figures");
        assert_eq!(row(Compare::Alone, &[], &[1.0], None).verdict(), "");
    }

    /// Numbers end at the same place, words begin at the same place, and reasons stand below.
    #[test]
    fn the_table_is_aligned() {
        let rows = vec![
            row(Compare::Ratio, &[83857.0], &[82000.0], Some(Aim::AtLeast(0.98))),
            row(Compare::Alone, &[], &[0.31], Some(Aim::AtMost(0.5))),
        ];
        let notes = vec!["noisy".to_owned()];
        let measured = Measured { meaning: "off: nobody watches", rows, notes };
        let failure = Some("no root".to_owned());
        let sections = [
            Section { title: "throughput", measured, failure: None },
            Section { title: "syscalls", measured: Measured::default(), failure },
        ];
        let expected = "
         unit          off     on  result      quartiles     aim

throughput — off: nobody watches
  redis  requests/s  83857  82000   0.978  0.978 … 0.978  ≥ 0.98  not met
  redis  requests/s                  0.31    0.31 … 0.31   ≤ 0.5  met
  note: noisy

syscalls — could not be measured: no root

1 of 2 aims are met; not met: redis.";
        let got = text(&sections);
        assert_eq!(got, expected.trim_start_matches('\n'), "\n{got}");
    }
}
