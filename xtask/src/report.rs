//! Turns progress and failures into lines on standard error, in colour only on a terminal.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use anyhow::Result;

#[derive(Debug, Clone, Copy)]
pub enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
    Cyan = 36,
}

/// The text, in bold colour where a person looks at it.
pub fn paint(colour: Colour, text: &str) -> String {
    // https://no-color.org
    if stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[1;{}m{text}\x1b[0m", colour as u8)
    } else {
        text.to_owned()
    }
}

/// One line on what is going on.
pub fn note(text: &str) {
    eprintln!("{} {text}", paint(Colour::Cyan, "xtask:"));
}

/// Says what is being done, does it, and says how long it took.
pub fn slow<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    note(&format!("{what} ..."));
    let begun = Instant::now();
    let done = work()?;
    note(&format!("{what}: done in {}", seconds(begun.elapsed())));
    Ok(done)
}

/// What went wrong, with all its causes.
pub fn failure(error: &anyhow::Error) {
    eprintln!("{} {error:#}", paint(Colour::Red, "error:"));
}

pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
