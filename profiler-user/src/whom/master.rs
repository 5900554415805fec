//! A process to the workers that serve for it, where it does nothing itself but start them and wait.
//!
//! Masters are told by what they do, not by their names. A master's own waits are about signals, pipes and
//! timers: none of its threads waits for a connection or on one, neither directly nor by an epoll instance. Its
//! workers have something to wait on, or share its listening sockets.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use profiler_ebpf::record::Registers;

use crate::process::arguments;
use crate::process::listeners::listening;
use crate::process::listing::{Listed, listed};
use crate::process::live::LiveMemory;
use crate::process::peers::{children, peer};
use crate::process::target::text;
use crate::syscall;

/// Workers looked for below a process, in how many generations: a shell starts a master, which starts them.
const MAX_WORKERS: usize = 256;
const MAX_GENERATIONS: usize = 3;

/// Descriptors of one process looked at, and threads. A server with more is at work.
const MAX_DESCRIPTORS: usize = 4096;
const MAX_THREADS: usize = 64;

/// A thread that is in no system call is asked again: a master wakes up for moments only.
const LOOKS: usize = 4;
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// A process that serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    pub pid: u32,
    pub name: String,
    pub command: String,
    /// What it waits on for its work.
    pub by: &'static str,
}

/// The workers of a process that only waits for them; none of one that serves itself, or has none.
pub fn workers(pid: u32) -> Vec<Worker> {
    let mut found = Vec::new();
    if children(pid).is_empty() {
        return found;
    }
    let connections = Connections::of(pid);
    below(pid, &connections, MAX_GENERATIONS, &mut found);
    found
}

fn below(pid: u32, connections: &Connections, generations: usize, found: &mut Vec<Worker>) {
    let Some(own) = Opened::of(pid) else { return };
    if own.io_uring || generations == 0 {
        return;
    }
    let mut workers = Vec::new();
    let mut shared = BTreeSet::new();
    for child in children(pid).into_iter().take(MAX_WORKERS) {
        let Some(opened) = Opened::of(child) else { continue };
        let before = workers.len();
        below(child, connections, generations - 1, &mut workers);
        let is_master = workers.len() > before;
        let both = own.sockets.intersection(&opened.sockets).copied();
        shared.extend(both.filter(|socket| connections.listening.contains(socket)));
        if is_master {
            continue;
        }
        let by = match opened {
            Opened { ref epoll, .. } if !epoll.is_empty() => "epoll",
            Opened { io_uring: true, .. } => "io_uring",
            _ if opened.sockets.iter().any(|socket| connections.listening.contains(socket)) => {
                "poll or accept"
            }
            _ => continue,
        };
        let who = peer(child);
        let name = who.name.unwrap_or_default();
        workers.push(Worker { pid: child, name, command: who.command.unwrap_or_default(), by });
    }
    // A process with an epoll instance of its own may run a loop for whatever it likes.
    let may_be_master = own.epoll.is_empty() || !shared.is_empty();
    if may_be_master && !workers.is_empty() && !serves(pid, &own, connections, &shared) {
        workers.truncate(MAX_WORKERS.saturating_sub(found.len()));
        found.append(&mut workers);
    }
}

/// The sockets of a network that connections come by, as inodes.
#[derive(Debug, Default)]
struct Connections {
    listening: BTreeSet<u64>,
    internet: BTreeSet<u64>,
}

