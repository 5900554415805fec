//! A file of the target to the type of the file system that it is on, by the target's own mounts.

use std::fs;
use std::io::Read;

use super::target::field;

/// Bytes of /proc/PID/mountinfo read: a node with a thousand containers has a few MB.
const MAX_MOUNTS: u64 = 4 * 1024 * 1024;

/// Bytes of /proc/PID/fdinfo/FD read; an epoll instance's lists all that it watches.
const MAX_INFO: u64 = 4096;

/// `O_NONBLOCK` (include/uapi/asm-generic/fcntl.h).
const NONBLOCK: u32 = 0o4000;

/// What /proc/PID/fdinfo/FD says of every descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    pub is_nonblocking: bool,
    mount: u32,
    /// Before Linux 5.14 it is not told.
    pub inode: Option<u64>,
}

impl Opened {
    pub fn of(pid: u32, number: u32) -> Option<Self> {
        Self::parse(&read(&format!("/proc/{pid}/fdinfo/{number}"), MAX_INFO)?)
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let flags = u32::from_str_radix(field(text, "flags:")?, 8).ok()?;
        let mount = field(text, "mnt_id:")?.parse().ok()?;
        let inode = field(text, "ino:").and_then(|inode| inode.parse().ok());
        Some(Self { is_nonblocking: flags & NONBLOCK != 0, mount, inode })
    }

    /// The type of the file system that an open file is on.
    pub fn file_system(self, pid: u32) -> Option<String> {
        let mounts = read(&format!("/proc/{pid}/mountinfo"), MAX_MOUNTS)?;
        by_number(&mounts, self.mount)
    }
}

/// The type of the file system that a path is on, as the target sees it. Links are not followed.
pub fn of_path(pid: u32, path: &str) -> Option<String> {
    by_path(&read(&format!("/proc/{pid}/mountinfo"), MAX_MOUNTS)?, path)
}

/// The fields of one mount (proc_pid_mountinfo(5)): number, mount point, type.
fn mount(line: &str) -> Option<(u32, &str, &str)> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    let number = fields.next()?.parse().ok()?;
    let point = fields.nth(3)?;
    Some((number, point, after.split(' ').next()?))
}

pub(super) fn by_number(mounts: &str, number: u32) -> Option<String> {
    let mut mounts = mounts.lines().filter_map(mount);
    mounts.find(|mount| mount.0 == number).map(|(_, _, kind)| kind.to_owned())
}

/// The longest mount point above the path; of several at one point, the last covers the others.
pub(super) fn by_path(mounts: &str, path: &str) -> Option<String> {
    let is_above = |point: &str| {
        let below = path.strip_prefix(point.trim_end_matches('/'));
        below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
    };
    let above = mounts.lines().filter_map(mount).filter(|(_, point, _)| is_above(point));
    above.max_by_key(|(_, point, _)| point.len()).map(|(_, _, kind)| kind.to_owned())
}

fn read(path: &str, most: u64) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{Opened, by_number, by_path};

    const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
31 22 0:29 / /mnt rw - tmpfs none rw
32 31 0:30 / /mnt/data rw - nfs4 10.0.0.2:/data rw
33 31 0:31 / /mnt/data rw - fuse.sshfs host:/ rw
";

    /// The longest mount point above a path counts, and of two at one point the later.
    #[test]
    fn mounts() {
        let of = |path: &str| by_path(MOUNTS, path);
        assert_eq!(of("/etc/hosts").as_deref(), Some("ext4"));
        assert_eq!(of("/mnt").as_deref(), Some("tmpfs"));
        assert_eq!(of("/mnt/database").as_deref(), Some("tmpfs"));
        assert_eq!(of("/mnt/data/x").as_deref(), Some("fuse.sshfs"));
        assert_eq!(of("x"), None, "what it is relative to is not known");
        assert_eq!(by_number(MOUNTS, 32).as_deref(), Some("nfs4"));
        assert_eq!(by_number(MOUNTS, 9), None);
    }

    /// Flags are octal.
    #[test]
    fn opened() {
        let opened = Opened::parse("pos:\t0\nflags:\t02004002\nmnt_id:\t31\nino:\t7\n").unwrap();
        assert_eq!((opened.is_nonblocking, opened.mount, opened.inode), (true, 31, Some(7)));
        let opened = Opened::parse("pos:\t0\nflags:\t02\nmnt_id:\t31\n").unwrap();
        assert_eq!((opened.is_nonblocking, opened.inode), (false, None));
        assert_eq!(Opened::parse("pos:\t0\n"), None);
    }
}
