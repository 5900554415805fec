//! One report to text for a terminal: what stalled and where on the first line, then what it rests on.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::instead::instead;
pub use super::page::Colour;
use super::page::{Page, Style};
use super::{Sink, fold, statistics};
use crate::report::Report;
use crate::report::schema::session::{Probe, SessionEnd, SessionStart, TopCulprit, WaitHooks};
use crate::report::schema::stall::{
    Confidence, Culprit, Frame, Language, Role, Stack, StallLine, State, Task,
};
use crate::report::schema::{Process, Runtime, Severity};

/// Stacks told in one line each, below the one that is shown whole.
const MORE_STACKS: usize = 4;

/// A bar that stands for the whole stall.
const BAR_COLUMNS: u64 = 24;

/// As many frames in a row that are not the application's are told in one line.
const FOLDED: usize = 3;

/// Function names are padded up to here; longer ones push their file to the right.
const FUNCTION_COLUMNS: usize = 40;

/// Writes text.
#[derive(Debug)]
pub struct Text<W> {
    writer: W,
    colour: Colour,
}

impl<W: Write> Text<W> {
    pub fn new(writer: W, colour: Colour) -> Self {
        Self { writer, colour }
    }
}

impl<W: Write> Sink for Text<W> {
    fn accept(&mut self, report: &Report) -> io::Result<()> {
        self.writer.write_all(render(report, self.colour).as_bytes())?;
        self.writer.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// The text of one report.
pub fn render(report: &Report, colour: Colour) -> String {
    let mut page = Page::new(colour);
    match report {
        Report::SessionStart(line) => session_start(&mut page, line),
        Report::StallOpen(line) => stall(&mut page, line, "STALLING"),
        Report::StallUpdate(line) => {
            page.put(Style::Dim, "   still  ").put(Style::Plain, &line.common.message).end_line();
        }
        Report::StallEnd(line) => stall(&mut page, line, "STALLED"),
        Report::Stats(line) => statistics::stats(&mut page, line),
        Report::SessionEnd(line) => session_end(&mut page, line),
    }
    page.into_text()
}

fn stall(page: &mut Page, line: &StallLine, word: &str) {
    let style = match line.common.severity {
        Severity::Error => Style::Red,
        Severity::Warn | Severity::Info => Style::Yellow,
    };
    page.put(style, word).put(Style::Plain, "  ").put(Style::Bold, &line.common.message).end_line();

    page.label("began").put(Style::Plain, &line.stall.started_at);
    page.put(Style::Plain, &format!(" in {}", place(line))).end_line();
    match line.cause.confidence {
        Confidence::Certain => {}
        Confidence::Likely => page.label("cause").put(Style::Plain, "likely").end_line(),
        Confidence::Unknown => page.label("cause").put(Style::Plain, "not certain").end_line(),
    }
    if let Some(advice) = &line.advice {
        page.label("advice").put(Style::Plain, advice).end_line();
    }
    time(page, line);
    instead(page, &line.cause);
    if let Some(events) = line.stall.ready_events.filter(|events| *events > 0) {
        let kept = format!("{} kept waiting", counted(events, "file descriptor"));
        page.label("events").put(Style::Plain, &kept).end_line();
    }
    for queue in &line.stall.waiting_connections {
        let kept = counted(queue.waiting, "connection");
        let kept = format!("{kept} kept waiting at {}", queue.address);
        page.label("clients").put(Style::Plain, &kept).end_line();
    }
    task(page, line.task.as_ref());
    stacks(page, line);
    list(page, "gaps", &line.gaps);
    lost(page, &line.lost);
}

/// `thread 4242 (uvicorn), asyncio on cpython 3.11.2`, `thread 7 (shop), tokio 1.54.1`
fn place(line: &StallLine) -> String {
    let thread = &line.thread;
    let name = thread.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let kind = &thread.loop_kind;
    let what = match &line.runtime {
        Some(runtime) if runtime.name == *kind => version(runtime),
        Some(runtime) => format!("{kind} on {}", version(runtime)),
        None => kind.clone(),
    };
    format!("thread {}{name}, {what}", thread.tid)
}

/// `cpython 3.11.2`
fn version(runtime: &Runtime) -> String {
    match &runtime.version {
        Some(version) => format!("{} {version}", runtime.name),
        None => runtime.name.clone(),
    }
}

fn time(page: &mut Page, line: &StallLine) {
    let time = &line.stall.time;
    let parts = [
        ("running, user", time.running_user_ns),
        ("running, kernel", time.running_kernel_ns),
        ("blocked", time.blocked_ns),
        ("ready, no CPU", time.runnable_ns),
        ("stopped", time.stopped_ns),
    ];
    let mut label = "time";
    for (name, part_ns) in parts.into_iter().filter(|(_, part_ns)| *part_ns > 0) {
        let figures = format!("{name:<16}{:>12}  ", milliseconds(part_ns));
        page.label(label).put(Style::Plain, &figures);
        page.put(Style::Dim, &bar(part_ns, line.stall.duration_ns)).end_line();
        label = "";
    }
}

/// A part's share of the whole as a bar, rounded to the nearest column.
fn bar(part_ns: u64, whole_ns: u64) -> String {
    let (part, whole) = (u128::from(part_ns), u128::from(whole_ns.max(1)));
    let columns = (part * u128::from(BAR_COLUMNS) + whole / 2) / whole;
    "█".repeat(usize::try_from(columns).unwrap_or_default())
}

/// `pay  /srv/pay/app.py:12  (Task-7)`
fn task(page: &mut Page, task: Option<&Task>) {
    let Some(task) = task else { return };
    let place = match (&task.file, task.line) {
        (Some(file), Some(line)) => format!("  {file}:{line}"),
        (Some(file), None) => format!("  {file}"),
        (None, _) => String::new(),
    };
    let function = task.function.as_deref().unwrap_or("?");
    page.label("task").put(Style::Plain, &format!("{function}{place}"));
    if let Some(name) = &task.name {
        page.put(Style::Dim, &format!("  ({name})"));
    }
    page.end_line();
}

/// The stack that the culprit was found in, whole; of the others the innermost of the application.
fn stacks(page: &mut Page, line: &StallLine) {
    let culprit = line.culprit.as_ref();
    let holds_culprit = |stack: &&Stack| stack.frames.iter().any(|frame| is(culprit, frame));
    let Some(shown) = line.stacks.iter().find(holds_culprit).or(line.stacks.first()) else {
        return;
    };
    page.label(label(shown)).put(Style::Plain, &weight(shown)).end_line();
    frames(page, shown, culprit);
    if let Some(reason) = &shown.truncated {
        page.label("").put(Style::Dim, &format!("cut here: {reason}")).end_line();
    }
    let (bystanders, stacks): (Vec<&Stack>, Vec<&Stack>) =
        line.stacks.iter().partition(|stack| stack.role == Role::Other);
    let others = stacks.into_iter().filter(|stack| !std::ptr::eq(*stack, shown));
    for other in others.clone().take(MORE_STACKS) {
        let told = weight(other) + &innermost(other);
        page.label("also").put(Style::Plain, &told).end_line();
    }
    let untold = others.count().saturating_sub(MORE_STACKS);
    if untold > 0 {
        let told = format!("{} of less time", counted(untold as u64, "further stack"));
        page.label("also").put(Style::Dim, &told).end_line();
    }
    for other in bystanders {
        let told = format!("{}, {}{}", thread(other), state(other), innermost(other));
        page.label("other").put(Style::Dim, &told).end_line();
    }
}

/// Where a stack's innermost frame of the application is, or else its innermost named one.
fn innermost(stack: &Stack) -> String {
    let mut named = stack.frames.iter().filter(|frame| frame.function.is_some());
    let first = named.clone().find(|frame| frame.in_app).or_else(|| named.next());
    first.map(|frame| format!(", at {}  {}", function(frame), source(frame))).unwrap_or_default()
}

/// Whose stack it is.
fn label(stack: &Stack) -> &'static str {
    match stack.role {
        Role::Loop => "stack",
        Role::Holder => "holder",
        Role::Waker => "waker",
        Role::Other => "other",
    }
}

/// `blocked 5000.000 ms, 1 sample`
fn weight(stack: &Stack) -> String {
    let state = state(stack);
    let samples = counted(stack.samples, "sample");
    let told = format!("{state} {}, {samples}", milliseconds(stack.time_ns));
    match stack.role {
        Role::Loop => told,
        Role::Waker => {
            let ended = milliseconds(stack.time_ns);
            format!("{}, ended {ended} of waiting", thread(stack))
        }
        Role::Holder | Role::Other => format!("{}, {told}", thread(stack)),
    }
}

fn state(stack: &Stack) -> &'static str {
    match stack.state {
        State::Running => "running",
        State::Blocked => "blocked",
        State::Runnable => "ready, no CPU",
        State::Stopped => "stopped",
    }
}

