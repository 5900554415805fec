//! A process to those of its family that have one of its listening sockets open: they share its connections.
//!
//! The family is the process itself, its children, and its parent's other children: workers of a
//! pre-forking server. The parent is not among them: it holds the socket and leaves it to its workers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use profiler_ebpf::limits::MAX_ACCEPTORS;

use super::diagnosis::Diagnosis;
use super::listing::{Unlisted, listed};
use super::peers::children;
use super::target::Stat;
use crate::gap::Gap;

/// Everything is looked at in so many searches at first, for servers open their sockets and start their
/// workers one after the other; later in one search of so many.
const FIRST_SEARCHES: u32 = 3;
const WHOLE_SEARCH_EVERY: u32 = 12;

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

/// Searches for them again and again, and mostly looks only at what has changed: to list a server's
/// descriptors takes about 5 µs for each connection that it has.
#[derive(Debug)]
pub struct Search {
    pid: u32,
    searches: u32,
    /// The target's listening sockets.
    listening: Vec<Held>,
    looked_at: BTreeMap<u32, Seen>,
}

/// A descriptor and the inode of the socket that it is.
#[derive(Debug, Clone, Copy)]
struct Held {
    descriptor: u32,
    inode: u64,
}

/// What was found in a process of the family.
#[derive(Debug, Clone, Copy)]
struct Seen {
    start_ticks: u64,
    shared: Option<Held>,
    looks: u32,
}

impl Search {
    pub fn new(pid: u32) -> Self {
        Self { pid, searches: 0, listening: Vec::new(), looked_at: BTreeMap::new() }
    }

    /// Who shares the target's listening sockets now; nobody where it has none.
    pub fn run(&mut self) -> Sharers {
        let mut found = Sharers::default();
        let is_whole =
            self.searches < FIRST_SEARCHES || self.searches.is_multiple_of(WHOLE_SEARCH_EVERY);
        self.searches += 1;
        if is_whole || !self.listening.iter().all(|held| held.is_still(self.pid)) {
            let listening = listening(self.pid);
            match sockets(self.pid) {
                Ok(own) => {
                    self.listening = own.filter(|held| listening.contains(&held.inode)).collect();
                }
                // Once it has exited, it has none.
                Err(why) if why.is_forbidden => found.gaps.push(Gap::new("accepts", why)),
                Err(_) => self.listening.clear(),
            }
            self.looked_at.values_mut().for_each(|seen| (seen.shared, seen.looks) = (None, 0));
        }
        let Some(target) = stat(self.pid).filter(|_| !self.listening.is_empty()) else {
            return found;
        };
        let candidates = match self.family(target.parent) {
            Ok(candidates) => candidates,
            Err(gap) => {
                found.gaps.push(gap);
                return found;
            }
        };
        let before = std::mem::take(&mut self.looked_at);
        for (number, candidate) in candidates {
            let seen = self.look(number, candidate.start_ticks, before.get(&number));
            self.looked_at.insert(number, seen);
            if seen.shared.is_none() {
                continue;
            }
            if found.processes.len() == MAX_ACCEPTORS as usize {
                let why =
                    format!("more than {MAX_ACCEPTORS} processes share the listening sockets");
                found.gaps.push(Gap::new("accepts", why));
                break;
            }
            let Stat { name, start_ticks, .. } = candidate;
            found.processes.push(Sharer { pid: number, name, start_ticks });
        }
        found
    }

    /// The target, its children, and its parent's other children, by their numbers.
    fn family(&self, parent: u32) -> Result<Vec<(u32, Stat)>, Gap> {
        let mut numbers = BTreeSet::from([self.pid]);
        match has_children_files() {
            true => {
                numbers.extend(children(self.pid));
                numbers.extend(children(parent));
                // A list of children may lack some where one of them exits while it is read.
                numbers.extend(self.looked_at.keys());
            }
            false => numbers.extend(all_processes()),
        }
        if numbers.len() > MAX_PROCESSES {
            let why = format!("more than {MAX_PROCESSES} processes to look at");
            return Err(Gap::new("accepts", why));
        }
        let is_family = |number: u32, stat: &Stat| {
            number == self.pid || stat.parent == self.pid || stat.parent == parent
        };
        let known = numbers.into_iter().filter_map(|number| Some((number, stat(number)?)));
        Ok(known.filter(|(number, stat)| is_family(*number, stat)).collect())
    }

