//! What this machine and these privileges lack, and what to do about each: asked before anything is loaded.

use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::layout::BTF_PATH;

/// Numbers of include/uapi/linux/capability.h.
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// Where tracepoints have their numbers.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// One thing that is needed, and how it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub what: &'static str,
    pub state: State,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// With what was found.
    Fine(String),
    /// Works without, but worse: how.
    Worse(String),
    /// Nothing works without it: what is missing, and what to do.
    Missing(String),
}

/// Everything that must be so before the probes can be loaded.
pub fn machine() -> Vec<Check> {
    vec![architecture(), capabilities(), btf(), tracefs()]
}

fn architecture() -> Check {
    let what = "architecture";
    let state = match std::env::consts::ARCH {
        "x86_64" => State::Fine("x86_64".to_owned()),
        other => State::Missing(format!("{other} is not supported yet: only x86_64 is")),
    };
    Check { what, state }
}

fn capabilities() -> Check {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let state = match effective(&status) {
        None => {
            State::Missing("/proc/self/status has no CapEff line: is /proc mounted?".to_owned())
        }
        Some(set) => match missing(set).as_slice() {
            [] => State::Fine("sufficient".to_owned()),
            names => State::Missing(format!(
                "the capabilities {} are missing: run as root (sudo), or as a container with --privileged",
                names.join(", ")
            )),
        },
    };
    Check { what: "privileges", state }
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// `CAP_SYS_ADMIN` stands for the two that were split off it in 5.8.
fn missing(set: u64) -> Vec<&'static str> {
    let has = |number: u32| set & (1 << number) != 0;
    let mut names = Vec::new();
    if !has(SYS_ADMIN) && !has(BPF) {
        names.push("CAP_BPF");
    }
    if !has(SYS_ADMIN) && !has(PERFMON) {
        names.push("CAP_PERFMON");
    }
    if !has(SYS_PTRACE) {
        names.push("CAP_SYS_PTRACE");
    }
    names
}

fn btf() -> Check {
    let state = if Path::new(BTF_PATH).exists() {
        State::Fine(BTF_PATH.to_owned())
    } else {
        State::Missing(format!(
            "{BTF_PATH} is not there: the kernel must be built with CONFIG_DEBUG_INFO_BTF=y \
             (Debian 11, Ubuntu 20.10, Fedora 31 and later have it)"
        ))
    };
    Check { what: "kernel types (BTF)", state }
}

fn tracefs() -> Check {
    let state = match tracefs_path() {
        Some(path) => State::Fine(path.to_owned()),
        None => State::Worse(
            "not mounted: it is mounted for stalltrace alone where fentry cannot be used"
                .to_owned(),
        ),
    };
    Check { what: "tracefs", state }
}

/// Where tracefs is mounted, if it is.
pub fn tracefs_path() -> Option<&'static str> {
    TRACEFS.into_iter().find(|path| Path::new(path).join("events/syscalls").exists())
}

/// Mounts tracefs where nobody else sees it, if it is mounted nowhere: in a mount namespace of our
/// own. Must be called before other threads exist. Says why where it cannot.
pub fn mount_tracefs_privately() -> Result<(), String> {
    if tracefs_path().is_some() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| format!("unshare: {error}"))?;
    let none: Option<&str> = None;
    // From here on mounts of others still reach us, but ours reach nobody.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(|error| format!("making mounts private: {error}"))?;
    mount(Some("tracefs"), TRACEFS[0], Some("tracefs"), MsFlags::empty(), none)
        .map_err(|error| format!("mounting tracefs: {error}"))
}

/// The kernel's inode of the first PID namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// The probes see the kernel's own process numbers; ours must be the same.
pub fn kernel_numbers_are_ours() -> Result<(), String> {
    match std::fs::read_link("/proc/self/ns/pid") {
        Ok(link) if link.as_os_str() == FIRST_PID_NAMESPACE => Ok(()),
        _ => {
            Err("stalltrace runs in a PID namespace of its own, where process numbers differ from \
                  the kernel's: run it on the host, or as a container with --pid=host"
                .to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{effective, missing};

    /// Root lacks nothing, nobody lacks all three, and the new capabilities do without SYS_ADMIN.
    #[test]
    fn capabilities_by_name() {
        assert_eq!(effective("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(effective("Name:\tx\n"), None);
        assert!(missing(0x1ff_ffff_ffff).is_empty());
        assert_eq!(missing(0), ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"]);
        assert!(missing(1 << 39 | 1 << 38 | 1 << 19).is_empty());
        assert_eq!(missing(1 << 21), ["CAP_SYS_PTRACE"]);
    }
}
