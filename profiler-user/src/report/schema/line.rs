//! The JSON that every line has: which version it is of, when it was made, and which process it is about.

use std::collections::BTreeMap;

#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The version of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub enum SchemaVersion {
    #[serde(rename = "stalltrace/1")]
    V1,
}

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "UPPERCASE")]
pub enum Severity {
    /// Not a stall.
    Info,
    /// A stall.
    Warn,
    /// A stall at least as long as the error threshold.
    Error,
}

/// What every line has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Common {
    pub schema: SchemaVersion,
    /// When the line was made: RFC 3339, UTC, µs.
    pub timestamp: String,
    pub severity: Severity,
    /// One sentence for a person. Characters that command a terminal are escaped: `\u{1b}`.
    pub message: String,
    /// The attachment: the same on every line of it.
    pub session: String,
    /// Host name.
    pub host: String,
    pub process: ReportedProcess,
    /// How much was left out for the line to be short enough, by what: `frames` and `stacks`, of these `stacks_told`
    /// that an earlier line of the stall had; entries of the list or object of that name; `texts` that were cut, which
    /// end in `…`; `command_bytes` of the command line. Absent where nothing was.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub omitted: BTreeMap<String, u64>,
}

/// The target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ReportedProcess {
    /// As stalltrace sees it.
    pub pid: u32,
    /// As the process sees itself.
    pub pid_in_container: Option<u32>,
    pub name: String,
    /// Path of the executable.
    pub exe: Option<String>,
    /// The command line, arguments separated by spaces; its first 256 bytes.
    pub command: Option<String>,
    /// RFC 3339, UTC, µs.
    pub start_time: Option<String>,
    /// `null` outside containers.
    pub container_id: Option<String>,
    pub cgroup: Option<String>,
    /// What people call it: the systemd unit that it runs in, without `.service`; else the container, where its control
    /// group has the name (LXC, systemd-nspawn); else what its command line runs: the application that a server is
    /// given (`shop.main` of `uvicorn shop.main:app`), the script, the module or the program.
    pub service: Option<String>,
    /// Given by the user (`--label`), and Kubernetes' own.
    pub labels: BTreeMap<String, String>,
}

/// A language runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ReportedRuntime {
    /// `cpython`, `node`, …
    pub name: String,
    pub version: Option<String>,
}
