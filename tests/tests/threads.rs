//! Loops of other threads than the main one: told as theirs, by name; node's worker threads only on request.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use profiler_tests::clock::patience;
use profiler_tests::interpreters::{Interpreter, all};
use profiler_tests::lives::broken_contract;
use profiler_tests::report::{Report, ReportExt as _, StallExt as _, StallLine};
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::target::{Scratch, Target, folder, node};
use profiler_tests::tracer::{Finished, Tracer};

/// Between two looks for loops that sleep: whose they are must be known before they stall.
const UNTIL_SHOWN: Duration = Duration::from_millis(1500);

/// What the worker thread does before and after it is held, and a busy machine's delays.
const APART_NS: u64 = 150_000_000;

/// A stretch that the target held a thread, by its own clock.
#[derive(Debug)]
struct Held {
    kind: String,
    start_ns: u64,
    end_ns: u64,
    /// How late the main loop's timers were meanwhile.
    late_ms: u64,
}

impl Held {
    fn parse(line: &str) -> Result<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, kind, start, end, late] = words[..] else { anyhow::bail!("an odd line {line:?}") };
        let kind = kind.to_owned();
        Ok(Self { kind, start_ns: start.parse()?, end_ns: end.parse()?, late_ms: late.parse()? })
    }

    fn is_in(&self, stall: &StallLine) -> bool {
        stall.stall.start_monotonic_ns < self.end_ns && stall.end_ns() > self.start_ns
    }
}

/// What node's threads were held with, and what was told of it. Turns of the main loop are counted.
fn watch_node(program: &std::path::Path, steps: &[&str], option: &[&str]) -> Result<Watched> {
    require_root()?;
    let mut command = Command::new(program);
    command.arg(folder().join("worker_threads.js")).args(steps);
    let target = Target::program(command)?;
    target.line_starting("ready", patience(10))?;
    let (tracer, _) =
        Tracer::attach(target.pid(), &[option, &["--stats-interval", "60s"]].concat())?;
    std::thread::sleep(UNTIL_SHOWN);
    target.signal(Signal::SIGUSR2)?;
    let held = steps.iter().map(|_| Held::parse(&target.line_starting("held ", patience(10))?));
    let held = held.collect::<Result<Vec<_>>>()?;
    target.line_starting("over", patience(10))?;
    let finished = tracer.interrupt()?;
    let broken = broken_contract(&finished.lines);
    ensure!(broken.is_empty(), "{broken:?}");
    Ok(Watched { pid: target.pid(), held, finished })
}

struct Watched {
    pid: u32,
    held: Vec<Held>,
    finished: Finished,
}

impl Watched {
    /// The lines about what the target was held with, by kind.
    fn of(&self, kind: &str) -> Vec<&StallLine> {
        let of_kind = |held: &&Held| held.kind == kind;
        let held: Vec<&Held> = self.held.iter().filter(of_kind).collect();
        self.finished.ends().filter(|end| held.iter().any(|held| held.is_in(end))).collect()
    }

    /// The sentence of the last line on this stall.
    fn sentence(&self, stall: &StallLine) -> &str {
        let is_it = |line: &&Report| match line {
            Report::StallEnd(end) => end.stall.id == stall.stall.id,
            _ => false,
        };
        let mut lines = self.finished.lines.iter().map(|arrived| &arrived.line);
        lines.find(is_it).map_or("", |line| line.common().message.as_str())
    }
}

fn culprit(stall: &StallLine) -> &str {
    stall.culprit.as_ref().and_then(|culprit| culprit.function.as_deref()).unwrap_or_default()
}

