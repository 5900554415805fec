//! The listening sockets of a process, to how many connections wait there to be accepted.

use std::collections::BTreeSet;
use std::fs;

use super::listeners;
use super::sockets::{self, Internet, State};
use super::unix_queues::{self, Queued};
use crate::gap::Gap;
use crate::turn::Queue;

/// Descriptors of the process that are looked at: `RLIMIT_NOFILE` is rarely set beyond.
const MAX_DESCRIPTORS: usize = 65_536;

/// Listening sockets whose queues are told.
const MAX_QUEUES: usize = 16;

/// The queues that are not empty now, and what of them could not be had.
pub fn waiting(pid: u32) -> (Vec<Queue>, Option<Gap>) {
    let tables: Vec<String> =
        ["tcp", "tcp6"].iter().filter_map(|name| sockets::table(pid, name)).collect();
    let queued = tables.iter().flat_map(|table| sockets::internet(table)).filter(is_queued);
    let mut queued: Vec<Queued> = queued.map(Queued::from).collect();
    let missing = unix_queues::queued(pid).map(|unix| queued.extend(unix)).err();
    if queued.is_empty() && missing.is_none() {
        return (Vec::new(), None);
    }
    let own = inodes(pid);
    queued.retain(|socket| own.contains(&socket.inode));
    let queue = |socket: Queued| Queue { address: socket.address, waiting: socket.waiting };
    let queues = queued.into_iter().take(MAX_QUEUES).map(queue).collect();
    let missing = missing.filter(|_| has_unix_listener(pid, &own));
    (queues, missing.map(|why| Gap::new("connections that wait at unix sockets", why)))
}

impl From<Internet> for Queued {
    fn from(socket: Internet) -> Self {
        let Internet { local: address, waiting, inode, .. } = socket;
        Self { inode, address, waiting }
    }
}

fn has_unix_listener(pid: u32, own: &BTreeSet<String>) -> bool {
    let table = sockets::table(pid, "unix").unwrap_or_default();
    let mut listening = table.lines().skip(1).filter_map(listeners::unix);
    listening.any(|inode| own.contains(&inode.to_string()))
}

/// Of a listening socket, the bytes to read are connections to accept (`sk_ack_backlog`).
fn is_queued(socket: &Internet) -> bool {
    socket.state == State::LISTEN && socket.waiting > 0
}

/// The process's own sockets.
fn inodes(pid: u32) -> BTreeSet<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let inode = |entry: fs::DirEntry| {
        let link = fs::read_link(entry.path()).ok()?;
        Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
    };
    entries.take(MAX_DESCRIPTORS).filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    use super::waiting;
    use crate::turn::Queue;

    /// Connections that nobody accepts are counted at the address that they came to, until somebody does.
    #[test]
    fn counted_until_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let count = || {
            let (queues, _) = waiting(std::process::id());
            queues.into_iter().find(|queue| queue.address == there.to_string()).map(|it| it.waiting)
        };
        assert_eq!(count(), None);
        let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(there).unwrap()).collect();
        assert_eq!(count(), Some(3));
        let _accepted = listener.accept().unwrap();
        assert_eq!(count(), Some(2));
        drop(clients);
    }

    /// The same at a unix socket, or it is said why not: a kernel may lack the means.
    #[test]
    fn counted_at_unix_sockets() {
        let name = format!("stalltrace-{}", std::process::id());
        let there = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&there).unwrap();
        let count = || {
            let (queues, gap) = waiting(std::process::id());
            let is_it = |queue: &Queue| queue.address == format!("unix @{name}");
            (queues.into_iter().find(is_it).map(|it| it.waiting), gap)
        };
        let _clients: Vec<_> = (0..3).map(|_| UnixStream::connect_addr(&there).unwrap()).collect();
        let (before, gap) = count();
        assert!(before == Some(3) || gap.is_some(), "{before:?}");
        let _accepted = listener.accept().unwrap();
        let (after, gap) = count();
        assert!(after == Some(2) || gap.is_some(), "{after:?}");
    }
}
