//! A system call's number and arguments to its name, and to what it works on (x86-64).

use profiler_ebpf::record::Registers;
use profiler_ebpf::turn::FUTEX;
use syscalls::Sysno;

/// The name of a system call; `None` for numbers that have none.
pub fn name(number: i64) -> Option<&'static str> {
    Sysno::new(usize::try_from(number).ok()?).map(|call| call.name())
}

/// What a system call works on, as far as its arguments say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// A file descriptor.
    Descriptor(u32),
    /// A child process; `None` for any child.
    Child(Option<u32>),
    /// Its arguments name it by a pointer.
    InMemory,
    /// It works on nothing that a report could name.
    Nothing,
}

/// `waitid`'s first argument: what its second stands for (include/uapi/linux/wait.h).
mod wait_by {
    pub const ANY: u64 = 0;
    pub const PID: u64 = 1;
    pub const PIDFD: u64 = 3;
}

/// What the system call that these registers are inside works on.
pub fn operand(registers: &Registers) -> Operand {
    let [first, second, ..] = registers.args;
    match name(registers.syscall).unwrap_or_default() {
        "read" | "write" | "readv" | "writev" | "pread64" | "pwrite64" | "preadv" | "pwritev"
        | "preadv2" | "pwritev2" | "sendto" | "recvfrom" | "sendmsg" | "recvmsg" | "sendmmsg"
        | "recvmmsg" | "connect" | "accept" | "accept4" | "shutdown" | "close" | "ioctl"
        | "fcntl" | "flock" | "fsync" | "fdatasync" | "syncfs" | "sync_file_range"
        | "ftruncate" | "fallocate" | "fadvise64" | "readahead" | "lseek" | "fstat"
        | "getdents" | "getdents64" | "sendfile" | "splice" | "vmsplice" | "tee"
        | "copy_file_range" | "epoll_wait" | "epoll_pwait" | "epoll_pwait2" | "io_uring_enter" => {
            descriptor(first)
        }
        // Only the child's number fits 32 bits; the kernel takes the low half as signed.
        "wait4" => Operand::Child(u32::try_from(first as i32).ok().filter(|pid| *pid > 0)),
        "waitid" => match first {
            wait_by::ANY => Operand::Child(None),
            wait_by::PID => Operand::Child(Some(second as u32)),
            wait_by::PIDFD => descriptor(second),
            _ => Operand::Nothing,
        },
        "open" | "openat" | "openat2" | "creat" | "stat" | "lstat" | "newfstatat" | "statx"
        | "access" | "faccessat" | "faccessat2" | "unlink" | "unlinkat" | "rename" | "renameat"
        | "renameat2" | "mkdir" | "mkdirat" | "rmdir" | "link" | "linkat" | "symlink"
        | "symlinkat" | "readlink" | "readlinkat" | "truncate" | "execve" | "execveat"
        | "statfs" | "mount" | "umount2" | "poll" | "ppoll" | "select" | "pselect6" => {
            Operand::InMemory
        }
        _ => Operand::Nothing,
    }
}

/// Descriptors are the low 32 bits, and negative ones (`AT_FDCWD`, an error passed on) are none.
fn descriptor(argument: u64) -> Operand {
    u32::try_from(argument as i32).map_or(Operand::Nothing, Operand::Descriptor)
}

/// A wait for nothing but time: no descriptor could have ended it earlier.
pub fn is_sleep(registers: &Registers) -> bool {
    let [first, second, third, fourth, ..] = registers.args;
    match name(registers.syscall).unwrap_or_default() {
        "nanosleep" | "clock_nanosleep" => true,
        "select" | "pselect6" => first == 0 || (second, third, fourth) == (0, 0, 0),
        "poll" | "ppoll" => second == 0,
        _ => false,
    }
}

/// A wait for a file lock.
pub fn is_file_lock(registers: &Registers) -> bool {
    // `F_SETLKW` and `F_OFD_SETLKW` (include/uapi/asm-generic/fcntl.h).
    const WAITING_COMMANDS: [u64; 2] = [7, 38];
    let [_, command, ..] = registers.args;
    match name(registers.syscall).unwrap_or_default() {
        "flock" => true,
        "fcntl" => WAITING_COMMANDS.contains(&command),
        _ => false,
    }
}

/// A call that moves bytes or connections through its descriptor, as long as that takes.
pub fn transfers(registers: &Registers) -> bool {
    matches!(
        name(registers.syscall).unwrap_or_default(),
        "read" | "readv" | "recvfrom" | "recvmsg" | "accept" | "accept4"
    ) || sends(registers)
}

