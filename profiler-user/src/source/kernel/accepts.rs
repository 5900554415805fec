//! The map in which the probes count accepts by process.

use aya::Ebpf;
use aya::maps::{MapData, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;
use profiler_ebpf::loop_counters::Accepts;

use super::object::take;

/// An [`Accepts`] as aya passes it.
type Words = [u64; size_of::<Accepts>() / 8];

/// Counts by process, and on each CPU apart.
#[allow(missing_debug_implementations, reason = "aya's maps have none")]
pub struct AcceptCounts {
    map: PerCpuHashMap<MapData, u32, Words>,
}

impl AcceptCounts {
    pub fn new(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        Ok(Self { map: take(ebpf, "ACCEPTS")?.try_into()? })
    }

    /// Counts from zero.
    pub fn begin(&mut self, pid: u32) -> anyhow::Result<()> {
        let cpus = nr_cpus().map_err(|(_, error)| error)?;
        let zeros = PerCpuValues::try_from(vec![Words::default(); cpus])?;
        Ok(self.map.insert(pid, zeros, 0)?)
    }

    /// The sum over all CPUs.
    pub fn of(&self, pid: u32) -> Option<Accepts> {
        let values = self.map.get(&pid, 0).ok()?;
        let sum = |index: usize| values.iter().filter_map(|words| words.get(index)).sum();
        Some(Accepts { accepted: sum(0), would_block: sum(1), failed: sum(2) })
    }

    /// Counts no longer; returns the last sum.
    pub fn end(&mut self, pid: u32) -> Option<Accepts> {
        let last = self.of(pid);
        // Nothing to remove is as good as removed.
        let _ = self.map.remove(&pid);
        last
    }
}
