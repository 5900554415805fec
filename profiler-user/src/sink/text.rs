//! One report to text for a terminal: what stalled and where on the first line, then what it rests on.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::time::SystemTime;

pub use super::page::Colour;
use super::page::{Page, Style, USUAL_COLUMNS};
use super::words::{list, lost, version};
use super::{Sink, culprits::Culprits, stall, statistics};
use crate::process::source_line::{SourceLine, SourceLines};
use crate::report::Report;
use crate::report::schema::line::ReportedProcess;
use crate::report::schema::session::{ReportedHook, ReportedWaitHooks, SessionEnd, SessionStart};
use crate::report::schema::stall::StallLine;
use crate::sink::settings::Detail;

/// Stalls that may go on at once, each remembered by what was shown of it. Of the oldest of more, the end
/// shows all of it again.
const MAX_OPEN: usize = 64;

/// Columns of the terminal, asked for before each report: people resize them.
type Columns = fn() -> usize;

/// Writes text.
#[derive(Debug)]
pub struct Text<W> {
    writer: W,
    screen: Screen,
}

impl<W: Write> Text<W> {
    pub fn new(writer: W, colour: Colour, detail: Detail, columns: Columns) -> Self {
        Self { writer, screen: Screen::new(colour, detail, columns) }
    }
}

impl<W: Write> Sink for Text<W> {
    fn accept(&mut self, report: &Report) -> io::Result<()> {
        self.writer.write_all(self.screen.render(report).as_bytes())?;
        self.writer.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// The columns of the terminal that standard output is, or the usual number.
pub fn terminal_columns() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
    let columns = size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
    columns.unwrap_or(USUAL_COLUMNS)
}

/// For a file, whose readers are not known.
pub fn usual_columns() -> usize {
    USUAL_COLUMNS
}

/// What has been shown so far: nothing is shown twice.
#[derive(Debug)]
pub struct Screen {
    colour: Colour,
    detail: Detail,
    columns: Columns,
    source: Option<SourceLines>,
    culprits: Culprits,
    /// Stalls that go on, the oldest first.
    open: VecDeque<Open>,
    /// The stall that the last text was about.
    last: Option<String>,
    is_begun: bool,
    lost: BTreeMap<String, u64>,
}

/// A stall that goes on, and what its reader has seen of it.
#[derive(Debug)]
struct Open {
    id: String,
    texts: Vec<String>,
    culprit: Option<String>,
}

impl Screen {
    pub fn new(colour: Colour, detail: Detail, columns: Columns) -> Self {
        Self {
            colour,
            detail,
            columns,
            source: None,
            culprits: Culprits::default(),
            open: VecDeque::new(),
            last: None,
            is_begun: false,
            lost: BTreeMap::new(),
        }
    }

    /// The text of one report.
    pub fn render(&mut self, report: &Report) -> String {
        let mut page = Page::new(self.colour, (self.columns)());
        let about = match report {
            Report::StallOpen(line) | Report::StallUpdate(line) | Report::StallEnd(line) => {
                Some(&line.stall.id)
            }
            _ => None,
        };
        // One stall's lines stand together, and apart from all others.
        if self.is_begun && (about.is_none() || about != self.last.as_ref()) {
            page.blank_line();
        }
        (self.is_begun, self.last) = (true, about.cloned());
        match report {
            Report::SessionStart(line) => {
                self.source = Some(source_lines(&line.common.process));
                session_start(&mut page, line, self.detail);
            }
            Report::StallOpen(line) => self.stall(&mut page, line, "STALLING"),
            Report::StallUpdate(line) => self.update(&mut page, line),
            Report::StallEnd(line) => {
                self.culprits.observe(line);
                self.stall(&mut page, line, "STALLED");
                self.open.retain(|open| open.id != line.stall.id);
            }
            Report::Stats(line) => statistics::stats(&mut page, line),
            Report::SessionEnd(line) => self.session_end(&mut page, line),
        }
        page.into_text()
    }

    /// Of a stall that has been told already, what is new.
    fn stall(&mut self, page: &mut Page, line: &StallLine, word: &'static str) {
        let source = self.source_line(line);
        let told = stall::LineContext { word, detail: self.detail, source: source.as_ref() };
        let index = self.open.iter().position(|open| open.id == line.stall.id);
        let seen = index.and_then(|index| self.open.remove(index));
        let mut texts = seen.map(|seen| seen.texts).unwrap_or_default();
        for section in stall::sections(page, line, &told) {
            if section.is_of_now || !texts.contains(&section.text) {
                page.append(&section.text);
            }
            if !section.is_of_now {
                texts.push(section.text);
            }
        }
        self.lost(page, &line.lost);
        if self.open.len() == MAX_OPEN {
            self.open.pop_front();
        }
        let (id, culprit) = (line.stall.id.clone(), stall::culprit(line));
        self.open.push_back(Open { id, texts, culprit });
    }

