//! Fetches a kernel and what its first process needs into `target/vm/NAME`; nothing is installed.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::{self, Own, Source};
use crate::process::{output, target, which};
use crate::report::note;
use crate::suite::Suite;

/// The package whose dependency is a distribution's current kernel: Debian's, Ubuntu's.
const KERNELS: [&str; 2] = ["linux-image-amd64", "linux-image-generic"];

/// A distribution may split one kernel over packages that begin so, followed by the version.
const PARTS: [&str; 4] =
    ["linux-image-", "linux-image-unsigned-", "linux-binary-", "linux-modules-"];

/// The modules that lead to the host's files, and to a disk to swap to. One that a kernel does not have
/// is built in there.
const MODULES: [&str; 5] = ["virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_blk"];

/// What was fetched with a kernel: one that was prepared for fewer modules is fetched again.
const PREPARED_FOR: &str = "prepared-for";

/// The kernel's own name of itself: `6.12.117+deb13-amd64`.
const RELEASE: &str = "release";

/// Which kernel is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The current one of this machine's distribution.
    Own,
    /// The one in this folder of `target/vm`.
    Folder(String),
    /// The current one of a suite of Debian, in one of the builds that it has there.
    Suite { suite: String, build: Build },
}

/// For whom Debian builds a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    Usual,
    /// With all of PREEMPT_RT.
    RealTime,
    /// For virtual machines: fewer drivers.
    Cloud,
}

impl Build {
    /// What its packages' names and its folder's have in their middle or at their end.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Usual => "",
            Self::RealTime => "-rt",
            Self::Cloud => "-cloud",
        }
    }
}

/// The folder with the `vmlinuz`, `busybox` and `modules` of a kernel, which are fetched if they are not there.
pub fn ensure(choice: &Choice) -> Result<PathBuf> {
    let all = target().join("vm");
    fs::create_dir_all(&all).with_context(|| format!("cannot make {}", all.display()))?;
    // Two of us must not prepare one kernel at once.
    let lock = File::create(all.join("lock")).context("no file to lock")?;
    lock.lock().context("cannot wait for another one that fetches a kernel")?;
    match choice {
        Choice::Own => own(&all),
        Choice::Folder(name) => folder(&all, name),
        Choice::Suite { suite, build } => of_suite(&all, suite, *build),
    }
}

/// What the kernel in a folder calls itself, where that is known.
pub fn release(folder: &Path) -> Option<String> {
    fs::read_to_string(folder.join(RELEASE)).ok()
}

fn own(all: &Path) -> Result<PathBuf> {
    let link = all.join("own");
    if is_prepared(&link) {
        return Ok(link);
    }
    apt::update()?;
    let parts = parts(&Own, &KERNELS)?;
    let version = parts.iter().find_map(|part| version_of(part)).context("it has no version")?;
    let folder = all.join(version);
    if !is_prepared(&folder) {
        fetch(&Own, &parts, &folder).with_context(|| format!("cannot prepare kernel {version}"))?;
    }
    let _ = fs::remove_file(&link);
    symlink(version, &link).context("cannot remember which kernel is the distribution's own")?;
    Ok(folder)
}

/// Whoever names a folder has put the kernel there, with the modules that it needs; or it is our own by its version.
fn folder(all: &Path, name: &str) -> Result<PathBuf> {
    let folder = all.join(name);
    let is_there = || folder.join("vmlinuz").is_file();
    if !is_there() && (own(all).is_err() || !is_there()) {
        bail!(
            "there is no kernel in {}: put a `vmlinuz`, a static `busybox` and its `modules` there, or \
             have one of Debian's fetched by `--suite`",
            folder.display()
        );
    }
    Ok(folder)
}

fn of_suite(all: &Path, suite: &str, build: Build) -> Result<PathBuf> {
    let suffix = build.suffix();
    let folder = all.join(format!("{suite}{suffix}"));
    if is_prepared(&folder) {
        return Ok(folder);
    }
    let fetched = Suite::open(suite).and_then(|source| {
        let parts = parts(&source, &[&format!("linux-image{suffix}-amd64")])?;
        fetch(&source, &parts, &folder)
    });
    fetched.with_context(|| format!("cannot prepare the kernel of Debian's suite {suite}"))?;
    Ok(folder)
}

/// The names of the packages that hold the current kernel, by the package that depends on them.
fn parts(source: &impl Source, kernels: &[&str]) -> Result<Vec<String>> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the virtual machine is set up for x86_64 only");
    }
    for kernel in kernels {
        let Ok(closure) = source.closure(kernel) else { continue };
        let parts: Vec<_> = closure.into_iter().filter(|name| version_of(name).is_some()).collect();
        if !parts.is_empty() {
            return Ok(parts);
        }
    }
    bail!("apt knows no kernel package there; tried {}", kernels.join(", "))
}

/// `6.12.117+deb13-amd64` out of `linux-image-6.12.117+deb13-amd64`, nothing out of other packages' names.
fn release_of(package: &str) -> Option<&str> {
    let rest = PARTS.iter().filter_map(|part| package.strip_prefix(part));
    let release = rest.min_by_key(|rest| rest.len())?;
    release.starts_with(|c: char| c.is_ascii_digit()).then_some(release)
}

/// Its first two numbers: `6.12`.
fn version_of(package: &str) -> Option<&str> {
    let release = release_of(package)?;
    let minor_at = release.find('.')? + 1;
    let digits = release[minor_at..].find(|c: char| !c.is_ascii_digit())?;
    Some(&release[..minor_at + digits])
}

