//! The JSON of a system call that a loop was blocked in: on what, for how long at most, for whose sake.

#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What was known of the call while it lasted. What is `null` without a gap does not belong to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ReportedCall {
    /// The descriptor that it was made with.
    pub descriptor: Option<ReportedDescriptor>,
    /// The descriptors that `poll` or `select` waited for; at most four.
    pub polled: Vec<ReportedDescriptor>,
    /// How many more it waited for.
    pub polled_more: u64,
    /// The path among its arguments, from the root that the target sees; of SQLite, the database.
    pub path: Option<String>,
    /// The type of the file system that the path is on.
    pub file_system: Option<String>,
    /// Of gRPC's completion queue: the process's only connection of gRPC's that it opened itself.
    pub connection: Option<ReportedDescriptor>,
    /// How long it may wait: its own timeout, or that of its socket.
    pub timeout: Option<ReportedTimeout>,
    /// What it was for, by the functions that made it.
    pub purpose: Option<Purpose>,
    /// Who has the file lock that it waited for, or checks the file on access.
    pub held_by: Vec<ReportedPeer>,
    /// The child process that it waited for.
    pub child: Option<ReportedPeer>,
    /// Who ended the longest of the waits by a system call of its own. `null` while it lasts, where a
    /// timeout or a signal did, and of waits that no other process ends.
    pub woken_by: Option<ReportedWaker>,
}

/// What a file descriptor stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ReportedDescriptor {
    pub number: u32,
    pub kind: DescriptorKind,
    /// Of a socket, its own address or path.
    pub local: Option<String>,
    /// Of a socket, the address or path of its peer.
    pub peer: Option<String>,
    /// Of TCP: `established`, `syn_sent`, `listen`, …
    pub state: Option<String>,
    /// Of TCP: the peer is a client, which connected to a port that is listened at.
    pub is_inbound: bool,
    /// Of a file, a device or a terminal.
    pub path: Option<String>,
    /// Of a file, the type of its file system: `ext4`, `nfs4`, `fuse.sshfs`.
    pub file_system: Option<String>,
    /// Who has the other end of a pipe, or of a connection on this machine. Of a unix socket, whoever
    /// connected, listened or made the pair.
    pub process: Option<ReportedPeer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DescriptorKind {
    File,
    Socket,
    Pipe,
    Terminal,
    Device,
    Eventfd,
    Timerfd,
    Signalfd,
    Inotify,
    Epoll,
    Pidfd,
    IoUring,
    Other,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ReportedPeer {
    pub pid: u32,
    pub name: Option<String>,
    /// The command line, arguments separated by spaces; its beginning, if it is long. `null` without
    /// `--show-commands`.
    pub command: Option<String>,
}

/// How long a call may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ReportedTimeout {
    /// Until what it waits for comes, if ever.
    None,
    Ns(u64),
}

/// What a call was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// The C library looked up a host name.
    NameResolution,
    /// A SQLite database was locked.
    SqliteBusy,
    /// Another process has locked a file.
    FileLock,
    /// A child process was to end.
    ChildProcess,
    /// It waited for something that another thread might have done, and its time ran out.
    TimedWait,
    /// A child process was to become its program: `path`, where it was seen on its way there.
    ProgramStart,
    /// Another process was asked whether the file may be opened, read or executed: a scanner, by fanotify.
    AccessCheck,
    /// Something was to come into a completion queue of gRPC's.
    CompletionQueue,
}

/// A thread that ended a wait by its own system call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ReportedWaker {
    pub pid: u32,
    pub tid: u32,
    /// The thread's, at that moment.
    pub name: String,
    /// Of its process, if that is another than the target and has not exited; the beginning, if it is
    /// long. `null` without `--show-commands`.
    pub command: Option<String>,
}
