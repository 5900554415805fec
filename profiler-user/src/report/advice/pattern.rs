//! Patterns of the advice table: names in which `*` stands for anything, and frames as `FUNCTION in PLACE`.

use std::sync::Arc;

use serde::Deserialize;

use crate::frame::Frame;

/// A name, in which `*` stands for any characters, also none.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Pattern(pub String);

impl Pattern {
    pub fn is_like(&self, text: &str) -> bool {
        let mut pieces = self.0.split('*');
        let first = pieces.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else { return false };
        let Some(last) = pieces.next_back() else { return rest.is_empty() };
        for piece in pieces {
            let Some(at) = rest.find(piece) else { return false };
            rest = rest.get(at + piece.len()..).unwrap_or_default();
        }
        rest.ends_with(last)
    }
}

/// Whether any of these patterns fits.
pub fn any_is_like(patterns: &[Pattern], text: &str) -> bool {
    patterns.iter().any(|pattern| pattern.is_like(text))
}

/// A frame by its function, and its source file or else its module.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct FramePattern {
    function: Pattern,
    place: Pattern,
}

impl TryFrom<String> for FramePattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (function, place) = text
            .split_once(" in ")
            .ok_or_else(|| format!("`{text}` is not `FUNCTION in PLACE`"))?;
        let [function, place] = [function, place].map(|part| Pattern(part.to_owned()));
        Ok(Self { function, place })
    }
}

impl FramePattern {
    /// A frame without a name is like `*` only: its place may tell enough.
    pub fn is_like(&self, frame: &Frame) -> bool {
        let is_place = |place: &Option<Arc<str>>| {
            place.as_deref().is_some_and(|place| self.place.is_like(place))
        };
        let in_place = self.place.0 == "*" || is_place(&frame.file) || is_place(&frame.module);
        in_place && self.function.is_like(frame.function.as_deref().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::{FramePattern, Pattern};
    use crate::frame::Frame;
    use crate::report::sample::{native, python};

    /// A star is any text, also none, also several times; everything else is itself.
    #[test]
    fn stars() {
        let is_like = |pattern: &str, text| Pattern(pattern.to_owned()).is_like(text);
        for (pattern, text) in [
            ("", ""),
            ("*", ""),
            ("*", "x"),
            ("recv*", "recv"),
            ("recv*", "recvfrom"),
            ("*Sync in", "readFileSync in"),
            ("*/re/*.py", "/usr/lib/python3.11/re/__init__.py"),
            ("*a*a", "aa"),
            ("a*b*c", "abbc"),
        ] {
            assert!(is_like(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "x"),
            ("recv", "recvfrom"),
            ("recv*", "xrecv"),
            ("*a*a", "a"),
            ("a*a", "a"),
            ("a*b*c", "acb"),
        ] {
            assert!(!is_like(pattern, text), "{pattern} {text}");
        }
    }

    /// A frame is found by its source file or by its module; a nameless one by its module alone.
    #[test]
    fn frames() {
        let pattern = |text: &str| FramePattern::try_from(text.to_owned()).unwrap();
        let connect = python("connect", "/v/site-packages/redis/connection.py", 3);
        assert!(pattern("* in */redis/*").is_like(&connect));
        assert!(pattern("connect in *").is_like(&connect));
        assert!(!pattern("connect in */psycopg2/*").is_like(&connect));
        let query = Frame { function: None, ..native("", "/usr/lib/libpq.so.5") };
        assert!(pattern("* in */libpq*").is_like(&query));
        assert!(!pattern("PQ* in */libpq*").is_like(&query));
        assert!(FramePattern::try_from("connect".to_owned()).is_err());
    }
}
