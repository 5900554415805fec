//! How much of a busy machine the analyst takes: little while it names what nobody waits for, its due share once a line
//! is wanted.

use std::cell::OnceCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::process::{Pid, Resource, getpriority_process, getrlimit, setpriority_process};
use rustix::thread::{CapabilitySet, capabilities, gettid};

/// By so much more it gives way at rest. It takes a CPU from nobody when it wakes up then, and has a tenth of one beside
/// a program that computes: enough to look at a socket while it is still open.
const GIVES_WAY: i32 = 10;

thread_local! {
    /// The calling thread's, where it gives way at all.
    static OWN: OnceCell<Urgency> = const { OnceCell::new() };
}

/// Said before the kernel takes a lock for the calling thread that a watched process may wait for: one that gave way
/// to others meanwhile would have the process wait for them, too. It lasts until the thread rests.
pub fn before_lock() {
    OWN.with(|own| {
        if let Some(urgency) = own.get() {
            urgency.hurry();
        }
    });
}

/// Shared by the analyst's thread and whoever has work for it.
#[derive(Debug, Clone)]
pub struct Urgency(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    thread: OnceLock<Thread>,
    hurries: AtomicBool,
}

impl Default for Urgency {
    /// It hurries: the session's first line is due.
    fn default() -> Self {
        Self(Arc::new(Shared { thread: OnceLock::new(), hurries: AtomicBool::new(true) }))
    }
}

#[derive(Debug, Clone, Copy)]
struct Thread {
    tid: Pid,
    /// Its nice value as it was started.
    usual: i32,
}

impl Thread {
    fn this() -> Option<Self> {
        let usual = getpriority_process(None).ok()?;
        may_come_back_to(usual).then(|| Self { tid: gettid(), usual })
    }

    /// One that cannot be changed stays as it is.
    fn set(self, nice: i32) {
        let _ = setpriority_process(Some(self.tid), nice);
    }
}

impl Urgency {
    /// Said by the thread that is meant. Where it could not be hurried any more, it never gives way.
    pub fn begin(&self) {
        if let Some(thread) = Thread::this() {
            let _ = self.0.thread.set(thread);
            OWN.with(|own| own.set(self.clone())).unwrap_or_default();
        }
    }

    /// Said by the thread itself, which has nothing to do.
    pub fn rest(&self) {
        let Self(shared) = self;
        let Some(thread) = shared.thread.get() else { return };
        if !shared.hurries.swap(false, Ordering::SeqCst) {
            return;
        }
        thread.set(thread.usual + GIVES_WAY);
        // Somebody may have been faster.
        if shared.hurries.load(Ordering::SeqCst) {
            thread.set(thread.usual);
        }
    }

    /// Somebody waits for what is handed over now.
    pub fn hurry(&self) {
        let Self(shared) = self;
        let Some(thread) = shared.thread.get() else { return };
        if !shared.hurries.swap(true, Ordering::SeqCst) {
            thread.set(thread.usual);
        }
    }
}

/// The kernel takes a nice value back for who has `CAP_SYS_NICE`, or a limit that allows it (setpriority(2)).
fn may_come_back_to(nice: i32) -> bool {
    let is_capable =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_NICE));
    // Twenty less the least nice value allowed.
    let limit = getrlimit(Resource::Nice).current;
    let is_allowed = limit
        .is_none_or(|limit| i64::try_from(limit).is_ok_and(|limit| 20 - limit <= i64::from(nice)));
    is_capable || is_allowed
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;
    use rustix::thread::gettid;

    use super::{GIVES_WAY, Urgency, before_lock, may_come_back_to};

    /// A thread gives way, is hurried by another or by its own need of a lock, and gives way again once it has nothing
    /// to do; where nothing could hurry it, it does not begin.
    #[test]
    fn one_thread_gives_way() {
        let usual = getpriority_process(None).unwrap();
        std::thread::spawn(move || {
            let nice = || getpriority_process(Some(gettid())).unwrap();
            let urgency = Urgency::default();
            urgency.begin();
            assert_eq!(nice(), usual);
            urgency.rest();
            if !may_come_back_to(usual) {
                return assert_eq!(nice(), usual);
            }
            let low = (usual + GIVES_WAY).min(19);
            assert_eq!(nice(), low);
            let other = urgency.clone();
            std::thread::spawn(move || other.hurry()).join().unwrap();
            assert_eq!(nice(), usual);
            urgency.rest();
            assert_eq!(nice(), low);
            before_lock();
            assert_eq!(nice(), usual);
        })
        .join()
        .unwrap();
        assert_eq!(getpriority_process(None).unwrap(), usual, "others are left alone");
    }
}
