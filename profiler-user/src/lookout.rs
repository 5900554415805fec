//! A runtime that is not there when we attach, looked for until it is: a program may be only starting, or load its
//! interpreter later.
//!
//! In a thread of its own: to look through a file for an interpreter takes milliseconds, and the event path does not
//! wait for it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use crate::detected::{Detected, MappedCode, mapped_code};
use crate::process::live::LiveMemory;
use crate::process::maps::Region;
use crate::process::target::Target;
use crate::report::facts::ProgramFacts;

/// The first look; each further pause is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Looks in all: over three minutes. Each reads the list of mappings, 0.1 ms of a hundred.
const MAX_LOOKS: u32 = 26;

/// Of these, the first ones look into the files again also where no other is mapped, if one of them is an interpreter
/// that cannot be read: it may be before its first instruction.
const EARLY_LOOKS: u32 = 8;

/// What is still looked for. Ends with its owner.
#[derive(Debug)]
pub struct Lookout {
    found: Receiver<Detected>,
    _owner: SyncSender<()>,
}

impl Lookout {
    /// Goes on looking from what was found; `None` where nothing is missing.
    pub fn after(detected: &Detected, target: Arc<Target>) -> Option<Self> {
        if detected.is_settled() {
            return None;
        }
        let (tell, found) = sync_channel(MAX_LOOKS as usize);
        let (owner, is_over) = sync_channel(0);
        let mut known = Known { code: detected.code.clone(), facts: detected.facts.clone() };
        std::thread::spawn(move || {
            let memory = LiveMemory::new(target.pid());
            let mut pause = FIRST_PAUSE;
            for look in 0..MAX_LOOKS {
                let Err(RecvTimeoutError::Timeout) = is_over.recv_timeout(pause) else { return };
                pause = LONGEST_PAUSE.min(pause * 2);
                // The process has exited, or executed another program.
                let Ok(regions) = target.regions() else { return };
                if !known.is_out_of_date(&regions, look) {
                    continue;
                }
                let detected = Detected::among(&regions, &target, &memory);
                let is_settled = detected.is_settled();
                if known.learn(&detected) && tell.send(detected).is_err() || is_settled {
                    return;
                }
            }
        });
        Some(Self { found, _owner: owner })
    }

    /// What is known by now, where that is news.
    pub fn news(&self) -> Option<Detected> {
        self.found.try_iter().last()
    }
}

/// What was told last.
struct Known {
    code: Vec<MappedCode>,
    facts: ProgramFacts,
}

impl Known {
    /// Whether to look into the files that are mapped now.
    fn is_out_of_date(&self, regions: &[Region], look: u32) -> bool {
        let may_be_early = look < EARLY_LOOKS && self.facts.gap.is_some();
        may_be_early || mapped_code(regions) != self.code
    }

    /// Whether there is news.
    fn learn(&mut self, detected: &Detected) -> bool {
        self.code.clone_from(&detected.code);
        let is_news = self.facts != detected.facts;
        self.facts.clone_from(&detected.facts);
        is_news
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{EARLY_LOOKS, Known, Lookout};
    use crate::detected::Detected;
    use crate::gap::Gap;
    use crate::process::live::LiveMemory;
    use crate::process::target::Target;
    use crate::report::facts::{ProgramFacts, RuntimeFacts};

    fn own() -> (Arc<Target>, Detected) {
        let target = Target::open(std::process::id()).unwrap();
        let detected = Detected::of(&target, &LiveMemory::new(target.pid()));
        (Arc::new(target), detected)
    }

    /// Files are looked into again when others are mapped, or early on while an interpreter cannot be read.
    #[test]
    fn when_to_look() {
        let (target, detected) = own();
        let regions = target.regions().unwrap();
        let mut known = Known { code: Vec::new(), facts: ProgramFacts::default() };
        assert!(known.is_out_of_date(&regions, EARLY_LOOKS));
        known.learn(&detected);
        assert!(!known.is_out_of_date(&regions, 0));
        known.facts.gap = Some(Gap::new("Python frames", "no _PyRuntime"));
        assert!(known.is_out_of_date(&regions, 0));
        assert!(!known.is_out_of_date(&regions, EARLY_LOOKS));
        assert!(known.learn(&detected) && !known.learn(&detected));
    }

    /// Nothing is looked for where nothing is missing.
    #[test]
    fn what_is_settled() {
        let (target, mut detected) = own();
        assert!(Lookout::after(&detected, Arc::clone(&target)).is_some());
        let python = RuntimeFacts { name: "cpython".to_owned(), version: None };
        detected.facts.runtime = Some(python);
        assert!(Lookout::after(&detected, target).is_none());
    }
}
