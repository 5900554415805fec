//! The listening sockets of a process, to how many connections wait there to be accepted.

use std::collections::BTreeSet;

use super::diagnosis::{Diagnosis, Listening};
use super::listeners;
use super::listing::{Unlisted, listed};
use super::sockets::{self, Internet, TcpState};
use crate::gap::Gap;

/// Descriptors of the process that are looked at: `RLIMIT_NOFILE` is rarely set beyond.
const MAX_DESCRIPTORS: usize = 65_536;

/// Listening sockets whose queues are told.
const MAX_QUEUES: usize = 16;

/// Connections that wait at one listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptQueue {
    pub address: String,
    pub waiting: u64,
}

/// The queues that are not empty now, and what of them could not be had.
pub fn waiting(pid: u32) -> (Vec<AcceptQueue>, Option<Gap>) {
    let network = Diagnosis::of(pid);
    let ask = |what: fn(&Diagnosis) -> Result<Vec<Listening>, String>| match &network {
        Ok(network) => what(network),
        Err(why) => Err(why.clone()),
    };
    let mut queued = ask(Diagnosis::tcp_listeners).unwrap_or_else(|_| in_tables(pid));
    let missing = ask(Diagnosis::unix_listeners).map(|unix| queued.extend(unix)).err();
    queued.retain(|socket| socket.waiting > 0);
    if queued.is_empty() && missing.is_none() {
        return (Vec::new(), None);
    }
    let own = match inodes(pid) {
        Ok(own) => own,
        Err(why) => return (Vec::new(), Some(Gap::new("connections that wait", why))),
    };
    queued.retain(|socket| own.contains(&socket.inode));
    let queue =
        |socket: Listening| AcceptQueue { address: socket.address, waiting: socket.waiting };
    let queues = queued.into_iter().take(MAX_QUEUES).map(queue).collect();
    let missing = missing.filter(|_| has_unix_listener(pid, &own));
    (queues, missing.map(|why| Gap::new("connections that wait at unix sockets", why)))
}

/// The TCP sockets that listen, by the kernel's tables.
fn in_tables(pid: u32) -> Vec<Listening> {
    // Of a listening socket, the bytes to read are connections to accept (`sk_ack_backlog`).
    let listening = |socket: Internet| {
        let Internet { local: address, waiting, inode, state, .. } = socket;
        let inode = inode.parse().ok().filter(|_| state == TcpState::LISTEN)?;
        Some(Listening { inode, address, waiting })
    };
    let tables = ["tcp", "tcp6"].iter().filter_map(|name| sockets::table(pid, name));
    tables
        .flat_map(|table| sockets::internet(&table).filter_map(listening).collect::<Vec<_>>())
        .collect()
}

fn has_unix_listener(pid: u32, own: &BTreeSet<u64>) -> bool {
    let table = sockets::table(pid, "unix").unwrap_or_default();
    table.lines().skip(1).filter_map(listeners::unix).any(|inode| own.contains(&inode))
}

/// The process's own sockets.
fn inodes(pid: u32) -> Result<BTreeSet<u64>, Unlisted> {
    let all = listed(pid, MAX_DESCRIPTORS)?;
    Ok(all.filter_map(|one| one.socket()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    use super::{AcceptQueue, waiting};

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
            let is_it = |queue: &AcceptQueue| queue.address == format!("unix @{name}");
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
