//! The clocks of the probes and of people, and one moment on both.

use std::time::{Duration, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_gettime};

/// One moment on both clocks, taken at attach: the only way in which wall-clock time enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WallAnchor {
    pub monotonic_ns: u64,
    pub wall_ns_since_epoch: u64,
}

impl WallAnchor {
    /// A moment of `CLOCK_MONOTONIC` in ns since the epoch.
    pub const fn wall_ns(&self, monotonic_ns: u64) -> u64 {
        if monotonic_ns >= self.monotonic_ns {
            self.wall_ns_since_epoch.saturating_add(monotonic_ns - self.monotonic_ns)
        } else {
            self.wall_ns_since_epoch.saturating_sub(self.monotonic_ns - monotonic_ns)
        }
    }

    /// The same as RFC 3339 in UTC, µs.
    pub fn timestamp(&self, monotonic_ns: u64) -> String {
        rfc3339(self.wall_ns(monotonic_ns))
    }
}

/// Nanoseconds since the epoch as RFC 3339 in UTC, µs. All of `u64` lies before the year 2555.
pub fn rfc3339(wall_ns_since_epoch: u64) -> String {
    let moment = UNIX_EPOCH + Duration::from_nanos(wall_ns_since_epoch);
    humantime::format_rfc3339_micros(moment).to_string()
}

/// CLOCK_MONOTONIC, the clock of the probes.
pub fn monotonic_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// Pairs of readings of both clocks, of which the closest one is believed.
const ANCHORS: usize = 5;

/// One moment on both clocks. Between two readings we may lose the CPU.
pub fn wall_anchor() -> WallAnchor {
    let read = || {
        let monotonic_ns = monotonic_ns();
        let wall = nanoseconds(clock_gettime(ClockId::Realtime));
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

/// A time before the epoch is none.
fn nanoseconds(time: Timespec) -> u64 {
    Duration::try_from(time).map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::{WallAnchor, rfc3339};

    /// Moments before and after the anchor come out at the right distance, in µs, rounded down.
    #[test]
    fn anchored() {
        let anchor = WallAnchor {
            monotonic_ns: 5_000_000_000,
            wall_ns_since_epoch: 1_795_238_400_000_000_000,
        };
        assert_eq!(anchor.timestamp(5_000_000_000), "2026-11-21T05:20:00.000000Z");
        assert_eq!(anchor.timestamp(5_001_234_999), "2026-11-21T05:20:00.001234Z");
        assert_eq!(anchor.timestamp(4_000_000_000), "2026-11-21T05:19:59.000000Z");
    }

    /// No time that fits the type is refused.
    #[test]
    fn extremes() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(rfc3339(u64::MAX), "2554-07-21T23:34:33.709551Z");
        let anchor = WallAnchor { monotonic_ns: u64::MAX, wall_ns_since_epoch: 7 };
        assert_eq!(anchor.timestamp(0), "1970-01-01T00:00:00.000000Z");
        let anchor = WallAnchor { monotonic_ns: 0, wall_ns_since_epoch: u64::MAX };
        assert_eq!(anchor.timestamp(9), rfc3339(u64::MAX));
    }
}
