//! Control groups that tests put targets into, in whichever version of the hierarchy the machine has.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount, umount};

use crate::clock::patience;

const MOUNTED: &str = "/sys/fs/cgroup";

/// The controllers that tests use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    Cpu,
    Memory,
    Freezer,
}

/// The controllers that a group of the second version hands down to groups in it.
const HANDED_DOWN: &str = "+cpu +memory";

/// A group of its own, below the root or in another. Goes away with its owner, once its processes have.
#[derive(Debug)]
pub struct Group {
    folder: PathBuf,
    /// Where its hierarchy is mounted.
    root: PathBuf,
    is_v2: bool,
}

impl Group {
    pub fn new(controller: Controller) -> Result<Self> {
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
        Self::made_in(&parent, parent.clone(), is_v2)
    }

    /// One of the second version with all that `inside` hands down. None where the machine has the
    /// controllers in the first.
    pub fn unified() -> Result<Option<Self>> {
        let root = Path::new(MOUNTED);
        let Ok(controllers) = fs::read_to_string(root.join("cgroup.controllers")) else {
            return Ok(None);
        };
        let has = |wanted: &str| controllers.split_whitespace().any(|name| name == wanted);
        if !(has("cpu") && has("memory")) {
            return Ok(None);
        }
        put(&root.join("cgroup.subtree_control"), HANDED_DOWN)?;
        Self::made_in(root, root.into(), true).map(Some)
    }

    /// A group in one of `unified`. That one can have no processes of its own from then on.
    pub fn inside(&self) -> Result<Self> {
        put(&self.folder.join("cgroup.subtree_control"), HANDED_DOWN)?;
        Self::made_in(&self.folder, self.root.clone(), self.is_v2)
    }

    /// One of the second version without controllers, which can freeze all the same, in a hierarchy
    /// that is mounted here.
    pub fn of_hierarchy(mounted: &Hierarchy) -> Result<Self> {
        Self::made_in(&mounted.0, mounted.0.clone(), true)
    }

    fn made_in(parent: &Path, root: PathBuf, is_v2: bool) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = parent.join(format!("stalltrace-test-{}-{count}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("no group {}", folder.display()))?;
        Ok(Self { folder, root, is_v2 })
    }

    /// The name by which the kernel knows it.
    pub fn name(&self) -> String {
        let below = self.folder.strip_prefix(&self.root).unwrap_or(&self.folder);
        format!("/{}", below.display())
    }

    /// Moves a process into it.
    pub fn add(&self, pid: u32) -> Result<()> {
        put(&self.folder.join("cgroup.procs"), &pid.to_string())
    }

    /// The same command, in it from its beginning: memory stays with the group in which it was first used.
    pub fn command(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.folder.join("cgroup.procs"));
        inside.arg(command.get_program()).args(command.get_args());
        inside
    }

    /// So much CPU time in each tenth of a second.
    pub fn limit_cpu(&self, quota_us: u64) -> Result<()> {
        if self.is_v2 {
            return put(&self.folder.join("cpu.max"), &format!("{quota_us} 100000"));
        }
        put(&self.folder.join("cpu.cfs_period_us"), "100000")?;
        put(&self.folder.join("cpu.cfs_quota_us"), &quota_us.to_string())
    }

    /// The second version only.
    pub fn lift_cpu_limit(&self) -> Result<()> {
        put(&self.folder.join("cpu.max"), "max")
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

    /// From so much on its processes are slowed down; None: never. The second version only.
    pub fn slow_down_from(&self, bytes: Option<u64>) -> Result<()> {
        let limit = bytes.map_or("max".to_owned(), |bytes| bytes.to_string());
        put(&self.folder.join("memory.high"), &limit)
    }

    /// Frees so much of its memory, or as much as can be. The second version only, since Linux 5.19.
    pub fn reclaim(&self, bytes: u64) -> Result<()> {
        // Where less was freed, the kernel says EAGAIN; how much it was is the test's business.
        match put(&self.folder.join("memory.reclaim"), &bytes.to_string()) {
            Err(error) if is_busy(&error) => Ok(()),
            other => other,
        }
    }

    /// What it uses, bytes. The second version only.
    pub fn memory(&self) -> Result<u64> {
        Ok(self.read("memory.current")?.trim().parse()?)
    }

    /// What of it is in swap, bytes. The second version only.
    pub fn swapped(&self) -> Result<u64> {
        Ok(self.read("memory.swap.current")?.trim().parse()?)
    }

    /// For how long somebody in it waited for memory so far. The second version only.
    pub fn memory_pressure_ns(&self) -> Result<u64> {
        let pressure = self.read("memory.pressure")?;
        let total = pressure.lines().next().and_then(|some| some.rsplit_once("total="));
        let (_, total_us) = total.with_context(|| format!("no total in {pressure:?}"))?;
        Ok(total_us.parse::<u64>()? * 1000)
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
        let deadline = Instant::now() + patience(30);
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
        let deadline = Instant::now() + patience(30);
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

fn is_busy(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// A mount of the second version of the hierarchy, at a place of its own.
#[derive(Debug)]
pub struct Hierarchy(PathBuf);

impl Hierarchy {
    /// Mounts it in a folder. Any number of mounts are of the same hierarchy.
    pub fn mounted(folder: PathBuf) -> Result<Self> {
        fs::create_dir(&folder)?;
        let none = None::<&str>;
        mount(Some("cgroup2"), &folder, Some("cgroup2"), MsFlags::empty(), none)
            .context("cgroup2 cannot be mounted")?;
        Ok(Self(folder))
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        if let Err(error) = umount(&self.0) {
            eprintln!("{} stays mounted: {error}", self.0.display());
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
