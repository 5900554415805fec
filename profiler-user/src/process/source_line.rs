//! A line of one of the target's source files, as its process sees the file: one bounded read, never waited for.
//!
//! The path is the target's word. It is resolved below the target's root, only a regular file is opened that
//! the target itself may read, and a thread of its own does it: a file system that hangs holds up nobody else.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use super::target::{field, text};

/// Bytes of a file that are read: some 6,000 lines. What lies further back is not shown.
const MAX_READ: u64 = 256 * 1024;

/// Bytes of a line that are shown.
const MAX_LINE: usize = 400;

/// `PATH_MAX` (include/uapi/linux/limits.h).
const MAX_PATH: usize = 4096;

/// How long a line is waited for. A read out of the page cache takes well below a millisecond.
const PATIENCE: Duration = Duration::from_millis(50);

/// A line without its indentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLine {
    pub text: String,
    /// The file was written after the process started: what runs may be another text.
    pub is_newer: bool,
}

/// Reads lines for one process.
#[derive(Debug)]
pub struct SourceLines {
    reader: Option<Reader>,
}

/// The thread that reads, and what is still to come from it.
#[derive(Debug)]
struct Reader {
    questions: SyncSender<(String, u32)>,
    answers: Receiver<Option<SourceLine>>,
    /// It has not answered the last question yet.
    is_late: bool,
}