    fn look(&self, pid: u32, start_ticks: u64, before: Option<&Seen>) -> Seen {
        let before = before.filter(|seen| seen.start_ticks == start_ticks);
        let looks = before.map_or(0, |seen| seen.looks);
        let is_known = match before {
            Some(Seen { shared: Some(held), .. }) => held.is_still(pid),
            // Some servers hand their workers the socket only once these have started.
            Some(Seen { shared: None, .. }) => looks >= FIRST_SEARCHES,
            None => false,
        };
        if let Some(seen) = before.filter(|_| is_known) {
            return *seen;
        }
        let is_shared = |held: &Held| self.listening.iter().any(|own| own.inode == held.inode);
        // Who may list the target's may list those of its family, or they are another user's.
        let shared = sockets(pid).ok().and_then(|mut all| all.find(is_shared));
        Seen { start_ticks, shared, looks: looks + 1 }
    }
}

impl Held {
    /// Whether the descriptor is still that socket. One system call.
    fn is_still(&self, pid: u32) -> bool {
        let link = fs::read_link(format!("/proc/{pid}/fd/{}", self.descriptor));
        link.is_ok_and(|link| inode(&link) == Some(self.inode))
    }
}

/// Whether the kernel lists children (`CONFIG_PROC_CHILDREN`, which distributions' kernels have).
fn has_children_files() -> bool {
    Path::new("/proc/thread-self/children").exists()
}

fn all_processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn stat(pid: u32) -> Option<Stat> {
    let mut bytes = Vec::with_capacity(MAX_STAT as usize);
    let file = fs::File::open(format!("/proc/{pid}/stat")).ok()?;
    file.take(MAX_STAT).read_to_end(&mut bytes).ok()?;
    Stat::parse(&String::from_utf8_lossy(&bytes))
}

/// The sockets that a process has open.
fn sockets(pid: u32) -> Result<impl Iterator<Item = Held>, Unlisted> {
    let all = listed(pid, MAX_DESCRIPTORS)?;
    Ok(all.filter_map(|one| {
        Some(Held { descriptor: one.number, inode: one.socket()?.parse().ok()? })
    }))
}

/// The inode in `socket:[4711]`.
fn inode(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The listening sockets of a process's network, as inodes.
pub(crate) fn listening(pid: u32) -> BTreeSet<u64> {
    let asked = Diagnosis::of(pid).and_then(|network| {
        let all = [network.tcp_listeners()?, network.unix_listeners()?];
        Ok(all.iter().flatten().map(|socket| socket.inode).collect())
    });
    asked.unwrap_or_else(|_| in_tables(pid))
}

/// The same by the kernel's tables.
fn in_tables(pid: u32) -> BTreeSet<u64> {
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
pub(super) fn unix(line: &str) -> Option<u64> {
    let mut fields = line.split_whitespace();
    let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
    (flags & ACCEPTS_CONNECTIONS != 0).then(|| fields.nth(2)?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixListener;
    use std::process::{Command, Stdio};

    use super::{Held, Search, in_tables, internet, listening, sockets, unix};

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
        for listening in [listening(me), in_tables(me)] {
            let listens = |held: &Held| listening.contains(&held.inode);
            assert!(sockets(me).unwrap().filter(listens).count() >= 2);
        }
        let mut child = Command::new("sleep").arg("9").spawn().unwrap();
        let found = found(&mut Search::new(me));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&me) && !found.contains(&child.id()), "{found:?}");
        drop((listener, local));
    }

    fn found(search: &mut Search) -> Vec<u32> {
        search.run().processes.iter().map(|sharer| sharer.pid).collect()
    }

    /// A worker that starts later is found by a search that looks only at what is new, is not looked at
    /// again while it keeps the socket, and is gone with the search after its end.
    #[test]
    fn workers_come_and_go() {
        let me = std::process::id();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut search = Search::new(me);
        for _ in 0..super::FIRST_SEARCHES {
            assert!(found(&mut search).contains(&me));
        }
        let inherited = listener.try_clone().unwrap();
        let mut worker =
            Command::new("sleep").arg("9").stdin(OwnedFd::from(inherited)).spawn().unwrap();
        let with = [found(&mut search), found(&mut search)];
        let looks = search.looked_at.get(&worker.id()).map(|seen| seen.looks);
        worker.kill().unwrap();
        worker.wait().unwrap();
        assert!(with.iter().all(|found| found.contains(&worker.id())), "{with:?}");
        assert_eq!(looks, Some(1));
        assert!(!found(&mut search).contains(&worker.id()));
    }

    /// Nobody shares the sockets of a process that has none, or is gone.
    #[test]
    fn no_listener() {
        let mut server = Command::new("sleep").arg("9").stdin(Stdio::null()).spawn().unwrap();
        let mut search = Search::new(server.id());
        assert!(found(&mut search).is_empty());
        server.kill().unwrap();
        server.wait().unwrap();
        assert!(found(&mut search).is_empty());
    }
}
