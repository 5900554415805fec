//! The process that the kernel asks whether a file may be opened, read or executed (fanotify(7)).
//!
//! A virus scanner or an agent that audits has such a listener. Which files each is asked about, its marks
//! say (proc_pid_fdinfo(5)).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::listing::listed;
use super::mounts::{self, Mount};
use super::peers::{Access, peer, with_link};
use crate::call::{Peer, is_remote};

/// What /proc says that a listener's descriptor is.
pub const LINK: &str = "anon_inode:[fanotify]";

/// Bytes of one listener's marks read: a mark has about 150.
const MAX_MARKS: u64 = 1024 * 1024;

/// `FAN_OPEN_PERM`, `FAN_ACCESS_PERM`, `FAN_OPEN_EXEC_PERM` and `FAN_PRE_ACCESS`
/// (include/uapi/linux/fanotify.h): events that wait for an answer.
const ASKS: u64 = 0x1_0000 | 0x2_0000 | 0x4_0000 | 0x10_0000;

/// `FAN_EVENT_ON_CHILD`: a folder's mark is about what lies in it.
const ON_CHILD: u64 = 0x800_0000;

/// Listeners that a gap names.
const MAX_NAMED: usize = 4;

/// A process with a mark that waits for its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listener {
    pid: u32,
    marks: Vec<Mark>,
}

/// What a listener is asked about. Numbers as the kernel has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Inode { inode: u64, device: u64, is_about_children: bool },
    Mount(u32),
    FileSystem(u64),
}

/// A file as marks know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    mount: u32,
    device: u64,
    inode: Option<u64>,
    folder: Option<u64>,
}

/// Who checks this file for a process, by the path that it gave; or why that cannot be told.
pub fn checker(pid: u32, path: Option<&str>) -> Result<Peer, String> {
    let all = listeners(pid)?;
    let place = path.and_then(|path| Place::of(pid, path));
    match narrowed(&all, place)[..] {
        [] => Err("no process that can be seen here has a fanotify mark that asks".to_owned()),
        [only] => Ok(peer(only)),
        ref several => Err(undecided(several)),
    }
}

fn listeners(near: u32) -> Result<Vec<Listener>, String> {
    let with_marks = |pid: u32| {
        let own = listed(pid, usize::MAX).ok()?.filter(|one| one.link.as_os_str() == LINK);
        let text = |number: u32| mounts::read(&format!("/proc/{pid}/fdinfo/{number}"), MAX_MARKS);
        let marks = own.filter_map(|one| text(one.number)).flat_map(|text| marks(&text)).collect();
        Some(Listener { pid, marks })
    };
    let mut all: Vec<_> =
        with_link(LINK, near, Access::Any)?.into_iter().filter_map(with_marks).collect();
    // The others are told of files, and nobody waits for them.
    all.retain(|listener| !listener.marks.is_empty());
    Ok(all)
}

/// The marks that ask, of a listener's /proc/PID/fdinfo/FD.
fn marks(text: &str) -> Vec<Mark> {
    text.lines().filter_map(|line| mark(line.strip_prefix("fanotify ")?)).collect()
}

/// `ino:9e605b sdev:fe00000 mflags:0 mask:8010000 …`, `mnt_id:1f mflags:0 mask:10000 …`, `sdev:fe00000 mflags:…`
fn mark(line: &str) -> Option<Mark> {
    let field = |name: &str| {
        let mut words = line.split(' ').filter_map(|word| word.split_once(':'));
        let (_, value) = words.find(|(known, _)| *known == name)?;
        u64::from_str_radix(value, 16).ok()
    };
    let mask = field("mask")?;
    if mask & ASKS == 0 {
        return None;
    }
    if let Some(mount) = field("mnt_id") {
        return u32::try_from(mount).ok().map(Mark::Mount);
    }
    let device = field("sdev")?;
    let is_about_children = mask & ON_CHILD != 0;
    let inode = field("ino").map(|inode| Mark::Inode { inode, device, is_about_children });
    Some(inode.unwrap_or(Mark::FileSystem(device)))
}

impl Place {
    /// A relative path begins in the working directory.
    fn of(pid: u32, path: &str) -> Option<Self> {
        let whole = match path.strip_prefix('/') {
            Some(_) => path.to_owned(),
            None => {
                let folder = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
                folder.join(path).to_str()?.to_owned()
            }
        };
        let Mount { number, device: (major, minor), kind, .. } = mounts::above(pid, &whole)?;
        let seen = Path::new(&format!("/proc/{pid}/root")).join(whole.trim_start_matches('/'));
        // The thread has just found it, so that this needs no disk; but a server may not answer.
        let inode = |path: &Path| {
            let metadata = (!is_remote(&kind)).then(|| fs::metadata(path).ok()).flatten();
            metadata.map(|metadata| metadata.ino())
        };
        Some(Self {
            mount: number,
            // As the kernel itself joins them (include/linux/kdev_t.h).
            device: u64::from(major) << 20 | u64::from(minor),
            inode: inode(&seen),
            folder: seen.parent().and_then(inode),
        })
    }

