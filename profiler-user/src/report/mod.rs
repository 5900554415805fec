//! Stalls and sessions to reports: what one line of output says, with everything that it needs to stand alone.
//!
//! Pure: facts about host, process and thread, and both clocks' anchor, come in as data. From the
//! account of a turn ([`account`]) and its stacks come the cause ([`cause`]) and the culprit
//! ([`culprit`]); [`schema`] is what a line looks like.

mod account;
mod application;
mod cause;
mod culprit;
pub mod facts;
pub mod group;
mod message;
#[cfg(test)]
pub mod sample;
pub mod schema;
pub mod syscalls;

use std::collections::BTreeMap;

use profiler_ebpf::turn::START_UNKNOWN;

use self::application::{Origin, Owner};
use self::facts::{Context, ProcessFacts, RuntimeFacts, SessionFacts, rfc3339};
use self::group::Tally;
pub use self::schema::Report;
use self::schema::session::{Configuration, EndReason, Probe, SessionEnd, SessionStart, WaitHooks};
use self::schema::stall::{
    Frame, Language, LoopThread, Role, Stack, Stall, StallLine, State, Switches, Thread,
};
use self::schema::{Common, Process, Runtime, SchemaVersion, Severity};
use crate::frame;
use crate::gap::Gap;
use crate::turn::{End, Moment, Sampled, Stall as SeenStall, ThreadState};

/// What the first line of a session says.
#[derive(Debug, Clone)]
pub struct Start {
    /// stalltrace's own.
    pub version: String,
    /// The kernel's release.
    pub kernel: String,
    pub wait_hooks: WaitHooks,
    pub probes: Vec<Probe>,
    pub configuration: Configuration,
}

/// What the last line of a session says.
#[derive(Debug)]
pub struct Finish<'a> {
    pub reason: EndReason,
    pub watched_ns: u64,
    pub turns: u64,
    pub tally: &'a Tally,
    /// Everything that this session has lost, by reason.
    pub losses: &'a [(&'static str, u64)],
}

impl Report {
    /// One moment of a stall.
    pub fn stall(moment: Moment, seen: &SeenStall, context: &Context<'_>) -> Self {
        let line = Box::new(stall_line(moment, seen, context));
        match moment {
            Moment::Open => Self::StallOpen(line),
            Moment::Update => Self::StallUpdate(line),
            Moment::End => Self::StallEnd(line),
        }
    }

    /// stalltrace has attached.
    pub fn session_start(session: &SessionFacts, now_ns: u64, start: Start) -> Self {
        let Start { version, kernel, wait_hooks, probes, configuration } = start;
        let threshold_ns = configuration.threshold_ns;
        let message = message::session_start(&session.process, &version, threshold_ns);
        Self::SessionStart(Box::new(SessionStart {
            common: common(session, now_ns, Severity::Info, message),
            version,
            kernel,
            runtime: session.runtime.as_ref().map(Runtime::from),
            wait_hooks,
            probes,
            configuration,
            gaps: distinct(&session.gaps),
        }))
    }

    /// stalltrace has detached.
    pub fn session_end(session: &SessionFacts, now_ns: u64, finish: &Finish<'_>) -> Self {
        let &Finish { reason, watched_ns, turns, tally, losses } = finish;
        let totals = tally.totals(turns);
        let message = message::session_end(&session.process, reason, watched_ns, &totals);
        let mut gaps = session.gaps.clone();
        let top_culprits = tally.top_culprits(&mut gaps);
        Self::SessionEnd(Box::new(SessionEnd {
            common: common(session, now_ns, Severity::Info, message),
            reason,
            watched_ns,
            totals,
            top_culprits,
            gaps: distinct(&gaps),
            lost: lost(losses),
        }))
    }
}

fn stall_line(moment: Moment, seen: &SeenStall, context: &Context<'_>) -> StallLine {
    let session = context.session;
    let mut gaps = session.gaps.clone();
    gaps.extend_from_slice(context.gaps);
    gaps.extend_from_slice(&seen.gaps);
    gaps.extend(seen.stacks.iter().flat_map(|sampled| sampled.stack.gaps.iter().cloned()));

    let stall = stall_facts(moment, seen, context, &mut gaps);
    let verdict = cause::judge(seen, context.descriptors);
    gaps.extend(verdict.gaps);
    let owner = Owner::new(&session.process);
    let culprit = culprit::find(&verdict.evidence, &owner, seen.tid);
    if culprit.is_none() {
        gaps.push(missing_culprit(&verdict.evidence));
    }
    let severity = if stall.duration_ns >= context.error_threshold_ns {
        Severity::Error
    } else {
        Severity::Warn
    };
    let culprit_seen = culprit.as_ref();
    let message = message::stall(&session.process, moment, &stall, &verdict.cause, culprit_seen);
    StallLine {
        common: common(session, context.now_ns, severity, message),
        thread: LoopThread {
            tid: context.thread.tid,
            tid_in_container: context.thread.tid_in_container,
            name: context.thread.name.clone(),
            loop_kind: context.thread.loop_kind.clone(),
        },
        runtime: session.runtime.as_ref().map(Runtime::from),
        cause: verdict.cause,
        culprit,
        task: None,
        advice: None,
        stacks: seen.stacks.iter().map(|sampled| stack(sampled, context, &owner)).collect(),
        gaps: distinct(&gaps),
        lost: lost(context.losses),
        stall,
    }
}

