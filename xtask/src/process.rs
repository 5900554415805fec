//! Turns a command line into its output, or into an error that says what failed and why.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Lines of a failed command's output that an error repeats; the cause stands at the end.
const LINES_OF_A_FAILURE: usize = 30;

/// The top of the repository.
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Where everything that is built or fetched goes.
pub fn target() -> PathBuf {
    workspace().canonicalize().unwrap_or_else(|_| workspace().to_owned()).join("target")
}

/// The cargo that called us, in the workspace.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).current_dir(workspace());
    cargo
}

/// Lets the command speak for itself.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// Collects what the command says on standard output; what else it says is kept for the error.
pub fn output(command: &mut Command) -> Result<String> {
    let told = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    let out = String::from_utf8_lossy(&told.stdout).into_owned();
    if !told.status.success() {
        let said = format!("{out}{}", String::from_utf8_lossy(&told.stderr));
        bail!("{} failed ({}):\n{}", shown(command), told.status, last_lines(&said));
    }
    Ok(out)
}

/// The command as a person would type it.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    format!("`{}`", line.join(" "))
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES_OF_A_FAILURE)..].join("\n")
}

/// Where a program is that the shell would find by this name.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Whether we may install packages, load probes and start virtual machines.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{last_lines, output, which};

    /// An error names the command, how it ended, and what it said last.
    #[test]
    fn failure_tells_why() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such thing >&2; exit 3"]);
        let error = output(&mut command).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("no such thing"), "{error}");
    }

    /// Of a long output only the end is kept.
    #[test]
    fn only_the_end_is_repeated() {
        let text: String = (0..100).map(|line| format!("line {line}\n")).collect();
        let kept = last_lines(&text);
        assert!(kept.starts_with("line 70\n") && kept.ends_with("line 99"), "{kept}");
    }

    /// Programs are found as the shell finds them, and a missing one is told apart.
    #[test]
    fn programs_are_found_by_name() {
        assert!(which("sh").is_some());
        assert_eq!(which("no-program-of-this-name"), None);
    }
}