    fn is_under(self, mark: &Mark) -> bool {
        match *mark {
            Mark::Mount(mount) => mount == self.mount,
            Mark::FileSystem(device) => device == self.device,
            Mark::Inode { inode, device, is_about_children } => {
                let is_folder = is_about_children && self.folder == Some(inode);
                device == self.device && (is_folder || self.inode == Some(inode))
            }
        }
    }
}

/// Those that may be it: of several, those with a mark over the file, if any has one.
fn narrowed(all: &[Listener], place: Option<Place>) -> Vec<u32> {
    let is_asked = |listener: &&Listener| {
        place.is_some_and(|place| listener.marks.iter().any(|mark| place.is_under(mark)))
    };
    let pids = |some: Vec<&Listener>| some.iter().map(|listener| listener.pid).collect::<Vec<_>>();
    let asked = pids(all.iter().filter(is_asked).collect());
    if asked.is_empty() { pids(all.iter().collect()) } else { asked }
}

fn undecided(several: &[u32]) -> String {
    let words = |pid: &u32| match peer(*pid).name {
        Some(name) => format!("{pid} ({name})"),
        None => pid.to_string(),
    };
    let named: Vec<String> = several.iter().take(MAX_NAMED).map(words).collect();
    let more = match several.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("each of processes {}{more} may check the file", named.join(", "))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::{Listener, Mark, Place, marks, narrowed};

    /// As Linux 6.18 prints a listener's marks, and as the documentation has the other kinds.
    const MARKS: &str = "\
pos:	0
flags:	02000002
mnt_id:	17
ino:	1038
fanotify flags:5 event-flags:8000
fanotify ino:9e605b sdev:fe00000 mflags:0 mask:8010000 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:5b609e002cdf5011
fanotify ino:7 sdev:fe00000 mflags:0 mask:20000 ignored_mask:0
fanotify ino:8 sdev:fe00000 mflags:0 mask:8000020 ignored_mask:0
fanotify mnt_id:1f mflags:0 mask:40000 ignored_mask:0
fanotify sdev:800002 mflags:0 mask:100000 ignored_mask:0
fanotify torn mask:10000
";

    fn inode(inode: u64, is_about_children: bool) -> Mark {
        Mark::Inode { inode, device: 0xfe0_0000, is_about_children }
    }

    /// Marks of all kinds are read; those that only tell of files are left out.
    #[test]
    fn marks_that_ask() {
        let expected = [
            inode(0x9e605b, true),
            inode(7, false),
            Mark::Mount(0x1f),
            Mark::FileSystem(0x80_0002),
        ];
        assert_eq!(marks(MARKS), expected);
        assert!(marks("fanotify flags:5 event-flags:8000\n").is_empty());
    }

    /// Of several listeners those are meant that have the file, its folder, its mount or its file system
    /// marked; where nobody seems to, it may be any.
    #[test]
    fn who_is_asked() {
        let of = |pid, mark| Listener { pid, marks: vec![mark] };
        let all = [
            of(1, inode(9, true)),
            of(2, inode(9, false)),
            of(3, inode(5, false)),
            of(4, Mark::Mount(31)),
            of(5, Mark::FileSystem(0x80_0002)),
        ];
        let place = |mount, device, inode, folder| {
            let (inode, folder) = (Some(inode), Some(folder));
            narrowed(&all, Some(Place { mount, device, inode, folder }))
        };
        assert_eq!(place(30, 0xfe0_0000, 4, 9), [1]);
        assert_eq!(place(30, 0xfe0_0000, 5, 8), [3]);
        assert_eq!(place(31, 0x90_0001, 5, 9), [4]);
        assert_eq!(place(30, 0x80_0002, 5, 9), [5]);
        assert_eq!(place(31, 0xfe0_0000, 9, 7), [1, 2, 4]);
        assert_eq!(place(30, 0x90_0001, 5, 9).len(), 5);
        assert_eq!(narrowed(&all, None).len(), 5);
        assert!(narrowed(&[], None).is_empty());
    }

    /// A file is found by its own number and its folder's, by the whole path or from the working directory.
    #[test]
    fn places() {
        let me = std::process::id();
        let here = std::env::current_dir().unwrap();
        let expected = std::fs::metadata(here.join("Cargo.toml")).unwrap().ino();
        let folder = std::fs::metadata(&here).unwrap().ino();
        let whole = here.join("Cargo.toml");
        for path in ["Cargo.toml", whole.to_str().unwrap()] {
            let place = Place::of(me, path).unwrap();
            assert_eq!((place.inode, place.folder), (Some(expected), Some(folder)), "{path}");
        }
    }
}