impl Connections {
    fn of(pid: u32) -> Self {
        let mut internet = BTreeSet::new();
        for name in ["tcp", "tcp6", "udp", "udp6"] {
            let table = text(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
            // The inode is the tenth field of each (net/ipv4/tcp_ipv4.c, net/ipv4/udp.c).
            let inode = |line: &str| line.split_whitespace().nth(9)?.parse::<u64>().ok();
            internet.extend(table.lines().skip(1).filter_map(inode));
        }
        Self { listening: listening(pid), internet }
    }

    /// Whether it is a socket that work comes by to a process which shares these with its workers. A master may
    /// listen on a unix socket of its own for who controls it.
    fn bring_work(&self, socket: u64, shared: &BTreeSet<u64>) -> bool {
        let is_service = match () {
            () if shared.is_empty() => self.listening.contains(&socket),
            () if shared.is_disjoint(&self.internet) => shared.contains(&socket),
            () => false,
        };
        is_service || self.internet.contains(&socket)
    }
}

/// What a process has open that it could serve by.
#[derive(Debug, Default)]
struct Opened {
    sockets: BTreeSet<u64>,
    /// Descriptors of epoll instances.
    epoll: Vec<u32>,
    io_uring: bool,
}

impl Opened {
    /// Nothing where its descriptors cannot be listed.
    fn of(pid: u32) -> Option<Self> {
        let mut opened = Self::default();
        for one in listed(pid, MAX_DESCRIPTORS).ok()? {
            opened.sockets.extend(inode(&one));
            let link = one.link.to_string_lossy();
            if link.contains("[eventpoll]") {
                opened.epoll.push(one.number);
            }
            opened.io_uring |= link.contains("[io_uring]");
        }
        Some(opened)
    }
}

fn inode(one: &Listed) -> Option<u64> {
    one.socket()?.parse().ok()
}

/// Whether the process itself waits for connections or on them; also where that cannot be known.
fn serves(pid: u32, own: &Opened, connections: &Connections, shared: &BTreeSet<u64>) -> bool {
    let is_connection = |descriptor: u32| {
        let link = fs::read_link(format!("/proc/{pid}/fd/{descriptor}"));
        let one = link.ok().map(|link| Listed { number: descriptor, link });
        one.as_ref().and_then(inode).is_some_and(|socket| connections.bring_work(socket, shared))
    };
    own.epoll.iter().flat_map(|instance| watched(pid, *instance)).any(is_connection)
        || threads(pid).into_iter().any(|tid| match waited_for(pid, tid) {
            Some(descriptors) => descriptors.into_iter().any(is_connection),
            None => true,
        })
}

/// The descriptors that an epoll instance watches.
fn watched(pid: u32, instance: u32) -> Vec<u32> {
    let detail = text(format!("/proc/{pid}/fdinfo/{instance}")).unwrap_or_default();
    let number = |line: &str| line.strip_prefix("tfd:")?.split_whitespace().next()?.parse().ok();
    detail.lines().filter_map(number).take(MAX_DESCRIPTORS).collect()
}

fn threads(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"));
    let entries = entries.into_iter().flatten().flatten().take(MAX_THREADS);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The descriptors that a thread waits for in its system call; `None` where it is at work.
fn waited_for(pid: u32, tid: u32) -> Option<Vec<u32>> {
    for look in 0..LOOKS {
        if look > 0 {
            std::thread::sleep(BETWEEN_LOOKS);
        }
        // A thread that has exited waits for nothing.
        let Some(line) = text(format!("/proc/{pid}/task/{tid}/syscall")) else {
            return Some(Vec::new());
        };
        let Some(registers) = registers(&line) else { continue };
        let Some(name) = syscall::name(registers.syscall) else {
            // Stopped outside of any call.
            return Some(Vec::new());
        };
        let [first, ..] = registers.args;
        return Some(match name {
            "accept" | "accept4" | "recvfrom" | "recvmsg" | "read" | "epoll_wait" => {
                u32::try_from(first as i32).into_iter().collect()
            }
            _ => arguments::read(&LiveMemory::new(pid), name, &registers, 0).polled,
        });
    }
    None
}

/// A line of /proc/PID/syscall: the number, six arguments, stack pointer, instruction; nothing of one that runs.
fn registers(line: &str) -> Option<Registers> {
    let mut fields = line.split_whitespace();
    let syscall = fields.next()?.parse().ok()?;
    let mut registers = Registers { syscall, ..Registers::default() };
    for argument in &mut registers.args {
        let field = fields.next().and_then(|field| field.strip_prefix("0x"));
        *argument = u64::from_str_radix(field.unwrap_or("0"), 16).ok()?;
    }
    Some(registers)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Connections, registers, workers};

    /// A thread in a call shows its number and arguments, one that runs shows nothing.
    #[test]
    fn calls() {
        let line = "7 0x7ffc0010 0x2 0xffffffffffffffff 0x0 0x0 0x0 0x7ffc0000 0x7f0000001234\n";
        let found = registers(line).unwrap();
        assert_eq!((found.syscall, found.args), (7, [0x7ffc_0010, 2, u64::MAX, 0, 0, 0]));
        assert_eq!(registers("running\n"), None);
        assert_eq!(registers(""), None);
        // Blocked, but in no call: a page fault.
        assert_eq!(registers("-1 0x7ffc0000 0x7f0000001234\n").map(|it| it.syscall), Some(-1));
    }

    /// Of sockets that a master shares with its workers those of the internet are what they serve by: a unix
    /// socket of its own is for who controls it. Without shared ones, any that it listens on is work.
    #[test]
    fn what_brings_work() {
        let set = |sockets: &[u64]| sockets.iter().copied().collect::<BTreeSet<u64>>();
        let (tcp, control, client) = (1, 2, 3);
        let connections =
            Connections { listening: set(&[tcp, control]), internet: set(&[tcp, client]) };
        let table = [
            (tcp, &[][..], true),
            (control, &[][..], true),
            (client, &[][..], true),
            (9, &[][..], false),
            (tcp, &[tcp, control][..], true),
            (control, &[tcp][..], false),
            (control, &[tcp, control][..], false),
            (control, &[control][..], true),
            (client, &[control][..], true),
        ];
        for (socket, shared, expected) in table {
            assert_eq!(
                connections.bring_work(socket, &set(shared)),
                expected,
                "{socket} {shared:?}"
            );
        }
    }

    /// Who has no children is nobody's master, and neither is who is not there.
    #[test]
    fn nobody() {
        let mut sleeper = std::process::Command::new("sleep").arg("9").spawn().unwrap();
        assert_eq!(workers(sleeper.id()), []);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert_eq!(workers(0x7fff_ffff), []);
    }
}
