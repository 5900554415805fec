//! A system call that a thread was blocked in: what it worked on, how long it might take, and who kept it waiting.

use crate::gap::Gap;

/// How long a call may wait before it gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeout {
    /// For ever.
    None,
    Ns(u64),
}

/// A process that has to do with a wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// As the daemon numbers it.
    pub pid: u32,
    pub name: Option<String>,
    pub command: Option<String>,
}

/// What kind of thing a descriptor stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
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

/// What a descriptor stood for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    pub number: u32,
    pub kind: Kind,
    /// In the words of a report: `tcp 127.0.0.1:8081`, `/var/lib/app/config.json`, `pipe`.
    pub text: String,
    /// A socket's own end and its peer's.
    pub local: Option<String>,
    pub peer: Option<String>,
    /// Of TCP: `established`, `syn_sent`, `listen`, …
    pub state: Option<&'static str>,
    /// Of TCP: its own end is one that is listened at. The peer is a client, which connected to it.
    pub is_inbound: bool,
    pub path: Option<String>,
    /// The type of the file system that the file is on: `ext4`, `nfs4`, `fuse.sshfs`.
    pub file_system: Option<String>,
    /// Who has the other end.
    pub process: Option<Peer>,
    /// As /proc/PID/fd has it: `pipe:[4711]`. While it is open, nothing else has the same.
    pub link: String,
}

impl Descriptor {
    pub fn new(number: u32, kind: Kind, text: &str) -> Self {
        Self {
            number,
            kind,
            text: text.to_owned(),
            local: None,
            peer: None,
            state: None,
            is_inbound: false,
            path: None,
            file_system: None,
            process: None,
            link: String::new(),
        }
    }
}

/// What was known of one system call while a thread was blocked in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Call {
    /// It lasted while this was asked. Of one that was over, only what its number stands for is known.
    pub is_seen: bool,
    /// The descriptor that it was made with.
    pub descriptor: Option<Descriptor>,
    /// Those that `poll` or `select` waited for; the first few.
    pub polled: Vec<Descriptor>,
    /// How many more of them there are.
    pub more_polled: u64,
    /// The path that its arguments name, whole.
    pub path: Option<String>,
    /// The type of the file system that the path is on.
    pub file_system: Option<String>,
    pub timeout: Option<Timeout>,
    /// How long a sleep was asked for.
    pub asked_ns: Option<u64>,
    /// The connection behind gRPC's completion queue, where exactly one can be.
    pub connection: Option<Descriptor>,
    /// Who has the file lock that it waited for, or checks the file on access.
    pub held_by: Vec<Peer>,
    /// The child that it waited for.
    pub child: Option<Peer>,
    /// The SQLite database that was locked, where exactly one can have been.
    pub database: Option<String>,
    /// What of the above could not be had.
    pub gaps: Vec<Gap>,
}

impl Call {
    /// Whether nothing is lost where this takes the other's place: what was seen while it lasted says
    /// more, and what was found once may be gone at the end.
    pub fn says_as_much(&self, other: &Self) -> bool {
        (self.is_seen || !other.is_seen) && self.gaps.len() <= other.gaps.len()
    }

    /// Whether two calls with equal arguments work on the same: numbers and buffers are used again.
    pub fn is_on_the_same(&self, other: &Self) -> bool {
        let links = |call: &Self| -> Vec<String> {
            let all = call.descriptor.iter().chain(&call.polled);
            all.map(|descriptor| descriptor.link.clone()).collect()
        };
        self.path == other.path && links(self) == links(other)
    }
}

/// Types of file systems whose files are on another machine, or in the hands of another process: what
/// is slow there is no disk of this machine.
pub fn is_remote(file_system: &str) -> bool {
    const REMOTE: [&str; 14] = [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "ceph",
        "fuse",
        "9p",
        "virtiofs",
        "glusterfs",
        "lustre",
        "afs",
        "ocfs2",
        "gfs2",
    ];
    REMOTE.contains(&file_system) || file_system.starts_with("fuse.")
}

#[cfg(test)]
mod tests {
    use super::is_remote;

    /// A disk behind FUSE (`fuseblk`) is a disk; whatever else FUSE serves is not.
    #[test]
    fn remote_file_systems() {
        assert!(is_remote("nfs4") && is_remote("fuse.sshfs") && is_remote("fuse"));
        assert!(!is_remote("ext4") && !is_remote("tmpfs") && !is_remote("fuseblk"));
    }
}
