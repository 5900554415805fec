//! What the tests say that they compared, passed over and left out, to a table at their end.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::process::target;
use crate::report::{Colour, note, paint};

/// Names the file to the tests; `tally` in their package writes it.
pub const COLLECTED: &str = "STALLTRACE_TALLY";

/// Reasons that are shown of what was passed over in one test.
const REASONS: usize = 2;

/// An empty file for the tests to write to.
pub fn collect() -> Result<PathBuf> {
    let path = target().join("tally");
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be removed", path.display()))
        }
        _ => Ok(path),
    }
}

/// Shows what was collected. Tests that failed before they counted are not in it.
pub fn show(path: &Path) {
    let Ok(text) = fs::read_to_string(path) else {
        return note("no test has counted anything");
    };
    for line in table(&text) {
        eprintln!("{line}");
    }
}

/// What is known of one test.
#[derive(Debug, Default)]
struct Row {
    compared: Vec<String>,
    passed_over: Vec<String>,
    skipped: Vec<String>,
}

fn table(text: &str) -> Vec<String> {
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, '\t');
        let (Some(what), Some(test), Some(words)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let row = rows.entry(test).or_default();
        match what {
            "compared" => row.compared.push(words.to_owned()),
            "passed over" => row.passed_over.push(words.to_owned()),
            "skipped" => row.skipped.push(words.to_owned()),
            _ => {}
        }
    }
    let mut lines: Vec<String> = rows.iter().flat_map(|(test, row)| row.lines(test)).collect();
    let passed_over: usize = rows.values().map(|row| row.passed_over.len()).sum();
    let skipped = rows.values().filter(|row| !row.skipped.is_empty()).count();
    lines.push(format!(
        "{} counted, {passed_over} rounds passed over, {skipped} skipped",
        rows.len()
    ));
    lines
}

impl Row {
    fn lines(&self, test: &str) -> Vec<String> {
        let mut lines = Vec::new();
        if !self.compared.is_empty() {
            lines.push(format!("compared     {test}: {}", self.compared.join(", ")));
        }
        if !self.passed_over.is_empty() {
            let word = paint(Colour::Yellow, "passed over ");
            let shown = self.passed_over.iter().take(REASONS).cloned().collect::<Vec<_>>();
            let more = if self.passed_over.len() > REASONS { "; ..." } else { "" };
            let count = self.passed_over.len();
            lines.push(format!("{word} {test}: {count} times: {}{more}", shown.join("; ")));
        }
        // Several tests may need the same thing.
        if let Some(reason) = self.skipped.first() {
            let word = paint(Colour::Yellow, "skipped     ");
            lines.push(format!("{word} {test}: {reason} ({} times)", self.skipped.len()));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::table;

    /// Each test has its counts and its reasons; a line that is none is left out.
    #[test]
    fn what_was_collected_is_shown() {
        let text = "compared\tgil/a\t3 of at least 3\npassed over\tgil/a\tno CPU\nskipped\tcpython/3.8\tnot here\n\
                    skipped\tcpython/3.8\tnot here\nnonsense\n";
        let lines = table(text);
        assert!(lines[0].contains("cpython/3.8: not here (2 times)"), "{lines:?}");
        assert!(lines[1].contains("gil/a: 3 of at least 3"), "{lines:?}");
        assert!(lines[2].contains("gil/a: 1 times: no CPU"), "{lines:?}");
        assert_eq!(lines[3], "2 counted, 1 rounds passed over, 1 skipped");
    }
}
