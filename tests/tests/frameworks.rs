//! Every framework of event loops that Python people use, under its own server and others: what holds up
//! the loop is named, and what waits as it should is not.

use anyhow::{Context as _, Result, ensure};
use profiler_tests::report::{ReportedLanguage, StallExt as _, StallLine};
use profiler_tests::scenario::{Played, alone, each, play};
use profiler_tests::target::Target;
use profiler_tests::truth::Truth;

/// Kept from turning: by a sleep, a busy loop, a socket without a timeout.
const STALLING: [&str; 3] = ["/sleep", "/cpu", "/upstream"];
/// The loop's own sleep, and a sleep in another thread.
const HEALTHY: [&str; 2] = ["/wait", "/to-thread"];
/// Where sockets of its own have taken the place of those that block; a pipe blocks all the same.
const STALLING_GREEN: [&str; 3] = ["/sleep", "/cpu", "/file"];
const HEALTHY_GREEN: [&str; 3] = ["/wait", "/to-thread", "/upstream"];

/// Long enough to be reported, and to be reported before it is over.
const STALL_MS: u64 = 250;
/// As long a wait would be reported, were it one that holds up the loop.
const WAIT_MS: u64 = 150;

/// Where many short callbacks have the turn among them, too.
fn must_be_right_and_saturated(loop_kind: &str, arguments: &[&str]) -> Result<()> {
    must_be(loop_kind, arguments, &HEALTHY, &[&STALLING[..], &["/saturated"]].concat())
}

/// Attaches to the process that runs the loop, requests what is healthy and then what stalls.
fn must_be_right(loop_kind: &str, arguments: &[&str]) -> Result<()> {
    must_be(loop_kind, arguments, &HEALTHY, &STALLING)
}

fn must_be(loop_kind: &str, arguments: &[&str], healthy: &[&str], stalling: &[&str]) -> Result<()> {
    let _machine = alone();
    let command = arguments.join(" ");
    let target = Target::framework(arguments).with_context(|| command.clone())?;
    let mut paths = each(healthy, &[WAIT_MS]);
    paths.extend(each(stalling, &[STALL_MS]));
    let played = play(&target, &paths).with_context(|| command.clone())?;
    println!("{command}");
    played.must_be_right().with_context(|| command.clone())?;
    ensure!(played.verdict.confirmed == stalling.len(), "{command}: {}", played.verdict);
    for truth in played.truths.iter().filter(|truth| !truth.is_lag()) {
        let end = report_of(truth, &played).with_context(|| command.clone())?;
        let is_known = end.thread.loop_kind == loop_kind && Some(end.thread.tid) == truth.thread;
        ensure!(is_known, "{command}: {} of {:?}", truth.kind, end.thread);
        let cause = match truth.kind.as_str() {
            "sleep" => "sleep",
            "cpu" => "cpu",
            "saturated" => "saturated",
            _ => "syscall",
        };
        ensure!(end.is_caused_by(cause), "{command}: {} by {}", truth.kind, end.cause.summary);
        must_be_in_order(end).with_context(|| format!("{command}: {}", truth.kind))?;
    }
    Ok(())
}

fn report_of<'a>(truth: &Truth, played: &'a Played) -> Result<&'a StallLine> {
    let mut ends = played.finished.ends();
    let covers = |end: &&StallLine| {
        truth.overlap_ns(end.stall.start_monotonic_ns, end.end_ns()) > truth.duration_ns() / 2
    };
    ends.find(covers).context("no report")
}

/// Python's frames and native ones are one list: the culprit was called through the interpreter.
fn must_be_in_order(end: &StallLine) -> Result<()> {
    let apart = end.gaps.iter().any(|gap| gap.starts_with("calling order"));
    ensure!(!apart, "{:#?}", end.gaps);
    let heaviest = end.stacks.first().context("no stack")?;
    let outermost = heaviest.frames.last().context("no frame")?;
    ensure!(outermost.language == ReportedLanguage::Native, "the stack ends with {outermost:?}");
    Ok(())
}

#[test]
fn aiohttp() -> Result<()> {
    must_be_right_and_saturated("asyncio", &["aiohttp_app.py", "{port}", "asyncio"])
}

#[test]
fn aiohttp_on_uvloop() -> Result<()> {
    must_be_right_and_saturated("uvloop", &["aiohttp_app.py", "{port}", "uvloop"])
}

