//! The kernel's own diagnosis of a network's sockets (sock_diag(7)): those that listen, and a connection by its ends.
//!
//! The tables in `/proc/PID/net` tell the same, but the kernel walks all buckets of its table of connections for them,
//! however few are used: 4 to 18 ms. Asked for what listens alone, or for one connection, it takes some 20 µs.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_packet_sock_diag::unix::nlas::{Nla, UnixDiagName};
use netlink_packet_sock_diag::unix::{self, ShowFlags, UnixRequest, UnixResponse};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::arguments::printable;
use super::sockets::TcpState;

/// Answers read at most, of some hundred sockets each.
const MAX_ANSWERS: usize = 64;

/// What the kernel puts into one answer at most.
const ANSWER_BYTES: usize = 32 * 1024;

/// Any socket, whatever its cookie (`INET_DIAG_NOCOOKIE`, include/uapi/linux/inet_diag.h).
const ANY: [u8; 8] = [0xff; 8];

/// A listening socket, with the connections that wait there to be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listening {
    pub inode: u64,
    pub address: String,
    pub waiting: u64,
}

/// One socket of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    pub inode: u64,
    /// TCP's.
    pub state: TcpState,
}

/// Of which protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// A socket that asks of one network.
#[derive(Debug)]
pub struct Diagnosis {
    socket: OwnedFd,
}

impl Diagnosis {
    /// Of the network of a process. A thread of its own goes there to open the socket.
    pub fn of(pid: u32) -> Result<Self, String> {
        let open = || {
            let (family, protocol) = (AddressFamily::NETLINK, Some(netlink::SOCK_DIAG));
            socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, protocol)
                .map(|socket| Self { socket })
                .map_err(|error| format!("a netlink socket is refused: {error}"))
        };
        let path = format!("/proc/{pid}/ns/net");
        let network = fs::read_link(&path).map_err(|error| format!("{path}: {error}"))?;
        if fs::read_link("/proc/self/ns/net").is_ok_and(|own| own == network) {
            return open();
        }
        let network = fs::File::open(&path).map_err(|error| format!("{path}: {error}"))?;
        let open_there = || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|error| format!("setns to the process's network is refused: {error}"))?;
            open()
        };
        let opened = std::thread::scope(|scope| scope.spawn(open_there).join());
        opened.unwrap_or_else(|_| Err("the thread that asks has failed".to_owned()))
    }

    /// The TCP sockets that listen, of both families.
    pub fn tcp_listeners(&self) -> Result<Vec<Listening>, String> {
        self.listeners(IPPROTO_TCP)
    }

    fn listeners(&self, protocol: u8) -> Result<Vec<Listening>, String> {
        let mut found = Vec::new();
        for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            let request = InetRequest {
                family,
                protocol,
                extensions: ExtensionFlags::empty(),
                states: StateFlags::LISTEN,
                socket_id,
            };
            self.ask(SockDiagMessage::InetRequest(request), NLM_F_DUMP, |answer| {
                if let SockDiagMessage::InetResponse(socket) = answer {
                    found.push(listener(&socket));
                }
            })?;
        }
        Ok(found)
    }

    /// The unix sockets that listen.
    pub fn unix_listeners(&self) -> Result<Vec<Listening>, String> {
        let request = UnixRequest {
            state_flags: unix::StateFlags::LISTEN,
            inode: 0,
            show_flags: ShowFlags::NAME | ShowFlags::RQLEN,
            cookie: ANY,
        };
        let mut found = Vec::new();
        self.ask(SockDiagMessage::UnixRequest(request), NLM_F_DUMP, |answer| {
            if let SockDiagMessage::UnixResponse(socket) = answer {
                found.push(unix_listener(&socket));
            }
        })?;
        Ok(found)
    }

    /// The socket that has these ends, the first of them its own.
    pub fn connection(
        &self,
        protocol: Protocol,
        local: SocketAddr,
        peer: SocketAddr,
    ) -> Result<Option<Connection>, String> {
        // The kernel takes UDP's the other way round, "for historical reasons" (net/ipv4/udp_diag.c).
        let (source, destination, number) = match protocol {
            Protocol::Tcp => (local, peer, IPPROTO_TCP),
            Protocol::Udp => (peer, local, IPPROTO_UDP),
        };
        let (source_address, destination_address) = alike(source.ip(), destination.ip());
        let family = if source_address.is_ipv4() { AF_INET } else { AF_INET6 };
        let request = InetRequest {
            family,
            protocol: number,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: SocketId {
                source_port: source.port(),
                destination_port: destination.port(),
                source_address,
                destination_address,
                interface_id: 0,
                cookie: ANY,
            },
        };
        let mut found = None;
        self.ask(SockDiagMessage::InetRequest(request), 0, |answer| {
            if let SockDiagMessage::InetResponse(socket) = answer {
                found = Some(socket);
            }
        })?;
        if found.is_none() {
            // Where the kernel lacks the means, it says the same as where there is no such socket; but not of a list.
            self.listeners(number)?;
        }
        // Where there is no such connection, a listener at the port answers. A server of UDP is rarely connected.
        let is_it = |socket: &InetResponse| {
            let id = &socket.header.socket_id;
            id.destination_port == peer.port()
                || protocol == Protocol::Udp && id.destination_port == 0
        };
        Ok(found.filter(|socket| is_it(socket) && socket.header.inode != 0).map(|socket| {
            Connection {
                inode: socket.header.inode.into(),
                state: TcpState::new(socket.header.state),
            }
        }))
    }

    /// Hands over each answer. No such socket is no answer.
    fn ask(
        &self,
        request: SockDiagMessage,
        flags: u16,
        mut take: impl FnMut(SockDiagMessage),
    ) -> Result<(), String> {
        let refused = |error: Errno| format!("sock_diag is refused: {error}");
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, request.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(&self.socket, &bytes, SendFlags::empty()).map_err(refused)?;
        let mut answer = vec![0; ANSWER_BYTES];
        for _ in 0..MAX_ANSWERS {
            // The kernel has put each answer there before it lets us go on.
            let received = recv(&self.socket, &mut *answer, RecvFlags::DONTWAIT);
            let (length, _) = received.map_err(refused)?;
            for message in messages(&answer[..length]) {
                match message {
                    NetlinkPayload::InnerMessage(answer) => take(answer),
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => return outcome(error.raw_code(), flags),
                    _ => {}
                }
            }
            if flags & NLM_F_DUMP == 0 {
                return Ok(());
            }
        }
        Err("there are too many sockets".to_owned())
    }
}

