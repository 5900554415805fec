//! Unpacks the CPython of several Debian suites, each into a root of its own such as `target/python-3.14`; nothing is installed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{output, target, which};
use crate::report::{note, slow};

/// Suites, and the version that each has.
const SUITES: [(&str, &str); 3] = [("bullseye", "3.9"), ("trixie", "3.13"), ("sid", "3.14")];

/// Debian's keys: apt refuses lists that they have not signed, and archives that the lists do not vouch for.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where Debian is to be had if this machine's own sources name no mirror of it.
const MIRROR: &str = "http://deb.debian.org/debian";

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
    if which("apt-get").is_none() || !Path::new(KEYS).exists() {
        bail!("that takes apt-get and {KEYS} (package debian-archive-keyring)");
    }
    let state = target().join("apt").join(suite);
    let _ = fs::remove_dir_all(&state);
    fs::create_dir_all(state.join("lists/partial"))?;
    fs::create_dir_all(state.join("archives/partial"))?;
    // Nothing counts as installed, so everything is fetched.
    fs::write(state.join("status"), "")?;
    let source = format!("deb [signed-by={KEYS}] {} {suite} main\n", mirror());
    fs::write(state.join("sources"), source)?;
    output(apt_get(&state).arg("update"))?;
    output(
        apt_get(&state)
            .args(["install", "-y", "--no-install-recommends", "--download-only"])
            .arg(format!("python{version}")),
    )?;
    for archive in fs::read_dir(state.join("archives"))? {
        let archive = archive?.path();
        if archive.extension().is_some_and(|extension| extension == "deb") {
            output(Command::new("dpkg-deb").arg("-x").arg(archive).arg(root))?;
        }
    }
    for folder in MERGED {
        let link = root.join(folder);
        if root.join("usr").join(folder).exists() && link.symlink_metadata().is_err() {
            symlink(Path::new("usr").join(folder), link)?;
        }
    }
    fs::create_dir_all(root.join("tmp"))?;
    fs::remove_dir_all(&state).context("cannot remove the archives after unpacking them")
}

/// The mirror of Debian that this machine uses.
fn mirror() -> String {
    let arguments = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"];
    let listed = output(Command::new("apt-get").args(arguments).arg("Label: Debian"));
    let first = listed.ok().and_then(|uris| uris.lines().next().map(str::to_owned));
    first.filter(|uri| uri.starts_with("http")).unwrap_or_else(|| MIRROR.to_owned())
}

/// An apt that knows nothing of this machine's packages, sources and archives.
fn apt_get(state: &Path) -> Command {
    let mut command = Command::new("apt-get");
    let folders = [
        ("Dir::Etc::sourcelist", state.join("sources")),
        ("Dir::Etc::sourceparts", "/dev/null".into()),
        ("Dir::State", state.to_owned()),
        ("Dir::State::status", state.join("status")),
        ("Dir::Cache", state.to_owned()),
    ];
    for (name, path) in folders {
        command.arg("-o").arg(format!("{name}={}", path.display()));
    }
    // The user `_apt` may not be allowed to see our folder.
    command.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"]);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}
