//! The second version of control groups, in one session: a group is left without CPU time, frozen, slowed down for
//! its memory, and swapped out; each is the cause of one turn, and in between the same turns are as they should be.
//!
//! Meant for another kernel in an emulated machine, where a session takes long to begin, so that it is one.
//! What the machine lacks is left out, and said.

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use profiler_tests::cgroup::Group;
use profiler_tests::clock::{MILLISECOND, milliseconds, monotonic_ns, slowdown};
use profiler_tests::report::{
    CauseKind, MemoryActivity, ReportedComponent, ReportedPressureOf, StallExt as _, StallLine,
    StoppedBy,
};
use profiler_tests::scenario::alone;
use profiler_tests::tally::skip;
use profiler_tests::target::Target;
use profiler_tests::tracer::Finished;
use profiler_tests::turns::{Played, around, let_it_begin, play};

const MIB: u64 = 1 << 20;

/// How much more memory the target may take before it is slowed down: less than it takes.
const ROOM_BYTES: u64 = 4 * MIB;

/// After so long it gets all that it wants.
const NARROW: Duration = Duration::from_millis(900);

/// A fifth of a CPU.
const QUOTA_US: u64 = 20_000;

const STOP: Duration = Duration::from_millis(900);

type Act = fn(&Scene) -> Result<()>;

/// The turns, and what is done as each begins. A rest is none, and ends once it is done.
const TURNS: [(&str, Act); 10] = [
    ("rest", Scene::nothing),
    // The quota is there from the beginning: it takes seconds until a new one is found.
    ("compute=120", Scene::nothing),
    ("rest", Scene::lift_quota),
    ("touch=24", Scene::nothing),
    ("compute=150", Scene::nothing),
    ("compute=400", Scene::freeze),
    ("rest", Scene::narrow),
    ("grow=10", Scene::widen),
    ("rest", Scene::swap_out),
    ("touch=24", Scene::nothing),
];
const THROTTLED: usize = 1;
const TOUCHES: usize = 3;
const COMPUTES: usize = 4;
const FROZEN: usize = 5;
const SLOWED: usize = 7;
const SWAPPED: usize = 9;

/// What is told and what was made may differ by what was counted between two looks: half a threshold and
/// one period of the quota; and by the time in which the freezer gets hold of a thread.
fn near_ns() -> u64 {
    150 * MILLISECOND + 10 * MILLISECOND * u64::from(slowdown())
}

/// What the kernel has counted so far.
#[derive(Debug, Clone, Copy)]
struct Counted {
    /// Of the outer group.
    throttled_ns: u64,
    /// Of the inner one. The outer one's is less: the kernel weighs CPUs by what they did between two
    /// readings, and nobody reads it as often.
    pressure_ns: u64,
}

/// The target's group, and the one above, which is what is limited.
#[derive(Debug)]
struct Scene {
    /// First, as it has to go first.
    inner: Group,
    outer: Group,
    /// As each turn began, and at the end.
    counted: RefCell<Vec<Counted>>,
    stopped_ns: RefCell<u64>,
    swap: RefCell<Option<Swap>>,
    swapped_bytes: RefCell<u64>,
}

impl Scene {
    fn new(outer: Group) -> Result<Self> {
        Ok(Self {
            inner: outer.inside()?,
            outer,
            counted: RefCell::default(),
            stopped_ns: RefCell::default(),
            swap: RefCell::default(),
            swapped_bytes: RefCell::default(),
        })
    }

    fn count(&self) -> Result<()> {
        let (throttled_ns, pressure_ns) =
            (self.outer.throttled_ns()?, self.inner.memory_pressure_ns()?);
        self.counted.borrow_mut().push(Counted { throttled_ns, pressure_ns });
        Ok(())
    }

    /// What was counted in a turn at least, and at most: some of it had passed when its beginning was
    /// heard of, and was counted in the one before.
    fn counted(&self, turn: usize, of: fn(&Counted) -> u64) -> (u64, u64) {
        let counted = self.counted.borrow();
        let [earlier, begun, over] = [turn - 1, turn, turn + 1].map(|place| of(&counted[place]));
        (over - begun, over - earlier)
    }

    fn nothing(&self) -> Result<()> {
        Ok(())
    }

