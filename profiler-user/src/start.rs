//! From a process identifier to an attached session: checks, probes, the interpreter, the threads
//! that were frozen before we came, and the first line of output.

use std::sync::Arc;
use std::time::Duration;

use profiler_ebpf::python::PythonWalk;
use profiler_ebpf::record::{CaptureHead, ThreadSnapshot};

use crate::analyst::Analyst;
use crate::config::Config;
use crate::error::Failure;
use crate::gap::Gap;
use crate::process::frozen::{Candidate, Evidence, in_turn, polls, seed};
use crate::process::live::{LiveMemory, open_region};
use crate::process::target::{Target, WaitDescriptors};
use crate::report::facts::{ProcessFacts, RuntimeFacts, SessionFacts};
use crate::report::schema::session::{Configuration, Probe, WaitHooks};
use crate::report::{Report, Start};
use crate::runtime::cpython::{NamedFrame, Python};
use crate::session::{PythonFrames, Session, read_stack};
use crate::sink::Sink;
use crate::source::Captured;
use crate::source::kernel::attach::Waits;
use crate::source::kernel::preflight::{self, State};
use crate::source::kernel::{KernelSource, Watch, attach, ticks};
use crate::watch::{monotonic_ns, wall_anchor};

/// How long a process without epoll is given to be seen in a poll of its own.
const POLL_LOOKS: u32 = 10;
const POLL_LOOK_EVERY: Duration = Duration::from_millis(100);

/// Files whose frames on a stack show that the thread runs an event loop.
const LOOP_FILES: [&str; 5] = [
    "/asyncio/base_events.py",
    "/asyncio/runners.py",
    "/gevent/hub.py",
    "/trio/_core/_run.py",
    "/tornado/ioloop.py",
];

/// An attached process.
#[allow(missing_debug_implementations, reason = "its parts have none")]
pub struct Begun {
    pub session: Session<KernelSource, LiveMemory>,
    pub analyst: Analyst,
    pub target: Arc<Target>,
}

/// Attaches, or says in a sentence why not.
pub fn attach(pid: u32, config: &Config, sink: Sink) -> anyhow::Result<Begun> {
    for check in preflight::machine() {
        if let State::Missing(reason) = check.state {
            return Err(Failure::unsupported(reason).into());
        }
    }
    preflight::kernel_numbers_are_ours().map_err(Failure::unsupported)?;
    let target = Arc::new(Target::open(pid)?);
    let descriptors = target.wait_descriptors();
    let memory = LiveMemory::new(pid);
    let (python, python_gap) = interpreter(&target, &memory);

    let mut source = KernelSource::attach(Watch {
        tgid: pid,
        threshold_ns: config.threshold_ns,
        waits: Waits { poll: !descriptors.epoll, io_uring: descriptors.io_uring },
        hooks: config.wait_hooks,
    })?;
    if !target.is_same() {
        let message = format!("process {pid} exited while stalltrace attached");
        return Err(Failure::no_process(message).into());
    }
    require_loop(pid, &mut source, descriptors)?;
    if let Some(python) = &python {
        source.set_python_layout(python.layout())?;
    }
    let threads = source.threads()?;
    seed_frozen(&mut source, &target, &memory, python.clone(), &threads, descriptors)?;

    let facts = facts(&target, python.as_ref(), python_gap);
    let start = first_line(&source, config);
    let probes = Arc::clone(&target);
    let analyst =
        Analyst::new(probes, facts, config.threshold_ns, config.error_threshold_ns, sink);
    let session = Session::new(source, memory, Arc::clone(&target), python, config.threshold_ns);
    let mut begun = Begun { session, analyst, target };
    begun.warm_up(&threads);
    begun.analyst.begin(start, monotonic_ns())?;
    Ok(begun)
}

fn interpreter(target: &Target, memory: &LiveMemory) -> (Option<Python>, Option<Gap>) {
    let pid = target.pid();
    match Python::detect(memory, &target.regions(), &|region| open_region(pid, region)) {
        Ok(python) => (python, None),
        Err(gap) => (None, Some(gap)),
    }
}

