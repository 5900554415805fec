//! Does several long things at once, and shows what each has said when it is over.

use std::fs::{self, File};
use std::io::{Write, stdout};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::process::target;
use crate::report::{Colour, note, paint, seconds};

/// What is to be done, maybe twice. What it says goes to the file.
type Work<'a> = Box<dyn Fn(&File) -> Result<()> + Send + Sync + 'a>;

/// As many failures may be the machine's fault. More are ours, and are not tried again.
const TRIED_AGAIN: usize = 3;

/// One of them.
pub struct Job<'a> {
    pub name: String,
    work: Work<'a>,
}

impl<'a> Job<'a> {
    pub fn new(name: &str, work: impl Fn(&File) -> Result<()> + Send + Sync + 'a) -> Self {
        Self { name: name.to_owned(), work: Box::new(work) }
    }
}

/// Does the jobs in their order, so many at a time. An error names those that failed; the others are done all the same.
///
/// A few that failed beside others are tried once more, alone, and said to have been: what is measured on a machine that
/// is emulated or shared can be the machine's doing. What is broken fails twice.
pub fn run(jobs: &[Job<'_>], lanes: usize) -> Result<()> {
    let folder = target().join("logs");
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let waiting = Mutex::new(jobs.iter());
    let failed = Mutex::new(Vec::new());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                while let Some(job) = next() {
                    if !done(job, &folder.join(&job.name)) {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(job);
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if failed.len() <= TRIED_AGAIN {
        failed.retain(|job| {
            note(&format!("{} is tried again, alone", job.name));
            let passed = done(job, &folder.join(format!("{}-again", job.name)));
            if passed {
                let verdict = paint(Colour::Yellow, "passed only when tried again");
                note(&format!("{} {verdict}", job.name));
            }
            !passed
        });
    }
    if failed.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = failed.iter().map(|job| job.name.as_str()).collect();
    bail!("failed: {} (what each said is in {})", names.join(", "), folder.display())
}

/// Does one, and shows what it said, in one piece. True if it passed.
fn done(job: &Job<'_>, log: &Path) -> bool {
    let begun = Instant::now();
    let ended = File::create(log)
        .with_context(|| format!("{} cannot be written", log.display()))
        .and_then(|file| (job.work)(&file));
    let said = fs::read(log).unwrap_or_default();
    // A reader who has gone away misses it; the log has it still.
    let _ = stdout().lock().write_all(&said);
    let (colour, verdict) = match &ended {
        Ok(()) => (Colour::Green, "passed".to_owned()),
        Err(error) => (Colour::Red, format!("FAILED: {error:#}")),
    };
    note(&format!("{} {}, after {}", job.name, paint(colour, &verdict), seconds(begun.elapsed())));
    ended.is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use anyhow::bail;

    use super::{Job, run};

    /// All jobs are done; one that fails once passes, and one that fails twice is named.
    #[test]
    fn a_failure_stops_nobody() {
        let counts: Vec<_> = (0..5).map(|_| AtomicUsize::new(0)).collect();
        let job = |number: usize| {
            let count = &counts[number];
            Job::new(&format!("lanes-test-{number}"), move |_| {
                let earlier = count.fetch_add(1, Ordering::Relaxed);
                if number == 1 || (number == 2 && earlier == 0) {
                    bail!("on purpose")
                }
                Ok(())
            })
        };
        let error = run(&(0..5).map(job).collect::<Vec<_>>(), 2).unwrap_err().to_string();
        let tried: Vec<_> = counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        assert_eq!(tried, [1, 2, 2, 1, 1]);
        assert!(error.contains("lanes-test-1") && !error.contains("lanes-test-2"), "{error}");
    }

    /// Where much is broken, nothing is tried again.
    #[test]
    fn many_failures_are_believed() {
        let count = AtomicUsize::new(0);
        let job = |number: usize| {
            Job::new(&format!("lanes-test-many-{number}"), |_| {
                count.fetch_add(1, Ordering::Relaxed);
                bail!("on purpose")
            })
        };
        assert!(run(&(0..4).map(job).collect::<Vec<_>>(), 2).is_err());
        assert_eq!(count.load(Ordering::Relaxed), 4);
    }
}
