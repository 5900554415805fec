//! The arguments of a blocked thread's system call that lie in its memory: paths, addresses, descriptors polled, times.
//!
//! The thread is blocked in the call, so they are what it was called with. Everything read is the
//! target's word, and bounded.

use std::net::{Ipv4Addr, Ipv6Addr};

use profiler_ebpf::limits::PAGE_BYTES;
use profiler_ebpf::record::Registers;

use super::TargetMemory;
use super::stack::CopiedStack;
use crate::call::Timeout;

/// Descriptors read of one `poll` or `select`; servers with more use epoll.
const MAX_POLLED: u64 = 64;

/// `FD_SETSIZE`: no `fd_set` of glibc is larger.
const MAX_SELECTED: u64 = 1024;

/// Bytes of a path that are told; `PATH_MAX` is 4096, but a person reads a line.
const MAX_PATH: usize = 512;

/// `sizeof(struct sockaddr_storage)`.
const MAX_ADDRESS: usize = 128;

const NS_PER_MS: u64 = 1_000_000;
const NS_PER_S: u64 = 1_000_000_000;

/// A path, and what it is relative to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    pub path: String,
    /// The descriptor of a folder; none for the working directory.
    pub below: Option<u32>,
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arguments {
    pub polled: Vec<u32>,
    /// Descriptors beyond the bound.
    pub more_polled: u64,
    pub path: Option<Path>,
    /// Of `connect`: `10.0.0.5:443`, `/run/x.sock`.
    pub address: Option<String>,
    /// The call's own; a socket may have one besides.
    pub timeout: Option<Timeout>,
    /// Until when it waits by `CLOCK_REALTIME`, where it was told so, ns since the epoch.
    pub wall_deadline_ns: Option<u64>,
    /// How long a sleep was asked for.
    pub asked_ns: Option<u64>,
    /// The call was over by the time: this is all that the copy of the thread's stack shows.
    pub is_over: bool,
}

/// Which argument is a pointer to what.
enum Layout {
    PollMilliseconds,
    PollTime,
    Select { is_micro: bool },
    EpollMilliseconds,
    EpollTime,
    Connect,
    Sleep,
    ClockSleep,
    Futex,
    Path { at: usize, below: Option<usize> },
    Nothing,
}

fn layout(name: &str) -> Layout {
    match name {
        "poll" => Layout::PollMilliseconds,
        "ppoll" => Layout::PollTime,
        "select" => Layout::Select { is_micro: true },
        "pselect6" => Layout::Select { is_micro: false },
        "epoll_wait" | "epoll_pwait" => Layout::EpollMilliseconds,
        "epoll_pwait2" => Layout::EpollTime,
        "connect" => Layout::Connect,
        "nanosleep" => Layout::Sleep,
        "clock_nanosleep" => Layout::ClockSleep,
        "futex" => Layout::Futex,
        "open" | "creat" | "stat" | "lstat" | "access" | "unlink" | "rename" | "mkdir"
        | "rmdir" | "link" | "readlink" | "truncate" | "execve" | "statfs" | "umount2" => {
            Layout::Path { at: 0, below: None }
        }
        "mount" | "symlink" => Layout::Path { at: 1, below: None },
        "openat" | "openat2" | "newfstatat" | "statx" | "faccessat" | "faccessat2" | "unlinkat"
        | "renameat" | "renameat2" | "mkdirat" | "linkat" | "readlinkat" | "execveat" => {
            Layout::Path { at: 1, below: Some(0) }
        }
        "symlinkat" => Layout::Path { at: 2, below: Some(1) },
        _ => Layout::Nothing,
    }
}