    /// It still goes on: one line, unless something else is to blame by now.
    fn update(&mut self, page: &mut Page, line: &StallLine) {
        let seen = self.open.iter().find(|open| open.id == line.stall.id);
        let is_known = seen.is_some_and(|seen| seen.culprit == stall::culprit(line));
        if is_known {
            page.put(Style::Dim, "STILL").put(Style::Plain, &" ".repeat(7));
            page.put(Style::Plain, stall::how_long(&line.common.message)).end_line();
        } else {
            self.stall(page, line, "STALLING");
        }
    }

    fn source_line(&mut self, line: &StallLine) -> Option<SourceLine> {
        let culprit = line.culprit.as_ref()?;
        self.source.as_mut()?.get(culprit.file.as_deref()?, culprit.line?)
    }

    fn session_end(&mut self, page: &mut Page, line: &SessionEnd) {
        page.put(Style::Bold, &line.common.message).end_line();
        self.culprits.table(page);
        if self.detail != Detail::Brief {
            let had = line.frames.iter().filter(|(_, count)| **count > 0);
            let had: Vec<String> = had.map(|(how, count)| format!("{how} {count}")).collect();
            list(page, "frames", &[had.join(", ")]);
        }
        // Of stalls without a culprit the table says itself what they were.
        let is_said = |gap: &&String| gap.starts_with("top_culprits");
        let gaps: Vec<String> = line.gaps.iter().filter(|gap| !is_said(gap)).cloned().collect();
        list(page, "gaps", &gaps);
        if line.lost.values().all(|count| *count == 0) {
            page.label("lost").put(Style::Plain, "nothing").end_line();
        }
        lost(page, &line.lost);
    }

