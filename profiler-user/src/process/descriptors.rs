//! A file descriptor of the target to what it is for a reader: a path, a socket's ends, a pipe.

use std::fs;

use std::net::SocketAddr;

use super::arguments::printable;
use super::borrowed::{self, Ends};
use super::diagnosis::{Diagnosis, Protocol};
use super::listing::Unlisted;
use super::mounts::DescriptorInfo;
use super::peers::{Access, peer, with_link};
use super::sockets::{self, TABLES, TcpState};
use crate::call::{Descriptor, Kind, Peer};

/// Terminals as Linux names them.
const TERMINALS: [&str; 3] = ["/dev/pts/", "/dev/tty", "/dev/console"];

/// What /proc says that a descriptor is: `socket:[4711]`, a path.
pub fn link(pid: u32, number: u32) -> Result<String, Unlisted> {
    let path = format!("/proc/{pid}/fd/{number}");
    match fs::read_link(&path) {
        Ok(link) => Ok(printable(link.as_os_str().as_encoded_bytes())),
        Err(error) => Err(Unlisted::new(&path, error)),
    }
}

/// What a descriptor with this link stands for, without whoever has the other end. A socket in which a thread is
/// `blocked` may be borrowed.
pub fn describe(pid: u32, number: u32, link: String, is_blocked: bool) -> Descriptor {
    let mut descriptor = if let Some(inode) = bracketed(&link, "socket:[") {
        let ends = is_blocked.then(|| borrowed::ends(pid, number).ok().flatten()).flatten();
        let by_ends = ends.and_then(|ends| by_ends(pid, number, ends));
        by_ends.unwrap_or_else(|| in_tables(pid, number, inode))
    } else if link.starts_with("pipe:[") {
        Descriptor::new(number, Kind::Pipe, "pipe")
    } else if let Some(name) = link.strip_prefix("anon_inode:") {
        let name = name.trim_matches(['[', ']']);
        Descriptor::new(number, anonymous(name), name)
    } else if link.starts_with("pidfd:") {
        Descriptor::new(number, Kind::Pidfd, "pidfd")
    } else if link.starts_with('/') {
        let opened = DescriptorInfo::of(pid, number);
        Descriptor {
            path: Some(link.clone()),
            file_system: opened.and_then(|opened| opened.file_system(pid)),
            ..Descriptor::new(number, named(&link), &link)
        }
    } else {
        Descriptor::new(number, Kind::Other, &link)
    };
    descriptor.link = link;
    descriptor
}

fn bracketed<'a>(link: &'a str, before: &str) -> Option<&'a str> {
    link.strip_prefix(before)?.strip_suffix(']')
}

fn anonymous(name: &str) -> Kind {
    match name {
        "eventfd" => Kind::Eventfd,
        "timerfd" => Kind::Timerfd,
        "signalfd" => Kind::Signalfd,
        "inotify" => Kind::Inotify,
        "eventpoll" => Kind::Epoll,
        "pidfd" => Kind::Pidfd,
        "io_uring" => Kind::IoUring,
        _ => Kind::Other,
    }
}

fn named(path: &str) -> Kind {
    if TERMINALS.iter().any(|terminal| path.starts_with(terminal)) {
        Kind::Terminal
    } else if path.starts_with("/dev/") && !path.starts_with("/dev/shm/") {
        Kind::Device
    } else {
        Kind::File
    }
}

/// An internet socket by its ends; none where these do not tell its state.
fn by_ends(pid: u32, number: u32, ends: Ends) -> Option<Descriptor> {
    let Ends { protocol, local, peer, listens } = ends;
    let name = match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let text = match peer {
        Some(peer) => format!("{name} {peer}"),
        None => format!("{name} on {local}"),
    };
    let state = match (protocol, peer) {
        (Protocol::Udp, _) => None,
        (Protocol::Tcp, None) if listens => TcpState::LISTEN.name(),
        (Protocol::Tcp, None) => return None,
        (Protocol::Tcp, Some(peer)) => {
            let found = Diagnosis::of(pid).and_then(|it| it.connection(protocol, local, peer));
            found.ok()??.state.name()
        }
    };
    let local = local.to_string();
    Some(Descriptor {
        is_inbound: protocol == Protocol::Tcp && peer.is_some() && is_served(pid, &local),
        state,
        local: Some(local),
        peer: peer.map(|peer| peer.to_string()),
        ..Descriptor::new(number, Kind::Socket, &text)
    })
}

fn in_tables(pid: u32, number: u32, inode: &str) -> Descriptor {
    for (protocol, table) in TABLES {
        let found = sockets::table(pid, table).and_then(|text| sockets::by_inode(&text, inode));
        if let Some(found) = found {
            let text = match &found.peer {
                Some(peer) => format!("{protocol} {peer}"),
                None => format!("{protocol} on {}", found.local),
            };
            return Descriptor {
                is_inbound: protocol == "tcp"
                    && found.peer.is_some()
                    && is_served(pid, &found.local),
                state: found.state.name().filter(|_| protocol == "tcp"),
                local: Some(found.local),
                peer: found.peer,
                ..Descriptor::new(number, Kind::Socket, &text)
            };
        }
    }
    let table = sockets::table(pid, "unix");
    match table.as_deref().and_then(|table| sockets::unix(table, inode)) {
        Some("") => Descriptor::new(number, Kind::Socket, "unix (unnamed)"),
        Some(path) => Descriptor {
            local: Some(path.to_owned()),
            ..Descriptor::new(number, Kind::Socket, &format!("unix {path}"))
        },
        None => Descriptor::new(number, Kind::Socket, "socket"),
    }
}

