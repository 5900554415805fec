//! Installs a compiler and a linker for the probes where `profiler-ebpf/build-probes` finds none.
//!
//! Rust's own way is a nightly with its source. Where that cannot be had, Debian's `rustc-web` is a
//! stable compiler with matching source. Either way bpf-linker must use the compiler's own LLVM.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::apt;
use crate::process::{cargo, output, target, which, workspace};
use crate::report::{note, slow};

/// The release of bpf-linker that the probes are tested with, and the LLVMs that it knows.
const LINKER_VERSION: &str = "0.13.0";
const LINKER_LLVMS: [u32; 3] = [21, 22, 23];

/// Installs what is missing, if anything is.
pub fn ensure() -> Result<()> {
    if is_complete() {
        return Ok(());
    }
    let Err(by_rustup) = from_rustup() else { return complete() };
    note(&format!("not by rustup ({by_rustup:#}); trying Debian's packages"));
    from_debian().map_err(|by_debian| {
        anyhow!("neither by rustup:\n{by_rustup:#}\nnor by Debian's packages:\n{by_debian:#}")
    })?;
    complete()
}

fn is_complete() -> bool {
    output(&mut check()).is_ok()
}

fn complete() -> Result<()> {
    output(&mut check()).map(|said| note(said.trim()))
}

fn check() -> Command {
    let mut command = Command::new(workspace().join("profiler-ebpf/build-probes"));
    command.arg("--check");
    command
}

fn from_rustup() -> Result<()> {
    which("rustup").context("rustup is not installed")?;
    let installed = output(Command::new("rustup").args(["toolchain", "list"]))?;
    let mut rustup = Command::new("rustup");
    if installed.lines().any(|line| line.starts_with("nightly-")) {
        rustup.args(["component", "add", "rust-src", "--toolchain", "nightly"]);
    } else {
        rustup.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
        rustup.args(["--component", "rust-src", "--no-self-update"]);
    }
    slow("installing a Rust nightly with its source, by rustup", || output(&mut rustup))?;
    linker(Command::new("rustc").arg("+nightly"))
}

fn from_debian() -> Result<()> {
    apt::install(&["rustc-web", "cargo-web", "rust-web-src"])?;
    linker(&mut Command::new("/usr/bin/rustc"))
}

/// Installs bpf-linker with the LLVM of this compiler.
fn linker(rustc: &mut Command) -> Result<()> {
    if which("bpf-linker")
        .or_else(|| Some(cargo_home()?.join("bin/bpf-linker")))
        .is_some_and(|file| file.is_file())
    {
        return Ok(());
    }
    let llvm = llvm_major(&output(rustc.env_remove("RUSTUP_TOOLCHAIN").arg("-vV"))?)?;
    if !LINKER_LLVMS.contains(&llvm) {
        bail!(
            "bpf-linker {LINKER_VERSION} cannot use LLVM {llvm}, which is this compiler's; \
             install another release of bpf-linker by hand"
        );
    }
    let (dev, polly) = (format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev"));
    apt::install(&[&dev, &polly, "libzstd-dev", "zlib1g-dev", "gcc", "libc6-dev"]).with_context(
        || {
            format!(
                "bpf-linker must be built with LLVM {llvm}; where there are no packages of it, \
                 put a released bpf-linker into PATH (https://github.com/aya-rs/bpf-linker)"
            )
        },
    )?;
    slow(&format!("building bpf-linker {LINKER_VERSION} with LLVM {llvm}"), || {
        output(
            cargo(&["install", "bpf-linker", "--locked", "--version", LINKER_VERSION])
                .args(["--no-default-features", "--features", &format!("llvm-{llvm}")])
                .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"))
                .env("CARGO_TARGET_DIR", target().join("bpf-linker")),
        )
    })?;
    Ok(())
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
}

/// The major version of LLVM that `rustc -vV` names.
fn llvm_major(version: &str) -> Result<u32> {
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    let major =
        line.and_then(|number| number.split('.').next()).and_then(|major| major.parse().ok());
    major.context("`rustc -vV` names no LLVM version")
}

#[cfg(test)]
mod tests {
    use super::llvm_major;

    /// The linker is built with the LLVM that the compiler names, or not at all.
    #[test]
    fn llvm_of_a_compiler() {
        let version = "rustc 1.96.0\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_major(version).unwrap(), 22);
        assert!(llvm_major("rustc 1.96.0\n").is_err());
    }
}