/// `thread 4242 (uvicorn)`
fn thread(stack: &Stack) -> String {
    let tid = stack.thread.tid;
    let name = stack.thread.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    format!("thread {tid}{name}")
}

/// Innermost first. What is not the application's own is dimmed. Folded is what is the same in every
/// stall: outside the culprit the plumbing of loop and framework, and between Python or
/// JavaScript frames that of the interpreter. JSON has all of it.
fn frames(page: &mut Page, stack: &Stack, culprit: Option<&Culprit>) {
    let all: Vec<&Frame> = stack.kernel.iter().chain(&stack.frames).collect();
    // Of a recursive function the innermost.
    let blamed = all.iter().position(|frame| is(culprit, frame));
    let innermost = blamed.or_else(|| all.iter().position(|frame| frame.in_app));
    let names = all.iter().map(|frame| function(frame).chars().count());
    let columns = names.max().unwrap_or_default().min(FUNCTION_COLUMNS);
    let mut next = 0;
    while let Some(frame) = all.get(next) {
        let outside = innermost.is_some_and(|innermost| innermost < next);
        let is_interpreted =
            |frame: &&Frame| matches!(frame.language, Language::Python | Language::JavaScript);
        let interpreted = all[..next].iter().any(is_interpreted);
        let is_plumbing = |frame: &&&Frame| {
            let native = frame.language == Language::Native;
            let of_loop = innermost.is_none() && fold::is_of_loop(frame);
            !frame.in_app && (outside || interpreted && (native || of_loop))
        };
        let run = all[next..].iter().take_while(is_plumbing).count();
        if run >= FOLDED {
            page.label("").put(Style::Dim, &fold::told(&all[next..next + run])).end_line();
            next += run;
            continue;
        }
        let style = if blamed == Some(next) {
            page.label("        >");
            Style::Bold
        } else {
            page.label("");
            if frame.in_app { Style::Plain } else { Style::Dim }
        };
        let text = format!("{:<columns$}  {}", function(frame), source(frame));
        page.put(style, &text).end_line();
        next += 1;
    }
}