/// Whether somebody in the process's network namespace listens at the port of this address.
fn is_served(pid: u32, local: &str) -> bool {
    let port = |address: &str| address.rsplit_once(':').map(|(_, port)| port.to_owned());
    let wanted = port(local);
    if let Ok(all) = Diagnosis::of(pid).and_then(|network| network.tcp_listeners()) {
        return all.iter().any(|socket| port(&socket.address) == wanted);
    }
    ["tcp", "tcp6"].into_iter().any(|name| {
        let table = sockets::table(pid, name).unwrap_or_default();
        let is_it =
            |it: sockets::Internet| it.state == TcpState::LISTEN && port(&it.local) == wanted;
        sockets::internet(&table).any(is_it)
    })
}

impl Descriptor {
    /// Whether it stays what it is for as long as it is open: a connection that is there.
    pub fn is_settled(&self) -> bool {
        self.peer.is_some() && self.state.is_none_or(|state| state == "established")
    }

    pub fn is_unix(&self) -> bool {
        self.kind == Kind::Socket && self.text.starts_with("unix ")
    }
}

/// Who has the other end of a pipe or of a connection on this machine; nobody where the peer is on
/// another one, or the descriptor has no other end. `reads` tells in which direction it is used.
pub fn other_end(pid: u32, descriptor: &Descriptor, reads: bool) -> Result<Option<Peer>, String> {
    let (link, access) = match descriptor.kind {
        Kind::Pipe => (descriptor.link.clone(), if reads { Access::Write } else { Access::Read }),
        Kind::Socket => match mirrored(pid, descriptor) {
            Some(inode) => (format!("socket:[{inode}]"), Access::Any),
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    let found = with_link(&link, pid, access)?;
    match found[..] {
        [] => Err("no process has it open".to_owned()),
        [only] => Ok(Some(peer(only))),
        [..] => Err(format!("processes {found:?} have it open")),
    }
}

/// The inode of the peer's socket: the one whose own address is our peer's, and the reverse.
fn mirrored(pid: u32, descriptor: &Descriptor) -> Option<String> {
    let (local, peer) = (descriptor.local.as_ref()?, descriptor.peer.as_ref()?);
    let protocol = descriptor.text.split(' ').next()?;
    if let Some(answer) = asked(pid, protocol, peer, local) {
        return answer;
    }
    let tables = TABLES.iter().filter(|(of, _)| *of == protocol);
    tables.into_iter().find_map(|(_, name)| {
        let text = sockets::table(pid, name)?;
        // A server of UDP is rarely connected.
        let answers_all = |entry: &sockets::Internet| protocol == "udp" && entry.peer.is_none();
        let is_mirror = |entry: &sockets::Internet| {
            let is_ours = entry.peer.as_ref() == Some(local) || answers_all(entry);
            entry.local == *peer && is_ours && entry.inode != "0"
        };
        sockets::internet(&text).find(is_mirror).map(|entry| entry.inode)
    })
}

/// The inode of the socket with these ends, by the kernel's own word; `None` where that cannot be had.
fn asked(pid: u32, protocol: &str, local: &str, peer: &str) -> Option<Option<String>> {
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    let (local, peer): (SocketAddr, SocketAddr) = (local.parse().ok()?, peer.parse().ok()?);
    let found = Diagnosis::of(pid).and_then(|it| it.connection(protocol, local, peer)).ok()?;
    Some(found.map(|socket| socket.inode.to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::{anonymous, describe, link, named, other_end};
    use crate::call::{Descriptor, Kind};

    /// The same whether it is borrowed or looked up.
    fn described(descriptor: &dyn AsRawFd) -> Descriptor {
        let (pid, number) = (std::process::id(), descriptor.as_raw_fd() as u32);
        let [found, other] = [true, false]
            .map(|is_blocked| describe(pid, number, link(pid, number).unwrap(), is_blocked));
        assert_eq!(found, other);
        found
    }

    /// Descriptors of this very process: a file, a connection and both its ends, a pipe.
    #[test]
    fn live() {
        let file = described(&std::fs::File::open("/proc/self/maps").unwrap());
        assert_eq!((file.kind, file.file_system.as_deref()), (Kind::File, Some("proc")));
        assert!(file.text.ends_with("/maps") && file.path == Some(file.text.clone()));

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let listening = described(&listener);
        assert_eq!((listening.state, listening.peer), (Some("listen"), None));
        assert_eq!(listening.text, format!("tcp on {there}"));
        let stream = std::net::TcpStream::connect(there).unwrap();
        let seen = described(&stream);
        assert_eq!((seen.text.clone(), seen.kind), (format!("tcp {there}"), Kind::Socket));
        assert_eq!(seen.local, Some(stream.local_addr().unwrap().to_string()));
        let (accepted, _) = listener.accept().unwrap();
        let process = other_end(std::process::id(), &seen, true).unwrap().unwrap();
        assert_eq!(process.pid, std::process::id());
        assert!(described(&accepted).is_inbound && !seen.is_inbound);
        drop(accepted);

        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(
            (described(&reader).text.as_str(), described(&reader).kind),
            ("pipe", Kind::Pipe)
        );
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(described(&one).is_unix());
        assert!(!link(std::process::id(), 99_999).unwrap_err().is_forbidden);
    }

    /// Names of the kernel's own files tell their kinds.
    #[test]
    fn kinds() {
        assert_eq!(anonymous("eventpoll"), Kind::Epoll);
        assert_eq!(anonymous("bpf-map"), Kind::Other);
        assert_eq!(named("/dev/pts/3"), Kind::Terminal);
        assert_eq!(named("/dev/sda"), Kind::Device);
        assert_eq!(named("/dev/shm/queue"), Kind::File);
    }
}
