//! The listening sockets of a process, to how many connections wait there to be accepted.

use std::collections::BTreeSet;
use std::fs;

use super::sockets::{self, Internet, State};
use crate::turn::Queue;

/// Descriptors of the process that are looked at: `RLIMIT_NOFILE` is rarely set beyond.
const MAX_DESCRIPTORS: usize = 65_536;

/// Listening sockets whose queues are told.
const MAX_QUEUES: usize = 16;

/// The queues that are not empty now. Connections over unix sockets are in no table.
pub fn waiting(pid: u32) -> Vec<Queue> {
    let tables: Vec<String> =
        ["tcp", "tcp6"].iter().filter_map(|name| sockets::table(pid, name)).collect();
    let mut queued: Vec<Internet> =
        tables.iter().flat_map(|table| sockets::internet(table)).filter(is_queued).collect();
    if queued.is_empty() {
        return Vec::new();
    }
    let own = inodes(pid);
    queued.retain(|socket| own.contains(&socket.inode));
    let queue = |socket: Internet| Queue { address: socket.local, waiting: socket.waiting };
    queued.into_iter().take(MAX_QUEUES).map(queue).collect()
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

    use super::waiting;

    /// Connections that nobody accepts are counted at the address that they came to, until somebody does.
    #[test]
    fn counted_until_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let count = || {
            let queues = waiting(std::process::id());
            queues.into_iter().find(|queue| queue.address == there.to_string()).map(|it| it.waiting)
        };
        assert_eq!(count(), None);
        let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(there).unwrap()).collect();
        assert_eq!(count(), Some(3));
        let _accepted = listener.accept().unwrap();
        assert_eq!(count(), Some(2));
        drop(clients);
    }
}
