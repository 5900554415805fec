//! Control groups that tests put targets into, in whichever version of the hierarchy the machine has.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::clock::patience;

const MOUNTED: &str = "/sys/fs/cgroup";

/// The controllers that tests use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    Cpu,
    Memory,
    Freezer,
}

/// A group of its own, below the root. Goes away with its owner, once its processes have.
#[derive(Debug)]
pub struct Group {
    folder: PathBuf,
    is_v2: bool,
}

impl Group {
    pub fn new(controller: Controller) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let is_v2 = Path::new(MOUNTED).join("cgroup.controllers").exists();
        let name = match controller {
            Controller::Cpu => "cpu",
            Controller::Memory => "memory",
            Controller::Freezer => "freezer",
        };
        let parent = if is_v2 { MOUNTED.into() } else { Path::new(MOUNTED).join(name) };
        // Version 2 can freeze everywhere; the others have to be handed down.
        if is_v2 && controller != Controller::Freezer {
            put(&parent.join("cgroup.subtree_control"), &format!("+{name}"))?;
        }
        let folder = parent.join(format!("stalltrace-test-{}-{count}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("no group {}", folder.display()))?;
        Ok(Self { folder, is_v2 })
    }

    /// The name by which the kernel knows it.
    pub fn name(&self) -> String {
        format!("/{}", self.folder.file_name().unwrap_or_default().to_string_lossy())
    }

    /// Moves a process into it.
    pub fn add(&self, pid: u32) -> Result<()> {
        put(&self.folder.join("cgroup.procs"), &pid.to_string())
    }

    /// So much CPU time in each tenth of a second.
    pub fn limit_cpu(&self, quota_us: u64) -> Result<()> {
        if self.is_v2 {
            return put(&self.folder.join("cpu.max"), &format!("{quota_us} 100000"));
        }
        put(&self.folder.join("cpu.cfs_period_us"), "100000")?;
        put(&self.folder.join("cpu.cfs_quota_us"), &quota_us.to_string())
    }

    /// For how long it was out of CPU time so far, summed over the CPUs.
    pub fn throttled_ns(&self) -> Result<u64> {
        let stat = self.read("cpu.stat")?;
        Ok(if self.is_v2 {
            number(&stat, "throttled_usec")? * 1000
        } else {
            number(&stat, "throttled_time")?
        })
    }

    pub fn limit_memory(&self, bytes: u64) -> Result<()> {
        let name = if self.is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        put(&self.folder.join(name), &bytes.to_string())
    }

    /// How often somebody in it had to free memory because of the limit.
    pub fn times_at_limit(&self) -> Result<u64> {
        if self.is_v2 {
            return number(&self.read("memory.events")?, "max");
        }
        Ok(self.read("memory.failcnt")?.trim().parse()?)
    }

    /// Returns once everybody in it is frozen.
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen(true)
    }

    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, wanted: bool) -> Result<()> {
        let (file, value) = match (self.is_v2, wanted) {
            (true, true) => ("cgroup.freeze", "1"),
            (true, false) => ("cgroup.freeze", "0"),
            (false, true) => ("freezer.state", "FROZEN"),
            (false, false) => ("freezer.state", "THAWED"),
        };
        put(&self.folder.join(file), value)?;
        let deadline = Instant::now() + patience(5);
        while self.is_frozen()? != wanted {
            if Instant::now() > deadline {
                bail!("{} does not become {value}", self.folder.display());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn is_frozen(&self) -> Result<bool> {
        if self.is_v2 {
            return Ok(number(&self.read("cgroup.events")?, "frozen")? == 1);
        }
        Ok(self.read("freezer.state")?.trim() == "FROZEN")
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.folder.join(name);
        fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))
    }

    fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + patience(5);
        loop {
            match fs::remove_dir(&self.folder) {
                Ok(()) => return Ok(()),
                // Its processes are ending.
                Err(error)
                    if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error).context("the group stays"),
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Where a test failed in between, nobody could end while frozen; other groups have no such state.
        if self.is_frozen().unwrap_or_default() {
            let _ = self.thaw();
        }
        if let Err(error) = self.remove() {
            eprintln!("{}: {error:#}", self.folder.display());
        }
    }
}

fn put(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
}

/// The number behind a name in a file of such lines.
fn number(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line.with_context(|| format!("no {name} in {text:?}"))?.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::number;

    /// A name is not found in a longer one.
    #[test]
    fn numbers_by_name() {
        let text = "nr_throttled 21\nthrottled_time 1614112345\n";
        assert_eq!(number(text, "throttled_time").unwrap(), 1_614_112_345);
        assert!(number(text, "throttled").is_err());
    }
}
