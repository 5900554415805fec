//! The system call that a loop's thread is blocked in, to what it works on and who keeps it waiting.
//!
//! The session has read the arguments while the thread stood still. What is asked of /proc here comes
//! later: it counts only if the thread is in the same call after it was asked as before.

use std::fs;

use profiler_ebpf::record::Registers;

use crate::call::{Call, Descriptor, Kind, Party, Timeout};
use crate::frame::Frame;
use crate::gap::Gap;
use crate::gathered::Gathered;
use crate::process::arguments::{Arguments, Path};
use crate::process::borrowed;
use crate::process::descriptors::{describe, link, other_end};
use crate::process::file_locks;
use crate::process::mounts::{self, Opened};
use crate::process::parties::{child, children, party};
use crate::report::purpose::{self, Purpose};
use crate::report::syscalls::{self, Operand, operand, sends};

/// Of the descriptors that a `poll` waits for, those that are described.
const MAX_DESCRIBED: usize = 4;

/// Descriptors of the target that are looked through for its databases.
const MAX_OPEN: usize = 4096;

/// Holders of one file lock that are told.
const MAX_HOLDERS: usize = 4;

/// A thread that is or was in a system call.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    pub pid: u32,
    pub tid: u32,
    pub registers: &'a Registers,
    pub frames: &'a [Frame],
}

