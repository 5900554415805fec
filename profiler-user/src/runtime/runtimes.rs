//! The runtimes of one process: what the event path asks of whichever there are.

use super::frames::Frames;
use super::{Attached, Effort, Interpreter};
use crate::process::TargetMemory;
use crate::source::Captured;
use crate::turn::Lock;

/// What a process runs, as far as it can be read or asked: none, one, or two that share it.
#[derive(Debug, Default)]
pub struct Runtimes(Vec<(&'static str, Box<dyn Attached>)>);

impl Runtimes {
    /// Adds the runtime of this name; one of that name that was known before is let go of.
    pub fn add(&mut self, name: &'static str, attached: Box<dyn Attached>) {
        self.0.retain(|(known, _)| *known != name);
        self.0.push((name, attached));
    }

    /// Adds those that have turned up since.
    pub fn take_over(&mut self, newer: Self) {
        for (name, attached) in newer.0 {
            self.add(name, attached);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one whose frames the probes walk.
    pub fn interpreter(&self) -> Option<&dyn Interpreter> {
        self.0.iter().find_map(|(_, attached)| attached.interpreter())
    }

    pub fn interpreter_mut(&mut self) -> Option<&mut dyn Interpreter> {
        self.0.iter_mut().find_map(|(_, attached)| attached.interpreter_mut())
    }

    /// The lock that a futex may stand for, and of which only stacks tell.
    pub fn hidden_lock(&self) -> Option<Lock> {
        self.0.iter().find_map(|(_, attached)| attached.hidden_lock())
    }

    /// What they read of a capture. At once: the target may free it.
    pub fn frames(
        &mut self,
        memory: &dyn TargetMemory,
        captured: &Captured,
        effort: Effort,
    ) -> Frames {
        let all = self.0.iter_mut();
        all.filter_map(|(_, attached)| attached.frames(memory, captured, effort)).collect()
    }

    /// What is said of a capture for which the target's memory cannot be read now.
    pub fn unread(&self, why: &str) -> Frames {
        self.0.iter().filter_map(|(_, attached)| attached.unread(why)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Runtimes;
    use crate::runtime::Attached;
    use crate::turn::Lock;

    #[derive(Debug)]
    struct Fake(Option<Lock>);

    impl Attached for Fake {
        fn hidden_lock(&self) -> Option<Lock> {
            self.0
        }
    }

    /// Whatever turns up joins what is there, and takes the place of what has its name.
    #[test]
    fn newer_ones() {
        let of = |name, lock| {
            let mut runtimes = Runtimes::default();
            runtimes.add(name, Box::new(Fake(lock)));
            runtimes
        };
        let mut known = of("a", Some(Lock::Gvl));
        known.take_over(of("b", None));
        assert_eq!(known.hidden_lock(), Some(Lock::Gvl));
        known.take_over(of("a", None));
        assert_eq!((known.hidden_lock(), known.0.len()), (None, 2));
        assert!(known.interpreter().is_none());
    }
}