fn fetch(source: &impl Source, parts: &[String], folder: &Path) -> Result<()> {
    let unpacked = folder.with_extension("unpacked");
    // Of one that was broken off.
    let _ = fs::remove_dir_all(&unpacked);
    let packages: Vec<_> = parts.iter().cloned().chain(["busybox-static".to_owned()]).collect();
    source.unpack(&packages, &unpacked)?;

    let files = files_below(&unpacked)?;
    let mut modules = Vec::new();
    for module in MODULES {
        with_dependencies(module, &files, &mut modules)?;
    }
    // Those of an earlier preparation would be loaded in another order.
    let _ = fs::remove_dir_all(folder.join("modules"));
    fs::create_dir_all(folder.join("modules"))?;
    for (position, (module, content)) in modules.iter().enumerate() {
        // The names' order is the order of loading.
        fs::write(folder.join(format!("modules/{position:02}-{module}.ko")), content)?;
    }
    fs::copy(find(&files, "/bin/busybox")?, folder.join("busybox"))?;
    fs::copy(find(&files, "/vmlinuz")?, folder.join("vmlinuz"))?;
    let release = parts.iter().find_map(|part| release_of(part)).unwrap_or_default();
    fs::write(folder.join(RELEASE), release)?;
    // Last: it is what makes the folder count as ready.
    fs::write(folder.join(PREPARED_FOR), MODULES.join("\n"))?;
    fs::remove_dir_all(&unpacked)?;
    note(&format!("kernel {release} is ready in {}", folder.display()));
    Ok(())
}

fn is_prepared(folder: &Path) -> bool {
    fs::read_to_string(folder.join(PREPARED_FOR)).is_ok_and(|told| told == MODULES.join("\n"))
}

fn find<'a>(files: &'a [PathBuf], path_part: &str) -> Result<&'a PathBuf> {
    files
        .iter()
        .find(|file| file.to_string_lossy().contains(path_part))
        .with_context(|| format!("the packages hold no {path_part}"))
}

/// Adds a module to the list, after those that it depends on.
fn with_dependencies(
    module: &str,
    files: &[PathBuf],
    list: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    if list.iter().any(|(listed, _)| listed == module) {
        return Ok(());
    }
    let Some(file) = files.iter().find(|file| is_module(file, module)) else { return Ok(()) };
    let content = decompressed(file)?;
    for dependency in dependencies(&content) {
        with_dependencies(&dependency, files, list)?;
    }
    list.push((module.to_owned(), content));
    Ok(())
}

/// What a module says of itself in its `.modinfo`: `depends=a,b` between two zero bytes.
fn dependencies(module: &[u8]) -> Vec<String> {
    let mut entries = module.split(|byte| *byte == 0);
    let named = entries.find_map(|entry| entry.strip_prefix(b"depends="));
    let named = String::from_utf8_lossy(named.unwrap_or_default()).into_owned();
    named.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else if entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}

fn name(file: &Path) -> &str {
    file.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Whether a file is this module, compressed or not. File names may have hyphens instead.
fn is_module(file: &Path, module: &str) -> bool {
    let name = name(file).replace('-', "_");
    name.strip_prefix(module).is_some_and(|rest| rest == ".ko" || rest.starts_with(".ko."))
}

fn decompressed(file: &Path) -> Result<Vec<u8>> {
    let tool = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => ("xz", "xz-utils"),
        Some("zst") => ("zstd", "zstd"),
        _ => return Ok(fs::read(file)?),
    };
    if which(tool.0).is_none() {
        apt::install(&[tool.1])?;
    }
    let plain = file.with_extension("");
    output(Command::new(tool.0).args(["-d", "-q", "-k"]).arg(file))?;
    Ok(fs::read(plain)?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{dependencies, is_module, release_of, version_of};

    /// Names of kernel packages, as Debian and Ubuntu have them, and of packages that are none.
    #[test]
    fn versions_of_packages() {
        assert_eq!(version_of("linux-image-6.1.0-56-amd64"), Some("6.1"));
        assert_eq!(version_of("linux-image-unsigned-6.8.0-31-generic"), Some("6.8"));
        assert_eq!(version_of("linux-binary-7.2.13+deb15-amd64"), Some("7.2"));
        assert_eq!(version_of("linux-image-amd64"), None);
        assert_eq!(version_of("linux-modules-rt-amd64"), None);
        let real_time = "linux-image-6.12.117+deb13-rt-amd64";
        assert_eq!(version_of(real_time), Some("6.12"));
        assert_eq!(release_of(real_time), Some("6.12.117+deb13-rt-amd64"));
        assert_eq!(version_of("linux-base"), None);
    }

    /// A module is found by its whole name, however it is compressed.
    #[test]
    fn modules_by_name() {
        assert!(is_module(Path::new("/lib/9p.ko"), "9p"));
        assert!(is_module(Path::new("/lib/9p.ko.xz"), "9p"));
        assert!(is_module(Path::new("/lib/virtio-rng.ko"), "virtio_rng"));
        assert!(!is_module(Path::new("/lib/9pnet.ko"), "9p"));
    }

    /// A module's dependencies are its own words.
    #[test]
    fn dependencies_of_a_module() {
        assert_eq!(dependencies(b"\x7fELF\0author=x\0depends=virtio,9pnet\0"), ["virtio", "9pnet"]);
        assert_eq!(dependencies(b"author=x\0depends=\0name=9pnet\0"), [""; 0]);
    }
}
