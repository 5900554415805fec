//! What was known of a system call to the fields of its cause and to its words.

use std::collections::{BTreeMap, BTreeSet};

use super::woken;
use crate::call::{self, Timeout};
use crate::gap::Gap;
use crate::report::purpose;
use crate::report::schema::call as schema;
use crate::report::schema::call::{DescriptorKind, Purpose, ReportedCall, ReportedPeer};
use crate::report::schema::stall::CauseKind;
use crate::syscall::{self, Operand};
use crate::turn::{Sampled, Stall};

/// Characters of a command that a sentence has room for.
const MAX_COMMAND: usize = 60;

/// What the system call works on, in the words of a report.
pub fn target(
    sampled: &Sampled,
    syscall: &str,
    descriptors: &BTreeMap<u32, String>,
    gaps: &mut Vec<Gap>,
) -> Option<String> {
    let call = sampled.call.as_deref();
    let operand = syscall::operand(&sampled.registers);
    let purpose = purpose::of(&sampled.registers, &sampled.stack);
    if purpose == Some(Purpose::ProgramStart) {
        if call.is_none_or(|call| call.child.is_none()) {
            gaps.push(Gap::new("target", "no child was seen on its way to its program"));
        }
        return call.and_then(|call| call.path.clone());
    }
    if purpose == Some(Purpose::CompletionQueue) {
        // It has an epoll instance or an eventfd of gRPC's own, which says nothing.
        return call.and_then(|call| call.connection.as_ref()).map(|it| it.text.clone());
    }
    let for_child = !matches!(operand, Operand::Child(_)) && purpose == Some(Purpose::ChildProcess);
    if for_child {
        // The pipe or loop that it waits at says nothing; the child may.
        let known = call.and_then(|call| call.child.as_ref());
        if known.is_none() {
            gaps.push(Gap::new("target", "which of its children it waits for was not seen"));
        }
        return known.map(|child| words_of_child(child.pid, child));
    }
    match operand {
        Operand::Descriptor(number) => {
            let seen = call.and_then(|call| call.descriptor.as_ref());
            let known = seen.map(|seen| &seen.text).or_else(|| descriptors.get(&number)).cloned();
            if known.is_none() {
                let reason = format!("what descriptor {number} stands for was not read");
                gaps.push(Gap::new("target", reason));
            }
            known
        }
        Operand::Child(Some(pid)) => {
            let child = call.and_then(|call| call.child.as_ref());
            Some(child.map_or_else(|| format!("child {pid}"), |child| words_of_child(pid, child)))
        }
        Operand::Child(None) => {
            let only = call.and_then(|call| call.child.as_ref());
            Some(only.map_or_else(|| "any child".to_owned(), |only| words_of_child(only.pid, only)))
        }
        Operand::InMemory => {
            let known = call.and_then(in_memory);
            if known.is_none() {
                let reason = match call {
                    None => format!("{syscall} names it by a pointer that was not followed"),
                    Some(_) => format!("what {syscall} points to cannot be read"),
                };
                gaps.push(Gap::new("target", reason));
            }
            known
        }
        Operand::Nothing => None,
    }
}

/// A path, or the descriptors that are polled.
fn in_memory(call: &call::Call) -> Option<String> {
    if let Some(path) = &call.path {
        return Some(path.clone());
    }
    let Some((first, others)) = call.polled.split_first() else {
        return call.descriptor.as_ref().map(|descriptor| descriptor.text.clone());
    };
    Some(with_others(first.text.clone(), others.len() + call.more_polled as usize))
}

/// `/srv/a.json and 12 others`
pub fn with_others(target: String, others: usize) -> String {
    match others {
        0 => target,
        1 => format!("{target} and another"),
        _ => format!("{target} and {others} others"),
    }
}

/// The one socket that it waited at.
pub fn socket(sampled: &Sampled) -> Option<&call::Descriptor> {
    let call = sampled.call.as_deref()?;
    let descriptor = match call.polled.as_slice() {
        [] => call.descriptor.as_ref(),
        [only] if call.more_polled == 0 => Some(only),
        _ => None,
    };
    descriptor.filter(|it| it.kind == call::Kind::Socket)
}