/// One that sends, or connects: of a socket, `SO_SNDTIMEO` holds for it.
pub fn sends(registers: &Registers) -> bool {
    matches!(
        name(registers.syscall).unwrap_or_default(),
        "write" | "writev" | "sendto" | "sendmsg" | "sendmmsg" | "sendfile" | "connect"
    )
}

/// A wait for some of several descriptors.
pub fn is_poll(registers: &Registers) -> bool {
    matches!(name(registers.syscall), Some("poll" | "ppoll" | "select" | "pselect6"))
}

/// Whether a thread is in this very call, by the text of its /proc/PID/task/TID/syscall: the number,
/// the arguments, the stack pointer and the instruction pointer.
pub fn is_inside(text: &str, registers: &Registers) -> bool {
    let mut fields = text.split_whitespace();
    let number = fields.next().and_then(|number| number.parse().ok());
    let hexadecimal = |field: &str| u64::from_str_radix(field.strip_prefix("0x")?, 16).ok();
    let values: Option<Vec<u64>> = fields.map(hexadecimal).collect();
    let expected = registers.args.into_iter().chain([registers.sp, registers.ip]);
    (number == Some(registers.syscall) || number == Some(RESTART))
        && values.is_some_and(|values| values.into_iter().eq(expected))
}

/// `restart_syscall`: what a signal or a stop interrupted goes on.
const RESTART: i64 = 219;

/// A line of a kernel stack that is there whatever the system call.
fn is_entry(line: &str) -> bool {
    const ENTRIES: [&str; 4] =
        ["do_syscall_64+", "entry_SYSCALL_64", "restart_syscall+", "x64_sys_call+"];
    ENTRIES.iter().any(|entry| line.contains(entry))
}

/// The call that `restart_syscall` goes on with, by the kernel's own function for each. Its arguments
/// are the first call's.
pub fn restarted(registers: &Registers, kernel_stack: &str) -> i64 {
    const POLL: i64 = 7;
    const NANOSLEEP: i64 = 35;
    const CLOCK_NANOSLEEP: i64 = 230;
    /// Clocks are small numbers, and a pointer is none.
    const MAX_CLOCK: u64 = 16;
    if registers.syscall != RESTART {
        return registers.syscall;
    }
    let [first, ..] = registers.args;
    if kernel_stack.contains("do_restart_poll") {
        POLL
    } else if kernel_stack.contains("futex_wait_restart") {
        FUTEX
    } else if !kernel_stack.is_empty() && kernel_stack.lines().all(is_entry) {
        // The scheduler's functions are left out of /proc/PID/stack, and a sleep has no others.
        if first < MAX_CLOCK { CLOCK_NANOSLEEP } else { NANOSLEEP }
    } else {
        RESTART
    }
}

/// A wait for another thread's word.
pub fn is_futex(registers: &Registers) -> bool {
    matches!(
        name(registers.syscall),
        Some("futex" | "futex_wait" | "futex_waitv" | "futex_wake" | "futex_requeue")
    )
}

