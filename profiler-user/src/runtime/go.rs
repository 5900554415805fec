//! An executable to whether Go made it, by which version, and what of such a program cannot be seen.
//!
//! Go's runtime asks the network from whichever thread is free, and any thread may be taken from it for a
//! computation or a system call, while others go on with all other goroutines: what is late in such a
//! program is a goroutine, and never a thread.

use super::{Found, Process, Runtime};
use crate::gap::Gap;
use crate::process::image::Image;

/// As a report's `runtime.name` has it.
pub const NAME: &str = "go";

/// What Go's linker writes before the version (`debug/buildinfo`): 14 bytes, then the size of a pointer
/// and flags, and from byte 32 on the version, with its length before it.
const MAGIC: &[u8] = b"\xff Go buildinf:";
const FLAGS_AT: usize = 15;
const VERSION_AT: usize = 32;

/// The flag of Go 1.18 and later: the version stands here, and not where a pointer leads.
const INLINE: u8 = 2;

/// `go1.23.4 X:rangefunc`: bytes of a version at most, so that its length has one byte.
const MAX_VERSION_BYTES: u8 = 127;

/// Go's row in the table of runtimes.
#[derive(Debug)]
pub struct GoRow;

impl Runtime for GoRow {
    fn name(&self) -> &'static str {
        "Go"
    }

    fn attach(&self, process: &Process<'_>) -> Result<Option<Found>, Gap> {
        let found = process.program.and_then(Go::detect);
        Ok(found.map(|go| Found { gap: Some(Go::gap()), ..Found::whole(NAME, go.version) }))
    }
}

/// A program made by Go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Go {
    /// As of Go 1.18: without the `go` before it.
    pub version: Option<String>,
}

impl Go {
    /// `None` of a program that Go did not make.
    pub fn detect(image: &Image) -> Option<Self> {
        let version = image.go_build_info().and_then(|section| {
            let length = section.file.end.saturating_sub(section.file.start);
            let most = (VERSION_AT + 1 + usize::from(MAX_VERSION_BYTES)) as u64;
            let mut bytes = vec![0; usize::try_from(length.min(most)).ok()?];
            image.read_at(section.file.start, &mut bytes).ok()?;
            version(&bytes)
        });
        image.is_go().then_some(Self { version })
    }

    /// What a session over it goes without.
    pub fn gap() -> Gap {
        let why = "Go's runtime serves goroutines on whichever threads are free, so no thread's stall is \
                   theirs; its goroutines and stop-the-world pauses are not seen";
        Gap::new("stalls of Go code", why)
    }
}

fn version(build_info: &[u8]) -> Option<String> {
    let is_inline = build_info.get(FLAGS_AT)? & INLINE != 0;
    if !build_info.starts_with(MAGIC) || !is_inline {
        return None;
    }
    let (length, text) = build_info.get(VERSION_AT..)?.split_first()?;
    let length = Some(*length).filter(|length| *length <= MAX_VERSION_BYTES)?;
    let text = std::str::from_utf8(text.get(..length.into())?).ok()?;
    let version = text.strip_prefix("go").unwrap_or(text);
    let is_plain = |character: char| character.is_ascii_graphic() || character == ' ';
    (!version.is_empty() && version.chars().all(is_plain)).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::{Go, version};
    use crate::process::image::Image;

    fn build_info(flags: u8, text: &str) -> Vec<u8> {
        let mut bytes = b"\xff Go buildinf:\x08".to_vec();
        bytes.push(flags);
        bytes.resize(32, 0);
        bytes.push(text.len() as u8);
        bytes.extend(text.as_bytes());
        bytes
    }

    /// The version is read where it stands; what is cut off, points elsewhere or is none is not one.
    #[test]
    fn versions() {
        let read = |bytes: &[u8]| version(bytes);
        assert_eq!(read(&build_info(2, "go1.19.8")).as_deref(), Some("1.19.8"));
        let experiments = "devel go1.24-1234 X:rangefunc";
        assert_eq!(read(&build_info(2, experiments)).as_deref(), Some(experiments));
        assert_eq!(read(&build_info(0, "go1.17")), None, "a pointer");
        assert_eq!(read(&build_info(2, "")), None);
        assert_eq!(read(&build_info(2, "go\n1.19")), None);
        assert_eq!(read(&build_info(2, "go1.19.8")[..36]), None, "cut off");
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[0xff; 64]), None);
    }

    /// Rust made this program.
    #[test]
    fn others() {
        let image = Image::from_file(File::open("/proc/self/exe").unwrap(), 0).unwrap();
        assert_eq!(Go::detect(&image), None);
    }
}
