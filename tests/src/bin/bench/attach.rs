//! From the command to the first line, by the target's threads.

use std::time::Duration;

use anyhow::Result;
use profiler_tests::attaching::{target_with, time_to_attach};

use crate::table::{Aim, Compare, Measured, Row};

/// How many threads, and how many milliseconds it may take.
const SIZES: [(u32, Option<f64>); 5] =
    [(1, Some(250.0)), (500, None), (1000, None), (4000, None), (10_000, Some(2000.0))];

/// For the target: what happens once has happened.
const WARM_UP: Duration = Duration::from_secs(1);

pub fn measure(rounds: usize) -> Result<Measured> {
    let mut rows = Vec::new();
    for (threads, most) in SIZES {
        let target = target_with(threads, &[])?;
        std::thread::sleep(WARM_UP);
        let mut on = Vec::new();
        for _ in 0..rounds {
            on.push(time_to_attach(target.pid())?.as_secs_f64() * 1000.0);
        }
        rows.push(Row {
            what: format!("threads: {threads}"),
            unit: "ms",
            off: Vec::new(),
            on,
            compare: Compare::Alone,
            aim: most.map(Aim::AtMost),
        });
    }
    let meaning = "from the command to `session_start`, on an idle asyncio process";
    Ok(Measured { meaning, rows, notes: Vec::new() })
}
