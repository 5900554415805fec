//! `/proc/locks` to whoever keeps a file lock from the target.

use std::fs;
use std::io::Read;

/// Bytes of /proc/locks read at most: about 50,000 locks.
const MAX_LOCKS: u64 = 4 * 1024 * 1024;

/// `PENDING_BYTE` and the bytes behind it by which SQLite locks a database, and those of the index of
/// a write-ahead log (sqlite3.c, `PENDING_BYTE`, `WALINDEX_LOCK_OFFSET`).
const SQLITE_DATABASE: std::ops::Range<u64> = 0x4000_0000..0x4000_0200;
const SQLITE_INDEX: std::ops::Range<u64> = 120..128;

/// One lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLock {
    /// The same for a lock and those that wait for it.
    number: u64,
    is_waiting: bool,
    is_exclusive: bool,
    is_posix: bool,
    /// `None` for locks of an open file (`OFDLCK`), which are no process's.
    pub pid: Option<u32>,
    pub inode: u64,
    start: u64,
}

/// The text of /proc/locks, as the daemon's PID namespace sees it.
pub fn table() -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open("/proc/locks").ok()?.take(MAX_LOCKS).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn locks(table: &str) -> impl Iterator<Item = FileLock> {
    table.lines().filter_map(parse)
}

/// `1: -> POSIX  ADVISORY  WRITE 4711 08:01:131 0 EOF`; the arrow is there for those that wait.
fn parse(line: &str) -> Option<FileLock> {
    let mut fields = line.split_whitespace();
    let number = fields.next()?.strip_suffix(':')?.parse().ok()?;
    let mut kind = fields.next()?;
    let is_waiting = kind == "->";
    if is_waiting {
        kind = fields.next()?;
    }
    let is_exclusive = fields.nth(1)? == "WRITE";
    let pid = fields.next()?.parse().ok();
    let inode = fields.next()?.rsplit(':').next()?.parse().ok()?;
    let start = fields.next()?.parse().ok()?;
    let is_posix = kind == "POSIX";
    Some(FileLock { number, is_waiting, is_exclusive, is_posix, pid, inode, start })
}

/// The lock that a process waits for on this file, as its holder has it.
pub fn blocker(table: &str, pid: u32, inode: u64) -> Option<FileLock> {
    let is_ours = |lock: &FileLock| lock.is_waiting && lock.pid == Some(pid) && lock.inode == inode;
    let waiting = locks(table).find(is_ours)?;
    locks(table).find(|lock| !lock.is_waiting && lock.number == waiting.number)
}

/// Who has locked which of these inodes as SQLite does, in a way that can keep `waiter` out.
pub fn sqlite(table: &str, inodes: &[u64], waiter: u32) -> Vec<FileLock> {
    let is_sqlite = |lock: &FileLock| {
        let range = SQLITE_DATABASE.contains(&lock.start) || SQLITE_INDEX.contains(&lock.start);
        range && lock.is_posix && !lock.is_waiting && inodes.contains(&lock.inode)
    };
    let locks: Vec<FileLock> = locks(table).filter(is_sqlite).collect();
    let others = |lock: &&FileLock| lock.pid.is_some_and(|pid| pid != waiter);
    let exclusive = |lock: &&FileLock| lock.is_exclusive;
    // A writer keeps everybody out; a reader only keeps a writer from finishing.
    let writers: Vec<FileLock> = locks.iter().filter(others).filter(exclusive).cloned().collect();
    if !writers.is_empty() {
        return writers;
    }
    let readers: Vec<FileLock> = locks.iter().filter(others).cloned().collect();
    if !readers.is_empty() {
        return readers;
    }
    // The same process keeps itself out by another connection.
    locks.into_iter().filter(|lock| lock.is_exclusive).collect()
}

#[cfg(test)]
mod tests {
    use super::{blocker, parse, sqlite};

    const LOCKS: &str = "\
1: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF
1: -> FLOCK  ADVISORY  WRITE 4242 08:01:131 0 EOF
2: OFDLCK ADVISORY  WRITE -1 08:01:132 0 EOF
2:  -> POSIX  ADVISORY  WRITE 4242 08:01:132 0 EOF
3: POSIX  ADVISORY  WRITE 77 00:1f:500 1073741825 1073741825
4: POSIX  ADVISORY  READ  4242 00:1f:500 1073741826 1073742335
5: POSIX  ADVISORY  READ  78 00:1f:501 1073741826 1073742335
6: POSIX  ADVISORY  WRITE 4242 00:1f:502 120 120
7: POSIX  ADVISORY  WRITE 79 00:1f:503 0 EOF
";

    /// Whoever stands above the one that waits has what it waits for.
    #[test]
    fn blockers() {
        let lock = |inode| blocker(LOCKS, 4242, inode);
        assert_eq!(lock(131).and_then(|lock| lock.pid), Some(4711));
        assert_eq!(lock(132).map(|lock| lock.pid), Some(None), "an open file's own lock");
        assert_eq!(lock(500), None, "it does not wait there");
        assert_eq!(blocker(LOCKS, 4711, 131), None);
        assert_eq!(parse("x: FLOCK"), None);
    }

    /// Locks on SQLite's bytes only, writers before readers, others before the process itself.
    #[test]
    fn sqlite_locks() {
        let pids = |inodes: &[u64]| -> Vec<_> {
            sqlite(LOCKS, inodes, 4242).into_iter().filter_map(|lock| lock.pid).collect()
        };
        assert_eq!(pids(&[500, 501, 503]), [77]);
        assert_eq!(pids(&[501]), [78]);
        assert_eq!(pids(&[502]), [4242]);
        assert!(pids(&[503]).is_empty());
    }
}
