//! From a process identifier to an attached session: checks, probes, the interpreter, the threads
//! that were frozen before we came, and the first line of output.

use std::sync::Arc;

use profiler_ebpf::record::{CaptureHead, ThreadSnapshot};
use rustix::system::uname;
use tokio::task::yield_now;

use crate::clock::{monotonic_ns, wall_anchor};
use crate::config::Config;
use crate::detected::Detected;
use crate::error::Failure;
use crate::gap::Gap;
use crate::lookout::Lookout;
use crate::process::cgroup;
use crate::process::frozen::polls;
use crate::process::listing::Unlisted;
use crate::process::live::LiveMemory;
use crate::process::stack::read_stack;
use crate::process::target::{Target, WaitDescriptors};
use crate::report::Start;
use crate::report::facts::{ProcessFacts, ProgramFacts, SessionFacts};
use crate::report::schema::session::{Configuration, ReportedHook, ReportedWaitHooks};
use crate::report::service;
use crate::runtime::table;
use crate::session::Session;
use crate::source::kernel::hooks::{self, HookedWaits, WatchParameters};
use crate::source::kernel::preflight::{self, RequirementState};
use crate::source::kernel::{KernelSource, Loaded, MAX_THREADS, attach, sampling};
use crate::source::{Captured, EventSource};

/// Where it is not known what a process has open: no thread is taken for a frozen loop on that ground.
const NONE_KNOWN: WaitDescriptors = WaitDescriptors { epoll: false, instances: 0, io_uring: false };

/// Threads whose stacks are read beforehand: those of a pool have much the same.
const ENOUGH_THREADS: usize = 4;

/// Threads asked whether a loop is on their stacks before a signal is looked for again: some milliseconds.
const ASKED_AT_ONCE: usize = 128;

/// Times that a process is hooked, if it executes another program meanwhile each time.
const MAX_TRIES: u32 = 2;

/// An attached process.
#[allow(missing_debug_implementations, reason = "its parts have none")]
pub struct Begun {
    pub session: Session<KernelSource, LiveMemory>,
    pub target: Arc<Target>,
    pub facts: SessionFacts,
    /// For the session's first line.
    pub start: Start,
    /// Where some of its threads stand, to be named before the first stall is.
    pub warm_up: Vec<Captured>,
    /// Looks for a runtime that is not there yet.
    pub lookout: Option<Lookout>,
}

/// Attaches, or says in a sentence why not. Gives way now and then, so that whoever waits for a signal as well can let
/// go of it: nothing stays in the kernel.
pub async fn attach(pid: u32, config: &Config) -> anyhow::Result<Begun> {
    for check in preflight::machine() {
        if let RequirementState::Missing(reason) = check.state {
            return Err(Failure::unsupported(reason).into());
        }
    }
    let mut tries = 1;
    loop {
        yield_now().await;
        let hooked = hook(pid, config).await?;
        // Which waits were hooked depends on the program. From here on the probes tell when there is another.
        if hooked.target.runs_same_program() {
            return begin(hooked, config).await;
        }
        if tries == MAX_TRIES {
            let target = Arc::new(Target::open(pid)?);
            let detected = Detected::of(&target, &LiveMemory::new(pid));
            return begin(Hooked { target, detected, ..hooked }, config).await;
        }
        tries += 1;
    }
}

/// A process and its probes.
struct Hooked {
    target: Arc<Target>,
    source: KernelSource,
    /// What it had open to wait on, before that.
    descriptors: Result<WaitDescriptors, Unlisted>,
    detected: Detected,
}

async fn hook(pid: u32, config: &Config) -> anyhow::Result<Hooked> {
    let target = Arc::new(Target::open(pid)?);
    let regions = target.regions().unwrap_or_default();
    let descriptors = target.wait_descriptors().map(|it| table::without_their_own(it, &regions));
    // What is not known may be, and a process without either may make one later.
    let waits = match &descriptors {
        Ok(known) => HookedWaits { poll: !known.epoll, io_uring: known.io_uring || !known.epoll },
        Err(_) => HookedWaits { poll: true, io_uring: true },
    };
    let watch = WatchParameters {
        tgid: pid,
        threshold_ns: config.threshold_ns,
        waits,
        hooks: config.wait_hooks,
        samples: config.sample_hooks,
        stats: config.stats_interval.is_some(),
        workers: config.watch_workers,
    };
    let (detected, loaded) = prepare(&target, watch)?;
    yield_now().await;
    let source = loaded.attach()?;
    if target.has_exited() {
        let message = format!("process {pid} exited while stalltrace attached");
        return Err(Failure::no_process(message).into());
    }
    Ok(Hooked { target, source, descriptors, detected })
}

