//! The programs of tests against real targets: builds them, and finds what cargo has built.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process::{cargo, workspace};
use crate::report::slow;

/// A program of tests that was built.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// That of its file in `tests/tests`.
    pub name: String,
    /// As seen from the workspace.
    pub path: PathBuf,
}

/// Builds those of these names, or all where none is given.
pub fn built(names: &[&str]) -> Result<Vec<Program>> {
    let what = if names.is_empty() { "of all real targets".to_owned() } else { names.join(", ") };
    let told = slow(&format!("building the tests {what}"), || {
        let mut build =
            cargo(&["test", "--no-run", "--package", "profiler-tests", "--features", "real"]);
        build.args(names.iter().flat_map(|name| ["--test", name]));
        let built = build.output()?;
        let said = String::from_utf8_lossy(&built.stderr).into_owned();
        if built.status.success() { Ok(said) } else { bail!("{said}") }
    })?;
    let programs: Vec<_> = told.lines().filter_map(executable).collect();
    for name in names {
        let is_it = |program: &Program| program.name == *name;
        programs
            .iter()
            .find(|program| is_it(program))
            .with_context(|| format!("cargo built no {name}"))?;
    }
    Ok(programs)
}

/// The program in cargo's `Executable tests/probes.rs (target/debug/deps/probes-0123)`.
fn executable(line: &str) -> Option<Program> {
    let (name, path) = line.trim().strip_prefix("Executable tests/")?.split_once(".rs (")?;
    Some(Program { name: name.to_owned(), path: Path::new(path.strip_suffix(')')?).to_owned() })
}

impl Program {
    /// Where it is, from wherever it is looked for.
    pub fn absolute(&self) -> PathBuf {
        workspace().join(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::executable;

    /// A program is found in what cargo says on building it; unit tests and other lines are none.
    #[test]
    fn programs_that_cargo_names() {
        let told = "  Executable tests/node_builds.rs (target/debug/deps/node_builds-02)";
        let program = executable(told).unwrap();
        assert_eq!(program.name, "node_builds");
        assert_eq!(program.path.to_str(), Some("target/debug/deps/node_builds-02"));
        assert_eq!(executable("  Executable unittests src/lib.rs (target/debug/deps/a-01)"), None);
        assert_eq!(executable("    Finished `test` profile in 1s"), None);
    }
}
