//! The stacks of a stall to rows: one whole, of the others where they were, and who waited for whom.

use super::frames::{frames, function, is, source};
use super::page::{Page, PagePart, Style};
use super::words::{counted, list, milliseconds, rounded};
use crate::process::executables::basename;
use crate::report::message::place;
use crate::report::schema::stall::{
    Link, ReportedAway, ReportedFrame, ReportedStack, ReportedState, Role, StallLine,
};
use crate::sink::settings::Detail;

/// Other stacks that a brief report tells in one line each, and one with more detail.
const MORE_STACKS: [usize; 2] = [3, 8];

/// A brief report leaves out other stacks of the loop's below this part of the stall.
const SMALL_PART: u64 = 10;

/// The stack that is told whole: the one that the culprit was found in, or else the heaviest.
pub fn shown(line: &StallLine) -> Option<&ReportedStack> {
    let culprit = line.culprit.as_ref();
    let holds_culprit =
        |stack: &&ReportedStack| stack.frames.iter().any(|frame| is(culprit, frame));
    line.stacks.iter().find(holds_culprit).or(line.stacks.first())
}

/// One stack as rows of frames; of the others the innermost of the application.
pub fn stacks(blank: &Page, line: &StallLine, detail: Detail) -> Vec<PagePart> {
    let mut all = Vec::new();
    let mut add = |is_of_now: bool, page: Page| {
        all.push(PagePart { text: page.into_text(), is_of_now });
    };
    let Some(shown) = shown(line) else { return all };
    let is_whole =
        |stack: &ReportedStack| detail == Detail::Everything || std::ptr::eq(stack, shown);
    for stack in line.stacks.iter().filter(|stack| is_whole(stack)) {
        let is_own = stack.role == Role::Loop;
        let has_weight = detail != Detail::Brief || !is_own;
        if has_weight {
            let mut page = blank.another();
            page.label(label(stack)).put(Style::Plain, &weight(stack, detail)).end_line();
            add(true, page);
        }
        let mut page = blank.another();
        let label = if has_weight { "" } else { label(stack) };
        frames(&mut page, label, stack, line.culprit.as_ref(), detail);
        if let Some(reason) = &stack.truncated {
            page.label("").put(Style::Dim, &format!("cut here: {reason}")).end_line();
        }
        add(false, page);
    }
    let others: Vec<&ReportedStack> = line.stacks.iter().filter(|stack| !is_whole(stack)).collect();
    let mut page = blank.another();
    chain(&mut page, line, detail);
    other_stacks(&mut page, line, &others, detail);
    bystanders(&mut page, &others, detail);
    away(&mut page, &line.stall.away, detail);
    add(false, page);
    all
}

/// Who waits for whom, where the sentence cannot name them all.
fn chain(page: &mut Page, line: &StallLine, detail: Detail) {
    let links = &line.cause.because;
    if detail == Detail::Brief && links.len() < 2 {
        return;
    }
    let told = |link: &Link| {
        let Link { thread, doing, function, file, line: number, .. } = link;
        let name = thread.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        let at = function.as_ref().map(|function| {
            let file = file.as_deref().map(basename).unwrap_or("?");
            let number = number.map(|number| format!(":{number}")).unwrap_or_default();
            format!(", at {function} ({file}{number})")
        });
        format!("thread {}{name} {doing}{}", thread.tid, at.unwrap_or_default())
    };
    list(page, "because", &links.iter().map(told).collect::<Vec<_>>());
}

/// A line each; those that say the same are one, and those that the sentence has are none.
fn other_stacks(page: &mut Page, line: &StallLine, others: &[&ReportedStack], detail: Detail) {
    let is_brief = detail == Detail::Brief;
    let mut merged: Vec<ReportedStack> = Vec::new();
    for other in others.iter().filter(|stack| stack.role != Role::Other) {
        let is_same = |known: &&mut ReportedStack| {
            (known.thread.tid, known.role, known.state)
                == (other.thread.tid, other.role, other.state)
                && place_of(known, detail) == place_of(other, detail)
        };
        if let Some(known) = merged.iter_mut().find(is_same) {
            known.time_ns = known.time_ns.saturating_add(other.time_ns);
            known.samples = known.samples.saturating_add(other.samples);
        } else {
            merged.push((*other).clone());
        }
    }
    if is_brief {
        let is_small = |stack: &ReportedStack| stack.time_ns < line.stall.duration_ns / SMALL_PART;
        let is_said = |stack: &ReportedStack| {
            innermost(stack).is_some_and(|frame| {
                if stack.role != Role::Loop {
                    return is(line.culprit.as_ref(), frame);
                }
                let file = frame.file.as_deref().map(basename);
                let place = match (file, frame.line, frame.module.as_deref()) {
                    (Some(file), Some(number), _) => format!("{file}:{number}"),
                    (Some(file), None, _) => file.to_owned(),
                    (None, _, module) => module.map(basename).unwrap_or_default().to_owned(),
                };
                let place = format!("{} ({place})", function(frame));
                line.common.message.contains(&place)
            })
        };
        merged.retain(|stack| {
            let matters = stack.role == Role::Waker || !is_small(stack);
            matters && !is_said(stack)
        });
    }
    let most = MORE_STACKS[usize::from(!is_brief)];
    for other in merged.iter().take(most) {
        let told = weight(other, detail) + &place_of(other, detail);
        let whole = page.label("also").put(Style::Plain, &told);
        if is_brief { whole.cut_line() } else { whole.end_line() }
    }
    let untold = merged.len().saturating_sub(most);
    if untold > 0 {
        let told = format!("{} of less time", counted(untold as u64, "further stack"));
        page.label("also").put(Style::Dim, &told).end_line();
    }
}

