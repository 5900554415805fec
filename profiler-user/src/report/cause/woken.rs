//! Who ended a wait in a system call, as far as that can be believed.
//!
//! The probes name a task whose own system call is of the kind that ends such a wait. An interrupt that
//! ends it may come upon a task in such a call by chance: a packet off the network, above all. So
//! whoever is named must also have had the other end, where that is known.

use profiler_ebpf::wanted::may_be_ended;

use crate::call::{Call, Descriptor, Kind};
use crate::gap::Gap;
use crate::report::purpose::{self, Purpose};
use crate::report::schema::call::ReportedWaker;
use crate::turn::{self, Awaited, End, Sampled, Stall};

/// Who ended the longest of the waits that this stack shows.
pub fn by(stall: &Stall, sampled: &Sampled, gaps: &mut Vec<Gap>) -> Option<ReportedWaker> {
    let call = sampled.call.as_deref();
    let named = stall.wakers.iter().find(|waker| ended(waker, sampled));
    let believed = named.map(|waker| (waker, disbelief(waker.pid, call)));
    let reason = match believed {
        Some((waker, None)) => return Some(of(waker)),
        Some((_, Some(reason))) => reason,
        None if stall.end == End::NotYet || !may_be_ended(&sampled.registers) => return None,
        // Who answers about a file that is opened is not watched.
        None if is_checked(sampled) => return None,
        None => without_waker(call),
    };
    gaps.push(Gap::new("woken_by", reason));
    None
}

fn is_checked(sampled: &Sampled) -> bool {
    purpose::of(&sampled.registers, &sampled.stack) == Some(Purpose::AccessCheck)
}

pub fn of(waker: &turn::Waker) -> ReportedWaker {
    let turn::Waker { pid, tid, name, command, .. } = waker.clone();
    ReportedWaker { pid, tid, name, command }
}

fn ended(waker: &turn::Waker, sampled: &Sampled) -> bool {
    let of = |registers: &profiler_ebpf::record::Registers| (registers.syscall, registers.args[0]);
    waker.awaited == Awaited::Syscall && of(&waker.wait) == of(&sampled.registers)
}

/// Why that process cannot be said to have ended the call; none if it can.
fn disbelief(pid: u32, call: Option<&Call>) -> Option<&'static str> {
    let Some(call) = call.filter(|call| call.is_seen) else {
        return Some("what was at the other end was not seen while the wait lasted");
    };
    let descriptors = || call.descriptor.iter().chain(&call.polled);
    let peers = descriptors().filter_map(|it| it.process.as_ref()).chain(&call.held_by);
    // What a child has open, its own children have, too, and one of those may close it last.
    let is_for_child = descriptors().next().is_none();
    let child = call.child.iter().filter(|_| is_for_child);
    let peers: Vec<u32> = peers.chain(child).map(|peer| peer.pid).collect();
    // A process that listens at a unix socket may leave its connections to another.
    if peers.contains(&pid) || descriptors().any(Descriptor::is_unix) {
        None
    } else if descriptors().any(is_internet) {
        Some(match descriptors().any(|it| it.process.is_some()) {
            true => "whoever was in a system call at that moment does not have the peer's socket",
            false => "no process of this machine has the peer's socket",
        })
    } else if peers.is_empty() {
        None
    } else {
        Some("whoever was in a system call at that moment does not have the other end")
    }
}

fn without_waker(call: Option<&Call>) -> &'static str {
    let descriptor = call.and_then(|call| call.descriptor.as_ref());
    match descriptor {
        Some(descriptor) if is_internet(descriptor) && descriptor.process.is_none() => {
            "no process of this machine has the peer's socket"
        }
        _ => "no system call was seen to end it: a timeout, a signal or the kernel itself did",
    }
}

fn is_internet(descriptor: &Descriptor) -> bool {
    descriptor.kind == Kind::Socket && !descriptor.is_unix()
}

#[cfg(test)]
mod tests {
    use super::by;
    use crate::call::{Call, Descriptor, Kind, Peer};
    use crate::report::sample::{self, blocked_in};
    use crate::turn::{Awaited, End, Sampled, Stall, Waker};

    const READ: i64 = 0;

