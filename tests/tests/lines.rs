//! Lines as they are by default: short enough for the systems that people send logs to, and without other people's
//! secrets.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use profiler_tests::load::Client;
use profiler_tests::log_systems::{self, Kept};
use profiler_tests::redis;
use profiler_tests::scenario::{alone, each, require_root};
use profiler_tests::tally::{Tally, skip};
use profiler_tests::target::{Scratch, Target, node};
use profiler_tests::tracer::{Finished, Tracer};
use serde_json::Value;

/// stalltrace's own default, with the line feed.
const LINE_LIMIT_BYTES: usize = 8000;

/// Reports that each system is sent of each runtime.
const REPORTS: usize = 50;

/// A few more, as a stall of a busy machine may be two.
const STALLS: usize = REPORTS + 5;

const OPTIONS: [&str; 2] = ["--threshold", "20ms"];

/// What is to stall for a multiple of the threshold, in turn.
fn requests(paths: &[&str]) -> Vec<String> {
    each(paths, &[60]).into_iter().cycle().take(STALLS).collect()
}

fn of_http(target: &Target, paths: &[&str]) -> Result<Finished> {
    let (tracer, _) = Tracer::attach_plainly(target.loop_pid(), &OPTIONS)?;
    let mut client = Client::connect(target.port())?;
    for path in requests(paths) {
        client.get(&path)?;
    }
    tracer.interrupt()
}

fn of_uvicorn() -> Result<Finished> {
    let paths = ["/upstream", "/regex", "/sleep", "/file", "/lock", "/dependency", "/subprocess"];
    of_http(&Target::uvicorn("uvloop")?, &paths)
}

fn of_node() -> Result<Finished> {
    of_http(&Target::node(&node(22)?, &[])?, &["/file", "/hash", "/json", "/regex", "/shell"])
}

fn of_tokio() -> Result<Finished> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tokio-target"));
    command.args(["--flavour", "current_thread"]);
    of_http(&Target::of_ours(command)?, &["/sleep", "/spin", "/lock", "/read"])
}

fn of_redis() -> Result<Finished> {
    let (target, port) = redis::start()?;
    let mut connection = redis::Connection::open(port)?;
    let script = redis::busy_script(&mut connection, 60)?;
    let script: Vec<&str> = script.iter().map(String::as_str).collect();
    let (tracer, _) = Tracer::attach_plainly(target.pid(), &OPTIONS)?;
    for number in 0..STALLS {
        let words = if number % 2 == 0 { &["DEBUG", "SLEEP", "0.06"][..] } else { &script };
        connection.command(words)?;
    }
    tracer.interrupt()
}

/// The lines of each kind of event, and whether they are as short as promised.
fn by_event(runtime: &str, finished: &Finished) -> Result<BTreeMap<String, Vec<String>>> {
    let mut events: BTreeMap<String, Vec<String>> = BTreeMap::new();
    ensure!(finished.unreadable.is_empty(), "{runtime}: {:?}", finished.unreadable);
    for text in &finished.texts {
        ensure!(text.len() < LINE_LIMIT_BYTES, "{runtime}: {} bytes: {text}", text.len());
        let line: Value = serde_json::from_str(text)?;
        let event = line["event"].as_str().context("no event")?;
        events.entry(event.to_owned()).or_default().push(text.clone());
    }
    for (event, lines) in &events {
        let mut bytes: Vec<usize> = lines.iter().map(|line| line.len() + 1).collect();
        bytes.sort_unstable();
        let at = |percent: usize| bytes.get((bytes.len() - 1) * percent / 100).copied();
        println!(
            "{runtime} {event}: {} lines, bytes: median {:?}, p95 {:?}, max {:?}",
            lines.len(),
            at(50),
            at(95),
            at(100)
        );
    }
    Ok(events)
}

fn must_be_kept(test: &str, kept: Kept, sent: &[String]) -> Result<()> {
    let kept = match kept {
        Ok(kept) => kept,
        Err(why) => return skip(test, why),
    };
    let mut tally = Tally::of(test);
    ensure!(kept.len() == sent.len(), "{test}: {} lines of {}", kept.len(), sent.len());
    for (kept, sent) in kept.iter().zip(sent) {
        ensure!(kept == sent, "{test}: {kept}\ninstead of\n{sent}");
        serde_json::from_str::<Value>(kept).with_context(|| format!("{test}: {kept}"))?;
        tally.compared();
    }
    tally.must_be(REPORTS)
}

/// Fifty reports of each runtime come out of each system as they went in, byte by byte.
#[test]
fn survive_the_way() -> Result<()> {
    let _machine = alone();
    require_root()?;
    type Record = fn() -> Result<Finished>;
    let runtimes: [(&str, Record); 4] =
        [("uvicorn", of_uvicorn), ("node", of_node), ("redis", of_redis), ("tokio", of_tokio)];
    for (runtime, record) in runtimes {
        let finished = record().context(runtime)?;
        let events = by_event(runtime, &finished)?;
        let ends = events.get("stall_end").map(Vec::as_slice).unwrap_or_default();
        let sent = ends.get(..REPORTS).with_context(|| format!("{} stalls", ends.len()))?;
        let scratch = Scratch::new()?;
        let file = scratch.file("lines.jsonl");
        std::fs::write(&file, sent.join("\n") + "\n")?;
        pass_on(runtime, &file, sent)?;
    }
    Ok(())
}

fn pass_on(runtime: &str, file: &Path, sent: &[String]) -> Result<()> {
    let test = |system: &str| format!("lines/{system}/{runtime}");
    let (by_socket, by_file) = log_systems::rsyslog(file, sent.len())?;
    must_be_kept(&test("rsyslog_socket"), by_socket, sent)?;
    must_be_kept(&test("rsyslog_file"), by_file, sent)?;
    must_be_kept(&test("journald"), log_systems::journald(file, sent.len())?, sent)?;
    must_be_kept(&test("container"), log_systems::container(file)?, sent)
}

/// What a child was started with is told only where that is asked for; who it was is told, and so are our labels.
#[test]
fn other_processes_arguments() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = Target::uvicorn("asyncio")?;
    let told = |options: &[&str]| -> Result<Vec<String>> {
        let (tracer, _) = Tracer::attach_plainly(target.pid(), options)?;
        Client::connect(target.port())?.get("/subprocess?ms=400")?;
        let finished = tracer.interrupt()?;
        ensure!(
            finished.ends().any(|end| end.cause.summary.contains("child")),
            "no stall is a child's"
        );
        Ok(finished.texts)
    };
    const ARGUMENT: &str = "sleep 0.4";
    let hidden = told(&["--label", "team=billing", "--label", "stage=test"])?;
    ensure!(!hidden.iter().any(|line| line.contains(ARGUMENT)), "{hidden:#?}");
    ensure!(hidden.iter().any(|line| line.contains("(sleep)")), "{hidden:#?}");
    for line in &hidden {
        let line: Value = serde_json::from_str(line)?;
        let process = &line["process"];
        ensure!(process["labels"]["team"] == "billing" && process["labels"]["stage"] == "test");
        ensure!(process["service"] == "fastapi_app", "{process}");
    }
    let shown = told(&["--show-commands"])?;
    ensure!(shown.iter().any(|line| line.contains(ARGUMENT)), "{shown:#?}");
    Ok(())
}
