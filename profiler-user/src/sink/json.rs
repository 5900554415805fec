//! One report to one line of JSON.

use std::io::{self, Write};

use super::Sink;
use crate::report::Report;
use crate::report::fit::{Fitter, Limits};

/// Writes JSON lines.
#[derive(Debug)]
pub struct JsonLines<W> {
    writer: W,
    fitter: Fitter,
}

impl<W: Write> JsonLines<W> {
    pub fn new(writer: W, limits: Limits) -> Self {
        Self { writer, fitter: Fitter::new(limits) }
    }
}

impl<W: Write> Sink for JsonLines<W> {
    fn accept(&mut self, report: &Report) -> io::Result<()> {
        // In one piece, so that a reader of a file or a log driver never sees half a line; at once,
        // because the stall that it tells of may still be going on.
        self.writer.write_all(self.fitter.line(report)?.as_bytes())?;
        self.writer.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use super::JsonLines;
    use crate::report::fit::{Fitter, Limits};
    use crate::report::{Report, sample};
    use crate::sink::Sink;
    use crate::turn::Moment;

    /// Remembers what was written in which pieces, and how often it was flushed.
    #[derive(Default)]
    struct Recorder {
        pieces: Vec<Vec<u8>>,
        flushed: usize,
    }

    impl Write for Recorder {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.pieces.push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            self.flushed += 1;
            Ok(())
        }
    }

    /// Every report is one line, written in one piece and flushed at once.
    #[test]
    fn line_by_line() {
        let mut sink = JsonLines::new(Recorder::default(), Limits::default());
        sink.accept(&sample::report(Moment::Open, &sample::open_stall())).unwrap();
        sink.accept(&sample::report(Moment::End, &sample::stall())).unwrap();
        assert_eq!((sink.writer.pieces.len(), sink.writer.flushed), (2, 2));
        for piece in &sink.writer.pieces {
            let line = str::from_utf8(piece).unwrap();
            assert_eq!(line.find('\n'), Some(line.len() - 1));
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }

    /// Line feeds in the target's names do not break a line.
    #[test]
    fn hostile_names() {
        let mut report = sample::report(Moment::End, &sample::stall());
        if let Report::StallEnd(line) = &mut report {
            line.common.process.name = "a\nb\u{1b}[31m\u{2028}".to_owned();
        }
        let line = Fitter::new(Limits::default()).line(&report).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.contains(r"a\nb\u001b[31m"));
    }
}
