//! Stalls and sessions to reports: what one line of output says, with everything that it needs to stand alone.
//!
//! Pure: facts about host, process and thread, and both clocks' anchor, come in as data. From the
//! account of a turn ([`account`]) and its stacks come the cause ([`cause`]) and the culprit
//! ([`culprit`]); [`schema`] is what a line looks like.

mod account;
pub mod advice;
pub mod application;
mod cause;
mod chosen;
mod culprit;
pub mod fit;
pub mod facts;
mod foreign;
pub mod group;
mod libc_names;
pub mod message;
mod portion;
pub mod printable;
pub mod purpose;
pub mod qualified;
#[cfg(test)]
pub mod sample;
pub mod schema;
pub mod service;
mod signature;
pub mod stats;
mod task;
pub mod units;

use std::collections::BTreeMap;

use profiler_ebpf::turn::START_UNKNOWN;

use self::application::{CodeOwner, Origin};
use self::cause::verdict::Conclusion;
use self::chosen::Chosen;
use self::facts::{Context, ProcessFacts, RuntimeFacts, SessionFacts, ThreadFacts};
use self::group::Tally;
use self::portion::Portion;
use self::printable::{cut, printable};
pub use self::schema::Report;
use self::schema::line::{Common, ReportedProcess, ReportedRuntime, SchemaVersion, Severity};
use self::schema::session::{
    Configuration, EndReason, ReportedHook, ReportedWaitHooks, SessionEnd, SessionStart,
};
use self::schema::stall::{
    CauseKind, Confidence, Culprit, LoopThread, ReportedAway, ReportedFrame, ReportedLanguage,
    ReportedStack, ReportedStall, ReportedState, Role, StallLine, Switches, Thread,
    WaitingConnections,
};
use self::units::hexadecimal;
use crate::clock::rfc3339;
use crate::frame;
use crate::gap::Gap;
use crate::process::queues::AcceptQueue;
use crate::turn::{self, End, Moment, Sampled, Stall as SeenStall, ThreadState};

/// Bytes of the target's command line that each line repeats: enough to know it by.
const MAX_COMMAND_BYTES: usize = 256;

/// What the first line of a session says.
#[derive(Debug, Clone)]
pub struct Start {
    /// stalltrace's own.
    pub version: String,
    /// The kernel's release.
    pub kernel: String,
    pub wait_hooks: ReportedWaitHooks,
    pub probes: Vec<ReportedHook>,
    pub configuration: Configuration,
    /// What was missing as we attached.
    pub gaps: Vec<Gap>,
}

