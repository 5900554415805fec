//! redis-server, a native event loop: what stalls it is named by its C functions, healthy load not at all.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use profiler_tests::redis::{self, Connection};
use profiler_tests::report::{StallExt as _, StallLine};
use profiler_tests::scenario::{Played, alone, observe};

/// What is called, in Redis itself, when a script runs. The interpreter inside has no symbols of its own
/// in Debian's build, so the innermost named function may be any of these.
const SCRIPT_FUNCTIONS: [&str; 7] = [
    "evalCommand",
    "evalGenericCommand",
    "luaCallFunction",
    "luaV_execute",
    "luaD_call",
    "lua_pcall",
    "lua_call",
];

fn only_end(played: &Played) -> Result<&StallLine> {
    played.finished.ends().next().context("no stall was reported")
}

/// `DEBUG SLEEP` blocks in the command that was asked to.
#[test]
fn debug_sleep_is_reported() -> Result<()> {
    let _machine = alone();
    let (target, port) = redis::start()?;
    let played = observe(&target, || {
        let mut truth = Connection::open(port)?.timed("debug sleep", &["DEBUG", "SLEEP", "0.3"])?;
        truth.function = Some("debugCommand".to_owned());
        Ok(vec![truth])
    })?;
    played.must_be_right()?;
    let end = only_end(&played)?;
    ensure!(end.is_caused_by("sleep"), "{:?}", end.cause);
    Ok(())
}

/// A Lua script that computes is a stall of the command that runs it.
#[test]
fn a_slow_script_is_reported() -> Result<()> {
    let _machine = alone();
    let (target, port) = redis::start()?;
    let mut connection = Connection::open(port)?;
    let script = redis::busy_script(&mut connection, 400)?;
    let words: Vec<&str> = script.iter().map(String::as_str).collect();
    let played = observe(&target, || Ok(vec![connection.timed("script", &words)?]))?;
    played.must_be_right()?;
    let end = only_end(&played)?;
    ensure!(end.is_caused_by("cpu"), "{:?}", end.cause);
    let culprit = end.culprit.as_ref().and_then(|culprit| culprit.function.as_deref());
    let is_script = culprit.is_some_and(|function| SCRIPT_FUNCTIONS.contains(&function));
    ensure!(is_script, "blamed on {culprit:?}");
    ensure!(end.loop_runs("evalGenericCommand"), "the command is not on the stack: {end:#?}");
    Ok(())
}

/// A busy and healthy server: not a word.
#[test]
fn a_healthy_redis_is_left_in_peace() -> Result<()> {
    let _machine = alone();
    let (target, port) = redis::start()?;
    let played = observe(&target, || {
        let status = Command::new("redis-benchmark")
            .args(["-p", &port.to_string(), "-t", "get,set,lpush", "-c", "20", "-P", "1"])
            .args(["-n", "60000", "-q"])
            .stdout(Stdio::null())
            .status()
            .context("redis-benchmark does not start")?;
        ensure!(status.success(), "redis-benchmark ended with {status}");
        Ok(Vec::new())
    });
    let played = played?;
    played.must_be_right()?;
    ensure!(played.verdict.confirmed == 0, "{}", played.verdict);
    Ok(())
}
