//! A loop that is blocked in a system call: on what, how long it may last, what for, and who ended it, as the
//! target and those who kept it waiting know it of themselves.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use profiler_tests::report::{Arrived, CauseKind, Report, ReportedWaker, StallExt as _, StallLine};
use profiler_tests::scenario::{THRESHOLD_NS, alone, require_root};
use profiler_tests::tally::Tally;
use profiler_tests::target::Target;
use profiler_tests::tracer::Tracer;
use profiler_tests::turns::{self, Watched, script};
use serde::Deserialize;
use serde_json::Value;

/// One wait, in the target's own words.
#[derive(Debug, Deserialize)]
struct Waited {
    kind: String,
    start_ns: u64,
    end_ns: u64,
    /// What the cause is to be in words, at its beginning.
    words: Option<String>,
    /// Fields that the cause must have.
    cause: Option<Value>,
    /// The process that ended it.
    woken_by: Option<u32>,
    /// A function of the kernel's that it was in.
    kernel: Option<String>,
}

type Seen = Watched<Waited>;

fn watch(options: &[&str]) -> Result<Seen> {
    turns::watch(script("syscalls.py", options), &[], "waited")
}

/// The stall that was reported of a wait.
fn stall_of<'a>(seen: &'a Seen, waited: &Waited) -> Result<&'a StallLine> {
    let duration_ns = waited.end_ns - waited.start_ns;
    ensure!(duration_ns >= THRESHOLD_NS, "{waited:?} was too short to be a test");
    let stall = seen.finished.stall_in(waited.start_ns, waited.end_ns);
    stall.with_context(|| format!("{} was missed", waited.kind))
}

/// Who ended the system call.
fn woken_by(stall: &StallLine) -> Option<&ReportedWaker> {
    match &stall.cause.kind {
        CauseKind::Syscall { call, .. } => call.woken_by.as_ref(),
        _ => None,
    }
}

/// The first difference between what is expected and what is there; more fields may be there.
fn difference(expected: &Value, found: &Value, path: &str) -> Option<String> {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            expected.iter().find_map(|(name, value)| {
                let path = format!("{path}.{name}");
                difference(value, found.get(name).unwrap_or(&Value::Null), &path)
            })
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            let mut pairs = expected.iter().zip(found).enumerate();
            pairs.find_map(|(at, (expected, found))| {
                difference(expected, found, &format!("{path}[{at}]"))
            })
        }
        _ if expected == found => None,
        _ => Some(format!("{path} is {found} instead of {expected}")),
    }
}

/// Runs waits of these kinds, and holds what was reported of each against what is known of it; those that the
/// machine had no CPU for once more.
fn are_explained(kinds: &[&str]) -> Result<()> {
    const TRIES: usize = 3;
    let _machine = alone();
    let mut tally = Tally::of(format!("syscalls/{}", kinds.join("+")));
    let mut left = kinds.to_vec();
    for _ in 0..TRIES {
        let seen = watch(&left)?;
        ensure!(seen.turns.len() == left.len(), "{:?}\n{}", seen.turns, seen.finished.logs);
        left = explain(&seen, &left, &mut tally)?;
        if left.is_empty() {
            break;
        }
    }
    tally.must_be(kinds.len())
}

/// The kinds of which nothing can be said, as the machine had no CPU for them.
fn explain<'a>(seen: &Seen, kinds: &[&'a str], tally: &mut Tally) -> Result<Vec<&'a str>> {
    let mut starved = Vec::new();
    for (name, waited) in kinds.iter().zip(&seen.turns) {
        let stall = stall_of(seen, waited)?;
        let kind = waited.cause.as_ref().and_then(|cause| cause["kind"].as_str());
        let kind = kind.context("no kind")?;
        ensure!(stall.is_caused_by(kind), "{}: {:?}", waited.kind, stall.cause);
        if stall.cause.kind.name() != kind {
            tally.passed_over(format!("{}: not enough CPU", waited.kind));
            starved.push(*name);
            continue;
        }
        let is_looked_for = |gap: &String| gap.starts_with("woken_by:");
        let is_unknown = woken_by(stall).is_none() && stall.gaps.iter().any(is_looked_for);
        if waited.woken_by.is_some() && is_unknown {
            tally.passed_over(format!("{}: not enough CPU to look for its waker", waited.kind));
            starved.push(*name);
            continue;
        }
        is_right(waited, stall)?;
        tally.compared();
    }
    Ok(starved)
}

