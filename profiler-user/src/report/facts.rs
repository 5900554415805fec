//! What a report's builder is told about the session, the process and the thread: data that others have read.

use std::collections::BTreeMap;

use super::advice::Peers;
use crate::clock::WallAnchor;
use crate::gap::Gap;
use crate::runtime::{go, ruby};

/// The target. What is `None` could not be read, or is not so (no container); the gaps tell which.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessFacts {
    /// As the daemon sees it.
    pub pid: u32,
    /// As the process sees itself.
    pub pid_in_container: Option<u32>,
    pub name: String,
    pub exe: Option<String>,
    pub libc: Libc,
    pub command: Option<String>,
    pub start_time_wall_ns: Option<u64>,
    pub container_id: Option<String>,
    pub cgroup: Option<String>,
    /// What people call it.
    pub service: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// Why the frames of the interpreter that it runs cannot be read, if it runs such a one: no stack shows
    /// whose code ran.
    pub unread: Option<Gap>,
}

/// Where the C library's code is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Libc {
    /// In a file of its own.
    #[default]
    Shared,
    /// In the executable.
    Linked {
        /// The executable has debug information: what of its functions has no line is a library's.
        has_lines: bool,
    },
}

/// What stays the same on every line of one attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionFacts {
    pub id: String,
    pub host: String,
    pub process: ProcessFacts,
    pub runtime: Option<RuntimeFacts>,
    pub anchor: WallAnchor,
    /// What of the above could not be had.
    pub gaps: Vec<Gap>,
}

/// What a process runs, as far as that was there to be found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgramFacts {
    pub libc: Libc,
    pub runtime: Option<RuntimeFacts>,
    /// What of its runtime cannot be had.
    pub gap: Option<Gap>,
}

impl SessionFacts {
    /// Takes in what is known of the program, in the place of what was known before.
    pub fn learn(&mut self, program: ProgramFacts) {
        let ProgramFacts { libc, runtime, gap } = program;
        let before = self.process.unread.take();
        self.gaps.retain(|gap| Some(gap) != before.as_ref());
        self.gaps.extend(gap.clone());
        self.process.libc = libc;
        // What is missing of a runtime that is read does not hide whose code runs.
        let is_read = runtime.as_ref().is_some_and(|runtime| runtime.name != ruby::NAME);
        self.process.unread = gap.filter(|_| !is_read);
        self.runtime = runtime.or(self.runtime.take());
    }

    /// Whether a runtime serves the network on whichever of its threads is free: none of them is a loop,
    /// and what one does keeps nobody waiting.
    pub fn has_no_loops(&self) -> bool {
        self.runtime.as_ref().is_some_and(|runtime| runtime.name == go::NAME)
    }
}

/// The language runtime that was recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeFacts {
    /// `cpython`, `node`, …
    pub name: String,
    pub version: Option<String>,
}

/// The loop's thread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ThreadFacts {
    pub tid: u32,
    pub tid_in_container: Option<u32>,
    /// As the kernel has it.
    pub name: Option<String>,
    /// As Python's `threading` has it.
    pub python_name: Option<String>,
    /// It is the first thread of its process.
    pub is_main: bool,
    /// `asyncio`, `uvloop`, `libuv`, `epoll`, …; of a worker, its pool.
    pub loop_kind: String,
    /// It is handed work, instead of waiting for events.
    pub is_worker: bool,
}

/// What a stall's line needs besides the stall.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub session: &'a SessionFacts,
    /// When the line is made, `CLOCK_MONOTONIC`.
    pub now_ns: u64,
    pub thread: &'a ThreadFacts,
    pub threshold_ns: u64,
    /// Stalls at least this long are errors.
    pub error_threshold_ns: u64,
    /// What the target's descriptors stand for (`tcp 127.0.0.1:8081`, `/var/lib/x.json`, `pipe`), as far as asked.
    pub descriptors: &'a BTreeMap<u32, String>,
    /// What this session has lost so far, by reason.
    pub losses: &'a [(&'static str, u64)],
    /// Who has stalled the process before.
    pub peers: &'a Peers,
    /// What of thread and descriptors could not be had.
    pub gaps: &'a [Gap],
}

#[cfg(test)]
mod tests {
    use super::{Libc, ProgramFacts, RuntimeFacts};
    use crate::gap::Gap;

    /// A runtime that turns up takes the place of the reason for its absence, and of nothing else.
    #[test]
    fn a_runtime_turns_up() {
        let mut session = crate::report::sample::session();
        session.runtime = None;
        let other = Gap::new("epoll instances of the process", "not to be read");
        session.gaps = vec![other.clone()];
        let missing = Gap::new("Python frames", "python3.11 has no _PyRuntime");
        let nothing = ProgramFacts { gap: Some(missing.clone()), ..ProgramFacts::default() };
        session.learn(nothing.clone());
        assert_eq!(session.process.unread, Some(missing.clone()));
        assert_eq!(session.gaps, [other.clone(), missing]);
        let python = RuntimeFacts { name: "cpython".to_owned(), version: None };
        let libc = Libc::Linked { has_lines: false };
        session.learn(ProgramFacts { runtime: Some(python.clone()), gap: None, libc });
        assert_eq!((&session.process.unread, session.process.libc), (&None, libc));
        assert_eq!((session.gaps, session.runtime), (vec![other], Some(python)));
    }
}
