//! Reports to where they go: the contract of a sink, and the list of sinks.

pub mod json;
mod fold;
mod instead;
mod page;
mod statistics;
pub mod text;

use std::fs::File;
use std::io::{self, Write};

use crate::config::{self, Format};
use crate::report::Report;

/// Takes reports one by one, in the order in which they were made.
///
/// An error means that this line is not, or not wholly, where it should be; whoever holds the sink
/// decides whether to go on. [`reader_is_gone`] tells the one error that is an ordinary end.
pub trait Sink {
    fn accept(&mut self, report: &Report) -> io::Result<()>;

    /// Everything accepted so far has left the process.
    fn flush(&mut self) -> io::Result<()>;
}

/// A sink that can be handed to the thread that writes.
pub type Output = Box<dyn Sink + Send>;

/// The sink that the configuration asks for.
pub fn open(output: &config::Output) -> io::Result<Output> {
    let writer: Box<dyn Write + Send> = match &output.file {
        Some(path) => Box::new(File::create(path)?),
        None => Box::new(io::stdout()),
    };
    Ok(match output.format {
        Format::Json => Box::new(json::JsonLines::new(writer)),
        Format::Text(config::Colour::Always) => Box::new(text::Text::new(writer, text::Colour::On)),
        Format::Text(config::Colour::Never) => Box::new(text::Text::new(writer, text::Colour::Off)),
    })
}

/// Whoever read our output has closed it, as `head` does: not a failure of ours.
pub fn reader_is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use super::json::JsonLines;
    use super::text::{Colour, Text};
    use super::{Sink, reader_is_gone};
    use crate::report::sample;
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
            JsonLines::new(Broken(kind)).accept(&report).unwrap_err(),
            Text::new(Broken(kind), Colour::Off).accept(&report).unwrap_err(),
        ]
    }

    /// A closed pipe is told from a full disk, through every sink.
    #[test]
    fn closed_pipe() {
        assert!(failures(io::ErrorKind::BrokenPipe).iter().all(reader_is_gone));
        assert!(!failures(io::ErrorKind::StorageFull).iter().any(reader_is_gone));
    }
}
