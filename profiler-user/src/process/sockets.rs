//! The kernel's tables of sockets (`/proc/PID/net/*`) to the ends, the state and the queue of one of them: where
//! [`super::diagnosis`] cannot say it, for to read those of TCP takes 4 to 18 ms.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Bytes of a socket table read at most: about 25,000 connections.
const MAX_TABLE: u64 = 4 * 1024 * 1024;

/// One line of a table of TCP's or UDP's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Internet {
    pub local: String,
    /// `None` without a peer.
    pub peer: Option<String>,
    /// TCP's; of UDP only whether it is connected.
    pub state: TcpState,
    /// Bytes to read; of a listening socket, connections to accept.
    pub waiting: u64,
    pub inode: String,
}

/// States of a TCP connection (include/net/tcp_states.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpState(u8);

impl TcpState {
    pub const fn new(number: u8) -> Self {
        Self(number)
    }

    pub const LISTEN: Self = Self(10);

    pub fn name(self) -> Option<&'static str> {
        const NAMES: [&str; 12] = [
            "established",
            "syn_sent",
            "syn_recv",
            "fin_wait1",
            "fin_wait2",
            "time_wait",
            "close",
            "close_wait",
            "last_ack",
            "listen",
            "closing",
            "new_syn_recv",
        ];
        NAMES.get(usize::from(self.0).checked_sub(1)?).copied()
    }
}

/// The tables of the process's network namespace, with the protocol that each is of.
pub const TABLES: [(&str, &str); 4] =
    [("tcp", "tcp"), ("tcp", "tcp6"), ("udp", "udp"), ("udp", "udp6")];

/// The text of one table, up to the bound.
pub fn table(pid: u32, name: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let file = fs::File::open(format!("/proc/{pid}/net/{name}")).ok()?;
    file.take(MAX_TABLE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The lines of a table that can be read.
pub fn internet(table: &str) -> impl Iterator<Item = Internet> {
    table.lines().skip(1).filter_map(line)
}

/// The socket with this inode.
pub fn by_inode(table: &str, inode: &str) -> Option<Internet> {
    let is_it = |text: &&str| text.split_whitespace().nth(9) == Some(inode);
    table.lines().skip(1).find(is_it).and_then(line)
}

fn line(text: &str) -> Option<Internet> {
    let mut fields = text.split_whitespace().skip(1);
    let local = address(fields.next()?)?;
    let peer = address(fields.next()?)?;
    let state = TcpState(u8::from_str_radix(fields.next()?, 16).ok()?);
    let (_, waiting) = fields.next()?.split_once(':')?;
    let waiting = u64::from_str_radix(waiting, 16).ok()?;
    // The timer, its time, retransmissions, the user and its timeout stand between.
    let inode = fields.nth(4)?.to_owned();
    let peer = Some(peer).filter(|peer| !peer.ends_with(":0"));
    Some(Internet { local, peer, state, waiting, inode })
}

/// `0100007F:1F91`: the address in words of the host's byte order, the port in plain hexadecimal.
fn address(text: &str) -> Option<String> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let digits = host.get(index * 8..index * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_le_bytes)
    };
    if host.len() == 8 {
        return Some(format!("{}:{port}", Ipv4Addr::from(word(0)?)));
    }
    let mut bytes = [0; 16];
    for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
        chunk.copy_from_slice(&word(index)?);
    }
    let host = Ipv6Addr::from(bytes);
    Some(match host.to_ipv4_mapped() {
        Some(host) => format!("{host}:{port}"),
        None => format!("[{host}]:{port}"),
    })
}

/// The path of a unix socket, or an empty one: connected ends usually have none.
pub fn unix<'a>(table: &'a str, inode: &str) -> Option<&'a str> {
    let line = table.lines().skip(1).find(|line| line.split_whitespace().nth(6) == Some(inode))?;
    Some(line.split_whitespace().nth(7).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::{TcpState, address, by_inode, internet, unix};

    /// Addresses come out as people write them, v4 in v6 as v4.
    #[test]
    fn addresses() {
        assert_eq!(address("0100007F:1F91").as_deref(), Some("127.0.0.1:8081"));
        let mapped = "0000000000000000FFFF00000100007F:0050";
        assert_eq!(address(mapped).as_deref(), Some("127.0.0.1:80"));
        let six = "00000000000000000000000001000000:0050";
        assert_eq!(address(six).as_deref(), Some("[::1]:80"));
        assert_eq!(address("01:"), None);
        assert_eq!(address("éé00007F:1F91"), None);
    }

    /// A connection has a peer, a listening socket a queue.
    #[test]
    fn tables() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:0050 00000000:0000 0A 00000000:00000063 00:00000000 00000000     0        0 11 1\n\
            1: 0100007F:C350 0100007F:1F91 02 00000000:00000000 00:00000000 00000000     0        0 12 1\n";
        let listening = by_inode(table, "11").unwrap();
        assert_eq!((listening.local.as_str(), listening.peer), ("127.0.0.1:80", None));
        assert_eq!((listening.state, listening.waiting), (TcpState::LISTEN, 99));
        let connecting = by_inode(table, "12").unwrap();
        assert_eq!(connecting.peer.as_deref(), Some("127.0.0.1:8081"));
        assert_eq!(connecting.state.name(), Some("syn_sent"));
        assert_eq!(by_inode(table, "13"), None);
        assert_eq!(internet(table).count(), 2);
        let table = "Num RefCount Protocol Flags Type St Inode Path\n\
            0: 00000002 00000000 00010000 0001 01 77 /run/x.sock\n0: 1 0 0 1 03 78\n";
        assert_eq!(unix(table, "77"), Some("/run/x.sock"));
        assert_eq!(unix(table, "78"), Some(""));
        assert_eq!(unix(table, "79"), None);
    }

    /// Every state has its name, and nothing else has one.
    #[test]
    fn states() {
        assert_eq!(
            (TcpState(1).name(), TcpState::LISTEN.name()),
            (Some("established"), Some("listen"))
        );
        assert_eq!((TcpState(0).name(), TcpState(13).name()), (None, None));
    }
}
