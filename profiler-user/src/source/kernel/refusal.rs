//! What the kernel refused, in a sentence: why, as far as the machine tells, what helps, and where the verifier's
//! log is. The log itself has up to a megabyte, and is for nobody's terminal.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aya::BtfError;
use aya::programs::ProgramError;

use super::preflight;
use crate::error::Failure;

/// Files of logs that one process writes at most.
const MAX_LOGS: u32 = 16;

/// Bytes of the verifier's words shown: it names registers and offsets, which may go on for lines.
const MAX_QUOTED: usize = 160;

/// What on this machine may be the reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Circumstances {
    /// `lockdown=confidentiality`: the kernel lets nobody read its memory.
    is_confidential: bool,
    has_seccomp: bool,
    in_user_namespace: bool,
}

impl Circumstances {
    fn here() -> Self {
        let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            is_confidential: lockdown.contains("[confidentiality]"),
            has_seccomp: preflight::has_seccomp(&status),
            in_user_namespace: preflight::is_in_user_namespace(),
        }
    }
}

/// A refused program, map or type: the error that the kernel gave, and what its verifier wrote.
#[derive(Debug, Default)]
struct Refusal {
    errno: Option<io::Error>,
    log: String,
    /// Whether it was loaded: then the error's own text has the log in it.
    is_load: bool,
}

impl Refusal {
    fn of(error: &anyhow::Error) -> Self {
        let copy = |error: &io::Error| error.raw_os_error().map(io::Error::from_raw_os_error);
        let load = |error, log: &dyn fmt::Display| Self {
            errno: copy(error),
            log: log.to_string(),
            is_load: true,
        };
        for cause in error.chain() {
            if let Some(ProgramError::LoadError { io_error, verifier_log }) = cause.downcast_ref() {
                return load(io_error, verifier_log);
            }
            if let Some(BtfError::LoadError { io_error, verifier_log }) = cause.downcast_ref() {
                return load(io_error, verifier_log);
            }
        }
        let errno = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
        Self { errno: errno.and_then(copy), ..Self::default() }
    }
}

/// The kernel's answer in a few words.
pub fn why(error: &anyhow::Error) -> String {
    let refusal = Refusal::of(error);
    match (complaint(&refusal.log), refusal.errno) {
        (Some(line), _) => format!("the kernel's verifier refuses the program: {line}"),
        (None, Some(errno)) if refusal.is_load => {
            format!("the kernel refuses to load the program: {errno}")
        }
        _ => format!("{error:#}"),
    }
}

/// A program that nothing works without is refused.
pub fn of_program(name: &str, error: &anyhow::Error) -> Failure {
    of(&format!("the kernel refuses the program `{name}`"), error)
}

/// The maps of the probes, or what describes their types, are refused.
pub fn of_object(error: &anyhow::Error) -> Failure {
    of("the kernel refuses the probes", error)
}

fn of(what: &str, error: &anyhow::Error) -> Failure {
    let refusal = Refusal::of(error);
    let reason = explained(&refusal, Circumstances::here()).unwrap_or_else(|| why(error));
    with_log(&format!("{what}: {reason}"), Some(error))
}

/// A sentence, and the file with the log if the verifier wrote one.
pub fn with_log(sentence: &str, error: Option<&anyhow::Error>) -> Failure {
    let log = error.map(|error| Refusal::of(error).log).unwrap_or_default();
    if log.trim().is_empty() {
        return Failure::unsupported(sentence);
    }
    let place = match written(&std::env::temp_dir(), &log) {
        Ok(path) => format!("the verifier's log is in {}", path.display()),
        Err(error) => format!("the verifier's log could not be written: {error}"),
    };
    Failure::unsupported(format!("{sentence} ({place})"))
}

/// Why, and what helps, where it is known.
fn explained(refusal: &Refusal, here: Circumstances) -> Option<String> {
    let log = refusal.log.as_str();
    if here.is_confidential {
        let text = "it is locked down so that nobody reads its memory (/sys/kernel/security/lockdown says \
                    confidentiality): boot it with lockdown=integrity, or without Secure Boot";
        return Some(text.to_owned());
    }
    let Some(line) = complaint(log) else {
        return refusal.errno.as_ref().map(|errno| forbidden(errno, here));
    };
    if let Some(helper) = helper(log) {
        return Some(format!(
            "it has no helper function {helper}, or does not let stalltrace call it: Linux 5.15 and later \
             have all that are needed"
        ));
    }
    let is_field = log.contains("access beyond") || log.contains("has no field");
    if is_field {
        return Some(format!(
            "one of its fields is not what stalltrace takes it for ({line}): a newer stalltrace may know \
             this kernel"
        ));
    }
    if log.contains("too large") || log.contains("too complex") {
        return Some(format!(
            "its verifier gives up on the program ({line}): a newer kernel may follow it"
        ));
    }
    Some(format!("its verifier says: {line}"))
}

