//! What makes blocked stacks the same wait: the call, what it works on, and whether a disk was slow.

use super::called;
use crate::call::is_remote;
use crate::syscall::{self, Operand};
use crate::turn::{Awaited, Sampled};

/// What makes blocked stacks the same wait.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SameWait<'a> {
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

impl<'a> SameWait<'a> {
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
pub fn is_disk(sampled: &Sampled) -> bool {
    let waits = syscall::is_write_back(&sampled.registers)
        || IN_IO_WAIT.iter().any(|function| has_kernel_frame(sampled, function));
    waits && !called::file_system(sampled).is_some_and(is_remote)
}

pub fn has_kernel_frame(sampled: &Sampled, prefix: &str) -> bool {
    let named = |name: &str| name.starts_with(prefix);
    sampled.stack.kernel.iter().any(|frame| frame.function.as_deref().is_some_and(named))
}
