//! From a process identifier to an attached session: checks, probes, the interpreter, the threads
//! that were frozen before we came, and the first line of output.

use std::sync::Arc;
use std::time::Duration;

use profiler_ebpf::record::{CaptureHead, ThreadSnapshot};

use crate::config::Config;
use crate::error::Failure;
use crate::gap::Gap;
use crate::job::Job;
use crate::process::frozen::polls;
use crate::process::live::{LiveMemory, open_region};
use crate::process::stack::read_stack;
use crate::process::target::Target;
use crate::report::Start;
use crate::report::application::interpreter;
use crate::report::facts::{ProcessFacts, RuntimeFacts, SessionFacts};
use crate::report::schema::session::{Configuration, Probe, WaitHooks};
use crate::runtime::cpython::Python;
use crate::runtime::v8::V8;
use crate::session::Session;
use crate::source::kernel::attach::Waits;
use crate::source::kernel::preflight::{self, State};
use crate::source::kernel::{KernelSource, Watch, attach, ticks};
use crate::source::{Captured, EventSource};
use crate::watch::{monotonic_ns, wall_anchor};

/// How long a process without epoll is given to be seen in a poll of its own, or to make an epoll
/// instance: it may just be starting.
const POLL_LOOKS: u32 = 10;
const POLL_LOOK_EVERY: Duration = Duration::from_millis(100);

/// Threads whose stacks are read beforehand: those of a pool have much the same.
const ENOUGH_THREADS: usize = 4;

/// An attached process.
#[allow(missing_debug_implementations, reason = "its parts have none")]
pub struct Begun {
    pub session: Session<KernelSource, LiveMemory>,
    pub target: Arc<Target>,
    pub facts: SessionFacts,
    /// The first job for the analyst.
    pub first: Job,
}

/// Attaches, or says in a sentence why not.
pub fn attach(pid: u32, config: &Config) -> anyhow::Result<Begun> {
    for check in preflight::machine() {
        if let State::Missing(reason) = check.state {
            return Err(Failure::unsupported(reason).into());
        }
    }
    preflight::kernel_numbers_are_ours().map_err(Failure::unsupported)?;
    let target = Arc::new(Target::open(pid)?);
    let descriptors = target.wait_descriptors();
    let memory = LiveMemory::new(pid);
    let (python, python_gap) = detect_python(&target, &memory);
    let v8 = if python.is_none() { detect_v8(&target, &memory) } else { Ok(None) };

    let mut source = KernelSource::attach(Watch {
        tgid: pid,
        threshold_ns: config.threshold_ns,
        waits: Waits { poll: !descriptors.epoll, io_uring: descriptors.io_uring },
        hooks: config.wait_hooks,
        stats: config.stats_interval.is_some(),
    })?;
    if !target.is_same() {
        let message = format!("process {pid} exited while stalltrace attached");
        return Err(Failure::no_process(message).into());
    }
    if !config.watch_workers {
        require_loop(&target, &mut source)?;
    }
    if let Some(python) = &python {
        source.set_python_layout(python.layout())?;
    }
    let threads = source.threads()?;
    let (v8, v8_gap) = v8.map_or_else(|gap| (None, Some(gap)), |v8| (v8, None));
    let runtime = runtime(python.as_ref(), v8.as_ref());
    let mut session =
        Session::new(source, memory, Arc::clone(&target), python, config.threshold_ns).with_v8(v8);
    if config.all_threads {
        session.watch_all_threads();
    }
    session.adopt_frozen(&threads, descriptors, monotonic_ns())?;
    if config.watch_workers {
        session.watch_workers();
    }
    if let Some(interval) = config.stats_interval {
        let unseen = accepts_unseen(session.source.probes(), descriptors.io_uring);
        session.keep_statistics(interval, unseen, monotonic_ns());
    }

    let warm_up = threads.iter().take(ENOUGH_THREADS).map(|thread| standing(thread, pid)).collect();
    let start = Box::new(first_line(&session.source, config));
    let facts = facts(&target, runtime, python_gap.or(v8_gap));
    Ok(Begun { session, target, facts, first: Job::Begin { start, warm_up } })
}

fn detect_python(target: &Target, memory: &LiveMemory) -> (Option<Python>, Option<Gap>) {
    let pid = target.pid();
    match Python::detect(memory, &target.regions(), &|region| open_region(pid, region)) {
        Ok(python) => (python, None),
        Err(gap) => (None, Some(gap)),
    }
}

fn detect_v8(target: &Target, memory: &LiveMemory) -> Result<Option<V8>, Gap> {
    let (pid, exe) = (target.pid(), target.exe());
    let open = |region: &_| open_region(pid, region);
    V8::detect(memory, &target.regions(), exe.as_deref(), &open)
}