fn is(culprit: Option<&Culprit>, frame: &Frame) -> bool {
    culprit.is_some_and(|culprit| {
        culprit.function == frame.function
            && culprit.file == frame.file
            && culprit.line == frame.line
            && culprit.module == frame.module
    })
}

fn function(frame: &Frame) -> &str {
    frame.function.as_deref().unwrap_or("?")
}

/// `file:line`, else the module, with the place in it where the function has no name.
fn source(frame: &Frame) -> String {
    match (&frame.file, frame.line, &frame.module) {
        (Some(file), Some(line), _) => format!("{file}:{line}"),
        (Some(file), None, _) => file.clone(),
        (None, _, Some(module)) => match &frame.module_offset {
            Some(offset) if frame.function.is_none() => format!("{module}+{offset}"),
            _ => module.clone(),
        },
        (None, _, None) => frame.address.clone().unwrap_or_default(),
    }
}

fn session_start(page: &mut Page, line: &SessionStart) {
    page.put(Style::Bold, &line.common.message).end_line();
    page.label("process").put(Style::Plain, &identity(&line.common.process));
    if let Some(runtime) = &line.runtime {
        page.put(Style::Plain, &format!(", {}", version(runtime)));
    }
    page.end_line();
    let waits = match line.wait_hooks {
        WaitHooks::Fentry => "fentry",
        WaitHooks::Tracepoint => "tracepoint",
        WaitHooks::Mixed => "fentry and tracepoint",
    };
    let kernel = format!("{}, loops' waits seen by {waits}", line.kernel);
    page.label("kernel").put(Style::Plain, &kernel).end_line();

    let named = |probe: &Probe| format!("{} ({})", probe.name, probe.hook);
    let attached = line.probes.iter().filter(|probe| probe.attached);
    let attached: Vec<String> = attached.map(named).collect();
    list(page, "attached", &[attached.join(", ")]);
    let missing = line.probes.iter().filter(|probe| !probe.attached);
    let missing = missing.map(|probe| {
        let reason = probe.reason.as_deref().unwrap_or("no reason was given");
        format!("{}: {reason}", named(probe))
    });
    list(page, "missing", &missing.collect::<Vec<_>>());
    list(page, "gaps", &line.gaps);
}

