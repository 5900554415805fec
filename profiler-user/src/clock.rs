//! The clocks of the probes and of people, and one moment on both.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::report::facts::WallAnchor;

/// CLOCK_MONOTONIC, the clock of the probes.
pub fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, nanoseconds)
}

/// Pairs of readings of both clocks, of which the closest one is believed.
const ANCHORS: usize = 5;

/// One moment on both clocks. Between two readings we may lose the CPU.
pub fn wall_anchor() -> WallAnchor {
    let read = || {
        let monotonic_ns = monotonic_ns();
        let wall = clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, nanoseconds);
        let took_ns = self::monotonic_ns().saturating_sub(monotonic_ns);
        (took_ns, WallAnchor { monotonic_ns, wall_ns_since_epoch: wall })
    };
    let (mut least_ns, mut anchor) = read();
    for _ in 1..ANCHORS {
        let (took_ns, other) = read();
        if took_ns < least_ns {
            (least_ns, anchor) = (took_ns, other);
        }
    }
    anchor
}

fn nanoseconds(time: nix::sys::time::TimeSpec) -> u64 {
    u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX)
}
