//! Whose task froze the loop: name, function, file and line as the program itself has them, on every CPython.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use profiler_tests::clock::patience;
use profiler_tests::lives::broken_contract;
use profiler_tests::load::Client;
use profiler_tests::report::{ReportedTask, StallExt as _, StallLine};
use profiler_tests::scenario::{THRESHOLD_NS, alone, require_root};
use profiler_tests::tally::{Tally, skip};
use profiler_tests::target::{
    Scratch, Target, folder, frameworks_python, free_port, system_python, venv_python,
};
use profiler_tests::tracer::{Finished, Tracer};
use serde::Deserialize;

/// How long each is asked to freeze the loop.
const FREEZE_MS: u64 = 250;
const BREATH: Duration = Duration::from_millis(100);

/// What the program wrote down about one freeze.
#[derive(Debug, Deserialize)]
struct Record {
    kind: String,
    task: Option<String>,
    function: Option<String>,
    file: Option<PathBuf>,
    line: Option<u32>,
    start_ns: u64,
    end_ns: u64,
}

impl Record {
    fn lasted_ns(&self) -> u64 {
        self.end_ns - self.start_ns
    }

    /// What is wrong with a report's task, if anything is.
    fn contradicts(&self, task: Option<&ReportedTask>) -> bool {
        let Some(task) = task else { return self.task.is_some() };
        self.task.is_none()
            || task.name != self.task
            || task.function != self.function
            || task.file.as_deref().map(Path::new) != self.file.as_deref()
            || task.line != self.line
    }
}

fn records(path: &Path) -> Result<Vec<Record>> {
    let text = std::fs::read_to_string(path)?;
    let parse = |line| serde_json::from_str(line).with_context(|| format!("no record: {line}"));
    text.lines().map(parse).collect()
}

fn covers(end: &StallLine, record: &Record) -> bool {
    end.stall.start_monotonic_ns <= record.start_ns && record.end_ns <= end.end_ns()
}

/// The report of the turn in which something was recorded.
fn report_of<'a>(finished: &'a Finished, record: &Record) -> Option<&'a StallLine> {
    finished.ends().find(|end| covers(end, record))
}

/// Whether the loop waited for a CPU for so long that nobody can say what else it did.
fn is_starved(end: &StallLine) -> bool {
    let time = &end.stall.time;
    let running_ns = time.running_user_ns + time.running_kernel_ns;
    time.runnable_ns > running_ns.max(time.blocked_ns)
}

/// Reports of turns in which nothing long was recorded, and in which the machine did not keep its CPU from
/// the loop either.
fn unexplained<'a>(finished: &'a Finished, records: &[Record]) -> Vec<&'a StallLine> {
    let is_long = |record: &&Record| record.lasted_ns() > THRESHOLD_NS / 2;
    let explains = |end: &StallLine, record: &Record| {
        end.stall.start_monotonic_ns < record.end_ns && record.start_ns < end.end_ns()
    };
    finished
        .ends()
        .filter(|end| !is_starved(end))
        .filter(|end| !records.iter().filter(is_long).any(|record| explains(end, record)))
        .collect()
}

/// Every freeze past the threshold is reported with its task; those that were compared are counted.
fn must_agree(
    finished: &Finished,
    records: &[Record],
    what: &str,
    tally: &mut Tally,
) -> Result<()> {
    let broken = broken_contract(&finished.lines);
    ensure!(broken.is_empty(), "{what}: {broken:?}");
    let mut wrong = String::new();
    for record in records.iter().filter(|it| it.lasted_ns() > THRESHOLD_NS) {
        let Some(end) = report_of(finished, record) else {
            bail!("{what}: {} was missed\n{}", record.kind, finished.logs);
        };
        // One report tells of one task: where the machine made another's turn nearly as long, of either.
        let rivals = records.iter().filter(|it| !std::ptr::eq(*it, record) && covers(end, it));
        if rivals.map(Record::lasted_ns).any(|ns| ns > record.lasted_ns() / 2) {
            tally.passed_over(format!("{what}: {} shared its turn", record.kind));
            continue;
        }
        if is_starved(end) && end.task.is_none() {
            tally.passed_over(format!("{what}: the machine kept its CPU from {}", record.kind));
            continue;
        }
        tally.compared();
        if record.contradicts(end.task.as_ref()) {
            wrong += &format!("\n{record:?}\n  is not {:?}; gaps {:?}", end.task, end.gaps);
        }
        let unexplained = end.gaps.iter().any(|gap| gap.starts_with("task"));
        if unexplained {
            wrong += &format!("\n{} has gaps {:?}", record.kind, end.gaps);
        }
    }
    ensure!(wrong.is_empty(), "{what}:{wrong}");
    Ok(())
}

/// Runs the script once under a Python; returns what both sides said.
fn watch(launcher: &[OsString], options: &[&str]) -> Result<(Finished, Vec<Record>)> {
    let scratch = Scratch::new()?;
    let truth = scratch.file("tasks.jsonl");
    let (program, before) = launcher.split_first().context("no interpreter")?;
    let mut command = Command::new(program);
    command.args(before).arg(folder().join("tasks.py")).args(options).env("TASK_TRUTH", &truth);
    let target = Target::program(command)?;
    target.line_starting("ready", patience(60))?;
    let (tracer, _) = Tracer::attach(target.pid(), &[])?;
    target.signal(Signal::SIGUSR1)?;
    let finished = tracer.finish()?;
    Ok((finished, records(&truth)?))
}

