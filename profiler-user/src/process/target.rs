//! A process identifier to a process that can be watched, or the sentence that says why it cannot.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::maps::{self, Region};
use crate::error::Failure;

/// Bytes of a text in /proc taken at most; the text of a process with 65,530 mappings is about 7 MB.
const MAX_TEXT: u64 = 16 * 1024 * 1024;

/// Bytes asked for at once: most texts are shorter, and their files do not tell their size.
const USUAL_TEXT: usize = 4096;

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
        let target = Self { pid, start_ticks: stat.start_ticks, pidfd };
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

    /// Whether the number still means the same process.
    pub fn is_same(&self) -> bool {
        text(format!("/proc/{}/stat", self.pid))
            .and_then(|text| Stat::parse(&text))
            .is_some_and(|stat| stat.start_ticks == self.start_ticks)
    }

    /// What is mapped now; empty once the process has exited.
    pub fn regions(&self) -> Vec<Region> {
        text(format!("/proc/{}/maps", self.pid)).map(|text| maps::parse(&text)).unwrap_or_default()
    }

    pub fn exe(&self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/exe", self.pid)).ok()
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

    /// Where the thread is in the kernel, as the kernel itself names it. Needs CAP_SYS_ADMIN.
    pub fn kernel_stack(&self, tid: u32) -> Option<String> {
        text(format!("/proc/{}/task/{tid}/stack", self.pid))
    }

    /// The command line, arguments separated by spaces.
    pub fn command(&self) -> String {
        let bytes = text(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        bytes.trim_end_matches('\0').replace('\0', " ")
    }

    /// The text of /proc/PID/cgroup.
    pub fn cgroups(&self) -> String {
        text(format!("/proc/{}/cgroup", self.pid)).unwrap_or_default()
    }

    /// Seconds since the epoch at which the process started, from the boot time and its own.
    pub fn started_at_s(&self) -> Option<f64> {
        let stat = text("/proc/stat".to_owned())?;
        let boot: f64 = field(&stat, "btime")?.parse().ok()?;
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
        Some(boot + self.start_ticks as f64 / per_second as f64)
    }

    /// Which kinds of descriptors that loops wait on the process has open.
    pub fn wait_descriptors(&self) -> WaitDescriptors {
        let mut found = WaitDescriptors::default();
        let Ok(entries) = fs::read_dir(format!("/proc/{}/fd", self.pid)) else { return found };
        for entry in entries.flatten() {
            if let Ok(link) = fs::read_link(entry.path()) {
                let link = link.to_string_lossy();
                found.epoll |= link.contains("[eventpoll]");
                found.io_uring |= link.contains("[io_uring]");
            }
        }
        found
    }
}

/// What a process has open that an event loop could wait on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WaitDescriptors {
    pub epoll: bool,
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
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// A text in /proc, as far as it is text.
pub(super) fn text(path: String) -> Option<String> {
    let mut bytes = Vec::with_capacity(USUAL_TEXT);
    fs::File::open(path).ok()?.take(MAX_TEXT).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
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

    /// A number that no process has is told as such.
    #[test]
    fn nobody() {
        let failure = Target::open(0x7fff_ffff).unwrap_err();
        assert_eq!(failure.message, "there is no process 2147483647");
    }
}
