//! The connection behind gRPC's completion queue: the one that gRPC's own epoll instance watches.
//!
//! The thread that called gRPC waits at an instance or an eventfd that tells nothing. Another thread of gRPC's has
//! the connections in an epoll instance, which /proc lists, each in gRPC's own manner.

use std::collections::BTreeMap;

use super::listing::listed;
use super::mounts;
use super::sockets::{self, Internet, TcpState};
use crate::call::{Descriptor, Kind};

/// Descriptors of the process looked through for epoll instances.
const MAX_OPEN: usize = 4096;

/// Bytes of what one instance watches: about 100,000 descriptors.
const MAX_INFO: u64 = 8 * 1024 * 1024;

/// `EPOLLIN`, `EPOLLOUT` and `EPOLLET`, which gRPC asks for, of those and of `EPOLLRDHUP`, with which others
/// ask as well (include/uapi/linux/eventpoll.h).
const ASKED: u64 = 0x1 | 0x4 | 1 << 31;
const TELLING: u64 = ASKED | 0x2000;

/// The only connection that gRPC has opened in this process; or why it cannot be told.
pub fn connection(pid: u32) -> Result<Descriptor, String> {
    let watched = watched(pid)?;
    let tables = ["tcp", "tcp6"].map(|name| sockets::table(pid, name).unwrap_or_default());
    let all: Vec<Internet> = tables.iter().flat_map(|table| sockets::internet(table)).collect();
    only(&watched, &all)
}

/// What gRPC watches: descriptors by inode.
fn watched(pid: u32) -> Result<BTreeMap<String, u32>, String> {
    let all = listed(pid, MAX_OPEN)?;
    let instances = all.filter(|one| one.link.as_os_str() == "anon_inode:[eventpoll]");
    let text = |number: u32| mounts::read(&format!("/proc/{pid}/fdinfo/{number}"), MAX_INFO);
    let texts = instances.filter_map(|one| text(one.number));
    Ok(texts.flat_map(|text| text.lines().filter_map(line).collect::<Vec<_>>()).collect())
}

/// `tfd:       11 events: 8000001d data:     7fc580004250  pos:0 ino:34b25 sdev:9`
fn line(text: &str) -> Option<(String, u32)> {
    let rest = text.strip_prefix("tfd:")?;
    let mut words = rest.split_whitespace();
    let number = words.next()?.parse().ok()?;
    let events = u64::from_str_radix(words.nth(1)?, 16).ok()?;
    let inode = words.find_map(|word| word.strip_prefix("ino:"))?;
    let inode = u64::from_str_radix(inode, 16).ok()?;
    (events & TELLING == ASKED).then(|| (inode.to_string(), number))
}

fn only(watched: &BTreeMap<String, u32>, all: &[Internet]) -> Result<Descriptor, String> {
    let port = |address: &str| address.rsplit_once(':').map(|(_, port)| port.to_owned());
    let is_served = |socket: &&Internet| {
        let listeners = all.iter().filter(|other| other.state == TcpState::LISTEN);
        listeners.map(|it| port(&it.local)).any(|served| served == port(&socket.local))
    };
    // What others have opened to this process is no answer's way.
    let opened = all.iter().filter(|it| it.peer.is_some() && watched.contains_key(&it.inode));
    let opened: Vec<_> = opened.filter(|socket| !is_served(socket)).collect();
    let [Internet { local, peer: Some(peer), state, inode, .. }] = opened[..] else {
        return Err(match opened.len() {
            0 => "no connection of TCP is known to be gRPC's".to_owned(),
            count => format!("gRPC has {count} connections, and it may wait for any"),
        });
    };
    let number = watched.get(inode).copied().unwrap_or_default();
    Ok(Descriptor {
        local: Some(local.clone()),
        peer: Some(peer.clone()),
        state: state.name(),
        link: format!("socket:[{inode}]"),
        ..Descriptor::new(number, Kind::Socket, &format!("tcp {peer}"))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Internet, TcpState, line, only};

    fn socket(local: &str, peer: Option<&str>, state: u8, inode: &str) -> Internet {
        let (local, inode, peer) = (local.to_owned(), inode.to_owned(), peer.map(str::to_owned));
        Internet { local, peer, state: TcpState::new(state), waiting: 0, inode }
    }

    /// As gRPC 1.85 and asyncio have their descriptors in epoll instances, on Linux 6.18; and tokio.
    #[test]
    fn lines_of_instances() {
        let grpc = "tfd:       11 events: 8000001d data:     7fc580004250  pos:0 ino:34b25 sdev:9";
        assert_eq!(line(grpc), Some(("215845".to_owned(), 11)));
        let wakeup = "tfd:        6 events: 80000019 data:     55e231cc2020  pos:0 ino:40e sdev:10";
        let asyncio =
            "tfd:        8 events:       19 data:                8  pos:0 ino:34b21 sdev:9";
        let tokio = "tfd:        9 events: 8000201d data:              9  pos:0 ino:34b26 sdev:9";
        for text in [wakeup, asyncio, tokio, "pos:	0", "tfd: torn"] {
            assert_eq!(line(text), None, "{text}");
        }
    }

    /// The only connection that gRPC has opened itself is told: clients of a server are none, and of
    /// several it may be any.
    #[test]
    fn one_connection() {
        let watched = BTreeMap::from([("7".to_owned(), 11), ("8".to_owned(), 12)]);
        let of = |all: &[Internet]| only(&watched, all);
        let out = |inode| socket("127.0.0.1:50812", Some("127.0.0.1:50051"), 1, inode);
        let served = socket("127.0.0.1:8080", Some("127.0.0.1:40000"), 1, "8");
        let listener = socket("127.0.0.1:8080", None, 10, "9");
        let found = of(&[listener, served, out("7"), out("99")]).unwrap();
        assert_eq!((found.number, found.text.as_str()), (11, "tcp 127.0.0.1:50051"));
        assert_eq!((found.link.as_str(), found.state), ("socket:[7]", Some("established")));
        assert!(of(&[out("7"), out("8")]).unwrap_err().contains("2 connections"));
        assert!(of(&[out("99")]).unwrap_err().starts_with("no connection"));
    }
}