impl Caller<'_> {
    /// What can be said of the call. Without arguments, it is over already.
    pub fn look(self, arguments: Option<&Arguments>, gathered: &mut Gathered) -> Option<Call> {
        syscalls::name(self.registers.syscall)?;
        let mut call = Call::default();
        let Some(arguments) = arguments else {
            call.descriptor = self.descriptor(gathered);
            return call.descriptor.is_some().then_some(call);
        };
        call.timeout = arguments.timeout;
        call.asked_ns = arguments.asked_ns;
        call.path = arguments.path.as_ref().and_then(|path| self.whole(path));
        call.file_system = call.path.as_ref().and_then(|path| mounts::of_path(self.pid, path));
        self.descriptors(arguments, &mut call, gathered);
        let lasting = call.clone();
        self.sockets(arguments, &mut call);
        self.ends(&mut call, gathered);
        self.children(&mut call);
        self.file_locks(&mut call);
        if self.is_still_inside() {
            return Some(Call { is_seen: true, ..call });
        }
        let why = "the wait was over before it could be asked for";
        let gaps = vec![Gap::new("timeout and others", why)];
        Some(Call { gaps, ..lasting })
    }

    /// Whether the thread is in the same call still: the number, the arguments and the place are equal.
    fn is_still_inside(self) -> bool {
        let path = format!("/proc/{}/task/{}/syscall", self.pid, self.tid);
        let text = fs::read_to_string(path).unwrap_or_default();
        syscalls::is_inside(&text, self.registers)
    }

    fn descriptor(self, gathered: &mut Gathered) -> Option<Descriptor> {
        let Operand::Descriptor(number) = operand(self.registers) else { return None };
        let descriptor = self.describe(number, gathered)?;
        gathered.note(number, &descriptor.text);
        Some(descriptor)
    }

    fn describe(self, number: u32, gathered: &mut Gathered) -> Option<Descriptor> {
        let link = link(self.pid, number)?;
        let known = gathered.connection(&link).map(|known| Descriptor { number, ..known.clone() });
        Some(known.unwrap_or_else(|| {
            let descriptor = describe(self.pid, number, link);
            gathered.connected(&descriptor);
            descriptor
        }))
    }

    fn descriptors(self, arguments: &Arguments, call: &mut Call, gathered: &mut Gathered) {
        call.descriptor = self.descriptor(gathered);
        // A path may be empty: then the call works on the descriptor that it would be below.
        let below = arguments.path.as_ref().filter(|path| path.path.is_empty());
        if let Some(number) = below.and_then(|path| path.below) {
            call.descriptor = self.describe(number, gathered);
        }
        let polled = &arguments.polled;
        let described = polled.iter().take(MAX_DESCRIBED);
        call.polled = described.filter_map(|number| self.describe(*number, gathered)).collect();
        let left_out = polled.len().saturating_sub(call.polled.len()) as u64;
        call.more_polled = arguments.more_polled.saturating_add(left_out);
    }

    /// A path from the root of the target's own view.
    fn whole(self, path: &Path) -> Option<String> {
        let Path { path, below } = path;
        if path.is_empty() || path.starts_with('/') {
            return Some(path.clone()).filter(|path| !path.is_empty());
        }
        let folder = match below {
            Some(number) => format!("/proc/{}/fd/{number}", self.pid),
            None => format!("/proc/{}/cwd", self.pid),
        };
        let folder = fs::read_link(folder).ok()?;
        Some(format!("{}/{path}", folder.to_string_lossy().trim_end_matches('/')))
    }

    /// How long the call on a descriptor may wait, and where a socket leads that no table tells.
    fn sockets(self, arguments: &Arguments, call: &mut Call) {
        for polled in call.polled.iter_mut().filter(|it| it.is_unix() && it.peer.is_none()) {
            // How long it may take, `poll` itself says.
            if let Ok(answers) = borrowed::ask(self.pid, polled.number, true) {
                self.peer(polled, answers.path, answers.peer);
            }
        }
        let Some(descriptor) = &mut call.descriptor else { return };
        let blocks = Opened::of(self.pid, descriptor.number).is_some_and(|it| !it.is_nonblocking);
        if descriptor.kind != Kind::Socket {
            let is_endless = matches!(
                descriptor.kind,
                Kind::Pipe | Kind::Eventfd | Kind::Timerfd | Kind::Signalfd | Kind::Inotify
            );
            if is_endless && blocks && syscalls::transfers(self.registers) {
                call.timeout = Some(Timeout::None);
            }
            return;
        }
        if let (Some(address), None) = (&arguments.address, &descriptor.peer) {
            // A socket that is not connected yet.
            descriptor.peer = Some(address.clone());
            descriptor.text = match descriptor.text.split_once(' ') {
                Some((protocol, _)) => format!("{protocol} {address}"),
                None => format!("socket {address}"),
            };
        }
        match borrowed::ask(self.pid, descriptor.number, descriptor.is_unix()) {
            Ok(answers) => {
                if blocks && syscalls::transfers(self.registers) {
                    let set = if sends(self.registers) { answers.send } else { answers.receive };
                    call.timeout = set;
                }
                self.peer(descriptor, answers.path, answers.peer);
            }
            Err(why) => call.gaps.push(Gap::new("timeout", why)),
        }
    }

    /// Where a unix socket leads: no table tells.
    fn peer(self, descriptor: &mut Descriptor, path: Option<String>, process: Option<u32>) {
        if let Some(path) = path {
            descriptor.text = format!("unix {path}");
            descriptor.peer = Some(path);
        }
        if let Some(pid) = process.filter(|pid| *pid != self.pid && *pid != 0) {
            descriptor.process = Some(party(pid));
        }
    }

    /// Who has the other ends of what it waits for.
    fn ends(self, call: &mut Call, gathered: &mut Gathered) {
        let reads = !sends(self.registers);
        let Call { descriptor, polled, gaps, .. } = call;
        for descriptor in descriptor.iter_mut().chain(polled) {
            if descriptor.process.is_some() {
                continue;
            }
            let search = || other_end(self.pid, descriptor, reads);
            match gathered.end_of(&descriptor.link, search) {
                Ok(process) => descriptor.process = process,
                Err(why) => gaps.push(Gap::new("process at the other end", why)),
            }
        }
    }

    fn children(self, call: &mut Call) {
        if purpose::of(self.registers, self.frames) != Some(Purpose::ChildProcess) {
            return;
        }
        let operand = operand(self.registers);
        if let Operand::Child(_) = operand {
            call.timeout = Some(Timeout::None);
        }
        let found = if let Operand::Child(Some(number)) = operand {
            child(self.pid, number)
        } else {
            let children = children(self.pid);
            let ends = call.descriptor.iter().chain(&call.polled);
            let mut ends = ends.filter_map(|it| it.process.as_ref()).map(|process| process.pid);
            let at_an_end = ends.find(|pid| children.contains(pid));
            let only = children.first().copied().filter(|_| children.len() == 1);
            at_an_end.or(only)
        };
        call.child = found.map(party);
    }

    fn file_locks(self, call: &mut Call) {
        match purpose::of(self.registers, self.frames) {
            Some(Purpose::FileLock) => {
                call.timeout = Some(Timeout::None);
                call.held_by =
                    self.holder(call).map_err(|gap| call.gaps.push(gap)).unwrap_or_default();
            }
            Some(Purpose::SqliteBusy) => {
                if let Err(gap) = self.database(call) {
                    call.gaps.push(gap);
                }
            }
            _ => {}
        }
    }

    /// Who has the lock that `flock` or `fcntl` waits for.
    fn holder(self, call: &Call) -> Result<Vec<Party>, Gap> {
        let missing = |why: &str| Gap::new("held_by", why);
        let number = call.descriptor.as_ref().map(|descriptor| descriptor.number);
        let opened = number.and_then(|number| Opened::of(self.pid, number));
        let inode = opened.and_then(|opened| opened.inode);
        let inode = inode.ok_or_else(|| missing("the file's number is not told by this kernel"))?;
        let table = file_locks::table().ok_or_else(|| missing("/proc/locks cannot be read"))?;
        let lock = file_locks::blocker(&table, self.pid, inode).ok_or_else(|| {
            missing("the lock is not in /proc/locks as this PID namespace sees it")
        })?;
        let pid = lock.pid.ok_or_else(|| missing("the lock is an open file's, not a process's"))?;
        let holder = party(pid);
        if holder.name.is_none() {
            let why =
                format!("process {pid} took it and has exited; whoever has its file open keeps it");
            return Err(missing(&why));
        }
        Ok(vec![holder])
    }

    /// Which of the target's SQLite databases is locked, and by whom.
    fn database(self, call: &mut Call) -> Result<(), Gap> {
        let missing = |why: &str| Gap::new("database", why);
        let files = self.open_files();
        let inodes: Vec<u64> = files.iter().filter_map(|(inode, _)| *inode).collect();
        let table = file_locks::table().ok_or_else(|| missing("/proc/locks cannot be read"))?;
        let locks = file_locks::sqlite(&table, &inodes, self.pid);
        let is_locked = |inode: &Option<u64>| {
            inode.is_some_and(|inode| locks.iter().any(|lock| lock.inode == inode))
        };
        let mut locked: Vec<&str> = files
            .iter()
            .filter(|(inode, _)| is_locked(inode))
            .map(|(_, path)| database_of(path))
            .collect();
        locked.sort_unstable();
        locked.dedup();
        let [path] = locked[..] else {
            let why = format!("{} of its open files are locked as SQLite does it", locked.len());
            return Err(missing(&why));
        };
        call.database = Some(path.to_owned());
        let mut pids: Vec<u32> = locks.iter().filter_map(|lock| lock.pid).collect();
        pids.sort_unstable();
        pids.dedup();
        call.held_by = pids.into_iter().take(MAX_HOLDERS).map(party).collect();
        Ok(())
    }

    /// Numbers and paths of its open files; asked without touching the files, which may be slow.
    fn open_files(self) -> Vec<(Option<u64>, String)> {
        let Ok(entries) = fs::read_dir(format!("/proc/{}/fd", self.pid)) else { return Vec::new() };
        let file = |entry: fs::DirEntry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let path = fs::read_link(entry.path()).ok()?.to_str()?.to_owned();
            let inode = Opened::of(self.pid, number).and_then(|opened| opened.inode);
            path.starts_with('/').then_some((inode, path))
        };
        entries.flatten().take(MAX_OPEN).filter_map(file).collect()
    }
}

/// A write-ahead log's index is locked for the database that it belongs to.
fn database_of(path: &str) -> &str {
    path.strip_suffix("-shm").unwrap_or(path)
}