/// What the last line of a session says.
#[derive(Debug)]
pub struct Finish<'a> {
    pub reason: EndReason,
    pub watched_ns: u64,
    pub turns: u64,
    pub tally: &'a Tally,
    /// How frames were had.
    pub frames: &'a frame::Counts,
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
        let Start { version, kernel, wait_hooks, probes, configuration, gaps } = start;
        let gaps: Vec<Gap> = session.gaps.iter().cloned().chain(gaps).collect();
        let threshold_ns = configuration.threshold_ns;
        let message = message::session_start(&session.process, &version, threshold_ns);
        Self::SessionStart(Box::new(SessionStart {
            common: common(session, now_ns, Severity::Info, message),
            version,
            kernel,
            runtime: session.runtime.as_ref().map(ReportedRuntime::from),
            wait_hooks,
            probes,
            configuration,
            gaps: distinct(&gaps),
        }))
    }

    /// stalltrace has detached.
    pub fn session_end(session: &SessionFacts, now_ns: u64, finish: &Finish<'_>) -> Self {
        let &Finish { reason, watched_ns, turns, tally, frames, losses } = finish;
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
            frames: lost(&frames.by_name()),
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
    gaps.extend(left_out(&seen.stacks));

    let owner = CodeOwner::new(&session.process);
    let mut stall = stall_facts(moment, seen, context, &owner, &mut gaps);
    let mut verdict = cause::judge(seen, context.descriptors);
    cause::chain::attach(&mut verdict, seen, &owner);
    gaps.extend_from_slice(&verdict.gaps);
    let chosen = chosen::choose(&mut verdict, &owner, seen.tid, context.threshold_ns);
    if culprit::is_unsure(&verdict.evidence, &owner) {
        verdict.cause.confidence = verdict.cause.confidence.min(Confidence::Likely);
    }
    let unread = unread(&verdict.evidence, &session.process).filter(|_| chosen.is_none());
    gaps.extend(match &unread {
        Some(why) if !verdict.cause.kind.is_from_outside() => Some(Gap::new("culprit", why)),
        _ => missing_culprit(&verdict, chosen.as_ref(), &owner),
    });
    let culprit = chosen.as_ref().map(|chosen| chosen.culprit.clone());
    stall.signature = signature(&verdict, culprit.as_ref(), &owner, &session.process);
    let task = task::find(seen, &verdict, culprit.as_ref(), &owner, &mut gaps);
    let has_tasks = session.runtime.as_ref().is_some_and(|runtime| runtime.name == "cpython");
    if has_tasks && seen.stacks.is_empty() {
        gaps.push(Gap::new("task", "no stack shows what ran"));
    }
    let severity = if stall.duration_ns >= context.error_threshold_ns {
        Severity::Error
    } else {
        Severity::Warn
    };
    let advice = advice::find(&verdict, &owner, context);
    let process = &session.process;
    let subject = message::subject(process, context.thread);
    let message = message::stall(
        process,
        &subject,
        moment,
        &stall,
        &verdict.cause,
        chosen.as_ref(),
        unread.as_deref(),
    );
    StallLine {
        common: common(session, context.now_ns, severity, message),
        thread: LoopThread::from(context.thread),
        runtime: session.runtime.as_ref().map(ReportedRuntime::from),
        cause: verdict.cause,
        culprit,
        task,
        advice,
        stacks: stacks(seen, context, &owner),
        gaps: distinct(&gaps),
        lost: lost(context.losses),
        stall,
    }
}

fn signature(
    verdict: &Conclusion<'_>,
    culprit: Option<&Culprit>,
    owner: &CodeOwner<'_>,
    process: &ProcessFacts,
) -> String {
    let also = verdict.also.iter().flat_map(|(evidence, _)| evidence);
    let evidence: Vec<&Sampled> = verdict.evidence.iter().chain(also).copied().collect();
    let callers = culprit.map(|culprit| culprit::callers(culprit, &evidence, owner));
    let callers = callers.unwrap_or_default();
    signature::of(&verdict.cause.kind, culprit, &callers, process.exe.as_deref())
}

/// Why the code that an interpreter ran has no line, where nobody can be blamed for that reason.
fn unread(evidence: &[&Sampled], process: &ProcessFacts) -> Option<String> {
    let of_process = process.unread.as_ref().map(|why| format!("no {why}"));
    let of_stacks =
        || culprit::hides_python(evidence).then(|| "its Python code could not be read".to_owned());
    of_process.or_else(of_stacks)
}

/// Of deep stacks the middle is left out: said once, as each sample of a recursion is of another depth.
fn left_out(stacks: &[Sampled]) -> Option<Gap> {
    let most =
        stacks.iter().map(|sampled| sampled.stack.left_out).max().filter(|most| *most > 0)?;
    let why = format!(
        "up to {most} are left out of a deep stack, between its innermost and its outermost ones"
    );
    Some(Gap::new("Python frames in the middle", why))
}

/// Why there is no culprit; where there is one of another part than the cause, why that has none.
fn missing_culprit(
    verdict: &Conclusion<'_>,
    chosen: Option<&Chosen>,
    owner: &CodeOwner<'_>,
) -> Option<Gap> {
    let what = match chosen {
        Some(chosen) if chosen.is_of_cause => return None,
        // The line of another part stands for that alone, and the cause is nobody's here.
        Some(_) if verdict.cause.kind.is_from_outside() => return None,
        Some(_) => "culprit of the longest part",
        None => "culprit",
    };
    let why = match verdict.cause.kind {
        CauseKind::RunQueue { .. } | CauseKind::CpuQuota { .. } => {
            "the thread was ready and had no CPU; the stack only says where it was".to_owned()
        }
        CauseKind::Stopped { .. } => {
            "the thread was stopped from outside; the stack only says where it was".to_owned()
        }
        _ => no_line(&verdict.evidence, owner),
    };
    Some(Gap::new(what, why))
}

