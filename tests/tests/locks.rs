//! A loop that waits for what another thread keeps: that thread is named, by what is known of it for certain.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};
use profiler_tests::clock::{MILLISECOND, milliseconds};
use profiler_tests::report::{
    CauseKind, ReportedLanguage, ReportedStack, Role, StallExt as _, StallLine,
};
use profiler_tests::scenario::{THRESHOLD_NS, alone};
use profiler_tests::tally::Tally;
use profiler_tests::turns::{self, Watched, script};
use serde::Deserialize;

/// Some lines of a function.
#[derive(Debug, Deserialize)]
struct Place {
    function: String,
    first: u32,
    last: u32,
}

impl Place {
    fn is_at(&self, function: Option<&str>, line: Option<u32>) -> bool {
        let lines = self.first..=self.last;
        function == Some(self.function.as_str()) && line.is_some_and(|line| lines.contains(&line))
    }

    fn is_on(&self, stack: &ReportedStack) -> bool {
        stack.frames.iter().any(|frame| self.is_at(frame.function.as_deref(), frame.line))
    }
}

/// Who kept it, and where.
#[derive(Debug, Deserialize)]
struct Keeper {
    tid: u32,
    #[serde(flatten)]
    place: Place,
}

/// One wait, in the target's own words.
#[derive(Debug, Deserialize)]
struct Waited {
    kind: String,
    holders: Vec<Keeper>,
    waiter: Place,
    start_ns: u64,
    end_ns: u64,
    /// Of several waits, their sum.
    waited_ns: Option<u64>,
}

/// What was seen of one session.
struct Seen(Watched<Waited>);

impl Seen {
    /// The waits, each with the stall that was reported of it. A machine without a free CPU makes some
    /// of them something else.
    fn judged(
        &self,
        cause: &str,
        count: usize,
        tally: &mut Tally,
    ) -> Result<Vec<(&Waited, &StallLine)>> {
        let Watched { turns: waits, finished, .. } = &self.0;
        ensure!(waits.len() == count, "{} waits instead of {count}", waits.len());
        let mut judged = Vec::new();
        for waited in waits {
            let duration_ns = waited.end_ns - waited.start_ns;
            ensure!(duration_ns >= THRESHOLD_NS, "{waited:?} was too short to be a test");
            let stall = finished.stall_in(waited.start_ns, waited.end_ns);
            let stall = stall.with_context(|| format!("{} was missed", waited.kind))?;
            ensure!(stall.is_caused_by(cause), "{}: {:?}", waited.kind, stall.cause);
            if stall.cause.kind.name() == cause {
                tally.compared();
                judged.push((waited, stall));
            } else {
                let lasted = milliseconds(duration_ns);
                tally.passed_over(format!("{} {lasted}: not enough CPU", waited.kind));
            }
        }
        Ok(judged)
    }
}

fn watch(options: &[&str]) -> Result<Seen> {
    Ok(Seen(turns::watch(script("locks.py", options), &[], "waited")?))
}

/// The keeper that the culprit is said to be: by its thread, its function and its line.
fn blamed<'a>(waited: &'a Waited, stall: &StallLine) -> Result<&'a Keeper> {
    let culprit = stall.culprit.as_ref().with_context(|| format!("nobody: {:?}", stall.gaps))?;
    let keeper = waited.holders.iter().find(|keeper| keeper.tid == culprit.thread);
    let keeper = keeper.with_context(|| format!("{culprit:?} instead of {:?}", waited.holders))?;
    let is_there = keeper.place.is_at(culprit.function.as_deref(), culprit.line);
    ensure!(is_there, "{culprit:?} instead of {keeper:?}");
    let holds =
        |stack: &&ReportedStack| stack.role == Role::Holder && stack.thread.tid == keeper.tid;
    let mut stacks = stall.stacks.iter().filter(holds).filter(|stack| keeper.place.is_on(stack));
    let is_native = |stack: &ReportedStack| {
        stack.frames.iter().any(|frame| frame.language == ReportedLanguage::Native)
    };
    ensure!(stacks.any(is_native), "no stack of {keeper:?} with native frames");
    Ok(keeper)
}

