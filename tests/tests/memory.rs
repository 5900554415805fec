//! A handler that the kernel lets free memory, or that waits for its address space's lock: memory is the cause.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use profiler_tests::cgroup::{Controller, Group};
use profiler_tests::clock::{MILLISECOND, milliseconds};
use profiler_tests::report::{CauseKind, MemoryActivity, StallExt as _, StallLine};
use profiler_tests::scenario::{THRESHOLD_NS, alone};
use profiler_tests::target::{Scratch, folder};
use profiler_tests::turns::{around, nothing, play};

/// What its group may use: less than a Python with its files and what it writes.
const LIMIT_BYTES: u64 = 24 << 20;

/// How far a wait may be from the target's own word: a busy machine's delays come before and after the
/// reading of its clock. The wait itself is a multiple.
const NEAR_NS: u64 = 50 * MILLISECOND;

/// What the stall's parts of this kind and activity add up to.
fn memory_ns(stall: &StallLine, activity: MemoryActivity) -> u64 {
    let cause = &stall.cause;
    let parts = cause.also.iter().map(|it| (&it.kind, it.time_ns));
    let all = parts.chain([(&cause.kind, cause.time_ns)]);
    let is_it = |kind: &CauseKind| match kind {
        CauseKind::Memory { activity: seen, .. } => *seen == Some(activity),
        _ => false,
    };
    all.filter(|(kind, _)| is_it(kind)).map(|(_, time_ns)| time_ns).sum()
}

/// Writing a file that does not fit into the group's memory: the pages have to be cleaned and freed.
/// What a disk takes of it is the disk's: where that is nearly all, it may take a few tries. Without the
/// limit nothing is freed.
#[test]
fn direct_reclaim() -> Result<()> {
    const TRIES: usize = 4;
    // Less is not listed.
    const LEAST_PERCENT: u64 = 10;
    let _machine = alone();
    let mut shares = Vec::new();
    while shares.last().is_none_or(|share| *share < LEAST_PERCENT) {
        ensure!(shares.len() < TRIES, "freeing is {shares:?} % of the stalls");
        shares.push(write_over_the_limit()?);
    }

    let (played, finished) = play(write(), 1, nothing, nothing)?;
    let stall = played.first().and_then(|turn| turn.stall(&finished));
    let freeing_ns = stall.map_or(0, |stall| memory_ns(stall, MemoryActivity::Reclaim));
    ensure!(freeing_ns == 0, "nothing had to be freed: {stall:?}");
    Ok(())
}

fn write() -> Command {
    around(&["write=600"])
}

/// How much of the stall was told to be freeing, in percent.
fn write_over_the_limit() -> Result<u64> {
    let group = Group::new(Controller::Memory)?;
    group.limit_memory(LIMIT_BYTES)?;
    let (played, finished) = play(write(), 1, |target| group.add(target.pid()), nothing)?;
    let times = group.times_at_limit()?;
    let turn = played.first().context("no turn")?;
    let stall = turn.stall(&finished).context("no stall")?;
    let words = format!("{:?} {:?} of {turn:?}", stall.cause, stall.stall.time);
    ensure!(times > 0, "the limit was never reached");
    let freeing_ns = memory_ns(stall, MemoryActivity::Reclaim);
    ensure!(freeing_ns <= turn.duration_ns() + MILLISECOND, "{words}");
    if let CauseKind::Memory { pressure_ns, .. } = &stall.cause.kind {
        ensure!(pressure_ns.is_some_and(|ns| ns > 0), "{words}");
        let function = stall.culprit.as_ref().and_then(|culprit| culprit.function.as_deref());
        ensure!(function == Some("write"), "{function:?} is blamed");
    }
    println!("{} of {}", milliseconds(freeing_ns), milliseconds(turn.duration_ns()));
    Ok(freeing_ns * 100 / stall.stall.duration_ns.max(1))
}

fn compile(source: &str, program: &Path) -> Result<()> {
    let built = Command::new("gcc")
        .args(["-O1", "-pthread", "-o"])
        .args([program, &folder().join(source)])
        .status()?;
    ensure!(built.success(), "gcc: {built}");
    Ok(())
}

/// Mapping a page while another thread populates a huge mapping; alone it is done at once.
#[test]
fn lock_of_the_address_space() -> Result<()> {
    let _machine = alone();
    let scratch = Scratch::new()?;
    let program = scratch.file("mmap_lock");
    compile("mmap_lock.c", &program)?;
    let (played, finished) = play(Command::new(&program), 1, nothing, nothing)?;
    let turn = played.first().context("no turn")?;
    ensure!(turn.off_cpu_ns() > 2 * THRESHOLD_NS, "the lock was not kept: {turn:?}");
    let stall = turn.stall(&finished).context("no stall")?;
    let words = format!("{:?} {:?} of {turn:?}", stall.cause, stall.stall.time);
    ensure!(stall.is_caused_by("memory"), "{words}");
    let waited_ns = memory_ns(stall, MemoryActivity::MmapLock);
    let off_cpu_ns = turn.off_cpu_ns().saturating_sub(stall.stall.time.runnable_ns);
    ensure!(waited_ns.abs_diff(off_cpu_ns) < NEAR_NS, "{words}");
    let function = stall.culprit.as_ref().and_then(|culprit| culprit.function.as_deref());
    ensure!(function == Some("map_page"), "{function:?} is blamed");

    let mut alone = Command::new(&program);
    alone.arg("alone");
    let (_, finished) = play(alone, 1, nothing, nothing)?;
    let memory = finished.ends().find(|end| end.cause.kind.name() == "memory");
    ensure!(memory.is_none(), "{memory:?}");
    Ok(())
}