fn outcome(code: i32, flags: u16) -> Result<(), String> {
    match Errno::from_raw_os_error(code.saturating_neg()) {
        Errno::NOENT if flags & NLM_F_DUMP == 0 => Ok(()),
        error => Err(format!("this kernel does not list such sockets: {error}")),
    }
}

/// Each message that makes sense.
fn messages(answer: &[u8]) -> impl Iterator<Item = NetlinkPayload<SockDiagMessage>> {
    let mut rest = answer;
    let next = move || {
        let length = NetlinkBuffer::new_checked(rest).ok()?.length() as usize;
        let message = rest.get(..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(NetlinkMessage::deserialize(message))
    };
    std::iter::from_fn(next).flatten().map(|message| message.payload)
}

fn listener(socket: &InetResponse) -> Listening {
    let id = &socket.header.socket_id;
    Listening {
        inode: socket.header.inode.into(),
        address: SocketAddr::new(id.source_address.to_canonical(), id.source_port).to_string(),
        waiting: socket.header.recv_queue.into(),
    }
}

fn unix_listener(socket: &UnixResponse) -> Listening {
    let inode = socket.header.inode.into();
    let mut listening = Listening { inode, address: String::new(), waiting: 0 };
    for attribute in &socket.nlas {
        match attribute {
            Nla::Name(name) => listening.address = format!("unix {}", path(name)),
            Nla::ReceiveQueueLength(waiting, _) => listening.waiting = (*waiting).into(),
            _ => {}
        }
    }
    listening
}

/// As /proc and ss(8) write it: an abstract name with `@` before it.
fn path(name: &UnixDiagName) -> String {
    match name {
        UnixDiagName::Pathname(path) => printable(path.as_encoded_bytes()),
        UnixDiagName::Abstract(name) => format!("@{}", printable(name)),
    }
}

/// Both of one family: v4 unless one is v6.
fn alike(one: IpAddr, other: IpAddr) -> (IpAddr, IpAddr) {
    let both = (one.to_canonical(), other.to_canonical());
    let six = |address: IpAddr| match address {
        IpAddr::V4(four) => IpAddr::V6(four.to_ipv6_mapped()),
        six @ IpAddr::V6(_) => six,
    };
    if both.0.is_ipv4() == both.1.is_ipv4() { both } else { (six(both.0), six(both.1)) }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

    use netlink_packet_sock_diag::unix::nlas::UnixDiagName;

    use super::{Diagnosis, Protocol, messages, path};

    /// Names as ss(8) writes them.
    #[test]
    fn names() {
        assert_eq!(path(&UnixDiagName::Pathname(OsString::from("/run/app.sock"))), "/run/app.sock");
        assert_eq!(path(&UnixDiagName::Abstract(b"app".to_vec())), "@app");
    }

    /// An answer that is cut off, or says nonsense, ends there.
    #[test]
    fn broken_answers() {
        for answer in [&[][..], &[0; 40], &[255; 40], &[40, 0, 0, 0, 20, 0, 0, 0, 0, 0]] {
            assert_eq!(messages(answer).count(), 0, "{answer:?}");
        }
    }

    /// The other end of a connection is found by its ends, of either family; a listener at the port is not taken for
    /// it, and what is not there is not found.
    #[test]
    fn connections() {
        let network = Diagnosis::of(std::process::id()).unwrap();
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(host).unwrap();
            let there = listener.local_addr().unwrap();
            let stream = TcpStream::connect(there).unwrap();
            let here = stream.local_addr().unwrap();
            let find = |local, peer| network.connection(Protocol::Tcp, local, peer).unwrap();
            let (own, other) = (find(here, there).unwrap(), find(there, here));
            assert_eq!(own.state.name(), Some("established"));
            assert_ne!(Some(own.inode), other.map(|it| it.inode));
            let mut nobody = here;
            nobody.set_port(1);
            assert_eq!(find(there, nobody), None, "the listener was taken for it");
        }
    }

    /// A server of UDP answers all, connected or not.
    #[test]
    fn datagrams() {
        let network = Diagnosis::of(std::process::id()).unwrap();
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (there, here) = (server.local_addr().unwrap(), client.local_addr().unwrap());
        client.connect(there).unwrap();
        let find = |local, peer| network.connection(Protocol::Udp, local, peer).unwrap();
        let (own, other) = (find(here, there).unwrap(), find(there, here).unwrap());
        assert_ne!(own.inode, other.inode);
    }

    /// That something is missing is the answer to one question, and no list at all to another.
    #[test]
    fn what_the_kernel_lacks() {
        let missing = -super::Errno::NOENT.raw_os_error();
        assert_eq!(super::outcome(missing, 0), Ok(()));
        assert!(super::outcome(missing, super::NLM_F_DUMP).is_err());
        assert!(super::outcome(-super::Errno::PERM.raw_os_error(), 0).is_err());
    }

    /// A listener is among those that listen, with its address and what waits there.
    #[test]
    fn listeners() {
        let network = Diagnosis::of(std::process::id()).unwrap();
        let wanted: [SocketAddr; 2] =
            [SocketAddr::from(([127, 0, 0, 1], 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))];
        for address in wanted {
            let listener = TcpListener::bind(address).unwrap();
            let there = listener.local_addr().unwrap();
            let _client = TcpStream::connect(there).unwrap();
            let all = network.tcp_listeners().unwrap();
            let found = all.iter().find(|one| one.address == there.to_string()).unwrap();
            assert_eq!(found.waiting, 1);
        }
    }
}
