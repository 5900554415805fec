//! The file in which a target writes down its own stalls, to records.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// The kind of the heartbeat's records: the loop answered late, for whatever reason.
const LAG: &str = "lag";

/// One stall, as the target itself timed it. Times in ns of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Truth {
    pub kind: String,
    /// `None` where no single function is to blame.
    pub function: Option<String>,
    pub file: Option<String>,
    /// The blocking statement: from this line on.
    pub line: Option<u32>,
    pub last_line: Option<u32>,
    /// Whose loop it was; `None` where the target was timed from outside.
    pub thread: Option<u32>,
    pub start_ns: u64,
    pub end_ns: u64,
}

impl Truth {
    pub fn duration_ns(&self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns)
    }

    /// A witness that the loop was late, not an account of why.
    pub fn is_lag(&self) -> bool {
        self.kind == LAG
    }

    /// How long this and `[start_ns, end_ns)` go on together.
    pub fn overlap_ns(&self, start_ns: u64, end_ns: u64) -> u64 {
        self.end_ns.min(end_ns).saturating_sub(self.start_ns.max(start_ns))
    }

    /// Whether a line of code is the one, or one of those, that blocked.
    pub fn blocks_at(&self, line: Option<u32>) -> bool {
        let (Some(first), Some(line)) = (self.line, line) else { return self.line.is_none() };
        (first..=self.last_line.unwrap_or(first)).contains(&line)
    }
}

/// The records of a file. A file that is not there has none.
pub fn read(path: &Path) -> Result<Vec<Truth>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{} is not readable", path.display()))?;
    parse(&text)
}

fn parse(text: &str) -> Result<Vec<Truth>> {
    // A target that was killed may have left half a line: one without its newline.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not a record: {line}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Truth, parse};

    const LINE: &str = r#"{"kind":"sleep","function":"f","file":"/a/b.py","line":7,"last_line":8,"thread":1,"start_ns":100,"end_ns":400}"#;

    fn record() -> Truth {
        parse(&format!("{LINE}\n")).unwrap().remove(0)
    }

    /// Half a line at the end is left out; half a line elsewhere is an error.
    #[test]
    fn a_killed_target_leaves_half_a_line() {
        assert_eq!(parse(&format!("{LINE}\n{{\"kind\":\"sl")).unwrap(), [record()]);
        assert_eq!(parse("").unwrap(), []);
        assert!(parse("{\"kind\":\n{}\n").is_err());
    }

    /// Any line of the blocking statement will do, and none beside it.
    #[test]
    fn a_statement_may_have_several_lines() {
        let lines = [Some(6), Some(7), Some(8), Some(9), None];
        assert_eq!(lines.map(|line| record().blocks_at(line)), [false, true, true, false, false]);
        let nowhere = Truth { line: None, last_line: None, ..record() };
        assert!(nowhere.blocks_at(None) && nowhere.blocks_at(Some(3)));
    }

    /// What only touches does not overlap.
    #[test]
    fn overlap_is_what_both_have() {
        assert_eq!(record().overlap_ns(0, 250), 150);
        assert_eq!(record().overlap_ns(150, 250), 100);
        assert_eq!(record().overlap_ns(400, 500), 0);
        assert_eq!(record().overlap_ns(0, 100), 0);
    }
}