    /// What was lost so far, where that has changed: the counts are the session's.
    fn lost(&mut self, page: &mut Page, counts: &BTreeMap<String, u64>) {
        if self.lost != *counts {
            lost(page, counts);
            self.lost = counts.clone();
        }
    }
}

fn source_lines(process: &ReportedProcess) -> SourceLines {
    let started_at = process.start_time.as_deref();
    let started_at = started_at.and_then(|text| humantime::parse_rfc3339(text).ok());
    SourceLines::of(process.pid, started_at.map(whole_second))
}

/// When a process started is known to a hundredth of a second, its files' times to less: what was written in
/// the second before is as old.
fn whole_second(at: SystemTime) -> SystemTime {
    at + std::time::Duration::from_secs(1)
}

fn session_start(page: &mut Page, line: &SessionStart, detail: Detail) {
    page.put(Style::Bold, &line.common.message).end_line();
    page.label("process").put(Style::Plain, &identity(&line.common.process));
    if let Some(runtime) = &line.runtime {
        page.put(Style::Plain, &format!(", {}", version(runtime)));
    }
    page.end_line();
    let waits = match line.wait_hooks {
        ReportedWaitHooks::Fentry => "fentry",
        ReportedWaitHooks::Tracepoint => "tracepoint",
        ReportedWaitHooks::Mixed => "fentry and tracepoint",
    };
    let kernel = format!("{}, loops' waits seen by {waits}", line.kernel);
    page.label("kernel").put(Style::Plain, &kernel).end_line();

    let named = |probe: &ReportedHook| format!("{} ({})", probe.name, probe.hook);
    if detail == Detail::Brief {
        list(page, "gaps", &line.gaps);
        return;
    }
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
fn identity(process: &ReportedProcess) -> String {
    let known = process.command.as_ref().or(process.exe.as_ref());
    known.unwrap_or(&process.name).clone()
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Colour, Screen, Text, usual_columns};
    use crate::report::schema::stall::{ReportedTask, StallLine};
    use crate::report::{Report, sample};
    use crate::sink::Sink;
    use crate::sink::settings::Detail;
    use crate::turn::{
        Awaited, End, Holder, Lock, Moment, Other, Sampled, Stall, ThreadState, Waker,
    };

    const SESSION_START: &str = "\
stalltrace 0.1.0 watches uvicorn[4242] for event loop stalls past 100 ms
  process   python3 -m uvicorn app:app, cpython 3.11.2
  kernel    6.1.0-49-amd64, loops' waits seen by fentry and tracepoint
";

    const PROBES: &str = concat!(
        "  attached  epoll_wait (fentry), poll (tracepoint)\n",
        "  missing   io_uring_enter (fentry): the kernel has no such system call\n",
    );

    const STALL_OPEN: &str = "
STALLING    uvicorn[4242]: event loop stalled for 103 ms so far, blocked in
            recvfrom on tcp 127.0.0.1:8081, at charge_payment (app.py:31)
  advice    A blocking call: use its asynchronous kin, or run it with
            asyncio.to_thread; with a timeout where it waits for somebody.
  time      ░░░░░░░░░░░░░░░░░░░░░██▓  ░ blocked 91 ms  █ running 8 ms
            ▓ in the kernel 4 ms
  stack     … 3 frames of the kernel, libc
            SocketIO.readinto  /usr/lib/python3.11/socket.py:706
          > charge_payment     /srv/pay/app.py:31
            … 1 frame of asyncio
  also      running 12 ms, at parse  /srv/pay/app.py:17
  began     2026-11-21 05:20:01.000 UTC in thread 4242 (uvicorn), asyncio on
            cpython 3.11.2
  gaps      1, shown with -v and in JSON
  lost      captures 3
";

    const STALL_UPDATE: &str = "\
STILL       uvicorn[4242]: event loop stalled for 103 ms so far
";

    /// What the lines above have said is not said again.
    const STALL_END: &str = "\
STALLED     uvicorn[4242]: event loop stalled 5012 ms, blocked in recvfrom on
            tcp 127.0.0.1:8081, at charge_payment (app.py:31)
  time      ░░░░░░░░░░░░░░░░░░░░░░░░  ░ blocked 5000 ms  █ running 8 ms
            ▓ in the kernel 4 ms
  held up   17 events
";

    const SESSION_END: &str = "
uvicorn[4242]: 1 of 1200 turns stalled, 5012 ms in all, the longest 5012 ms; the
            target exited after 30.0 s
  culprits  stalls      total      worst  to blame
                 1    5000 ms    5000 ms  charge_payment (app.py:31)
  lost      captures 3
";

    pub fn screen(detail: Detail) -> Screen {
        Screen::new(Colour::Off, detail, usual_columns)
    }

    /// A report alone, in brief.
    pub fn plain(report: &Report) -> String {
        screen(Detail::Brief).render(report)
    }

    fn more(report: &Report) -> String {
        screen(Detail::More).render(report)
    }

    fn end_of(stall: &Stall) -> Report {
        sample::report(Moment::End, stall)
    }

    fn changed(change: impl FnOnce(&mut StallLine)) -> Report {
        let mut report = end_of(&sample::stall());
        if let Report::StallEnd(line) = &mut report {
            change(line);
        }
        report
    }

    /// The lines of a session, as they stand on a terminal.
    #[test]
    fn a_session() {
        let mut screen = screen(Detail::Brief);
        assert_eq!(screen.render(&sample::session_start()), SESSION_START);
        let open = sample::open_stall();
        assert_eq!(screen.render(&sample::report(Moment::Open, &open)), STALL_OPEN);
        assert_eq!(screen.render(&sample::report(Moment::Update, &open)), STALL_UPDATE);
        assert_eq!(screen.render(&end_of(&sample::stall())), STALL_END);
        assert_eq!(screen.render(&sample::session_end()), SESSION_END);
        let start = more(&sample::session_start());
        assert_eq!(start, format!("{SESSION_START}{PROBES}"));
    }

    /// The first five rows say how long, why, which line and what to do; all of it fits a terminal of 24 rows
    /// and 80 columns beside what was there before.
    #[test]
    fn fits_a_terminal() {
        for report in [end_of(&sample::stall()), end_of(&sample::looked_at())] {
            let text = plain(&report);
            let first: Vec<&str> = text.lines().take(5).collect();
            let first = first.join("\n");
            for said in [" ms", "recvfrom", "app.py:31", "advice"] {
                assert!(first.contains(said), "{said}: {text}");
            }
            assert!(text.lines().count() <= 18, "{text}");
            assert!(text.lines().all(|row| row.chars().count() <= 80), "{text}");
        }
    }

    /// A stall whose beginning was not told stands whole, and one that is told is told once.
    #[test]
    fn told_once() {
        let alone = plain(&end_of(&sample::stall()));
        for part in ["  advice ", "  stack ", "> charge_payment", "  began ", "  lost "] {
            assert!(alone.contains(part), "{part}: {alone}");
        }
        let mut screen = screen(Detail::Brief);
        screen.render(&sample::report(Moment::Open, &sample::open_stall()));
        let elsewhere = changed(|line| line.stall.id = "another".to_owned());
        let other = screen.render(&elsewhere);
        assert!(other.starts_with("\nSTALLED ") && other.contains("  advice "), "{other}");
        let end = screen.render(&end_of(&sample::stall()));
        assert!(end.starts_with("\nSTALLED "), "another stall came between: {end}");
        assert!(!end.contains("  advice "), "{end}");
        let again = screen.render(&end_of(&sample::stall()));
        assert!(again.contains("  advice "), "that stall is over and forgotten: {again}");
    }

    /// Where something else is to blame by now, it is told while the stall lasts.
    #[test]
    fn another_culprit() {
        let mut screen = screen(Detail::Brief);
        let open = sample::report(Moment::Open, &sample::open_stall());
        screen.render(&open);
        let mut update = sample::report(Moment::Update, &sample::open_stall());
        if let Report::StallUpdate(line) = &mut update {
            line.culprit.as_mut().unwrap().line = Some(99);
        }
        assert!(screen.render(&update).starts_with("STALLING "));
        assert!(screen.render(&update).starts_with("STILL "), "once");
    }

    /// Other threads are told in a line each: what they held, that they ended the wait, or nothing but
    /// where they were. The same line twice is one.
    #[test]
    fn other_threads() {
        let mut stall = sample::stall();
        let at = |function: &str| {
            let seen =
                sample::on_cpu(vec![sample::python(function, "/srv/pay/app.py", 7)], 900_000_000);
            Sampled { state: ThreadState::Blocked, ..seen }
        };
        let (tid, name, held) = (7, Some("writer".to_owned()), Lock::Futex(0));
        stall.holders = vec![Holder { tid, name, held, seen: at("flush"), collecting: 0 }];
        let (pid, name, seen) = (4242, "writer".to_owned(), Some(at("release")));
        stall.wakers = vec![Waker {
            pid,
            tid,
            name,
            ended_ns: 900_000_000,
            seen,
            awaited: Awaited::Futex,
            ..Waker::default()
        }];
        stall.others =
            [8, 9].map(|tid| Other { tid, name: None, seen: at("idle") }).into_iter().collect();
        let text = plain(&end_of(&stall));
        for line in [
            "  also      thread 7 (writer), blocked 900 ms, at flush  /srv/pay/app.py:7\n",
            "  also      thread 7 (writer), ended 900 ms of waiting, at release  /srv/pay/ap…\n",
            "  other     2 threads, blocked, at idle  /srv/pay/app.py:7\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        let text = more(&end_of(&stall));
        assert!(text.contains("blocked 900.000 ms, 1 sample, at flush\n"), "{text}");
        let mut report = end_of(&stall);
        if let Report::StallEnd(line) = &mut report {
            let twice: Vec<_> =
                line.stacks.iter().filter(|stack| stack.thread.tid == 7).cloned().collect();
            line.stacks.extend(twice);
        }
        let text = plain(&report);
        assert_eq!(text.matches(", at flush ").count(), 1, "{text}");
        assert!(text.contains("blocked 1800 ms, at flush"), "{text}");
    }

    /// Colour adds weight and nothing else: without its sequences the text is the plain one.
    #[test]
    fn colour_is_only_colour() {
        let report = end_of(&sample::stall());
        for detail in [Detail::Brief, Detail::More, Detail::Everything] {
            let coloured = Screen::new(Colour::On, detail, usual_columns).render(&report);
            assert!(coloured.starts_with("\u{1b}[1;31mSTALLED\u{1b}[0m"), "an error is red");
            assert!(coloured.contains("\u{1b}[1;36mcharge_payment (app.py:31)"), "{coloured:?}");
            assert!(coloured.contains("\u{1b}[1;36mcharge_payment  "), "{coloured:?}");
            let mut stripped = coloured;
            for sequence in ["1;31", "1;33", "1;36", "1", "2", "0"] {
                stripped = stripped.replace(&format!("\u{1b}[{sequence}m"), "");
            }
            assert_eq!(stripped, screen(detail).render(&report));
        }
    }

    /// What is missing is on the page: the end of the stack, the confidence, the reason for both.
    #[test]
    fn what_is_missing() {
        let mut stall = sample::stall();
        stall.end = End::Unseen("the thread exited".to_owned());
        // Nothing says what most of the time went into.
        stall.stacks.retain(|sampled| sampled.stack.truncated.is_some());
        let text = plain(&end_of(&stall));
        assert!(text.contains("  cause     not certain\n"), "{text}");
        assert!(text.contains("            cut here: the copy of the stack ends here\n"), "{text}");
        let text = more(&end_of(&stall));
        assert!(text.contains("end: the thread exited\n"), "{text}");
        assert!(text.contains("cause: no stack was taken of 5000 ms"), "{text}");
    }

    /// What nobody can do anything about is not missed: names of the C library's functions.
    #[test]
    fn gaps_that_matter() {
        let report = changed(|line| {
            line.gaps = [
                "function names in /usr/lib/x86_64-linux-gnu/libc.so.6: no symbol covers some of its frames",
                "cause: it was not seen",
                "callers of functions in /srv/libshop.so: it has no unwind table",
            ]
            .map(str::to_owned)
            .to_vec();
        });
        let text = plain(&report);
        assert!(
            text.contains("  gaps      cause: it was not seen\n            1 more, "),
            "{text}"
        );
        let text = more(&report);
        assert!(!text.contains("libc.so.6: no") && text.contains("libshop.so: it"), "{text}");
        let text = screen(Detail::Everything).render(&report);
        assert!(text.contains("libc.so.6: no"), "{text}");
    }

    /// A loop that is its runtime is said once.
    #[test]
    fn runtime_that_is_the_loop() {
        let report = changed(|line| {
            line.thread.loop_kind = "tokio".to_owned();
            if let Some(runtime) = &mut line.runtime {
                runtime.name = "tokio".to_owned();
            }
        });
        let text = more(&report);
        assert!(text.contains("in thread 4242 (uvicorn), tokio 3.11.2\n"), "{text}");
    }

    /// A frame without a name is still to be found: by its place in its module.
    #[test]
    fn nameless_frame() {
        let mut stall = sample::stall();
        if let Some(frame) = stall.stacks.first_mut().and_then(|it| it.stack.frames.first_mut()) {
            frame.function = None;
        }
        let text = more(&end_of(&stall));
        let line = text.lines().find(|line| line.trim_start().starts_with('?'));
        let line = line.map(|line| line.split_whitespace().collect::<Vec<_>>());
        assert_eq!(line, Some(vec!["?", "libc.so.6+0x1234"]));
    }

    /// Of many stacks a few are told, and how many are not.
    #[test]
    fn many_stacks() {
        let report = changed(|line| {
            let again = line.stacks.clone();
            for n in 0..10 {
                line.stacks.extend(again.iter().skip(1).cloned().map(|mut stack| {
                    if let Some(frame) = stack.frames.first_mut() {
                        frame.function = Some(format!("f{n}"));
                    }
                    stack
                }));
            }
        });
        let text = more(&report);
        assert_eq!(text.matches("  also      running").count(), 8, "{text}");
        assert!(text.contains("  also      3 further stacks of less time\n"), "{text}");
    }

    /// The task is one line: where it stands, and what it is called; in brief only if no frame shows it.
    #[test]
    fn task_line() {
        let told = |name: Option<&str>, file: Option<&str>| {
            let report = changed(|line| {
                let [name, file] = [name, file].map(|text| text.map(str::to_owned));
                let function = Some("pay".to_owned());
                line.task = Some(ReportedTask { name, function, file, line: Some(12) });
            });
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

    /// The source's line is shown with its number where the file can be read, and cannot command the terminal.
    #[test]
    fn source_line() {
        let path = std::env::temp_dir().join(format!("screen-{}.py", std::process::id()));
        std::fs::write(&path, "import x\n    x.wait()  # \u{1b}[2J\n").unwrap();
        let mut screen = screen(Detail::Brief);
        let mut start = sample::session_start();
        if let Report::SessionStart(line) = &mut start {
            line.common.process.pid = std::process::id();
        }
        screen.render(&start);
        let report = changed(|line| {
            let culprit = line.culprit.as_mut().unwrap();
            culprit.file = Some(path.to_string_lossy().into_owned());
            culprit.line = Some(2);
        });
        let text = screen.render(&report);
        std::fs::remove_file(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy();
        let row = format!("\n  source  > {name}:2 │ x.wait()  # \\u{{1b}}[2J\n");
        assert!(text.contains(&row), "{row}{text}");
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

    /// The sink writes what is rendered.
    #[test]
    fn written() {
        let mut written = Vec::new();
        let report = sample::session_start();
        Text::new(&mut written, Colour::Off, Detail::Brief, usual_columns).accept(&report).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), SESSION_START);
    }
}
