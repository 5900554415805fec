//! The listening unix sockets of a process's network, to how many connections wait at each. No table in
//! /proc tells: the kernel is asked over netlink (sock_diag(7)).

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::arguments::printable;
use super::sockets::State;

/// Answers read at most, of some hundred sockets each.
const MAX_ANSWERS: usize = 64;

/// What the kernel puts into one answer at most.
const ANSWER_BYTES: usize = 32 * 1024;

/// `SOCK_DIAG_BY_FAMILY` (include/uapi/linux/sock_diag.h).
const BY_FAMILY: u16 = 20;

/// `NLM_F_REQUEST | NLM_F_DUMP`, `NLMSG_ERROR` and `NLMSG_DONE` (include/uapi/linux/netlink.h).
const REQUEST_ALL: u16 = 0x301;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// `UDIAG_SHOW_NAME | UDIAG_SHOW_RQLEN`, and the attributes that they ask for: `UNIX_DIAG_NAME`,
/// `UNIX_DIAG_RQLEN` (include/uapi/linux/unix_diag.h).
const SHOW: u32 = 0x11;
const NAME: u16 = 0;
const QUEUE_LENGTHS: u16 = 4;

/// A message's head and the attributes' own in bytes, and of a message about a unix socket all that
/// comes before its attributes.
const HEAD: usize = 16;
const ATTRIBUTE_HEAD: usize = 4;
const BEFORE_ATTRIBUTES: usize = HEAD + 16;

/// A listening socket at which connections wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    pub inode: String,
    pub address: String,
    pub waiting: u64,
}

/// Those at which connections wait now.
pub fn queued(pid: u32) -> Result<Vec<Queued>, String> {
    let refused = |what: &str, error: Errno| format!("{what} is refused: {error}");
    let asked = asking(pid)?;
    send(asked.as_raw_fd(), &request(), MsgFlags::empty())
        .map_err(|it| refused("sock_diag", it))?;
    let mut found = Vec::new();
    let mut answer = vec![0; ANSWER_BYTES];
    for _ in 0..MAX_ANSWERS {
        // The kernel has put each answer there before it lets us go on.
        let received = recv(asked.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT);
        let length = received.map_err(|error| refused("sock_diag", error))?;
        for (kind, message) in messages(&answer[..length]) {
            match kind {
                DONE => return Ok(found),
                ERROR => return Err("this kernel does not list unix sockets".to_owned()),
                _ => found.extend(socket_of(message).filter(|socket| socket.waiting > 0)),
            }
        }
    }
    Err("there are too many unix sockets".to_owned())
}

/// A socket that asks of the process's network. A thread of its own goes there to open it.
fn asking(pid: u32) -> Result<OwnedFd, String> {
    let open = || {
        let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkSockDiag);
        socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(|error| format!("a netlink socket is refused: {error}"))
    };
    let path = format!("/proc/{pid}/ns/net");
    let network = fs::read_link(&path).map_err(|error| format!("{path}: {error}"))?;
    if fs::read_link("/proc/self/ns/net").is_ok_and(|own| own == network) {
        return open();
    }
    let network = fs::File::open(&path).map_err(|error| format!("{path}: {error}"))?;
    let open_there = || {
        setns(&network, CloneFlags::CLONE_NEWNET)
            .map_err(|error| format!("setns to the process's network is refused: {error}"))?;
        open()
    };
    let opened = std::thread::scope(|scope| scope.spawn(open_there).join());
    opened.unwrap_or_else(|_| Err("the thread that asks has failed".to_owned()))
}

/// `struct nlmsghdr` and `struct unix_diag_req`: all that listen.
fn request() -> Vec<u8> {
    const FAMILY: u32 = libc::AF_UNIX as u32;
    let bytes = HEAD as u32 + 24;
    let [kind, flags] = [BY_FAMILY, REQUEST_ALL].map(u16::to_ne_bytes);
    let mut request = [&bytes.to_ne_bytes()[..], &kind, &flags, &[0; 8]].concat();
    let (listening, any_socket, no_cookie) = (1 << State::LISTEN.number(), 0, [u32::MAX; 2]);
    let fields = [FAMILY, listening, any_socket, SHOW, no_cookie[0], no_cookie[1]];
    request.extend(fields.iter().flat_map(|field| field.to_ne_bytes()));
    request
}

/// The kind and all bytes of each message.
fn messages(answer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = answer;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*rest.get(4..)?.first_chunk()?);
        let message = rest.get(..length.max(HEAD))?;
        rest = rest.get(length.max(HEAD).next_multiple_of(4)..).unwrap_or_default();
        Some((kind, message))
    })
}

fn socket_of(message: &[u8]) -> Option<Queued> {
    let inode = u32::from_ne_bytes(*message.get(HEAD + 4..)?.first_chunk()?);
    let mut socket = Queued { inode: inode.to_string(), address: String::new(), waiting: 0 };
    let mut rest = message.get(BEFORE_ATTRIBUTES..)?;
    while let Some([low, high, kind @ ..]) = rest.first_chunk::<ATTRIBUTE_HEAD>() {
        let length = usize::from(u16::from_ne_bytes([*low, *high])).max(ATTRIBUTE_HEAD);
        let value = rest.get(ATTRIBUTE_HEAD..length)?;
        match u16::from_ne_bytes(*kind) {
            NAME => socket.address = format!("unix {}", path(value)),
            QUEUE_LENGTHS => socket.waiting = u32::from_ne_bytes(*value.first_chunk()?).into(),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(socket)
}

/// An abstract name begins with a zero, which /proc and ss(8) write as `@`.
fn path(name: &[u8]) -> String {
    match name {
        [0, name @ ..] => format!("@{}", printable(name)),
        [name @ .., 0] | name => printable(name),
    }
}

#[cfg(test)]
mod tests {
    use super::{messages, path, socket_of};

    /// Names as ss(8) writes them.
    #[test]
    fn names() {
        assert_eq!(path(b"/run/app.sock\0"), "/run/app.sock");
        assert_eq!(path(b"\0app"), "@app");
    }

    /// An answer that is cut off, or says nonsense, ends there.
    #[test]
    fn broken_answers() {
        assert_eq!(messages(&[]).count(), 0);
        assert_eq!(messages(&[0; 40]).count(), 2, "each has a head");
        assert_eq!(messages(&[255; 40]).count(), 0);
        assert_eq!(socket_of(&[0; 20]), None);
        assert_eq!(socket_of(&[255; 60]), None);
        assert!(socket_of(&[0; 60]).is_some_and(|socket| socket.waiting == 0));
    }
}
