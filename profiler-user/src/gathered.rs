//! What was gathered about one loop's present turn: its stacks, who held what it waited for, and what
//! its descriptors stood for.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::frame::Frame;
use crate::process::descriptors::describe;
use crate::runtime::tokio;
use crate::turn::parked::Parked;
use crate::turn::samples::Samples;
use crate::turn::{Awaited, Holder, Sampled};

/// Descriptors described in one turn: each may cost a look through the socket tables.
const MAX_DESCRIPTORS: usize = 8;

/// A thread that was seen to hold what the loop waited for.
#[derive(Debug, Default)]
pub struct Holding {
    /// As it was called then: it may have exited since.
    pub name: Option<String>,
    pub samples: Samples,
}

/// The captures of one loop's present turn.
#[derive(Debug, Default)]
pub struct Gathered {
    turn_start_ns: u64,
    pub samples: Samples,
    pub loop_kind: Option<&'static str>,
    pub parked: Parked,
    /// Who was seen to hold what the thread waited for.
    pub holders: BTreeMap<u32, Holding>,
    /// What the descriptors that it blocked on stood for at that time; none where one number stood
    /// for several in the same turn.
    descriptors: BTreeMap<u32, Option<String>>,
}

impl Gathered {
    /// Lets go of what belongs to another turn. Of what kind the loop is stays known.
    pub fn keep_to(&mut self, turn_start_ns: u64) {
        if self.turn_start_ns != turn_start_ns {
            *self = Self { turn_start_ns, loop_kind: self.loop_kind, ..Self::default() };
        }
    }

    pub fn descriptors(&self) -> BTreeMap<u32, String> {
        let known = |(fd, text): (&u32, &Option<String>)| Some((*fd, text.clone()?));
        self.descriptors.iter().filter_map(known).collect()
    }

    /// The holders' stacks, with their shares of the time that the loop waited for the lock.
    pub fn holders(&self, stacks: &[Sampled]) -> Vec<Holder> {
        let waits = stacks.iter().filter(|sampled| sampled.awaited == Awaited::Gil);
        let waited_ns: u64 = waits.map(|sampled| sampled.time_ns).sum();
        let all: u64 = self.holders.values().map(|holding| holding.samples.ticks().0).sum();
        let mut holders = Vec::new();
        for (tid, holding) in &self.holders {
            let share = u128::from(waited_ns) * u128::from(holding.samples.ticks().0);
            let share_ns = (share / u128::from(all.max(1))) as u64;
            for seen in holding.samples.stacks(share_ns, 0) {
                holders.push(Holder { tid: *tid, name: holding.name.clone(), seen });
            }
        }
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.seen.time_ns));
        holders
    }

    pub fn describe(&mut self, fd: u32, pid: u32) {
        if self.descriptors.len() >= MAX_DESCRIPTORS && !self.descriptors.contains_key(&fd) {
            return;
        }
        let Some(text) = describe(pid, fd) else { return };
        match self.descriptors.entry(fd) {
            Entry::Vacant(entry) => {
                entry.insert(Some(text));
            }
            Entry::Occupied(mut entry) => {
                if entry.get().as_ref() != Some(&text) {
                    entry.insert(None);
                }
            }
        }
    }
}

/// Which event loop's code the stack runs in, by its own frames.
pub fn loop_kind(frames: &[Frame]) -> Option<&'static str> {
    let of = |frame: &Frame| {
        let module = frame.module.as_deref().unwrap_or_default();
        let file = frame.file.as_deref().unwrap_or_default();
        let function = frame.function.as_deref().unwrap_or_default();
        if module.contains("/uvloop/") {
            Some("uvloop")
        } else if file.ends_with("/asyncio/base_events.py") {
            Some("asyncio")
        } else if function == "uv_run" {
            Some("libuv")
        } else if tokio::is_runtime(frame) {
            Some("tokio")
        } else {
            None
        }
    };
    // uvloop's frames lie inside libuv's and those of asyncio's runner around both.
    frames.iter().find_map(of)
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::record::Registers;

    use super::{Gathered, Holding};
    use crate::frame::Stack;
    use crate::turn::{Awaited, Sampled, ThreadState};

    /// Holders share the time that the loop waited for the lock, by how often each was seen; other
    /// waits are not theirs.
    #[test]
    fn holders_share_the_wait() {
        let mut gathered = Gathered::default();
        for (tid, times) in [(7, 1), (8, 3)] {
            let mut holding = Holding { name: Some(format!("t{tid}")), ..Holding::default() };
            for _ in 0..times {
                let registers = Registers::default();
                holding.samples.tick(Stack::default(), ThreadState::RunningUser, registers);
            }
            gathered.holders.insert(tid, holding);
        }
        let waited = |awaited, time_ns| Sampled {
            stack: Stack::default(),
            state: ThreadState::Blocked,
            samples: 1,
            time_ns,
            registers: Registers::default(),
            awaited,
        };
        let stacks = [waited(Awaited::Gil, 400), waited(Awaited::Syscall, 1000)];
        let holders = gathered.holders(&stacks);
        let seen: Vec<_> = holders.iter().map(|holder| (holder.tid, holder.seen.time_ns)).collect();
        assert_eq!(seen, [(8, 300), (7, 100)]);
        assert_eq!(holders[0].name.as_deref(), Some("t8"));
    }

    /// What was gathered of one turn does not show in the next.
    #[test]
    fn turns_do_not_mix() {
        let mut gathered = Gathered { loop_kind: Some("asyncio"), ..Gathered::default() };
        gathered.keep_to(5);
        gathered.holders.insert(7, Holding::default());
        gathered.keep_to(5);
        assert_eq!(gathered.holders.len(), 1);
        gathered.keep_to(6);
        assert!(gathered.holders.is_empty());
        assert_eq!(gathered.loop_kind, Some("asyncio"));
    }
}
