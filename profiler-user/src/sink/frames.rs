//! A stack to rows: the application's frames, and one row for each run of frames that are not its own.

use super::fold;
use super::page::{Page, Style, shortened};
use super::words::counted;
use crate::process::executables::basename;
use crate::report::qualified::Qualified;
use crate::report::schema::stall::{Culprit, ReportedFrame, ReportedLanguage, ReportedStack};
use crate::sink::settings::Detail;

/// Rows of a stack in a brief report. Of a deeper one the innermost and the outermost are shown.
const MOST_ROWS: usize = 8;
const OUTERMOST_ROWS: usize = 2;

/// Rows above the culprit's, of a stack that is cut: what it called, and what that led to.
const ROWS_ABOVE: usize = 2;

/// As many frames in a row that are not the application's are told in one line, with more detail.
const FOLDED: usize = 3;

/// Function names are padded up to here; longer ones push their file to the right.
const FUNCTION_COLUMNS: usize = 40;

/// A row of a stack.
#[derive(Debug, Clone, Copy)]
enum Row {
    Frame(usize),
    /// A run of frames, the first and the one after the last.
    Folded(usize, usize),
    /// So many frames for which there is no room.
    LeftOut(usize),
}

/// Writes the rows of a stack, innermost first, the label before the first. JSON has all of it.
pub fn frames(
    page: &mut Page,
    label: &str,
    stack: &ReportedStack,
    culprit: Option<&Culprit>,
    detail: Detail,
) {
    let all: Vec<&ReportedFrame> = stack.kernel.iter().chain(&stack.frames).collect();
    // Of a recursive function the innermost.
    let blamed = all.iter().position(|frame| is(culprit, frame));
    let rows = match detail {
        Detail::Brief => bounded(brief(&all, blamed), blamed),
        Detail::More => more(&all, blamed),
        Detail::Everything => (0..all.len()).map(Row::Frame).collect(),
    };
    let shown = rows.iter().filter_map(|row| match row {
        Row::Frame(index) => all.get(*index),
        _ => None,
    });
    let names = shown.map(|frame| function(frame).chars().count());
    let columns = names.max().unwrap_or_default().min(FUNCTION_COLUMNS);
    let mut label = label;
    for row in rows {
        match row {
            Row::Frame(index) => {
                let Some(frame) = all.get(index) else { continue };
                let mark = if blamed == Some(index) { '>' } else { ' ' };
                page.label(&format!("{label:<8}{mark}"));
                put(page, frame, blamed == Some(index), columns, detail);
            }
            Row::Folded(from, to) => {
                let run = all.get(from..to).unwrap_or_default();
                page.label(label).put(Style::Dim, &fold::told(run)).cut_line();
            }
            Row::LeftOut(count) => {
                let told = format!("… {} more", counted(count as u64, "frame"));
                page.label(label).put(Style::Dim, &told).end_line();
            }
        }
        label = "";
    }
}

/// The application's frames, and what the culprit called.
fn brief(all: &[&ReportedFrame], blamed: Option<usize>) -> Vec<Row> {
    let is_code = |frame: &&ReportedFrame| {
        frame.function.is_some()
            && frame.language != ReportedLanguage::Kernel
            && !fold::is_interpreter(frame)
    };
    let called = blamed.and_then(|blamed| all.get(..blamed)?.iter().rposition(is_code));
    let is_shown = |index: usize, frame: &ReportedFrame| {
        frame.in_app && frame.function.is_some() || Some(index) == blamed || Some(index) == called
    };
    let mut rows = Vec::new();
    let mut next = 0;
    while let Some(frame) = all.get(next) {
        if is_shown(next, frame) {
            rows.push(Row::Frame(next));
            next += 1;
            continue;
        }
        let run = all.iter().enumerate().skip(next);
        let run = run.take_while(|(index, frame)| !is_shown(*index, frame)).count();
        // What is under every program says nothing, but where the thread is.
        if next == 0 || !all.iter().skip(next).take(run).all(|frame| fold::is_plumbing(frame)) {
            rows.push(Row::Folded(next, next + run));
        }
        next += run;
    }
    rows
}

