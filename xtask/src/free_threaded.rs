//! Builds CPythons without the interpreter's lock, which no Debian has, from the sources of Debian's packages: each into a
//! folder of its own such as `target/python-3.14t`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Context, Result};

use crate::process::{output, target};
use crate::report::{note, slow};
use crate::suite::{Suite, unpack_old_source};

/// Suites, and the version that each has.
const SUITES: [(&str, &str); 3] = [("trixie", "3.13"), ("sid", "3.14"), ("sid", "3.15")];

/// Where a mirror is ahead of its own files, the release of a version that it has all the same, and its SHA-256.
const OLD: [(&str, &str, &str); 1] = [(
    "3.14",
    "pool/main/p/python3.14/python3.14_3.14.4.orig.tar.xz",
    "d923c51303e38e249136fc1bdf3568d56ecb03214efdef48516176d3d7faaef8",
)];

/// Builds those that are not there. Tests that want one are skipped where it cannot be had.
pub fn ensure() {
    for (suite, version) in SUITES {
        let folder = target().join(format!("python-{version}t"));
        // Written last: what was built by half has none.
        let stamp = folder.join("complete");
        if stamp.exists() {
            continue;
        }
        let what = format!("building free-threaded CPython {version} from the sources of {suite}");
        let made = slow(&what, || build(suite, version, &folder));
        if let Err(error) = made.and_then(|()| Ok(fs::write(stamp, "")?)) {
            note(&format!("no CPython {version}t, so tests that want it are skipped: {error:#}"));
        }
    }
}

fn fetch(suite: &str, version: &str, folder: &Path) -> Result<()> {
    let fetched = Suite::open_sources(suite)
        .and_then(|suite| suite.unpack_source(&format!("python{version}"), folder));
    let old = OLD.iter().find(|(of, ..)| *of == version);
    match (fetched, old) {
        (Err(error), Some((_, path, sha256))) => {
            unpack_old_source(path, sha256, folder).with_context(|| format!("after {error:#}"))
        }
        (fetched, _) => fetched,
    }
}

fn build(suite: &str, version: &str, folder: &Path) -> Result<()> {
    // Not `with_extension`: that takes the minor version for one.
    let source = target().join(format!("python-{version}t-source"));
    fetch(suite, version, &source)?;
    let program = |name: &str| {
        let mut command = Command::new("nice");
        command.arg(name).current_dir(&source);
        command
    };
    let mut configure = program("./configure");
    configure.args(["--quiet", "--disable-gil", "--without-ensurepip", "--disable-test-modules"]);
    output(configure.arg(format!("--prefix={}", folder.display())))?;
    let jobs = available_parallelism().map_or(1, usize::from);
    output(program("make").args(["--silent", &format!("--jobs={jobs}")]))?;
    output(program("make").args(["--silent", "install"]))?;
    fs::remove_dir_all(&source).context("cannot remove the sources after they were built")
}