/// Reads what the call's pointers point to. `name` is the call's; the thread blocked in it at
/// `blocked_at_ns` of `CLOCK_MONOTONIC`.
pub fn read(
    memory: &dyn TargetMemory,
    name: &str,
    registers: &Registers,
    blocked_at_ns: u64,
) -> Arguments {
    let [first, second, third, fourth, fifth, _] = registers.args;
    let mut read = Arguments::default();
    match layout(name) {
        Layout::PollMilliseconds => {
            (read.polled, read.more_polled) = polled(memory, first, second);
            read.timeout = Some(milliseconds(third));
        }
        Layout::PollTime => {
            (read.polled, read.more_polled) = polled(memory, first, second);
            read.timeout = pointed(memory, third, 1);
        }
        Layout::Select { is_micro } => {
            let count = u64::from(first as u32).min(MAX_SELECTED);
            (read.polled, read.more_polled) = selected(memory, [second, third, fourth], count);
            read.timeout = pointed(memory, fifth, if is_micro { 1000 } else { 1 });
        }
        Layout::EpollMilliseconds => read.timeout = Some(milliseconds(fourth)),
        Layout::EpollTime => read.timeout = pointed(memory, fourth, 1),
        Layout::Connect => read.address = address(memory, second, third),
        Layout::Sleep => read.asked_ns = time(memory, first, 1),
        Layout::ClockSleep => {
            read.asked_ns = clock_sleep(memory, registers.args, blocked_at_ns);
        }
        Layout::Futex => futex(memory, registers.args, blocked_at_ns, &mut read),
        Layout::Path { at, below } => {
            let argument = |index: usize| registers.args.get(index).copied().unwrap_or_default();
            // Descriptors are signed 32 bits; the negative AT_FDCWD is the working directory.
            let below = below.and_then(|index| u32::try_from(argument(index) as i32).ok());
            read.path = text(memory, argument(at)).map(|path| Path { path, below });
        }
        Layout::Nothing => {}
    }
    read
}

/// Which descriptors a call waited for that is over, and a futex call's timeout, as far as they stood on the
/// stack; others' pointers are not followed into memory that has changed since.
pub fn of_the_past(
    stack: &CopiedStack<'_>,
    name: &str,
    registers: &Registers,
    blocked_at_ns: u64,
) -> Option<Arguments> {
    let past = read(stack, name, registers, blocked_at_ns);
    let Arguments { polled, more_polled, wall_deadline_ns, .. } = past;
    let timeout = past.timeout.filter(|_| name == "futex");
    let has_any = !polled.is_empty() || timeout.is_some() || wall_deadline_ns.is_some();
    let over = Arguments { polled, more_polled, timeout, wall_deadline_ns, ..Arguments::default() };
    has_any.then_some(Arguments { is_over: true, ..over })
}

/// How long a futex call waits (include/uapi/linux/futex.h): `FUTEX_WAIT` for a time, the others until one.
fn futex(memory: &dyn TargetMemory, args: [u64; 6], blocked_at_ns: u64, read: &mut Arguments) {
    const PRIVATE: u64 = 128;
    const REALTIME: u64 = 256;
    let [_, operation, _, at, ..] = args;
    let is_by_wall_clock = match operation & !(PRIVATE | REALTIME) {
        0 => {
            read.timeout = pointed(memory, at, 1);
            return;
        }
        // WAIT_BITSET, WAIT_REQUEUE_PI, LOCK_PI2.
        9 | 11 | 13 => operation & REALTIME != 0,
        // LOCK_PI knows no other clock.
        6 => true,
        _ => return,
    };
    let Some(deadline) = pointed(memory, at, 1) else { return };
    match deadline {
        Timeout::None => read.timeout = Some(Timeout::None),
        Timeout::Ns(ns) if is_by_wall_clock => read.wall_deadline_ns = Some(ns),
        Timeout::Ns(ns) => read.timeout = Some(Timeout::Ns(ns.saturating_sub(blocked_at_ns))),
    }
}

/// The `timeout` of `poll` and `epoll_wait`: negative for none.
fn milliseconds(argument: u64) -> Timeout {
    let timeout = u64::try_from(argument as i32);
    timeout.map_or(Timeout::None, |ms| Timeout::Ns(ms * NS_PER_MS))
}

/// A `struct timespec`, or a `timeval` where its unit is 1000 ns; no pointer is no timeout.
fn pointed(memory: &dyn TargetMemory, at: u64, unit_ns: u64) -> Option<Timeout> {
    if at == 0 { Some(Timeout::None) } else { time(memory, at, unit_ns).map(Timeout::Ns) }
}

fn time(memory: &dyn TargetMemory, at: u64, unit_ns: u64) -> Option<u64> {
    let seconds = memory.read_u64(at).ok()?;
    let rest = memory.read_u64(at.checked_add(8)?).ok()?;
    seconds.checked_mul(NS_PER_S)?.checked_add(rest.checked_mul(unit_ns)?)
}

