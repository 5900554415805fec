//! Programs in the kernel to how often each ran and how long: of the probes, and of empty ones beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::programs::{BtfTracePoint, FEntry, FExit, ProgramInfo, TracePoint, loaded_programs};
use aya::sys::{Stats, enable_stats};
use aya::{Btf, Ebpf, EbpfLoader};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::empty;

/// What the kernel counted for one program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ran {
    pub ns: u64,
    pub calls: u64,
}

impl Ran {
    fn of(info: &ProgramInfo) -> Self {
        let ns = u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX);
        Self { ns, calls: info.run_count() }
    }

    /// What has been added since.
    pub fn since(self, before: Self) -> Self {
        let ns = self.ns.saturating_sub(before.ns);
        Self { ns, calls: self.calls.saturating_sub(before.calls) }
    }

    /// `None` where it never ran.
    pub fn ns_per_call(self) -> Option<f64> {
        (self.calls > 0).then(|| self.ns as f64 / self.calls as f64)
    }
}

/// Where a probe is hooked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    Switch,
    Wakeup,
    WaitEntered,
    WaitLeft,
}

impl Hook {
    pub const ALL: [Self; 4] = [Self::Switch, Self::Wakeup, Self::WaitEntered, Self::WaitLeft];

    pub fn name(self) -> &'static str {
        match self {
            Self::Switch => "sched_switch",
            Self::Wakeup => "sched_wakeup",
            Self::WaitEntered => "epoll_wait entry",
            Self::WaitLeft => "epoll_wait return",
        }
    }

    /// How often a turn that sleeps once comes by: the thread leaves the CPU and comes back.
    pub fn of_the_loop(self) -> f64 {
        match self {
            Self::Switch => 2.0,
            Self::Wakeup | Self::WaitEntered | Self::WaitLeft => 1.0,
        }
    }

    /// The daemon's program on it, by tracepoint or by fentry. The kernel keeps 15 bytes of a name.
    pub fn programs(self) -> [&'static str; 2] {
        match self {
            Self::Switch => ["sched_switch"; 2],
            Self::Wakeup => ["sched_wakeup"; 2],
            Self::WaitEntered => ["wait_entered", "enter_epoll_wai"],
            Self::WaitLeft => ["wait_left", "leave_epoll_wai"],
        }
    }
}

/// The daemon's program that runs at each sample of a CPU.
pub const TICK: &str = "tick";

/// How the waits are hooked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitHooks {
    Fentry,
    Tracepoint,
}

/// The kernel counts for as long as this is kept. Since 5.8.
pub fn counting() -> Result<OwnedFd> {
    enable_stats(Stats::RunTime).context("the kernel does not count what its programs take")
}

/// What was counted for these programs, by name.
pub fn of(ids: &BTreeSet<u32>) -> BTreeMap<String, Ran> {
    // One that is unloaded between being listed and being asked is none of these.
    let programs = loaded_programs().filter_map(Result::ok).filter(|info| ids.contains(&info.id()));
    programs.filter_map(|info| Some((info.name_as_str()?.to_owned(), Ran::of(&info)))).collect()
}

/// How many probes of stalltrace are loaded, whoever loaded them.
pub fn probes_loaded() -> usize {
    let names = Hook::Switch.programs();
    let programs = loaded_programs().filter_map(Result::ok);
    programs.filter(|info| info.name_as_str().is_some_and(|name| names.contains(&name))).count()
}

/// A program that does nothing on every hook.
#[allow(missing_debug_implementations, reason = "aya's loaded object has none")]
pub struct Empties(Ebpf);

impl Empties {
    pub fn attach(waits: WaitHooks) -> Result<Self> {
        const FUNCTION: &str = "__x64_sys_epoll_wait";
        let [entry, exit] = match waits {
            WaitHooks::Tracepoint => ["tracepoint", "tracepoint/exit"],
            WaitHooks::Fentry => ["fentry/__x64_sys_epoll_wait", "fexit/__x64_sys_epoll_wait"],
        };
        let sections = ["tp_btf/sched_switch", "tp_btf/sched_wakeup", entry, exit];
        let programs: Vec<_> = Hook::ALL
            .iter()
            .zip(sections)
            .map(|(hook, section)| (hook.programs()[0], section))
            .collect();
        let mut ebpf = EbpfLoader::new().load(&empty::object(&programs)?)?;
        let btf = Btf::from_sys_fs()?;
        for hook in Hook::ALL {
            let name = hook.programs()[0];
            let program = ebpf.program_mut(name).with_context(|| format!("no empty {name}"))?;
            match (hook, waits) {
                (Hook::Switch | Hook::Wakeup, _) => {
                    let program: &mut BtfTracePoint = program.try_into()?;
                    program.load(hook.name(), &btf)?;
                    program.attach()?;
                }
                (Hook::WaitEntered, WaitHooks::Fentry) => {
                    let program: &mut FEntry = program.try_into()?;
                    program.load(FUNCTION, &btf)?;
                    program.attach()?;
                }
                (Hook::WaitLeft, WaitHooks::Fentry) => {
                    let program: &mut FExit = program.try_into()?;
                    program.load(FUNCTION, &btf)?;
                    program.attach()?;
                }
                (_, WaitHooks::Tracepoint) => {
                    let event = if hook == Hook::WaitEntered { "sys_enter" } else { "sys_exit" };
                    let program: &mut TracePoint = program.try_into()?;
                    program.load()?;
                    program.attach("syscalls", &format!("{event}_epoll_wait"))?;
                }
            }
        }
        Ok(Self(ebpf))
    }

    pub fn ran(&self, hook: Hook) -> Result<Ran> {
        let program = self.0.program(hook.programs()[0]).context("an empty program is gone")?;
        Ok(Ran::of(&program.info()?))
    }
}

/// Mounts tracefs where nobody else sees it, unless it is mounted: empty programs need its numbers, too.
/// Holds for the calling thread and whatever it starts.
pub fn see_tracepoints() -> Result<()> {
    const TRACEFS: &str = "/sys/kernel/tracing";
    if Path::new(TRACEFS).join("events/syscalls").exists() {
        return Ok(());
    }
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).context("no mount namespace of our own")?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    mount(Some("tracefs"), TRACEFS, Some("tracefs"), MsFlags::empty(), none)
        .context("tracefs cannot be mounted")
}

#[cfg(test)]
mod tests {
    use super::Ran;

    /// Costs are of the calls in between, and of no calls there are none.
    #[test]
    fn costs_are_per_call() {
        let before = Ran { ns: 1_000, calls: 10 };
        let after = Ran { ns: 1_700, calls: 20 };
        assert_eq!(after.since(before).ns_per_call(), Some(70.0));
        assert_eq!(before.since(before).ns_per_call(), None);
    }
}
