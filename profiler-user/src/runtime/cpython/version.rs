//! An image of the interpreter to its version, and to the layout that goes with it.

use super::detect::{PythonImage, minor_of_name};
use super::layout::CpythonLayout;
use super::offsets::of_minor;
use super::published::{DEBUG_COOKIE, DEBUG_WORDS, FIRST_WITH_DEBUG_OFFSETS, WORD_VERSION};
use crate::gap::Gap;
use crate::process::TargetMemory;

/// `3.11.7` and where that version keeps its fields.
pub fn of(memory: &dyn TargetMemory, image: &PythonImage) -> Result<(String, CpythonLayout), Gap> {
    let version = find(memory, image)?;
    let mut layout = of_minor(version.minor)?;
    if version.minor >= FIRST_WITH_DEBUG_OFFSETS {
        if version.is_unsettled() {
            let why =
                format_args!("CPython {version} is a pre-release, whose offsets nobody knows");
            return Err(Gap::new("Python frames", why));
        }
        let words = debug_words(memory, image)?;
        layout = layout.with_debug_offsets(version.minor, &words)?;
    }
    Ok((version.to_string(), layout))
}

/// A version of CPython 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    minor: u8,
    /// Before 3.11 nothing in memory tells it.
    micro: Option<u8>,
    /// `PY_RELEASE_LEVEL` and `PY_RELEASE_SERIAL`, of a half byte each.
    stage: u8,
}

/// `PY_RELEASE_LEVEL_ALPHA`, `_BETA` and, from which on nothing moves, `_GAMMA`: a release candidate.
const ALPHA: u8 = 0xa;
const BETA: u8 = 0xb;

impl std::fmt::Display for Version {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "3.{}", self.minor)?;
        self.micro.map_or(Ok(()), |micro| write!(formatter, ".{micro}"))?;
        match self.stage >> 4 {
            ALPHA => write!(formatter, "a{}", self.stage & 0xf),
            BETA => write!(formatter, "b{}", self.stage & 0xf),
            _ => Ok(()),
        }
    }
}

impl Version {
    /// Whether fields may still move before it is released.
    fn is_unsettled(self) -> bool {
        matches!(self.stage >> 4, ALPHA | BETA)
    }

    /// Major, minor, micro and release level, one byte each.
    fn of_word(word: u32) -> Result<Self, Gap> {
        match word.to_be_bytes() {
            [3, minor, micro, stage] => Ok(Self { minor, micro: Some(micro), stage }),
            _ => Err(Gap::new(
                "Python frames",
                format_args!("the interpreter's version number {word:#x} makes no sense"),
            )),
        }
    }
}

/// The version by the best witness that there is.
fn find(memory: &dyn TargetMemory, image: &PythonImage) -> Result<Version, Gap> {
    let read = |address| {
        memory.read_u32(address).map_err(|error| Gap::new("Python frames: its version", error))
    };
    if let Some(address) = image.version {
        return Version::of_word(read(address)?);
    }
    let mut cookie = [0; 8];
    memory
        .read(image.runtime, &mut cookie)
        .map_err(|error| Gap::new("Python frames: its runtime", error))?;
    if cookie == DEBUG_COOKIE {
        let word = DEBUG_COOKIE.len() + WORD_VERSION * size_of::<u64>();
        return Version::of_word(read(image.runtime.wrapping_add(word as u64))?);
    }
    match minor_of_name(&image.path) {
        Some(minor) => Ok(Version { minor, micro: None, stage: 0 }),
        None => Err(Gap::new(
            "Python frames",
            format_args!("nothing tells which CPython is inside {}", image.path.display()),
        )),
    }
}

/// The interpreter's own table of offsets, without its cookie.
fn debug_words(memory: &dyn TargetMemory, image: &PythonImage) -> Result<Vec<u64>, Gap> {
    let mut bytes = [0; DEBUG_COOKIE.len() + DEBUG_WORDS * size_of::<u64>()];
    memory
        .read(image.runtime, &mut bytes)
        .map_err(|error| Gap::new("Python frames: its table of offsets", error))?;
    let (words, _) = bytes.as_chunks();
    match words.split_first() {
        Some((cookie, rest)) if *cookie == DEBUG_COOKIE => {
            Ok(rest.iter().map(|&word| u64::from_le_bytes(word)).collect())
        }
        _ => Err(Gap::new(
            "Python frames",
            "the interpreter's own table of offsets is not where it should be",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::of;
    use crate::gap::Gap;
    use crate::process::TargetMemory;
    use crate::runtime::cpython::detect::PythonImage;
    use crate::runtime::cpython::pages::CopiedPages;
    use std::path::PathBuf;

    const RUNTIME: u64 = 0x5_0000;
    const VERSION: u64 = 0x6_0000;

    fn image(path: &str, version: Option<u64>) -> PythonImage {
        PythonImage { path: PathBuf::from(path), runtime: RUNTIME, version, code_type: None }
    }

    fn refused(memory: &dyn TargetMemory, image: &PythonImage) -> Gap {
        of(memory, image).expect_err("not to be read")
    }

    /// From 3.11 on the interpreter tells its version; before, the file's name has to.
    #[test]
    fn tells_versions() {
        let mut pages = CopiedPages::default();
        pages.put(RUNTIME, &[0; 64]);
        pages.put(VERSION, &0x030b_07f0_u32.to_le_bytes());
        let (version, _) = of(&pages, &image("/opt/app", Some(VERSION))).expect("3.11");
        assert_eq!(version, "3.11.7");
        let (version, _) = of(&pages, &image("/usr/bin/python3.9", None)).expect("3.9");
        assert_eq!(version, "3.9");
        assert!(refused(&pages, &image("/opt/app", None)).0.contains("/opt/app"));
    }

    /// Versions that are too old, too new or nonsense are said, not guessed at.
    #[test]
    fn refuses_unknown_versions() {
        let mut pages = CopiedPages::default();
        pages.put(RUNTIME, &[0; 1024]);
        for (word, reason) in [
            (0x0310_02f0_u32, "CPython 3.16"),
            (0x030f_00a7, "3.15.0a7 is a pre-release"),
            (0x0307_10f0, "CPython 3.7"),
            (0x0207_12f0, "makes no sense"),
            (0x030d_00f0, "table of offsets"),
        ] {
            pages.put(VERSION, &word.to_le_bytes());
            let gap = refused(&pages, &image("/usr/bin/python3", Some(VERSION)));
            assert!(gap.0.contains(reason), "{gap}");
        }
    }
}
