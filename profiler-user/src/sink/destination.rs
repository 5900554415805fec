//! Where lines go: standard output, or a file that is never destroyed.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use libc::{O_NOFOLLOW, O_PATH};
use rustix::fs::{OFlags, fcntl_getfl, fstatfs, readlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;

/// Symbolic links followed at most: as many as systems agree on (`_POSIX_SYMLOOP_MAX`).
const MAX_LINKS: u32 = 8;

/// `PROC_SUPER_MAGIC` (include/uapi/linux/magic.h).
const PROC: i64 = 0x9fa0;

/// Takes whole lines.
#[derive(Debug)]
pub struct Destination {
    file: File,
    /// A line of which only a part fits is taken back.
    is_regular: bool,
    /// Whether what is written goes to the file's end, wherever that is.
    appends: bool,
}

impl Destination {
    pub fn stdout() -> io::Result<Self> {
        Self::of(File::from(io::stdout().as_fd().try_clone_to_owned()?))
    }

    /// Opens a file to append to it, or makes it for its owner alone. A FIFO waits for its reader. Errors name the path.
    pub fn file(path: &Path) -> io::Result<Self> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        opened(path, MAX_LINKS).and_then(Self::of).map_err(named)
    }

    fn of(file: File) -> io::Result<Self> {
        let is_regular = file.metadata()?.is_file();
        let appends = fcntl_getfl(&file)?.contains(OFlags::APPEND);
        Ok(Self { file, is_regular, appends })
    }

    /// Writes a line. Of one that does not fit, nothing is left in a regular file.
    pub fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if !self.is_regular {
            return self.file.write_all(line);
        }
        let from =
            if self.appends { self.file.metadata()?.len() } else { self.file.stream_position()? };
        let mut written = 0;
        while let Some(rest) = line.get(written..).filter(|rest| !rest.is_empty()) {
            match self.file.write(rest) {
                Ok(0) => return self.take_back(from, written, ErrorKind::WriteZero.into()),
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.take_back(from, written, error),
            }
        }
        Ok(())
    }

    fn take_back(&mut self, from: u64, written: usize, error: io::Error) -> io::Result<()> {
        // Unless somebody else has written behind it.
        let is_last = self.file.metadata()?.len() == from.saturating_add(written as u64);
        if written > 0 && is_last {
            self.file.set_len(from)?;
            self.file.seek(SeekFrom::Start(from))?;
        }
        Err(error)
    }
}

/// Whether there was no room for a line: there may be for the next.
pub fn is_full(error: &io::Error) -> bool {
    let full = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG];
    full.iter().any(|one| error.raw_os_error() == Some(one.raw_os_error()))
}

fn opened(path: &Path, links: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    match options.clone().custom_flags(O_NOFOLLOW).open(path) {
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {}
        other => return other,
    }
    if links == 0 {
        return Err(Errno::LOOP.into());
    }
    match target(path)? {
        Link::To(target) => opened(&target, links - 1),
        Link::Ours => options.open(path),
    }
}

/// Where a symbolic link leads.
enum Link {
    To(PathBuf),
    /// One of /proc's, to something that we have open, which may have no path.
    Ours,
}

/// The link is opened before it is looked at: another cannot take its place in between.
fn target(path: &Path) -> io::Result<Link> {
    let link = OpenOptions::new().read(true).custom_flags(O_PATH | O_NOFOLLOW).open(path)?;
    let owner = link.metadata()?.uid();
    if owner != 0 && owner != geteuid().as_raw() {
        let why = format!("a symbolic link of user {owner}, which is not followed");
        return Err(io::Error::new(ErrorKind::PermissionDenied, why));
    }
    if fstatfs(&link)?.f_type == PROC {
        return Ok(Link::Ours);
    }
    let target = PathBuf::from(readlinkat(&link, "", Vec::new())?.to_string_lossy().into_owned());
    Ok(Link::To(path.parent().unwrap_or(Path::new("")).join(target)))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::io::{self, ErrorKind, Write};
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
    use std::path::PathBuf;

    use super::{Destination, is_full};

    /// A folder of the test's own.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("destination-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn file(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// What was there stays there, and what is new is its owner's alone.
    #[test]
    fn appends() {
        let folder = Folder::new("appends");
        let path = folder.file("stalls.jsonl");
        for line in ["one\n", "two\n"] {
            Destination::file(&path).unwrap().write(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    /// Errors name the path.
    #[test]
    fn nowhere() {
        let error = Destination::file("/nowhere/stalls.jsonl".as_ref()).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/stalls.jsonl: No such file"), "{error}");
        assert!(!is_full(&error));
    }

    /// Our own links are followed, also /proc's, others' are not.
    #[test]
    fn links() {
        let folder = Folder::new("links");
        let (path, link) = (folder.file("a"), folder.file("b"));
        symlink("a", &link).unwrap();
        Destination::file(&link).unwrap().write(b"x\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "x\n");
        symlink("c", folder.file("c")).unwrap();
        assert!(Destination::file(&folder.file("c")).is_err(), "a circle");
        let (mut reader, writer) = io::pipe().unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&writer);
        let mut own = Destination::file(format!("/proc/self/fd/{number}").as_ref()).unwrap();
        own.write(b"y\n").unwrap();
        let mut seen = [0; 2];
        io::Read::read_exact(&mut reader, &mut seen).unwrap();
        assert_eq!(&seen, b"y\n");
        // Only root gives files away.
        if lchown(&link, Some(65_534), None).is_ok() {
            let error = Destination::file(&link).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
            assert!(error.to_string().contains("user 65534"), "{error}");
            let _ = chown(&path, None, None);
        }
    }

    /// Of a line for which there is no room nothing is left, whether the file is appended to or not.
    #[test]
    fn no_half_lines() {
        let folder = Folder::new("half");
        for appends in [false, true] {
            let path = folder.file(&appends.to_string());
            let mut options = OpenOptions::new();
            options.create(true).append(appends).write(true);
            let file: File = options.open(&path).unwrap();
            let mut destination = Destination::of(file).unwrap();
            destination.write(b"whole\n").unwrap();
            let from =
                if appends { 6 } else { io::Seek::stream_position(&mut destination.file).unwrap() };
            destination.file.write_all(b"ha").unwrap();
            let full = io::Error::from_raw_os_error(28);
            let error = destination.take_back(from, 2, full).unwrap_err();
            assert!(is_full(&error));
            destination.write(b"next\n").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "whole\nnext\n");
        }
    }
}
