//! Lines that were written are read, and written again: the same bytes, whatever a later version adds.

use serde_json::{Map, Value, json};

use super::Report;
use super::tests::{is_valid, samples, schema};
use crate::report::fit::{Fitter, LEAST_LINE_LIMIT_BYTES, Limits};

fn read(text: &str) -> Report {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Lines of every kind, byte by byte.
#[test]
fn the_same_bytes() {
    for line in samples() {
        let text = serde_json::to_string(&line).unwrap();
        let again = read(&text);
        assert_eq!(again, line);
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
    }
}

/// Lines that were cut to fit.
#[test]
fn short_lines() {
    let limits = Limits { line_bytes: Some(LEAST_LINE_LIMIT_BYTES), ..Limits::default() };
    for line in samples() {
        let text = Fitter::new(limits).line(&line).unwrap();
        assert_eq!(serde_json::to_string(&read(&text)).unwrap(), text.trim_end());
    }
}

/// A reader of this version reads what a later one has added to.
#[test]
fn unknown_fields_are_passed_over() {
    for line in samples() {
        let mut later = serde_json::to_value(&line).unwrap();
        add_fields(&mut later);
        assert_eq!(read(&later.to_string()), line);
    }
}

/// Objects whose names are data, and one that stands for a word.
const WITHOUT_FIELDS: [&str; 5] = ["labels", "lost", "omitted", "frames", "timeout"];

fn add_fields(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let own = fields.iter_mut().filter(|(name, value)| {
                value.is_array() || !WITHOUT_FIELDS.contains(&name.as_str())
            });
            own.for_each(|(_, value)| add_fields(value));
            fields.insert("added_later".to_owned(), json!({"words": ["of", "another"]}));
        }
        Value::Array(values) => values.iter_mut().for_each(add_fields),
        _ => {}
    }
}

/// What the published schema allows is read, every word and every kind of cause, and written as it was.
#[test]
fn all_that_is_allowed() {
    let schema = schema();
    let lines = examples(&schema, &schema);
    assert!(lines.len() > 300, "only {} lines", lines.len());
    for line in &lines {
        assert!(is_valid(line, &schema, &schema), "{line:#}");
        let again = serde_json::to_value(read(&line.to_string())).unwrap();
        assert_eq!(again, *line);
    }
}

/// Values that a schema allows, each alternative in one of them at least.
fn examples(schema: &Value, root: &Value) -> Vec<Value> {
    let mut found: Vec<Value> = Vec::new();
    for (keyword, rule) in schema.as_object().unwrap() {
        let values = match (keyword.as_str(), rule) {
            ("$ref", Value::String(pointer)) => {
                examples(root.pointer(pointer.trim_start_matches('#')).unwrap(), root)
            }
            ("oneOf" | "anyOf", Value::Array(rules)) => {
                rules.iter().flat_map(|rule| examples(rule, root)).collect()
            }
            ("const", constant) => vec![constant.clone()],
            ("enum", Value::Array(words)) => words.clone(),
            ("properties", Value::Object(properties)) => {
                let required = schema["required"].as_array().unwrap();
                let is_required = |name: &String| required.iter().any(|it| it == name);
                objects(properties, &is_required, root)
            }
            // Of a map.
            ("additionalProperties", Value::Object(_)) => {
                examples(rule, root).into_iter().map(|value| json!({"a": value})).collect()
            }
            ("items", rule) => {
                examples(rule, root).into_iter().map(|value| json!([value])).collect()
            }
            ("type", Value::Array(names)) => {
                names.iter().filter_map(|name| simple(name, schema)).collect()
            }
            ("type", name) if schema.get("const").is_none() && schema.get("enum").is_none() => {
                simple(name, schema).into_iter().collect()
            }
            _ => Vec::new(),
        };
        found = merged(found, values);
    }
    found
}

/// A value that is no list and no object.
fn simple(name: &Value, schema: &Value) -> Option<Value> {
    match name.as_str().unwrap() {
        "null" => Some(Value::Null),
        // What is not so is absent.
        "boolean" => Some(true.into()),
        "integer" if schema["format"] == "uint64" => Some(u64::MAX.into()),
        "integer" => Some(u32::MAX.into()),
        "number" => Some(0.25.into()),
        "string" => Some("a \u{1b}\"word\"".into()),
        _ => None,
    }
}

/// Objects that differ in one field from the first.
fn objects(
    properties: &Map<String, Value>,
    is_required: &dyn Fn(&String) -> bool,
    root: &Value,
) -> Vec<Value> {
    let mut first = Map::new();
    let mut others = Vec::new();
    for (name, rule) in properties {
        // A field that may be absent is never null.
        let allowed = |value: &Value| is_required(name) || !value.is_null();
        let mut values = examples(rule, root).into_iter().filter(allowed);
        first.insert(name.clone(), values.next().unwrap());
        others.extend(values.map(|value| (name.clone(), value)));
    }
    let changed = others.into_iter().map(|(name, value)| {
        let mut object = first.clone();
        object.insert(name, value);
        Value::Object(object)
    });
    let changed: Vec<_> = changed.collect();
    std::iter::once(Value::Object(first)).chain(changed).collect()
}

/// What two keywords of one schema allow: objects get the fields of both, each of either once at least.
fn merged(some: Vec<Value>, more: Vec<Value>) -> Vec<Value> {
    let is_object = |values: &[Value]| values.first().is_some_and(Value::is_object);
    if !is_object(&some) || !is_object(&more) {
        return if some.is_empty() { more } else { [some, more].concat() };
    }
    let both = |one: &Value, other: &Value| {
        let fields = [one, other].into_iter().filter_map(Value::as_object).flatten();
        Value::Object(fields.map(|(name, value)| (name.clone(), value.clone())).collect())
    };
    let first = some.iter().map(|one| both(one, &more[0]));
    first.chain(more[1..].iter().map(|other| both(&some[0], other))).collect()
}
