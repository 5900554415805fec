//! A turn's account to the parts that a report shows: the exact split between its states.

use super::schema::stall::Time;
use crate::gap::Gap;
use crate::turn::{Sampled, Stall, ThreadState};

/// The four states between which a turn's time is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Running,
    Blocked,
    Runnable,
    Stopped,
}

impl Part {
    /// Whether this stack was taken in it.
    pub fn shows(self, sampled: &Sampled) -> bool {
        self == Self::from(sampled.state)
    }
}

impl From<ThreadState> for Part {
    fn from(state: ThreadState) -> Self {
        match state {
            ThreadState::RunningUser | ThreadState::RunningKernel => Self::Running,
            ThreadState::Blocked => Self::Blocked,
            ThreadState::Runnable => Self::Runnable,
            ThreadState::Stopped => Self::Stopped,
        }
    }
}

/// The account as reported. Running time is split by where ticks found the thread, to the last ns.
pub fn time(stall: &Stall, gaps: &mut Vec<Gap>) -> Time {
    let turn = &stall.turn;
    let ticks = u128::from(stall.ticks_user) + u128::from(stall.ticks_kernel);
    let share = (u128::from(turn.running_ns) * u128::from(stall.ticks_kernel)).checked_div(ticks);
    if share.is_none() && turn.running_ns > 0 {
        let reason = "no tick fell into it, so all of it is given as user time";
        gaps.push(Gap::new("split of running time", reason));
    }
    // No more than the running time, which is a u64 itself.
    let kernel_ns = share.map_or(0, |share| u64::try_from(share).unwrap_or(turn.running_ns));
    Time {
        running_user_ns: turn.running_ns - kernel_ns,
        running_kernel_ns: kernel_ns,
        blocked_ns: turn.blocked_ns,
        runnable_ns: turn.runnable_ns,
        stopped_ns: turn.stopped_ns,
    }
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::turn::Turn;

    use super::time;
    use crate::report::sample;

    /// However ticks fall, user and kernel time add up to the running time, to the nanosecond.
    #[test]
    fn split_is_exact() {
        let running = [1, 3, 999_999_999, u64::MAX];
        let ticks = [(1, 0), (0, 1), (1, 1), (1, 2), (7, 93), (u64::MAX, u64::MAX)];
        for running_ns in running {
            for (ticks_user, ticks_kernel) in ticks {
                let mut stall = sample::stall();
                stall.turn = Turn { running_ns, ..Turn::default() };
                (stall.ticks_user, stall.ticks_kernel) = (ticks_user, ticks_kernel);
                let mut gaps = Vec::new();
                let time = time(&stall, &mut gaps);
                assert_eq!(time.running_user_ns + time.running_kernel_ns, running_ns);
                assert!(gaps.is_empty(), "{gaps:?}");
            }
        }
    }

    /// Ticks decide how much is kernel time.
    #[test]
    fn split_follows_ticks() {
        let mut stall = sample::stall();
        stall.turn.running_ns = 100;
        (stall.ticks_user, stall.ticks_kernel) = (3, 1);
        let time = time(&stall, &mut Vec::new());
        assert_eq!((time.running_user_ns, time.running_kernel_ns), (75, 25));
    }

    /// Without a tick the split is not invented: the gap says so, and only where there is time to split.
    #[test]
    fn unsampled_split_is_a_gap() {
        let mut stall = sample::stall();
        stall.turn.running_ns = 100;
        (stall.ticks_user, stall.ticks_kernel) = (0, 0);
        let mut gaps = Vec::new();
        assert_eq!(time(&stall, &mut gaps).running_user_ns, 100);
        assert_eq!(gaps.len(), 1);

        stall.turn.running_ns = 0;
        gaps.clear();
        assert_eq!(time(&stall, &mut gaps).running_user_ns, 0);
        assert!(gaps.is_empty());
    }
}