/// The command where it is known, else the executable, else the name.
fn identity(process: &Process) -> String {
    let known = process.command.as_ref().or(process.exe.as_ref());
    known.unwrap_or(&process.name).clone()
}

fn session_end(page: &mut Page, line: &SessionEnd) {
    page.put(Style::Bold, &line.common.message).end_line();
    let told = |top: &TopCulprit| {
        let function = top.function.as_deref().unwrap_or("?");
        let place = match (&top.file, top.line) {
            (Some(file), Some(line)) => format!("{file}:{line}"),
            (Some(file), None) => file.clone(),
            (None, _) => String::new(),
        };
        let (time, stalls) = (milliseconds(top.stalled_ns), counted(top.stalls, "stall"));
        format!("{time} in {stalls}, {function}  {place}")
    };
    list(page, "culprits", &line.top_culprits.iter().map(told).collect::<Vec<_>>());
    let had = line.frames.iter().filter(|(_, count)| **count > 0);
    let had: Vec<String> = had.map(|(how, count)| format!("{how} {count}")).collect();
    list(page, "frames", &[had.join(", ")]);
    list(page, "gaps", &line.gaps);
    if line.lost.values().all(|count| *count == 0) {
        page.label("lost").put(Style::Plain, "nothing").end_line();
    }
    lost(page, &line.lost);
}

/// One line each, the label before the first.
pub(super) fn list(page: &mut Page, label: &str, lines: &[String]) {
    let mut label = label;
    for line in lines.iter().filter(|line| !line.is_empty()) {
        page.label(label).put(Style::Plain, line).end_line();
        label = "";
    }
}

pub(super) fn lost(page: &mut Page, lost: &BTreeMap<String, u64>) {
    let counts = lost.iter().filter(|(_, count)| **count > 0);
    let counts: Vec<String> = counts.map(|(reason, count)| format!("{reason} {count}")).collect();
    list(page, "lost", &[counts.join(", ")]);
}

/// `5000.000 ms`
pub(super) fn milliseconds(ns: u64) -> String {
    let us = ns / 1000;
    format!("{}.{:03} ms", us / 1000, us % 1000)
}

