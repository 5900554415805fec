//! A stall's cause and stacks to what people do about it, by a table of rules that is data.
//!
//! The table is `advice.toml`; `docs/advice.md` is made of it. Pure: nothing is read here.

mod fields;
mod pattern;
mod peers;
mod table;
#[cfg(test)]
mod document;
#[cfg(test)]
mod rows;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

use self::fields::fields;
use self::pattern::{FramePattern, any_is_like};
pub use self::peers::Peers;
use self::table::{Doing, Family, Rule, TABLE};
use super::application::{CodeOwner, Origin, inside_callback};
use super::cause::verdict::Conclusion;
use super::culprit::whole;
use super::facts::{Context, ProcessFacts};
use super::schema::stall::{Cause, Confidence};
use crate::frame::Frame;
use crate::process::executables::basename;
use crate::turn::{Sampled, ThreadState};

/// Frames tell what it was where they are on the stacks of as much of the time.
const MOST_PERCENT: u64 = 50;

/// From so many waits in one turn on, it is their number that is the fault.
const MANY_ROUND_TRIPS: u64 = 10;

/// What people do about this cause, in one or two sentences; `None` where no rule fits.
pub fn find(
    verdict: &Conclusion<'_>,
    owner: &CodeOwner<'_>,
    context: &Context<'_>,
) -> Option<String> {
    let cause = fields(&verdict.cause);
    let family = TABLE.family(&context.thread.loop_kind);
    let rule = rule(verdict, &cause, owner, context);
    let advice = rule.and_then(|rule| rule.text(family));
    // A peer that is asked a hundred times is not slow.
    let is_slow = waits(&verdict.cause) < MANY_ROUND_TRIPS;
    let again = context.peers.again(&cause).filter(|_| is_slow);
    match (advice, again) {
        (Some(advice), Some(again)) => Some(format!("{advice} {again}")),
        (advice, again) => advice.or(again),
    }
}

/// One stack that shows the cause, and which of its frames count. Found once: there are many rules.
struct Evidence<'a> {
    /// Its part of the cause's time; where no time is known yet, samples count.
    weight: u128,
    is_blocked: bool,
    /// The frames inside the loop's callback.
    inside: &'a [Frame],
    /// Of these, what the application's innermost code had called, and that code itself: what lies further
    /// out has only led there. All of them where none is the application's.
    called: &'a [Frame],
}

impl<'a> Evidence<'a> {
    fn of(sampled: &'a Sampled, verdict: &Conclusion<'a>, owner: &CodeOwner<'_>) -> Self {
        // As the culprit is found: the stack of a hand-written loop may be cut off right above it.
        let frames = &whole(sampled, &verdict.evidence).stack.frames;
        let inside = frames.get(..inside_callback(frames)).unwrap_or_default();
        let own = inside.iter().position(|frame| owner.of(frame) == Origin::Application);
        let called = own.and_then(|own| inside.get(..=own)).unwrap_or(inside);
        let weight = u128::from(sampled.time_ns) + u128::from(sampled.samples);
        Self { weight, is_blocked: sampled.state == ThreadState::Blocked, inside, called }
    }
}

/// The first rule that fits.
fn rule(
    verdict: &Conclusion<'_>,
    cause: &Map<String, Value>,
    owner: &CodeOwner<'_>,
    context: &Context<'_>,
) -> Option<&'static Rule> {
    // What nobody knows has no remedy.
    if verdict.cause.confidence == Confidence::Unknown {
        return None;
    }
    let evidence = verdict.evidence.iter().map(|sampled| Evidence::of(sampled, verdict, owner));
    let evidence: Vec<_> = evidence.collect();
    let kind = &context.thread.loop_kind;
    let family: Option<&Family> = TABLE.family(kind);
    TABLE.rules.iter().find(|rule| {
        rule.is_about(kind, family)
            && is_program(rule, &context.session.process)
            && rule.cause.are_like(cause)
            && waits(&verdict.cause) >= rule.waits
            && is_on_most(&rule.frames, &evidence, |it| it.inside)
            && is_on_most(&rule.called, &evidence, |it| it.called)
            && (rule.unless.is_empty() || !is_on_most(&rule.unless, &evidence, |it| it.inside))
            && rule.state.is_none_or(|state| is_mostly(state, &evidence))
            && rule.text(family).is_some()
    })
}

/// How many waits it is of, where they were many.
fn waits(cause: &Cause) -> u64 {
    cause.waits.map_or(0, |waits| waits.count)
}

fn is_program(rule: &Rule, process: &ProcessFacts) -> bool {
    let exe = process.exe.as_deref().map(|exe| basename(exe.trim_end_matches(" (deleted)")));
    rule.program.is_empty()
        || any_is_like(&rule.program, &process.name)
        || exe.is_some_and(|exe| any_is_like(&rule.program, exe))
}

/// Whether stacks of most of the cause's time have one of these frames among those that count.
fn is_on_most<'a>(
    patterns: &[FramePattern],
    evidence: &[Evidence<'a>],
    counting: impl Fn(&Evidence<'a>) -> &'a [Frame],
) -> bool {
    if patterns.is_empty() {
        return true;
    }
    let has_one = |it: &&Evidence<'a>| {
        counting(it).iter().any(|frame| patterns.iter().any(|pattern| pattern.is_like(frame)))
    };
    let part = sum(evidence.iter().filter(has_one));
    part > 0 && part * 100 >= sum(evidence.iter()) * u128::from(MOST_PERCENT)
}

/// Whether whoever is to blame did this for most of the time.
fn is_mostly(state: Doing, evidence: &[Evidence<'_>]) -> bool {
    let (whole, blocked) = (sum(evidence.iter()), sum(evidence.iter().filter(|it| it.is_blocked)));
    whole > 0 && (blocked * 2 > whole) == (state == Doing::Blocked)
}

fn sum<'a, 'b: 'a>(evidence: impl Iterator<Item = &'a Evidence<'b>>) -> u128 {
    evidence.map(|it| it.weight).sum()
}
