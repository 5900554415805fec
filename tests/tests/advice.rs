//! Real stalls of several programs to the remedy that fits: each by words that no other rule says.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use profiler_tests::clock::patience;
use profiler_tests::redis::{self, Connection};
use profiler_tests::report::{StallExt as _, StallLine};
use profiler_tests::scenario::{alone, each, observe, play, require_root};
use profiler_tests::tally::Tally;
use profiler_tests::target::{Target, folder, node, system_python};
use profiler_tests::tracer::Tracer;

/// An error unless the advice has these words. A thread without a CPU is told about that instead, and
/// rightly: then nothing is said of the test's own stall.
fn must_advise(end: &StallLine, words: &str, tally: &mut Tally) -> Result<()> {
    if end.cause.kind.name() == "run_queue" {
        tally.passed_over(format!("starved: {}", end.cause.summary));
        return Ok(());
    }
    let advice = end.advice.as_deref().with_context(|| format!("no advice: {:?}", end.cause))?;
    ensure!(advice.contains(words), "{advice:?} instead of {words:?} for {:?}", end.cause);
    println!("{}: {advice}", end.cause.summary);
    tally.compared();
    Ok(())
}

/// Plays each path of a service; the report that overlaps its record must advise so.
fn advise_service(name: &str, target: &Target, expected: &[(&str, &str)]) -> Result<()> {
    let mut tally = Tally::of(format!("advice/{name}"));
    let paths: Vec<&str> = expected.iter().map(|(path, _)| *path).collect();
    let played = play(target, &each(&paths, &[300]))?;
    played.must_be_right()?;
    for (path, words) in expected {
        let truth = played.truths.iter().find(|truth| path.ends_with(&truth.kind));
        let truth = truth.with_context(|| format!("no record of {path}"))?;
        let end = played.finished.ends().find(|end| {
            let overlap_ns = truth.overlap_ns(end.stall.start_monotonic_ns, end.end_ns());
            overlap_ns > truth.duration_ns() / 2
        });
        must_advise(end.with_context(|| format!("{path} was not reported"))?, words, &mut tally)?;
    }
    tally.must_be(expected.len() - 1)
}

/// What asyncio's own documentation would say.
#[test]
fn asyncio() -> Result<()> {
    let _machine = alone();
    let expected = [
        ("/sleep", "asyncio.sleep"),
        ("/upstream", "HTTP request"),
        ("/subprocess", "asyncio.create_subprocess_exec"),
        ("/lock", "asyncio.Lock"),
        ("/file", "Files have no asynchronous calls"),
    ];
    advise_service("asyncio", &Target::service()?, &expected)
}

/// The third stall by one peer suggests to leave it alone for a while; the second does not.
#[test]
fn a_peer_again_and_again() -> Result<()> {
    let _machine = alone();
    let target = Target::service()?;
    let played = play(&target, &each(&["/upstream"], &[300; 3]))?;
    played.must_be_right()?;
    let ends: Vec<&StallLine> =
        played.finished.ends().filter(|end| end.cause.kind.name() == "syscall").collect();
    ensure!(ends.len() >= 3, "{} stalls by the peer", ends.len());
    for (index, end) in ends.iter().enumerate() {
        let breaks =
            end.advice.as_deref().is_some_and(|it| it.contains("3 stalls: a circuit breaker"));
        ensure!(breaks == (index == 2), "stall {index}: {:?}", end.advice);
    }
    Ok(())
}

/// Runs a program of ours to its end; the reports of its stalls, in order.
fn ends_of(script: &str, arguments: &[&str]) -> Result<Vec<StallLine>> {
    require_root()?;
    let mut command = Command::new(system_python());
    command.arg(folder().join(script)).args(arguments);
    let target = Target::program(command)?;
    target.line_starting("ready", patience(60))?;
    let (tracer, _) = Tracer::attach(target.pid(), &[])?;
    target.signal(Signal::SIGUSR1)?;
    Ok(tracer.finish()?.ends().cloned().collect())
}

/// What computes is told from what hashes and from what matches, by what is on the stack.
#[test]
fn computing() -> Result<()> {
    let _machine = alone();
    let ends = ends_of("oncpu.py", &["hash", "match", "long", "callbacks", "collect"])?;
    let expected = [
        ("hash_password", "copy_context"),
        ("check_document", "google-re2"),
        ("count_words", "A long computation"),
        ("count_words", "schedule fewer callbacks"),
        ("collect_garbage", "gc.freeze"),
    ];
    let mut left = &ends[..];
    let mut tally = Tally::of("advice/computing");
    for (function, words) in expected {
        let is_its = |end: &&StallLine| {
            end.culprit.as_ref().and_then(|culprit| culprit.function.as_deref()) == Some(function)
        };
        let Some(place) = left.iter().position(|end| is_its(&end)) else {
            let is_starved = left.iter().any(|end| end.culprit.is_none() && end.is_starved());
            ensure!(is_starved, "{function} was not reported");
            tally.passed_over(format!("{function}: others had the CPU"));
            continue;
        };
        must_advise(&left[place], words, &mut tally)?;
        left = &left[place + 1..];
    }
    // One may be lost to a machine that is busy with something else.
    tally.must_be(expected.len() - 1)
}

/// Who waits for the GIL is told about the thread that keeps it.
#[test]
fn interpreter_lock() -> Result<()> {
    let _machine = alone();
    let ends = ends_of("gil.py", &["--times", "2"])?;
    let end =
        ends.iter().find(|end| end.cause.kind.name() == "gil").context("no wait was reported")?;
    let mut tally = Tally::of("advice/interpreter_lock");
    must_advise(end, "keeps the GIL", &mut tally)?;
    tally.must_be(1)
}

/// Sync calls of node, and what keeps its only thread.
#[test]
fn node_service() -> Result<()> {
    let _machine = alone();
    let expected = [
        ("/file", "fs.promises"),
        ("/hash", "crypto.pbkdf2"),
        ("/shell", "execFile or spawn"),
        ("/json", "A large JSON document"),
        ("/regex", "such as re2"),
        ("/cpu", "setImmediate"),
    ];
    advise_service("node", &Target::node(&node(22)?, &[])?, &expected)
}

/// Commands of Redis.
#[test]
fn redis_commands() -> Result<()> {
    let _machine = alone();
    let (target, port) = redis::start()?;
    let mut connection = Connection::open(port)?;
    let keys = redis::busy_keys(&mut connection, 300)?;
    let script = redis::busy_script(&mut connection, 400)?;
    let script: Vec<&str> = script.iter().map(String::as_str).collect();
    let played = observe(&target, || {
        let keys = connection.timed("keys", &keys);
        let pause = std::time::Duration::from_millis(300);
        std::thread::sleep(pause);
        Ok(vec![keys?, connection.timed("script", &script)?])
    })?;
    let ends: Vec<&StallLine> = played.finished.ends().collect();
    ensure!(ends.len() == 2, "{} stalls: {ends:?}", ends.len());
    let mut tally = Tally::of("advice/redis_commands");
    must_advise(ends[0], "iterate with SCAN", &mut tally)?;
    must_advise(ends[1], "A script runs alone", &mut tally)?;
    tally.must_be(1)
}
