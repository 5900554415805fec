//! Makes the virtual environments below `target`, in which the Python targets run.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt;
use crate::process::{output, target, workspace};
use crate::report::slow;

/// The interpreters that may make it, best first.
const INTERPRETERS: [&str; 5] =
    ["python3", "python3.13", "python3.12", "python3.11", "/usr/bin/python3"];

/// Succeeds in a CPython whose frames are understood and which can make environments.
const USABLE: &str = "import ensurepip, sys, venv
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))";

/// Each environment and what it needs: the frameworks are many, and most targets do without them.
const ENVIRONMENTS: [(&str, &str); 2] =
    [("venv", "tests/requirements.txt"), ("venv-frameworks", "tests/requirements-frameworks.txt")];

/// Makes the environments that are not there or whose packages are other ones than those required.
pub fn ensure() -> Result<()> {
    ENVIRONMENTS.into_iter().try_for_each(|(name, required)| ensure_one(name, required))
}

fn ensure_one(name: &str, required: &str) -> Result<()> {
    let required = workspace().join(required);
    let required_text =
        fs::read(&required).with_context(|| format!("cannot read {}", required.display()))?;
    let venv = target().join(name);
    // Written last: a half-made environment has none.
    let stamp = venv.join("requirements.txt");
    if fs::read(&stamp).is_ok_and(|installed| installed == required_text) {
        return Ok(());
    }
    let python = interpreter()?;
    slow(&format!("making the Python environment target/{name}"), || {
        output(Command::new(python).args(["-m", "venv", "--clear"]).arg(&venv))?;
        let pip = ["-m", "pip", "install", "--quiet", "--only-binary=:all:", "--requirement"];
        output(Command::new(venv.join("bin/python")).args(pip).arg(&required))?;
        fs::write(stamp, required_text).context("cannot mark the environment as complete")
    })
}

fn interpreter() -> Result<&'static str> {
    if let Some(usable) = usable_interpreter() {
        return Ok(usable);
    }
    apt::install(&["python3", "python3-venv"])?;
    match usable_interpreter() {
        Some(usable) => Ok(usable),
        None => bail!("CPython 3.11, 3.12 or 3.13 is needed in PATH; install one of them"),
    }
}

fn usable_interpreter() -> Option<&'static str> {
    INTERPRETERS
        .into_iter()
        .find(|interpreter| output(Command::new(interpreter).args(["-c", USABLE])).is_ok())
}
