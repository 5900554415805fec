//! stalltrace's JSON lines to the fields that tests look at. Stricter than a reader need be: what the
//! contract promises must be there.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::statistics::{Accepts, LoopStats};

/// The version of the contract that these types read.
pub const SCHEMA: &str = "stalltrace/1";

/// One line.
#[derive(Debug, Clone, Deserialize)]
pub struct Line {
    pub schema: String,
    pub timestamp: String,
    pub severity: String,
    pub message: String,
    pub session: String,
    pub process: Process,
    /// What was left out for the line to be short enough, by what.
    #[serde(default)]
    pub omitted: BTreeMap<String, u64>,
    #[serde(flatten)]
    pub event: Event,
}

/// What a line is about.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    SessionStart(Start),
    StallOpen(Box<StallLine>),
    StallUpdate(Box<StallLine>),
    StallEnd(Box<StallLine>),
    Stats(Stats),
    SessionEnd(End),
}

#[derive(Debug, Clone, Deserialize)]
pub struct Stats {
    pub interval_ns: u64,
    pub loops: Vec<LoopStats>,
    pub accepts: Vec<Accepts>,
    pub gaps: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Process {
    pub pid: u32,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Start {
    pub wait_hooks: String,
    #[serde(default)]
    pub probes: Vec<Probe>,
    #[serde(default)]
    pub runtime: Option<Runtime>,
    #[serde(default)]
    pub gaps: Vec<String>,
}

/// What is hooked, or why not.
#[derive(Debug, Clone, Deserialize)]
pub struct Probe {
    pub name: String,
    pub hook: String,
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Runtime {
    pub name: String,
    pub version: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct End {
    pub reason: String,
    /// What the session lost, by kind.
    #[serde(default)]
    pub lost: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct StallLine {
    pub stall: Stall,
    pub thread: Thread,
    pub runtime: Option<Runtime>,
    pub cause: Cause,
    pub culprit: Option<Culprit>,
    pub task: Option<Task>,
    pub advice: Option<String>,
    pub stacks: Vec<Stack>,
    pub gaps: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Stall {
    pub id: String,
    pub start_monotonic_ns: u64,
    pub duration_ns: u64,
    pub threshold_ns: u64,
    pub start_known: bool,
    pub end_known: bool,
    pub time: Time,
    #[serde(default)]
    pub ready_events: Option<u64>,
    #[serde(default)]
    pub waiting_connections: Vec<WaitingConnections>,
    /// Of a loop that several threads serve: the others, which were away from it as well.
    #[serde(default)]
    pub away: Vec<Away>,
}

/// Another thread that might have served the loop, and what kept it.
#[derive(Debug, Clone, Deserialize)]
pub struct Away {
    pub thread: Thread,
    pub culprit: Option<Culprit>,
    pub time_ns: u64,
    pub state: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct WaitingConnections {
    pub address: String,
    pub waiting: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Time {
    pub running_user_ns: u64,
    pub running_kernel_ns: u64,
    pub blocked_ns: u64,
    pub runnable_ns: u64,
    pub stopped_ns: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Thread {
    pub tid: u32,
    pub name: Option<String>,
    /// The rest, of the loop's thread only.
    pub python_name: Option<String>,
    pub is_main: Option<bool>,
    #[serde(rename = "loop")]
    pub loop_kind: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Cause {
    pub kind: String,
    pub summary: String,
    #[serde(default)]
    pub time_ns: u64,
    pub times: Option<u64>,
    /// What else it was, longest first.
    #[serde(default)]
    pub also: Vec<Part>,
    /// Of a lock.
    pub owner_thread: Option<Thread>,
    pub woken_by: Option<Waker>,
    /// Of the interpreter's lock.
    pub holder_thread: Option<Thread>,
    /// Of either.
    #[serde(default)]
    pub holders: Vec<Thread>,
    /// Of a thread that was ready and had no CPU.
    pub preempted_ns: Option<u64>,
    pub woken_ns: Option<u64>,
    pub idle_ns: Option<u64>,
    pub preempted_by: Option<Vec<Preemptor>>,
    /// Of a CPU quota.
    pub throttled_ns: Option<u64>,
    pub quota_us: Option<u64>,
    pub cgroup: Option<String>,
    /// Of a run queue.
    pub confined_to: Option<String>,
    pub allowed_cpus: Option<u32>,
    /// Of a stop.
    pub by: Option<String>,
    pub tracer: Option<Process>,
    /// Of memory.
    pub pressure_ns: Option<u64>,
    pub pressure_of: Option<String>,
    /// Of time on a CPU.
    #[serde(flatten)]
    pub on_cpu: OnCpu,
    /// All others.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

impl Cause {
    /// How often the thread waited so, whether it was a few times or many.
    pub fn how_often(&self) -> Option<u64> {
        let many = self.fields.get("waits").and_then(|waits| waits.get("count"));
        self.times.or_else(|| many.and_then(Value::as_u64))
    }
}

/// What a cause says of time on a CPU; of other kinds nothing.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct OnCpu {
    pub kernel_share: Option<f64>,
    /// Also what a thread was blocked in.
    pub syscall: Option<String>,
    /// Also what a thread waited for memory with.
    pub activity: Option<String>,
    pub minor_faults: Option<u64>,
    pub single_call: Option<bool>,
    pub callbacks: Option<Vec<Callback>>,
    pub calls_seen: Option<u64>,
}

/// A callback of a turn of many.
#[derive(Debug, Clone, Deserialize)]
pub struct Callback {
    pub function: Option<String>,
    pub samples: u64,
}

/// Who had the CPU meanwhile.
#[derive(Debug, Clone, Deserialize)]
pub struct Preemptor {
    pub pid: u32,
    pub tid: Option<u32>,
    pub name: Option<String>,
    pub command: Option<String>,
    pub time_ns: u64,
}

/// Another part of a stall.
#[derive(Debug, Clone, Deserialize)]
pub struct Part {
    pub kind: String,
    pub time_ns: u64,
    pub culprit: Option<Culprit>,
    pub throttled_ns: Option<u64>,
    #[serde(flatten)]
    pub on_cpu: OnCpu,
    /// All others.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Waker {
    pub pid: u32,
    pub tid: u32,
    pub name: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Culprit {
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub thread: Option<u32>,
    /// Of the part of the stall that it stands for.
    #[serde(default)]
    pub time_ns: u64,
    #[serde(default)]
    pub part: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Task {
    pub name: Option<String>,
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Stack {
    pub thread: Thread,
    pub role: String,
    pub state: String,
    pub samples: u64,
    pub time_ns: u64,
    #[serde(default)]
    pub kernel: Vec<Frame>,
    pub frames: Vec<Frame>,
    pub truncated: Option<String>,
    /// In the middle of a deep one.
    #[serde(default)]
    pub left_out: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Frame {
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub module: Option<String>,
    pub language: String,
    #[serde(default)]
    pub inlined: bool,
    pub address: Option<String>,
}

/// A line, and when it arrived here in ns of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone)]
pub struct Arrived {
    pub at_ns: u64,
    pub line: Line,
}

impl Line {
    pub fn parse(text: &str) -> Result<Self> {
        let read = || {
            let mut line: Value = serde_json::from_str(text)?;
            line.get_mut("cause").into_iter().for_each(spread);
            serde_json::from_value(line)
        };
        read().with_context(|| format!("not a line of the contract: {text}"))
    }

    /// The stall that the line is about, if it is about one.
    pub fn stall(&self) -> Option<&StallLine> {
        match &self.event {
            Event::StallOpen(stall) | Event::StallUpdate(stall) | Event::StallEnd(stall) => {
                Some(stall)
            }
            Event::SessionStart(_) | Event::Stats(_) | Event::SessionEnd(_) => None,
        }
    }
}

impl StallLine {
    pub fn end_ns(&self) -> u64 {
        self.stall.start_monotonic_ns.saturating_add(self.stall.duration_ns)
    }

    /// Whether the cause is of this kind. A machine without a free CPU makes it another, rightly.
    pub fn is_caused_by(&self, kind: &str) -> bool {
        self.cause.kind == if self.is_starved() { "run_queue" } else { kind }
    }

    /// Whether the thread waited for a CPU longer than it did anything else.
    pub fn is_starved(&self) -> bool {
        let time = &self.stall.time;
        let running_ns = time.running_user_ns.saturating_add(time.running_kernel_ns);
        time.runnable_ns > running_ns.max(time.blocked_ns).max(time.stopped_ns)
    }

    /// Whether a function is anywhere on a stack of the loop's own thread.
    pub fn loop_runs(&self, function: &str) -> bool {
        let of_loop = self.stacks.iter().filter(|stack| stack.role == "loop");
        of_loop
            .flat_map(|stack| &stack.frames)
            .any(|frame| frame.function.as_deref() == Some(function))
    }
}

impl Time {
    pub fn sum_ns(&self) -> u64 {
        [
            self.running_user_ns,
            self.running_kernel_ns,
            self.blocked_ns,
            self.runnable_ns,
            self.stopped_ns,
        ]
        .iter()
        .fold(0, |sum, part| sum.saturating_add(*part))
    }
}

impl Culprit {
    /// The file without its folders.
    pub fn basename(&self) -> Option<&str> {
        self.file.as_deref().map(basename)
    }
}

/// Puts what belongs to the kind of a cause beside its other fields, where tests look for all of them.
fn spread(cause: &mut Value) {
    if let Some(Value::Object(detail)) = cause.get_mut("detail").map(Value::take)
        && let Some(fields) = cause.as_object_mut()
    {
        fields.extend(detail);
    }
    let parts = cause.get_mut("also").and_then(Value::as_array_mut);
    parts.into_iter().flatten().for_each(spread);
}

/// A path's last component.
pub fn basename(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
pub mod tests {
    use super::{Arrived, Event, Line};

    const COMMON: &str = r#""schema":"stalltrace/1","timestamp":"2026-11-21T05:00:00.000001Z","severity":"WARN","message":"m","session":"s","host":"h","process":{"pid":42}"#;

    /// A line as text, from the part that is its event's own.
    pub fn line(event: &str, own: &str) -> String {
        let comma = if own.is_empty() { "" } else { "," };
        format!(r#"{{"event":"{event}",{COMMON}{comma}{own}}}"#)
    }

    /// A stall's own part: from `start_ns` for `duration_ns`, blocked all the time in `function` of
    /// `app.py`, line 31.
    pub fn stall(id: &str, start_ns: u64, duration_ns: u64, function: &str) -> String {
        format!(
            r#""stall":{{"id":"{id}","started_at":"2026-11-21T05:00:00.000001Z","start_monotonic_ns":{start_ns},"duration_ns":{duration_ns},"threshold_ns":100000000,"start_known":true,"end_known":true,"time":{{"running_user_ns":0,"running_kernel_ns":0,"blocked_ns":{duration_ns},"runnable_ns":0,"stopped_ns":0}},"switches":{{"voluntary":1,"preempted":0}},"ready_events":3}},"thread":{{"tid":42,"name":"python3","loop":"asyncio"}},"cause":{{"kind":"syscall","detail":{{"syscall":"recvfrom","args":[],"target":"tcp 127.0.0.1:80"}},"summary":"blocked in recvfrom","confidence":"certain"}},"culprit":{{"function":"{function}","file":"/srv/app.py","line":31,"module":null,"language":"python","thread":42}},"task":null,"advice":null,"stacks":[{{"thread":{{"tid":42,"name":"python3"}},"role":"loop","state":"blocked","samples":1,"time_ns":{duration_ns},"kernel":[],"frames":[{{"function":"recv","file":null,"line":null,"module":"/lib/libc.so.6","language":"native","inlined":false,"address":"0x1"}},{{"function":"{function}","file":"/srv/app.py","line":31,"module":null,"language":"python","inlined":false,"address":null}}],"truncated":null}}],"gaps":[],"lost":{{}}"#
        )
    }

    /// A line that arrived.
    pub fn arrived(at_ns: u64, event: &str, own: &str) -> Arrived {
        Arrived { at_ns, line: Line::parse(&line(event, own)).unwrap() }
    }

    /// The three kinds of lines are told apart and their fields found.
    #[test]
    fn lines_of_the_contract_are_read() {
        let start = Line::parse(&line("session_start", r#""wait_hooks":"fentry""#)).unwrap();
        assert!(matches!(start.event, Event::SessionStart(start) if start.wait_hooks == "fentry"));

        let open = Line::parse(&line("stall_open", &stall("7", 100, 50, "pay"))).unwrap();
        let stall_line = open.stall().unwrap();
        assert_eq!((stall_line.end_ns(), stall_line.stall.time.sum_ns()), (150, 50));
        assert_eq!(stall_line.culprit.as_ref().unwrap().basename(), Some("app.py"));
        assert!(stall_line.loop_runs("pay") && !stall_line.loop_runs("ship"));
        assert_eq!(stall_line.cause.on_cpu.syscall.as_deref(), Some("recvfrom"));

        let end = Line::parse(&line("session_end", r#""reason":"signal""#)).unwrap();
        assert!(end.stall().is_none());
        assert!(matches!(end.event, Event::SessionEnd(end) if end.reason == "signal"));
    }

    /// Waiting for a CPU is the cause only where it took the most time.
    #[test]
    fn a_starved_thread_has_another_cause() {
        let with = |runnable_ns: u64, kind: &str| {
            let text = stall("7", 100, 50, "pay").replace("\"kind\":\"syscall\"", kind);
            let runnable = format!("\"runnable_ns\":{runnable_ns}");
            let text = text.replace("\"runnable_ns\":0", &runnable);
            Line::parse(&line("stall_end", &text)).unwrap().stall().unwrap().clone()
        };
        assert!(with(0, "\"kind\":\"cpu\"").is_caused_by("cpu"));
        assert!(!with(0, "\"kind\":\"run_queue\"").is_caused_by("cpu"));
        assert!(with(51, "\"kind\":\"run_queue\"").is_caused_by("cpu"));
        assert!(!with(51, "\"kind\":\"cpu\"").is_caused_by("cpu"));
    }

    /// A line that lacks what the contract promises is refused.
    #[test]
    fn what_is_promised_must_be_there() {
        assert!(Line::parse(&line("session_start", "")).is_err());
        let without_culprit = stall("7", 100, 50, "pay").replace("\"duration_ns\":50,\"th", "\"th");
        assert!(Line::parse(&line("stall_end", &without_culprit)).is_err());
        assert!(Line::parse("stalltrace: starting").is_err());
    }
}
