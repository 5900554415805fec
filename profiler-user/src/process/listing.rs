//! The descriptors that a process has open, each with what /proc says that it is; or why they cannot be told.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub number: u32,
    /// `socket:[4711]`, a path.
    pub link: PathBuf,
}

impl Listed {
    /// The inode in `socket:[4711]`.
    pub fn socket(&self) -> Option<&str> {
        self.link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')
    }
}

/// The first `most` of them.
pub fn listed(pid: u32, most: usize) -> Result<impl Iterator<Item = Listed>, Unlisted> {
    let path = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&path).map_err(|error| Unlisted::new(&path, error))?;
    // One that cannot be read has been closed meanwhile: who may list them may read them.
    Ok(entries.flatten().take(most).filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        Some(Listed { number, link: fs::read_link(entry.path()).ok()? })
    }))
}

/// Why something of a process cannot be read. The kernel shows some of it only to its own user, and to who
/// may read everybody's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unlisted {
    pub is_forbidden: bool,
    why: String,
}

impl Unlisted {
    pub fn new(path: &str, error: io::Error) -> Self {
        let is_forbidden = error.kind() == ErrorKind::PermissionDenied;
        let help =
            if is_forbidden { ": for another user's process give CAP_DAC_READ_SEARCH" } else { "" };
        Self { is_forbidden, why: format!("{path} cannot be read ({error}){help}") }
    }
}

impl std::fmt::Display for Unlisted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.why)
    }
}

impl From<Unlisted> for String {
    fn from(unlisted: Unlisted) -> Self {
        unlisted.why
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::{Unlisted, listed};

    /// A socket of this very process is listed with its inode.
    #[test]
    fn own_socket() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let number = listener.as_raw_fd() as u32;
        let all: Vec<_> = listed(std::process::id(), 4096).unwrap().collect();
        let own = all.iter().find(|listed| listed.number == number).unwrap();
        assert!(own.socket().is_some_and(|inode| inode.parse::<u64>().is_ok()), "{own:?}");
        assert!(all.iter().any(|listed| listed.socket().is_none()));
    }

    /// A process that is gone has no list, which is no matter of privileges.
    #[test]
    fn nobody() {
        let gone = listed(0x7fff_ffff, 1).err().unwrap();
        assert!(!gone.is_forbidden && gone.to_string().starts_with("/proc/2147483647/fd "));
        let forbidden = Unlisted::new("/proc/1/fd", std::io::ErrorKind::PermissionDenied.into());
        assert!(forbidden.is_forbidden && forbidden.to_string().contains("CAP_DAC_READ_SEARCH"));
    }
}