/// A mutex says who owns it, asleep or on a CPU, with priority inheritance or without, and so does
/// Python's re-entrant lock: its owner is to blame, where it is.
#[test]
fn an_owner_is_blamed() -> Result<()> {
    let _machine = alone();
    let mut tally = Tally::of("locks/an_owner_is_blamed");
    let seen = watch(&["mutex", "busy", "inheriting", "rlock"])?;
    for (waited, stall) in seen.judged("lock", 4, &mut tally)? {
        let keeper = blamed(waited, stall)?;
        let CauseKind::Lock { owner_thread, woken_by, .. } = &stall.cause.kind else {
            bail!("{:?}", stall.cause);
        };
        let owner = owner_thread.as_ref().map(|thread| thread.tid);
        ensure!(owner == Some(keeper.tid), "{:?} instead of {keeper:?}", stall.cause);
        let told = format!("held by thread {}", keeper.tid);
        ensure!(stall.cause.summary.contains(&told), "{}", stall.cause.summary);
        let waker = woken_by.as_ref().map(|waker| waker.tid);
        ensure!(waker == Some(keeper.tid), "released by {waker:?}");
    }
    // One may be lost to a machine that is busy with something else.
    tally.must_be(3)
}

/// A plain lock has no owner: the line that waits is named, and, without blame, who released it, in
/// whatever process that is.
#[test]
fn a_waker_is_named() -> Result<()> {
    let _machine = alone();
    let mut tally = Tally::of("locks/a_waker_is_named");
    let seen = watch(&["--times", "2", "lock", "process"])?;
    for (waited, stall) in seen.judged("lock", 4, &mut tally)? {
        let [keeper] = &waited.holders[..] else { bail!("{waited:?}") };
        let culprit = stall.culprit.as_ref().context("nobody is named")?;
        let waits = waited.waiter.is_at(culprit.function.as_deref(), culprit.line);
        ensure!(waits, "{culprit:?} instead of {:?}", waited.waiter);
        ensure!(culprit.thread == seen.0.target.pid(), "{culprit:?} is another thread's");
        let CauseKind::Lock { owner_thread, woken_by, .. } = &stall.cause.kind else {
            bail!("{:?}", stall.cause);
        };
        ensure!(owner_thread.is_none(), "{:?}", stall.cause);
        ensure!(stall.gaps.iter().any(|gap| gap.starts_with("owner_thread:")), "{:?}", stall.gaps);

        let waker = woken_by.as_ref().context("nobody released it")?;
        let in_process = waited.kind == "lock";
        let pid = if in_process { seen.0.target.pid() } else { keeper.tid };
        ensure!((waker.pid, waker.tid) == (pid, keeper.tid), "{waker:?} instead of {keeper:?}");
        ensure!(!waker.name.is_empty(), "{waker:?} has no name");
        let released = |stack: &ReportedStack| {
            stack.role == Role::Waker && stack.thread.tid == keeper.tid && keeper.place.is_on(stack)
        };
        let shown = stall.stacks.iter().any(released);
        ensure!(shown == in_process, "the releasing stack of {}: {shown}", waited.kind);
    }
    tally.must_be(3)
}

