//! What this machine and these privileges lack, and what to do about each: asked before anything is loaded.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

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
pub struct Requirement {
    pub what: &'static str,
    pub state: RequirementState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequirementState {
    /// With what was found.
    Fine(String),
    /// Works without, but worse: how.
    Worse(String),
    /// Nothing works without it: what is missing, and what to do.
    Missing(String),
}

/// Everything that must be so before the probes can be loaded.
pub fn machine() -> Vec<Requirement> {
    vec![architecture(), capabilities(), namespace(), btf(), tracepoints()]
}

fn architecture() -> Requirement {
    let what = "architecture";
    let state = match std::env::consts::ARCH {
        "x86_64" => RequirementState::Fine("x86_64".to_owned()),
        other => RequirementState::Missing(format!("{other} is not supported yet: only x86_64 is")),
    };
    Requirement { what, state }
}

fn capabilities() -> Requirement {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let state = match effective(&status) {
        _ if is_in_user_namespace() => RequirementState::Missing(
            "stalltrace runs in a user namespace, whose capabilities do not count for BPF: run it as root of \
             the host, or in a container that is not rootless"
                .to_owned(),
        ),
        None => {
            RequirementState::Missing("/proc/self/status has no CapEff line: is /proc mounted?".to_owned())
        }
        Some(set) => match missing(set).as_slice() {
            [] => RequirementState::Fine("sufficient".to_owned()),
            names => RequirementState::Missing(format!(
                "{} {} missing: run as root (sudo), or as a container with --privileged",
                names.join(", "),
                if names.len() == 1 { "is" } else { "are" }
            )),
        },
    };
    Requirement { what: "privileges", state }
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

fn namespace() -> Requirement {
    let state = match kernel_numbers_are_ours() {
        Ok(()) => RequirementState::Fine("the host's".to_owned()),
        Err(why) => RequirementState::Missing(why),
    };
    Requirement { what: "PID namespace", state }
}

fn btf() -> Requirement {
    let state = match File::open(BTF_PATH) {
        Ok(_) => RequirementState::Fine(BTF_PATH.to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => RequirementState::Missing(format!(
            "{BTF_PATH} is not there: the kernel must be built with CONFIG_DEBUG_INFO_BTF=y, as those of the \
             distributions are"
        )),
        Err(error) => RequirementState::Missing(format!("{BTF_PATH} cannot be opened: {error}")),
    };
    Requirement { what: "kernel types (BTF)", state }
}

fn tracepoints() -> Requirement {
    let state = match tracefs() {
        Tracefs::At(path) => RequirementState::Fine(path.to_owned()),
        missing => {
            RequirementState::Worse(format!("needed where fentry cannot be used: {missing}"))
        }
    };
    Requirement { what: "tracefs", state }
}

/// Whether a status of /proc tells of a seccomp filter: mode 2.
pub(super) fn has_seccomp(status: &str) -> bool {
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

/// The kernel's inode of the first user namespace (`PROC_USER_INIT_INO`, include/linux/proc_ns.h).
const FIRST_USER_NAMESPACE: &str = "user:[4026531837]";

/// The kernel gives programs only to who has the capabilities in its first user namespace.
pub(super) fn is_in_user_namespace() -> bool {
    // Kernels without such namespaces have no link.
    fs::read_link("/proc/self/ns/user").is_ok_and(|link| link.as_os_str() != FIRST_USER_NAMESPACE)
}

/// What perf events need here besides CAP_PERFMON, if the kernel says so: Debian's and Ubuntu's know levels of
/// `perf_event_paranoid` past 2, where many of their releases ask for CAP_SYS_ADMIN alone.
pub fn perf_event_help() -> Option<String> {
    let level = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").ok()?;
    let level: i32 = level.trim().parse().ok()?;
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let is_admin = effective(&status)? & (1 << SYS_ADMIN) != 0;
    Some(match level {
        3.. if !is_admin => format!(
            "kernel.perf_event_paranoid is {level}, where CAP_PERFMON is not enough on this kernel: \
             sysctl kernel.perf_event_paranoid=2, or give CAP_SYS_ADMIN"
        ),
        _ => "a seccomp filter or a security module may forbid perf_event_open".to_owned(),
    })
}

/// The tracepoints' numbers, as far as we may read them.
#[derive(Debug)]
pub enum Tracefs {
    At(&'static str),
    /// It may be there, but this cannot be opened.
    Closed(PathBuf, io::Error),
    Absent,
}

impl fmt::Display for Tracefs {
    /// What is missing, and what helps.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(path) => formatter.write_str(path),
            Self::Closed(file, error) => write!(
                formatter,
                "{} cannot be opened ({error}): give CAP_DAC_READ_SEARCH, or let a group read it \
                 (mount -o remount,gid=GROUP,mode=750 {})",
                file.display(),
                TRACEFS[0]
            ),
            Self::Absent => write!(
                formatter,
                "tracefs is not mounted, and without CAP_SYS_ADMIN stalltrace cannot mount it for itself: \
                 mount -t tracefs tracefs {} (or give it to the container)",
                TRACEFS[0]
            ),
        }
    }
}

/// Where tracefs is. What lies behind debugfs is mounted as it is asked for.
pub fn tracefs() -> Tracefs {
    among(&TRACEFS)
}

fn among(folders: &[&'static str]) -> Tracefs {
    let mut found = Tracefs::Absent;
    for folder in folders {
        let file = Path::new(folder).join("events/syscalls/sys_enter_epoll_wait/id");
        match File::open(&file) {
            Ok(_) => return Tracefs::At(folder),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                if matches!(found, Tracefs::Absent) {
                    found = Tracefs::Closed(file, error);
                }
            }
            Err(_) => {}
        }
    }
    found
}

/// Mounts tracefs where nobody else sees it, if it is mounted nowhere: in a mount namespace of our
/// own. Must be called before other threads exist. Says why where it cannot.
pub fn mount_tracefs_privately() -> Result<(), String> {
    match tracefs() {
        Tracefs::At(_) => return Ok(()),
        closed @ Tracefs::Closed(..) => return Err(closed.to_string()),
        Tracefs::Absent => {}
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| format!("unshare: {error}"))?;
    // From here on mounts of others still reach us, but ours reach nobody.
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
        .map_err(|error| format!("making mounts private: {error}"))?;
    mount("tracefs", TRACEFS[0], "tracefs", MountFlags::empty(), None)
        .map_err(|error| format!("mounting tracefs: {error}"))
}

/// The kernel's inode of the first PID namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// The probes see the kernel's own process numbers; ours must be the same.
pub fn kernel_numbers_are_ours() -> Result<(), String> {
    match fs::read_link("/proc/self/ns/pid") {
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
    use super::{Tracefs, among, effective, has_seccomp, missing};

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
    /// A filter is mode 2; the strict mode 1 would not let us run at all.
    #[test]
    fn seccomp_by_status() {
        assert!(has_seccomp("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n"));
        assert!(!has_seccomp("Seccomp:\t0\nSeccomp_filters:\t0\n"));
    }

    /// What is mounted nowhere is not called forbidden.
    #[test]
    fn tracefs_nowhere() {
        assert!(matches!(among(&["/nowhere", "/dev/null"]), Tracefs::Absent));
    }
}
