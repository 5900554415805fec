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
pub struct DescriptorInfo {
    pub is_nonblocking: bool,
    mount: u32,
    /// Before Linux 5.14 it is not told.
    pub inode: Option<u64>,
}

impl DescriptorInfo {
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
    above(pid, path).map(|mount| mount.kind)
}

/// The mount that a path is on, as the target sees it. Links are not followed.
pub fn above(pid: u32, path: &str) -> Option<Mount> {
    by_path(&read(&format!("/proc/{pid}/mountinfo"), MAX_MOUNTS)?, path)
}

/// One mount (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub number: u32,
    /// Major and minor number.
    pub device: (u32, u32),
    point: String,
    /// The type of the file system.
    pub kind: String,
}

fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    let number = fields.next()?.parse().ok()?;
    let (major, minor) = fields.nth(1)?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let point = fields.nth(1)?.to_owned();
    Some(Mount { number, device, point, kind: after.split(' ').next()?.to_owned() })
}

pub(super) fn by_number(mounts: &str, number: u32) -> Option<String> {
    let mut mounts = mounts.lines().filter_map(mount);
    mounts.find(|mount| mount.number == number).map(|mount| mount.kind)
}

/// The longest mount point above the path; of several at one point, the last covers the others.
pub(super) fn by_path(mounts: &str, path: &str) -> Option<Mount> {
    let is_above = |mount: &Mount| {
        let below = path.strip_prefix(mount.point.trim_end_matches('/'));
        below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
    };
    let above = mounts.lines().filter_map(mount).filter(is_above);
    above.max_by_key(|mount| mount.point.len())
}

pub(super) fn read(path: &str, most: u64) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{DescriptorInfo, by_number, by_path};

    const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
31 22 0:29 / /mnt rw - tmpfs none rw
32 31 0:30 / /mnt/data rw - nfs4 10.0.0.2:/data rw
33 31 0:31 / /mnt/data rw - fuse.sshfs host:/ rw
";

    /// The longest mount point above a path counts, and of two at one point the later.
    #[test]
    fn mounts() {
        let of = |path: &str| by_path(MOUNTS, path).map(|mount| mount.kind);
        assert_eq!(of("/etc/hosts").as_deref(), Some("ext4"));
        assert_eq!(of("/mnt").as_deref(), Some("tmpfs"));
        assert_eq!(of("/mnt/database").as_deref(), Some("tmpfs"));
        assert_eq!(of("/mnt/data/x").as_deref(), Some("fuse.sshfs"));
        assert_eq!(of("x"), None, "what it is relative to is not known");
        assert_eq!(by_number(MOUNTS, 32).as_deref(), Some("nfs4"));
        assert_eq!(by_number(MOUNTS, 9), None);
        let root = by_path(MOUNTS, "/etc/hosts").unwrap();
        assert_eq!((root.number, root.device), (22, (254, 0)));
    }

    /// Flags are octal.
    #[test]
    fn opened() {
        let opened =
            DescriptorInfo::parse("pos:\t0\nflags:\t02004002\nmnt_id:\t31\nino:\t7\n").unwrap();
        assert_eq!((opened.is_nonblocking, opened.mount, opened.inode), (true, 31, Some(7)));
        let opened = DescriptorInfo::parse("pos:\t0\nflags:\t02\nmnt_id:\t31\n").unwrap();
        assert_eq!((opened.is_nonblocking, opened.inode), (false, None));
        assert_eq!(DescriptorInfo::parse("pos:\t0\n"), None);
    }
}