/// No verifier was asked, or it had nothing to say.
fn forbidden(errno: &io::Error, here: Circumstances) -> String {
    let help = if here.in_user_namespace {
        "stalltrace runs in a user namespace, whose capabilities do not count for BPF: run it as root of the \
         host, or in a container that is not rootless"
    } else if here.has_seccomp {
        "a seccomp filter applies to stalltrace, and may forbid bpf: in a container, \
         --security-opt seccomp=unconfined or --privileged"
    } else {
        "a security module (SELinux, AppArmor) may forbid it; the kernel's log (dmesg) may tell"
    };
    format!("{errno}: {help}")
}

/// The helper function that the verifier does not know: `unknown func bpf_loop#181`, `invalid func unknown#158`.
fn helper(log: &str) -> Option<String> {
    let (_, after) = log.rsplit_once(" func ")?;
    let word = after.split_whitespace().next()?;
    let (name, number) = word.rsplit_once('#')?;
    number.parse::<u32>().ok()?;
    Some(if name == "unknown" { format!("number {number}") } else { word.to_owned() })
}

/// The last line of a log that is no statistics; none of an empty one.
fn complaint(log: &str) -> Option<String> {
    let is_figure = |line: &str| {
        ["processed ", "verification time ", "stack depth ", "mark_precise:", "peak_states "]
            .iter()
            .any(|start| line.starts_with(start))
    };
    let mut lines = log.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.rfind(|line| !is_figure(line))?;
    let printable = line.chars().filter(|letter| !letter.is_control());
    Some(printable.take(MAX_QUOTED).collect())
}

/// A fresh file that nobody else can have laid there, and that only we can read.
fn written(folder: &Path, log: &str) -> io::Result<PathBuf> {
    let mut taken = io::Error::from(io::ErrorKind::AlreadyExists);
    for number in 0..MAX_LOGS {
        let path = folder.join(format!("stalltrace-verifier-{}-{number}.log", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(mut file) => return file.write_all(log.as_bytes()).map(|()| path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => taken = error,
            Err(error) => return Err(error),
        }
    }
    Err(taken)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::fs::PermissionsExt;

    use super::{Circumstances, Refusal, complaint, explained, helper, written};

    const FIGURES: &str = "processed 21 insns (limit 1000000) max_states_per_insn 0\n";

    fn refusal(errno: i32, log: &str) -> Refusal {
        let errno = Some(io::Error::from_raw_os_error(errno));
        Refusal { errno, log: log.to_owned(), is_load: true }
    }

    fn said(errno: i32, log: &str) -> String {
        explained(&refusal(errno, log), Circumstances::default()).unwrap()
    }

    /// What the verifier ends with is told in one line, whatever it wrote before.
    #[test]
    fn reasons_in_logs() {
        let before = "0: R1=ctx() R10=fp0\n".repeat(10_000);
        let old = format!("{before}invalid func unknown#158\n{FIGURES}");
        assert!(said(libc::EINVAL, &old).starts_with("it has no helper function number 158, "));
        assert_eq!(helper("unknown func bpf_loop#181").as_deref(), Some("bpf_loop#181"));
        let field = format!("{before}access beyond the end of member on_cpu (mend:53)\n{FIGURES}");
        assert!(
            said(libc::EACCES, &field)
                .contains("(access beyond the end of member on_cpu (mend:53))")
        );
        let large = format!("{before}BPF program is too large. Processed 1000001 insn\n{FIGURES}");
        assert!(said(libc::E2BIG, &large).contains("gives up"));
        let other = format!("{before}R2 min value is negative\n{FIGURES}");
        assert_eq!(said(libc::EACCES, &other), "its verifier says: R2 min value is negative");
        assert_eq!(complaint(FIGURES), None);
        assert_eq!(complaint(&"x".repeat(9999)).map(|line| line.len()), Some(super::MAX_QUOTED));
    }

    /// Without a log it is the machine that tells why: the narrowest reason first.
    #[test]
    fn reasons_of_the_machine() {
        let said = |here| explained(&refusal(libc::EPERM, ""), here).unwrap();
        let none = Circumstances::default();
        let everything =
            Circumstances { is_confidential: true, has_seccomp: true, in_user_namespace: true };
        assert!(said(everything).contains("lockdown=integrity"));
        let namespace = Circumstances { is_confidential: false, ..everything };
        assert!(said(namespace).contains("in a user namespace"));
        assert!(said(Circumstances { has_seccomp: true, ..none }).contains("seccomp=unconfined"));
        assert!(said(none).starts_with("Operation not permitted (os error 1): a security module"));
    }

    /// A log's file is new, ours alone, and another one if the name is taken.
    #[test]
    fn log_files() {
        let folder = std::env::temp_dir().join(format!("stalltrace-logs-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let first = written(&folder, "a").unwrap();
        let second = written(&folder, "b").unwrap();
        assert_ne!(first, second);
        assert_eq!(std::fs::metadata(&first).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&first).unwrap(), "a");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
