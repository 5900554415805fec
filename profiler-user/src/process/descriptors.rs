//! A file descriptor of the target to what it is for a reader: a path, a socket's peer, a pipe.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Bytes of a socket table read at most: about 25,000 connections.
const MAX_TABLE: u64 = 4 * 1024 * 1024;

/// What a descriptor stands for: `tcp 127.0.0.1:8081`, `/var/lib/app/config.json`, `pipe`.
pub fn describe(pid: u32, fd: u32) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
    let link = link.to_string_lossy();
    if let Some(inode) = bracketed(&link, "socket:[") {
        return Some(socket(pid, inode));
    }
    if link.starts_with("pipe:[") {
        return Some("pipe".to_owned());
    }
    if let Some(name) = link.strip_prefix("anon_inode:") {
        return Some(name.trim_matches(['[', ']']).to_owned());
    }
    Some(link.into_owned())
}

fn bracketed<'a>(link: &'a str, before: &str) -> Option<&'a str> {
    link.strip_prefix(before)?.strip_suffix(']')
}

fn socket(pid: u32, inode: &str) -> String {
    for (protocol, table) in [("tcp", "tcp"), ("tcp", "tcp6"), ("udp", "udp"), ("udp", "udp6")] {
        let Some(text) = read(&format!("/proc/{pid}/net/{table}")) else { continue };
        if let Some(ends) = internet(&text, inode) {
            return format!("{protocol} {ends}");
        }
    }
    match read(&format!("/proc/{pid}/net/unix")).and_then(|text| unix(&text, inode)) {
        Some(path) => format!("unix {path}"),
        None => "socket".to_owned(),
    }
}

fn read(path: &str) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(MAX_TABLE).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The peer in a table of /proc/net/tcp's form, or the local end of a socket without a peer.
pub(super) fn internet(table: &str, inode: &str) -> Option<String> {
    let line = table.lines().skip(1).find(|line| line.split_whitespace().nth(9) == Some(inode))?;
    let mut fields = line.split_whitespace().skip(1);
    let local = fields.next().and_then(address)?;
    let remote = fields.next().and_then(address)?;
    if remote.ends_with(":0") { Some(format!("on {local}")) } else { Some(remote) }
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

/// The path of a unix socket; connected ends usually have none.
pub(super) fn unix(table: &str, inode: &str) -> Option<String> {
    let line = table.lines().skip(1).find(|line| line.split_whitespace().nth(6) == Some(inode))?;
    Some(line.split_whitespace().nth(7).unwrap_or("(unnamed)").to_owned())
}

#[cfg(test)]
mod tests {
    use super::{address, describe, internet, unix};

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

    /// A connection is named by its peer, a listening socket by its own end.
    #[test]
    fn tables() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1\n\
            1: 0100007F:C350 0100007F:1F91 01 00000000:00000000 00:00000000 00000000     0        0 12 1\n";
        assert_eq!(internet(table, "11").as_deref(), Some("on 127.0.0.1:80"));
        assert_eq!(internet(table, "12").as_deref(), Some("127.0.0.1:8081"));
        assert_eq!(internet(table, "13"), None);
        let table = "Num RefCount Protocol Flags Type St Inode Path\n\
            0: 00000002 00000000 00010000 0001 01 77 /run/x.sock\n0: 1 0 0 1 03 78\n";
        assert_eq!(unix(table, "77").as_deref(), Some("/run/x.sock"));
        assert_eq!(unix(table, "78").as_deref(), Some("(unnamed)"));
    }

    /// Descriptors of this very process: a file, a connection, a pipe.
    #[test]
    fn live() {
        use std::os::fd::AsRawFd;
        let me = std::process::id();
        let fd = |fd: &dyn AsRawFd| describe(me, fd.as_raw_fd() as u32);
        let file = std::fs::File::open("/proc/self/maps").unwrap();
        assert!(fd(&file).unwrap().ends_with("/maps"));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let stream = std::net::TcpStream::connect(there).unwrap();
        assert_eq!(fd(&stream).unwrap(), format!("tcp {there}"));
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(fd(&reader).unwrap(), "pipe");
    }
}
