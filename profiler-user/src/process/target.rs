//! A process identifier to a process that can be watched, or the sentence that says why it cannot.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::image::Image;
use super::listing::{Listed, Unlisted, listed};
use super::maps::{self, Region};
use crate::error::Failure;
use crate::urgency::before_lock;

/// Bytes of a text in /proc taken at most; the text of a process with 65,530 mappings is about 7 MB.
const MAX_TEXT: u64 = 16 * 1024 * 1024;

/// Bytes asked for at once: most texts are shorter, and their files do not tell their size.
const USUAL_TEXT: usize = 4096;

/// Descriptors whose details are read where their names cannot be: each takes some microseconds.
const MAX_DETAILS: usize = 4096;

/// Threads whose numbers are read at most.
const MAX_THREADS: usize = 16 * 1024;

/// `PF_KTHREAD` (include/linux/sched.h).
const KERNEL_THREAD: u64 = 0x0020_0000;

/// A process that exists, is ours to watch, and is known by more than its number.
#[derive(Debug)]
pub struct Target {
    pid: u32,
    /// Field 22 of /proc/PID/stat: a reused number has another.
    start_ticks: u64,
    /// Readable once the process has exited.
    pidfd: OwnedFd,
    /// What the kernel told the program as it began: where it is linked and loaded, and random bytes. Another
    /// program, or the same one executed again, has another; empty where it cannot be read.
    auxiliary: Vec<u8>,
}

impl Target {
    /// Finds the process and refuses what cannot be watched.
    pub fn open(pid: u32) -> Result<Self, Failure> {
        let gone = || Failure::no_process(format!("there is no process {pid}"));
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
        let status = text(format!("/proc/{pid}/status")).ok_or_else(gone)?;
        let tgid = field(&status, "Tgid:").and_then(|text| text.parse().ok()).unwrap_or(pid);
        if tgid != pid {
            let message = format!("{pid} is a thread of process {tgid}: attach to {tgid}");
            return Err(Failure::no_process(message));
        }
        let pidfd = pidfd_open(raw, PidfdFlags::NONBLOCK)
            .map_err(|error| Failure::no_process(format!("cannot open process {pid}: {error}")))?;
        let stat = text(format!("/proc/{pid}/stat")).and_then(|text| Stat::parse(&text));
        let stat = stat.ok_or_else(gone)?;
        if stat.flags & KERNEL_THREAD != 0 {
            return Err(Failure::unsupported(format!(
                "{pid} is a kernel thread ({}): it has no code of its own to blame",
                stat.name
            )));
        }
        if matches!(stat.state, 'Z' | 'X') {
            return Err(Failure::no_process(format!("process {pid} has already exited")));
        }
        let auxiliary = auxiliary(pid);
        let target = Self { pid, start_ticks: stat.start_ticks, pidfd, auxiliary };
        target.check_class()?;
        Ok(target)
    }

