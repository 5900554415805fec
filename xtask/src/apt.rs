//! Installs or fetches Debian packages by `apt-get`, whatever state its lists and archives are in.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};

use crate::process::{is_root, output, target, which};
use crate::report::slow;

/// Seconds to wait for another process's lock on dpkg.
const LOCK_SECONDS: u32 = 300;

/// Installs the packages, without the ones that they merely recommend.
pub fn install(packages: &[&str]) -> Result<()> {
    let names = packages.join(" ");
    if which("apt-get").is_none() {
        bail!("this machine has no apt-get; install by its own means what Debian calls: {names}");
    }
    if !is_root() {
        bail!(
            "packages are missing and only root may install them; do this, then try again:\n  \
             sudo apt-get update && sudo apt-get install -y --no-install-recommends {names}"
        );
    }
    update()?;
    slow(&format!("installing {names}"), || {
        let mut install = Own.program("apt-get")?;
        output(install.args(["install", "-y", "--no-install-recommends"]).args(packages))?;
        Ok(())
    })
}

/// Where packages come from: this machine's own distribution, or another one's suite.
pub trait Source {
    /// A program of apt that looks there, `apt-get` or `apt-cache`.
    fn program(&self, name: &str) -> Result<Command>;

    /// Fetches the packages and unpacks them into a folder; nothing is installed.
    fn unpack(&self, packages: &[String], folder: &Path) -> Result<()> {
        let archives = folder.with_extension("debs");
        fs::create_dir_all(&archives)?;
        let mut download = self.program("apt-get")?;
        download.arg("download").args(packages).current_dir(&archives);
        slow(&format!("fetching {}", packages.join(" ")), || output(&mut download))?;
        slow("unpacking", || unpack_all(&archives, folder))?;
        fs::remove_dir_all(&archives).context("cannot remove the archives after unpacking them")
    }

    /// The packages that installing this one would bring, itself included.
    fn closure(&self, package: &str) -> Result<Vec<String>> {
        let kinds = ["recommends", "suggests", "conflicts", "breaks", "replaces", "enhances"];
        let without = kinds.map(|kind| format!("--no-{kind}"));
        let mut depends = self.program("apt-cache")?;
        let listed = output(depends.args(["depends", "--recurse"]).args(without).arg(package))?;
        let names = listed.lines().filter(|line| !line.starts_with([' ', '<']));
        Ok(names.map(str::to_owned).collect())
    }
}

/// This machine's own distribution.
#[derive(Debug)]
pub struct Own;

impl Source for Own {
    fn program(&self, name: &str) -> Result<Command> {
        // An archive folder of our own: another apt-get empties the common one while we use it.
        let archives = target().join("apt");
        fs::create_dir_all(archives.join("partial"))?;
        let mut command = Command::new(name);
        command
            .arg("-o")
            .arg(format!("Dir::Cache::archives={}", archives.display()))
            .arg("-o")
            .arg(format!("DPkg::Lock::Timeout={LOCK_SECONDS}"))
            // The user `_apt` may not be allowed to see our folder.
            .args(["-o", "APT::Sandbox::User=root"])
            .env("DEBIAN_FRONTEND", "noninteractive")
            // Packages must not start their services: the tests start what they need themselves.
            .env("SYSTEMD_OFFLINE", "1");
        Ok(command)
    }
}

/// Unpacks every package in a folder into another one.
pub fn unpack_all(archives: &Path, folder: &Path) -> Result<()> {
    for archive in fs::read_dir(archives)? {
        let archive = archive?.path();
        if archive.extension().is_some_and(|extension| extension == "deb") {
            output(Command::new("dpkg-deb").arg("-x").arg(archive).arg(folder))?;
        }
    }
    Ok(())
}

/// Brings apt's lists up to date, once in a run: a fresh machine has none, an old one has names of
/// files that are gone.
pub fn update() -> Result<()> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        // An ordinary user has to do with the lists that are there.
        if !is_root() {
            return Ok(());
        }
        slow("updating apt's lists", || output(Own.program("apt-get")?.arg("update")))
            .map(|_| ())
            .map_err(|error| format!("{error:#}"))
    });
    done.clone().map_err(|error| anyhow!(error))
}