/// How many other things than the first the stacks' calls worked on, as far as that is known. Those on
/// one socket are on one thing, and a call on several says so by itself.
pub fn others(stacks: &[&Sampled]) -> usize {
    let text = |sampled: &&Sampled| {
        let call = sampled.call.as_deref()?;
        if socket(sampled).is_some() || call.polled.len() > 1 {
            return None;
        }
        let of_descriptor = call.descriptor.as_ref().map(|it| it.text.clone());
        of_descriptor.or_else(|| in_memory(call))
    };
    let texts: BTreeSet<String> = stacks.iter().filter_map(text).collect();
    texts.len().saturating_sub(1)
}

/// `child 4711 (pg_dump shop)`
fn words_of_child(pid: u32, child: &call::Peer) -> String {
    match child.command.as_ref().or(child.name.as_ref()) {
        Some(command) => format!("child {pid} ({})", shortened(command)),
        None => format!("child {pid}"),
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_COMMAND) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// The type of the file system that the call's file is on.
pub fn file_system(sampled: &Sampled) -> Option<&str> {
    let call = sampled.call.as_deref();
    let descriptor = call.and_then(|call| call.descriptor.as_ref());
    let of_descriptor = descriptor.and_then(|seen| seen.file_system.as_deref());
    let of_path = call.and_then(|call| call.file_system.as_deref());
    of_path.or(of_descriptor).or_else(|| by_kernel(sampled))
}

/// A file system that is elsewhere, by the names of its functions on the kernel stack.
fn by_kernel(sampled: &Sampled) -> Option<&'static str> {
    const FUNCTIONS: [(&str, &str); 6] = [
        ("fuse_", "fuse"),
        ("nfs4_", "nfs4"),
        ("nfs_", "nfs"),
        ("cifs_", "cifs"),
        ("ceph_", "ceph"),
        ("v9fs_", "9p"),
    ];
    let names = sampled.stack.kernel.iter().filter_map(|frame| frame.function.as_deref());
    let mut known = names.flat_map(|name| {
        FUNCTIONS.iter().find(|(start, _)| name.starts_with(start)).map(|(_, kind)| *kind)
    });
    known.next()
}

/// The fields of a blocked call.
pub fn call(stall: &Stall, sampled: &Sampled, gaps: &mut Vec<Gap>) -> ReportedCall {
    let purpose = purpose::of(&sampled.registers, &sampled.stack);
    let Some(seen) = sampled.call.as_deref() else {
        return ReportedCall { purpose, ..ReportedCall::default() };
    };
    let woken_by = woken::by(stall, sampled, gaps);
    gaps.extend_from_slice(&seen.gaps);
    let is_socket = seen.descriptor.as_ref().is_some_and(|it| it.kind == call::Kind::Socket);
    if !seen.is_seen && seen.gaps.is_empty() && is_socket {
        gaps.push(Gap::new("timeout", "each of the waits was over before it could be asked for"));
    }
    ReportedCall {
        descriptor: seen.descriptor.as_ref().map(descriptor),
        polled: seen.polled.iter().map(descriptor).collect(),
        polled_more: seen.more_polled,
        path: seen.path.clone().or_else(|| seen.database.clone()),
        file_system: seen.file_system.clone(),
        connection: seen.connection.as_ref().map(descriptor),
        timeout: seen.timeout.map(schema::ReportedTimeout::from),
        purpose,
        held_by: seen.held_by.iter().map(ReportedPeer::from).collect(),
        child: seen.child.as_ref().map(ReportedPeer::from),
        woken_by,
    }
}

/// The fields of a sleep.
pub fn sleep(sampled: &Sampled, syscall: String, gaps: &mut Vec<Gap>) -> CauseKind {
    let purpose = purpose::of(&sampled.registers, &sampled.stack);
    let seen = sampled.call.as_deref();
    gaps.extend(seen.into_iter().flat_map(|seen| seen.gaps.iter().cloned()));
    CauseKind::Sleep {
        syscall,
        asked_ns: seen.and_then(asked),
        purpose,
        path: seen.and_then(|seen| seen.database.clone()),
        held_by: seen
            .map(|seen| &seen.held_by)
            .into_iter()
            .flatten()
            .map(ReportedPeer::from)
            .collect(),
        ran_out_ns: Vec::new(),
    }
}

/// A `poll` without descriptors sleeps for its timeout.
fn asked(seen: &call::Call) -> Option<u64> {
    let by_timeout = match seen.timeout {
        Some(Timeout::Ns(ns)) => Some(ns),
        Some(Timeout::None) | None => None,
    };
    seen.asked_ns.or(by_timeout)
}

