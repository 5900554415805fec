//! `CLOCK_MONOTONIC` as the kernel, the targets and the tests all read it: in nanoseconds.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

pub const MILLISECOND: u64 = 1_000_000;

/// Now. Zero on a kernel without this clock, which none is.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    now.map_or(0, |since_boot| u64::try_from(since_boot.as_nanos()).unwrap_or(u64::MAX))
}

/// How much slower than a usual machine this one is, by its own word: an emulated one is told so by
/// `STALLTRACE_TEST_SLOWDOWN`.
pub fn slowdown() -> u32 {
    let told = std::env::var("STALLTRACE_TEST_SLOWDOWN").ok();
    told.and_then(|factor| factor.parse().ok()).filter(|factor| *factor > 0).unwrap_or(1)
}

/// A time limit for something that takes a healthy machine a small part of it.
pub fn patience(seconds: u64) -> Duration {
    Duration::from_secs(seconds) * slowdown()
}

/// Milliseconds, for people.
pub fn milliseconds(ns: u64) -> String {
    format!("{}.{:01} ms", ns / MILLISECOND, ns % MILLISECOND / 100_000)
}

#[cfg(test)]
mod tests {
    use super::{milliseconds, monotonic_ns};

    /// The clock goes forward.
    #[test]
    fn time_passes() {
        let before = monotonic_ns();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(monotonic_ns() >= before + 2_000_000);
    }

    /// A tenth of a millisecond is shown, not rounded away.
    #[test]
    fn tenths_are_shown() {
        assert_eq!(milliseconds(300_240_000), "300.2 ms");
        assert_eq!(milliseconds(40_000), "0.0 ms");
    }
}
