//! The system call that a loop's thread is blocked in, to what it works on and who keeps it waiting.
//!
//! The session has read the arguments while the thread stood still. What is asked of /proc here comes
//! later: it counts only if the thread is in the same call after it was asked as before.

use std::fs;

use profiler_ebpf::record::Registers;

use super::programs::being_started;
use crate::call::{Call, Descriptor, Kind, Peer, Timeout};
use crate::frame::Stack;
use crate::gap::Gap;
use crate::known::Known;
use crate::process::arguments::{Arguments, Path};
use crate::process::borrowed;
use crate::process::descriptors::{describe, link, other_end};
use crate::process::file_locks;
use crate::process::listing::{Listed, Unlisted, listed};
use crate::process::mounts::{self, DescriptorInfo};
use crate::process::peers::{child, children, peer};
use crate::process::thread::is_in_call;
use crate::report::purpose::{self, Purpose};
use crate::syscall::{self, Operand, operand, sends};

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
    /// When it went to sleep in it, ns since the epoch.
    pub at_wall_ns: u64,
    pub stack: &'a Stack,
}

impl Caller<'_> {
    /// What can be said of the call. It is over already where its arguments say so, or are not there.
    pub fn look(self, arguments: Option<&Arguments>, known: &mut Known) -> Option<Call> {
        syscall::name(self.registers.syscall)?;
        let timeout = arguments.and_then(|it| self.timeout(it));
        let mut call = Call { timeout, ..Call::default() };
        let Some(arguments) = arguments.filter(|arguments| !arguments.is_over) else {
            let nothing = Arguments { is_over: true, ..Arguments::default() };
            self.descriptors(arguments.unwrap_or(&nothing), &mut call, known);
            let fits = |seen: &Descriptor| may_work_on(self.registers, seen.kind);
            call.descriptor = call.descriptor.filter(fits);
            call.gaps.extend(self.forbidden(&[]));
            self.behind(&mut call, known);
            let says = call.descriptor.is_some()
                || !call.polled.is_empty()
                || !call.held_by.is_empty()
                || call.connection.is_some()
                || call.timeout.is_some()
                || !call.gaps.is_empty();
            return says.then_some(call);
        };
        call.asked_ns = arguments.asked_ns;
        call.path = arguments.path.as_ref().and_then(|path| self.whole(path));
        call.file_system = call.path.as_ref().and_then(|path| mounts::of_path(self.pid, path));
        self.descriptors(arguments, &mut call, known);
        self.behind(&mut call, known);
        let lasting = call.clone();
        self.sockets(arguments, &mut call);
        self.ends(&mut call, known);
        self.children(&mut call, known);
        self.file_locks(&mut call);
        let why = match is_in_call(self.pid, self.tid, self.registers) {
            Ok(true) => return Some(Call { is_seen: true, ..call }),
            Ok(false) => "the wait was over before it could be asked for".to_owned(),
            Err(unlisted) => unlisted.into(),
        };
        let mut gaps = lasting.gaps;
        gaps.push(Gap::new("timeout and others", why));
        Some(Call { gaps, ..lasting })
    }

    fn timeout(self, arguments: &Arguments) -> Option<Timeout> {
        let until = arguments.wall_deadline_ns;
        let by_wall_clock = until.map(|until| Timeout::Ns(until.saturating_sub(self.at_wall_ns)));
        arguments.timeout.or(by_wall_clock)
    }

    fn descriptor(self, is_over: bool, call: &mut Call, known: &mut Known) -> Option<Descriptor> {
        let Operand::Descriptor(number) = operand(self.registers) else { return None };
        let descriptor = self.describe(number, is_over, call, known)?;
        known.note(number, &descriptor.text);
        Some(descriptor)
    }

    fn describe(
        self,
        number: u32,
        is_over: bool,
        call: &mut Call,
        known: &mut Known,
    ) -> Option<Descriptor> {
        let link = link(self.pid, number).ok()?;
        if let Some(seen) = known.connection(&link) {
            return Some(Descriptor { number, ..seen.clone() });
        }
        if is_over
            && link.starts_with("socket:")
            && let Err(gap) = known.look_up()
        {
            call.gaps.push(gap);
            return None;
        }
        let descriptor = describe(self.pid, number, link, !is_over);
        known.connected(&descriptor);
        Some(descriptor)
    }

    /// Why what the call works on is not told, where that is a matter of privileges.
    fn forbidden(self, polled: &[u32]) -> Option<Gap> {
        let own = match operand(self.registers) {
            Operand::Descriptor(number) => Some(number),
            _ => None,
        };
        let why = |number: u32| link(self.pid, number).err().filter(|why| why.is_forbidden);
        let why = own.into_iter().chain(polled.first().copied()).find_map(why)?;
        Some(Gap::new("target of the call", why))
    }

    fn descriptors(self, arguments: &Arguments, call: &mut Call, known: &mut Known) {
        let is_over = arguments.is_over;
        call.descriptor = self.descriptor(is_over, call, known);
        // A path may be empty: then the call works on the descriptor that it would be below.
        let below = arguments.path.as_ref().filter(|path| path.path.is_empty());
        if let Some(number) = below.and_then(|path| path.below) {
            call.descriptor = self.describe(number, is_over, call, known);
        }
        let polled = &arguments.polled;
        let described = polled.iter().take(MAX_DESCRIBED);
        call.polled =
            described.filter_map(|number| self.describe(*number, is_over, call, known)).collect();
        let left_out = polled.len().saturating_sub(call.polled.len()) as u64;
        call.more_polled = arguments.more_polled.saturating_add(left_out);
        call.gaps.extend(self.forbidden(polled));
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
        let blocks =
            DescriptorInfo::of(self.pid, descriptor.number).is_some_and(|it| !it.is_nonblocking);
        if descriptor.kind != Kind::Socket {
            let is_endless = matches!(
                descriptor.kind,
                Kind::Pipe | Kind::Eventfd | Kind::Timerfd | Kind::Signalfd | Kind::Inotify
            );
            if is_endless && blocks && syscall::transfers(self.registers) {
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
                if blocks && syscall::transfers(self.registers) {
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
            descriptor.process = Some(peer(pid));
        }
    }

    /// Who has the other ends of what it waits for.
    fn ends(self, call: &mut Call, known: &mut Known) {
        let reads = !sends(self.registers);
        let Call { descriptor, polled, gaps, .. } = call;
        for descriptor in descriptor.iter_mut().chain(polled) {
            if descriptor.process.is_some() {
                continue;
            }
            let search = || other_end(self.pid, descriptor, reads);
            match known.end_of(&descriptor.link, search) {
                Ok(process) => descriptor.process = process,
                Err(why) => gaps.push(Gap::new("process at the other end", why)),
            }
        }
    }

    fn children(self, call: &mut Call, known: &mut Known) {
        if purpose::of(self.registers, self.stack) == Some(Purpose::ProgramStart) {
            if let Some(start) = being_started(self.pid) {
                self.checker_of_program(&start, call, known);
                (call.child, call.path) = (Some(start.child), start.path);
            }
            return;
        }
        if purpose::of(self.registers, self.stack) != Some(Purpose::ChildProcess) {
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
        call.child = found.map(peer);
    }

    fn file_locks(self, call: &mut Call) {
        match purpose::of(self.registers, self.stack) {
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
    fn holder(self, call: &Call) -> Result<Vec<Peer>, Gap> {
        let missing = |why: &str| Gap::new("held_by", why);
        let number = call.descriptor.as_ref().map(|descriptor| descriptor.number);
        let opened = number.and_then(|number| DescriptorInfo::of(self.pid, number));
        let inode = opened.and_then(|opened| opened.inode);
        let inode = inode.ok_or_else(|| missing("the file's number is not told by this kernel"))?;
        let table = file_locks::table().ok_or_else(|| missing("/proc/locks cannot be read"))?;
        let lock = file_locks::blocker(&table, self.pid, inode).ok_or_else(|| {
            missing("the lock is not in /proc/locks as this PID namespace sees it")
        })?;
        let pid = lock.pid.ok_or_else(|| missing("the lock is an open file's, not a process's"))?;
        let holder = peer(pid);
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
        let files = self.open_files().map_err(|why| Gap::new("database", why))?;
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
        call.held_by = pids.into_iter().take(MAX_HOLDERS).map(peer).collect();
        Ok(())
    }

    /// Numbers and paths of its open files; asked without touching the files, which may be slow.
    fn open_files(self) -> Result<Vec<(Option<u64>, String)>, Unlisted> {
        let file = |one: Listed| {
            let path = one.link.to_str()?.to_owned();
            let inode = DescriptorInfo::of(self.pid, one.number).and_then(|opened| opened.inode);
            path.starts_with('/').then_some((inode, path))
        };
        Ok(listed(self.pid, MAX_OPEN)?.filter_map(file).collect())
    }
}

/// Whether a call could have been on such a thing. Once a call is over, its descriptor's number may stand
/// for another.
fn may_work_on(registers: &Registers, kind: Kind) -> bool {
    match syscall::name(registers.syscall).unwrap_or_default() {
        "recvfrom" | "recvmsg" | "recvmmsg" | "sendto" | "sendmsg" | "sendmmsg" | "connect"
        | "accept" | "accept4" => kind == Kind::Socket,
        "epoll_wait" | "epoll_pwait" | "epoll_pwait2" => kind == Kind::Epoll,
        _ if syscall::is_write_back(registers) => matches!(kind, Kind::File | Kind::Device),
        _ => true,
    }
}

/// A write-ahead log's index is locked for the database that it belongs to.
fn database_of(path: &str) -> &str {
    path.strip_suffix("-shm").unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::record::Registers;

    use super::may_work_on;
    use crate::call::Kind;

    /// A number that has come to stand for something that the call cannot be on is not told.
    #[test]
    fn numbers_that_are_used_again() {
        let on = |syscall, kind| may_work_on(&Registers { syscall, ..Registers::default() }, kind);
        let (read, recvfrom, fsync) = (0, 45, 74);
        assert!(on(recvfrom, Kind::Socket) && !on(recvfrom, Kind::File));
        assert!(on(fsync, Kind::File) && !on(fsync, Kind::Socket));
        assert!(on(read, Kind::Socket) && on(read, Kind::File));
    }
}
