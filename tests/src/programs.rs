//! Which BPF programs a process holds, and which of them are still in the kernel.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

/// The line in a descriptor's `/proc/PID/fdinfo` that names its program: of the program itself, and of
/// the links that attach it.
const PROGRAM_ID: &str = "prog_id:";

/// The ids of the programs that a process has descriptors of.
pub fn held_by(pid: u32) -> Result<BTreeSet<u32>> {
    in_folder(Path::new(&format!("/proc/{pid}/fdinfo")))
}

/// Those of the programs that are still loaded. `bpftool` asks the kernel; without it, only what some
/// process holds is seen.
pub fn still_loaded(ids: &BTreeSet<u32>) -> Result<BTreeSet<u32>> {
    let has_bpftool = Command::new("bpftool")
        .arg("version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if has_bpftool {
        return Ok(ids.iter().copied().filter(|id| bpftool_knows(*id)).collect());
    }
    println!("without bpftool: looking for programs in the descriptors of all processes");
    let mut held = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").context("no /proc")?.flatten() {
        // A process that has ended meanwhile holds nothing.
        held.extend(in_folder(&entry.path().join("fdinfo")).unwrap_or_default());
    }
    Ok(ids.intersection(&held).copied().collect())
}

fn bpftool_knows(id: u32) -> bool {
    let mut command = Command::new("bpftool");
    command.args(["prog", "show", "id", &id.to_string()]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
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
