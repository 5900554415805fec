//! Debug messages for whoever works on the probes; nothing at all without the feature `log`.

use aya_ebpf::EbpfContext;

/// A wait became a loop's own.
#[inline(always)]
pub fn adopted<C: EbpfContext>(context: &C, tid: u32, kind: u32, fd: u32) {
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(context, "thread {}: its own wait is of kind {} on {}", tid, kind, fd);
    #[cfg(not(feature = "log"))]
    let _ = (context, tid, kind, fd);
}