/// Why none of these stacks has a line to look at.
fn no_line(evidence: &[&Sampled], owner: &CodeOwner<'_>) -> String {
    if let Some(frame::Frame { module: Some(module), module_offset: Some(offset), .. }) =
        culprit::nameless(evidence, owner)
    {
        return format!("no symbol covers {module}+{offset:#x}, the program's own code");
    }
    let cut = evidence.iter().find_map(|sampled| sampled.stack.truncated.as_deref());
    match cut {
        _ if evidence.is_empty() => "no stack shows what most of the time went into".to_owned(),
        Some(why) => format!("the stacks that show it are cut: {why}"),
        None => "no frame of the stacks that show it has a name".to_owned(),
    }
}

fn stall_facts(
    moment: Moment,
    seen: &SeenStall,
    context: &Context<'_>,
    owner: &CodeOwner<'_>,
    gaps: &mut Vec<Gap>,
) -> ReportedStall {
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
            let why = if context.thread.is_worker {
                "the thread is a worker, and was handed its next work by other means"
            } else {
                "the return of the next wait was not seen"
            };
            gaps.push(Gap::new("ready_events", why));
        }
        End::NotYet | End::Seen => {}
    }
    if seen.environment.stolen.is_none() {
        gaps.push(Gap::new("steal_ns", "/proc/stat was not read before the stall"));
    }
    let session = context.session;
    ReportedStall {
        id: format!("{}-{}-{}", session.id, seen.tid, turn.start_ns),
        signature: String::new(),
        started_at: session.anchor.timestamp(turn.start_ns),
        start_monotonic_ns: turn.start_ns,
        duration_ns: turn.booked_ns(),
        threshold_ns: context.threshold_ns,
        start_known,
        end_known: seen.end == End::Seen,
        time: account::time(seen, gaps),
        switches: Switches { voluntary: turn.voluntary, preempted: turn.preempted },
        ready_events: seen.ready_events,
        steal_ns: seen.environment.stolen.map(|stolen| stolen.at_most_ns.min(turn.booked_ns())),
        away: seen.away.iter().map(|away| self::away(away, owner)).collect(),
        waiting_connections: seen.queues.iter().map(WaitingConnections::from).collect(),
    }
}

fn away(seen: &turn::Away, owner: &CodeOwner<'_>) -> ReportedAway {
    let stacks: Vec<&Sampled> = seen.stacks.iter().collect();
    let portion = Portion::of_away(seen.tid, seen.time_ns, seen.state);
    ReportedAway {
        thread: Thread { tid: seen.tid, name: seen.name.clone() },
        state: seen.state.into(),
        time_ns: seen.time_ns,
        culprit: culprit::find(&stacks, owner, portion),
    }
}

/// The loop's own stacks, then those of whoever held what it waited for or ended the wait, and all
/// the others.
fn stacks(seen: &SeenStall, context: &Context<'_>, owner: &CodeOwner<'_>) -> Vec<ReportedStack> {
    let own = Thread { tid: context.thread.tid, name: context.thread.name.clone() };
    let own = seen.stacks.iter().map(|sampled| stack(sampled, own.clone(), Role::Loop, owner));
    let holders = seen.holders.iter().map(|holder| {
        let thread = Thread { tid: holder.tid, name: holder.name.clone() };
        stack(&holder.seen, thread, Role::Holder, owner)
    });
    let wakers = seen.wakers.iter().filter_map(|waker| {
        let thread = Thread { tid: waker.tid, name: Some(waker.name.clone()) };
        Some(stack(waker.seen.as_ref()?, thread, Role::Waker, owner))
    });
    let others = seen.others.iter().map(|other| {
        let thread = Thread { tid: other.tid, name: other.name.clone() };
        stack(&other.seen, thread, Role::Other, owner)
    });
    own.chain(holders).chain(wakers).chain(others).collect()
}

