//! What the probes are told about the target's threads that are no suspected loops, and the hook for who wakes a loop.

use std::collections::BTreeMap;

use anyhow::Context;
use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, Queue};
use aya::programs::BtfTracePoint;
use aya::programs::tp_btf::BtfTracePointLinkId;
use profiler_ebpf::limits::{MAX_BUFFERS, MAX_LOOPS, MAX_THREAD_STATES};
use profiler_ebpf::wanted::Wanted;
use zerocopy::IntoBytes;

use super::object::take;

/// The maps of `others` in the probes, and what was last written there.
#[allow(missing_debug_implementations, reason = "aya's maps have none")]
pub struct OtherThreadMaps {
    map: Array<MapData, [u8; size_of::<Wanted>()]>,
    wanted: Wanted,
    states: HashMap<MapData, u64, u64>,
    told: BTreeMap<u64, u64>,
    /// The hook, while it is there: it costs every wakeup of every process.
    waking: Option<BtfTracePointLinkId>,
}

impl OtherThreadMaps {
    pub fn new(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let mut buffers: Queue<_, u32> = take(ebpf, "FREE_BUFFERS")?.try_into()?;
        for buffer in 0..MAX_BUFFERS {
            buffers.push(MAX_LOOPS + buffer, 0)?;
        }
        Ok(Self {
            map: take(ebpf, "WANTED")?.try_into()?,
            wanted: Wanted::default(),
            states: take(ebpf, "THREAD_STATES")?.try_into()?,
            told: BTreeMap::new(),
            waking: None,
        })
    }

    /// Which threads are captured from now on.
    pub fn want(&mut self, wanted: Wanted) -> anyhow::Result<()> {
        if wanted != self.wanted {
            let mut bytes = [0; size_of::<Wanted>()];
            bytes.copy_from_slice(wanted.as_bytes());
            self.map.set(0, bytes, 0)?;
            self.wanted = wanted;
        }
        Ok(())
    }

    /// Where threads, by their thread pointers, keep their interpreter's state. What is not among
    /// them is forgotten; what there is no room for is left out.
    pub fn tell_states(&mut self, states: &[(u64, u64)]) -> anyhow::Result<()> {
        let new: BTreeMap<u64, u64> =
            states.iter().copied().take(MAX_THREAD_STATES as usize).collect();
        for gone in self.told.keys().filter(|fsbase| !new.contains_key(fsbase)) {
            self.states.remove(gone)?;
        }
        for (fsbase, tstate) in &new {
            if self.told.get(fsbase) != Some(tstate) {
                self.states.insert(fsbase, tstate, 0)?;
            }
        }
        self.told = new;
        Ok(())
    }

    /// Has the hook there, or not.
    pub fn watch_wakers(&mut self, ebpf: &mut Ebpf, wanted: bool) -> anyhow::Result<()> {
        let program = ebpf.program_mut("sched_waking").context("no program `sched_waking`")?;
        let program: &mut BtfTracePoint = program.try_into()?;
        match self.waking.take() {
            None if wanted => self.waking = Some(program.attach()?),
            Some(link) if !wanted => program.detach(link)?,
            unchanged => self.waking = unchanged,
        }
        Ok(())
    }
}
