//! Whether a thread that falls asleep on a futex is idle: by the places that the daemon has learnt.

use aya_ebpf::helpers::bpf_probe_read_user;
use profiler_ebpf::parks::MAX_PARKS;
use profiler_ebpf::record::{CaptureHead, Registers, reason};
use profiler_ebpf::turn::FUTEX;

use crate::maps::parks_at;

/// Whether the current thread, about to sleep, has parked.
#[inline(always)]
pub fn is_parked(slot: u32, registers: &Registers) -> bool {
    if registers.syscall != FUTEX {
        return false;
    }
    let Some(parks) = parks_at(slot) else { return false };
    for index in 0..MAX_PARKS {
        let park = &parks.known[index];
        if park.is_at(registers.sp, registers.ip) {
            // SAFETY: the helper checks the address and fails instead of faulting.
            let word = unsafe { bpf_probe_read_user(park.word_address as *const u64) };
            if word == Ok(park.word) {
                return true;
            }
        }
    }
    false
}

/// Whether the sleep that this capture is about, and that ends now, turned out to have been a park.
#[inline(always)]
pub fn was_found(slot: u32, head: &CaptureHead) -> bool {
    head.reason == reason::SWITCH_OUT
        && parks_at(slot).is_some_and(|parks| parks.found_ns == head.at_ns)
}
