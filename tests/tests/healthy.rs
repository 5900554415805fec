//! The healthy twin of every runtime, all of them side by side, each under load for ten seconds: not a word of any.

use std::time::Duration;

use anyhow::Result;
use profiler_tests::clock::slowdown;
use profiler_tests::peace::{conclude, watch};
use profiler_tests::scenario::alone;
use profiler_tests::twins::TWINS;

/// `cargo xtask soak` watches them for longer.
const DURATION: Duration = Duration::from_secs(10);

/// So many at the same time: more would need more CPU than a small machine has.
const AT_ONCE: usize = 4;

#[test]
fn twins_are_left_in_peace() -> Result<()> {
    let _machine = alone();
    let mut all = Vec::new();
    for twins in TWINS.chunks(AT_ONCE) {
        all.extend(watch(twins, DURATION * slowdown())?);
    }
    conclude(&all)
}