/// How the interpreters that are installed are started, by version; the others are named and passed over.
fn pythons() -> Result<Vec<(String, Vec<OsString>)>> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let versions =
        std::env::var_os("PYENV_ROOT").map_or_else(|| home.join(".pyenv"), PathBuf::from);
    let versions = versions.join("versions");
    let mut found = vec![("system".to_owned(), vec![system_python().into()])];
    for minor in 8..=15 {
        let prefix = format!("3.{minor}.");
        let entries = std::fs::read_dir(&versions).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let newest = names.filter(|name| name.starts_with(&prefix)).max();
        let installed = newest.map(|name| vec![versions.join(name).join("bin/python3").into()]);
        match installed.or_else(|| unpacked(minor)) {
            Some(launcher) => found.push((format!("3.{minor}"), launcher)),
            None => skip(&format!("cpython/3.{minor}"), "it is not here")?,
        }
    }
    Ok(found)
}

/// One that lies beside this system with a C library of its own, started by its own loader.
fn unpacked(minor: u8) -> Option<Vec<OsString>> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let root = target.join(format!("python-3.{minor}")).canonicalize().ok()?;
    let python = root.join(format!("usr/bin/python3.{minor}"));
    let loader = root.join("lib64/ld-linux-x86-64.so.2");
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let launcher = vec![loader.into(), "--library-path".into(), libraries.into(), python.into()];
    root.join("complete").exists().then_some(launcher)
}

/// Named and numbered tasks, nested coroutines, generators, two tasks in a turn, eager tasks, callbacks.
#[test]
fn tasks_are_told_apart() -> Result<()> {
    require_root()?;
    let _machine = alone();
    for (version, launcher) in pythons()? {
        let (finished, records) = watch(&launcher, &[])?;
        let invented = unexplained(&finished, &records);
        ensure!(invented.is_empty(), "{version}: {invented:?}");
        let mut tally = Tally::of(format!("tasks/{version}"));
        must_agree(&finished, &records, &version, &mut tally)?;
        tally.must_be(9)?;
    }
    Ok(())
}

/// The same tasks, none of which keeps the loop: nothing is reported.
#[test]
fn short_tasks_are_left_in_peace() -> Result<()> {
    require_root()?;
    let _machine = alone();
    let (finished, records) = watch(&[system_python().into()], &["--healthy"])?;
    let invented = unexplained(&finished, &records);
    ensure!(invented.is_empty(), "{invented:?}");
    Ok(())
}

fn handlers_are_named(event_loop: &str) -> Result<()> {
    require_root()?;
    let _machine = alone();
    let scratch = Scratch::new()?;
    let truth = scratch.file("tasks.jsonl");
    let port = free_port()?;
    let mut command = Command::new(venv_python()?);
    command.args(["-m", "uvicorn", "tasks_app:app", "--log-level", "warning", "--no-access-log"]);
    command.args(["--loop", event_loop, "--port", &port.to_string(), "--app-dir"]).arg(folder());
    command.env("TASK_TRUTH", &truth);
    let target = Target::program(command)?;
    let deadline = Instant::now() + patience(60);
    while Client::connect(port).and_then(|mut client| client.get("/")).is_err() {
        ensure!(Instant::now() < deadline, "uvicorn does not answer");
        std::thread::sleep(BREATH);
    }
    let paths = ["/pay", "/", "/account", "/pay"];
    must_name_handlers(&target, port, &truth, &paths, event_loop)
}

/// Requests each path; every one but `/` freezes the loop.
fn must_name_handlers(
    target: &Target,
    port: u16,
    truth: &Path,
    paths: &[&str],
    what: &str,
) -> Result<()> {
    let (tracer, _) = Tracer::attach(target.pid(), &[])?;
    let mut client = Client::connect(port)?;
    for path in paths {
        client.get(&format!("{path}?ms={FREEZE_MS}"))?;
        std::thread::sleep(BREATH);
    }
    let finished = tracer.interrupt()?;
    let mut tally = Tally::of(format!("tasks/handlers_{what}"));
    must_agree(&finished, &records(truth)?, what, &mut tally)?;
    // One may be lost to a machine that is busy with something else.
    let freezing = paths.iter().filter(|path| **path != "/").count();
    tally.must_be(freezing - 1)?;
    let invented = unexplained(&finished, &records(truth)?);
    ensure!(invented.is_empty(), "{what}: {invented:?}");
    Ok(())
}

/// aiohttp calls middleware and handlers without a frame of its own between them.
#[test]
fn handlers_of_aiohttp_are_named() -> Result<()> {
    require_root()?;
    let _machine = alone();
    let scratch = Scratch::new()?;
    let truth = scratch.file("tasks.jsonl");
    let mut command = Command::new(frameworks_python()?);
    command.arg(folder().join("tasks_aiohttp.py")).env("TASK_TRUTH", &truth);
    let target = Target::program(command)?;
    let ready = target.line_starting("ready ", patience(60))?;
    let port = ready.split(' ').nth(1).context("no port")?.parse()?;
    must_name_handlers(&target, port, &truth, &["/pay", "/", "/pay"], "aiohttp")
}

/// Below middleware that runs in the request's task and middleware that starts another, it is the handler.
#[test]
fn handlers_on_asyncio_are_named() -> Result<()> {
    handlers_are_named("asyncio")
}

/// The same where the loop is libuv's.
#[test]
fn handlers_on_uvloop_are_named() -> Result<()> {
    handlers_are_named("uvloop")
}
