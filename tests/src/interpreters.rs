//! The CPythons that are there to be watched, from 3.8 on, each as a command that runs a sample program.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::tally::skip;
use crate::target::{folder, system_python};

/// The versions that stalltrace knows.
const MINORS: std::ops::RangeInclusive<u8> = 8..=15;

/// Those that can be built without the interpreter's lock.
const FREE_THREADED: std::ops::RangeInclusive<u8> = 13..=15;

/// The first that compiles code as it runs, if it is told to.
const FIRST_WITH_JIT: u8 = 15;

/// What sample programs may import that runs in a root of its own.
const IMPORTED: &str = "calibrated.py";

/// One interpreter.
#[derive(Debug)]
pub struct Interpreter {
    /// `3.9`, `3.9 in a root of its own`, `3.15 with its JIT`, or `system`.
    pub name: String,
    path: PathBuf,
    /// The folder that it takes for the root of all files.
    root: Option<PathBuf>,
    with_jit: bool,
}

/// The system's own, and of each version the one that was built here and the one that Debian built;
/// says which versions are not there.
pub fn all() -> Result<Vec<Interpreter>> {
    let system = Interpreter {
        name: "system".to_owned(),
        path: system_python(),
        root: None,
        with_jit: false,
    };
    let mut found = vec![system];
    for minor in MINORS {
        let name = format!("3.{minor}");
        let with_jit = false;
        let of_pyenv = |path| Interpreter { name: name.clone(), path, root: None, with_jit };
        let built = pyenv(&name).map(of_pyenv);
        let before = found.len();
        let with_jit = (minor >= FIRST_WITH_JIT).then(|| unpacked(&name)).flatten();
        let with_jit = with_jit.map(Interpreter::with_jit);
        found.extend([built, unpacked(&name), with_jit].into_iter().flatten());
        if found.len() == before {
            skip(&format!("cpython/{name}"), "it is not here")?;
        }
    }
    for minor in FREE_THREADED {
        match free_threaded(minor) {
            Some(built) => found.push(built),
            None => {
                let why = "`cargo xtask setup free-threaded` has not built it";
                skip(&format!("cpython/3.{minor}t"), why)?;
            }
        }
    }
    Ok(found)
}

/// The one that `cargo xtask setup free-threaded` builds.
fn free_threaded(minor: u8) -> Option<Interpreter> {
    let name = format!("3.{minor}t");
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let folder = target.join(format!("python-{name}")).canonicalize().ok()?;
    let path = folder.join(format!("bin/python{name}"));
    folder.join("complete").exists().then_some(Interpreter {
        name,
        path,
        root: None,
        with_jit: false,
    })
}

/// The one that `cargo xtask setup targets` unpacks, in a root of its own.
fn unpacked(version: &str) -> Option<Interpreter> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let root = target.join(format!("python-{version}")).canonicalize().ok()?;
    let path = PathBuf::from(format!("/usr/bin/python{version}"));
    let name = format!("{version} in a root of its own");
    root.join("complete").exists().then_some(Interpreter {
        name,
        path,
        root: Some(root),
        with_jit: false,
    })
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
    fn with_jit(self) -> Self {
        Self { name: format!("{} with its JIT", self.name), with_jit: true, ..self }
    }

    /// A copy of its executable with other bytes, under a name that this process does not use twice.
    pub fn altered(&self, name: &str, alter: impl FnOnce(&mut Vec<u8>)) -> Result<Self> {
        let temporary = std::env::temp_dir();
        let (from, folder) = match &self.root {
            Some(root) => (root.join(self.path.strip_prefix("/")?), root.join("tmp")),
            None => (self.path.clone(), temporary.clone()),
        };
        let mut bytes =
            std::fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        alter(&mut bytes);
        // By its own name it is known as an interpreter.
        let file = Path::new(&format!("{name}-{}", std::process::id())).join("python3");
        let place = folder.join(&file);
        std::fs::create_dir_all(place.parent().unwrap_or(&folder))?;
        std::fs::write(&place, bytes)?;
        std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o755))?;
        let path = if self.root.is_some() { Path::new("/tmp").join(file) } else { place };
        Ok(Self { name: name.to_owned(), path, root: self.root.clone(), with_jit: false })
    }

    /// The copy is not needed any more.
    pub fn remove(self) -> Result<()> {
        let path = match &self.root {
            Some(root) => root.join(self.path.strip_prefix("/")?),
            None => self.path,
        };
        let folder = path.parent().context("it has no folder of its own")?;
        Ok(std::fs::remove_dir_all(folder)?)
    }

    /// Whether it compiles code as it runs.
    pub fn has_jit(&self) -> bool {
        self.with_jit
    }

    /// The command that runs a sample program, which may import `calibrated.py` of its folder and nothing else.
    pub fn run(&self, script: &str) -> Result<Command> {
        let ours = folder().join(script);
        let Some(root) = &self.root else {
            let mut command = Command::new(&self.path);
            command.arg(ours);
            return Ok(command);
        };
        let theirs = Path::new("/tmp").join(script);
        for file in [script, IMPORTED] {
            let place = root.join("tmp").join(file);
            std::fs::copy(folder().join(file), &place)
                .with_context(|| format!("cannot write {}", place.display()))?;
        }
        let mut command = Command::new("chroot");
        command.arg(root).arg(&self.path).arg(theirs);
        command.env("PYTHON_JIT", if self.with_jit { "1" } else { "0" });
        Ok(command)
    }

    /// The same with options of the program.
    pub fn run_with(&self, script: &str, options: &[&str]) -> Result<Command> {
        let mut command = self.run(script)?;
        command.args(options);
        Ok(command)
    }
}
