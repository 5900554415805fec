//! A rule broken in a place.

/// One line of a file, and the rule that it breaks.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    pub line: usize,
    pub rule: String,
}