fn missing_culprit(evidence: &[&Sampled]) -> Gap {
    let reason = if evidence.is_empty() {
        "no stack shows what most of the time went into"
    } else {
        "no frame of the stacks that show it has a name"
    };
    Gap::new("culprit", reason)
}

fn stall_facts(
    moment: Moment,
    seen: &SeenStall,
    context: &Context<'_>,
    gaps: &mut Vec<Gap>,
) -> Stall {
    let turn = &seen.turn;
    let start_known = turn.flags & START_UNKNOWN == 0;
    if !start_known {
        gaps.push(Gap::new("start", "the turn had begun before stalltrace could see it"));
    }
    match &seen.end {
        End::Unseen(reason) => gaps.push(Gap::new("end", reason)),
        End::NotYet if moment == Moment::End => {
            gaps.push(Gap::new("end", "the stall was still going on when it was closed"));
        }
        End::Seen if seen.ready_events.is_none() => {
            gaps.push(Gap::new("ready_events", "the return of the next wait was not seen"));
        }
        End::NotYet | End::Seen => {}
    }
    let session = context.session;
    Stall {
        id: format!("{}-{}-{}", session.id, seen.tid, turn.start_ns),
        started_at: session.anchor.timestamp(turn.start_ns),
        start_monotonic_ns: turn.start_ns,
        duration_ns: turn.booked_ns(),
        threshold_ns: context.threshold_ns,
        start_known,
        end_known: seen.end == End::Seen,
        time: account::time(seen, gaps),
        switches: Switches { voluntary: turn.voluntary, preempted: turn.preempted },
        ready_events: seen.ready_events,
    }
}

fn stack(sampled: &Sampled, context: &Context<'_>, owner: &Owner<'_>) -> Stack {
    let named = |frames: &[frame::Frame]| -> Vec<Frame> {
        frames.iter().map(|seen| frame(seen, owner)).collect()
    };
    Stack {
        thread: Thread { tid: context.thread.tid, name: context.thread.name.clone() },
        role: Role::Loop,
        state: sampled.state.into(),
        samples: sampled.samples,
        time_ns: sampled.time_ns,
        kernel: named(&sampled.stack.kernel),
        frames: named(&sampled.stack.frames),
        truncated: sampled.stack.truncated.clone(),
    }
}

fn frame(seen: &frame::Frame, owner: &Owner<'_>) -> Frame {
    Frame {
        function: seen.function.clone(),
        file: seen.file.clone(),
        line: seen.line,
        module: seen.module.clone(),
        language: seen.language.into(),
        inlined: seen.inlined,
        in_app: owner.of(seen) == Origin::Application,
        address: seen.address.map(hexadecimal),
        module_offset: seen.module_offset.map(hexadecimal),
    }
}

impl From<ThreadState> for State {
    fn from(state: ThreadState) -> Self {
        match state {
            ThreadState::RunningUser | ThreadState::RunningKernel => Self::Running,
            ThreadState::Blocked => Self::Blocked,
            ThreadState::Runnable => Self::Runnable,
            ThreadState::Stopped => Self::Stopped,
        }
    }
}

impl From<frame::Language> for Language {
    fn from(language: frame::Language) -> Self {
        match language {
            frame::Language::Python => Self::Python,
            frame::Language::Native => Self::Native,
            frame::Language::Kernel => Self::Kernel,
        }
    }
}

impl From<&RuntimeFacts> for Runtime {
    fn from(facts: &RuntimeFacts) -> Self {
        Self { name: facts.name.clone(), version: facts.version.clone() }
    }
}

fn common(session: &SessionFacts, now_ns: u64, severity: Severity, message: String) -> Common {
    Common {
        schema: SchemaVersion::V1,
        timestamp: session.anchor.timestamp(now_ns),
        severity,
        message,
        session: session.id.clone(),
        host: session.host.clone(),
        process: process(&session.process),
    }
}

fn process(facts: &ProcessFacts) -> Process {
    Process {
        pid: facts.pid,
        pid_in_container: facts.pid_in_container,
        name: facts.name.clone(),
        exe: facts.exe.clone(),
        command: facts.command.clone(),
        start_time: facts.start_time_wall_ns.map(rfc3339),
        container_id: facts.container_id.clone(),
        cgroup: facts.cgroup.clone(),
        labels: facts.labels.clone(),
    }
}

/// Each gap once, in the order in which they were met.
fn distinct(gaps: &[Gap]) -> Vec<String> {
    let mut told: Vec<String> = Vec::new();
    for gap in gaps {
        if !told.contains(&gap.0) {
            told.push(gap.0.clone());
        }
    }
    told
}

fn lost(losses: &[(&'static str, u64)]) -> BTreeMap<String, u64> {
    losses.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect()
}

/// As reports write addresses and arguments.
fn hexadecimal(value: u64) -> String {
    format!("{value:#x}")
}
