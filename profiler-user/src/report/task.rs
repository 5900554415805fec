//! A stall's stacks to the task that it is about: its name, and the application's outermost code in it.

use super::application::{Origin, Owner};
use super::cause::Verdict;
use super::culprit;
use super::schema::stall::{CauseKind, Culprit, Task};
use crate::frame::{Frame, Language};
use crate::gap::Gap;
use crate::task::{Running, Share, Task as Proved};
use crate::turn::{Awaited, Sampled, Stall};

/// Files of web frameworks and servers that call handlers and middleware: what lies further out
/// belongs to every request alike, and so does the application's own middleware there.
const DISPATCHERS: [&str; 12] = [
    "/starlette/routing.py",
    "/starlette/applications.py",
    "/starlette/middleware/",
    "/starlette/_exception_handler.py",
    "/fastapi/routing.py",
    "/fastapi/applications.py",
    "/uvicorn/",
    "/aiohttp/web_",
    "/django/core/handlers/",
    "/quart/app.py",
    "/sanic/app.py",
    "/tornado/web.py",
];

/// The task that most of the culprit's time was spent in. None where that was a plain callback's, and
/// with a gap where it cannot be told.
pub fn find(
    stall: &Stall,
    verdict: &Verdict<'_>,
    culprit: Option<&Culprit>,
    owner: &Owner<'_>,
    gaps: &mut Vec<Gap>,
) -> Option<Task> {
    if verdict.cause.kind == CauseKind::Saturated {
        gaps.push(Gap::new("task", "many callbacks ran, none of them for most of the time"));
        return None;
    }
    let carriers = carriers(stall, verdict, culprit, owner);
    let whole: u64 = carriers.iter().map(|sampled| weight(sampled.time_ns, sampled.samples)).sum();
    let mut groups: Vec<Group<'_>> = Vec::new();
    for &sampled in &carriers {
        for share in &sampled.shares {
            let who = who(stall, share);
            let weight = weight(share.time_ns, share.samples);
            match groups.iter_mut().find(|group| group.who.is_same(&who)) {
                Some(group) => group.weight += weight,
                // Stacks come heaviest first: the first one's lines are those to show.
                None => groups.push(Group { who, sampled, weight }),
            }
        }
    }
    let how_many = groups.len();
    let heaviest = groups.into_iter().rev().max_by_key(|group| group.weight)?;
    if u128::from(heaviest.weight) * 2 < u128::from(whole) {
        let why = format!("{how_many} ran what is to blame, none of them for most of the time");
        gaps.push(Gap::new("task", why));
        return None;
    }
    match heaviest.who {
        Who::Callback => None,
        Who::Unproved(gap) => {
            gaps.push(gap.clone());
            None
        }
        Who::Task(task) => {
            gaps.extend(task.name.as_ref().err().cloned());
            Some(described(task, heaviest.sampled, owner))
        }
    }
}

/// The loop's stacks that the culprit is in; where another thread is to blame, those that waited for it.
fn carriers<'a>(
    stall: &'a Stall,
    verdict: &Verdict<'a>,
    culprit: Option<&Culprit>,
    owner: &Owner<'_>,
) -> Vec<&'a Sampled> {
    let all = || stall.stacks.iter();
    if matches!(verdict.cause.kind, CauseKind::Gil { .. }) {
        return all().filter(|sampled| sampled.awaited == Awaited::Gil).collect();
    }
    let own = verdict.blamed == stall.tid;
    let evidence = verdict.evidence.iter().copied().filter(|_| own);
    let carries =
        |sampled: &&Sampled| culprit.is_some_and(|culprit| culprit::is_in(culprit, sampled, owner));
    let found: Vec<_> = evidence.filter(carries).collect();
    if found.is_empty() { all().collect() } else { found }
}

/// Time, and where none is known yet, samples.
fn weight(time_ns: u64, samples: u64) -> u64 {
    time_ns.saturating_add(samples)
}

struct Group<'a> {
    who: Who<'a>,
    sampled: &'a Sampled,
    weight: u64,
}

/// Whose time a share is.
enum Who<'a> {
    Callback,
    Unproved(&'a Gap),
    Task(&'a Proved),
}

impl Who<'_> {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Callback, Self::Callback) | (Self::Unproved(_), Self::Unproved(_)) => true,
            (Self::Task(one), Self::Task(other)) => {
                one.frame == other.frame && one.name == other.name
            }
            _ => false,
        }
    }
}

/// What could not be proved of one sample may be known from another of the same coroutines.
fn who<'a>(stall: &'a Stall, share: &'a Share) -> Who<'a> {
    let Some(running) = &share.running else { return Who::Callback };
    let gap = match &running.task {
        Ok(task) => return Who::Task(task),
        Err(gap) => gap,
    };
    let shares = stall.stacks.iter().flat_map(|sampled| &sampled.shares);
    let proved = |other: &'a Running| {
        let same = other.coroutines == running.coroutines;
        other.task.as_ref().ok().filter(|_| same)
    };
    let known = shares.filter_map(|share| share.running.as_ref()).find_map(proved);
    known.map_or(Who::Unproved(gap), Who::Task)
}

fn described(task: &Proved, sampled: &Sampled, owner: &Owner<'_>) -> Task {
    let python = sampled.stack.frames.iter().filter(|frame| frame.language == Language::Python);
    let inside: Vec<&Frame> = python.take(task.root + 1).collect();
    let place = handler(&inside, owner).or(inside.last().copied());
    Task {
        name: task.name.clone().ok(),
        function: place.and_then(|frame| frame.function.clone()),
        file: place.and_then(|frame| frame.file.clone()),
        line: place.and_then(|frame| frame.line),
    }
}

/// The application's outermost frame, of those that the framework called last.
fn handler<'a>(inside: &[&'a Frame], owner: &Owner<'_>) -> Option<&'a Frame> {
    let is_application = |frame: &&&Frame| owner.of(frame) == Origin::Application;
    let innermost = inside.iter().position(|frame| is_application(&frame))?;
    let outwards = inside.get(innermost..)?;
    let called = outwards.iter().take_while(|frame| !is_dispatcher(frame));
    called.filter(is_application).last().copied()
}

fn is_dispatcher(frame: &Frame) -> bool {
    let file = frame.file.as_deref().unwrap_or_default();
    DISPATCHERS.iter().any(|part| file.contains(part)) && file.contains("-packages/")
}