    fn freeze(&self) -> Result<()> {
        let_it_begin();
        let before_ns = monotonic_ns();
        self.inner.freeze()?;
        std::thread::sleep(STOP);
        self.inner.thaw()?;
        *self.stopped_ns.borrow_mut() = monotonic_ns() - before_ns;
        Ok(())
    }

    fn narrow(&self) -> Result<()> {
        // What it has of files would be let go first.
        self.inner.reclaim(self.inner.memory()?)?;
        self.inner.slow_down_from(Some(self.inner.memory()? + ROOM_BYTES))
    }

    fn widen(&self) -> Result<()> {
        std::thread::sleep(NARROW);
        self.inner.slow_down_from(None)
    }

    fn swap_out(&self) -> Result<()> {
        let Some(device) = std::env::var_os("STALLTRACE_TEST_SWAP") else {
            return skip("cgroup_v2/swap", "no disk to swap to is named by STALLTRACE_TEST_SWAP");
        };
        *self.swap.borrow_mut() = Some(Swap::on(device.into())?);
        self.inner.reclaim(self.inner.memory()?)?;
        *self.swapped_bytes.borrow_mut() = self.inner.swapped()?;
        Ok(())
    }

    fn lift_quota(&self) -> Result<()> {
        self.outer.lift_cpu_limit()
    }
}

/// A device that the machine swaps to.
#[derive(Debug)]
struct Swap(PathBuf);

impl Swap {
    fn on(device: PathBuf) -> Result<Self> {
        for tool in ["mkswap", "swapon"] {
            let output = Command::new(tool).arg(&device).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(Self(device))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let off = Command::new("swapoff").arg(&self.0).status();
        if !off.is_ok_and(|status| status.success()) {
            eprintln!("{} stays in use", self.0.display());
        }
    }
}

/// What a turn said of itself, and its stall.
fn stall_of<'a>(turn: &Played, finished: &'a Finished) -> Result<(&'a StallLine, String)> {
    let stall = turn.stall(finished).with_context(|| format!("{turn:?} was missed"))?;
    let (time, lost) = (&stall.stall.time, finished.lost());
    Ok((stall, format!("{:?} {time:?} of {turn:?}, lost: {lost:?}", stall.cause)))
}

/// Throttled, frozen, slowed down and swapped out in turn, and told apart.
#[test]
fn what_the_group_does_is_the_cause() -> Result<()> {
    let _machine = alone();
    let Some(outer) = Group::unified()? else {
        return skip("cgroup_v2/all", "the controllers are not in the second version");
    };
    let scene = Scene::new(outer)?;
    let act = |target: &Target| {
        let (turn, act) = TURNS[scene.counted.borrow().len()];
        scene.count()?;
        act(&scene)?;
        if turn == "rest" { target.signal(Signal::SIGUSR1) } else { Ok(()) }
    };
    let turns = TURNS.map(|(turn, _)| turn);
    let mut command = around(&turns);
    // Or the code has to be read again, which in an emulated machine takes longer than the rest.
    command.arg("--lock-code");
    let command = scene.inner.command(&command);
    let limit = |_: &Target| scene.outer.limit_cpu(QUOTA_US);
    let (played, finished) = play(command, TURNS.len(), limit, act)?;
    scene.count()?;

    ensure!(played[TOUCHES].stall(&finished).is_none(), "memory that it has is no stall");
    let (stall, words) = stall_of(&played[COMPUTES], &finished)?;
    ensure!(stall.is_caused_by("cpu") && stall.stall.time.stopped_ns == 0, "{words}");
    for (turn, check) in [
        (THROTTLED, throttled as fn(&Scene, &StallLine) -> Result<()>),
        (FROZEN, frozen),
        (SLOWED, slowed_down),
    ] {
        let (stall, words) = stall_of(&played[turn], &finished)?;
        println!("{}", stall.cause.summary);
        check(&scene, stall).context(words)?;
    }
    if scene.swap.borrow().is_some() {
        let (stall, words) = stall_of(&played[SWAPPED], &finished)?;
        println!("{}", stall.cause.summary);
        swapped_out(&scene, stall, &played[SWAPPED]).context(words)?;
    }
    Ok(())
}