/// What is said of a wait is what is known of it.
fn is_right(waited: &Waited, stall: &StallLine) -> Result<()> {
    let summary = &stall.cause.summary;
    println!("{}: {summary} {:?}", waited.kind, woken_by(stall));
    let words = waited.words.as_deref().unwrap_or_default();
    ensure!(summary.starts_with(words), "{}: {summary:?} instead of {words:?}", waited.kind);
    let mut expected = waited.cause.clone().unwrap_or_default();
    expected.as_object_mut().map(|fields| fields.remove("kind"));
    let told = serde_json::to_value(&stall.cause.kind)?;
    if let Some(difference) = difference(&expected, &told["detail"], "cause") {
        anyhow::bail!("{}: {difference}\n{:#?}", waited.kind, stall.gaps);
    }
    let stack = stall.stacks.first().context("no stack")?;
    let mut kernel = stack.kernel.iter().filter_map(|frame| frame.function.as_deref());
    if let Some(function) = &waited.kernel {
        let frames = &stack.kernel;
        ensure!(kernel.any(|seen| seen.starts_with(function)), "{}: {frames:?}", waited.kind);
    }
    let waker = woken_by(stall).map(|waker| waker.pid);
    ensure!(
        waker == waited.woken_by,
        "{}: woken by {waker:?} instead of {:?}: {:?}",
        waited.kind,
        waited.woken_by,
        stall.gaps
    );
    let gap = stall.gaps.iter().any(|gap| gap.starts_with("woken_by:"));
    ensure!(!(gap && waker.is_some()), "{}: {:?}", waited.kind, stall.gaps);
    let has_peer = waited.kind.starts_with("receive") || waited.kind == "accept";
    ensure!(gap || waker.is_some() || !has_peer, "{}: {:?}", waited.kind, stall.gaps);
    Ok(())
}

/// A socket without a timeout says so, and one with its own, or that of a `poll`, how long that is; the peer on
/// this machine is named, and one that does not answer by its address.
#[test]
fn sockets() -> Result<()> {
    are_explained(&[
        "receive",
        "receive_at_most",
        "receive_by_poll",
        "poll_for_ever",
        "connect",
        "accept",
    ])
}

/// A host name that is looked up is told as that, with the server that is asked.
#[test]
fn name_resolution() -> Result<()> {
    are_explained(&["resolve"])
}

/// Whoever has the other end of a pipe or a unix socket is named, and what else is read from is told.
#[test]
fn other_ends() -> Result<()> {
    are_explained(&["read_pipe", "receive_locally", "read_terminal", "read_events"])
}

/// A child that is waited for is named by its command.
#[test]
fn children() -> Result<()> {
    are_explained(&["wait_for_child"])
}

/// Whoever has a file lock, or has locked a SQLite database, is named, with the file.
#[test]
fn file_locks() -> Result<()> {
    are_explained(&["lock_file", "lock_range", "insert", "insert_into_log"])
}

/// Files of another process are no disk, whatever the kernel waits in; a disk is one, also where it is slow because
/// of what it lies on.
#[test]
fn slow_files() -> Result<()> {
    are_explained(&[
        "open_slowly",
        "read_slowly",
        "read_page_slowly",
        "sync_slowly",
        "sync_disk",
        "read_disk",
        "touch_page",
    ])
}

/// A process that checks files on access is named, whatever is done with the file, and also where another one checks
/// other files.
#[test]
fn files_checked_on_access() -> Result<()> {
    are_explained(&["open_checked", "read_checked", "run_checked"])
}