    /// Registers and offsets of 32-bit programs are others.
    fn check_class(&self) -> Result<(), Failure> {
        const CLASS_32: u8 = 1;
        let path = format!("/proc/{}/exe", self.pid);
        let mut start = [0; 5];
        let read = fs::File::open(&path).and_then(|mut file| file.read_exact(&mut start));
        if let Err(error) = read {
            return Err(Failure::unsupported(format!(
                "cannot read {path}: {error}: run as root, or with CAP_SYS_PTRACE in the target's \
                 user namespace"
            )));
        }
        if start[4] == CLASS_32 {
            return Err(Failure::unsupported(format!(
                "process {} is a 32-bit program: only 64-bit ones can be watched",
                self.pid
            )));
        }
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether the process is no more, however its number may be used by now.
    pub fn has_exited(&self) -> bool {
        let mut pidfd = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut pidfd, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// A descriptor that is readable once the process has exited.
    pub fn exit(&self) -> io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    /// Whether the process lives and has executed no other program since, as far as this tells: where addresses are
    /// not randomised, a program that executes itself looks the same.
    pub fn runs_same_program(&self) -> bool {
        let same = self.auxiliary.is_empty() || auxiliary(self.pid) == self.auxiliary;
        // Last: the number may have been another's a moment ago.
        same && !self.has_exited()
    }

    /// Whether the number still means the same process.
    pub fn is_same(&self) -> bool {
        text(format!("/proc/{}/stat", self.pid))
            .and_then(|text| Stat::parse(&text))
            .is_some_and(|stat| stat.start_ticks == self.start_ticks)
    }

    /// What the program has mapped now; nothing once the process has exited or executed another.
    pub fn regions(&self) -> Result<Vec<Region>, Unlisted> {
        let path = format!("/proc/{}/maps", self.pid);
        before_lock();
        match read(&path) {
            Ok(_) if !self.runs_same_program() => {
                let gone = "the process has exited, or executed another program";
                Err(Unlisted::new(&path, io::Error::other(gone)))
            }
            Ok(text) => Ok(maps::parse(&text)),
            Err(error) => Err(Unlisted::new(&path, error)),
        }
    }

    pub fn exe(&self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/exe", self.pid)).ok()
    }

    /// The executable's file, whatever became of its name.
    pub fn program(&self) -> Option<Image> {
        Image::from_file(fs::File::open(format!("/proc/{}/exe", self.pid)).ok()?, 0).ok()
    }

    /// The user that the process acts as.
    pub fn uid(&self) -> Option<u32> {
        fs::metadata(format!("/proc/{}", self.pid)).ok().map(|metadata| metadata.uid())
    }

    /// Name of the process: its main thread's.
    pub fn name(&self) -> String {
        self.thread_name(self.pid).unwrap_or_default()
    }

    pub fn thread_name(&self, tid: u32) -> Option<String> {
        text(format!("/proc/{}/task/{tid}/comm", self.pid)).map(|text| text.trim_end().to_owned())
    }

    /// The thread's number in the innermost PID namespace, which is the one that the target knows.
    pub fn tid_in_container(&self, tid: u32) -> Option<u32> {
        let status = text(format!("/proc/{}/task/{tid}/status", self.pid))?;
        field(&status, "NSpid:")?.split_whitespace().last()?.parse().ok()
    }

    /// The thread that has this number in the innermost PID namespace.
    pub fn tid_of(&self, tid_in_container: u32) -> Option<u32> {
        // Mostly the two are the same.
        if self.tid_in_container(tid_in_container) == Some(tid_in_container) {
            return Some(tid_in_container);
        }
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).ok()?;
        let mut tids =
            threads.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        tids.find(|tid| self.tid_in_container(*tid) == Some(tid_in_container))
    }

    /// Every thread by its number in the innermost PID namespace: for who asks about many.
    pub fn tids_by_number(&self) -> BTreeMap<u32, u32> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten();
        let tids = threads
            .flatten()
            .take(MAX_THREADS)
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        // All threads are in the namespace of the first one.
        if self.tid_in_container(self.pid) == Some(self.pid) {
            return tids.map(|tid| (tid, tid)).collect();
        }
        tids.filter_map(|tid| Some((self.tid_in_container(tid)?, tid))).collect()
    }

    /// Where the thread is in the kernel, as the kernel itself names it. Needs CAP_SYS_ADMIN.
    pub fn kernel_stack(&self, tid: u32) -> Option<String> {
        text(format!("/proc/{}/task/{tid}/stack", self.pid))
    }

    /// The command line, argument by argument.
    pub fn arguments(&self) -> Vec<String> {
        let text = text(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        text.trim_end_matches('\0').split('\0').map(str::to_owned).collect()
    }

    /// The text of /proc/PID/cgroup.
    pub fn cgroups(&self) -> String {
        text(format!("/proc/{}/cgroup", self.pid)).unwrap_or_default()
    }

    /// Seconds since the epoch at which the process started, from the boot time and its own.
    pub fn started_at_s(&self) -> Option<f64> {
        let stat = text("/proc/stat".to_owned())?;
        let boot: f64 = field(&stat, "btime")?.parse().ok()?;
        Some(boot + self.start_ticks as f64 / clock_ticks_per_second() as f64)
    }

    /// Which kinds of descriptors that loops wait on the process has open; or why that is not known.
    pub fn wait_descriptors(&self) -> Result<WaitDescriptors, Unlisted> {
        let mut found = WaitDescriptors::default();
        let unlisted = match listed(self.pid, usize::MAX) {
            Ok(all) => {
                for Listed { link, .. } in all {
                    let link = link.to_string_lossy();
                    found.instances += u32::from(link.contains("[eventpoll]"));
                    found.epoll = found.instances > 0;
                    found.io_uring |= link.contains("[io_uring]");
                }
                return Ok(found);
            }
            Err(unlisted) => unlisted,
        };
        // What a descriptor is in detail, the kernel shows to more than its name.
        let details = fs::read_dir(format!("/proc/{}/fdinfo", self.pid)).into_iter().flatten();
        for entry in details.flatten().take(MAX_DETAILS) {
            let detail = text(entry.path().to_string_lossy().into_owned()).unwrap_or_default();
            found.instances += u32::from(field(&detail, "tfd:").is_some());
            found.epoll = found.instances > 0;
            found.io_uring |= field(&detail, "SqMask:").is_some();
        }
        // An instance that watches nothing yet shows nothing.
        if found.epoll || found.io_uring { Ok(found) } else { Err(unlisted) }
    }
}

/// What a process has open that an event loop could wait on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WaitDescriptors {
    pub epoll: bool,
    /// Of epoll, so many.
    pub instances: u32,
    pub io_uring: bool,
}

