//! One thread of a process: whether it is there, and which system call it is in.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use profiler_ebpf::record::Registers;

use super::listing::Unlisted;
use crate::syscall::is_inside;

/// Whether a thread of the process has not exited.
pub fn is_alive(pid: u32, tid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/task/{tid}")).exists()
}

/// Whether a thread of the process is in the very call of these registers: the number, the arguments and the place are
/// equal.
pub fn is_in_call(pid: u32, tid: u32, registers: &Registers) -> Result<bool, Unlisted> {
    let path = format!("/proc/{pid}/task/{tid}/syscall");
    let mut text = String::with_capacity(256);
    match File::open(&path).and_then(|mut file| file.read_to_string(&mut text)) {
        Ok(_) => Ok(is_inside(&text, registers)),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Err(Unlisted::new(&path, error))
        }
        // The thread is gone.
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::record::Registers;

    use super::{is_alive, is_in_call};

    /// A thread that runs is in no call, and one that is gone is nowhere.
    #[test]
    fn here_and_gone() {
        let pid = std::process::id();
        assert!(is_alive(pid, pid) && !is_alive(pid, 0x7fff_ffff));
        assert_eq!(is_in_call(pid, 0x7fff_ffff, &Registers::default()), Ok(false));
        let own = rustix::thread::gettid().as_raw_pid() as u32;
        assert_eq!(is_in_call(pid, own, &Registers::default()), Ok(false));
    }
}
