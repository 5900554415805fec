//! Builds the probes and leaves the object, or an empty stub for it, where the loader embeds it.
//!
//! `STALLTRACE_PROBES` decides what happens without the toolchain for it: `skip` always takes the
//! stub, `require` refuses it, and unset takes it with a warning. Loading a stub is a clear error.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The exit code of `build-probes` on a machine without a toolchain for them.
const NO_TOOLCHAIN: i32 = 69;

fn main() -> Result<(), Box<dyn Error>> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let workspace = manifest.parent().ok_or("the package has no folder above it")?;
    let object = PathBuf::from(env::var("OUT_DIR")?).join("probes");
    println!("cargo::rerun-if-env-changed=STALLTRACE_PROBES");
    for source in ["src", "Cargo.toml", "build-probes"] {
        rerun_if_changed(&workspace.join("profiler-ebpf").join(source));
    }

    let wish = env::var("STALLTRACE_PROBES").unwrap_or_default();
    if wish == "skip" {
        return stub(&object, "STALLTRACE_PROBES=skip");
    }
    // Collected, not passed on: cargo would take lines of the inner build for instructions.
    let mut build = Command::new(workspace.join("profiler-ebpf/build-probes"));
    if env::var_os("CARGO_FEATURE_PROBE_LOG").is_some() {
        build.env("STALLTRACE_PROBES_FEATURES", "log");
    }
    let built = build.arg(&object).output()?;
    let said = String::from_utf8_lossy(&built.stderr);
    match built.status.code() {
        Some(0) => Ok(()),
        Some(NO_TOOLCHAIN) if wish != "require" => {
            // Where the missing parts would appear.
            rerun_if_changed(Path::new("/usr/bin"));
            if let Ok(home) = env::var("CARGO_HOME") {
                rerun_if_changed(&PathBuf::from(home).join("bin"));
            }
            stub(&object, said.trim())
        }
        _ => Err(format!("the probes could not be built:\n{said}").into()),
    }
}

fn rerun_if_changed(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
}

fn stub(object: &Path, why: &str) -> Result<(), Box<dyn Error>> {
    println!(
        "cargo::warning=this stalltrace is built without its probes and can attach to nothing: {why}"
    );
    Ok(fs::write(object, b"")?)
}