fn runtime(python: Option<&Python>, v8: Option<&V8>) -> Option<RuntimeFacts> {
    let facts = |name: &str, version: &str| RuntimeFacts {
        name: name.to_owned(),
        version: Some(version.to_owned()),
    };
    let python = python.map(|python| facts("cpython", python.version()));
    python.or_else(|| v8.map(|v8| facts(v8.name(), v8.version())))
}

/// A process that has nothing to wait on and does not poll has no turns to measure.
fn require_loop(target: &Target, source: &mut KernelSource) -> anyhow::Result<()> {
    for _ in 0..POLL_LOOKS {
        let descriptors = target.wait_descriptors();
        if descriptors.epoll || descriptors.io_uring {
            return Ok(());
        }
        let threads = source.threads()?;
        if threads.iter().any(|thread| thread.is_main == 1 && polls(thread)) {
            return Ok(());
        }
        std::thread::sleep(POLL_LOOK_EVERY);
    }
    let pid = target.pid();
    Err(Failure::unsupported(format!(
        "process {pid} runs no event loop: it has no epoll instance, no io_uring, and its main \
         thread was not seen to poll; if it has workers, attach to one of them (pgrep -P {pid})"
    ))
    .into())
}

/// Where a thread stands now, for nothing but to unwind and name it once before the first stall.
fn standing(thread: &ThreadSnapshot, pid: u32) -> Captured {
    let head = CaptureHead {
        registers: thread.registers,
        stack_top: thread.stack_top,
        fsbase: thread.fsbase,
        ..CaptureHead::default()
    };
    let stack = read_stack(&LiveMemory::new(pid), &head);
    Captured { head, kernel: Vec::new(), python: Vec::new(), stack }
}

fn first_line(source: &KernelSource, config: &Config) -> Start {
    let waits: Vec<_> = source
        .probes()
        .iter()
        .filter(|probe| probe.name.contains("wait") || probe.name.contains("poll"))
        .filter_map(|probe| probe.hook)
        .collect();
    let wait_hooks = if waits.iter().all(|hook| *hook == attach::FENTRY) {
        WaitHooks::Fentry
    } else if waits.contains(&attach::FENTRY) {
        WaitHooks::Mixed
    } else {
        WaitHooks::Tracepoint
    };
    let probes = source.probes().iter().map(|probe| Probe {
        name: probe.name.to_owned(),
        hook: probe.hook.unwrap_or("none").to_owned(),
        attached: probe.hook.is_some(),
        reason: probe.reason.clone(),
    });
    Start {
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
            sample_frequency_hz: ticks::FREQUENCY_HZ,
        },
    }
}

/// What of the accepts is not counted.
fn accepts_unseen(probes: &[attach::Probe], has_io_uring: bool) -> Vec<Gap> {
    let is_accept = |probe: &&attach::Probe| probe.name.starts_with("accept");
    let refused = probes.iter().filter(is_accept).filter(|probe| probe.hook.is_none());
    let why = |probe: &attach::Probe| {
        Gap::new(
            &format!("accepts by {}", probe.name),
            probe.reason.as_deref().unwrap_or("not hooked"),
        )
    };
    let ring = Gap::new("accepts by io_uring", "only the system calls are counted");
    refused.map(why).chain(has_io_uring.then_some(ring)).collect()
}

fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map(|names| names.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn facts(target: &Target, runtime: Option<RuntimeFacts>, runtime_gap: Option<Gap>) -> SessionFacts {
    let anchor = wall_anchor();
    let pid = target.pid();
    let host = nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let cgroups = target.cgroups();
    let process = ProcessFacts {
        pid,
        pid_in_container: target.tid_in_container(pid),
        name: target.name(),
        exe: target.exe().map(|path| path.to_string_lossy().into_owned()),
        command: Some(target.command()),
        start_time_wall_ns: target.started_at_s().map(|seconds| (seconds * 1e9) as u64),
        container_id: crate::process::cgroup::container_id(&cgroups),
        cgroup: crate::process::cgroup::path(&cgroups),
        labels: Default::default(),
    };
    let foreign = process.exe.as_deref().and_then(interpreter).filter(|_| runtime.is_none());
    let foreign_gap = foreign.map(|name| {
        let why = "only those of CPython and V8 are read";
        Gap::new(&format!("frames that {name} interprets"), why)
    });
    // Unique enough: one process attaches once at one moment.
    let id = format!("{:x}-{pid:x}-{:x}", anchor.wall_ns_since_epoch, std::process::id());
    SessionFacts {
        id,
        host,
        process,
        runtime,
        anchor,
        gaps: runtime_gap.or(foreign_gap).into_iter().collect(),
    }
}
