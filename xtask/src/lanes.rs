//! Does several long things at once, and shows what each has said when it is over.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::process::target;
use crate::report::{Colour, note, paint, seconds};

/// What is to be done. What it says goes to the file.
type Work<'a> = Box<dyn FnOnce(&File) -> Result<()> + Send + 'a>;

/// One of them.
pub struct Job<'a> {
    pub name: String,
    work: Work<'a>,
}

impl<'a> Job<'a> {
    pub fn new(name: &str, work: impl FnOnce(&File) -> Result<()> + Send + 'a) -> Self {
        Self { name: name.to_owned(), work: Box::new(work) }
    }
}

/// Does the jobs in their order, so many at a time. An error names those that failed; the others are done all the same.
pub fn run(jobs: Vec<Job<'_>>, lanes: usize) -> Result<()> {
    let folder = target().join("logs");
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let waiting = Mutex::new(VecDeque::from(jobs));
    let failed = Mutex::new(Vec::new());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                while let Some(job) = next() {
                    let name = job.name.clone();
                    if !done(job, folder.join(&name)) {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if failed.is_empty() {
        return Ok(());
    }
    bail!("failed: {} (what each said is in {})", failed.join(", "), folder.display())
}

/// Does one, and shows what it said, in one piece. True if it passed.
fn done(job: Job<'_>, log: PathBuf) -> bool {
    let begun = Instant::now();
    let ended = File::create(&log)
        .with_context(|| format!("{} cannot be written", log.display()))
        .and_then(|file| (job.work)(&file));
    let said = fs::read(&log).unwrap_or_default();
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

    /// All jobs are done, and those that failed are named.
    #[test]
    fn a_failure_stops_nobody() {
        let count = AtomicUsize::new(0);
        let job = |number: usize| {
            let count = &count;
            Job::new(&format!("lanes-test-{number}"), move |_| {
                count.fetch_add(1, Ordering::Relaxed);
                if number == 1 { bail!("on purpose") } else { Ok(()) }
            })
        };
        let error = run((0..5).map(job).collect(), 2).unwrap_err().to_string();
        assert_eq!(count.load(Ordering::Relaxed), 5);
        assert!(error.contains("lanes-test-1") && !error.contains("lanes-test-2"), "{error}");
    }
}
