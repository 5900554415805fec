//! From the program that a process ran to the one that it has executed: when to attach to it, and what is not seen of it.

use std::time::{Duration, Instant};

use crate::gap::Gap;
use crate::process::target::Target;
use crate::stop::{Stop, exit_of};

/// Programs in a row that are attached to at once. Shells execute what they were asked to start, which may be another.
const AT_ONCE: u32 = 4;

/// The first pause after these; each further one is twice as long. To attach takes a third of a second of a CPU.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A program that ran for so long ends the row.
const LASTS: Duration = Duration::from_secs(30);

/// How often a process executes programs.
#[derive(Debug, Default)]
pub struct Pace {
    in_a_row: u32,
    last: Option<Instant>,
}

impl Pace {
    /// Waits until the next program is to be attached to. True where we are asked to stop instead, or the process
    /// exits.
    pub async fn wait(&mut self, target: &Target, stop: &mut Stop) -> std::io::Result<bool> {
        let pause = self.pause(Instant::now());
        if pause.is_zero() {
            return Ok(false);
        }
        let exit = exit_of(target)?;
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(false),
            _ = exit.readable() => Ok(true),
            _ = stop.asked() => Ok(true),
        }
    }

    fn pause(&mut self, now: Instant) -> Duration {
        let lasted = self.last.is_none_or(|last| now.duration_since(last) >= LASTS);
        self.in_a_row = if lasted { 1 } else { self.in_a_row.saturating_add(1) };
        let pause = match self.in_a_row.checked_sub(AT_ONCE + 1) {
            None => Duration::ZERO,
            Some(doublings) => {
                LONGEST_PAUSE.min(FIRST_PAUSE * 2_u32.saturating_pow(doublings.min(8)))
            }
        };
        self.last = Some(now + pause);
        pause
    }
}

/// What is missing of a program: from when it was executed to when its probes were in place.
pub fn unseen(executed_ns: u64, attached_ns: u64) -> Gap {
    let unseen_ms = attached_ns.saturating_sub(executed_ns) / 1_000_000;
    Gap::new(&format!("the first {unseen_ms} ms of this program"), "stalltrace was attaching to it")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{AT_ONCE, LASTS, LONGEST_PAUSE, Pace, unseen};

    /// A few programs in a row are attached to at once; after that it takes longer each time, up to a bound, until one
    /// has lasted.
    #[test]
    fn programs_in_a_row() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        let mut next = |lasted: Duration| {
            now += lasted;
            let pause = pace.pause(now);
            now += pause;
            pause.as_secs()
        };
        let short = Duration::from_millis(300);
        let pauses: Vec<_> = (0..AT_ONCE + 3).map(|_| next(short)).collect();
        assert_eq!(pauses, [0, 0, 0, 0, 1, 2, 4]);
        let longest = (0..20).map(|_| next(short)).max();
        assert_eq!(longest, Some(LONGEST_PAUSE.as_secs()));
        assert_eq!(next(LASTS), 0);
        assert_eq!(next(short), 0);
    }

    /// The time that nobody watched is told.
    #[test]
    fn the_time_between() {
        let gap = unseen(1_000_000_000, 1_312_900_000);
        assert_eq!(gap.0, "the first 312 ms of this program: stalltrace was attaching to it");
    }
}