async fn begin(hooked: Hooked, config: &Config) -> anyhow::Result<Begun> {
    let Hooked { target, mut source, descriptors, detected } = hooked;
    let pid = target.pid();
    let lookout = Lookout::after(&detected, Arc::clone(&target));
    let Detected { runtimes, facts: program, .. } = detected;
    if let Some(interpreter) = runtimes.interpreter() {
        source.set_python_layout(interpreter.layout())?;
    }
    let memory = LiveMemory::new(pid);
    let mut session =
        Session::new(source, memory, Arc::clone(&target), runtimes, config.threshold_ns);
    if config.all_threads {
        session.watch_all_threads();
    }
    let threads = adopt(&mut session, *descriptors.as_ref().unwrap_or(&NONE_KNOWN)).await?;
    if config.watch_workers {
        session.watch_workers();
    }
    if let Some(interval) = config.stats_interval {
        let may_have_ring = descriptors.as_ref().map_or(true, |known| known.io_uring);
        let unseen = accepts_unseen(session.source.probes(), may_have_ring);
        session.keep_statistics(interval, unseen, monotonic_ns());
    }

    let warm_up = threads.iter().take(ENOUGH_THREADS).map(|thread| asleep(thread, pid)).collect();
    let mut start = first_line(&session.source, config);
    let mut facts = facts(&target, program);
    facts.process.labels.clone_from(&config.labels);
    if threads.len() >= MAX_THREADS {
        let why = format!("no more than {MAX_THREADS} are asked whether a loop is on them");
        start.gaps.push(Gap::new("threads that were inside a turn already", why));
    }
    match descriptors {
        Ok(descriptors) if !config.watch_workers => {
            start.gaps.extend(no_loop_yet(descriptors, &threads, pid));
        }
        Ok(_) => {}
        Err(why) => facts.gaps.push(Gap::new("epoll instances of the process", why)),
    }
    Ok(Begun { session, target, facts, start, warm_up, lookout })
}

/// Has the probes verified, and looks for the runtime meanwhile: both take their time.
fn prepare(target: &Target, watch: WatchParameters) -> anyhow::Result<(Detected, Loaded)> {
    std::thread::scope(|scope| {
        let detected = scope.spawn(|| Detected::of(target, &LiveMemory::new(target.pid())));
        let loaded = KernelSource::load(watch)?;
        let failed =
            |_| Detected::failed("looking for it failed; the message stands on standard error");
        Ok((detected.join().unwrap_or_else(failed), loaded))
    })
}

/// Has the threads watched that are inside a turn already; returns all threads, as they stand then.
async fn adopt(
    session: &mut Session<KernelSource, LiveMemory>,
    descriptors: WaitDescriptors,
) -> anyhow::Result<Vec<ThreadSnapshot>> {
    let mut witnesses = session.witnesses();
    let mut candidates = Vec::new();
    for some in session.source.threads()?.chunks(ASKED_AT_ONCE) {
        candidates.extend(some.iter().map(|thread| session.candidate(thread, &mut witnesses)));
        yield_now().await;
    }
    let threads = session.source.threads()?;
    session.adopt_frozen(candidates, &threads, descriptors, monotonic_ns())?;
    Ok(threads)
}

/// What is missing of a process that has nothing to wait on, and whose main thread does not poll: it may be
/// starting, or be one that only starts others.
fn no_loop_yet(descriptors: WaitDescriptors, threads: &[ThreadSnapshot], pid: u32) -> Option<Gap> {
    let has_loop = descriptors.epoll || descriptors.io_uring;
    let polls = threads.iter().any(|thread| thread.is_main == 1 && polls(thread));
    (!has_loop && !polls).then(|| {
        let why = format!(
            "it has no epoll instance and no io_uring, and its main thread does not poll; it is watched from \
             its first wait on. If it has workers, attach to one of them (pgrep -P {pid})"
        );
        Gap::new("event loop", &why)
    })
}