/// A call that does nothing but wait until a disk has what was written.
pub fn is_write_back(registers: &Registers) -> bool {
    matches!(
        name(registers.syscall),
        Some("fsync" | "fdatasync" | "sync" | "syncfs" | "msync" | "sync_file_range")
    )
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::record::Registers;

    use super::{Operand, is_futex, is_inside, is_sleep, name, operand, restarted};

    fn inside(syscall: i64, args: [u64; 6]) -> Registers {
        Registers { syscall, args, ..Registers::default() }
    }

    /// Names stand at their numbers, on both sides of the hole, and nowhere else.
    #[test]
    fn names_by_number() {
        let table = [
            (-1, None),
            (0, Some("read")),
            (1, Some("write")),
            (7, Some("poll")),
            (45, Some("recvfrom")),
            (156, Some("_sysctl")),
            (202, Some("futex")),
            (219, Some("restart_syscall")),
            (230, Some("clock_nanosleep")),
            (262, Some("newfstatat")),
            (270, Some("pselect6")),
            (334, Some("rseq")),
            (336, Some("uprobe")),
            (337, None),
            (423, None),
            (424, Some("pidfd_send_signal")),
            (441, Some("epoll_pwait2")),
            (462, Some("mseal")),
            (469, Some("file_setattr")),
            (470, None),
            (i64::MAX, None),
        ];
        for (number, expected) in table {
            assert_eq!(name(number), expected, "{number}");
        }
    }

    /// What a call works on comes from the right argument, and from none that is not one.
    #[test]
    fn operands() {
        let table = [
            ("recvfrom(7, …)", inside(45, [7, 1, 2, 3, 4, 5]), Operand::Descriptor(7)),
            ("read(-1, …)", inside(0, [u64::MAX, 0, 0, 0, 0, 0]), Operand::Nothing),
            (
                "fd in the low half",
                inside(0, [0xffff_0000_0000_0007, 0, 0, 0, 0, 0]),
                Operand::Descriptor(7),
            ),
            ("wait4(4711)", inside(61, [4711, 0, 0, 0, 0, 0]), Operand::Child(Some(4711))),
            ("wait4(-1)", inside(61, [u64::MAX, 0, 0, 0, 0, 0]), Operand::Child(None)),
            ("waitid(P_PID, 4711)", inside(247, [1, 4711, 0, 0, 0, 0]), Operand::Child(Some(4711))),
            ("waitid(P_PIDFD, 9)", inside(247, [3, 9, 0, 0, 0, 0]), Operand::Descriptor(9)),
            ("openat(AT_FDCWD, …)", inside(257, [u64::MAX - 99, 1, 0, 0, 0, 0]), Operand::InMemory),
            ("getppid()", inside(110, [7, 0, 0, 0, 0, 0]), Operand::Nothing),
            ("none", inside(-1, [7, 0, 0, 0, 0, 0]), Operand::Nothing),
        ];
        for (what, registers, expected) in table {
            assert_eq!(operand(&registers), expected, "{what}");
        }
    }

    /// `select` and `poll` are sleeps only without descriptors.
    #[test]
    fn sleeps() {
        assert!(is_sleep(&inside(35, [0x7f00, 0, 0, 0, 0, 0])));
        assert!(is_sleep(&inside(230, [1, 1, 0x7f00, 0, 0, 0])));
        assert!(is_sleep(&inside(23, [0, 0, 0, 0, 0x7f00, 0])));
        assert!(is_sleep(&inside(270, [1024, 0, 0, 0, 0x7f00, 0])), "no set is given");
        assert!(!is_sleep(&inside(270, [8, 0x7f00, 0, 0, 0, 0])));
        assert!(is_sleep(&inside(7, [0, 0, 100, 0, 0, 0])));
        assert!(!is_sleep(&inside(7, [0x7f00, 1, 100, 0, 0, 0])));
        assert!(!is_sleep(&inside(-1, [0; 6])));
        assert!(is_futex(&inside(202, [0; 6])) && !is_futex(&inside(0, [0; 6])));
    }

    /// A thread is in the same call only if everything that is told of it is equal.
    #[test]
    fn the_same_call() {
        let registers = Registers { sp: 0x7ffe, ip: 0x7f12, ..inside(45, [7, 0x10, 64, 0, 0, 0]) };
        let text = "45 0x7 0x10 0x40 0x0 0x0 0x0 0x7ffe 0x7f12\n";
        assert!(is_inside(text, &registers));
        assert!(is_inside(&text.replace("45 ", "219 "), &registers), "it was interrupted");
        for other in
            [text.replace("0x7ffe", "0x7ffd"), text.replace("45 ", "0 "), text[..20].into()]
        {
            assert!(!is_inside(&other, &registers), "{other}");
        }
        assert!(!is_inside("running", &registers) && !is_inside("", &registers));
    }

    /// What goes on after an interruption is told by the kernel's functions, with the first arguments.
    #[test]
    fn restarts() {
        let restart = |first| inside(219, [first, 0, 0, 0, 0, 0]);
        assert_eq!(restarted(&restart(0x7000), "[<0>] do_restart_poll+0x5\n"), 7);
        let only_entry =
            "[<0>] do_syscall_64+0x71/0x280\n[<0>] entry_SYSCALL_64_after_hwframe+0x76/0x7e\n";
        assert_eq!(restarted(&restart(0x7000), only_entry), 35);
        assert_eq!(restarted(&restart(1), only_entry), 230);
        assert_eq!(restarted(&restart(1), "[<0>] alarm_timer_nsleep_restart+0x5\n"), 219);
        assert_eq!(restarted(&restart(1), "futex_wait_restart"), 202);
        assert_eq!(restarted(&restart(1), ""), 219);
        assert_eq!(restarted(&inside(45, [0; 6]), "do_restart_poll"), 45);
    }
}
