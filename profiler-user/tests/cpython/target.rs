//! An interpreter found on this machine to a child process that blocks and has told its own stack.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde::Deserialize;

use stalltrace::gap::Gap;
use stalltrace::process::live::{LiveMemory, open_region};
use stalltrace::process::maps;
use stalltrace::runtime::cpython::Python;

/// What the target prints about itself.
#[derive(Debug, Default, Deserialize)]
pub struct Truth {
    pub version: String,
    pub ident: u64,
    pub native_id: u32,
    pub reporter_ident: u64,
    pub reporter_native_id: u32,
    pub stack: Vec<TrueFrame>,
}

#[derive(Debug, Deserialize)]
pub struct TrueFrame {
    pub function: String,
    pub file: String,
    pub line: u32,
    pub first_line: u32,
    pub is_coroutine: bool,
}

/// An interpreter that is installed here.
pub struct Interpreter {
    pub path: PathBuf,
}

impl Interpreter {
    /// `3.11` among pyenv's versions or the system's, or whichever the `system` takes for its own.
    /// None, and said so, where there is none.
    pub fn find(version: &str) -> Option<Self> {
        let found = if version == "system" {
            fs::canonicalize("/usr/bin/python3").ok()
        } else {
            let installed = || Some(PathBuf::from(format!("/usr/bin/python{version}")));
            pyenv(version).or_else(installed).filter(|path| path.exists())
        };
        if found.is_none() {
            println!("skipped: CPython {version} is not installed here");
        }
        found.map(|path| Self { path })
    }
}

fn pyenv(version: &str) -> Option<PathBuf> {
    let home = std::env::var_os("HOME")?;
    let versions = fs::read_dir(Path::new(&home).join(".pyenv/versions")).ok()?;
    let series = format!("{version}.");
    versions
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&series)))
        .map(|entry| entry.path().join(format!("bin/python{version}")))
        .find(|path| path.exists())
}

/// A child process, killed when dropped.
pub struct Target {
    child: Child,
    truth: Truth,
}

impl Target {
    /// Starts one of the shapes and waits until it blocks.
    pub fn start(interpreter: &Interpreter, shape: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cpython/shapes.py");
        let arguments = [script.as_os_str(), OsStr::new(shape)];
        let (child, line) = spawn(&interpreter.path, &arguments);
        let mut target = Self { child, truth: Truth::default() };
        target.truth = serde_json::from_str(&line).expect("the target tells its stack");
        target
    }

    /// Starts something else, which prints a line and then waits for input.
    pub fn start_idle(program: &Path, arguments: &[&str]) -> Self {
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        let (child, _) = spawn(program, &arguments);
        Self { child, truth: Truth::default() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn truth(&self) -> &Truth {
        &self.truth
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(program: &Path, arguments: &[&OsStr]) -> (Child, String) {
    let mut child = Command::new(program)
        .args(arguments)
        .env("PYTHONUNBUFFERED", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut line = String::new();
    let output = child.stdout.as_mut().expect("it was piped");
    BufReader::new(output).read_line(&mut line).expect("UTF-8");
    (child, line)
}

/// Looks for an interpreter in a target.
pub fn detect(target: &Target) -> Result<Option<Python>, Gap> {
    let pid = target.pid();
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the target lives");
    Python::detect(&LiveMemory::new(pid), &maps::parse(&text), &|region| open_region(pid, region))
}

/// Whether the kernel lets us open files through `map_files`, which takes privileges.
pub fn may_open_mappings() -> bool {
    let entries = fs::read_dir("/proc/self/map_files");
    entries.is_ok_and(|entries| entries.flatten().any(|entry| fs::File::open(entry.path()).is_ok()))
}
