//! The JSON of every line, field by field: the contract with whoever parses it, and the only serialisable types.
//!
//! Within one [`SchemaVersion`] fields are only added. Units stand in the names, 64-bit addresses are
//! hexadecimal strings (JSON numbers lose their last bits), and what could not be filled is `null`
//! with its reason in `gaps`. `docs/report.schema.json` is made from these types and their comments;
//! a test keeps both equal.

pub mod session;
pub mod stall;

use std::collections::BTreeMap;

#[cfg(test)]
use schemars::JsonSchema;
use serde::Serialize;

use session::{SessionEnd, SessionStart};
use stall::StallLine;

/// One line of stalltrace's output.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Report {
    /// stalltrace has attached.
    SessionStart(Box<SessionStart>),
    /// A turn of an event loop has passed the threshold and is still going on.
    StallOpen(Box<StallLine>),
    /// It is still going on.
    StallUpdate(Box<StallLine>),
    /// It is over. Stands alone: it has all that the lines before it had.
    StallEnd(Box<StallLine>),
    /// stalltrace has detached.
    SessionEnd(Box<SessionEnd>),
}

/// The version of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub enum SchemaVersion {
    #[serde(rename = "stalltrace/1")]
    V1,
}

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Common {
    pub schema: SchemaVersion,
    /// When the line was made: RFC 3339, UTC, µs.
    pub timestamp: String,
    pub severity: Severity,
    /// One sentence for a person.
    pub message: String,
    /// The attachment: the same on every line of it.
    pub session: String,
    /// Host name.
    pub host: String,
    pub process: Process,
}

/// The target.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Process {
    /// As stalltrace sees it.
    pub pid: u32,
    /// As the process sees itself.
    pub pid_in_container: Option<u32>,
    pub name: String,
    /// Path of the executable.
    pub exe: Option<String>,
    /// The command line, arguments separated by spaces.
    pub command: Option<String>,
    /// RFC 3339, UTC, µs.
    pub start_time: Option<String>,
    /// `null` outside containers.
    pub container_id: Option<String>,
    pub cgroup: Option<String>,
    /// Given by the user, and Kubernetes' own.
    pub labels: BTreeMap<String, String>,
}

/// A language runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Runtime {
    /// `cpython`, `node`, …
    pub name: String,
    pub version: Option<String>,
}

impl Report {
    /// What every line has.
    pub fn common(&self) -> &Common {
        match self {
            Self::SessionStart(line) => &line.common,
            Self::StallOpen(line) | Self::StallUpdate(line) | Self::StallEnd(line) => &line.common,
            Self::SessionEnd(line) => &line.common,
        }
    }
}
