//! Any process on the machine, in the few words that a report has for one that took the target's CPU.

use super::cgroup;
use super::target::{Stat, text};
use crate::urgency::before_lock;

/// Characters of a command line that are told: it is to be recognised, not run again.
const MAX_COMMAND: usize = 256;

/// A process, as far as /proc still tells. All of it is that process's own word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OtherProcess {
    /// Its main thread's name.
    pub name: Option<String>,
    /// Kernel threads have none.
    pub command: Option<String>,
    pub container_id: Option<String>,
}

impl OtherProcess {
    /// The process of a thread, if there still is a thread of that number and name: numbers are given
    /// out again.
    pub fn of_thread(pid: u32, tid: u32, name: &str) -> Option<Self> {
        if thread_name(pid, tid)? != name {
            return None;
        }
        before_lock();
        let command = text(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = words(&command);
        Some(Self {
            name: thread_name(pid, pid),
            command: (!command.is_empty()).then_some(command),
            container_id: text(format!("/proc/{pid}/cgroup"))
                .and_then(|text| cgroup::container_id(&text)),
        })
    }
}

/// What a thread is called now.
pub fn thread_name(pid: u32, tid: u32) -> Option<String> {
    let text = text(format!("/proc/{pid}/task/{tid}/comm"))?;
    Some(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}

/// The CPU that a thread runs on or waits for; None where it does neither.
pub fn ready_on(pid: u32, tid: u32) -> Option<u32> {
    Stat::parse(&text(format!("/proc/{pid}/task/{tid}/stat"))?)?.ready_on()
}

/// The beginning of a command line, arguments separated by spaces.
fn words(command: &str) -> String {
    let mut words = command.trim_end_matches('\0').replace('\0', " ");
    if let Some((end, _)) = words.char_indices().nth(MAX_COMMAND) {
        words.truncate(end);
        words.push('…');
    }
    words
}

#[cfg(test)]
mod tests {
    use super::{MAX_COMMAND, OtherProcess, ready_on, thread_name, words};

    /// This very process is known by its own number and name, and by no other.
    #[test]
    fn who_is_there() {
        let pid = std::process::id();
        let name = thread_name(pid, pid).unwrap();
        let known = OtherProcess::of_thread(pid, pid, &name).unwrap();
        assert_eq!(known.name.as_ref(), Some(&name));
        assert!(known.command.is_some());
        assert_eq!(OtherProcess::of_thread(pid, pid, "somebody else"), None);
        assert_eq!(OtherProcess::of_thread(0x7fff_ffff, 0x7fff_ffff, &name), None);
    }

    /// Whoever asks is on a CPU itself, but a thread that is not there is on none.
    #[test]
    fn who_is_on_a_cpu() {
        let pid = std::process::id();
        let tid = u32::try_from(rustix::thread::gettid().as_raw_pid()).unwrap();
        assert!(ready_on(pid, tid).is_some());
        assert_eq!(ready_on(pid, 0x7fff_ffff), None);
    }

    /// Command lines are cut, and between characters.
    #[test]
    fn long_commands() {
        assert_eq!(words("python3\0-m\0uvicorn\0"), "python3 -m uvicorn");
        let cut = words(&"ä".repeat(MAX_COMMAND + 9));
        assert_eq!(cut.chars().count(), MAX_COMMAND + 1);
        assert!(cut.ends_with('…'));
    }
}