fn stack(sampled: &Sampled, thread: Thread, role: Role, owner: &CodeOwner<'_>) -> ReportedStack {
    let named = |frames: &[frame::Frame]| -> Vec<ReportedFrame> {
        frames.iter().map(|seen| frame(seen, owner)).collect()
    };
    ReportedStack {
        thread,
        role,
        state: sampled.state.into(),
        samples: sampled.samples,
        time_ns: sampled.time_ns,
        kernel: named(&sampled.stack.kernel),
        frames: named(&sampled.stack.frames),
        truncated: sampled.stack.truncated.clone(),
        left_out: sampled.stack.left_out,
    }
}

fn frame(seen: &frame::Frame, owner: &CodeOwner<'_>) -> ReportedFrame {
    ReportedFrame {
        function: seen.function.as_deref().map(str::to_owned),
        file: seen.file.as_deref().map(str::to_owned),
        line: seen.line,
        module: seen.module.as_deref().map(str::to_owned),
        language: seen.language.into(),
        inlined: seen.inlined,
        in_app: owner.of(seen) == Origin::Application,
        address: seen.address.map(hexadecimal),
        module_offset: seen.module_offset.map(hexadecimal),
        left_out: 0,
    }
}

impl From<&ThreadFacts> for LoopThread {
    fn from(thread: &ThreadFacts) -> Self {
        Self {
            tid: thread.tid,
            tid_in_container: thread.tid_in_container,
            name: thread.name.clone(),
            python_name: thread.python_name.clone(),
            is_main: thread.is_main,
            loop_kind: thread.loop_kind.clone(),
        }
    }
}

impl From<ThreadState> for ReportedState {
    fn from(state: ThreadState) -> Self {
        match state {
            ThreadState::RunningUser | ThreadState::RunningKernel => Self::Running,
            ThreadState::Blocked => Self::Blocked,
            ThreadState::Runnable => Self::Runnable,
            ThreadState::Stopped => Self::Stopped,
        }
    }
}

impl From<&AcceptQueue> for WaitingConnections {
    fn from(queue: &AcceptQueue) -> Self {
        Self { address: queue.address.clone(), waiting: queue.waiting }
    }
}

impl From<frame::Language> for ReportedLanguage {
    fn from(language: frame::Language) -> Self {
        match language {
            frame::Language::Python => Self::Python,
            frame::Language::JavaScript => Self::JavaScript,
            frame::Language::Native => Self::Native,
            frame::Language::Kernel => Self::Kernel,
        }
    }
}

impl From<&RuntimeFacts> for ReportedRuntime {
    fn from(facts: &RuntimeFacts) -> Self {
        Self { name: facts.name.clone(), version: facts.version.clone() }
    }
}

fn common(session: &SessionFacts, now_ns: u64, severity: Severity, message: String) -> Common {
    let mut omitted = BTreeMap::new();
    let mut process = process(&session.process);
    if let Some(command) = &mut process.command {
        let left_out = cut(command, MAX_COMMAND_BYTES);
        omitted.extend((left_out > 0).then(|| ("command_bytes".to_owned(), left_out as u64)));
    }
    Common {
        schema: SchemaVersion::V1,
        timestamp: session.anchor.timestamp(now_ns),
        severity,
        message: printable(&message),
        session: session.id.clone(),
        host: session.host.clone(),
        process,
        omitted,
    }
}