/// The fields of /proc/PID/stat that are used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) name: String,
    state: char,
    pub(super) parent: u32,
    flags: u64,
    pub(super) start_ticks: u64,
    cpu: Option<u32>,
}

impl Stat {
    /// The name stands in parentheses and may hold any character, parentheses too.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (before, after) = text.rsplit_once(')')?;
        let name = before.split_once('(')?.1.to_owned();
        let mut fields = after.split_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let flags = fields.nth(4)?.parse().ok()?;
        let start_ticks = fields.nth(12)?.parse().ok()?;
        let cpu = fields.nth(16).and_then(|cpu| cpu.parse().ok());
        Some(Self { name, state, parent, flags, start_ticks, cpu })
    }

    /// The CPU that a thread runs on or is ready to.
    pub(super) fn ready_on(&self) -> Option<u32> {
        self.cpu.filter(|_| self.state == 'R')
    }
}

/// The rest of the line that begins with `name`.
pub(crate) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Bytes of the auxiliary vector that are compared: it has some twenty entries of 16 bytes.
const MAX_AUXILIARY: u64 = 4096;

fn auxiliary(pid: u32) -> Vec<u8> {
    // With room for all of it, it is read at once.
    let mut bytes = Vec::with_capacity(1024);
    let read = fs::File::open(format!("/proc/{pid}/auxv"))
        .and_then(|file| file.take(MAX_AUXILIARY).read_to_end(&mut bytes));
    read.map(|_| bytes).unwrap_or_default()
}

/// A text in /proc, as far as it is text.
pub(crate) fn text(path: String) -> Option<String> {
    read(&path).ok()
}

fn read(path: &str) -> io::Result<String> {
    let mut bytes = Vec::with_capacity(USUAL_TEXT);
    fs::File::open(path)?.take(MAX_TEXT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{Stat, Target};

    /// Names with spaces and parentheses do not shift the fields.
    #[test]
    fn stat_with_odd_name() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat.name, "a) b (c");
        assert_eq!((stat.state, stat.parent), ('S', 1));
        assert_eq!((stat.flags, stat.start_ticks), (4_194_560, 98765));
        assert_eq!(Stat::parse("7 (x"), None);
        let rest = "0 ".repeat(13);
        let ready = format!("{} {rest}17 3 0 0", text.replace(" S ", " R "));
        assert_eq!(Stat::parse(&ready).unwrap().ready_on(), Some(3));
        assert_eq!(Stat::parse(&ready.replace(" R ", " S ")).unwrap().ready_on(), None);
    }

    /// This very process can be opened, is itself, and has a name.
    #[test]
    fn self_is_a_target() {
        let target = Target::open(std::process::id()).unwrap();
        assert!(target.is_same());
        assert!(!target.name().is_empty());
        assert!(target.started_at_s().is_some_and(|seconds| seconds > 1e9));
    }

    /// An epoll instance and a mapping of this very process are found; of a process that is gone it is said why not.
    #[test]
    fn descriptors_and_regions() {
        let target = Target::open(std::process::id()).unwrap();
        let _epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC);
        assert!(target.wait_descriptors().unwrap().epoll);
        assert!(!target.regions().unwrap().is_empty());
        let mut child = std::process::Command::new("sleep").arg("9").spawn().unwrap();
        let gone = Target::open(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(gone.wait_descriptors().unwrap_err().to_string().contains("cannot be read"));
        assert!(!gone.regions().unwrap_err().is_forbidden);
    }

    /// A thread is found by its number for itself, which outside of containers is the kernel's.
    #[test]
    fn threads_by_number() {
        let target = Target::open(std::process::id()).unwrap();
        let tids = target.tids_by_number();
        let own = rustix::thread::gettid().as_raw_pid() as u32;
        let number = target.tid_in_container(own).unwrap();
        assert_eq!(tids.get(&number), Some(&own), "{tids:?}");
        assert_eq!(target.tid_of(number), Some(own));
    }

    /// A program that gives way to another is found out, and its mappings are not the other's.
    #[test]
    fn another_program() {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "echo; read line; exec sleep 9"]);
        shell.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = shell.spawn().unwrap();
        // It may be in the middle of its first `execve` until it says something.
        let said = child.stdout.as_mut().unwrap();
        std::io::Read::read_exact(said, &mut [0]).unwrap();
        let target = Target::open(child.id()).unwrap();
        assert!(target.runs_same_program() && target.regions().is_ok());
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"\n").unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while target.runs_same_program() && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let told = (target.runs_same_program(), target.has_exited(), target.regions().is_err());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(told, (false, false, true));
    }

    /// A number that no process has is told as such.
    #[test]
    fn nobody() {
        let failure = Target::open(0x7fff_ffff).unwrap_err();
        assert_eq!(failure.message, "there is no process 2147483647");
    }
}
