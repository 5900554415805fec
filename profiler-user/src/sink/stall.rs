//! One moment of a stall to the sections of its block: first how long, why, which line and what to do.

use super::instead::instead;
use super::page::{Page, PagePart, Style};
use super::stacks::{shown, stacks};
use super::time::time;
use super::words::{called, counted, list, version};
use crate::process::executables::{basename, is_system_library};
use crate::process::source_line::SourceLine;
use crate::report::message::place;
use crate::report::schema::line::Severity;
use crate::report::schema::stall::{
    Confidence, ReportedLanguage, ReportedStack, ReportedTask, StallLine,
};
use crate::sink::settings::Detail;

/// Gaps of a brief report; the rest is counted.
const MORE_GAPS: usize = 2;

/// What a brief report says is missing: what it needs to be believed. The rest is about details.
const GRAVE_GAPS: [&str; 9] = [
    "cause",
    "culprit",
    "start",
    "end",
    "stacks",
    "Python frames",
    "frames that",
    "stalls of",
    "holder_thread",
];

/// What surrounds a line: the word before its sentence, how much of it is wanted, and the culprit's source.
#[derive(Debug, Clone, Copy)]
pub struct LineContext<'a> {
    pub word: &'static str,
    pub detail: Detail,
    pub source: Option<&'a SourceLine>,
}

/// All of them, in the order in which they stand.
pub fn sections(blank: &Page, line: &StallLine, told: &LineContext<'_>) -> Vec<PagePart> {
    let mut all = Vec::new();
    let mut add = |is_of_now: bool, write: &dyn Fn(&mut Page)| {
        let mut page = blank.another();
        write(&mut page);
        let text = page.into_text();
        if !text.is_empty() {
            all.push(PagePart { text, is_of_now });
        }
    };
    let detail = told.detail;
    let Sentence { first, also, notes, victims } = Sentence::of(&line.common.message);
    add(true, &|page| headline(page, line, told.word, first));
    add(false, &|page| source_line(page, line, first, told.source));
    add(false, &|page| {
        if let Some(advice) = &line.advice {
            page.label("advice").put(Style::Plain, advice).end_line();
        }
    });
    add(true, &|page| {
        for part in &also {
            page.label("also").put(Style::Plain, part).end_line();
        }
    });
    add(false, &|page| {
        notes.iter().for_each(|note| page.label("note").put(Style::Plain, note).end_line())
    });
    add(false, &|page| confidence(page, line.cause.confidence));
    add(true, &|page| time(page, line, detail));
    add(true, &|page| instead(page, &line.cause, detail));
    add(false, &|page| task(page, line, detail));
    for section in stacks(blank, line, detail) {
        add(section.is_of_now, &|page| page.append(&section.text));
    }
    add(true, &|page| victims_of(page, line, victims, detail));
    add(false, &|page| began(page, line, detail));
    add(false, &|page| gaps(page, line, detail));
    all
}

/// What is to blame by this line: where that changes while a stall goes on, it is told again.
pub fn culprit(line: &StallLine) -> Option<String> {
    line.culprit.as_ref().map(place)
}

/// The sentence up to why: `uvicorn[4242]: event loop stalled for 2003 ms so far`.
pub fn how_long(message: &str) -> &str {
    const END: &str = " so far";
    message.find(END).and_then(|at| message.get(..at + END.len())).unwrap_or(message)
}

/// A line's sentence by its clauses.
struct Sentence<'a> {
    first: &'a str,
    also: Vec<&'a str>,
    notes: Vec<&'a str>,
    victims: Option<&'a str>,
}

impl<'a> Sentence<'a> {
    fn of(message: &'a str) -> Self {
        let mut clauses = message.split("; ");
        let first = clauses.next().unwrap_or_default();
        let mut sentence = Self { first, also: Vec::new(), notes: Vec::new(), victims: None };
        for clause in clauses {
            match (clause.strip_prefix("also "), clause.strip_suffix(" had to wait")) {
                (Some(part), _) => sentence.also.push(part),
                (_, Some(victims)) => sentence.victims = Some(victims),
                _ => sentence.notes.push(clause),
            }
        }
        sentence
    }
}

fn headline(page: &mut Page, line: &StallLine, word: &str, sentence: &str) {
    let style = match line.common.severity {
        Severity::Error => Style::Red,
        Severity::Warn | Severity::Info => Style::Yellow,
    };
    page.put(style, word).put(Style::Plain, &" ".repeat(12_usize.saturating_sub(word.len())));
    let place = culprit(line).filter(|place| !place.is_empty());
    let at = place.as_ref().and_then(|place| Some((sentence.rfind(place)?, place)));
    match at {
        Some((at, place)) => {
            page.put(Style::Bold, &sentence[..at]).put(Style::Culprit, place);
            page.put(Style::Bold, &sentence[at + place.len()..]);
        }
        None => {
            page.put(Style::Bold, sentence);
        }
    }
    page.end_line();
}