#[test]
fn tornado() -> Result<()> {
    must_be_right("asyncio", &["tornado_app.py", "{port}"])
}

#[test]
fn trio() -> Result<()> {
    must_be_right_and_saturated("trio", &["trio_app.py", "{port}"])
}

#[test]
fn anyio_on_asyncio() -> Result<()> {
    must_be_right("asyncio", &["anyio_app.py", "{port}", "asyncio"])
}

#[test]
fn anyio_on_trio() -> Result<()> {
    must_be_right("trio", &["anyio_app.py", "{port}", "trio"])
}

#[test]
fn twisted() -> Result<()> {
    must_be_right_and_saturated("twisted", &["twisted_app.py", "{port}"])
}

/// Greenlets share their thread's stack: no frames of another one are taken for the caller's.
#[test]
fn gevent() -> Result<()> {
    must_be("gevent", &["gevent_app.py", "{port}"], &HEALTHY_GREEN, &STALLING_GREEN)
}

#[test]
fn eventlet() -> Result<()> {
    // It warns against itself.
    let arguments = ["-W", "ignore", "eventlet_app.py", "{port}"];
    must_be("eventlet", &arguments, &HEALTHY_GREEN, &STALLING_GREEN)
}

#[test]
fn gevent_under_gunicorn() -> Result<()> {
    // As its configuration, the shop is imported before the worker puts gevent's functions in place.
    let config = ["--config", "python:shop", "--keep-alive", "120", "--log-level", "warning"];
    let server = ["-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--worker-class", "gevent"];
    let arguments = [&server[..], &config, &["gevent_app:application"]].concat();
    must_be("gevent", &arguments, &HEALTHY_GREEN, &STALLING_GREEN)
}

#[test]
fn uvicorn_under_gunicorn() -> Result<()> {
    let worker = ["--worker-class", "uvicorn.workers.UvicornWorker", "--log-level", "warning"];
    let server = ["-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--keep-alive", "120"];
    must_be_right("uvloop", &[&server[..], &worker, &["starlette_app:app"]].concat())
}

#[test]
fn django_under_uvicorn() -> Result<()> {
    let server = ["-m", "uvicorn", "--port", "{port}", "--loop", "asyncio"];
    let quiet = ["--no-access-log", "--log-level", "warning", "django_app:application"];
    must_be_right("asyncio", &[&server[..], &quiet].concat())
}

/// Twisted's reactor on asyncio's loop.
#[test]
fn django_under_daphne() -> Result<()> {
    let server = ["-m", "daphne", "--bind", "127.0.0.1", "--port", "{port}", "--verbosity", "0"];
    must_be_right("asyncio", &[&server[..], &["django_app:application"]].concat())
}

fn hypercorn(loop_kind: &str, worker: &str) -> Result<()> {
    let server = ["-m", "hypercorn", "--bind", "127.0.0.1:{port}", "--log-level", "warning"];
    must_be_right(
        loop_kind,
        &[&server[..], &["--worker-class", worker, "starlette_app:app"]].concat(),
    )
}

#[test]
fn hypercorn_on_asyncio() -> Result<()> {
    hypercorn("asyncio", "asyncio")
}

#[test]
fn hypercorn_on_uvloop() -> Result<()> {
    hypercorn("uvloop", "uvloop")
}

#[test]
fn hypercorn_on_trio() -> Result<()> {
    hypercorn("trio", "trio")
}

/// The worker has the loop in its main thread, and the Rust runtime that reads the requests in others.
fn granian(event_loop: &str) -> Result<()> {
    let server = ["-m", "granian", "--interface", "asgi", "--port", "{port}", "--loop", event_loop];
    let quiet = ["--log-level", "warning", "starlette_app:app"];
    must_be_right(event_loop, &[&server[..], &quiet].concat())
}

#[test]
fn granian_on_asyncio() -> Result<()> {
    granian("asyncio")
}

#[test]
fn granian_on_uvloop() -> Result<()> {
    granian("uvloop")
}

/// Where its Rust runtime has several threads, those without work park: they stall nobody.
#[test]
fn granian_with_a_pool() -> Result<()> {
    let server = ["-m", "granian", "--interface", "asgi", "--port", "{port}", "--loop", "asyncio"];
    let pool = ["--runtime-mode", "mt", "--runtime-threads", "2", "--log-level", "warning"];
    must_be_right("asyncio", &[&server[..], &pool, &["starlette_app:app"]].concat())
}