/// `1 sample`, `2 samples`
pub(super) fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::{Colour, Text, bar, render};
    use crate::report::schema::stall::Task;
    use crate::report::{Report, sample};
    use crate::sink::Sink;
    use crate::turn::{Awaited, End, Holder, Lock, Moment, Other, Sampled, ThreadState, Waker};

    const SESSION_START: &str = "\
stalltrace 0.1.0 watches uvicorn[4242] for event loop stalls past 100 ms
  process   python3 -m uvicorn app:app, cpython 3.11.2
  kernel    6.1.0-49-amd64, loops' waits seen by fentry and tracepoint
  attached  epoll_wait (fentry), poll (tracepoint)
  missing   io_uring_enter (fentry): the kernel has no such system call
";

    const STALL_OPEN: &str = "\
STALLING  uvicorn[4242]: event loop stalled for 103 ms so far, blocked in recvfrom on tcp 127.0.0.1:8081, at charge_payment (app.py:31)
  began     2026-11-21T05:20:01.000123Z in thread 4242 (uvicorn), asyncio on cpython 3.11.2
  advice    A blocking call: use its asynchronous kin, or run it with asyncio.to_thread; with a timeout where it waits for somebody.
  time      running, user       8.000 ms  ██
            running, kernel     4.000 ms  █
            blocked            91.000 ms  █████████████████████
            ready, no CPU       0.000 ms
  stack     blocked 91.000 ms, 1 sample
            __schedule         [kernel]
            tcp_recvmsg        [kernel]
            __libc_recv        /usr/lib/x86_64-linux-gnu/libc.so.6
            SocketIO.readinto  /usr/lib/python3.11/socket.py:706
          > charge_payment     /srv/pay/app.py:31
            Handle._run        /usr/lib/python3.11/asyncio/events.py:80
  also      running 12.000 ms, 1 sample, at parse  /srv/pay/app.py:17
  gaps      native frames: libfoo.so has no unwind table
  lost      captures 3
";

    const STALL_UPDATE: &str = "   \
still  uvicorn[4242]: event loop stalled for 103 ms so far, blocked in recvfrom on tcp 127.0.0.1:8081, at charge_payment (app.py:31)
";

    const STALL_END: &str = "\
STALLED  uvicorn[4242]: event loop stalled 5012 ms, blocked in recvfrom on tcp 127.0.0.1:8081, at charge_payment (app.py:31); 17 events had to wait
  began     2026-11-21T05:20:01.000123Z in thread 4242 (uvicorn), asyncio on cpython 3.11.2
  advice    A blocking call: use its asynchronous kin, or run it with asyncio.to_thread; with a timeout where it waits for somebody.
  time      running, user       8.000 ms
            running, kernel     4.000 ms
            blocked          5000.000 ms  ████████████████████████
            ready, no CPU       0.000 ms
  events    17 file descriptors kept waiting
";

    const SESSION_END: &str = "\
uvicorn[4242]: 1 of 1200 turns stalled, 5012 ms in all, the longest 5012 ms; the target exited after 30.0 s
  culprits  5012.000 ms in 1 stall, charge_payment  /srv/pay/app.py:31
  frames    by_frame_pointer 4, by_registers 2, by_unwind_table 30, nameless 1, python 20, stacks 2, stacks_truncated 1
  lost      captures 3
