//! Records into the ring buffer, or a count of what did not fit; and whether the daemon is to read them at once.

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::{bpf_ringbuf_output, bpf_ringbuf_query};
use profiler_ebpf::counter::Counter;
use profiler_ebpf::limits::RING_BYTES;
use profiler_ebpf::record::{Capture, CaptureHead};

use crate::maps::{RECORDS, count};

/// When the daemon reads a record. To wake it takes some 9 µs of the caller's time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// When it looks next.
    Later,
    Now,
}

/// Past so many bytes in the ring, the daemon is woken to make room.
const FULL_BYTES: u64 = RING_BYTES as u64 / 4;

/// Sends a small record.
#[inline(always)]
pub fn record<T: 'static>(record: &T, loss: Counter, read: Read) {
    if RECORDS.output::<T>(record, flags(read == Read::Now)).is_err() {
        count(loss);
    }
}

/// Sends a capture up to the last byte of stack that it has, or its head alone where it has no stack.
#[inline(always)]
pub fn capture(capture: &Capture, read: Read) {
    let stack_bytes = u64::from(core::hint::black_box(capture.head.stack_bytes));
    let bytes = if stack_bytes == 0 {
        size_of::<CaptureHead>() as u64
    } else {
        core::mem::offset_of!(Capture, stack) as u64 + (stack_bytes & 0xffff)
    };
    let ring = (&raw const RECORDS).cast_mut().cast();
    // SAFETY: the pointer is to the ring's map, and the capture is as long as its whole stack, by which the mask bounds the length.
    let failed = unsafe {
        let is_full = bpf_ringbuf_query(ring, u64::from(BPF_RB_AVAIL_DATA)) > FULL_BYTES;
        let from = core::ptr::from_ref(capture).cast_mut().cast();
        bpf_ringbuf_output(ring, from, bytes, flags(is_full || read == Read::Now))
    };
    if failed != 0 {
        count(Counter::CaptureLost);
    }
}

#[inline(always)]
fn flags(wakes: bool) -> u64 {
    u64::from(if wakes { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP })
}
