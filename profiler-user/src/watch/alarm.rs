//! Wakes the daemon at a moment of CLOCK_MONOTONIC: one wakeup for one look.
//!
//! tokio's own timers are made for very many: a pause of 50 ms took 2.7 calls of `epoll_wait` and a
//! write to the runtime's event file, as the timer moved down its wheel. This one takes one, and one
//! call to set it.

use std::io;
use std::os::fd::OwnedFd;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const SECOND_NS: u64 = 1_000_000_000;

/// A timer of the kernel's.
#[derive(Debug)]
pub struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // SAFETY: the descriptor is the owner's alone, and stays open and the same until that is dropped.
        Ok(Self(unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?))
    }

    /// Returns at that moment, or at once where it has passed.
    pub async fn at(&self, at_ns: u64) -> io::Result<()> {
        // Zero would switch the timer off.
        let at_ns = at_ns.max(1);
        let it_value = Timespec {
            tv_sec: i64::try_from(at_ns / SECOND_NS).unwrap_or(i64::MAX),
            tv_nsec: (at_ns % SECOND_NS) as _,
        };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Setting it anew forgets that it went off before, so that need not be read.
        let time = Itimerspec { it_interval, it_value };
        timerfd_settime(&self.0, TimerfdTimerFlags::ABSTIME, &time)?;
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Alarm;
    use crate::watch::monotonic_ns;

    /// It goes off at its moment and not before, each time it is set, and at once for a moment that has
    /// passed.
    #[test]
    fn goes_off_in_time() {
        const MS: u64 = 1_000_000;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let alarm = Alarm::new().unwrap();
            for pause_ns in [3 * MS, 0, 20 * MS, MS] {
                let at_ns = monotonic_ns() + pause_ns;
                alarm.at(at_ns).await.unwrap();
                assert!(monotonic_ns() >= at_ns);
            }
            alarm.at(0).await.unwrap();
        });
    }
}
