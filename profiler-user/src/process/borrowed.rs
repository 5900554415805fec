//! A socket of the target, borrowed for two questions: how long its calls may wait, and where its ends are.
//!
//! The copy shares the target's open socket, so nothing is done with it but `getsockopt`, `getsockname` and
//! `getpeername`, which change nothing, and it is closed at once. While a thread is blocked in a call
//! on the socket, that call keeps it open, too: closing the copy then ends nothing. Needs Linux 5.6.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use rustix::net::sockopt::{
    Timeout as Direction, socket_acceptconn, socket_protocol, socket_timeout,
};
use rustix::net::{SocketAddrAny, SocketAddrUnix, getpeername, getsockname, ipproto};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::arguments::printable;
use super::diagnosis::Protocol;
use crate::call::Timeout;

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// `SO_RCVTIMEO` and `SO_SNDTIMEO`.
    pub receive: Option<Timeout>,
    pub send: Option<Timeout>,
    /// Of a unix socket: the path that it is connected to, and the process that was behind it when it
    /// connected, listened or made the pair.
    pub path: Option<String>,
    pub peer: Option<u32>,
}

/// Where an internet socket is, and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    pub protocol: Protocol,
    pub local: SocketAddr,
    pub peer: Option<SocketAddr>,
    pub listens: bool,
}

/// Asks a socket of a process. It must be known to be a socket, and a thread of the process blocked
/// in a call on it.
pub fn ask(pid: u32, number: u32, is_unix: bool) -> Result<Answers, String> {
    Ok(answers(&copy(pid, number)?, is_unix))
}

/// The ends of a socket, as [`ask`] may ask for them; `None` where it is no socket of TCP or UDP.
pub fn ends(pid: u32, number: u32) -> Result<Option<Ends>, String> {
    let copy = copy(pid, number)?;
    let protocol = match socket_protocol(&copy) {
        Ok(Some(ipproto::TCP)) => Protocol::Tcp,
        Ok(Some(ipproto::UDP)) => Protocol::Udp,
        _ => return Ok(None),
    };
    let local = getsockname(&copy).ok().and_then(internet);
    let peer = getpeername(&copy).ok().flatten().and_then(internet);
    let listens = socket_acceptconn(&copy).unwrap_or_default();
    Ok(local.map(|local| Ends { protocol, local, peer, listens }))
}

fn internet(address: SocketAddrAny) -> Option<SocketAddr> {
    let address = SocketAddr::try_from(address).ok()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

fn copy(pid: u32, number: u32) -> Result<OwnedFd, String> {
    let refused = |what: &str, error: rustix::io::Errno| format!("{what} is refused: {error}");
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("there is no such process")?;
    let number = i32::try_from(number).map_err(|_| "there is no such descriptor")?;
    let process = pidfd_open(raw, PidfdFlags::empty()).map_err(|e| refused("pidfd_open", e))?;
    pidfd_getfd(&process, number, PidfdGetfdFlags::empty())
        .map_err(|error| refused("pidfd_getfd", error))
}

fn answers(copy: &OwnedFd, is_unix: bool) -> Answers {
    let timeout = |direction| socket_timeout(copy, direction).ok().map(timeout);
    let path = getpeername(copy).ok().flatten().filter(|_| is_unix).and_then(path);
    // Another PID namespace's processes have no number here.
    let peer = getsockopt(copy, sockopt::PeerCredentials).ok().filter(|_| is_unix);
    let peer = peer.and_then(|credentials| u32::try_from(credentials.pid()).ok());
    let peer = peer.filter(|pid| *pid != 0);
    let (receive, send) = (timeout(Direction::Recv), timeout(Direction::Send));
    Answers { receive, send, path, peer }
}

fn timeout(set: Option<Duration>) -> Timeout {
    let ns = |set: Duration| Timeout::Ns(u64::try_from(set.as_nanos()).unwrap_or(u64::MAX));
    set.map_or(Timeout::None, ns)
}

fn path(address: SocketAddrAny) -> Option<String> {
    let address = SocketAddrUnix::try_from(address).ok()?;
    if let Some(name) = address.abstract_name().filter(|name| !name.is_empty()) {
        return Some(format!("@{}", printable(name)));
    }
    address.path_bytes().filter(|path| !path.is_empty()).map(printable)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::ask;
    use crate::call::Timeout;

    /// The options come out as they were set, and the socket works on as before.
    #[test]
    fn asks_a_socket() {
        let me = std::process::id();
        let (one, mut other) = UnixStream::pair().unwrap();
        let number = one.as_raw_fd() as u32;
        let seen = ask(me, number, true).unwrap();
        assert_eq!((seen.receive, seen.send), (Some(Timeout::None), Some(Timeout::None)));
        assert_eq!((seen.peer, seen.path), (Some(me), None));
        // A whole number of jiffies at every rate that kernels are built for.
        one.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let seen = ask(me, number, true).unwrap();
        assert_eq!(seen.receive, Some(Timeout::Ns(200_000_000)));
        drop(one);
        let closed = std::io::Read::read(&mut other, &mut [0]).unwrap();
        assert_eq!(closed, 0, "a copy was left open");
    }

    /// What is not there is refused with a reason.
    #[test]
    fn refusals() {
        assert!(ask(std::process::id(), 9999, false).unwrap_err().contains("pidfd_getfd"));
        assert!(ask(0x7fff_ffff, 0, false).unwrap_err().contains("pidfd_open"));
    }
}
