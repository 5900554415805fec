//! Unpacks the CPython of several Debian suites, each into a root of its own such as `target/python-3.14`; nothing is installed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};

use crate::process::target;
use crate::report::{note, slow};
use crate::suite::Suite;

/// Suites, and the version that each has.
const SUITES: [(&str, &str); 4] =
    [("bullseye", "3.9"), ("trixie", "3.13"), ("sid", "3.14"), ("sid", "3.15")];

/// Folders that have moved below `/usr`, by the names under which programs look for them.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// Fetches the interpreters that are not there. Tests that want one are skipped where it cannot be had.
pub fn ensure() {
    for (suite, version) in SUITES {
        let root = target().join(format!("python-{version}"));
        // Written last: what was unpacked by half has none.
        let stamp = root.join("complete");
        if stamp.exists() {
            continue;
        }
        let what = format!("fetching CPython {version} of Debian's suite {suite}");
        let made = slow(&what, || unpack(suite, version, &root));
        if let Err(error) = made.and_then(|()| Ok(fs::write(stamp, "")?)) {
            note(&format!("no CPython {version}, so tests that want it are skipped: {error:#}"));
        }
    }
}

fn unpack(suite: &str, version: &str, root: &Path) -> Result<()> {
    Suite::open(suite)?.unpack_with_dependencies(&format!("python{version}"), root)?;
    for folder in MERGED {
        let link = root.join(folder);
        if root.join("usr").join(folder).exists() && link.symlink_metadata().is_err() {
            symlink(Path::new("usr").join(folder), link)?;
        }
    }
    fs::create_dir_all(root.join("tmp")).context("no folder for what the tests put there")
}
