//! A process to those of its family that have one of its listening sockets open: they share its connections.
//!
//! The family is the process itself, its children, and its parent's other children: workers of a
//! pre-forking server. The parent is not among them: it holds the socket and leaves it to its workers.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};

use profiler_ebpf::limits::MAX_ACCEPTORS;

use super::target::Stat;
use crate::gap::Gap;

/// Processes looked at for being of the family: all that a usual kernel can have (`pid_max`).
const MAX_PROCESSES: usize = 32_768;

/// Descriptors of one process looked at. Listening sockets are opened early, and come first.
const MAX_DESCRIPTORS: usize = 4096;

/// Bytes of a socket table read at most. Listening internet sockets stand first in theirs.
const MAX_TABLE: u64 = 4 * 1024 * 1024;

/// Bytes of /proc/PID/stat that matter; its longest are some hundreds.
const MAX_STAT: u64 = 4096;

/// `TCP_LISTEN` (include/net/tcp_states.h), as /proc/net/tcp writes it.
const LISTENING: &str = "0A";

/// `__SO_ACCEPTCON` (include/uapi/linux/net.h), in the flags of /proc/net/unix.
const ACCEPTS_CONNECTIONS: u32 = 0x10000;

/// A process that has a listening socket of the target open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharer {
    pub pid: u32,
    pub name: String,
    /// When it started, in ticks since boot: another process may get its number.
    pub start_ticks: u64,
}

impl Sharer {
    /// Whether it is the same process, whatever it is called by now.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.pid, self.start_ticks) == (other.pid, other.start_ticks)
    }
}

/// All of them, by their numbers, and what could not be had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sharers {
    pub processes: Vec<Sharer>,
    pub gaps: Vec<Gap>,
}

/// Who shares the listening sockets of a process; nobody where it has none.
pub fn sharers(pid: u32) -> Sharers {
    let own = sockets(pid);
    let listening: BTreeSet<u64> = listening(pid).intersection(&own).copied().collect();
    let mut found = Sharers::default();
    let Some(target) = stat(pid).filter(|_| !listening.is_empty()) else { return found };
    let shares = |candidate: u32| !sockets(candidate).is_disjoint(&listening);
    let mut unread = false;
    for (number, candidate) in processes(&mut unread) {
        let is_family =
            number == pid || candidate.parent == pid || candidate.parent == target.parent;
        if !is_family || !shares(number) {
            continue;
        }
        if found.processes.len() == MAX_ACCEPTORS as usize {
            let why = format!("more than {MAX_ACCEPTORS} processes share the listening sockets");
            found.gaps.push(Gap::new("accepts", why));
            break;
        }
        let Stat { name, start_ticks, .. } = candidate;
        found.processes.push(Sharer { pid: number, name, start_ticks });
    }
    if unread {
        let why = format!("only {MAX_PROCESSES} processes were looked at");
        found.gaps.push(Gap::new("accepts", why));
    }
    found
}

/// All processes, as far as there is a bound; sets `unread` where there are more.
fn processes(unread: &mut bool) -> Vec<(u32, Stat)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut numbers: Vec<u32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    *unread = numbers.len() > MAX_PROCESSES;
    numbers.truncate(MAX_PROCESSES);
    numbers.sort_unstable();
    numbers.into_iter().filter_map(|number| Some((number, stat(number)?))).collect()
}

fn stat(pid: u32) -> Option<Stat> {
    let mut bytes = Vec::new();
    let file = fs::File::open(format!("/proc/{pid}/stat")).ok()?;
    file.take(MAX_STAT).read_to_end(&mut bytes).ok()?;
    Stat::parse(&String::from_utf8_lossy(&bytes))
}

/// The sockets that a process has open, as inodes.
fn sockets(pid: u32) -> BTreeSet<u64> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeSet::new() };
    let inode = |entry: fs::DirEntry| {
        let link = fs::read_link(entry.path()).ok()?;
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    entries.flatten().take(MAX_DESCRIPTORS).filter_map(inode).collect()
}

/// The listening sockets of a process's network, as inodes.
fn listening(pid: u32) -> BTreeSet<u64> {
    let mut inodes = BTreeSet::new();
    let table = |name: &str| {
        let file = fs::File::open(format!("/proc/{pid}/net/{name}")).ok()?;
        Some(BufReader::new(file.take(MAX_TABLE)).lines().map_while(Result::ok).skip(1))
    };
    for name in ["tcp", "tcp6"] {
        inodes.extend(table(name).into_iter().flatten().map_while(|line| internet(&line)));
    }
    inodes.extend(table("unix").into_iter().flatten().filter_map(|line| unix(&line)));
    inodes
}

/// The inode in a line of /proc/net/tcp about a listening socket.
fn internet(line: &str) -> Option<u64> {
    let mut fields = line.split_whitespace();
    (fields.nth(3)? == LISTENING).then(|| fields.nth(5)?.parse().ok()).flatten()
}

/// The inode in a line of /proc/net/unix about a listening socket.
fn unix(line: &str) -> Option<u64> {
    let mut fields = line.split_whitespace();
    let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
    (flags & ACCEPTS_CONNECTIONS != 0).then(|| fields.nth(2)?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::{internet, listening, sharers, sockets, unix};

    /// Listening sockets are told from connections in both kinds of table.
    #[test]
    fn lines_of_tables() {
        let line = |state: &str| {
            format!(
                " 0: 0100007F:0050 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 11 1"
            )
        };
        assert_eq!(internet(&line("0A")), Some(11));
        assert_eq!(internet(&line("01")), None);
        assert_eq!(internet("torn"), None);
        assert_eq!(unix("0: 00000002 00000000 00010000 0001 01 77 /run/x.sock"), Some(77));
        assert_eq!(unix("0: 00000003 00000000 00000000 0001 03 78"), None);
    }

    /// A listener of this very process is found, among its sockets and among those that listen, of
    /// either kind; with it the process itself, and a child that has inherited nothing is left out.
    #[test]
    fn own_listener() {
        let me = std::process::id();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let path = std::env::temp_dir().join(format!("listeners-{me}"));
        let local = UnixListener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(listening(me).intersection(&sockets(me)).count() >= 2);
        let mut child = Command::new("sleep").arg("9").spawn().unwrap();
        let found: Vec<u32> = sharers(me).processes.iter().map(|sharer| sharer.pid).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&me) && !found.contains(&child.id()), "{found:?}");
        drop((listener, local));
    }
}
