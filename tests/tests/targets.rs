//! The targets by themselves, without stalltrace: what they write down must be what their clients felt.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use profiler_tests::clock::{MILLISECOND, patience, slowdown};
use profiler_tests::load::{Client, Exchange, Traffic};
use profiler_tests::noise::NoiseMeter;
use profiler_tests::redis;
use profiler_tests::scenario::{alone, each};
use profiler_tests::target::Target;
use profiler_tests::truth::Truth;

/// The routes that both HTTP targets have.
const STALLING: [&str; 8] =
    ["/regex", "/upstream", "/upstream-timeout", "/file", "/lock", "/sleep", "/subprocess", "/cpu"];

/// How long each is asked to stall.
const ASKED_MS: u64 = 250;
/// What a request may take besides its stall, on a machine that is busy with something else.
const REST_NS: u64 = 200 * MILLISECOND;

/// So much of a stall may go unnoticed: until the next beat or request is due, and on a machine that is
/// busy until it is there.
const UNNOTICED_NS: u64 = 60 * MILLISECOND;

/// What a statement that blocks looks like, by kind: the line that the record names must be one.
const STATEMENTS: [(&str, &str); 10] = [
    ("regex", ".search("),
    ("upstream", "reply = "),
    ("upstream-timeout", "reply = "),
    ("file", "file.read()"),
    ("lock", "lock.acquire()"),
    ("sleep", "time.sleep("),
    ("dependency", "time.sleep("),
    ("short", "time.sleep("),
    ("subprocess", "subprocess.run("),
    ("cpu", "while "),
];

/// The source line that a record names must be the statement that blocks.
fn check_place(truth: &Truth) -> Result<()> {
    let (_, statement) = STATEMENTS
        .iter()
        .find(|(kind, _)| *kind == truth.kind)
        .with_context(|| format!("no statement is known for {}", truth.kind))?;
    let file = truth.file.as_deref().context("no file")?;
    let text = std::fs::read_to_string(file)?;
    let line = truth.line.and_then(|line| text.lines().nth(line as usize - 1)).unwrap_or_default();
    ensure!(line.contains(statement), "{truth:?} names {line:?}");
    let function = truth.function.as_deref().context("no function")?;
    ensure!(text.contains(&format!("def {function}(")), "{truth:?} names no function of {file}");
    Ok(())
}