impl SourceLines {
    /// For the process of this number, which started then.
    pub fn of(pid: u32, started_at: Option<SystemTime>) -> Self {
        let (questions, asked) = sync_channel::<(String, u32)>(1);
        let (tell, answers) = sync_channel(1);
        // Held from now on: once the process has exited, its number leads nowhere or to somebody else.
        let Ok(files) = Files::of(pid, started_at) else { return Self { reader: None } };
        let work = move || {
            for (file, line) in asked {
                if tell.send(files.line(&file, line)).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("source-lines".to_owned()).spawn(work);
        let reader = thread.is_ok().then_some(Reader { questions, answers, is_late: false });
        Self { reader }
    }

    /// The line, where it can be read at once.
    pub fn get(&mut self, file: &str, line: u32) -> Option<SourceLine> {
        let reader = self.reader.as_mut()?;
        if reader.is_late {
            // That answer belongs to a question which nobody asks any more.
            reader.answers.try_recv().ok()?;
            reader.is_late = false;
        }
        reader.questions.try_send((file.to_owned(), line)).ok()?;
        let answer = reader.answers.recv_timeout(PATIENCE);
        reader.is_late = answer.is_err();
        answer.ok().flatten()
    }
}

/// A process's view of the file system.
#[derive(Debug)]
struct Files {
    root: OwnedFd,
    /// What relative paths begin at, if it is known.
    cwd: Option<OwnedFd>,
    uid: u32,
    gid: u32,
    started_at: Option<SystemTime>,
}

impl Files {
    fn of(pid: u32, started_at: Option<SystemTime>) -> std::io::Result<Self> {
        let folder = |name: &str| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(CWD, format!("/proc/{pid}/{name}"), flags, Mode::empty())
        };
        let status = text(format!("/proc/{pid}/status")).unwrap_or_default();
        // The last of the four is the one that counts for files (proc(5)).
        let number = |name| field(&status, name)?.split_whitespace().last()?.parse().ok();
        let (Some(uid), Some(gid)) = (number("Uid:"), number("Gid:")) else {
            return Err(std::io::ErrorKind::NotFound.into());
        };
        Ok(Self { root: folder("root")?, cwd: folder("cwd").ok(), uid, gid, started_at })
    }

    fn line(&self, file: &str, line: u32) -> Option<SourceLine> {
        let file = self.open(file)?;
        let metadata = file.metadata().ok()?;
        let is_newer = match (self.started_at, metadata.modified()) {
            (Some(started_at), Ok(modified)) => modified > started_at,
            _ => false,
        };
        let mut bytes = Vec::new();
        let is_whole = metadata.len() <= MAX_READ;
        file.take(MAX_READ).read_to_end(&mut bytes).ok()?;
        nth_line(&bytes, line, is_whole).map(|text| SourceLine { text, is_newer })
    }

    fn open(&self, path: &str) -> Option<File> {
        // Modules of JavaScript are named by their URL.
        let path = path.strip_prefix("file://").unwrap_or(path);
        if path.len() > MAX_PATH || path.contains('\0') {
            return None;
        }
        let (below, resolve) = match Path::new(path).is_absolute() {
            true => (self.root.as_fd(), ResolveFlags::IN_ROOT),
            false => (self.cwd.as_ref()?.as_fd(), ResolveFlags::BENEATH),
        };
        let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
        // Looked at before it is opened: opening a device has effects, and opening a pipe waits.
        let found = openat2(below, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
        let found = File::from(found.ok()?);
        let metadata = found.metadata().ok()?;
        if !metadata.is_file() || metadata.len() == 0 || !self.may_read(&metadata) {
            return None;
        }
        File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()
    }

    /// Whether the target could read the file itself: no report tells what only its reader may see.
    fn may_read(&self, metadata: &std::fs::Metadata) -> bool {
        let mode = metadata.mode();
        let is_allowed = match () {
            () if metadata.uid() == self.uid => mode & 0o400 != 0,
            () if metadata.gid() == self.gid => mode & 0o040 != 0,
            () => mode & 0o004 != 0,
        };
        self.uid == 0 || is_allowed
    }
}

/// A line by its number, counted from one. The last one of a text that is cut off may not be whole.
fn nth_line(bytes: &[u8], number: u32, is_whole: bool) -> Option<String> {
    let index = usize::try_from(number).ok()?.checked_sub(1)?;
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let line = lines.nth(index)?;
    if lines.next().is_none() && !is_whole {
        return None;
    }
    let line = line.trim_ascii();
    let text = String::from_utf8_lossy(line.get(..MAX_LINE).unwrap_or(line)).replace('\t', " ");
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::time::{Duration, Instant, SystemTime};

    use rustix::fs::{CWD, Mode};

    use super::{Files, MAX_LINE, MAX_READ, SourceLines, nth_line};

    /// A folder of its own for one test, removed with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn path(&self, name: &str) -> String {
            self.0.join(name).to_string_lossy().into_owned()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// A line is found by its number, without its indentation, and cut where it is long.
    #[test]
    fn lines_by_number() {
        let text = b"def f():\n\treturn\t1\n\nlast";
        assert_eq!(nth_line(text, 1, true).as_deref(), Some("def f():"));
        assert_eq!(nth_line(text, 2, true).as_deref(), Some("return 1"));
        assert_eq!(nth_line(text, 3, true), None, "an empty line shows nothing");
        assert_eq!(nth_line(text, 4, true).as_deref(), Some("last"));
        assert_eq!(nth_line(text, 4, false), None, "it may go on");
        assert_eq!((nth_line(text, 0, true), nth_line(text, 5, true)), (None, None));
        let long = "ä".repeat(MAX_LINE);
        assert!(nth_line(long.as_bytes(), 1, true).unwrap().len() <= MAX_LINE + 2);
    }

    /// A file is read through links, by its URL too; one that was written later is told.
    #[test]
    fn files_of_this_process() {
        let folder = Folder::new("source-lines");
        fs::write(folder.path("app.py"), "one\ntwo\n").unwrap();
        symlink(folder.path("app.py"), folder.path("link.py")).unwrap();
        let at = |started_at| SourceLines::of(std::process::id(), started_at);
        let mut lines = at(Some(SystemTime::now() + Duration::from_secs(60)));
        for path in ["app.py", "link.py"].map(|name| folder.path(name)) {
            for path in [path.clone(), format!("file://{path}")] {
                let line = lines.get(&path, 2).unwrap();
                assert_eq!((line.text.as_str(), line.is_newer), ("two", false), "{path}");
            }
        }
        let line = at(Some(SystemTime::UNIX_EPOCH)).get(&folder.path("app.py"), 1).unwrap();
        assert!(line.is_newer);
    }

    /// Nothing but a regular file of text is opened: no pipe, no device, no folder, nothing that is gone.
    #[test]
    fn only_regular_files() {
        let folder = Folder::new("source-lines-odd");
        let pipe = folder.path("pipe.py");
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(CWD, pipe.as_str(), kind, Mode::RWXU, 0).unwrap();
        let mut lines = SourceLines::of(std::process::id(), None);
        let began = Instant::now();
        for path in [&pipe, "/dev/zero", "/proc/self/maps", "/", "/nowhere.py", "<string>", "a\0b"]
        {
            assert_eq!(lines.get(path, 1), None, "{path}");
        }
        assert!(began.elapsed() < Duration::from_secs(1), "nothing was waited for");
    }

    /// What the target's user may not read is not told to anybody.
    #[test]
    fn others_files() {
        let folder = Folder::new("source-lines-secret");
        let path = folder.path("secret.py");
        fs::write(&path, "secret\n").unwrap();
        let own = Files::of(std::process::id(), None).unwrap();
        let other = Files { uid: 4711, gid: 4711, ..Files::of(std::process::id(), None).unwrap() };
        assert!(own.line(&path, 1).is_some());
        let mode = |mode| {
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
            fs::set_permissions(&path, permissions).unwrap();
        };
        mode(0o640);
        assert!(other.line(&path, 1).is_none());
        mode(0o644);
        assert!(other.line(&path, 1).is_some());
    }

    /// Of a large file the beginning is read.
    #[test]
    fn large_files() {
        let folder = Folder::new("source-lines-large");
        let path = folder.path("large.py");
        let lines = u32::try_from(MAX_READ).unwrap();
        fs::write(&path, "x\n".repeat(lines as usize)).unwrap();
        let files = Files::of(std::process::id(), None).unwrap();
        assert!(files.line(&path, 1000).is_some());
        assert!(files.line(&path, lines - 1).is_none());
    }

    /// A process that is not there has no lines.
    #[test]
    fn nobody() {
        assert_eq!(SourceLines::of(0x7fff_ffff, None).get("/etc/hostname", 1), None);
    }
}
