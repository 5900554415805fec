//! A loop's waits on futexes to how they ended: by another thread's hand, or because their time ran out.

use crate::call::Timeout;

/// A wait that ends by its timeout may be measured to be so much shorter: the time is asked before it begins.
const SLACK_NS: u64 = 1_000_000;

/// Different timeouts that a sentence has room for.
const MAX_TIMEOUTS: usize = 4;

/// The waits of one turn together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FutexWaits {
    /// Of those that another thread ended.
    pub woken_ns: u64,
    /// Of those whose timeout ran out.
    pub ran_out_ns: u64,
    /// Those timeouts, each once, in their order.
    pub timeouts_ns: Vec<u64>,
    /// Of the one that still goes on, or whose end was not seen: what is known of its timeout.
    pub lasting: Option<Option<Timeout>>,
}

/// One of them.
#[derive(Debug, Clone, Copy)]
pub struct FutexWait {
    /// How long it was; none where it goes on.
    pub length_ns: Option<u64>,
    /// Its part of the turn.
    pub weight_ns: u64,
    pub timeout: Option<Timeout>,
    /// Whether another thread's call was seen to end it.
    pub is_woken: bool,
}

impl FutexWaits {
    pub fn add(&mut self, wait: FutexWait) {
        let FutexWait { length_ns, weight_ns, timeout, is_woken } = wait;
        self.lasting = length_ns.is_none().then_some(timeout);
        match (timeout, length_ns) {
            _ if is_woken => self.woken_ns = self.woken_ns.saturating_add(weight_ns),
            // One whose end was not seen has not gone on for longer than it could.
            (Some(Timeout::Ns(asked_ns)), length_ns)
                if length_ns.unwrap_or(weight_ns).saturating_add(SLACK_NS) >= asked_ns =>
            {
                self.ran_out_ns = self.ran_out_ns.saturating_add(weight_ns);
                let is_new =
                    self.timeouts_ns.iter().all(|known| known.abs_diff(asked_ns) > SLACK_NS);
                if is_new && self.timeouts_ns.len() < MAX_TIMEOUTS {
                    self.timeouts_ns.push(asked_ns);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FutexWait, FutexWaits};
    use crate::call::Timeout;

    const MS: u64 = 1_000_000;

    fn wait(length_ms: Option<u64>, timeout_ms: Option<u64>, is_woken: bool) -> FutexWait {
        FutexWait {
            length_ns: length_ms.map(|ms| ms * MS),
            weight_ns: length_ms.unwrap_or(7) * MS,
            timeout: timeout_ms.map(|ms| Timeout::Ns(ms * MS)),
            is_woken,
        }
    }

    /// A wait ran out if nobody ended it and it was as long as it could be.
    #[test]
    fn how_they_ended() {
        let mut waits = FutexWaits::default();
        for one in [
            wait(Some(400), Some(400), false),
            wait(Some(801), Some(800), false),
            wait(Some(400), Some(401), false),
            wait(Some(30), Some(800), false),
            wait(Some(50), None, false),
            wait(Some(800), Some(800), true),
        ] {
            waits.add(one);
        }
        assert_eq!((waits.ran_out_ns, waits.woken_ns), (1601 * MS, 800 * MS));
        assert_eq!(
            (waits.timeouts_ns.as_slice(), waits.lasting),
            (&[400 * MS, 800 * MS][..], None)
        );
        waits.add(wait(None, Some(90), false));
        assert_eq!(waits.lasting, Some(Some(Timeout::Ns(90 * MS))));
        waits.add(wait(None, Some(7), false));
        assert_eq!(waits.ran_out_ns, 1608 * MS, "its end was not seen");
    }
}
