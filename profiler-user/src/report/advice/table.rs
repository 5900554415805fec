//! The advice table: its rules as they are written down in `advice.toml`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::pattern::{FramePattern, Pattern, any_is_like};

/// All there is. One that does not parse gives no advice; a test sees to it that it does.
pub static TABLE: LazyLock<AdviceTable> =
    LazyLock::new(|| toml::from_str(include_str!("advice.toml")).unwrap_or_default());

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdviceTable {
    #[serde(rename = "loop")]
    pub loops: Vec<Family>,
    /// The first that fits is given.
    #[serde(rename = "rule")]
    pub rules: Vec<Rule>,
    pub repeated: Vec<Repeated>,
}

/// Event loops that have the same remedies.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(not(test), expect(dead_code, reason = "the document alone shows all of it"))]
pub struct Family {
    pub family: String,
    /// As reports name them.
    kinds: Vec<String>,
    pub link: String,
    /// What each remedy is called.
    pub words: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(not(test), expect(dead_code, reason = "the document alone shows all of it"))]
pub struct Rule {
    pub id: String,
    #[serde(default, rename = "loop")]
    pub loops: Vec<String>,
    #[serde(default)]
    pub program: Vec<Pattern>,
    #[serde(default)]
    pub cause: Fields,
    /// The least number of waits that the cause must be of; 0: also none.
    #[serde(default)]
    pub waits: u64,
    #[serde(default)]
    pub called: Vec<FramePattern>,
    #[serde(default)]
    pub frames: Vec<FramePattern>,
    /// None of these may be on as many stacks.
    #[serde(default)]
    pub unless: Vec<FramePattern>,
    /// What the thread of the stacks that show it was doing, for most of the time.
    #[serde(default)]
    pub state: Option<Doing>,
    /// With words in braces, for [`Rule::text`] to put in.
    pub advice: String,
    pub links: Vec<String>,
}

/// What a thread was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Doing {
    Running,
    Blocked,
}

/// What is added where one peer has stalled the loop again and again.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(not(test), expect(dead_code, reason = "the document alone shows all of it"))]
pub struct Repeated {
    pub id: String,
    pub stalls: u64,
    pub cause: Fields,
    pub advice: String,
    pub links: Vec<String>,
}

/// Fields of a cause, each with what it may be.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Fields(pub BTreeMap<String, Vec<Pattern>>);

impl Fields {
    /// Whether each field is there and fits.
    pub fn are_like(&self, cause: &Map<String, Value>) -> bool {
        self.0.iter().all(|(name, patterns)| {
            cause.get(name).and_then(Value::as_str).is_some_and(|text| any_is_like(patterns, text))
        })
    }
}

impl AdviceTable {
    /// The family of a kind of loop.
    pub fn family(&self, loop_kind: &str) -> Option<&Family> {
        self.loops.iter().find(|family| family.kinds.iter().any(|kind| kind == loop_kind))
    }

    /// What is added from that many stalls on.
    pub fn repeated(&self, cause: &Map<String, Value>) -> impl Iterator<Item = &Repeated> {
        self.repeated.iter().filter(|repeated| repeated.cause.are_like(cause))
    }
}

impl Rule {
    /// Whether it is about loops of this kind.
    pub fn is_about(&self, loop_kind: &str, family: Option<&Family>) -> bool {
        let is_it = |name: &String| {
            name == loop_kind || family.is_some_and(|family| family.family == *name)
        };
        self.loops.is_empty() || self.loops.iter().any(is_it)
    }

    /// The advice in the words of the loop's family; `None` where it has no such word.
    pub fn text(&self, family: Option<&Family>) -> Option<String> {
        let mut text = String::new();
        let mut pieces = self.advice.split('{');
        text.push_str(pieces.next().unwrap_or_default());
        for piece in pieces {
            let (word, rest) = piece.split_once('}')?;
            text.push_str(family?.words.get(word)?);
            text.push_str(rest);
        }
        Some(text)
    }
}