/// An absolute time is told as what was left of it when the thread blocked.
fn clock_sleep(memory: &dyn TargetMemory, args: [u64; 6], blocked_at_ns: u64) -> Option<u64> {
    const MONOTONIC: u64 = 1;
    const ABSOLUTE: u64 = 1;
    let [clock, flags, at, ..] = args;
    let asked = time(memory, at, 1)?;
    match flags & ABSOLUTE {
        0 => Some(asked),
        _ if clock == MONOTONIC => Some(asked.saturating_sub(blocked_at_ns)),
        // Of other clocks it is not known where they stood.
        _ => None,
    }
}

/// Those of an array of `struct pollfd` that are asked for.
fn polled(memory: &dyn TargetMemory, at: u64, count: u64) -> (Vec<u32>, u64) {
    let read = count.min(MAX_POLLED);
    let mut numbers = Vec::new();
    for index in 0..read {
        let Some(at) = at.checked_add(index * 8) else { break };
        let Ok(number) = memory.read_u32(at) else { break };
        // Negative ones are to be passed over.
        numbers.extend(u32::try_from(number as i32));
    }
    (numbers, count - read)
}

/// The members of the sets that `select` was given.
fn selected(memory: &dyn TargetMemory, sets: [u64; 3], count: u64) -> (Vec<u32>, u64) {
    let mut numbers = Vec::new();
    for set in sets.into_iter().filter(|set| *set != 0) {
        for word in 0..count.div_ceil(64) {
            let bits = set.checked_add(word * 8).and_then(|at| memory.read_u64(at).ok());
            let members = (0..64).filter(|bit| bits.is_some_and(|bits| bits >> bit & 1 == 1));
            let members = members.map(|bit| word * 64 + bit).filter(|number| *number < count);
            numbers.extend(members.filter_map(|number| u32::try_from(number).ok()));
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    let more = numbers.len().saturating_sub(MAX_POLLED as usize);
    numbers.truncate(MAX_POLLED as usize);
    (numbers, more as u64)
}

/// A `struct sockaddr` in the words of a report.
fn address(memory: &dyn TargetMemory, at: u64, length: u64) -> Option<String> {
    let mut bytes = [0; MAX_ADDRESS];
    let bytes = bytes.get_mut(..usize::try_from(length).ok()?.min(MAX_ADDRESS))?;
    memory.read(at, bytes).ok()?;
    let bytes: &[u8] = bytes;
    let family = u16::from_le_bytes(*bytes.first_chunk()?);
    let port = || bytes.get(2..4)?.first_chunk().copied().map(u16::from_be_bytes);
    match i32::from(family) {
        libc::AF_INET => {
            let host: [u8; 4] = *bytes.get(4..8)?.first_chunk()?;
            Some(format!("{}:{}", Ipv4Addr::from(host), port()?))
        }
        libc::AF_INET6 => {
            let host: [u8; 16] = *bytes.get(8..24)?.first_chunk()?;
            Some(match Ipv6Addr::from(host).to_ipv4_mapped() {
                Some(host) => format!("{host}:{}", port()?),
                None => format!("[{}]:{}", Ipv6Addr::from(host), port()?),
            })
        }
        libc::AF_UNIX => match bytes.get(2..)? {
            // A name without a file is written with an @.
            [0, name @ ..] if !name.is_empty() => Some(format!("@{}", printable(name))),
            path => Some(printable(path.split(|byte| *byte == 0).next()?)),
        },
        _ => None,
    }
}

/// A string up to its end, or to the bound.
fn text(memory: &dyn TargetMemory, at: u64) -> Option<String> {
    let mut bytes = Vec::new();
    while bytes.len() < MAX_PATH {
        let here = at.checked_add(bytes.len() as u64)?;
        // The next page need not be there.
        let to_page = PAGE_BYTES as u64 - here % PAGE_BYTES as u64;
        let mut piece = vec![0; (MAX_PATH - bytes.len()).min(to_page as usize)];
        memory.read(here, &mut piece).ok()?;
        if let Some(end) = piece.iter().position(|byte| *byte == 0) {
            bytes.extend_from_slice(&piece[..end]);
            return Some(printable(&bytes));
        }
        bytes.append(&mut piece);
    }
    Some(format!("{}…", printable(&bytes)))
}

/// Text of the target's choice without control characters.
pub fn printable(bytes: &[u8]) -> String {
    let mut printable = String::new();
    for character in String::from_utf8_lossy(bytes).chars() {
        if character.is_control() {
            printable.extend(character.escape_default());
        } else {
            printable.push(character);
        }
    }
    printable
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::record::Registers;

    use super::{Arguments, CopiedStack, MAX_PATH, MAX_POLLED, Path, of_the_past, read};
    use crate::call::Timeout;
    use crate::process::{TargetMemory, Unreadable};

    const AT: u64 = 0x7f00_0000_0f00;

    /// Bytes from one address on, and nothing else.
    struct Bytes(Vec<u8>);

    impl TargetMemory for Bytes {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
            let unreadable = Unreadable { address, bytes: buffer.len() };
            let start = address.checked_sub(AT).ok_or(unreadable)? as usize;
            let end = start.checked_add(buffer.len()).ok_or(unreadable)?;
            buffer.copy_from_slice(self.0.get(start..end).ok_or(unreadable)?);
            Ok(())
        }
    }

    fn reading(bytes: &[u8], name: &str, args: [u64; 6]) -> Arguments {
        let mut bytes = bytes.to_vec();
        // Up to the end of a page, and some of the next.
        bytes.resize(0x400, 0);
        let registers = Registers { args, ..Registers::default() };
        read(&Bytes(bytes), name, &registers, 5_000_000_000)
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// `poll` tells its descriptors, without those that are passed over, and how long it waits.
    #[test]
    fn polls() {
        // fd 7 for reading, fd -1, fd 9.
        let array = words(&[7 | 1 << 32, 0xffff_ffff, 9 | 1 << 32]);
        let seen = reading(&array, "poll", [AT, 3, 0xffff_ffff, 0, 0, 0]);
        assert_eq!((seen.polled, seen.timeout), (vec![7, 9], Some(Timeout::None)));
        let seen = reading(&array, "poll", [AT, 1, 250, 0, 0, 0]);
        assert_eq!((seen.polled, seen.timeout), (vec![7], Some(Timeout::Ns(250_000_000))));
        let seen = reading(&words(&[2, 5]), "ppoll", [AT, 0, AT, 0, 0, 0]);
        assert_eq!(seen.timeout, Some(Timeout::Ns(2_000_000_005)));
        let seen = reading(&[], "ppoll", [AT, 0, 0, 0, 0, 0]);
        assert_eq!(seen.timeout, Some(Timeout::None));
        let seen = reading(&[1; 0x400], "poll", [AT, 1 << 40, 0, 0, 0, 0]);
        assert_eq!(seen.polled.len(), MAX_POLLED as usize);
        assert_eq!(seen.more_polled, (1 << 40) - MAX_POLLED);
    }

    /// Of a call that is over, the copy of the stack tells what it polled, and nothing else.
    #[test]
    fn polls_that_are_over() {
        const POLL: i64 = 7;
        let array = words(&[7 | 1 << 32, 9 | 1 << 32]);
        let stack = CopiedStack { from: AT, bytes: &array };
        let past = |at, name| {
            let args = [at, 2, 250, 0, 0, 0];
            let registers = Registers { syscall: POLL, args, ..Registers::default() };
            of_the_past(&stack, name, &registers, 0)
        };
        let polled = Arguments { polled: vec![7, 9], is_over: true, ..Arguments::default() };
        assert_eq!(past(AT, "poll"), Some(polled));
        assert_eq!(past(AT - 64, "poll"), None, "it lay elsewhere");
        assert_eq!(past(AT, "read"), None);
    }

    /// A futex call waits for a time, or until one by either clock; of one that is over, the stack tells.
    #[test]
    fn futexes() {
        const WAIT: u64 = 128;
        const WAIT_BITSET: u64 = 9 | 128;
        let futex = |operation, at| {
            reading(&words(&[7, 1]), "futex", [0x1000, operation, 2, at, 0, 0xffff_ffff])
        };
        assert_eq!(futex(WAIT, AT).timeout, Some(Timeout::Ns(7_000_000_001)));
        assert_eq!(futex(WAIT_BITSET, AT).timeout, Some(Timeout::Ns(2_000_000_001)));
        assert_eq!(futex(WAIT_BITSET, 0).timeout, Some(Timeout::None));
        let by_wall_clock = futex(WAIT_BITSET | 256, AT);
        assert_eq!(
            (by_wall_clock.timeout, by_wall_clock.wall_deadline_ns),
            (None, Some(7_000_000_001))
        );
        assert_eq!(futex(WAIT | 1, AT), Arguments::default(), "a call that wakes");
        let bytes = words(&[7, 1]);
        let stack = CopiedStack { from: AT, bytes: &bytes };
        let args = [0x1000, WAIT_BITSET, 2, AT, 0, 0];
        let registers = Registers { args, ..Registers::default() };
        let past = of_the_past(&stack, "futex", &registers, 6_000_000_000);
        assert_eq!(past.and_then(|past| past.timeout), Some(Timeout::Ns(1_000_000_001)));
    }

    /// `select` tells the members of all its sets once, up to the number that it was given.
    #[test]
    fn selects() {
        let sets = words(&[1 << 5 | 1 << 9, 0, 1 << 5, 1 << 6, 3, 7]);
        let args = [70, AT, AT + 16, 0, AT + 32, 0];
        let seen = reading(&sets, "select", args);
        assert_eq!((seen.polled, seen.timeout), (vec![5, 9], Some(Timeout::Ns(3_000_007_000))));
        let seen = reading(&sets, "pselect6", [71, AT, AT + 16, 0, 0, 0]);
        assert_eq!((seen.polled, seen.timeout), (vec![5, 9, 70], Some(Timeout::None)));
    }

    /// A sleep tells what it was asked for, also where that is a point in time of a clock we know.
    #[test]
    fn sleeps() {
        let asked = words(&[7, 1]);
        assert_eq!(reading(&asked, "nanosleep", [AT; 6]).asked_ns, Some(7_000_000_001));
        let clock = |clock, flags| reading(&asked, "clock_nanosleep", [clock, flags, AT, 0, 0, 0]);
        assert_eq!(clock(0, 0).asked_ns, Some(7_000_000_001));
        assert_eq!(clock(1, 1).asked_ns, Some(2_000_000_001));
        assert_eq!(clock(0, 1).asked_ns, None);
        let endless = words(&[u64::MAX, 0]);
        assert_eq!(reading(&endless, "nanosleep", [AT; 6]).asked_ns, None, "no number");
    }

    /// Addresses of all families come out as people write them.
    #[test]
    fn addresses() {
        let connect = |bytes: &[u8], length| {
            reading(bytes, "connect", [3, AT, length, 0, 0, 0]).address.unwrap_or_default()
        };
        assert_eq!(connect(&[2, 0, 1, 187, 10, 9, 8, 7], 16), "10.9.8.7:443");
        let mut six = vec![10, 0, 0, 80, 0, 0, 0, 0];
        six.extend([0; 15]);
        six.push(1);
        assert_eq!(connect(&six, 28), "[::1]:80");
        assert_eq!(connect(b"\x01\0/run/x.sock\0junk", 110), "/run/x.sock");
        assert_eq!(connect(b"\x01\0\0bus", 6), "@bus");
        assert_eq!(connect(&[16, 0, 1, 2], 12), "", "netlink");
        assert_eq!(connect(&[2, 0], 2), "", "cut short");
    }

    /// A path is read up to its end, across pages, and never past the bound; what it is relative to is told.
    #[test]
    fn paths() {
        let cwd = (-100_i32) as u32;
        let at = |bytes: &[u8], name, args| reading(bytes, name, args).path;
        let path = |path: &str, below| Some(Path { path: path.to_owned(), below });
        let seen = at(b"/etc/x\0/", "openat", [cwd.into(), AT, 0, 0, 0, 0]);
        assert_eq!(seen, path("/etc/x", None));
        assert_eq!(at(b"x\ny\0", "newfstatat", [9, AT, 0, 0, 0, 0]), path("x\\ny", Some(9)));
        assert_eq!(at(b"a\0", "stat", [AT, 0, 0, 0, 0, 0]), path("a", None));
        let long = at(&[b'a'; 0x400], "open", [AT, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!(long.path.chars().count(), MAX_PATH + 1);
        assert_eq!(at(b"a", "open", [16, 0, 0, 0, 0, 0]), None, "unreadable");
    }
}