/// Every stalling route is recorded once, for about as long as asked for, and felt by others as long.
fn check_stalls(target: &Target, paths: &[&str]) -> Result<()> {
    let noise = NoiseMeter::start();
    let traffic = Traffic::start(target.port(), "/", Duration::from_millis(20), 16)?;
    let mut client = Client::connect(target.port())?;
    for path in each(paths, &[ASKED_MS]) {
        let before = target.truths()?.len();
        let felt = client.get(&path)?;
        let truths = target.truths()?;
        let mut new = truths.iter().skip(before).filter(|truth| !truth.is_lag());
        let truth = new.next().with_context(|| format!("{path} left no record"))?;
        ensure!(new.next().is_none(), "{path} left more than one record");
        ensure!(felt.sent_ns <= truth.start_ns && truth.end_ns <= felt.answered_ns, "{truth:?}");
        let rest_ns = felt.waited_ns().saturating_sub(truth.duration_ns());
        let allowed_ns = REST_NS * u64::from(slowdown()) + noise.allowance_ns();
        ensure!(rest_ns < allowed_ns, "{path}: {rest_ns} ns of the request are not in {truth:?}");
        // A pattern's time is foretold from a shorter one's, and a lock's time has begun when the loop comes
        // to it; the others wait for a clock.
        let is_rough = ["regex", "lock"].contains(&truth.kind.as_str());
        let at_least_ms = if is_rough { ASKED_MS / 2 } else { ASKED_MS - 10 };
        let lasted_ms = truth.duration_ns() / MILLISECOND;
        let expected_ms = at_least_ms..ASKED_MS * 6 * u64::from(slowdown());
        ensure!(expected_ms.contains(&lasted_ms), "{path} lasted {lasted_ms} ms");
        if truth.function.is_some() {
            check_place(truth)?;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    check_witnesses(target, &traffic.finish()?, UNNOTICED_NS + noise.allowance_ns())
}

/// The heartbeat and the healthy requests must both have noticed every stall.
fn check_witnesses(target: &Target, healthy: &[Exchange], unnoticed_ns: u64) -> Result<()> {
    let truths = target.truths()?;
    let stalls = truths.iter().filter(|truth| !truth.is_lag());
    for truth in stalls.filter(|truth| truth.duration_ns() > 100 * MILLISECOND) {
        let mut lags = truths.iter().filter(|lag| lag.is_lag());
        let noted = lags.any(|lag| {
            lag.overlap_ns(truth.start_ns, truth.end_ns) + unnoticed_ns >= truth.duration_ns()
        });
        ensure!(noted, "the heartbeat did not notice {truth:?}");
        let felt = healthy.iter().any(|exchange| {
            let overlap_ns = truth.overlap_ns(exchange.sent_ns, exchange.answered_ns);
            overlap_ns + unnoticed_ns >= truth.duration_ns()
        });
        ensure!(felt, "no healthy request was held up by {truth:?}");
    }
    Ok(())
}

/// Healthy routes leave no record longer than the heartbeat's own sense, whatever the load.
fn check_health(target: &Target) -> Result<()> {
    let before = target.truths()?.len();
    let traffic = Traffic::start(target.port(), "/", Duration::from_millis(5), 16)?;
    let mut client = Client::connect(target.port())?;
    for path in each(&["/async-sleep", "/to-thread", "/short", "/"], &[150, 150]) {
        client.get(&path)?;
    }
    let exchanges = traffic.finish()?;
    ensure!(exchanges.len() > 30, "only {} healthy requests were answered", exchanges.len());
    for truth in target.truths()?.iter().skip(before).filter(|truth| !truth.is_lag()) {
        ensure!(truth.kind == "short" && truth.duration_ns() < 100 * MILLISECOND, "{truth:?}");
        check_place(truth)?;
    }
    Ok(())
}

/// What the sample service writes down is true.
#[test]
fn the_service_is_truthful() -> Result<()> {
    let _machine = alone();
    let target = Target::service()?;
    check_stalls(&target, &[&STALLING[..], &["/saturated"]].concat())?;
    check_health(&target)
}

/// What the FastAPI application writes down is true, on either loop.
#[test]
fn the_fastapi_application_is_truthful() -> Result<()> {
    let _machine = alone();
    for event_loop in ["asyncio", "uvloop"] {
        let target = Target::uvicorn(event_loop)?;
        check_stalls(&target, &[&STALLING[..], &["/dependency"]].concat())
            .with_context(|| event_loop.to_owned())?;
        check_health(&target).with_context(|| event_loop.to_owned())?;
    }
    Ok(())
}

/// The freezing loop says when it freezes, and afterwards for how long it was.
#[test]
fn the_freezing_loop_is_truthful() -> Result<()> {
    let _machine = alone();
    for kind in ["sleep", "spin"] {
        let mut target = Target::frozen(kind, 1, 1)?;
        target.line_starting("frozen", patience(60))?;
        ensure!(target.truths()?.iter().all(Truth::is_lag), "it has not thawed yet");
        target.line_starting("frozen", patience(60))?;
        let truths = target.truths()?;
        let stall = truths.iter().find(|truth| truth.kind == kind).context("no record")?;
        ensure!(stall.duration_ns() > 990 * MILLISECOND, "{stall:?}");
        target.stop()?;
    }
    Ok(())
}

/// Redis stands still while it sleeps and while it runs a script, for everybody.
#[test]
fn redis_stalls_when_told_to() -> Result<()> {
    let _machine = alone();
    let (_target, port) = redis::start()?;
    let mut connection = redis::Connection::open(port)?;
    let script = redis::busy_script(&mut connection, 300)?;
    let script: Vec<&str> = script.iter().map(String::as_str).collect();
    for words in [&["DEBUG", "SLEEP", "0.3"][..], &script] {
        let other = std::thread::spawn(move || -> Result<Truth> {
            let mut other = redis::Connection::open(port)?;
            std::thread::sleep(Duration::from_millis(50));
            other.timed("ping", &["PING"])
        });
        let stall = connection.timed("stall", words)?;
        ensure!(stall.duration_ns() > 150 * MILLISECOND, "{stall:?}");
        let Ok(ping) = other.join() else { anyhow::bail!("the other client panicked") };
        ensure!(ping?.duration_ns() > 50 * MILLISECOND, "another client was served meanwhile");
    }
    Ok(())
}
