//! A report that is too long even with the fewest frames, to one that is not: lists and texts are cut.
//!
//! In rounds, each of which leaves less. In a round the lists are cut one after the other in the order of [`LISTS`],
//! then the texts, last those of cause, culprit and message; it ends as soon as the line is short enough.

use serde_json::{Map, Value};

use crate::report::printable::{MARK, cut};

/// What a round leaves: entries of a list, bytes of a text, and frames of a stack.
const ROUNDS: [(usize, usize, usize); 7] = [
    (32, 1024, 32),
    (16, 512, 32),
    (8, 256, 24),
    (4, 128, 24),
    (2, 64, 24),
    (1, 48, 12),
    (0, 32, 4),
];

/// Lists and objects of counts, by their names wherever they stand; those that are missed least come first.
const LISTS: [&str; 21] = [
    "gaps",
    "lost",
    "polled",
    "args",
    "ran_out_ns",
    "held_by",
    "callbacks",
    "preempted_by",
    "holders",
    "waiting_connections",
    "away",
    "because",
    "also",
    "probes",
    "accepts",
    "loops",
    "top_culprits",
    "labels",
    "stacks",
    KERNEL,
    "frames",
];

/// Frames, too, and counted with them.
const KERNEL: &str = "kernel";

/// Texts of ours by which lines are told apart: they are short, and worth nothing in part.
const IDENTITIES: [&str; 3] = ["session", "id", "timestamp"];

/// Texts that go last.
const LAST: [&str; 3] = ["cause", "culprit", "message"];

/// Which texts are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Texts {
    /// All but those that go last.
    Most,
    All,
}

/// At most so many bytes of JSON. They are enough for the fixed part of every line.
pub fn to(mut line: Value, most_bytes: usize) -> serde_json::Result<String> {
    if let Some(lost) = line.get_mut("lost").and_then(Value::as_object_mut) {
        lost.retain(|_, count| *count != 0);
    }
    if let Some(text) = fitting(&line, most_bytes)? {
        return Ok(text);
    }
    for (entries, bytes, frames) in ROUNDS {
        for list in LISTS {
            let entries = match list {
                // The one that the culprit is on.
                "stacks" => entries.max(1),
                KERNEL | "frames" => frames,
                _ => entries,
            };
            let gone = shorten(&mut line, list, entries);
            count(&mut line, list, gone);
            // Most lines have few of these lists, and to measure is most of the work.
            if gone > 0
                && let Some(text) = fitting(&line, most_bytes)?
            {
                return Ok(text);
            }
        }
        for which in [Texts::Most, Texts::All] {
            let gone = cut_texts(&mut line, which, bytes);
            count(&mut line, "texts", gone);
            if let Some(text) = fitting(&line, most_bytes)? {
                return Ok(text);
            }
        }
    }
    serde_json::to_string(&line)
}

fn fitting(line: &Value, most_bytes: usize) -> serde_json::Result<Option<String>> {
    let text = serde_json::to_string(line)?;
    Ok((text.len() <= most_bytes).then_some(text))
}

/// Adds to what is said to be left out.
fn count(line: &mut Value, what: &str, gone: u64) {
    if gone == 0 {
        return;
    }
    let Some(line) = line.as_object_mut() else { return };
    let omitted = line.entry("omitted").or_insert_with(|| Value::Object(Map::new()));
    let what = if what == KERNEL { "frames" } else { what };
    if let Some(omitted) = omitted.as_object_mut() {
        let before = omitted.get(what).and_then(Value::as_u64).unwrap_or(0);
        omitted.insert(what.to_owned(), before.saturating_add(gone).into());
    }
}

/// Leaves the first so many of each list of this name; returns how many are gone.
fn shorten(value: &mut Value, list: &str, entries: usize) -> u64 {
    match value {
        Value::Object(fields) => {
            let parts = fields.iter_mut().map(|(name, value)| {
                let own = if name == list { shorten_one(value, entries) } else { 0 };
                own + shorten(value, list, entries)
            });
            parts.sum()
        }
        Value::Array(values) => values.iter_mut().map(|value| shorten(value, list, entries)).sum(),
        _ => 0,
    }
}

fn shorten_one(value: &mut Value, entries: usize) -> u64 {
    let before = length(value);
    match value {
        Value::Array(values) => values.truncate(entries),
        Value::Object(fields) => {
            let mut left = entries;
            fields.retain(|_, _| {
                let stays = left > 0;
                left = left.saturating_sub(1);
                stays
            });
        }
        _ => {}
    }
    (before - length(value)) as u64
}

fn length(value: &Value) -> usize {
    match value {
        Value::Array(values) => values.len(),
        Value::Object(fields) => fields.len(),
        _ => 0,
    }
}

/// Cuts texts that are longer; returns how many were whole until then.
fn cut_texts(line: &mut Value, which: Texts, bytes: usize) -> u64 {
    let Some(fields) = line.as_object_mut() else { return 0 };
    let is_cut = |name: &str| which == Texts::All || !LAST.contains(&name);
    let parts = fields.iter_mut().filter(|(name, _)| is_cut(name));
    parts.map(|(name, value)| cut_below(name, value, bytes)).sum()
}

fn cut_below(name: &str, value: &mut Value, bytes: usize) -> u64 {
    match value {
        Value::String(_) if IDENTITIES.contains(&name) => 0,
        Value::String(text) => {
            let was_whole = !text.ends_with(MARK);
            u64::from(cut(text, bytes) > 0 && was_whole)
        }
        Value::Array(values) => values.iter_mut().map(|value| cut_below(name, value, bytes)).sum(),
        Value::Object(fields) => {
            fields.iter_mut().map(|(name, value)| cut_below(name, value, bytes)).sum()
        }
        _ => 0,
    }
}
