//! Wakes the event path at a moment, by one event of the kernel's.
//!
//! The runtime's own timers count milliseconds and lead to a far moment by way of nearer ones: two to three wake-ups for
//! each look at the target, and a look is most of what watching costs.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use crate::stop::readable;

#[derive(Debug)]
pub struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        readable(timerfd_create(TimerfdClockId::Monotonic, flags)?).map(Self)
    }

    /// Returns after so long; at once where it rang meanwhile for one that was given up, as nothing is read of it.
    pub async fn after(&mut self, pause: Duration) -> io::Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        // None at all would be never, to the kernel.
        let once = Timespec::try_from(pause.max(Duration::from_nanos(1)));
        let once = once.map_err(|_| io::ErrorKind::InvalidInput)?;
        let spec = Itimerspec { it_interval: zero, it_value: once };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &spec)?;
        // Set anew, it forgets that it has rung.
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Alarm;

    /// It rings each time that it is set, and not before its time.
    #[test]
    fn rings() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut alarm = Alarm::new().unwrap();
            for pause in [0, 3, 1, 5].map(Duration::from_millis) {
                let before = Instant::now();
                alarm.after(pause).await.unwrap();
                assert!(before.elapsed() >= pause);
            }
            let second = Duration::from_secs(1);
            tokio::select! {
                biased;
                _ = alarm.after(second * 3600) => panic!("rings before its time"),
                () = tokio::time::sleep(second / 100) => {}
            }
        });
    }
}
