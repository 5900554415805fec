//! What a look from outside at other threads is made with, and for what.

use std::borrow::Cow;

use crate::job::{Bystander, Job, OtherThreadsSeen};
use crate::process::TargetMemory;
use crate::process::lock;
use crate::process::stack::read_stack;
use crate::process::target::Target;
use crate::runtime::runtimes::Runtimes;
use crate::source::Captured;
use crate::turn::Awaited;

/// What the session needs of the target while it looks for a holder.
#[derive(Debug)]
pub struct Outside<'a, S, M> {
    pub source: &'a mut S,
    pub memory: &'a M,
    pub target: &'a Target,
    pub runtimes: &'a mut Runtimes,
}

/// What a loop is blocked in, and since which turn.
#[derive(Debug, Clone, Copy)]
pub struct Blocked<'a> {
    pub captured: &'a Captured,
    pub awaited: Awaited,
    pub now_ns: u64,
}

/// What a look is made for.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    pub loop_tid: u32,
    pub turn_start_ns: u64,
    pub now_ns: u64,
    pub weight_ns: u64,
}

impl Look {
    /// What came of it.
    pub fn seen(
        self,
        still: Vec<Bystander>,
        unmoved: Vec<u32>,
        moving: Vec<u32>,
        left_out: Option<usize>,
    ) -> Job {
        let Self { loop_tid, turn_start_ns, weight_ns, .. } = self;
        Job::Others(Box::new(OtherThreadsSeen {
            loop_tid,
            turn_start_ns,
            weight_ns,
            still,
            unmoved,
            moving,
            left_out,
        }))
    }
}

/// The owner of the lock that a thread is blocked on, by the lock's own words.
pub fn lock_owner<S, M: TargetMemory>(
    outside: &Outside<'_, S, M>,
    captured: &Captured,
) -> Option<u32> {
    let registers = &captured.head.registers;
    lock::owner(outside.memory, registers).or_else(|| {
        let interpreter = outside.runtimes.interpreter()?;
        let [futex, ..] = registers.args;
        let stack = match captured.stack.is_empty() {
            true => Cow::Owned(read_stack(outside.memory, &captured.head)),
            false => Cow::Borrowed(&captured.stack),
        };
        interpreter.lock_owner(outside.memory, &stack, futex)
    })
}
