//! An interpreter found on this machine to a child process that blocks and has told its own stack.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;

use stalltrace::gap::Gap;
use stalltrace::process::live::{LiveMemory, open_region};
use stalltrace::process::maps;
use stalltrace::runtime::cpython::Python;

/// What the target prints about itself.
#[derive(Debug, Default, Deserialize)]
pub struct Truth {
    pub shape: String,
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

/// An interpreter that is there to be run.
pub struct Interpreter {
    pub path: PathBuf,
    /// Words before its own arguments: how it is started, where not by its path alone.
    launcher: Vec<OsString>,
    /// The folder that is the root of its file system.
    root: Option<PathBuf>,
    with_jit: bool,
}

impl Interpreter {
    /// `3.11` among pyenv's versions or the system's, or whichever the `system` takes for its own.
    /// None, and said so, where there is none.
    pub fn find(version: &str) -> Option<Self> {
        let found = match version {
            "system" => fs::canonicalize("/usr/bin/python3").ok().map(Self::at),
            _ => {
                let installed = || Some(PathBuf::from(format!("/usr/bin/python{version}")));
                let path = pyenv(version).or_else(installed).filter(|path| path.exists());
                path.map(Self::at)
                    .or_else(|| Self::unpacked(version))
                    .or_else(|| Self::free_threaded(version))
            }
        };
        if found.is_none() {
            println!("skipped: CPython {version} is not installed here");
        }
        found
    }

    pub fn at(path: PathBuf) -> Self {
        Self { launcher: vec![path.clone().into()], path, root: None, with_jit: false }
    }

    /// One that was built without the interpreter's lock: `3.14t`.
    fn free_threaded(version: &str) -> Option<Self> {
        let path = unpacked_root(version)?.join(format!("bin/python{version}"));
        path.exists().then(|| Self::at(path))
    }

    /// One that lies beside this system with a C library of its own, started by its own loader.
    fn unpacked(version: &str) -> Option<Self> {
        let root = unpacked_root(version)?;
        let path = root.join(format!("usr/bin/python{version}"));
        if !path.exists() {
            return None;
        }
        let launcher = vec![
            root.join("lib64/ld-linux-x86-64.so.2").into(),
            "--library-path".into(),
            root.join("usr/lib/x86_64-linux-gnu").into(),
            path.clone().into(),
        ];
        Some(Self { path, launcher, root: None, with_jit: false })
    }

    /// The same with that folder as its root, so that its paths mean something else than ours. None,
    /// and said so, where it is not there or we may not do that.
    pub fn in_its_own_root(version: &str) -> Option<Self> {
        let Some(root) = unpacked_root(version) else {
            println!("skipped: CPython {version} is not unpacked here");
            return None;
        };
        if !may_open_mappings() {
            println!("skipped: changing the root takes privileges");
            return None;
        }
        let path = PathBuf::from(format!("/usr/bin/python{version}"));
        let launcher = vec!["chroot".into(), root.clone().into(), path.clone().into()];
        Some(Self { path, launcher, root: Some(root), with_jit: false })
    }

    /// The same with code that the interpreter compiles as it runs, if it was built to.
    pub fn with_jit(self) -> Self {
        Self { with_jit: true, ..self }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.launcher[0]);
        command.args(&self.launcher[1..]).env("PYTHON_JIT", if self.with_jit { "1" } else { "0" });
        command
    }

    /// The path, as the interpreter sees it, of a script beside this file.
    fn script(&self, name: &str) -> PathBuf {
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cpython");
        let Some(root) = &self.root else { return ours.join(name) };
        for script in SCRIPTS {
            let place = root.join("tmp").join(script);
            // Others may be using it.
            let written = place.with_extension(std::process::id().to_string());
            fs::copy(ours.join(script), &written).expect("its temporary directory is writable");
            fs::rename(&written, &place).expect("its temporary directory is writable");
        }
        Path::new("/tmp").join(name)
    }
}

/// What the targets run; the second imports the first.
const SCRIPTS: [&str; 2] = ["shapes.py", "callbacks.py"];

/// What `cargo xtask setup targets` unpacks: all as Debian builds them, each with its own C library.
pub const UNPACKED: [&str; 4] = ["3.9", "3.13", "3.14", "3.15"];

fn unpacked_root(version: &str) -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let root = target.join(format!("python-{version}")).canonicalize().ok()?;
    root.join("complete").exists().then_some(root)
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
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    truth: Truth,
}

impl Target {
    /// Starts the shapes and waits until the first of them blocks.
    pub fn start(interpreter: &Interpreter, shapes: &[&str]) -> Self {
        Self::start_script(interpreter, "shapes.py", shapes)
    }

    /// The same with another script that takes shapes and tells its stack.
    pub fn start_script(interpreter: &Interpreter, script: &str, shapes: &[&str]) -> Self {
        let mut command = interpreter.command();
        command.arg(interpreter.script(script)).args(shapes);
        let mut target = Self::spawn(command);
        target.read_truth();
        target
    }

    /// Starts something else, which prints a line and then waits for input.
    pub fn start_idle(program: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments);
        let mut target = Self::spawn(command);
        target.line();
        target
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let input = child.stdin.take().expect("it was piped");
        let output = BufReader::new(child.stdout.take().expect("it was piped"));
        Self { child, input, output, truth: Truth::default() }
    }

    /// Lets it go on until the next shape blocks.
    pub fn go_on(&mut self) {
        self.input.write_all(b"x").expect("the target lives");
        self.read_truth();
    }

    fn read_truth(&mut self) {
        let line = self.line();
        self.truth = serde_json::from_str(&line).expect("the target tells its stack");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("UTF-8");
        line
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
