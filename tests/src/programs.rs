//! Which BPF programs a process holds, and which of them are still in the kernel.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::programs::{ProgramError, loaded_programs};

/// The line in a descriptor's `/proc/PID/fdinfo` that names its program: of the program itself, and of
/// the links that attach it.
const PROGRAM_ID: &str = "prog_id:";

/// The ids of the programs that a process has descriptors of.
pub fn held_by(pid: u32) -> Result<BTreeSet<u32>> {
    in_folder(Path::new(&format!("/proc/{pid}/fdinfo")))
}

/// Those of the programs that are still in the kernel, by the kernel's own word.
pub fn still_loaded(ids: &BTreeSet<u32>) -> Result<BTreeSet<u32>> {
    let mut loaded = BTreeSet::new();
    for program in loaded_programs() {
        match program {
            Ok(program) => {
                loaded.insert(program.id());
            }
            // It was unloaded between the listing and the look.
            Err(ProgramError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context("cannot list the programs in the kernel"),
        }
    }
    Ok(ids.intersection(&loaded).copied().collect())
}

fn in_folder(fdinfo: &Path) -> Result<BTreeSet<u32>> {
    let entries = std::fs::read_dir(fdinfo).with_context(|| format!("no {}", fdinfo.display()))?;
    // A descriptor may be closed between the listing and the reading.
    let texts = entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    Ok(texts.filter_map(|text| program_id(&text)).collect())
}

fn program_id(fdinfo: &str) -> Option<u32> {
    fdinfo.lines().find_map(|line| line.strip_prefix(PROGRAM_ID)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::{held_by, program_id};

    /// The id is found among the other lines, and only there.
    #[test]
    fn the_id_is_read() {
        let program =
            "pos:\t0\nflags:\t02000002\nprog_type:\t17\nprog_tag:\tdeadbeef\nprog_id:\t431\n";
        assert_eq!(program_id(program), Some(431));
        assert_eq!(program_id("pos:\t0\nmap_id:\t431\n"), None);
    }

    /// This process holds no program.
    #[test]
    fn an_ordinary_process_holds_none() {
        assert!(held_by(std::process::id()).unwrap().is_empty());
    }
}