/// What a worker thread computes is nobody's stall, however deep its stack is; the main loop's is, and is
/// told as the main loop's.
fn silent_by_default(program: &std::path::Path) -> Result<()> {
    let steps = ["worker:1000", "deep:400", "main:300", "worker:300"];
    let watched = watch_node(program, &steps, &[])?;
    let main = watched.of("main");
    let [stall] = main[..] else { anyhow::bail!("{} stalls of the main loop", main.len()) };
    ensure!(stall.thread.is_main, "{:?}", stall.thread);
    ensure!(stall.thread.tid == watched.pid, "{:?}", stall.thread);
    let sentence = watched.sentence(stall);
    ensure!(sentence.contains("]: event loop stalled "), "{sentence}");
    ensure!(stall.is_starved() || culprit(stall) == "rebuildIndex", "{:?}", stall.culprit);
    // A machine that is busy may keep the main loop from its CPU, too: that is told of the main thread.
    let others = watched.finished.ends().filter(|end| !end.thread.is_main).count();
    ensure!(others == 0, "{others} stalls of worker threads");
    let late = watched.held.iter().filter(|held| held.kind != "main").map(|held| held.late_ms);
    let is_free = late.max().unwrap_or_default() < 100;
    let told = watched.finished.ends().count();
    ensure!(!is_free || told == 1, "{told} stalls, though the main loop was free");
    let turns = watched.finished.stats().flat_map(|stats| &stats.loops);
    let turns: u64 = turns.filter(|of| of.thread.tid == watched.pid).map(|of| of.turns).sum();
    ensure!(turns > 100, "{turns} turns of the main loop");
    println!("{sentence}");
    Ok(())
}

/// On request it is told, as a worker thread, and without the advice to be one.
fn told_on_request(program: &std::path::Path) -> Result<()> {
    let steps = ["worker:1000", "deep:400", "pool:300", "pool:400"];
    let watched = watch_node(program, &steps, &["--watch-workers"])?;
    // What a pool's worker waits for between its pieces of work is no stall of its.
    for held in &watched.held {
        let function = match held.kind.as_str() {
            "worker" => "renderPdf",
            "deep" => "walkTree",
            _ => "resizeImage",
        };
        let kind = &held.kind;
        let told = watched.finished.ends().filter(|end| held.is_in(end));
        let told: Vec<_> = told.filter(|stall| stall.thread.tid != watched.pid).collect();
        let [stall] = told[..] else { anyhow::bail!("{} stalls of {kind}", told.len()) };
        let lasted_ns = held.end_ns - held.start_ns;
        let apart_ns = stall.stall.duration_ns.abs_diff(lasted_ns);
        ensure!(apart_ns < APART_NS, "{} ns for {held:?}", stall.stall.duration_ns);
        ensure!(!stall.thread.is_main, "{:?}", stall.thread);
        ensure!(stall.thread.loop_kind == "worker_threads", "{:?}", stall.thread);
        let sentence = watched.sentence(stall);
        ensure!(sentence.contains("]: worker thread "), "{sentence}");
        let advice = stall.advice.as_deref().unwrap_or_default();
        ensure!(!advice.contains("to a worker thread"), "{advice}");
        ensure!(stall.is_starved() || culprit(stall) == function, "{:?}", stall.culprit);
        println!("{sentence}");
    }
    let of_workers = watched.finished.ends().filter(|end| !end.thread.is_main);
    let count = of_workers.count();
    ensure!(count == watched.held.len(), "{count} stalls of worker threads");
    Ok(())
}

fn on_node(major: u32) -> Result<()> {
    let _machine = alone();
    silent_by_default(&node(major)?)?;
    told_on_request(&node(major)?)
}

#[test]
fn worker_threads_of_node_18() -> Result<()> {
    on_node(18)
}

#[test]
fn worker_threads_of_node_20() -> Result<()> {
    on_node(20)
}

#[test]
fn worker_threads_of_node_22() -> Result<()> {
    on_node(22)
}

#[test]
fn worker_threads_of_node_24() -> Result<()> {
    on_node(24)
}

#[test]
fn worker_threads_of_node_25() -> Result<()> {
    on_node(25)
}

/// A node that lists none of its code exports what shows a worker thread.
#[test]
fn worker_threads_of_a_stripped_node() -> Result<()> {
    let _machine = alone();
    let scratch = Scratch::new()?;
    let stripped = scratch.file("node");
    let done = Command::new("strip").arg("-o").arg(&stripped).arg(node(22)?).status()?;
    ensure!(done.success(), "strip: {done}");
    silent_by_default(&stripped)
}