/// No more rows than there is room for: around the culprit, or else the innermost; and the outermost.
fn bounded(rows: Vec<Row>, blamed: Option<usize>) -> Vec<Row> {
    if rows.len() <= MOST_ROWS {
        return rows;
    }
    let is_blamed = |row: &Row| matches!(row, Row::Frame(index) if Some(*index) == blamed);
    let culprit = rows.iter().position(is_blamed).unwrap_or_default();
    let last = rows.len() - OUTERMOST_ROWS;
    let from = culprit.saturating_sub(ROWS_ABOVE);
    // Two rows of those that there may be say what is left out.
    let to = (from + MOST_ROWS - OUTERMOST_ROWS - 2).min(last);
    let left_out = |rows: &[Row]| {
        let frames = rows.iter().map(|row| match row {
            Row::Frame(_) => 1,
            Row::Folded(from, to) => to - from,
            Row::LeftOut(count) => *count,
        });
        Some(Row::LeftOut(frames.sum())).filter(|_| !rows.is_empty())
    };
    let mut bounded = Vec::new();
    bounded.extend(left_out(&rows[..from]));
    bounded.extend_from_slice(&rows[from..to]);
    bounded.extend(left_out(&rows[to..last]));
    bounded.extend_from_slice(&rows[last..]);
    bounded
}

/// All but what is the same in every stall: outside the culprit the plumbing of loop and framework, and
/// between Python or JavaScript frames that of the interpreter.
fn more(all: &[&ReportedFrame], blamed: Option<usize>) -> Vec<Row> {
    let innermost = blamed.or_else(|| all.iter().position(|frame| frame.in_app));
    let mut rows = Vec::new();
    let mut next = 0;
    while next < all.len() {
        let outside = innermost.is_some_and(|innermost| innermost < next);
        let is_interpreted = |frame: &&ReportedFrame| {
            matches!(frame.language, ReportedLanguage::Python | ReportedLanguage::JavaScript)
        };
        let interpreted = all[..next].iter().any(is_interpreted);
        let is_plumbing = |frame: &&&ReportedFrame| {
            let native = frame.language == ReportedLanguage::Native;
            let of_loop = innermost.is_none() && fold::is_of_loop(frame);
            !frame.in_app && (outside || interpreted && (native || of_loop))
        };
        let run = all[next..].iter().take_while(is_plumbing).count();
        if run >= FOLDED {
            rows.push(Row::Folded(next, next + run));
            next += run;
        } else {
            rows.push(Row::Frame(next));
            next += 1;
        }
    }
    rows
}

/// What is not the application's own is dimmed.
fn put(page: &mut Page, frame: &ReportedFrame, is_culprit: bool, columns: usize, detail: Detail) {
    let style = match () {
        () if is_culprit => Style::Culprit,
        () if frame.in_app => Style::Plain,
        () => Style::Dim,
    };
    let name = function(frame);
    let columns = columns.max(name.chars().count());
    let whole = source(frame, detail);
    let is_whole = detail == Detail::Everything;
    let room = if is_whole { usize::MAX } else { page.room().saturating_sub(columns + 2) };
    page.put(style, &format!("{name:<columns$}  {}", shortened(&whole, room)));
    if is_whole { page.end_line() } else { page.cut_line() }
}

/// Whether this is the frame that a culprit was made of.
pub fn is(culprit: Option<&Culprit>, frame: &ReportedFrame) -> bool {
    culprit.is_some_and(|culprit| {
        culprit.function == frame.function
            && culprit.file == frame.file
            && culprit.line == frame.line
            && culprit.module == frame.module
    })
}

/// Its name; of C++ without what it returns and takes.
pub fn function(frame: &ReportedFrame) -> &str {
    let name = frame.function.as_deref().unwrap_or("?");
    match frame.language {
        ReportedLanguage::Native => Qualified::of(name).bare,
        _ => name,
    }
}