/// All other threads, where they were asked for; those in one place share a line.
fn bystanders(page: &mut Page, others: &[&ReportedStack], detail: Detail) {
    let mut places: Vec<(String, Vec<&ReportedStack>)> = Vec::new();
    for other in others.iter().filter(|stack| stack.role == Role::Other) {
        let place = format!("{}{}", state(other), place_of(other, detail));
        match places.iter_mut().find(|(known, _)| *known == place) {
            Some((_, stacks)) => stacks.push(other),
            None => places.push((place, vec![other])),
        }
    }
    for (place, stacks) in places {
        let who = match &stacks[..] {
            [one] => thread(one),
            many => format!("{} threads", many.len()),
        };
        let told = format!("{who}, {place}");
        let row = page.label("other").put(Style::Dim, &told);
        if detail == Detail::Brief { row.cut_line() } else { row.end_line() }
    }
}

/// Threads that could have served the loop instead.
fn away(page: &mut Page, away: &[ReportedAway], detail: Detail) {
    let most = if detail == Detail::Brief { 2 } else { usize::MAX };
    for ReportedAway { thread, time_ns, culprit, .. } in away.iter().take(most) {
        let name = thread.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        let at = culprit.as_ref().map(|culprit| format!(", at {}", place(culprit)));
        let at = at.unwrap_or_default();
        let told = format!("thread {}{name} for {}{at}", thread.tid, rounded(*time_ns));
        page.label("away").put(Style::Plain, &told).end_line();
    }
    let untold = away.len().saturating_sub(most);
    if untold > 0 {
        let told = format!("{} more", counted(untold as u64, "thread"));
        page.label("").put(Style::Dim, &told).end_line();
    }
}

/// A stack's innermost frame of the application, or else its innermost named one.
fn innermost(stack: &ReportedStack) -> Option<&ReportedFrame> {
    let mut named = stack.frames.iter().filter(|frame| frame.function.is_some());
    named.clone().find(|frame| frame.in_app).or_else(|| named.next())
}

/// Where that is.
fn place_of(stack: &ReportedStack, detail: Detail) -> String {
    let told = |frame| format!(", at {}  {}", function(frame), source(frame, detail));
    innermost(stack).map(told).unwrap_or_default()
}

/// Whose stack it is.
fn label(stack: &ReportedStack) -> &'static str {
    match stack.role {
        Role::Loop => "stack",
        Role::Holder => "holder",
        Role::Waker => "waker",
        Role::Other => "other",
    }
}

/// `blocked 5000.000 ms, 1 sample`; in brief `blocked 5000 ms`.
fn weight(stack: &ReportedStack, detail: Detail) -> String {
    let state = state(stack);
    let (time, samples) = match detail {
        Detail::Brief => (rounded(stack.time_ns), String::new()),
        _ => (milliseconds(stack.time_ns), format!(", {}", counted(stack.samples, "sample"))),
    };
    match stack.role {
        Role::Loop => format!("{state} {time}{samples}"),
        Role::Waker => format!("{}, ended {time} of waiting", thread(stack)),
        Role::Holder => format!("{}, {state} {time}{samples}", thread(stack)),
        Role::Other => format!("{}, {state}", thread(stack)),
    }
}

fn state(stack: &ReportedStack) -> &'static str {
    match stack.state {
        ReportedState::Running => "running",
        ReportedState::Blocked => "blocked",
        ReportedState::Runnable => "ready, no CPU",
        ReportedState::Stopped => "stopped",
    }
}

/// `thread 4242 (uvicorn)`
fn thread(stack: &ReportedStack) -> String {
    let tid = stack.thread.tid;
    let name = stack.thread.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    format!("thread {tid}{name}")
}
