//! Programs to the verifier, several at once: it takes most of the time that attaching takes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::programs::Program;

/// Threads that load at the same time. The largest program takes half of the verifier's time, so that more do not
/// help.
const MOST_AT_ONCE: usize = 4;

/// One program to load, and how.
#[allow(missing_debug_implementations, reason = "a closure has none")]
pub struct LoadTask<'a, P = Program> {
    program: String,
    load: Load<'a, P>,
    /// What is loaded where this is refused.
    instead: Vec<LoadTask<'a, P>>,
}

type Load<'a, P> = Box<dyn FnOnce(&mut P) -> anyhow::Result<()> + Send + 'a>;

impl<'a, P> LoadTask<'a, P> {
    pub fn new(
        program: impl Into<String>,
        load: impl FnOnce(&mut P) -> anyhow::Result<()> + Send + 'a,
    ) -> Self {
        Self { program: program.into(), load: Box::new(load), instead: Vec::new() }
    }

    pub fn or(mut self, instead: impl IntoIterator<Item = Self>) -> Self {
        self.instead.extend(instead);
        self
    }
}

/// Why programs were not loaded, by their names.
pub type Refused = BTreeMap<String, anyhow::Error>;

/// What is left to do, and who was refused.
struct Work<'a, P> {
    /// Each is taken out by the first task that loads it.
    programs: BTreeMap<String, &'a mut P>,
    tasks: VecDeque<LoadTask<'a, P>>,
    refused: Refused,
}

/// Loads what the tasks name, the first ones first: those that take longest should be. A task without a program, or
/// whose program another has taken, is passed over.
pub fn load<'a, P: Send + 'a>(
    programs: impl Iterator<Item = (String, &'a mut P)>,
    tasks: Vec<LoadTask<'a, P>>,
) -> Refused {
    let work = Work { programs: programs.collect(), tasks: tasks.into(), refused: Refused::new() };
    let work = Mutex::new(work);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 1..cpus.min(MOST_AT_ONCE) {
            scope.spawn(|| run(&work));
        }
        run(&work);
    });
    work.into_inner().unwrap_or_else(PoisonError::into_inner).refused
}

fn run<P>(work: &Mutex<Work<'_, P>>) {
    loop {
        // Not as the condition of a `while let`: that would keep the lock while the kernel verifies.
        let Some((task, program)) = next(&mut locked(work)) else { return };
        if let Err(error) = (task.load)(program) {
            let mut work = locked(work);
            work.refused.insert(task.program, error);
            for instead in task.instead.into_iter().rev() {
                work.tasks.push_front(instead);
            }
        }
    }
}

fn next<'a, P>(work: &mut Work<'a, P>) -> Option<(LoadTask<'a, P>, &'a mut P)> {
    loop {
        let task = work.tasks.pop_front()?;
        if let Some(program) = work.programs.remove(&task.program) {
            return Some((task, program));
        }
    }
}

/// Whoever panicked while holding it left it whole.
fn locked<'a, 'b, P>(work: &'a Mutex<Work<'b, P>>) -> MutexGuard<'a, Work<'b, P>> {
    work.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::{LoadTask, load};

    /// Counts how often it was loaded.
    type Fake = u32;

    fn named<'a>(programs: &'a mut [(&str, Fake)]) -> impl Iterator<Item = (String, &'a mut Fake)> {
        programs.iter_mut().map(|(name, program)| ((*name).to_owned(), program))
    }

    fn granted<'a>(name: &str) -> LoadTask<'a, Fake> {
        LoadTask::new(name, |program| {
            *program += 1;
            Ok(())
        })
    }

    fn refused<'a>(name: &str) -> LoadTask<'a, Fake> {
        LoadTask::new(name, |_| anyhow::bail!("no"))
    }

    /// What is granted is loaded once, whoever asks for it; what is refused is told, and replaced by what stands
    /// for it.
    #[test]
    fn each_once_or_another() {
        let mut programs = [("enter", 0), ("leave", 0), ("tracepoint", 0), ("idle", 0)];
        let tasks = vec![
            refused("enter").or([granted("tracepoint")]),
            refused("leave").or([granted("tracepoint")]),
            granted("nobody"),
        ];
        let told: Vec<String> = load(named(&mut programs), tasks).into_keys().collect();
        assert_eq!(told, ["enter", "leave"]);
        assert_eq!(programs.map(|(_, loaded)| loaded), [0, 0, 1, 0]);
    }

    /// Two load at the same time where there are two CPUs.
    #[test]
    fn side_by_side() {
        if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
            println!("skipped: one CPU");
            return;
        }
        let both = Barrier::new(2);
        let waits = |name| {
            LoadTask::new(name, |_: &mut Fake| {
                both.wait();
                Ok(())
            })
        };
        let mut programs = [("a", 0), ("b", 0)];
        assert!(load(named(&mut programs), vec![waits("a"), waits("b")]).is_empty());
    }
}
