//! Lines that wait for whoever reads them: bounded by bytes, written by a thread of their own.
//!
//! A reader that is slow, or does not read at all, delays nobody but this thread. What does not fit is dropped and
//! counted: lines about stalls that still go on first, the oldest first.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::destination::{Destination, is_full};

/// Bytes of lines that may wait. A line is some kilobytes.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// How much a line is worth keeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Worth {
    /// What a later line says again.
    Passing,
    /// What no other line says.
    Final,
    /// The session's first and last.
    Frame,
}

/// Both sides' view of the lines.
#[derive(Debug, Clone)]
pub struct Outbox {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<(Worth, Vec<u8>)>,
    bytes: usize,
    /// Whether the thread is writing a line.
    is_writing: bool,
    /// Lines that nobody will read.
    dropped: u64,
    reopen: bool,
    /// Why no more can be written.
    failure: Option<(io::ErrorKind, String)>,
}

impl Outbox {
    /// Opens the file, or else standard output, in a thread that then writes: to open a FIFO may take for ever.
    pub fn open(path: Option<PathBuf>) -> Self {
        let shared = Shared { state: Mutex::new(State::default()), changed: Condvar::new() };
        let outbox = Self { shared: Arc::new(shared) };
        let writer = outbox.clone();
        thread::spawn(move || writer.run(path));
        outbox
    }

    /// Takes a line. Never waits for the reader; an error is why no line can be written any more.
    pub fn put(&self, worth: Worth, line: Vec<u8>) -> io::Result<()> {
        let mut state = self.state();
        state.failed()?;
        state.put(worth, line, MAX_BYTES);
        drop(state);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Why no more lines can be written, once that is so.
    pub fn failure(&self) -> Option<io::Error> {
        self.state().failed().err()
    }

    /// Lines that were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.state().dropped
    }

    /// Opens the file anew before the next line: it has been renamed.
    pub fn reopen(&self) {
        self.state().reopen = true;
        self.shared.changed.notify_all();
    }

    /// Waits until all is written, but not for longer than until then. Returns how many lines are not.
    pub fn close(&self, until: Instant) -> u64 {
        let mut state = self.state();
        while state.failure.is_none() && (state.is_writing || !state.waiting.is_empty()) {
            let left = until.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                break;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.dropped + state.waiting.len() as u64 + u64::from(state.is_writing)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writing thread: ends where nothing more can be written.
    fn run(&self, path: Option<PathBuf>) {
        let open = || match &path {
            Some(path) => Destination::file(path),
            None => Destination::stdout(),
        };
        let mut destination = match open() {
            Ok(destination) => destination,
            Err(error) => return self.fail(&error),
        };
        let mut is_told = false;
        loop {
            let (line, reopen) = self.next();
            if reopen {
                match open() {
                    Ok(opened) => destination = opened,
                    Err(error) => tracing::warn!("the old output goes on: {error}"),
                }
            }
            let Some(line) = line else { continue };
            let written = destination.write(&line);
            let mut state = self.state();
            state.is_writing = false;
            match written {
                Ok(()) => is_told = false,
                Err(error) if is_full(&error) => {
                    state.dropped += 1;
                    if !is_told {
                        tracing::warn!("lines are dropped until there is room: {error}");
                    }
                    is_told = true;
                }
                Err(error) => {
                    // It may be written in part.
                    state.dropped += 1;
                    drop(state);
                    return self.fail(&error);
                }
            }
            drop(state);
            self.shared.changed.notify_all();
        }
    }

    /// The next line, and whether the file is to be opened anew before. Waits for either.
    fn next(&self) -> (Option<Vec<u8>>, bool) {
        let mut state = self.state();
        loop {
            let reopen = std::mem::take(&mut state.reopen);
            let line = state.waiting.pop_front().map(|(_, line)| line);
            if let Some(line) = &line {
                state.bytes -= line.len();
                state.is_writing = true;
            }
            if line.is_some() || reopen {
                return (line, reopen);
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn fail(&self, error: &io::Error) {
        self.state().failure = Some((error.kind(), error.to_string()));
        self.shared.changed.notify_all();
    }
}

impl State {
    fn failed(&self) -> io::Result<()> {
        match &self.failure {
            Some((kind, why)) => Err(io::Error::new(*kind, why.clone())),
            None => Ok(()),
        }
    }

    /// The line is kept where it, or something worth no more, can be dropped for it.
    fn put(&mut self, worth: Worth, line: Vec<u8>, most: usize) {
        self.bytes += line.len();
        self.waiting.push_back((worth, line));
        while self.bytes > most {
            let least = self.waiting.iter().map(|(worth, _)| *worth).min();
            let oldest = self.waiting.iter().position(|(worth, _)| Some(*worth) == least);
            let Some((_, line)) = oldest.and_then(|index| self.waiting.remove(index)) else {
                return;
            };
            self.bytes -= line.len();
            self.dropped += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, Instant};

    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::{Outbox, State, Worth};

    /// The newest of what no other line says stays, with the session's own lines.
    #[test]
    fn what_is_dropped() {
        let mut state = State::default();
        let lines = [
            (Worth::Frame, "start"),
            (Worth::Final, "end 1"),
            (Worth::Passing, "open2"),
            (Worth::Final, "end 2"),
            (Worth::Final, "end 3"),
            (Worth::Frame, "close"),
        ];
        for (worth, line) in lines {
            state.put(worth, line.as_bytes().to_vec(), 20);
        }
        let left: Vec<_> =
            state.waiting.iter().map(|(_, line)| str::from_utf8(line).unwrap()).collect();
        assert_eq!(left, ["start", "end 2", "end 3", "close"]);
        assert_eq!((state.dropped, state.bytes), (2, 20));
    }

    /// Nobody reads, nobody has even opened the other end: what is not written is counted, in time.
    #[test]
    fn no_reader() {
        let path = std::env::temp_dir().join(format!("outbox-{}", std::process::id()));
        mkfifoat(CWD, &path, Mode::RWXU).unwrap();
        let outbox = Outbox::open(Some(path.clone()));
        outbox.put(Worth::Frame, b"line\n".to_vec()).unwrap();
        let begun = Instant::now();
        let unwritten = outbox.close(begun + Duration::from_millis(20));
        fs::remove_file(&path).unwrap();
        assert_eq!(unwritten, 1);
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    /// All is written before it ends, and a file that was renamed is made anew.
    #[test]
    fn reopened() {
        let path = std::env::temp_dir().join(format!("outbox-file-{}", std::process::id()));
        let old = path.with_extension("1");
        let outbox = Outbox::open(Some(path.clone()));
        let patience = || Instant::now() + Duration::from_secs(10);
        outbox.put(Worth::Final, b"one\n".to_vec()).unwrap();
        assert_eq!(outbox.close(patience()), 0);
        fs::rename(&path, &old).unwrap();
        outbox.reopen();
        outbox.put(Worth::Final, b"two\n".to_vec()).unwrap();
        assert_eq!(outbox.close(patience()), 0);
        let read = [&old, &path].map(|path| fs::read_to_string(path).unwrap());
        [&old, &path].iter().for_each(|path| fs::remove_file(path).unwrap());
        assert_eq!(read, ["one\n", "two\n"]);
    }

    /// What cannot be opened is told, and no line is taken any more.
    #[test]
    fn failures() {
        let outbox = Outbox::open(Some("/nowhere/x".into()));
        while outbox.failure().is_none() {
            std::thread::yield_now();
        }
        let error = outbox.put(Worth::Final, Vec::new()).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/x: "), "{error}");
    }
}