";

    fn plain(report: &Report) -> String {
        render(report, Colour::Off)
    }

    /// Other threads are told in a line each: what they held, that they ended the wait, or nothing but
    /// where they were.
    #[test]
    fn other_threads() {
        let mut stall = sample::stall();
        let at = |function: &str| {
            let seen =
                sample::on_cpu(vec![sample::python(function, "/srv/pay/app.py", 7)], 9_000_000);
            Sampled { state: ThreadState::Blocked, ..seen }
        };
        let (tid, name, held) = (7, Some("writer".to_owned()), Lock::Futex(0));
        stall.holders = vec![Holder { tid, name, held, seen: at("flush") }];
        let (pid, name, seen) = (4242, "writer".to_owned(), Some(at("release")));
        stall.wakers = vec![Waker {
            pid,
            tid,
            name,
            ended_ns: 9_000_000,
            seen,
            awaited: Awaited::Futex,
            ..Waker::default()
        }];
        stall.others = vec![Other { tid: 8, name: None, seen: at("idle") }];
        let text = plain(&sample::report(Moment::End, &stall));
        for line in [
            "  also      thread 7 (writer), blocked 9.000 ms, 1 sample, at flush  /srv/pay/app.py:7\n",
            "  also      thread 7 (writer), ended 9.000 ms of waiting, at release  /srv/pay/app.py:7\n",
            "  other     thread 8, blocked, at idle  /srv/pay/app.py:7\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }

    /// The lines of a session, as they stand on a terminal.
    #[test]
    fn a_session() {
        assert_eq!(plain(&sample::session_start()), SESSION_START);
        let open = sample::open_stall();
        assert_eq!(plain(&sample::report(Moment::Open, &open)), STALL_OPEN);
        assert_eq!(plain(&sample::report(Moment::Update, &open)), STALL_UPDATE);
        let end = plain(&sample::report(Moment::End, &sample::stall()));
        assert!(end.starts_with(STALL_END), "{end}");
        assert_eq!(plain(&sample::session_end()), SESSION_END);
    }

    /// Colour adds weight and nothing else: without its sequences the text is the plain one.
    #[test]
    fn colour_is_only_colour() {
        let report = sample::report(Moment::End, &sample::stall());
        let coloured = render(&report, Colour::On);
        assert!(coloured.starts_with("\u{1b}[1;31mSTALLED\u{1b}[0m"), "an error is red");
        assert!(coloured.contains("\u{1b}[1mcharge_payment"), "the culprit stands out");
        assert!(coloured.contains("\u{1b}[2mHandle._run"), "plumbing is dimmed");
        let mut stripped = coloured;
        for sequence in ["1;31", "1;33", "1", "2", "0"] {
            stripped = stripped.replace(&format!("\u{1b}[{sequence}m"), "");
        }
        let lines = stripped.lines().map(|line| format!("{}\n", line.trim_end()));
        assert_eq!(lines.collect::<String>(), plain(&report));
    }

    /// What is missing is on the page: the end of the stack, the confidence, the reason for both.
    #[test]
    fn what_is_missing() {
        let mut stall = sample::stall();
        stall.end = End::Unseen("the thread exited".to_owned());
        // Nothing says what most of the time went into.
        stall.stacks.retain(|sampled| sampled.stack.truncated.is_some());
        let text = plain(&sample::report(Moment::End, &stall));
        assert!(text.contains("  cause     not certain\n"), "{text}");
        assert!(text.contains("            cut here: the copy of the stack ends here\n"), "{text}");
        assert!(text.contains("end: the thread exited\n"), "{text}");
        assert!(text.contains("cause: no stack was taken of 5000000000 ns"), "{text}");
    }

    /// A loop that is its runtime is said once.
    #[test]
    fn runtime_that_is_the_loop() {
        let mut report = sample::report(Moment::End, &sample::stall());
        if let Report::StallEnd(line) = &mut report {
            line.thread.loop_kind = "tokio".to_owned();
            line.runtime = line
                .runtime
                .take()
                .map(|it| super::Runtime { name: "tokio".to_owned(), version: it.version });
        }
        let text = plain(&report);
        assert!(text.contains("in thread 4242 (uvicorn), tokio 3.11.2\n"), "{text}");
    }

    /// A frame without a name is still to be found: by its place in its module.
    #[test]
    fn nameless_frame() {
        let mut stall = sample::stall();
        if let Some(frame) = stall.stacks.first_mut().and_then(|it| it.stack.frames.first_mut()) {
            frame.function = None;
        }
        let text = plain(&sample::report(Moment::End, &stall));
        let line = text.lines().find(|line| line.trim_start().starts_with('?'));
        let line = line.map(|line| line.split_whitespace().collect::<Vec<_>>());
        assert_eq!(line, Some(vec!["?", "/usr/lib/x86_64-linux-gnu/libc.so.6+0x1234"]));
    }

    /// Of many stacks a few are told, and how many are not.
    #[test]
    fn many_stacks() {
        let mut stall = sample::stall();
        let again = stall.stacks.clone();
        for _ in 0..4 {
            stall.stacks.extend(again.iter().skip(1).cloned());
        }
        stall.stacks.extend(again.iter().skip(1).cloned());
        let text = plain(&sample::report(Moment::End, &stall));
        assert_eq!(text.matches("  also      running").count(), 4);
        assert!(text.contains("  also      2 further stacks of less time\n"), "{text}");
    }

    /// Libraries' frames are folded outside the culprit, and never between it and where it is stuck.
    #[test]
    fn plumbing_is_folded() {
        let mut stall = sample::stall();
        let frames = &mut stall.stacks[0].stack.frames;
        frames.extend(
            ["run_once", "main", "_start"].map(|name| sample::native(name, "/usr/lib/libc.so.6")),
        );
        for name in ["do_recv", "ssl_read", "ssl_io"] {
            frames.insert(1, sample::native(name, "/usr/lib/libssl.so.3"));
        }
        let text = plain(&sample::report(Moment::End, &stall));
        assert!(text.contains("            … 4 frames of asyncio\n"), "{text}");
        assert!(text.contains("ssl_read") && !text.contains("Handle._run"), "{text}");
    }

    /// Where nothing is blamed, the loop's own plumbing is folded all the same.
    #[test]
    fn plumbing_without_a_culprit() {
        let mut report = sample::report(Moment::End, &sample::stall());
        if let Report::StallEnd(line) = &mut report {
            line.culprit = None;
            let frames = &mut line.stacks[0].frames;
            frames.retain(|frame| !frame.in_app);
            for _ in 0..3 {
                frames.extend(frames.last().cloned());
            }
        }
        let text = plain(&report);
        assert!(text.contains("            … 4 frames of asyncio\n"), "{text}");
        assert!(text.contains("SocketIO.readinto"), "{text}");
    }

    /// The task is one line: where it stands, and what it is called.
    #[test]
    fn task_line() {
        let told = |name: Option<&str>, file: Option<&str>| {
            let mut report = sample::report(Moment::End, &sample::stall());
            if let Report::StallEnd(line) = &mut report {
                let [name, file] = [name, file].map(|text| text.map(str::to_owned));
                let function = Some("pay".to_owned());
                line.task = Some(Task { name, function, file, line: Some(12) });
            }
            let text = plain(&report);
            let line = text.lines().find(|line| line.starts_with("  task"));
            line.unwrap_or_default().to_owned()
        };
        let whole = told(Some("Task-7"), Some("/srv/app.py"));
        assert_eq!(whole, "  task      pay  /srv/app.py:12  (Task-7)");
        assert_eq!(told(None, None), "  task      pay");
        // A name may be anything, and must not move the cursor.
        assert!(!told(Some("a\u{1b}[2Jb"), None).contains('\u{1b}'));
    }

    /// Where nothing was lost, the end of a session says so.
    #[test]
    fn nothing_lost() {
        let mut report = sample::session_end();
        if let Report::SessionEnd(line) = &mut report {
            line.lost.clear();
        }
        assert!(plain(&report).ends_with("  lost      nothing\n"));
    }

    /// A bar is as long as its share, for any numbers.
    #[test]
    fn bars() {
        assert_eq!(bar(50, 100).chars().count(), 12);
        assert_eq!(bar(100, 100).chars().count(), 24);
        assert_eq!(bar(1, 100), "");
        assert_eq!(bar(0, 0), "");
        assert_eq!(bar(u64::MAX, u64::MAX).chars().count(), 24);
    }

    /// The sink writes what is rendered.
    #[test]
    fn written() {
        let mut written = Vec::new();
        let report = sample::session_start();
        Text::new(&mut written, Colour::Off).accept(&report).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), SESSION_START);
    }
}
