//! A child that has not become its program yet, to which program that is: by the child's own system call.

use std::fs;

use profiler_ebpf::record::Registers;

use crate::call::Peer;
use crate::process::arguments;
use crate::process::kernel_stack;
use crate::process::live::LiveMemory;
use crate::process::peers::{children, peer};
use crate::report::purpose;
use crate::syscall;

/// Children that are looked at: whoever has more of them starts them by other means.
const MAX_CHILDREN: usize = 256;

/// A child that is inside `execve` now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Starting {
    pub child: Peer,
    /// As the child gave it.
    pub path: Option<String>,
    /// A process that checks files on access has not answered yet.
    pub is_checked: bool,
}

/// The child of a process that is inside `execve` now.
pub fn being_started(pid: u32) -> Option<Starting> {
    // The newest has the largest number, but where numbers have begun anew.
    let newest = children(pid).into_iter().rev().take(MAX_CHILDREN);
    newest.into_iter().find_map(|child| {
        let path = program_of(child)?;
        Some(Starting { child: peer(child), path, is_checked: is_asked_about(child) })
    })
}

/// Whether a process waits for one that checks files, by its kernel stack.
fn is_asked_about(pid: u32) -> bool {
    let stack = fs::read_to_string(format!("/proc/{pid}/stack"));
    stack.is_ok_and(|text| purpose::is_checked(&kernel_stack::frames(&text)))
}

/// What a process is about to run. None: it is in no `execve`.
fn program_of(pid: u32) -> Option<Option<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
    let registers = parse(&text)?;
    let name = syscall::name(registers.syscall).filter(|name| name.starts_with("execve"))?;
    let path = arguments::read(&LiveMemory::new(pid), name, &registers, 0).path;
    Some(path.map(|path| path.path).filter(|path| !path.is_empty()))
}

/// `59 0x7ffd… 0x… 0x… 0x… 0x… 0x… 0xSP 0xPC`; `running` for one that is in no call.
fn parse(text: &str) -> Option<Registers> {
    let mut words = text.split_whitespace();
    let syscall = words.next()?.parse().ok()?;
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    }
    Some(Registers { syscall, args, ..Registers::default() })
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::process::{Command, Stdio};

    use super::{being_started, parse};

    /// The call's number and its arguments are told; a running process has none.
    #[test]
    fn system_calls() {
        let text = "59 0x7ffd10 0x2 0x3 0x0 0x0 0x0 0x7ffe 0x7fff\n";
        let registers = parse(text).unwrap();
        assert_eq!((registers.syscall, registers.args), (59, [0x7ffd10, 2, 3, 0, 0, 0]));
        for text in ["running", "", "59 0x1", "59 1 2 3 4 5 6 7 8", "-1 0x7ffe 0x7fff"] {
            assert!(parse(text).is_none(), "{text}");
        }
    }

    /// A child that runs its program is not being started.
    #[test]
    fn a_program_that_runs() {
        let mut cat = Command::new("cat");
        let mut child = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // `spawn` may return before the child's call does: it runs once it has answered.
        child.stdin.as_mut().unwrap().write_all(b"?").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let found = being_started(std::process::id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.is_none_or(|start| start.child.pid != child.id()));
    }
}
