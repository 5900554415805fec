//! A stall to the same without the command lines of other processes: arguments may hold what is nobody else's business.

use super::{Sampled, Stall};
use crate::call::{Call, Peer};

impl Stall {
    /// Forgets them. Names and numbers stay.
    pub fn hide_commands(&mut self) {
        let wakers = self.wakers.iter_mut().filter_map(|waker| {
            waker.command = None;
            waker.seen.as_mut()
        });
        let others = self.others.iter_mut().map(|other| &mut other.seen);
        let away = self.away.iter_mut().flat_map(|away| &mut away.stacks);
        let company = self.company.threads.iter_mut().map(|companion| &mut companion.seen);
        let holders = self.holders.iter_mut().map(|holder| &mut holder.seen);
        let stacks = self.stacks.iter_mut().chain(holders).chain(company).chain(away);
        stacks.chain(others).chain(wakers).for_each(hide_in);
        for process in self.contention.processes.values_mut() {
            process.command = None;
        }
    }
}

fn hide_in(sampled: &mut Sampled) {
    let Some(call) = sampled.call.as_deref_mut() else { return };
    let Call { descriptor, polled, connection, held_by, child, .. } = call;
    let descriptors = descriptor.iter_mut().chain(polled).chain(connection);
    let processes = descriptors.filter_map(|descriptor| descriptor.process.as_mut());
    processes.chain(held_by).chain(child).for_each(hide);
}

fn hide(peer: &mut Peer) {
    peer.command = None;
}

#[cfg(test)]
mod tests {
    use crate::call::{Call, Descriptor, Kind, Peer};
    use crate::process::other_process::OtherProcess;
    use crate::report::sample;
    use crate::turn::{Away, Companion, Holder, Lock, Other, Sampled, Stall, ThreadState, Waker};

    /// Written into every place where a command line can stand.
    const SECRET: &str = "--password=hunter2";

    fn sampled() -> Sampled {
        let peer =
            || Peer { pid: 77, name: Some("bank".to_owned()), command: Some(SECRET.to_owned()) };
        let descriptor =
            || Descriptor { process: Some(peer()), ..Descriptor::new(7, Kind::Pipe, "pipe") };
        let call = Call {
            descriptor: Some(descriptor()),
            polled: vec![descriptor()],
            connection: Some(descriptor()),
            held_by: vec![peer()],
            child: Some(peer()),
            ..Call::default()
        };
        Sampled { call: Some(Box::new(call)), ..sample::blocked_in(61, [77, 0, 0, 0, 0, 0], 9) }
    }

    fn stall() -> Stall {
        let command = || Some(SECRET.to_owned());
        let mut stall = sample::stall();
        stall.stacks = vec![sampled()];
        stall.holders =
            vec![Holder { tid: 1, name: None, held: Lock::Gil, seen: sampled(), collecting: 0 }];
        let (name, seen) = (None, sampled());
        stall.company.threads =
            vec![Companion { tid: 1, name, seen, is_parked: false, waits_for: None }];
        stall.wakers =
            vec![Waker { command: command(), seen: Some(sampled()), ..Waker::default() }];
        stall.others = vec![Other { tid: 1, name: None, seen: sampled() }];
        let (state, stacks) = (ThreadState::Blocked, vec![sampled()]);
        stall.away = vec![Away { tid: 1, name: None, state, time_ns: 1, stacks }];
        let process = OtherProcess { command: command(), ..OtherProcess::default() };
        stall.contention.processes.insert(77, process);
        stall
    }

    /// No command line is left anywhere; who it was is.
    #[test]
    fn all_are_hidden() {
        let mut stall = stall();
        assert_eq!(format!("{stall:?}").matches(SECRET).count(), 32);
        stall.hide_commands();
        let left = format!("{stall:?}");
        assert!(!left.contains(SECRET) && left.contains("bank"), "{left}");
    }
}