/// A sleep tells how long it was to be, also where it was stopped in the middle.
#[test]
fn sleeps() -> Result<()> {
    are_explained(&["sleep", "sleep_on"])
}

/// What lasts for moments only stalls nobody.
#[test]
fn moments_are_no_stalls() -> Result<()> {
    let _machine = alone();
    let kinds = [
        "receive",
        "receive_at_most",
        "receive_by_poll",
        "poll_for_ever",
        "connect",
        "accept",
        "resolve",
        "read_pipe",
        "receive_locally",
        "read_terminal",
        "read_events",
        "wait_for_child",
        "lock_file",
        "lock_range",
        "open_checked",
        "read_checked",
        "run_checked",
        "open_slowly",
        "read_slowly",
        "read_page_slowly",
        "sync_slowly",
        "sync_disk",
        "read_disk",
        "touch_page",
        "sleep",
        "sleep_on",
    ];
    let seen = watch(&[&["--healthy"], &kinds[..]].concat())?;
    ensure!(seen.turns.len() == kinds.len(), "{:?}", seen.turns);
    let mut tally = Tally::of("syscalls/moments_are_no_stalls");
    for waited in &seen.turns {
        let stall = seen.finished.stall_in(waited.start_ns, waited.end_ns);
        // A machine that keeps its CPUs from the loop, or from whom it waits for, does stall it.
        let stall = stall.filter(|end| end.cause.kind.name() != "run_queue");
        let is_long = waited.end_ns - waited.start_ns >= THRESHOLD_NS / 2;
        ensure!(is_long || stall.is_none(), "{}: {stall:?}", waited.kind);
        if is_long {
            tally.passed_over(format!("{} took longer than a moment", waited.kind));
        } else {
            tally.compared();
        }
    }
    tally.must_be(kinds.len() * 3 / 4)
}

/// Clients that come while the loop stalls are counted while they wait, and by what was ready afterwards.
#[test]
fn victims_are_counted() -> Result<()> {
    const CLIENTS: u64 = 99;
    let _machine = alone();
    require_root()?;
    let target = Target::service()?;
    let (tracer, _) = Tracer::attach(target.pid(), &[])?;
    let mut client = profiler_tests::load::Client::connect(target.port())?;
    let port = target.port();
    // The client that stalls the loop is accepted by then.
    std::thread::sleep(Duration::from_millis(200));
    let stalling = std::thread::spawn(move || client.get("/sleep?ms=1500"));
    std::thread::sleep(Duration::from_millis(150));
    let clients: Vec<TcpStream> =
        (0..CLIENTS).map(|_| TcpStream::connect(("127.0.0.1", port))).collect::<Result<_, _>>()?;
    stalling.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    std::thread::sleep(Duration::from_millis(300));
    drop(clients);
    let finished = tracer.interrupt()?;
    let is_long = |end: &&StallLine| end.stall.duration_ns > 10 * THRESHOLD_NS;
    let end = finished.ends().find(is_long).context("no stall")?;
    let waiting = &end.stall.waiting_connections;
    println!("{waiting:?} {:?}", end.stall.ready_events);
    let [queue] = &waiting[..] else { anyhow::bail!("{waiting:?}") };
    ensure!(queue.address.ends_with(&format!(":{port}")), "{queue:?}");
    ensure!(queue.waiting == CLIENTS, "{queue:?} instead of {CLIENTS}");
    let message = |arrived: &Arrived| match &arrived.line {
        Report::StallEnd(end) => Some(end.common.message.clone()),
        _ => None,
    };
    let said = format!("; {CLIENTS} connections");
    let messages: Vec<String> = finished.lines.iter().filter_map(message).collect();
    ensure!(messages.iter().any(|message| message.contains(&said)), "{messages:?}");
    let others = finished.ends().filter(|end| !is_long(end));
    ensure!(others.flat_map(|end| &end.stall.waiting_connections).next().is_none());
    Ok(())
}
