//! Failures that end the program, each with the exit code that scripts can rely on.

use std::fmt;

/// Why the program ends other than well. The number is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Something failed that should have worked.
    Failed = 1,
    /// The command line makes no sense. (Written by clap itself for most cases.)
    Usage = 2,
    /// Not permitted, or not supported on this machine or with this target.
    Unsupported = 3,
    /// There is no such process.
    NoProcess = 4,
}

/// A sentence for the person who typed the command: what is wrong, and what to do.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
}

impl Failure {
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self { exit: Exit::Unsupported, message: message.into() }
    }

    pub fn no_process(message: impl Into<String>) -> Self {
        Self { exit: Exit::NoProcess, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The exit code of a failed run: that of the first [`Failure`] in the chain of causes.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Failure>())
        .map_or(Exit::Failed as u8, |failure| failure.exit as u8)
}

#[cfg(test)]
mod tests {
    use super::{Failure, exit_code};
    use anyhow::Context;

    /// Context put around a failure does not hide its exit code.
    #[test]
    fn code_survives_context() {
        let error = anyhow::Error::new(Failure::no_process("gone")).context("cannot attach");
        assert_eq!(exit_code(&error), 4);
        assert_eq!(exit_code(&anyhow::anyhow!("other")), 1);
        let wrapped: anyhow::Result<()> = Err(Failure::unsupported("x")).context("y");
        assert_eq!(wrapped.map_err(|e| exit_code(&e)), Err(3));
    }
}
