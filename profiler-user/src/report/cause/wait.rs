//! A wait that a thread was blocked in to a cause: a system call, a lock, a disk, memory, or a sleep.

use std::collections::BTreeMap;

use profiler_ebpf::record::Registers;

use super::{Basis, Component, Explanation, called, futex, gvl, held};
use crate::call::is_remote;
use crate::gap::Gap;
use crate::report::hexadecimal;
use crate::report::schema::stall::CauseKind;
use crate::syscall::{self, Operand};
use crate::turn::{Awaited, Lock, Sampled, Stall};

/// What makes blocked stacks the same wait.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wait<'a> {
    syscall: i64,
    operand: Operand,
    /// Of a socket, whose number says nothing: connections to one peer are the same, and the next with
    /// this number may be to another.
    peer: Option<Peer<'a>>,
    awaited: Awaited,
    is_disk: bool,
}

/// The other end of a socket.
#[derive(Debug, Clone, Copy)]
struct Peer<'a> {
    text: &'a str,
    link: &'a str,
}

/// One that was looked at while the call lasted may have a better text than the same socket otherwise.
impl PartialEq for Peer<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text || (self.link == other.link && !self.link.is_empty())
    }
}

impl<'a> Wait<'a> {
    pub fn of(sampled: &'a Sampled) -> Self {
        let socket = called::socket(sampled);
        let peer = socket.map(|it| Peer { text: &it.text, link: &it.link });
        let operand = syscall::operand(&sampled.registers);
        Self {
            syscall: sampled.registers.syscall,
            operand: if peer.is_some() { Operand::Nothing } else { operand },
            peer,
            awaited: sampled.awaited,
            is_disk: is_disk(sampled),
        }
    }
}

pub fn explain<'a>(
    component: &Component<'a>,
    stall: &'a Stall,
    descriptors: &BTreeMap<u32, String>,
) -> Explanation<'a> {
    let mut gaps = Vec::new();
    let heaviest = component.stacks.first();
    let kind = heaviest.map_or(CauseKind::Unknown, |heaviest| {
        let others = called::others(&component.stacks);
        wait_kind(stall, heaviest, others, descriptors, &mut gaps)
    });
    let basis = match kind {
        CauseKind::Unknown => Basis::Missing,
        _ if futex::is_guess(&kind) || gvl::is_inferred(&kind) => Basis::Sampled,
        _ if held::is_all(stall, &kind, component.time_ns, &mut gaps) => Basis::Measured,
        _ => Basis::Sampled,
    };
    let lock = heaviest.and_then(|heaviest| held::lock_of(stall, heaviest));
    let (evidence, blamed) = lock
        .and_then(|lock| held::evidence(stall, &kind, lock, &mut gaps))
        .unwrap_or_else(|| (component.stacks.clone(), stall.tid));
    Explanation { gaps, ..Explanation::new(kind, basis, evidence, blamed) }
}

/// What a blocked stack was waiting for. `others` is on how many more things the same call waited.
pub fn wait_kind(
    stall: &Stall,
    sampled: &Sampled,
    others: usize,
    descriptors: &BTreeMap<u32, String>,
    gaps: &mut Vec<Gap>,
) -> CauseKind {
    let registers = &sampled.registers;
    let inside = registers.syscall >= 0;
    let is_fault = !inside && has_kernel_frame(sampled, "filemap_fault");
    if !inside && !is_disk(sampled) && !is_fault {
        let reason = "the thread was blocked outside any system call, and its kernel stack does not say in what";
        gaps.push(Gap::new("cause", reason));
        return CauseKind::Unknown;
    }
    if !inside {
        gaps.push(Gap::new("target", "which file the page belongs to is not recorded"));
        let file_system = called::file_system(sampled).map(str::to_owned);
        return CauseKind::Disk { syscall: None, target: None, file_system };
    }
    let syscall = syscall_name(registers);
    if syscall::is_sleep(registers) {
        return called::sleep(sampled, syscall, gaps);
    }
    match held::lock_of(stall, sampled) {
        Some(Lock::Gil) => return held::gil(stall, gaps),
        Some(Lock::Gvl) => return gvl::cause(stall, gaps),
        Some(Lock::Futex(futex)) => return futex::explain(stall, sampled, futex, gaps),
        None => {}
    }
    let target = called::target(sampled, &syscall, descriptors, gaps);
    let target = target.map(|target| called::with_others(target, others));
    if is_disk(sampled) {
        let file_system = called::file_system(sampled).map(str::to_owned);
        return CauseKind::Disk { syscall: Some(syscall), target, file_system };
    }
    let args = registers.args.map(hexadecimal).to_vec();
    let call = Box::new(called::call(stall, sampled, gaps));
    CauseKind::Syscall { syscall, args, target, call }
}

/// The kernel's functions that wait in `io_schedule` for a page, a buffer or a request of a block device,
/// or for the journal of one. /proc/PID/stack leaves `io_schedule` itself out, as all of the scheduler's.
const IN_IO_WAIT: [&str; 16] = [
    "io_schedule",
    "folio_wait_bit",
    "folio_wait_private",
    "__folio_lock",
    "wait_on_page_bit",
    "__lock_page",
    "bit_wait_io",
    "__wait_on_buffer",
    "submit_bio_wait",
    "blk_wait_io",
    "rq_qos_wait",
    "blk_mq_get_tag",
    "__iomap_dio_rw",
    "__blkdev_direct_IO",
    "balance_dirty_pages",
    "jbd2_log_wait_commit",
];

/// Whether the kernel waited for a block device: that accounts as I/O wait, in `io_schedule`. A page of a
/// file that is elsewhere does so, too, but there no disk of this machine is slow.
fn is_disk(sampled: &Sampled) -> bool {
    let waits = syscall::is_write_back(&sampled.registers)
        || IN_IO_WAIT.iter().any(|function| has_kernel_frame(sampled, function));
    waits && !called::file_system(sampled).is_some_and(is_remote)
}

fn has_kernel_frame(sampled: &Sampled, prefix: &str) -> bool {
    let named = |name: &str| name.starts_with(prefix);
    sampled.stack.kernel.iter().any(|frame| frame.function.as_deref().is_some_and(named))
}

fn syscall_name(registers: &Registers) -> String {
    let number = registers.syscall;
    syscall::name(number).map_or_else(|| format!("system call {number}"), str::to_owned)
}
