//! Unpacks Debian's rsyslog into `target/rsyslog`, where it starts no service and takes no other one's place.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::apt::{self, Own, Source as _};
use crate::process::target;
use crate::report::note;

/// What it consists of, beside the libraries that every Debian has.
const PACKAGES: [&str; 4] = ["rsyslog", "libfastjson4", "libestr0", "liblognorm5"];

/// Fetches it where it is not there. The test that wants it is skipped where it cannot be had.
pub fn ensure() {
    let folder = target().join("rsyslog");
    if folder.join("usr/sbin/rsyslogd").exists() {
        return;
    }
    if let Err(error) = fetch(&folder) {
        note(&format!("no rsyslog, so the test of it is skipped: {error:#}"));
    }
}

fn fetch(folder: &Path) -> Result<()> {
    apt::update()?;
    fs::create_dir_all(folder)?;
    Own.unpack(&PACKAGES.map(str::to_owned), folder)
}
