//! A server that embeds CPython: the executable is not Python's, and the frames are named all the same.

use anyhow::{Result, ensure};
use profiler_tests::load::Client;
use profiler_tests::report::{ReportExt as _, StallExt as _};
use profiler_tests::scenario::{Played, alone, each, observe};
use profiler_tests::target::Target;

fn play(paths: &[String]) -> Result<Played> {
    let target = Target::uwsgi("wsgi_app.py")?;
    let played = observe(&target, || {
        for path in paths {
            // It closes its connections after each answer.
            Client::connect(target.port())?.get(path)?;
            std::thread::sleep(std::time::Duration::from_millis(150));
        }
        Ok(Vec::new())
    })?;
    played.must_be_right()?;
    Ok(played)
}

/// The line that blocks is named, below the server's own C code.
#[test]
fn stalls_are_reported() -> Result<()> {
    let _machine = alone();
    let played = play(&each(&["/sleep", "/cpu"], &[300, 500]))?;
    ensure!(played.verdict.confirmed >= 4, "{}", played.verdict);
    let stalls = || played.finished.lines.iter().filter_map(|arrived| arrived.line.stall());
    ensure!(stalls().all(|stall| stall.loop_runs("application")), "a frame of Python is missing");
    ensure!(stalls().all(|stall| stall.loop_runs("simple_loop_run")), "a native frame is missing");
    let doubt = stalls().flat_map(|stall| &stall.gaps).find(|gap| gap.contains("Python"));
    ensure!(doubt.is_none(), "{doubt:?}");
    Ok(())
}

/// Requests that are answered at once are no stalls, nor is the waiting for them.
#[test]
fn health_is_silent() -> Result<()> {
    let _machine = alone();
    let played = play(&each(&["/", "/sleep"], &[20; 6]))?;
    ensure!(played.verdict.confirmed == 0, "{}", played.verdict);
    Ok(())
}
