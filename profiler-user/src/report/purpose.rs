//! The frames around a blocked system call to what it is for, where the call alone does not tell.

use profiler_ebpf::record::Registers;

use super::syscalls::{self, Operand, operand};
use crate::frame::Frame;

pub use super::schema::call::Purpose;

/// The C library's functions that look up host names.
const RESOLVERS: [&str; 9] = [
    "getaddrinfo",
    "getnameinfo",
    "gethostbyname",
    "gethostbyname_r",
    "gethostbyname2",
    "gethostbyname2_r",
    "gethostbyaddr",
    "gethostbyaddr_r",
    "__res_context_send",
];

/// SQLite's functions that wait for a lock. `sqlite3_sleep` waits for nobody.
const SQLITE: [&str; 5] =
    ["sqlite3_step", "sqlite3_exec", "sqlite3_prepare", "sqlite3_close", "sqlite3_wal_checkpoint"];

/// What the call is for.
pub fn of(registers: &Registers, frames: &[Frame]) -> Option<Purpose> {
    if syscalls::is_futex(registers) {
        return None;
    }
    let runs = |known: &[&str], is_known: fn(&str, &str) -> bool| {
        let name = |frame: &Frame| {
            let function = frame.function.as_deref().unwrap_or_default();
            known.iter().any(|known| is_known(function, known))
        };
        frames.iter().any(name)
    };
    let is_sleep = syscalls::is_sleep(registers);
    if (is_sleep || syscalls::is_file_lock(registers))
        && runs(&SQLITE, |it, known| it.starts_with(known))
    {
        Some(Purpose::SqliteBusy)
    } else if syscalls::is_file_lock(registers) {
        Some(Purpose::FileLock)
    } else if matches!(operand(registers), Operand::Child(_)) {
        Some(Purpose::ChildProcess)
    } else if !is_sleep && runs(&RESOLVERS, |it, known| it == known) {
        Some(Purpose::NameResolution)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::record::Registers;

    use super::{Purpose, of};
    use crate::report::sample::native;

    fn purpose(syscall: i64, args: [u64; 6], function: &str) -> Option<Purpose> {
        let registers = Registers { syscall, args, ..Registers::default() };
        of(&registers, &[native("__poll", "/lib/libc.so.6"), native(function, "/lib/x.so")])
    }

    /// The call and the functions that made it tell together what it is for.
    #[test]
    fn purposes() {
        let (sleep, poll, fcntl) = (230, 7, 72);
        let polling = [0x7000, 1, 5000, 0, 0, 0];
        assert_eq!(purpose(poll, polling, "getaddrinfo"), Some(Purpose::NameResolution));
        assert_eq!(purpose(poll, polling, "handle"), None);
        assert_eq!(purpose(sleep, [0; 6], "sqlite3_step"), Some(Purpose::SqliteBusy));
        assert_eq!(purpose(sleep, [0; 6], "sqlite3_sleep"), None, "it was asked to sleep");
        assert_eq!(purpose(fcntl, [3, 7, 0, 0, 0, 0], "sqlite3_step"), Some(Purpose::SqliteBusy));
        assert_eq!(purpose(fcntl, [3, 7, 0, 0, 0, 0], "save"), Some(Purpose::FileLock));
        assert_eq!(purpose(fcntl, [3, 6, 0, 0, 0, 0], "save"), None, "F_SETLK does not wait");
        assert_eq!(purpose(73, [3, 2, 0, 0, 0, 0], "save"), Some(Purpose::FileLock));
        assert_eq!(purpose(61, [0; 6], "run"), Some(Purpose::ChildProcess));
        assert_eq!(purpose(202, [0; 6], "getaddrinfo"), None, "a lock of the resolver's");
    }
}
