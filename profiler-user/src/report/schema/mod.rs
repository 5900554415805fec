//! The JSON of every line, field by field: the contract with whoever parses it, and the only serialisable types.
//! Whoever reads lines in Rust reads them by the same types.
//!
//! Within one [`line::SchemaVersion`] fields are only added. Units stand in the names, 64-bit addresses are
//! hexadecimal strings (JSON numbers lose their last bits), and what could not be filled is `null`
//! with its reason in `gaps`. `docs/report.schema.json` is made from these types and their comments;
//! a test keeps both equal.

pub mod call;
pub mod line;
pub mod session;
pub mod stall;
pub mod stats;
#[cfg(test)]
mod round_trip;

#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use line::Common;
use session::{SessionEnd, SessionStart};
use stall::StallLine;
use stats::Stats;

/// One line of stalltrace's output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Report {
    /// stalltrace has attached.
    SessionStart(Box<SessionStart>),
    /// A turn of an event loop has passed the threshold and is still going on.
    StallOpen(Box<StallLine>),
    /// It is still going on.
    StallUpdate(Box<StallLine>),
    /// It is over. Stands alone: it has all that the lines before it had.
    StallEnd(Box<StallLine>),
    /// How loops fared in one interval, stalls or not.
    Stats(Box<Stats>),
    /// stalltrace has detached.
    SessionEnd(Box<SessionEnd>),
}

impl Report {
    /// What every line has.
    pub fn common(&self) -> &Common {
        match self {
            Self::SessionStart(line) => &line.common,
            Self::StallOpen(line) | Self::StallUpdate(line) | Self::StallEnd(line) => &line.common,
            Self::Stats(line) => &line.common,
            Self::SessionEnd(line) => &line.common,
        }
    }
}

#[cfg(test)]
pub mod tests {
    use schemars::generate::SchemaSettings;
    use serde_json::Value;

    use super::Report;
    use crate::report::sample;
    use crate::turn::Moment;

    const PUBLISHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/report.schema.json");

    /// Set to write the published schema instead of comparing with it.
    const BLESS: &str = "STALLTRACE_BLESS";

    pub fn schema() -> Value {
        // As written, not as read: what may be null is there all the same.
        let settings = SchemaSettings::draft2020_12().for_serialize();
        settings.into_generator().into_root_schema_for::<Report>().to_value()
    }

    /// The published schema is the one that the types make.
    #[test]
    fn published_schema() {
        let made = schema();
        if std::env::var_os(BLESS).is_some() {
            std::fs::write(PUBLISHED, format!("{made:#}\n")).unwrap();
        }
        let published = std::fs::read_to_string(PUBLISHED).unwrap();
        let published: Value = serde_json::from_str(&published).unwrap();
        assert!(published == made, "{PUBLISHED} is out of date: run this test with {BLESS}=1");
    }

    /// Whether a value is what a schema says, by the keywords that these schemas use.
    pub fn is_valid(value: &Value, schema: &Value, root: &Value) -> bool {
        let Some(schema) = schema.as_object() else { return schema == &Value::Bool(true) };
        schema.iter().all(|(keyword, rule)| match (keyword.as_str(), rule) {
            ("$ref", Value::String(pointer)) => {
                let target = root.pointer(pointer.trim_start_matches('#'));
                target.is_some_and(|target| is_valid(value, target, root))
            }
            ("type", Value::String(name)) => is_type(value, name),
            ("type", Value::Array(names)) => {
                names.iter().any(|name| is_type(value, name.as_str().unwrap()))
            }
            ("const", constant) => value == constant,
            ("enum", Value::Array(values)) => values.contains(value),
            ("minimum", minimum) => value.as_f64().is_none_or(|n| n >= minimum.as_f64().unwrap()),
            ("maximum", maximum) => value.as_f64().is_none_or(|n| n <= maximum.as_f64().unwrap()),
            ("required", Value::Array(names)) => {
                names.iter().all(|name| value.get(name.as_str().unwrap()).is_some())
            }
            ("properties", Value::Object(properties)) => properties.iter().all(|(name, rule)| {
                value.get(name).is_none_or(|value| is_valid(value, rule, root))
            }),
            ("additionalProperties", rule) => {
                let declared = schema.get("properties").and_then(Value::as_object);
                let is_other =
                    |name: &&String| declared.is_none_or(|all| !all.contains_key(name.as_str()));
                let names = value.as_object().into_iter().flat_map(|object| object.keys());
                names.filter(is_other).all(|name| is_valid(&value[name], rule, root))
            }
            ("items", rule) => {
                let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                items.iter().all(|item| is_valid(item, rule, root))
            }
            ("anyOf", Value::Array(rules)) => rules.iter().any(|rule| is_valid(value, rule, root)),
            ("oneOf", Value::Array(rules)) => {
                rules.iter().filter(|rule| is_valid(value, rule, root)).count() == 1
            }
            ("$schema" | "$defs" | "title" | "description" | "format", _) => true,
            _ => panic!("{keyword}: {rule} is not understood"),
        })
    }

    fn is_type(value: &Value, name: &str) -> bool {
        match name {
            "null" => value.is_null(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_u64() || value.is_i64(),
            "number" => value.is_number(),
            "string" => value.is_string(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            other => panic!("a type {other}"),
        }
    }

    /// Lines of every kind.
    pub fn samples() -> [Report; 9] {
        let mut nameless = sample::stall();
        nameless.stacks.clear();
        [
            sample::report(Moment::End, &sample::looked_at()),
            sample::session_start(),
            sample::report(Moment::Open, &sample::open_stall()),
            sample::report(Moment::Update, &sample::open_stall()),
            sample::report(Moment::End, &sample::stall()),
            sample::report(Moment::End, &nameless),
            sample::stats(),
            sample::stats_of(&[sample::idle_loop()]),
            sample::session_end(),
        ]
    }

    /// Lines of every kind are what the schema says.
    #[test]
    fn lines_are_valid() {
        let schema = schema();
        for line in samples() {
            let line = serde_json::to_value(line).unwrap();
            assert!(is_valid(&line, &schema, &schema), "{line:#}");
        }
    }

    /// The schema notices a missing field, a wrong type, and an event that has no such line.
    #[test]
    fn schema_is_strict() {
        let schema = schema();
        let line = sample::report(Moment::End, &sample::stall());
        let line = serde_json::to_value(line).unwrap();
        type Damage = fn(&mut Value);
        let damages: [Damage; 5] = [
            |line| drop(line["stall"].as_object_mut().unwrap().remove("duration_ns")),
            |line| drop(line.as_object_mut().unwrap().remove("advice")),
            |line| line["stall"]["duration_ns"] = "5012 ms".into(),
            |line| line["event"] = "session_end".into(),
            |line| line["cause"]["kind"] = "bad luck".into(),
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            let mut damaged = line.clone();
            damage(&mut damaged);
            assert!(!is_valid(&damaged, &schema, &schema), "damage {number} was not noticed");
        }
    }
}
