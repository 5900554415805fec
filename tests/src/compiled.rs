//! Compiles the sample programs that are written in C, C++ and Go.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::target::folder;

/// The program of a source file, made anew where the source is younger.
pub fn program(source: &str) -> Result<PathBuf> {
    let source = folder().join(source);
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/compiled");
    std::fs::create_dir_all(&made)?;
    let program = made.join(source.file_stem().context("a source has a name")?);
    let modified = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    if modified(&program).is_some_and(|made| Some(made) > modified(&source)) {
        return Ok(program);
    }
    let output =
        compiler(&source)?.arg("-o").args([&program, &source]).output().with_context(|| {
            format!("no compiler for {}: `cargo xtask setup`", source.display())
        })?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(program)
}

fn compiler(source: &Path) -> Result<Command> {
    let (name, arguments): (_, &[&str]) = match source.extension().and_then(|name| name.to_str()) {
        Some("c") => ("gcc", &["-O1", "-g", "-pthread"]),
        Some("cpp") => ("g++", &["-O1", "-g", "-pthread", "-std=c++17"]),
        Some("go") => ("go", &["build"]),
        _ => bail!("{} is in no language that is compiled here", source.display()),
    };
    let mut command = Command::new(name);
    command.args(arguments);
    // Go keeps what it has compiled, and needs to be told where if nobody's home is known.
    command.env("GOCACHE", Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/go"));
    Ok(command)
}
