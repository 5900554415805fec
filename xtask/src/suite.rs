//! A suite of Debian, whatever distribution this machine has: an apt of its own that knows nothing of this machine's
//! packages, sources and archives, to fetch from and never to install.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::{Source, unpack_all};
use crate::process::{output, target, which};

/// Debian's keys: apt refuses lists that they have not signed, and archives that the lists do not vouch for.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where Debian is to be had if this machine's own sources name no mirror of it.
const MIRROR: &str = "http://deb.debian.org/debian";

/// A suite and its lists, which go away with it.
#[derive(Debug)]
pub struct Suite(PathBuf);

impl Suite {
    /// Fetches the lists of a suite: `trixie`, `sid`, `trixie-backports`.
    pub fn open(name: &str) -> Result<Self> {
        Self::of(name, "deb")
    }

    /// Fetches the lists of a suite's sources.
    pub fn open_sources(name: &str) -> Result<Self> {
        Self::of(name, "deb-src")
    }

    fn of(name: &str, kind: &str) -> Result<Self> {
        if which("apt-get").is_none() || !Path::new(KEYS).exists() {
            bail!("that takes apt-get and {KEYS} (package debian-archive-keyring)");
        }
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            bail!("{name:?} is no name of a suite; Debian has bookworm, trixie, sid and others");
        }
        // Two of us may fetch from one suite at once.
        let state = target().join("apt").join(format!("{name}-{}", std::process::id()));
        let suite = Self(state);
        let state = &suite.0;
        fs::create_dir_all(state.join("lists/partial"))?;
        fs::create_dir_all(state.join("archives/partial"))?;
        // Nothing counts as installed, so everything is fetched.
        fs::write(state.join("status"), "")?;
        let mirror = mirror();
        fs::write(
            state.join("sources"),
            format!("{kind} [signed-by={KEYS}] {mirror} {name} main\n"),
        )?;
        output(suite.program("apt-get")?.arg("update")).with_context(|| {
            format!("cannot fetch the lists of Debian's suite {name} from {mirror}")
        })?;
        Ok(suite)
    }

    /// Fetches a package and all that it depends on, and unpacks them into a folder.
    pub fn unpack_with_dependencies(&self, package: &str, folder: &Path) -> Result<()> {
        let mut install = self.program("apt-get")?;
        install.args(["install", "-y", "--no-install-recommends", "--download-only", package]);
        output(&mut install)?;
        unpack_all(&self.0.join("archives"), folder)
    }

    /// Fetches what a package's developers have released, without what Debian adds, and unpacks it.
    pub fn unpack_source(&self, package: &str, folder: &Path) -> Result<()> {
        let fetched = self.0.join("source");
        fs::create_dir_all(&fetched)?;
        let mut source = self.program("apt-get")?;
        source.args(["source", "--download-only", "--only-source", package]).current_dir(&fetched);
        output(&mut source)?;
        let mut files = fs::read_dir(&fetched)?.flatten().map(|entry| entry.path());
        // Beside it may lie its signature.
        let is_release = |path: &PathBuf| {
            let name = path.to_string_lossy();
            name.contains(".orig.tar.") && !name.ends_with(".asc")
        };
        let release = files.find(is_release).context("the package has no original release")?;
        unpack_release(&release, folder)
    }
}

/// Fetches a release that a mirror has, although no list of a suite names it any more: by its path below the mirror, and
/// its SHA-256.
pub fn unpack_old_source(path: &str, sha256: &str, folder: &Path) -> Result<()> {
    let archive = target().join("apt").join(Path::new(path).file_name().context("no file")?);
    fs::create_dir_all(target().join("apt"))?;
    let from = format!("{}/{path}", mirror().trim_end_matches('/'));
    let fetch = ["--fail", "--silent", "--show-error", "--location", "--output"];
    output(Command::new("curl").args(fetch).arg(&archive).arg(&from))?;
    let sum = output(Command::new("sha256sum").arg(&archive))?;
    if !sum.starts_with(sha256) {
        bail!("{from} is not the file that it was: its SHA-256 is {sum}");
    }
    unpack_release(&archive, folder)?;
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))
}

/// Unpacks what a release has in its one folder.
fn unpack_release(archive: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let unpack = ["--extract", "--strip-components=1", "--no-same-owner", "--directory"];
    output(Command::new("tar").args(unpack).arg(folder).arg("--file").arg(archive))?;
    Ok(())
}

impl Source for Suite {
    fn program(&self, name: &str) -> Result<Command> {
        let Self(state) = self;
        let mut command = Command::new(name);
        let folders = [
            ("Dir::Etc::sourcelist", state.join("sources")),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::State", state.clone()),
            ("Dir::State::status", state.join("status")),
            ("Dir::Cache", state.clone()),
        ];
        for (name, path) in folders {
            command.arg("-o").arg(format!("{name}={}", path.display()));
        }
        // The user `_apt` may not be allowed to see our folder.
        command.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"]);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        Ok(command)
    }
}

impl Drop for Suite {
    fn drop(&mut self) {
        // What stays behind is in `target`.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The mirror of Debian that this machine uses.
fn mirror() -> String {
    let arguments = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"];
    let listed = output(Command::new("apt-get").args(arguments).arg("Label: Debian"));
    let first = listed.ok().and_then(|uris| uris.lines().next().map(str::to_owned));
    first.filter(|uri| uri.starts_with("http")).unwrap_or_else(|| MIRROR.to_owned())
}