fn frozen(scene: &Scene, stall: &StallLine) -> Result<()> {
    let CauseKind::Stopped { by, .. } = &stall.cause.kind else { bail!("not the cause") };
    ensure!(*by == Some(StoppedBy::Freezer), "by somebody else");
    let stopped_ns = *scene.stopped_ns.borrow();
    let is_near = stall.cause.time_ns.abs_diff(stopped_ns) < near_ns();
    ensure!(is_near, "it was {}", milliseconds(stopped_ns));
    let is_near = stall.stall.time.stopped_ns.abs_diff(stopped_ns) < near_ns();
    ensure!(is_near, "as stopped, it was {}", milliseconds(stopped_ns));
    Ok(())
}

/// What it did for its memory; the pressure is of the group, not of the machine, and as the group has counted it.
fn waited_for_memory(
    scene: &Scene,
    stall: &StallLine,
    turn: usize,
    expected: MemoryActivity,
) -> Result<()> {
    let CauseKind::Memory { activity, pressure_ns, pressure_of } = &stall.cause.kind else {
        bail!("not the cause");
    };
    ensure!(*activity == Some(expected), "another activity");
    ensure!(*pressure_of == Some(ReportedPressureOf::Cgroup), "of another");
    let told_ns = pressure_ns.context("no pressure")?;
    let (least_ns, most_ns) = scene.counted(turn, |counted| counted.pressure_ns);
    ensure!(told_ns <= most_ns, "the group counted no more than {}", milliseconds(most_ns));
    let is_enough = told_ns + near_ns() > least_ns.min(stall.cause.time_ns);
    ensure!(is_enough, "the group counted {}", milliseconds(least_ns));
    Ok(())
}

fn slowed_down(scene: &Scene, stall: &StallLine) -> Result<()> {
    waited_for_memory(scene, stall, SLOWED, MemoryActivity::Reclaim)?;
    let function = stall.culprit.as_ref().and_then(|culprit| culprit.function.as_deref());
    ensure!(function == Some("grow"), "{function:?} is blamed");
    Ok(())
}

fn swapped_out(scene: &Scene, stall: &StallLine, turn: &Played) -> Result<()> {
    let swapped_bytes = *scene.swapped_bytes.borrow();
    ensure!(swapped_bytes > 16 * MIB, "only {swapped_bytes} bytes were swapped out");
    if slowdown() > 1 && stall.cause.kind.name() == "cpu" {
        // An emulated CPU may take longer to fault than its disk to read: then the reading comes second.
        let swapped_in = |part: &ReportedComponent| {
            let function = part.culprit.as_ref().and_then(|culprit| culprit.function.as_deref());
            let is_it = matches!(
                part.kind,
                CauseKind::Memory { activity: Some(MemoryActivity::SwapIn), .. }
            );
            is_it && function == Some("touch")
        };
        ensure!(stall.cause.also.iter().any(swapped_in), "not among the causes");
        return Ok(());
    }
    waited_for_memory(scene, stall, SWAPPED, MemoryActivity::SwapIn)?;
    ensure!(stall.cause.time_ns <= turn.duration_ns() + MILLISECOND, "longer than the turn");
    let function = stall.culprit.as_ref().and_then(|culprit| culprit.function.as_deref());
    ensure!(function == Some("touch"), "{function:?} is blamed");
    Ok(())
}

/// By the quota of the group above, which is named.
fn throttled(scene: &Scene, stall: &StallLine) -> Result<()> {
    let CauseKind::CpuQuota { throttled_ns, quota_us, cgroup, .. } = &stall.cause.kind else {
        bail!("not the cause");
    };
    let (counted_ns, _) = scene.counted(THROTTLED, |counted| counted.throttled_ns);
    let told_ns = throttled_ns.context("no throttled time")?;
    ensure!(told_ns <= counted_ns + MILLISECOND, "the group counted {counted_ns}");
    let ready_ns = stall.stall.time.runnable_ns;
    ensure!(told_ns + near_ns() > counted_ns.min(ready_ns), "the group counted {counted_ns}");
    ensure!(*quota_us == QUOTA_US, "another quota");
    ensure!(*cgroup == scene.outer.name(), "of {cgroup:?}");
    Ok(())
}