/// `file:line`, else the module, with the place in it where the function has no name. The paths that an
/// interpreter was built at are nobody's files here; of an installed package its own path is enough.
pub fn source(frame: &ReportedFrame, detail: Detail) -> String {
    let is_whole = detail == Detail::Everything;
    let module =
        frame.module.as_deref().map(|module| if is_whole { module } else { basename(module) });
    let file = frame.file.as_deref().filter(|_| is_whole || !fold::is_of_python(frame));
    let file = file.map(|file| if is_whole { file } else { installed(file) });
    match (file, frame.line, module) {
        (Some(file), Some(line), _) => format!("{file}:{line}"),
        (Some(file), None, _) => file.to_owned(),
        (None, _, Some(module)) => match &frame.module_offset {
            Some(offset) if frame.function.is_none() || is_whole => format!("{module}+{offset}"),
            _ => module.to_owned(),
        },
        (None, _, None) => frame.address.clone().unwrap_or_default(),
    }
}

/// `requests/api.py` of `/srv/venv/lib/python3.11/site-packages/requests/api.py`.
fn installed(file: &str) -> &str {
    let package = file.split_once("-packages/").map(|(_, within)| within);
    let module = || file.split_once("/node_modules/").map(|(_, within)| within);
    package.or_else(module).unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::{MOST_ROWS, frames, installed, source};
    use crate::report::schema::stall::{
        Culprit, PartOfStall, ReportedFrame, ReportedLanguage, ReportedStack, ReportedState, Role,
        Thread,
    };
    use crate::sink::page::{Colour, Page};
    use crate::sink::settings::Detail;

    fn frame(function: &str, file: &str, in_app: bool) -> ReportedFrame {
        ReportedFrame {
            function: Some(function.to_owned()),
            file: Some(file.to_owned()),
            line: Some(7),
            module: None,
            language: ReportedLanguage::Python,
            inlined: false,
            in_app,
            address: None,
            module_offset: None,
            left_out: 0,
        }
    }

    fn native(function: Option<&str>, file: Option<&str>, module: &str) -> ReportedFrame {
        let function = function.map(str::to_owned);
        ReportedFrame {
            function,
            file: file.map(str::to_owned),
            module: Some(module.to_owned()),
            language: ReportedLanguage::Native,
            module_offset: Some("0x1234".to_owned()),
            ..frame("", "", false)
        }
    }

    fn rows(frames_of: Vec<ReportedFrame>, culprit: Option<&str>, detail: Detail) -> Vec<String> {
        let blamed = frames_of.iter().find(|frame| frame.function.as_deref() == culprit);
        let culprit = blamed.filter(|_| culprit.is_some()).map(|frame| Culprit {
            function: frame.function.clone(),
            file: frame.file.clone(),
            line: frame.line,
            module: frame.module.clone(),
            language: frame.language,
            thread: 1,
            time_ns: 1,
            part: PartOfStall::Blocked,
        });
        let stack = ReportedStack {
            thread: Thread { tid: 1, name: None },
            role: Role::Loop,
            state: ReportedState::Blocked,
            samples: 1,
            time_ns: 1,
            kernel: Vec::new(),
            frames: frames_of,
            truncated: None,
            left_out: 0,
        };
        let mut page = Page::new(Colour::Off, 80);
        frames(&mut page, "", &stack, culprit.as_ref(), detail);
        page.into_text().lines().map(str::to_owned).collect()
    }

    const REQUESTS: &str = "/srv/venv/lib/python3.11/site-packages/requests/api.py";

    fn stalled() -> Vec<ReportedFrame> {
        let libc = || native(Some("recv"), None, "/usr/lib/libc.so.6");
        let python =
            || native(Some("_PyEval"), Some("/build/Python/ceval.c"), "/usr/bin/python3.11");
        vec![
            libc(),
            python(),
            frame("post", REQUESTS, false),
            python(),
            frame("charge", "/srv/app.py", true),
            python(),
            frame("pay", "/srv/app.py", true),
            python(),
            python(),
        ]
    }

    /// The application's frames and what the culprit called are rows of their own, each run of others is one,
    /// but those of an interpreter alone.
    #[test]
    fn brief_rows() {
        let expected = [
            "            … 2 frames of libc, the interpreter",
            "            post    requests/api.py:7",
            "          > charge  /srv/app.py:7",
            "            pay     /srv/app.py:7",
        ];
        assert_eq!(rows(stalled(), Some("charge"), Detail::Brief), expected);
    }

    /// A deep stack of the application's shows the culprit, what is around it, and its outermost frames.
    #[test]
    fn deep_stacks() {
        let deep: Vec<ReportedFrame> =
            (0..200).map(|n| frame(&format!("f{n}"), "/srv/app.py", true)).collect();
        for (culprit, shown) in
            [(Some("f0"), "f3"), (Some("f100"), "f98"), (None, "f1"), (Some("f199"), "f197")]
        {
            let rows = rows(deep.clone(), culprit, Detail::Brief);
            assert!(rows.len() <= MOST_ROWS, "{rows:?}");
            assert!(rows.iter().any(|row| row.contains(&format!("{shown} "))), "{shown}: {rows:?}");
            assert!(rows.last().is_some_and(|row| row.contains("f199")), "{rows:?}");
            let culprit = culprit.map(|name| format!("> {name}"));
            assert!(
                culprit.is_none_or(|name| rows.iter().any(|row| row.contains(&name))),
                "{rows:?}"
            );
            let told: usize = rows
                .iter()
                .filter_map(|row| row.split_once("… ")?.1.split(' ').next()?.parse::<usize>().ok())
                .sum();
            let frames = rows.iter().filter(|row| row.contains("app.py")).count();
            assert_eq!(told + frames, 200, "{rows:?}");
        }
    }

    /// With more detail libraries' frames stand between the culprit and where it is stuck; with all of it
    /// nothing is folded.
    #[test]
    fn more_rows() {
        let rows_of = |detail| rows(stalled(), Some("charge"), detail);
        let more = rows_of(Detail::More);
        assert!(more[0].contains("recv") && more[1].contains("python3.11"), "{more:?}");
        assert!(!more.iter().any(|row| row.contains("ceval.c")), "{more:?}");
        let everything = rows_of(Detail::Everything);
        assert_eq!(everything.len(), 9);
        assert!(everything[1].contains("/build/Python/ceval.c:7"), "{everything:?}");
    }

    /// Of an interpreter's code the paths of its build are left out; code without a name has its place.
    #[test]
    fn sources() {
        let python = native(Some("f"), Some("/build/Python/ceval.c"), "/usr/bin/python3.11");
        assert_eq!(source(&python, Detail::Brief), "python3.11");
        let module = "/usr/lib/python3.11/lib-dynload/_socket.cpython-311-x86_64-linux-gnu.so";
        let socket = native(Some("sock_recv"), Some("/build/Modules/socketmodule.c"), module);
        assert!(source(&socket, Detail::More).starts_with("_socket.cpython"));
        assert_eq!(source(&socket, Detail::Everything), "/build/Modules/socketmodule.c:7");
        let redis = native(Some("f"), Some("/build/redis/src/db.c"), "/usr/bin/redis-server");
        assert_eq!(source(&redis, Detail::Brief), "/build/redis/src/db.c:7");
        let nameless = native(None, None, "/usr/bin/memcached");
        assert_eq!(source(&nameless, Detail::Brief), "memcached+0x1234");
        assert_eq!(installed(REQUESTS), "requests/api.py");
        assert_eq!(installed("/srv/node_modules/pg/lib/a.js"), "pg/lib/a.js");
    }

    /// Whatever their names, rows are no longer than the page.
    #[test]
    fn long_names() {
        let file = format!("/srv/{}/app.py", "deep/".repeat(40));
        let deep = vec![frame(&"f".repeat(60), &file, true), frame(&"g".repeat(300), &file, true)];
        for row in rows(deep, None, Detail::Brief) {
            assert!(row.chars().count() <= 80, "{row}");
        }
    }
}
