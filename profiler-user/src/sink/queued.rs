//! The sink that the configuration asks for: each report as a whole, before lines that wait to be written.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use super::outbox::{Outbox, Worth};
use super::settings::{self, Format, Settings};
use super::{Output, Sink, json, text};
use crate::report::Report;

/// Opens it.
pub fn open(output: &Settings, outbox: Outbox) -> Output {
    let page = Page::default();
    let writer = page.clone();
    let format: Output = match output.format {
        Format::Json => Box::new(json::JsonLines::new(writer, output.limits)),
        Format::Text(look) => {
            let colour = match look.colour {
                settings::ColourUse::Always => text::Colour::On,
                settings::ColourUse::Never => text::Colour::Off,
            };
            let columns = match &output.file {
                Some(_) => text::usual_columns,
                None => text::terminal_columns,
            };
            Box::new(text::Text::new(writer, colour, look.detail, columns))
        }
    };
    Box::new(Queued { format, page, outbox })
}

/// What one report looks like.
#[derive(Debug, Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hands over each report as a whole.
struct Queued {
    format: Output,
    page: Page,
    outbox: Outbox,
}

impl Sink for Queued {
    fn accept(&mut self, report: &Report) -> io::Result<()> {
        self.format.accept(report)?;
        let line = std::mem::take(&mut *self.page.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.outbox.put(worth(report), line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.format.flush()
    }

    fn dropped(&self) -> u64 {
        self.outbox.dropped()
    }
}

fn worth(report: &Report) -> Worth {
    match report {
        Report::SessionStart(_) | Report::SessionEnd(_) => Worth::Frame,
        Report::StallEnd(_) => Worth::Final,
        _ => Worth::Passing,
    }
}