    fn descriptor(kind: Kind, text: &str, pid: Option<u32>) -> Option<Descriptor> {
        let process = pid.map(|pid| Peer { pid, name: None, command: None });
        Some(Descriptor { process, ..Descriptor::new(7, kind, text) })
    }

    /// Who is named to have ended a read that these processes had to do with, and the gaps.
    fn told(call: Option<Call>, pids: &[u32], end: End) -> (Option<u32>, Vec<String>) {
        let call = call.map(|call| Box::new(Call { is_seen: true, ..call }));
        let read = Sampled { call, ..blocked_in(READ, [7, 0, 0, 0, 0, 0], 90) };
        let (awaited, wait) = (Awaited::Syscall, read.registers);
        let waker = |pid: &u32| Waker { pid: *pid, awaited, wait, ..Waker::default() };
        let wakers = pids.iter().map(waker).collect();
        let stall = Stall { wakers, end, ..sample::stall() };
        let mut gaps = Vec::new();
        let waker = by(&stall, &read, &mut gaps).map(|waker| waker.pid);
        (waker, gaps.into_iter().map(|gap| gap.0).collect())
    }

    fn ended_by(descriptor: Option<Descriptor>, pid: u32) -> Option<u32> {
        told(Some(Call { descriptor, ..Call::default() }), &[pid], End::Seen).0
    }

    /// Who was upon the CPU as a packet came is believed only if it has the peer's socket.
    #[test]
    fn peers() {
        let tcp = |pid| descriptor(Kind::Socket, "tcp 10.0.0.5:443", pid);
        assert_eq!(ended_by(tcp(Some(77)), 77), Some(77));
        assert_eq!(ended_by(tcp(Some(77)), 78), None);
        assert_eq!(ended_by(tcp(None), 78), None, "the peer is on another machine");
        let unix = descriptor(Kind::Socket, "unix /run/x.sock", Some(77));
        assert_eq!(ended_by(unix, 78), Some(78), "a worker of the one that listens");
        assert_eq!(ended_by(descriptor(Kind::Pipe, "pipe", Some(77)), 78), None);
        assert_eq!(ended_by(descriptor(Kind::Eventfd, "eventfd", None), 78), Some(78));
    }

    /// Where nobody can be named, the reason is told; while the wait lasts, nobody is missed.
    #[test]
    fn nobody() {
        let (waker, gaps) = told(None, &[77], End::Seen);
        assert_eq!((waker, gaps.len()), (None, 1), "the call was not seen");
        let (_, gaps) = told(Some(Call::default()), &[], End::Seen);
        assert!(gaps[0].contains("a timeout, a signal"), "{gaps:?}");
        assert_eq!(told(Some(Call::default()), &[], End::NotYet).1.len(), 0);
    }

    /// A waker of another wait is not this one's.
    #[test]
    fn another_wait() {
        let (_, gaps) = told(Some(Call::default()), &[], End::Seen);
        let mut stall = sample::stall();
        let wait = blocked_in(READ, [8, 0, 0, 0, 0, 0], 1).registers;
        let awaited = Awaited::Syscall;
        stall.wakers = vec![Waker { pid: 77, awaited, wait, ..Waker::default() }];
        let call = Some(Box::new(Call { is_seen: true, ..Call::default() }));
        let read = Sampled { call, ..blocked_in(READ, [7, 0, 0, 0, 0, 0], 90) };
        let mut found = Vec::new();
        assert_eq!(by(&stall, &read, &mut found), None);
        assert_eq!(found[0].0, gaps[0]);
    }

    /// Who has answered about a file is not looked for where it is opened: nothing is missing.
    #[test]
    fn files_checked_on_access() {
        let mut opening = blocked_in(257, [0; 6], 90);
        let stall = Stall { end: End::Seen, ..sample::stall() };
        let gaps = |opening: &Sampled| {
            let mut gaps = Vec::new();
            assert!(by(&stall, opening, &mut gaps).is_none());
            gaps.len()
        };
        assert_eq!(gaps(&opening), 1);
        opening.stack.kernel = vec![sample::kernel("fanotify_handle_event")];
        assert_eq!(gaps(&opening), 0);
    }
}