fn process(facts: &ProcessFacts) -> ReportedProcess {
    ReportedProcess {
        pid: facts.pid,
        pid_in_container: facts.pid_in_container,
        name: facts.name.clone(),
        exe: facts.exe.clone(),
        command: facts.command.clone(),
        start_time: facts.start_time_wall_ns.map(rfc3339),
        container_id: facts.container_id.clone(),
        cgroup: facts.cgroup.clone(),
        service: facts.service.clone(),
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use profiler_ebpf::turn::START_UNKNOWN;
    use serde_json::{Value, json};

    use super::sample;
    use crate::gap::Gap;
    use crate::turn::{End, Moment, Stall};

    fn json_of(moment: Moment, stall: &Stall) -> Value {
        serde_json::to_value(sample::report(moment, stall)).unwrap()
    }

    /// A whole line of a stall, field by field.
    #[test]
    fn whole_stall() {
        let expected = json!({
            "schema": "stalltrace/1",
            "event": "stall_end",
            "timestamp": "2026-11-21T05:20:06.012123Z",
            "severity": "ERROR",
            "message": "uvicorn[4242]: event loop stalled 5012 ms, blocked in recvfrom on \
                        tcp 127.0.0.1:8081, at charge_payment (app.py:31); 17 events had to wait",
            "session": "s1",
            "host": "web-3",
            "process": process(),
            "stall": {
                "id": "s1-4242-6000123456",
                "signature": "d6bc3e684b0ddce3",
                "started_at": "2026-11-21T05:20:01.000123Z",
                "start_monotonic_ns": 6_000_123_456_u64,
                "duration_ns": 5_012_000_346_u64,
                "threshold_ns": 100_000_000,
                "start_known": true,
                "end_known": true,
                "time": {
                    "running_user_ns": 8_000_001,
                    "running_kernel_ns": 4_000_000,
                    "blocked_ns": 5_000_000_000_u64,
                    "runnable_ns": 345,
                    "stopped_ns": 0,
                },
                "switches": { "voluntary": 2, "preempted": 1 },
                "ready_events": 17,
                "steal_ns": 0,
                "away": [],
                "waiting_connections": [],
            },
            "thread": { "tid": 4242, "tid_in_container": 7, "name": "uvicorn",
                        "python_name": "MainThread", "is_main": true, "loop": "asyncio" },
            "runtime": { "name": "cpython", "version": "3.11.2" },
            "cause": {
                "kind": "syscall",
                "detail": {
                    "syscall": "recvfrom",
                    "args": ["0x7", "0x7ffe00001000", "0x2000", "0x0", "0x0", "0x0"],
                    "target": "tcp 127.0.0.1:8081",
                    "descriptor": null,
                    "polled": [],
                    "polled_more": 0,
                    "path": null,
                    "file_system": null,
                    "connection": null,
                    "timeout": null,
                    "purpose": null,
                    "held_by": [],
                    "child": null,
                    "woken_by": null,
                },
                "summary": "blocked in recvfrom on tcp 127.0.0.1:8081",
                "confidence": "certain",
                "time_ns": 5_000_000_000_u64,
                "times": 1,
                "waits": null,
                "because": [],
                "deadlock": false,
                "also": [],
            },
            "culprit": {
                "function": "charge_payment",
                "file": "/srv/pay/app.py",
                "line": 31,
                "module": null,
                "language": "python",
                "thread": 4242,
                "time_ns": 5_000_000_000_u64,
                "part": "blocked",
            },
            "task": null,
            "advice": "A blocking call: use its asynchronous kin, or run it with asyncio.to_thread; \
                       with a timeout where it waits for somebody.",
            "stacks": stacks(),
            "gaps": ["native frames: libfoo.so has no unwind table"],
            "lost": { "captures": 3, "switches": 0 },
        });
        assert_eq!(json_of(Moment::End, &sample::stall()), expected);
    }

    fn process() -> Value {
        json!({
            "pid": 4242,
            "pid_in_container": 7,
            "name": "uvicorn",
            "exe": "/usr/bin/python3.11",
            "command": "python3 -m uvicorn app:app",
            "start_time": "2026-11-21T05:13:20.000000Z",
            "container_id": null,
            "cgroup": "/system.slice/pay.service",
            "service": "pay",
            "labels": { "team": "billing" },
        })
    }

    fn stacks() -> Value {
        let library = |function: &str, file: &str, line: u32| json!({ "function": function, "file": file, "line": line, "language": "python" });
        let own = |function: &str, line: u32| {
            json!({
                "function": function, "file": "/srv/pay/app.py", "line": line, "language": "python",
                "in_app": true,
            })
        };
        let kernel = |function: &str| {
            json!({
                "function": function, "module": "[kernel]", "language": "kernel",
                "address": "0x7f0000001234",
            })
        };
        let recv = json!({
            "function": "__libc_recv", "module": "/usr/lib/x86_64-linux-gnu/libc.so.6",
            "language": "native", "address": "0x7f0000001234", "module_offset": "0x1234",
        });
        let readinto = library("SocketIO.readinto", "/usr/lib/python3.11/socket.py", 706);
        let run = library("Handle._run", "/usr/lib/python3.11/asyncio/events.py", 80);
        json!([
            {
                "thread": { "tid": 4242, "name": "uvicorn" },
                "role": "loop",
                "state": "blocked",
                "samples": 1,
                "time_ns": 5_000_000_000_u64,
                "kernel": [kernel("__schedule"), kernel("tcp_recvmsg")],
                "frames": [
                    recv,
                    readinto,
                    own("charge_payment", 31),
                    run,
                ],
            },
            {
                "thread": { "tid": 4242, "name": "uvicorn" },
                "role": "loop",
                "state": "running",
                "samples": 1,
                "time_ns": 12_000_000,
                "frames": [own("parse", 17)],
                "truncated": "the copy of the stack ends here",
            },
        ])
    }

    /// The names of all fields, at any depth.
    fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(object) => {
                for (name, value) in object {
                    let path = format!("{path}.{name}");
                    fields(value, &path, found);
                    found.insert(path);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| fields(item, path, found)),
            _ => {}
        }
    }

    /// The end of a stall has every field that the lines before it had, and names the same stall.
    #[test]
    fn end_stands_alone() {
        let end = json_of(Moment::End, &sample::stall());
        let mut of_end = BTreeSet::new();
        fields(&end, "", &mut of_end);
        for moment in [Moment::Open, Moment::Update] {
            let earlier = json_of(moment, &sample::open_stall());
            let mut of_earlier = BTreeSet::new();
            fields(&earlier, "", &mut of_earlier);
            // A list that happens to be empty at the end.
            of_earlier.retain(|field| !field.starts_with(".cause.also."));
            assert_eq!(of_earlier, of_end);
            assert_eq!(earlier["stall"]["id"], end["stall"]["id"]);
            assert_eq!(earlier["stall"]["started_at"], end["stall"]["started_at"]);
            assert_eq!(earlier["stall"]["end_known"], false);
        }
    }

    /// The times of a stall add up to its duration, to the nanosecond.
    #[test]
    fn times_add_up() {
        let mut stall = sample::stall();
        (stall.turn.running_ns, stall.turn.stopped_ns) = (999_999_999, 77);
        (stall.ticks_user, stall.ticks_kernel) = (6, 7);
        let stall = &json_of(Moment::End, &stall)["stall"];
        let times = stall["time"].as_object().unwrap();
        let sum: u64 = times.values().map(|time| time.as_u64().unwrap()).sum();
        assert_eq!(Some(sum), stall["duration_ns"].as_u64());
        assert_eq!(times.len(), 5);
    }

    /// What commands a terminal is escaped in the sentence, whoever put it there, and a long command line is cut.
    #[test]
    fn hostile_process() {
        let mut session = sample::session();
        session.process.name = "a\u{1b}[2J\n\u{202e}b".to_owned();
        session.process.command = Some("python3 ".repeat(100));
        let line = sample::report_of(&session, Moment::End, &sample::stall());
        let line = serde_json::to_value(line).unwrap();
        let message = line["message"].as_str().unwrap();
        assert!(message.starts_with(r"a\u{1b}[2J\n\u{202e}b[4242]: "), "{message}");
        let command = line["process"]["command"].as_str().unwrap();
        assert!(command.len() == 256 && command.ends_with('…'), "{command}");
        assert_eq!(line["omitted"]["command_bytes"], 800 - 253);
    }

    /// Only stalls at least as long as the error threshold are errors.
    #[test]
    fn severities() {
        let mut stall = sample::stall();
        assert_eq!(json_of(Moment::Open, &sample::open_stall())["severity"], "WARN");
        stall.turn.blocked_ns = 1_000_000_000 - stall.turn.running_ns - stall.turn.runnable_ns;
        assert_eq!(json_of(Moment::End, &stall)["severity"], "ERROR");
        stall.turn.blocked_ns -= 1;
        assert_eq!(json_of(Moment::End, &stall)["severity"], "WARN");
    }

    /// Whatever is missing is told once, and what is false or null because of it says so.
    #[test]
    fn gaps() {
        let mut stall = sample::stall();
        stall.turn.flags = START_UNKNOWN;
        stall.end = End::Unseen("the thread exited".to_owned());
        stall.ticks_user = 0;
        stall.ticks_kernel = 0;
        stall.stacks.clear();
        stall.gaps = vec![Gap::new("stacks", "captures were lost"); 2];
        let line = json_of(Moment::End, &stall);
        let expected = json!([
            "stacks: captures were lost",
            "start: the turn had begun before stalltrace could see it",
            "end: the thread exited",
            "split of running time: no tick fell into it, so all of it is given as user time",
            "cause: no stack was taken of 5000 ms of blocked time; each block may have been too short",
            "culprit: no stack shows what most of the time went into",
            "task: no stack shows what ran",
        ]);
        assert_eq!(line["gaps"], expected);
        assert_eq!(line["culprit"], Value::Null);
        assert_eq!(line["stall"]["start_known"], false);
        assert_eq!(line["stall"]["end_known"], false);
        let mut stall = sample::stall();
        stall.ready_events = None;
        let gaps = json_of(Moment::End, &stall)["gaps"].to_string();
        assert!(gaps.contains("ready_events: the return of the next wait was not seen"), "{gaps}");
        stall.end = End::NotYet;
        let gaps = json_of(Moment::End, &stall)["gaps"].to_string();
        assert!(gaps.contains("end: the stall was still going on when it was closed"), "{gaps}");
    }

    /// A session's first line says what is attached and how it is set.
    #[test]
    fn whole_session_start() {
        let expected = json!({
            "schema": "stalltrace/1",
            "event": "session_start",
            "timestamp": "2026-11-21T05:20:00.000000Z",
            "severity": "INFO",
            "message": "stalltrace 0.1.0 watches uvicorn[4242] for event loop stalls past 100 ms",
            "session": "s1",
            "host": "web-3",
            "process": process(),
            "version": "0.1.0",
            "kernel": "6.1.0-49-amd64",
            "runtime": { "name": "cpython", "version": "3.11.2" },
            "wait_hooks": "mixed",
            "probes": [
                { "name": "epoll_wait", "hook": "fentry", "attached": true, "reason": null },
                {
                    "name": "poll", "hook": "tracepoint", "attached": true,
                    "reason": "fentry is refused: not permitted",
                },
                {
                    "name": "io_uring_enter", "hook": "fentry", "attached": false,
                    "reason": "the kernel has no such system call",
                },
            ],
            "configuration": {
                "threshold_ns": 100_000_000,
                "error_threshold_ns": 1_000_000_000,
                "duration_limit_ns": null,
                "stats_interval_ns": null,
                "sample_frequency_hz": 99,
                "line_limit_bytes": 8000,
                "stacks": "app",
            },
            "gaps": [],
        });
        assert_eq!(serde_json::to_value(sample::session_start()).unwrap(), expected);
    }

    /// A session's last line says what was seen and what was lost.
    #[test]
    fn whole_session_end() {
        let expected = json!({
            "schema": "stalltrace/1",
            "event": "session_end",
            "timestamp": "2026-11-21T05:20:30.000000Z",
            "severity": "INFO",
            "message": "uvicorn[4242]: 1 of 1200 turns stalled, 5012 ms in all, the longest \
                        5012 ms; the target exited after 30.0 s",
            "session": "s1",
            "host": "web-3",
            "process": process(),
            "reason": "target_exited",
            "watched_ns": 30_000_000_000_u64,
            "totals": {
                "turns": 1200,
                "stalls": 1,
                "stalled_ns": 5_012_000_346_u64,
                "longest_ns": 5_012_000_346_u64,
            },
            "top_culprits": [{
                "function": "charge_payment",
                "file": "/srv/pay/app.py",
                "line": 31,
                "stalls": 1,
                "stalled_ns": 5_000_000_000_u64,
            }],
            "frames": {
                "stacks": 2,
                "stacks_truncated": 1,
                "by_registers": 2,
                "by_unwind_table": 30,
                "by_frame_pointer": 4,
                "by_search": 0,
                "by_signal": 0,
                "python": 20,
                "javascript": 0,
                "nameless": 1,
            },
            "gaps": [],
            "lost": { "captures": 3, "switches": 0 },
        });
        assert_eq!(serde_json::to_value(sample::session_end()).unwrap(), expected);
    }
}