/// Where a thread stands now, for nothing but to unwind and name it once before the first stall.
fn asleep(thread: &ThreadSnapshot, pid: u32) -> Captured {
    let head = CaptureHead {
        registers: thread.registers,
        stack_top: thread.stack_top,
        fsbase: thread.fsbase,
        ..CaptureHead::default()
    };
    let stack = read_stack(&LiveMemory::new(pid), &head);
    Captured::of_outside(head, stack)
}

fn first_line(source: &KernelSource, config: &Config) -> Start {
    let waits: Vec<_> = source
        .probes()
        .iter()
        .filter(|probe| probe.name.contains("wait") || probe.name.contains("poll"))
        .filter_map(|probe| probe.hook)
        .collect();
    let wait_hooks = if waits.iter().all(|hook| *hook == attach::FENTRY) {
        ReportedWaitHooks::Fentry
    } else if waits.contains(&attach::FENTRY) {
        ReportedWaitHooks::Mixed
    } else {
        ReportedWaitHooks::Tracepoint
    };
    let probes = source.probes().iter().map(|probe| ReportedHook {
        name: probe.name.to_owned(),
        hook: probe.hook.unwrap_or("none").to_owned(),
        attached: probe.hook.is_some(),
        reason: probe.reason.clone(),
    });
    Start {
        gaps: Vec::new(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: kernel_release(),
        wait_hooks,
        probes: probes.collect(),
        configuration: Configuration {
            threshold_ns: config.threshold_ns,
            error_threshold_ns: config.error_threshold_ns,
            duration_limit_ns: config.duration.and_then(|time| u64::try_from(time.as_nanos()).ok()),
            stats_interval_ns: config
                .stats_interval
                .and_then(|time| u64::try_from(time.as_nanos()).ok()),
            sample_frequency_hz: sampling::FREQUENCY_HZ,
            line_limit_bytes: config.output.limits.line_bytes.map(|bytes| bytes as u64),
            stacks: config.output.limits.stacks,
        },
    }
}

/// What of the accepts is not counted.
fn accepts_unseen(probes: &[hooks::HookOutcome], has_io_uring: bool) -> Vec<Gap> {
    let is_accept = |probe: &&hooks::HookOutcome| probe.name.starts_with("accept");
    let refused = probes.iter().filter(is_accept).filter(|probe| probe.hook.is_none());
    let why = |probe: &hooks::HookOutcome| {
        Gap::new(
            &format!("accepts by {}", probe.name),
            probe.reason.as_deref().unwrap_or("not hooked"),
        )
    };
    let ring = Gap::new("accepts by io_uring", "only the system calls are counted");
    refused.map(why).chain(has_io_uring.then_some(ring)).collect()
}

fn kernel_release() -> String {
    uname().release().to_string_lossy().into_owned()
}

fn facts(target: &Target, program: ProgramFacts) -> SessionFacts {
    let anchor = wall_anchor();
    let pid = target.pid();
    let host = uname().nodename().to_string_lossy().into_owned();
    let cgroups = target.cgroups();
    let (arguments, container_id) = (target.arguments(), cgroup::container_id(&cgroups));
    let process = ProcessFacts {
        pid,
        pid_in_container: target.tid_in_container(pid),
        name: target.name(),
        exe: target.exe().map(|path| path.to_string_lossy().into_owned()),
        command: Some(arguments.join(" ")),
        start_time_wall_ns: target.started_at_s().map(|seconds| (seconds * 1e9) as u64),
        service: service::of(&cgroups, container_id.is_some(), &arguments),
        container_id,
        cgroup: cgroup::path(&cgroups),
        ..ProcessFacts::default()
    };
    // Unique enough: one process attaches once at one moment.
    let id = format!("{:x}-{pid:x}-{:x}", anchor.wall_ns_since_epoch, std::process::id());
    let (runtime, gaps) = Default::default();
    let mut facts = SessionFacts { id, host, process, runtime, anchor, gaps };
    facts.learn(program);
    facts
}
