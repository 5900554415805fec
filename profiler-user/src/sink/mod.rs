//! Reports to where they go: the contract of a sink, and the list of sinks.

mod destination;
pub mod json;
mod culprits;
mod fold;
mod frames;
mod instead;
pub mod outbox;
mod page;
mod queued;
pub mod settings;
mod stacks;
mod stall;
mod statistics;
pub mod text;
mod time;
mod words;

use std::io;

pub use self::queued::open;
use crate::report::Report;

/// Takes reports one by one, in the order in which they were made.
///
/// An error means that this line is not, or not wholly, where it should be; whoever holds the sink
/// decides whether to go on. [`reader_is_gone`] tells the one error that is an ordinary end.
pub trait Sink {
    fn accept(&mut self, report: &Report) -> io::Result<()>;

    /// Everything accepted so far has left the process.
    fn flush(&mut self) -> io::Result<()>;

    /// Lines that were accepted, but will not be where they should.
    fn dropped(&self) -> u64 {
        0
    }
}

/// Takes reports to nowhere.
#[derive(Debug)]
pub struct Nowhere;

impl Sink for Nowhere {
    fn accept(&mut self, _: &Report) -> io::Result<()> {
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A sink that can be handed to the thread that makes reports.
pub type Output = Box<dyn Sink + Send>;

/// Whoever read our output has closed it, as `head` does: not a failure of ours.
pub fn reader_is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use super::json::JsonLines;
    use super::text::{Colour, Text, usual_columns};
    use super::{Sink, reader_is_gone};
    use crate::report::fit::Limits;
    use crate::report::sample;
    use crate::sink::settings::Detail;
    use crate::turn::Moment;

    /// A writer that fails with this kind.
    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn failures(kind: io::ErrorKind) -> [io::Error; 2] {
        let report = sample::report(Moment::End, &sample::stall());
        [
            JsonLines::new(Broken(kind), Limits::default()).accept(&report).unwrap_err(),
            Text::new(Broken(kind), Colour::Off, Detail::Brief, usual_columns)
                .accept(&report)
                .unwrap_err(),
        ]
    }

    /// A closed pipe is told from a full disk, through every sink.
    #[test]
    fn closed_pipe() {
        assert!(failures(io::ErrorKind::BrokenPipe).iter().all(reader_is_gone));
        assert!(!failures(io::ErrorKind::StorageFull).iter().any(reader_is_gone));
    }
}
