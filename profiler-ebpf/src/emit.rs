//! Records into the ring buffer, or a count of what did not fit.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::generated::bpf_ringbuf_output;
use profiler_ebpf::counter::Counter;
use profiler_ebpf::record::{Capture, CaptureHead};

use crate::maps::{RECORDS, count};

/// Sends a small record.
#[inline(always)]
pub fn record<T: 'static>(record: &T, loss: Counter) {
    if RECORDS.output::<T>(record, u64::from(BPF_RB_NO_WAKEUP)).is_err() {
        count(loss);
    }
}

/// Sends a capture up to the last byte of stack that it has, or its head alone where it has no stack.
#[inline(always)]
pub fn capture(capture: &Capture) {
    let stack_bytes = u64::from(core::hint::black_box(capture.head.stack_bytes));
    let bytes = if stack_bytes == 0 {
        size_of::<CaptureHead>() as u64
    } else {
        core::mem::offset_of!(Capture, stack) as u64 + (stack_bytes & 0xffff)
    };
    // SAFETY: the capture is as long as its whole stack, and the mask bounds the length by that.
    let failed = unsafe {
        bpf_ringbuf_output(
            (&raw const RECORDS).cast_mut().cast(),
            core::ptr::from_ref(capture).cast_mut().cast(),
            bytes,
            u64::from(BPF_RB_NO_WAKEUP),
        )
    };
    if failed != 0 {
        count(Counter::CaptureLost);
    }
}