/// The line itself, marked, where its file can be read; else its place, where the sentence begins with another
/// part of the stall.
fn source_line(page: &mut Page, line: &StallLine, sentence: &str, source: Option<&SourceLine>) {
    let Some(culprit) = &line.culprit else { return };
    let Some(source) = source else {
        let place = place(culprit);
        if !sentence.contains(&place) {
            page.label("line    >").put(Style::Culprit, &place).cut_line();
        }
        return;
    };
    let file = culprit.file.as_deref().map(basename).unwrap_or_default();
    let number = culprit.line.unwrap_or_default();
    page.label("source  >").put(Style::Dim, &format!("{file}:{number} │ "));
    page.put(Style::Culprit, &source.text);
    if culprit.language == ReportedLanguage::JavaScript {
        page.put(Style::Dim, "  (where it is defined)");
    }
    page.cut_line();
    if source.is_newer {
        let told = format!("{file} is newer than the process: it may run another text");
        page.label("").put(Style::Dim, &told).end_line();
    }
}

fn confidence(page: &mut Page, confidence: Confidence) {
    let told = match confidence {
        Confidence::Certain => return,
        Confidence::Likely => "likely",
        Confidence::Unknown => "not certain",
    };
    page.label("cause").put(Style::Plain, told).end_line();
}

/// `pay  /srv/pay/app.py:12  (Task-7)`; in brief only where its function is not among the frames.
fn task(page: &mut Page, line: &StallLine, detail: Detail) {
    let Some(ReportedTask { name, function, file, line: number }) = &line.task else { return };
    let is_frame = |stack: &ReportedStack| {
        stack.frames.iter().any(|frame| frame.function == *function && frame.file == *file)
    };
    if detail == Detail::Brief && shown(line).is_some_and(is_frame) {
        return;
    }
    let place = match (file, number) {
        (Some(file), Some(number)) => format!("  {file}:{number}"),
        (Some(file), None) => format!("  {file}"),
        (None, _) => String::new(),
    };
    let function = function.as_deref().unwrap_or("?");
    page.label("task").put(Style::Plain, &format!("{function}{place}"));
    if let Some(name) = name {
        page.put(Style::Dim, &format!("  ({name})"));
    }
    page.end_line();
}

/// Who had to wait meanwhile.
fn victims_of(page: &mut Page, line: &StallLine, victims: Option<&str>, detail: Detail) {
    if let Some(victims) = victims {
        page.label("held up").put(Style::Plain, victims).end_line();
    }
    if detail == Detail::Brief {
        return;
    }
    for queue in &line.stall.waiting_connections {
        let kept = counted(queue.waiting, "connection");
        page.label("").put(Style::Plain, &format!("{kept} at {}", queue.address)).end_line();
    }
}

/// `2026-11-21 05:20:01.000 UTC in thread 4242 (uvicorn), asyncio on cpython 3.11.2`
fn began(page: &mut Page, line: &StallLine, detail: Detail) {
    let whole = &line.stall.started_at;
    let at = match (detail, whole.get(..10), whole.get(11..23)) {
        (Detail::Brief, Some(day), Some(time)) => format!("{day} {time} UTC"),
        _ => whole.clone(),
    };
    let (thread, kind) = (&line.thread, &line.thread.loop_kind);
    let what = match &line.runtime {
        Some(runtime) if runtime.name == *kind => version(runtime),
        Some(runtime) => format!("{kind} on {}", version(runtime)),
        None => kind.clone(),
    };
    let told = format!("{at} in thread {}{}, {what}", thread.tid, called(thread));
    page.label("began").put(Style::Plain, &told).end_line();
}

/// What is missing, each with its reason; in brief what matters most, and how much there is besides.
fn gaps(page: &mut Page, line: &StallLine, detail: Detail) {
    let is_of_system = |gap: &String| {
        let mut words =
            gap.split_whitespace().map(|word| word.trim_matches([':', ',', ';', '(', ')']));
        words.any(|word| word.contains(".so") && is_system_library(word))
    };
    let known = line.gaps.iter().filter(|gap| detail == Detail::Everything || !is_of_system(gap));
    if detail != Detail::Brief {
        list(page, "gaps", &known.cloned().collect::<Vec<_>>());
        return;
    }
    // Where others had the CPU, the sentence says itself why no line is to blame.
    let is_said = |gap: &str| line.cause.kind.is_from_outside() && gap.starts_with("culprit");
    let is_grave =
        |gap: &&String| GRAVE_GAPS.iter().any(|what| gap.starts_with(what)) && !is_said(gap);
    let (grave, rest): (Vec<&String>, Vec<&String>) = known.partition(is_grave);
    let told: Vec<String> = grave.iter().take(MORE_GAPS).map(|gap| (*gap).clone()).collect();
    let untold = grave.len() - told.len() + rest.len();
    list(page, "gaps", &told);
    if untold > 0 {
        let more = if told.is_empty() { "" } else { " more" };
        let label = if told.is_empty() { "gaps" } else { "" };
        let told = format!("{untold}{more}, shown with -v and in JSON");
        page.label(label).put(Style::Dim, &told).end_line();
    }
}