/// A process that has nothing to wait on and does not poll has no turns to measure.
fn require_loop(
    pid: u32,
    source: &mut KernelSource,
    descriptors: WaitDescriptors,
) -> anyhow::Result<()> {
    if descriptors.epoll || descriptors.io_uring {
        return Ok(());
    }
    for _ in 0..POLL_LOOKS {
        let threads = source.threads()?;
        if threads.iter().any(|thread| thread.is_main == 1 && polls(thread)) {
            return Ok(());
        }
        std::thread::sleep(POLL_LOOK_EVERY);
    }
    Err(Failure::unsupported(format!(
        "process {pid} runs no event loop: it has no epoll instance, no io_uring, and its main \
         thread was not seen to poll; if it has workers, attach to one of them (pgrep -P {pid})"
    ))
    .into())
}

/// Watches the threads that are inside a turn already.
fn seed_frozen(
    source: &mut KernelSource,
    target: &Target,
    memory: &LiveMemory,
    mut python: Option<Python>,
    threads: &[ThreadSnapshot],
    descriptors: WaitDescriptors,
) -> anyhow::Result<()> {
    let mut candidates = Vec::new();
    for thread in threads {
        let evidence = match &mut python {
            None => Evidence::Unknown,
            Some(python) => evidence(python, target, memory, thread),
        };
        candidates.push(Candidate { thread: *thread, evidence });
    }
    for thread in in_turn(&candidates, descriptors.epoll) {
        let (state, capture) = seed(&thread, monotonic_ns());
        source.seed(state, capture)?;
    }
    Ok(())
}

/// A thread that runs while it is read may show a torn stack; it is only asked whether a loop is on it.
fn evidence(
    python: &mut Python,
    target: &Target,
    memory: &LiveMemory,
    thread: &ThreadSnapshot,
) -> Evidence {
    let frames = target
        .tid_in_container(thread.tid)
        .and_then(|tid| python.thread_state(memory, tid, Some(thread.fsbase)).ok())
        .map(|tstate| {
            let (frames, _) = python.walk(memory, tstate);
            python.decode(memory, &frames)
        })
        .unwrap_or_default();
    let shows_loop = |frame: &NamedFrame| {
        let file = frame.file.as_deref().unwrap_or_default();
        LOOP_FILES.iter().any(|known| file.ends_with(known))
    };
    if frames.iter().any(shows_loop) { Evidence::LoopOnStack } else { Evidence::NoLoopOnStack }
}

impl Begun {
    /// Unwinds and names where the threads are now, so that the first stall finds tables and symbols read.
    fn warm_up(&mut self, threads: &[ThreadSnapshot]) {
        /// Threads of a pool have much the same stack.
        const ENOUGH: usize = 4;
        for thread in threads.iter().take(ENOUGH) {
            let head = CaptureHead {
                registers: thread.registers,
                stack_top: thread.stack_top,
                fsbase: thread.fsbase,
                python_walk: PythonWalk::NotTried as u32,
                ..CaptureHead::default()
            };
            let stack = read_stack(&LiveMemory::new(self.target.pid()), &head);
            let captured = Captured { head, kernel: Vec::new(), python: Vec::new(), stack };
            self.analyst.warm_up(&captured, &PythonFrames::NotPython);
        }
    }
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
            stats_interval_ns: None,
            sample_frequency_hz: ticks::FREQUENCY_HZ,
        },
    }
}

fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map(|names| names.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn facts(target: &Target, python: Option<&Python>, python_gap: Option<Gap>) -> SessionFacts {
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
    let runtime = python.map(|python| RuntimeFacts {
        name: "cpython".to_owned(),
        version: Some(python.version().to_owned()),
    });
    // Unique enough: one process attaches once at one moment.
    let id = format!("{:x}-{pid:x}-{:x}", anchor.wall_ns_since_epoch, std::process::id());
    SessionFacts { id, host, process, runtime, anchor, gaps: python_gap.into_iter().collect() }
}
