//! Threads of the target that are on no CPU, to their stacks: read from outside, and kept only if the thread stood still.
//!
//! Nothing is stopped. The kernel tells each thread's registers and how often it has left a CPU; a
//! thread that is off every CPU before and after the reading, with the same count, has not run.

use std::collections::BTreeMap;

use profiler_ebpf::record::{CaptureHead, RecordHead, ThreadSnapshot, kind, reason};
use profiler_ebpf::turn::state;

use crate::process::TargetMemory;
use crate::process::stack::read_stack;
use crate::runtime::Interpreter;
use crate::source::{Captured, EventSource};

/// Threads read between two looks at all of them: the longer that takes, the more of them move.
const AT_ONCE: usize = 16;

/// Threads read at most: a server's pool is smaller, and each costs a look at its memory.
pub const MAX_THREADS: usize = 128;

/// What came of it.
#[derive(Debug, Default)]
pub struct Standing {
    /// Threads that stood still, with their stacks and undecoded interpreter frames.
    pub still: Vec<Captured>,
    /// Threads that were on a CPU, or were on one meanwhile.
    pub moving: Vec<u32>,
    /// Threads that have not been on a CPU since they were read before.
    pub unmoved: Vec<u32>,
    /// How many more there are than are read.
    pub left_out: usize,
}

/// Threads that were read before, and how often each had left a CPU then.
pub type Read = BTreeMap<u32, u64>;

/// Reads those threads that are wanted, but for those that have not moved since they were `read_before`, where
/// that is given.
pub fn read(
    source: &mut impl EventSource,
    memory: &impl TargetMemory,
    interpreter: Option<&dyn Interpreter>,
    wanted: impl Fn(&ThreadSnapshot) -> bool,
    read_before: Option<&mut Read>,
    now_ns: u64,
) -> anyhow::Result<Standing> {
    let mut before = source.threads()?;
    before.retain(wanted);
    let is_unmoved = |thread: &ThreadSnapshot| {
        let known = read_before.as_ref().and_then(|read| read.get(&thread.tid));
        thread.on_cpu == 0 && known == Some(&thread.switches)
    };
    let (unmoved, mut before): (Vec<_>, Vec<_>) = before.into_iter().partition(is_unmoved);
    let states: BTreeMap<u64, u64> = interpreter
        .map(|interpreter| interpreter.states(memory))
        .unwrap_or_default()
        .into_iter()
        .collect();
    let left_out = before.len().saturating_sub(MAX_THREADS);
    before.truncate(MAX_THREADS);
    let unmoved = unmoved.into_iter().map(|thread| thread.tid).collect();
    let mut standing = Standing { left_out, unmoved, ..Standing::default() };
    let mut read = Read::new();
    for some in before.chunks(AT_ONCE) {
        let capture = |thread: &ThreadSnapshot| {
            let of_thread = interpreter.zip(states.get(&thread.fsbase).copied());
            (*thread, (thread.on_cpu == 0).then(|| capture(memory, of_thread, thread, now_ns)))
        };
        let captured: Vec<_> = some.iter().map(capture).collect();
        let after = source.threads()?;
        for (thread, captured) in captured {
            let still = after.iter().any(|now| has_not_run(&thread, now));
            match captured.filter(|_| still) {
                Some(captured) => {
                    read.insert(thread.tid, thread.switches);
                    standing.still.push(captured);
                }
                None => standing.moving.push(thread.tid),
            }
        }
    }
    if let Some(before) = read_before {
        before.retain(|tid, _| standing.unmoved.contains(tid));
        before.extend(read);
    }
    Ok(standing)
}

fn has_not_run(before: &ThreadSnapshot, after: &ThreadSnapshot) -> bool {
    let same = (before.tid, before.switches, before.registers)
        == (after.tid, after.switches, after.registers);
    same && before.on_cpu == 0 && after.on_cpu == 0
}

fn capture(
    memory: &impl TargetMemory,
    interpreter: Option<(&dyn Interpreter, u64)>,
    thread: &ThreadSnapshot,
    now_ns: u64,
) -> Captured {
    let head = CaptureHead {
        head: RecordHead { kind: kind::OTHER, tid: thread.tid },
        at_ns: now_ns,
        reason: reason::SWITCH_OUT,
        state: if thread.task_state == 0 { state::RUNNABLE } else { state::BLOCKED },
        registers: thread.registers,
        stack_top: thread.stack_top,
        fsbase: thread.fsbase,
        ..CaptureHead::default()
    };
    let stack = read_stack(memory, &head);
    let mut captured = Captured::of_outside(head, stack);
    if let Some((interpreter, state)) = interpreter {
        interpreter.walk(memory, state, &mut captured);
    }
    captured
}

#[cfg(test)]
mod tests {
    use super::has_not_run;
    use profiler_ebpf::record::ThreadSnapshot;

    /// A thread that left a CPU meanwhile, or is on one, has moved, even if its registers look alike.
    #[test]
    fn who_stood_still() {
        let before = ThreadSnapshot { tid: 7, switches: 40, ..ThreadSnapshot::default() };
        assert!(has_not_run(&before, &before));
        assert!(!has_not_run(&before, &ThreadSnapshot { switches: 41, ..before }));
        assert!(!has_not_run(&before, &ThreadSnapshot { on_cpu: 1, ..before }));
        assert!(!has_not_run(&ThreadSnapshot { on_cpu: 1, ..before }, &before));
        assert!(!has_not_run(&before, &ThreadSnapshot { tid: 8, ..before }));
    }
}
