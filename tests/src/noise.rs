//! How late this machine lets a sleeping thread run: the part of every measurement that is nobody's fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::{MILLISECOND, monotonic_ns, slowdown};

const NAP: Duration = Duration::from_millis(2);
/// A delay hits the target, stalltrace and the reader of its lines, each by itself.
const MEASURED_BY: u64 = 3;
/// Even where no nap was late, a measurement may be.
const AT_LEAST_NS: u64 = 10 * MILLISECOND;
/// A machine noisier than this proves nothing; better to fail than to allow everything.
const AT_MOST_NS: u64 = 150 * MILLISECOND;

/// Naps over and over, and remembers the worst delay.
#[derive(Debug)]
pub struct NoiseMeter {
    worst_ns: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NoiseMeter {
    pub fn start() -> Self {
        let worst_ns = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (worst_ns, stop) = (Arc::clone(&worst_ns), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let before_ns = monotonic_ns();
                    std::thread::sleep(NAP);
                    let slept_ns = monotonic_ns().saturating_sub(before_ns);
                    let nap_ns = u64::try_from(NAP.as_nanos()).unwrap_or(u64::MAX);
                    worst_ns.fetch_max(slept_ns.saturating_sub(nap_ns), Ordering::Relaxed);
                }
            }
        });
        Self { worst_ns, stop, thread: Some(thread) }
    }

    /// What to allow for in measurements taken since the start.
    pub fn allowance_ns(&self) -> u64 {
        allowance_ns(self.worst_ns.load(Ordering::Relaxed))
    }
}

fn allowance_ns(worst_ns: u64) -> u64 {
    (worst_ns * MEASURED_BY).clamp(AT_LEAST_NS, AT_MOST_NS) * u64::from(slowdown())
}

impl Drop for NoiseMeter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only sleeps and counts: there is no panic to pass on.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AT_LEAST_NS, AT_MOST_NS, NoiseMeter, allowance_ns};
    use crate::clock::MILLISECOND;

    /// Noise widens the bounds, within limits.
    #[test]
    fn allowance_is_bounded() {
        assert_eq!(allowance_ns(0), AT_LEAST_NS);
        assert_eq!(allowance_ns(20 * MILLISECOND), 60 * MILLISECOND);
        assert_eq!(allowance_ns(2_000 * MILLISECOND), AT_MOST_NS);
    }

    /// A nap is never shorter than asked for, so some delay is always seen.
    #[test]
    fn a_delay_is_seen() {
        let meter = NoiseMeter::start();
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert!(meter.worst_ns.load(std::sync::atomic::Ordering::Relaxed) > 0);
    }
}