/// What a Python program whose second thread runs a loop was told of, and the thread's number.
fn watch_python(
    interpreter: &Interpreter,
    options: &[&str],
) -> Result<(u32, u32, Finished, Vec<String>)> {
    require_root()?;
    let mut command = interpreter.run("second_loop.py")?;
    command.args(options);
    let target = Target::program(command)?;
    let ready = target.line_starting("ready ", patience(10))?;
    let tid = ready.split(' ').nth(1).context("no thread")?.parse()?;
    let (tracer, _) = Tracer::attach(target.pid(), &["--stats-interval", "60s"])?;
    let stalls = options.iter().position(|option| *option == "--stalls");
    let stalls = stalls.map_or(Ok(0), |at| options[at + 1].parse::<usize>())?;
    let held = (0..stalls).map(|_| target.line_starting("held ", patience(10)));
    let held = held.collect::<Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_millis(if stalls == 0 { 3000 } else { 300 }));
    let finished = tracer.interrupt()?;
    let broken = broken_contract(&finished.lines);
    ensure!(broken.is_empty(), "{broken:?}");
    Ok((target.pid(), tid, finished, held))
}

/// Each stall of the second loop is told as that thread's, by the name that it has then.
fn second_loop_is_named(interpreter: &Interpreter) -> Result<()> {
    let options = ["--stalls", "2", "--name", "ingest-für-alle", "--renamed", "indexing"];
    let (pid, tid, finished, held) = watch_python(interpreter, &options)?;
    ensure!(held.len() == 2, "odd target: {held:?}");
    for (held, name) in held.iter().zip(["ingest-für-alle", "indexing"]) {
        let numbers: Vec<u64> = held.split(' ').filter_map(|word| word.parse().ok()).collect();
        let &[line, start_ns, end_ns] = &numbers[..] else { anyhow::bail!("an odd line {held}") };
        let stall =
            finished.stall_in(start_ns, end_ns).with_context(|| format!("{held} missed"))?;
        let thread = &stall.thread;
        ensure!(thread.tid == tid && !thread.is_main, "{thread:?}");
        ensure!(thread.python_name.as_deref() == Some(name), "{thread:?}, {:?}", stall.gaps);
        ensure!(thread.name.is_some(), "{thread:?}");
        ensure!(thread.loop_kind == "asyncio", "{thread:?}");
        let told = culprit(stall);
        ensure!(told == "parse_feed" || stall.is_starved(), "{told}");
        let told = stall.culprit.as_ref().and_then(|culprit| culprit.line).map(u64::from);
        ensure!(told == Some(line) || stall.is_starved(), "line {told:?} instead of {line}");
        let subject = format!("]: event loop of thread {name} (not the main thread) stalled ");
        let sentence = finished.lines.iter().map(|arrived| &arrived.line).find(|line| {
            line.stall().is_some_and(|told| told.stall.id == stall.stall.id)
                && matches!(line, Report::StallEnd(_))
        });
        let sentence = sentence.map_or("", |line| line.common().message.as_str());
        ensure!(sentence.contains(&subject), "{sentence}");
        println!("{}: {sentence}", interpreter.name);
    }
    let of_main = finished.ends().filter(|end| end.thread.tid == pid && !end.is_starved()).count();
    ensure!(of_main == 0, "{of_main} stalls of the main loop");
    Ok(())
}

/// In every version, by the name that people gave the thread.
#[test]
fn a_second_loop_of_python() -> Result<()> {
    let _machine = alone();
    for interpreter in all()? {
        second_loop_is_named(&interpreter).with_context(|| interpreter.name.clone())?;
    }
    Ok(())
}

/// Two healthy loops: not a word, the turns of both are counted, and both have their names.
#[test]
fn two_healthy_loops() -> Result<()> {
    let _machine = alone();
    let interpreters = all()?;
    let system = interpreters.first().context("no Python")?;
    let (pid, tid, finished, _) = watch_python(system, &[])?;
    let told = finished.ends().filter(|end| !end.is_starved()).count();
    ensure!(told == 0, "{told} stalls of healthy loops");
    let loops: Vec<_> = finished.stats().flat_map(|stats| &stats.loops).collect();
    for (tid, is_main, name) in [(pid, true, "MainThread"), (tid, false, "ingest")] {
        let of = loops.iter().find(|of| of.thread.tid == tid).context("a loop is missing")?;
        ensure!(of.turns > 50, "{} turns of thread {tid}", of.turns);
        ensure!(of.thread.is_main == is_main, "{:?}", of.thread);
        ensure!(of.thread.python_name.as_deref() == Some(name), "{:?}", of.thread);
    }
    Ok(())
}