/// Whoever keeps the interpreter's lock is to blame: a thread that computes, several in turn, or one that
/// sleeps without giving it back. The slices in which the loop waits are one wait.
#[test]
fn keepers_of_the_gil_are_blamed() -> Result<()> {
    let _machine = alone();
    let seen = watch(&["--times", "2", "spin", "spinners", "asleep"])?;
    let mut tally = Tally::of("locks/keepers_of_the_gil");
    let mut in_turn = BTreeSet::new();
    for (waited, stall) in seen.judged("gil", 6, &mut tally)? {
        let keeper = blamed(waited, stall)?;
        let CauseKind::Gil { holder_thread, holders, .. } = &stall.cause.kind else {
            bail!("{:?}", stall.cause);
        };
        let holder = holder_thread.as_ref().map(|thread| thread.tid);
        ensure!(holder == Some(keeper.tid), "{:?} instead of {keeper:?}", stall.cause);
        let keepers: Vec<_> = waited.holders.iter().map(|keeper| keeper.tid).collect();
        for thread in holders {
            ensure!(keepers.contains(&thread.tid), "{thread:?} is none of {keepers:?}");
            if waited.kind == "spinners" {
                in_turn.insert(thread.tid);
            }
        }
        let waiting = stall.stacks.iter().find(|stack| stack.role == Role::Loop);
        let slices = waiting.map_or(0, |stack| stack.samples);
        ensure!(slices >= 5, "the wait is in pieces: {slices} samples");
    }
    println!("{} of 6 threads were seen to hold it in turn", in_turn.len());
    // Three that compute beside the loop may leave it no CPU on a machine that has few.
    tally.must_be(3)
}

/// Several threads keep a mutex in turn, and the loop gets it now and then: every wait counts, all owners
/// are told, and one of them is to blame.
#[test]
fn a_convoy_is_told() -> Result<()> {
    let _machine = alone();
    let mut tally = Tally::of("locks/a_convoy_is_told");
    let seen = watch(&["--times", "2", "convoy"])?;
    for (waited, stall) in seen.judged("lock", 2, &mut tally)? {
        blamed(waited, stall)?;
        let keepers: BTreeSet<_> = waited.holders.iter().map(|keeper| keeper.tid).collect();
        let CauseKind::Lock { holders, .. } = &stall.cause.kind else {
            bail!("{:?}", stall.cause);
        };
        let told: BTreeSet<_> = holders.iter().map(|holder| holder.tid).collect();
        ensure!(told.len() >= 2 && told.is_subset(&keepers), "{told:?} of {keepers:?}");
        ensure!(stall.cause.summary.contains("threads in turn"), "{}", stall.cause.summary);
        let times = stall.how_often().unwrap_or(0);
        // A lock that another one took first is waited for again.
        ensure!(times >= 2, "{times} waits");
        // What ended before the turn was suspected has no stack; a hypervisor may take the CPU between a wait and the
        // target's reading of its clock.
        let (seen_ns, waited_ns) = (stall.cause.time_ns, waited.waited_ns.unwrap_or(0));
        let is_near =
            seen_ns <= waited_ns + 20 * MILLISECOND && seen_ns + THRESHOLD_NS >= waited_ns / 10 * 9;
        ensure!(is_near, "{seen_ns} ns of {waited_ns} ns");
    }
    tally.must_be(1)
}

/// What is given back soon stalls nobody, and no thread is blamed for anything.
#[test]
fn what_is_given_back_is_no_stall() -> Result<()> {
    let _machine = alone();
    let kinds = [
        "spin",
        "spinners",
        "asleep",
        "lock",
        "rlock",
        "mutex",
        "busy",
        "inheriting",
        "process",
        "convoy",
    ];
    let seen = watch(&[&["--healthy"], &kinds[..]].concat())?;
    ensure!(seen.0.turns.len() == kinds.len(), "{} waits", seen.0.turns.len());
    let is_held = |end: &&StallLine| ["lock", "gil"].contains(&end.cause.kind.name());
    // On a crowded machine whoever holds it for moments has no CPU to give it back: then the loop did wait.
    let is_true = |end: &&StallLine| {
        let mut around = seen.0.turns.iter().filter(|waited| {
            end.stall.start_monotonic_ns < waited.end_ns && end.end_ns() > waited.start_ns
        });
        around.any(|waited| waited.end_ns - waited.start_ns >= THRESHOLD_NS / 2)
    };
    let held = seen.0.finished.ends().filter(is_held);
    let invented: Vec<_> = held.filter(|end| !is_true(end)).collect();
    ensure!(invented.is_empty(), "{invented:?}");
    Ok(())
}
