//! FastAPI under uvicorn, on asyncio and on uvloop: every kind of stall reported right, healthy load not at all.

use anyhow::{Result, ensure};
use profiler_tests::scenario::{alone, each, play, play_plainly};
use profiler_tests::target::Target;

const STALLING: [&str; 9] = [
    "/regex",
    "/upstream",
    "/upstream-timeout",
    "/file",
    "/lock",
    "/sleep",
    "/dependency",
    "/subprocess",
    "/cpu",
];
const HEALTHY: [&str; 4] = ["/", "/async-sleep", "/to-thread", "/short"];

/// With lines as they are by default: what they leave out is no culprit.
fn stalls_are_reported(event_loop: &str) -> Result<()> {
    let _machine = alone();
    let target = Target::uvicorn(event_loop)?;
    let played = play_plainly(&target, &each(&STALLING, &[300, 600]))?;
    played.must_be_right()?;
    ensure!(played.verdict.confirmed >= 2 * STALLING.len(), "{}", played.verdict);
    Ok(())
}

fn health_is_silent(event_loop: &str) -> Result<()> {
    let _machine = alone();
    let target = Target::uvicorn(event_loop)?;
    let played = play(&target, &each(&HEALTHY, &[150; 6]))?;
    played.must_be_right()?;
    ensure!(played.verdict.confirmed == 0, "{}", played.verdict);
    Ok(())
}

/// Through middleware, dependencies and tasks, the line that blocks is named.
#[test]
fn stalls_on_asyncio_are_reported() -> Result<()> {
    stalls_are_reported("asyncio")
}

/// The same where the loop is libuv's, with native frames between the Python ones.
#[test]
fn stalls_on_uvloop_are_reported() -> Result<()> {
    stalls_are_reported("uvloop")
}

/// Healthy load on asyncio: not a word.
#[test]
fn a_healthy_asyncio_is_left_in_peace() -> Result<()> {
    health_is_silent("asyncio")
}

/// Healthy load on uvloop: not a word.
#[test]
fn a_healthy_uvloop_is_left_in_peace() -> Result<()> {
    health_is_silent("uvloop")
}