fn descriptor(seen: &call::Descriptor) -> schema::ReportedDescriptor {
    schema::ReportedDescriptor {
        number: seen.number,
        kind: seen.kind.into(),
        local: seen.local.clone(),
        peer: seen.peer.clone(),
        state: seen.state.map(str::to_owned),
        is_inbound: seen.is_inbound,
        path: seen.path.clone(),
        file_system: seen.file_system.clone(),
        process: seen.process.as_ref().map(ReportedPeer::from),
    }
}

impl From<&call::Peer> for ReportedPeer {
    fn from(peer: &call::Peer) -> Self {
        let call::Peer { pid, name, command } = peer.clone();
        Self { pid, name, command }
    }
}

impl From<Timeout> for schema::ReportedTimeout {
    fn from(timeout: Timeout) -> Self {
        match timeout {
            Timeout::None => Self::None,
            Timeout::Ns(ns) => Self::Ns(ns),
        }
    }
}

impl From<call::Kind> for DescriptorKind {
    fn from(kind: call::Kind) -> Self {
        match kind {
            call::Kind::File => Self::File,
            call::Kind::Socket => Self::Socket,
            call::Kind::Pipe => Self::Pipe,
            call::Kind::Terminal => Self::Terminal,
            call::Kind::Device => Self::Device,
            call::Kind::Eventfd => Self::Eventfd,
            call::Kind::Timerfd => Self::Timerfd,
            call::Kind::Signalfd => Self::Signalfd,
            call::Kind::Inotify => Self::Inotify,
            call::Kind::Epoll => Self::Epoll,
            call::Kind::Pidfd => Self::Pidfd,
            call::Kind::IoUring => Self::IoUring,
            call::Kind::Other => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::blocked::phrase;
    use super::{call, sleep, target};
    use crate::call::{Call, Descriptor, Kind, Peer, Timeout};
    use crate::report::sample::{self, blocked_in, kernel, native, python};
    use crate::report::schema::stall::CauseKind;
    use crate::syscall;
    use crate::turn::{End, Sampled, Stall};

    const RECVFROM: i64 = 45;
    const POLL: i64 = 7;

    fn socket(number: u32) -> Descriptor {
        Descriptor::new(number, Kind::Socket, &format!("tcp 10.0.0.{number}:443"))
    }

    fn seen(syscall: i64, args: [u64; 6], call: Call) -> Sampled {
        let call = Some(Box::new(Call { is_seen: true, ..call }));
        Sampled { call, ..blocked_in(syscall, args, 90) }
    }

    /// The words and the gaps of a call.
    fn told(sampled: &Sampled) -> (String, Vec<String>) {
        let mut gaps = Vec::new();
        let registers = &sampled.registers;
        let syscall = syscall::name(registers.syscall).unwrap_or_default().to_owned();
        let kind = if syscall::is_sleep(registers) {
            sleep(sampled, syscall, &mut gaps)
        } else {
            let target = target(sampled, &syscall, &BTreeMap::new(), &mut gaps);
            let stall = Stall { end: End::NotYet, ..sample::stall() };
            let call = Box::new(call(&stall, sampled, &mut gaps));
            CauseKind::Syscall { syscall, args: Vec::new(), target, call }
        };
        (phrase(&kind), gaps.into_iter().map(|gap| gap.0).collect())
    }

    /// A timeout, and that there is none, is said of sockets and polls; what is not known is not.
    #[test]
    fn timeouts() {
        let receiving = |timeout| {
            let call = Call { descriptor: Some(socket(7)), timeout, ..Call::default() };
            told(&seen(RECVFROM, [7, 0, 0, 0, 0, 0], call)).0
        };
        let words = "blocked in recvfrom on tcp 10.0.0.7:443";
        assert_eq!(receiving(Some(Timeout::None)), format!("{words}, without a timeout"));
        let set = Some(Timeout::Ns(800_000_000));
        assert_eq!(receiving(set), format!("{words} (timeout 800 ms)"));
        assert_eq!(receiving(Some(Timeout::Ns(5))), words);
        assert_eq!(receiving(None), words);
        let polled = vec![socket(7), socket(8)];
        let timeout = Some(Timeout::None);
        let call = Call { polled, more_polled: 2, timeout, ..Call::default() };
        let expected = "blocked in poll on tcp 10.0.0.7:443 and 3 others, without a timeout";
        assert_eq!(told(&seen(POLL, [0x7000, 4, 0, 0, 0, 0], call)).0, expected);
        let connecting = Descriptor { state: Some("syn_sent"), ..socket(7) };
        let call = Call { polled: vec![connecting], timeout: set, ..Call::default() };
        let expected = "blocked in poll on tcp 10.0.0.7:443, still connecting (timeout 800 ms)";
        assert_eq!(told(&seen(POLL, [0x7000, 1, 0, 0, 0, 0], call)).0, expected);
        let process = Some(Peer { pid: 77, name: Some("collector".to_owned()), command: None });
        let full = Descriptor { process, ..Descriptor::new(1, Kind::Pipe, "pipe") };
        let call = Call { descriptor: Some(full), ..Call::default() };
        let expected = "blocked in write on pipe to process 77 (collector)";
        assert_eq!(told(&seen(1, [1, 0, 0, 0, 0, 0], call)).0, expected);
        let pipe = Some(Descriptor::new(3, Kind::Pipe, "pipe"));
        let call = Call { descriptor: pipe, timeout, ..Call::default() };
        assert_eq!(told(&seen(0, [3, 0, 0, 0, 0, 0], call)).0, "blocked in read on pipe");
    }

    /// A client that connected is told from a server that is asked.
    #[test]
    fn clients() {
        let client = Descriptor { is_inbound: true, ..socket(7) };
        let call = |timeout| Call { descriptor: Some(client.clone()), timeout, ..Call::default() };
        let on = "on tcp 10.0.0.7:443";
        let receiving = told(&seen(RECVFROM, [7, 0, 0, 0, 0, 0], call(Some(Timeout::None)))).0;
        let expected = format!("blocked in recvfrom {on}: a client's request does not come");
        assert_eq!(receiving, format!("{expected}, without a timeout"));
        let sending = told(&seen(44, [7, 0, 0, 0, 0, 0], call(None))).0;
        let expected = format!("blocked in sendto {on}: a client takes no more of its response");
        assert_eq!(sending, expected);
        let polled = Call { polled: vec![client, socket(8)], ..Call::default() };
        let polling = told(&seen(POLL, [0x7000, 2, 0, 0, 0, 0], polled)).0;
        assert_eq!(polling, "blocked in poll on tcp 10.0.0.7:443 and another");
    }

    /// A call that was over before it was looked at says so.
    #[test]
    fn over_already() {
        let call = Call { descriptor: Some(socket(7)), ..Call::default() };
        let mut sampled = seen(RECVFROM, [7, 0, 0, 0, 0, 0], call);
        if let Some(call) = &mut sampled.call {
            call.is_seen = false;
        }
        let (words, gaps) = told(&sampled);
        assert_eq!(words, "blocked in recvfrom on tcp 10.0.0.7:443");
        assert!(gaps[0].starts_with("timeout: each of the waits was over"), "{gaps:?}");
        let unread = seen(257, [0, 0x7000, 0, 0, 0, 0], Call::default());
        assert_eq!(told(&unread).1, ["target: what openat points to cannot be read"]);
    }

    /// What a call is for is said instead of its name.
    #[test]
    fn purposes() {
        let peer = |pid, name: &str, command: &str| Peer {
            pid,
            name: Some(name.to_owned()),
            command: Some(command.to_owned()),
        };
        let mut server = socket(5);
        server.text = "udp 127.0.0.53:53".to_owned();
        let timeout = Some(Timeout::Ns(5));
        let mut looking = seen(
            POLL,
            [0x7000, 1, 5000, 0, 0, 0],
            Call { polled: vec![server], timeout, ..Call::default() },
        );
        looking.stack.frames = vec![native("getaddrinfo", "/lib/libc.so.6")];
        assert_eq!(told(&looking).0, "looking up a host name at udp 127.0.0.53:53");

        let call = Call { child: Some(peer(4711, "pg_dump", "pg_dump shop")), ..Call::default() };
        let waiting = seen(61, [4711, 0, 0, 0, 0, 0], call);
        assert_eq!(told(&waiting).0, "waiting for child 4711 (pg_dump shop)");

        let pipe = Descriptor::new(8, Kind::Pipe, "pipe");
        let child = Some(peer(4711, "sh", "sh -c dump"));
        let call = Call { descriptor: Some(pipe), child, ..Call::default() };
        let mut reading = seen(0, [8, 0, 0, 0, 0, 0], call);
        reading.stack.frames = vec![python("run", "/usr/lib/python3.11/subprocess.py", 550)];
        assert_eq!(told(&reading).0, "waiting for child 4711 (sh -c dump)");
        if let Some(call) = &mut reading.call {
            call.child = None;
        }
        let (words, gaps) = told(&reading);
        assert_eq!(words, "waiting for a child process");
        assert_eq!(gaps, ["target: which of its children it waits for was not seen"]);

        let file = Descriptor::new(9, Kind::File, "/run/x.lock");
        let held_by = vec![peer(77, "backup", "backup -a"), peer(78, "other", "")];
        let call = Call { descriptor: Some(file), held_by: held_by.clone(), ..Call::default() };
        let expected =
            "waiting for a file lock on /run/x.lock, held by process 77 (backup) and 1 more";
        assert_eq!(told(&seen(73, [9, 2, 0, 0, 0, 0], call)).0, expected);

        let database = Some("/srv/app.db".to_owned());
        let mut busy = seen(230, [0; 6], Call { database, held_by, ..Call::default() });
        busy.stack.frames = vec![native("sqlite3_step", "/lib/libsqlite3.so.0")];
        let expected = "waiting for a locked SQLite database (/srv/app.db), held by process 77 (backup) and 1 more";
        assert_eq!(told(&busy).0, expected);
        busy.stack.frames.clear();
        assert_eq!(told(&busy).0, "asleep in clock_nanosleep");
    }

    /// Who checks a file on access is told, also of a program that is started; and where nobody was found, that
    /// it is another process.
    #[test]
    fn checks_on_access() {
        let scanner =
            Peer { pid: 4711, name: Some("scanner".to_owned()), command: Some("scand".to_owned()) };
        let opening = |path: Option<&str>, held_by: &[Peer]| {
            let (path, held_by) = (path.map(str::to_owned), held_by.to_vec());
            let mut opening = seen(257, [0; 6], Call { path, held_by, ..Call::default() });
            opening.stack.kernel = vec![kernel("fanotify_handle_event"), kernel("fsnotify")];
            told(&opening).0
        };
        let scanner = [scanner];
        assert_eq!(
            opening(Some("/srv/x.csv"), &scanner),
            "blocked in openat on /srv/x.csv, which process 4711 (scanner) checks on access"
        );
        let nobody = "blocked in openat on /srv/x.csv, which another process checks on access";
        assert_eq!(opening(Some("/srv/x.csv"), &[]), nobody);
        let nameless = "blocked in openat on a file, which another process checks on access";
        assert_eq!(opening(None, &[]), nameless);
        let path = Some("./tool".to_owned());
        let call = Call { path, held_by: scanner.to_vec(), ..Call::default() };
        let starting = "starting ./tool, which process 4711 (scanner) checks on access";
        assert_eq!(told(&seen(58, [0; 6], call)).0, starting);
    }

    /// gRPC's own epoll instance is not told, but its peer, where there is one.
    #[test]
    fn completion_queues() {
        let waiting = |connection| {
            let descriptor = Some(Descriptor::new(3, Kind::Epoll, "eventpoll"));
            let call = Call { descriptor, connection, ..Call::default() };
            let mut waiting = seen(232, [3, 0x7000, 100, 201, 0, 0], call);
            waiting.stack.frames = vec![native("cq_next", "/usr/lib/libgrpc.so.29")];
            told(&waiting).0
        };
        let expected = "waiting for gRPC's completion queue, peer tcp 10.0.0.7:443";
        assert_eq!(waiting(Some(socket(7))), expected);
        assert_eq!(waiting(None), "waiting for gRPC's completion queue");
    }

    /// A file that is elsewhere says where, and its path is whole.
    #[test]
    fn files_elsewhere() {
        let call = Call {
            path: Some("/mnt/data/x".to_owned()),
            file_system: Some("nfs4".to_owned()),
            ..Call::default()
        };
        let opening = seen(257, [0, 0x7000, 0, 0, 0, 0], call);
        assert_eq!(told(&opening).0, "blocked in openat on /mnt/data/x (nfs4)");
    }
}
