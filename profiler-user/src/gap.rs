//! A missing piece and its reason: what a report says instead of leaving something out.

use std::fmt;

/// One sentence, without a full stop: what is missing, and why.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gap(pub String);

impl Gap {
    /// `what` is missing because of `why`.
    pub fn new(what: &str, why: impl fmt::Display) -> Self {
        Self(format!("{what}: {why}"))
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}
