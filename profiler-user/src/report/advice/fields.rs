//! A cause to the fields by which the table's rules know it.

use serde_json::{Map, Value};

use crate::report::schema::stall::Cause;

/// A cause as reports have it, with its kind's own fields and the pause that it is of beside the others.
pub fn fields(cause: &Cause) -> Map<String, Value> {
    let Ok(Value::Object(mut fields)) = serde_json::to_value(cause) else { return Map::new() };
    if let Some(Value::Object(detail)) = fields.remove("detail") {
        fields.extend(detail);
    }
    let pause = fields.get("stop_the_world").and_then(|pause| pause.get("pause")).cloned();
    fields.extend(pause.map(|pause| ("pause".to_owned(), pause)));
    fields
}
