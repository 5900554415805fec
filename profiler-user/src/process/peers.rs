//! Other processes than the target: its children, and whoever has the other end of something of its.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;

use super::arguments::printable;
use super::listing::listed;
use super::target::field;
use crate::call::Peer;
use crate::urgency::before_lock;

/// Descriptors of all processes together that one search looks at: each takes about 5 µs.
const MAX_LINKS: usize = 32_768;

/// Bytes of a command line that are told: enough to know a process by.
const MAX_COMMAND: u64 = 256;

/// Threads of the target whose children are asked for.
const MAX_THREADS: usize = 4096;

/// Bytes of the other texts in /proc that are read here.
const MAX_TEXT: u64 = 64 * 1024;

/// What the holder of a descriptor can do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Any,
    Read,
    Write,
}

/// A process by what people call it.
pub fn peer(pid: u32) -> Peer {
    let name = text(pid, "comm", MAX_TEXT).map(|name| printable(name.trim_ascii_end()));
    before_lock();
    let command = text(pid, "cmdline", MAX_COMMAND).map(|mut bytes| {
        let is_whole = (bytes.len() as u64) < MAX_COMMAND;
        bytes = bytes.trim_ascii_end().to_vec();
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        bytes.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
        format!("{}{}", printable(&bytes), if is_whole { "" } else { "…" })
    });
    // Kernel threads and processes that have exited have none.
    Peer { pid, name, command: command.filter(|command| !command.is_empty()) }
}

/// The children of all threads of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut children = Vec::new();
    for thread in threads.flatten().take(MAX_THREADS) {
        let path = format!("task/{}/children", thread.file_name().to_string_lossy());
        let text = text(pid, &path, MAX_TEXT).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        children.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    children
}

/// The child that the process itself knows by this number: it may be in a PID namespace.
pub fn child(pid: u32, number: u32) -> Option<u32> {
    let level = numbers(pid)?.len().checked_sub(1)?;
    let is_it = |child: &u32| numbers(*child).is_some_and(|all| all.get(level) == Some(&number));
    children(pid).into_iter().find(is_it)
}

/// Its numbers in all PID namespaces that it is in, the outermost first.
fn numbers(pid: u32) -> Option<Vec<u32>> {
    let status = text(pid, "status", MAX_TEXT)?;
    let status = String::from_utf8_lossy(&status);
    field(&status, "NSpid:")?.split_whitespace().map(|number| number.parse().ok()).collect()
}

/// All processes that have a descriptor with this link (`pipe:[4711]`, `socket:[4712]`), the relatives
/// of `near` first; or why they cannot be known.
pub fn with_link(link: &str, near: u32, access: Access) -> Result<Vec<u32>, String> {
    let mut links = 0;
    let mut found = Vec::new();
    let mut forbidden = None;
    for pid in everybody(near) {
        let all = match listed(pid, usize::MAX) {
            Ok(all) => all,
            Err(unlisted) => {
                forbidden = forbidden.or(Some(unlisted).filter(|it| it.is_forbidden));
                continue;
            }
        };
        for one in all {
            links += 1;
            if links > MAX_LINKS {
                return Err(format!("more than {MAX_LINKS} descriptors of processes to look at"));
            }
            if one.link.as_os_str() == link && allows(pid, one.number, access) {
                found.push(pid);
                break;
            }
        }
    }
    // Whoever it is may be among those.
    match forbidden {
        Some(why) if found.is_empty() => Err(why.into()),
        _ => Ok(found),
    }
}

/// The permissions of the link itself say how the descriptor was opened (proc(5)).
fn allows(pid: u32, number: u32, access: Access) -> bool {
    let bit = match access {
        Access::Any => return true,
        Access::Read => 0o400,
        Access::Write => 0o200,
    };
    fs::symlink_metadata(format!("/proc/{pid}/fd/{number}"))
        .is_ok_and(|metadata| metadata.mode() & bit != 0)
}

/// Every process once: the target, its children, its parent's, and all others.
fn everybody(near: u32) -> Vec<u32> {
    let status = text(near, "status", MAX_TEXT).unwrap_or_default();
    let parent = field(&String::from_utf8_lossy(&status), "PPid:").and_then(|pid| pid.parse().ok());
    let mut order = vec![near];
    order.extend(children(near));
    if let Some(parent) = parent.filter(|parent| *parent > 0) {
        order.push(parent);
        order.extend(children(parent));
    }
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    order.extend(entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()));
    let mut known = BTreeSet::new();
    order.retain(|pid| known.insert(*pid));
    order
}

fn text(pid: u32, name: &str, most: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(format!("/proc/{pid}/{name}")).ok()?;
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::{Access, child, children, peer, with_link};

    /// A child is known by its number, its name and its command, and whoever has the other end of a pipe
    /// by the pipe.
    #[test]
    fn a_child() {
        let me = std::process::id();
        let mut sleeper =
            Command::new("sleep").arg("7.5").stdin(Stdio::piped()).spawn().expect("sleep is there");
        let pid = sleeper.id();
        // The list may lack some where another one exits while it is read: those of other tests do.
        let soon = |is_so: &dyn Fn() -> bool| (0..100).any(|_| is_so());
        assert!(soon(&|| children(me).contains(&pid)));
        assert!(soon(&|| child(me, pid) == Some(pid)));
        assert_eq!(child(me, 1), None);
        let link = std::fs::read_link(format!("/proc/{pid}/fd/0")).unwrap();
        let link = link.to_str().unwrap();
        // A child that another test starts meanwhile may have inherited an end for a moment.
        assert!(with_link(link, me, Access::Read).unwrap().contains(&pid));
        assert!(with_link(link, me, Access::Write).unwrap().contains(&me));
        assert!(!with_link(link, me, Access::Write).unwrap().contains(&pid));
        let seen = peer(pid);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert_eq!(seen.name.as_deref(), Some("sleep"));
        assert_eq!(seen.command.as_deref(), Some("sleep 7.5"));
        let gone = peer(pid);
        assert_eq!((gone.name, gone.command), (None, None));
    }
}
