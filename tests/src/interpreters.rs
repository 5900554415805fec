//! The CPythons that are there to be watched, from 3.8 on, each as a command that runs a sample program.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::target::{folder, system_python};

/// The versions that stalltrace knows.
const MINORS: std::ops::RangeInclusive<u8> = 8..=14;

/// One interpreter.
#[derive(Debug)]
pub struct Interpreter {
    /// `3.9`, `3.9 in a root of its own`, or `system`.
    pub name: String,
    path: PathBuf,
    /// The folder that it takes for the root of all files.
    root: Option<PathBuf>,
}

/// The system's own, and of each version the one that was built here and the one that Debian built;
/// says which versions are not there.
pub fn all() -> Vec<Interpreter> {
    let system = Interpreter { name: "system".to_owned(), path: system_python(), root: None };
    let mut found = vec![system];
    for minor in MINORS {
        let name = format!("3.{minor}");
        let built = pyenv(&name).map(|path| Interpreter { name: name.clone(), path, root: None });
        let before = found.len();
        found.extend([built, unpacked(&name)].into_iter().flatten());
        if found.len() == before {
            println!("skipped: CPython {name} is not here");
        }
    }
    found
}

/// The one that `cargo xtask setup targets` unpacks, in a root of its own.
fn unpacked(version: &str) -> Option<Interpreter> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let root = target.join(format!("python-{version}")).canonicalize().ok()?;
    let path = PathBuf::from(format!("/usr/bin/python{version}"));
    let name = format!("{version} in a root of its own");
    root.join("complete").exists().then_some(Interpreter { name, path, root: Some(root) })
}

fn pyenv(name: &str) -> Option<PathBuf> {
    let home = std::env::var_os("HOME")?;
    let versions = std::fs::read_dir(Path::new(&home).join(".pyenv/versions")).ok()?;
    let of_series =
        |name: &OsStr, series: &str| name.to_str().is_some_and(|name| name.starts_with(series));
    versions
        .flatten()
        .filter(|entry| of_series(&entry.file_name(), &format!("{name}.")))
        .map(|entry| entry.path().join(format!("bin/python{name}")))
        .find(|path| path.exists())
}

impl Interpreter {
    /// The command that runs a sample program, which may import nothing of its folder.
    pub fn run(&self, script: &str) -> Result<Command> {
        let ours = folder().join(script);
        let Some(root) = &self.root else {
            let mut command = Command::new(&self.path);
            command.arg(ours);
            return Ok(command);
        };
        let theirs = Path::new("/tmp").join(script);
        let place = root.join("tmp").join(script);
        std::fs::copy(&ours, &place)
            .with_context(|| format!("cannot write {}", place.display()))?;
        let mut command = Command::new("chroot");
        command.arg(root).arg(&self.path).arg(theirs);
        Ok(command)
    }
}
