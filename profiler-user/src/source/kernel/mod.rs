//! The live source: the probes in the kernel. Privileged, and the only place that names aya.

pub mod attach;
pub mod layout;
mod accepts;
mod others;
pub mod preflight;
mod table;
pub mod ticks;

use std::io::Read;

use anyhow::{Context, anyhow};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, Queue, RingBuf};
use aya::programs::Iter;
use aya::{Btf, Ebpf, EbpfLoader, include_bytes_aligned};
use profiler_ebpf::counter::Counter;
use profiler_ebpf::limits::{MAX_LOOPS, MAX_WAITERS};
use profiler_ebpf::param::Params;
use profiler_ebpf::parks::Parks;
use profiler_ebpf::python::PythonLayout;
use profiler_ebpf::reading::{Accepts, Reading};
use profiler_ebpf::record::{CaptureHead, ThreadSnapshot};
use profiler_ebpf::rivals::{Rivals, TaskId};
use profiler_ebpf::turn::{Loop, phase};
use profiler_ebpf::wanted::Wanted;
use zerocopy::{FromBytes, IntoBytes};

use self::attach::{Probe, WaitHooks, Waits};
use self::layout::KernelLayout;
use self::preflight::{Check, State};
use self::table::Table;
use super::{Captured, Event, EventSource, PythonPlaces, Slot, decode};
use crate::error::Failure;

/// The probes as they were built, or nothing where the machine could not build them.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probes"));

/// Threads of one process looked at when we attach; a bound for a target with very many.
const MAX_THREADS: usize = 16 * 1024;

/// What to watch, in the kernel's numbers.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    pub tgid: u32,
    pub threshold_ns: u64,
    pub waits: Waits,
    pub hooks: WaitHooks,
    /// Whether statistics are wanted.
    pub stats: bool,
}

/// The probes, attached. Dropping it takes all of them out of the kernel.
#[allow(missing_debug_implementations, reason = "aya's maps have none")]
pub struct KernelSource {
    // The table's pages and the ring belong to maps that `ebpf` holds: they go first.
    table: Table,
    ring: RingBuf<MapData>,
    slots: HashMap<MapData, u32, u32>,
    free: Queue<MapData, u32>,
    python: Array<MapData, [u8; size_of::<PythonLayout>()]>,
    counters: PerCpuArray<MapData, u64>,
    ticks: ticks::Ticks,
    others: others::Others,
    accepts: accepts::AcceptCounts,
    malformed: u64,
    probes: Vec<Probe>,
    #[cfg(feature = "probe-log")]
    log: aya_log::EbpfLogger<&'static dyn log::Log>,
    ebpf: Ebpf,
}

/// Loads every probe against a process that is none, and says how each hook would be taken here.
pub fn probe_machine() -> Vec<Check> {
    let waits = Waits { poll: true, io_uring: true };
    let hooks = WaitHooks::Best;
    let watch = Watch { tgid: 0, threshold_ns: u64::MAX, waits, hooks, stats: true };
    let source = KernelSource::attach(watch);
    let source = match source {
        Ok(source) => source,
        Err(error) => {
            return vec![Check { what: "probes", state: State::Missing(format!("{error:#}")) }];
        }
    };
    let check = |probe: &Probe| {
        let state = match (probe.hook, &probe.reason) {
            (Some(hook), None) => State::Fine(format!("by {hook}")),
            (Some(hook), Some(reason)) => State::Worse(format!("by {hook}, because {reason}")),
            (None, reason) => State::Worse(reason.clone().unwrap_or_default()),
        };
        Check { what: probe.name, state }
    };
    source.probes().iter().map(check).collect()
}

impl KernelSource {
    /// Loads and attaches the probes.
    pub fn attach(watch: Watch) -> anyhow::Result<Self> {
        if OBJECT.is_empty() {
            return Err(Failure::unsupported(
                "this stalltrace was built without its probes: build it with `cargo xtask build`",
            )
            .into());
        }
        let layout = KernelLayout::of_running_kernel()?;
        let params = Params {
            tgid: u64::from(watch.tgid),
            threshold_ns: watch.threshold_ns,
            suspect_ns: watch.threshold_ns / 2,
            poll_waits: u64::from(watch.waits.poll),
            switch_has_state: u64::from(layout.switch_has_state),
            stats: u64::from(watch.stats),
            offset: layout.offsets,
        };
        let readings = if watch.stats { MAX_LOOPS } else { 1 };
        let mut ebpf = EbpfLoader::new()
            .override_global("PARAMS", params.as_bytes(), true)
            .map_max_entries("READINGS", readings)
            .load(OBJECT)
            .context("cannot load the probes")
            .map_err(|error| Failure::unsupported(format!("{error:#}")))?;
        let mut free: Queue<_, u32> = take(&mut ebpf, "FREE_SLOTS")?.try_into()?;
        for slot in 0..MAX_LOOPS {
            free.push(slot, 0)?;
        }
        let [loops, captures, parks, rivals] =
            ["LOOPS", "CAPTURES", "PARKS", "RIVALS"].map(|name| descriptor(&ebpf, name));
        let mut table = Table::new(loops?, captures?, parks?, rivals?, MAX_LOOPS)?;
        if watch.stats {
            table.add_readings(descriptor(&ebpf, "READINGS")?, readings)?;
        }
        let btf = Btf::from_sys_fs().context("cannot read the kernel's BTF")?;
        let mut probes = attach::all(&mut ebpf, &btf, watch.waits, watch.hooks)?;
        if watch.stats {
            probes.extend(attach::accepts(&mut ebpf, &btf, watch.hooks));
        }
        let threads: &mut Iter =
            ebpf.program_mut("threads").context("no program `threads`")?.try_into()?;
        threads.load("task", &btf)?;
        Ok(Self {
            table,
            ring: take(&mut ebpf, "RECORDS")?.try_into()?,
            slots: take(&mut ebpf, "SLOTS")?.try_into()?,
            free,
            python: take(&mut ebpf, "PYTHON")?.try_into()?,
            counters: take(&mut ebpf, "COUNTERS")?.try_into()?,
            ticks: ticks::Ticks::default(),
            others: others::Others::new(&mut ebpf)?,
            accepts: accepts::AcceptCounts::new(&mut ebpf)?,
            malformed: 0,
            probes,
            #[cfg(feature = "probe-log")]
            log: aya_log::EbpfLogger::init(&mut ebpf)?,
            ebpf,
        })
    }

    /// What is attached and what is not.
    pub fn probes(&self) -> &[Probe] {
        &self.probes
    }

    /// Tells the probes how the target's CPython is laid out.
    pub fn set_python_layout(&mut self, layout: PythonLayout) -> anyhow::Result<()> {
        let mut bytes = [0; size_of::<PythonLayout>()];
        bytes.copy_from_slice(layout.as_bytes());
        Ok(self.python.set(0, bytes, 0)?)
    }
}

impl EventSource for KernelSource {
    fn drain(&mut self) -> Vec<Event> {
        #[cfg(feature = "probe-log")]
        self.log.flush();
        let mut events = Vec::new();
        while let Some(bytes) = self.ring.next() {
            match decode::record(&bytes) {
                Ok(event) => events.push(event),
                Err(_) => self.malformed += 1,
            }
        }
        events
    }

    fn loops(&mut self) -> Vec<Slot> {
        (0..MAX_LOOPS)
            .filter_map(|index| self.table.state(index).map(|state| Slot { index, state }))
            .filter(|slot| slot.state.phase != phase::NEW)
            .collect()
    }

    fn last_block(&mut self, slot: Slot) -> Option<Captured> {
        let bytes = self.table.capture(slot.index)?;
        let captured = decode::capture(&bytes).ok()?;
        // Unless the loop moved meanwhile, nobody wrote into its capture either.
        let still = slot.is_unchanged(&self.table.state(slot.index)?);
        let same_turn = captured.head.turn_start_ns == slot.state.turn.start_ns;
        (still && same_turn).then_some(captured)
    }

    fn rivals(&mut self, slot: Slot) -> Option<Rivals> {
        let mut rivals = self.table.rivals(slot.index)?;
        let waits_there = |other: &Rivals| other.waiter != 0 && other.cpu == rivals.cpu;
        let all = (0..MAX_LOOPS).filter_map(|index| self.table.rivals(index));
        if all.filter(waits_there).count() > MAX_WAITERS {
            // Who came onto that CPU last was not recorded for each of them.
            rivals.on_cpu = TaskId::UNKNOWN;
        }
        Some(rivals)
    }

    fn seed(&mut self, state: Loop, capture: CaptureHead) -> anyhow::Result<bool> {
        let slot = match self.free.pop(0) {
            Ok(slot) => slot,
            Err(_) => return Ok(false),
        };
        self.table.seed(slot, state, capture);
        const ONLY_IF_NEW: u64 = 1;
        if self.slots.insert(state.tid, slot, ONLY_IF_NEW).is_err() {
            self.table.seed(slot, Loop::default(), CaptureHead::default());
            self.free.push(slot, 0)?;
            return Ok(false);
        }
        Ok(true)
    }

    fn threads(&mut self) -> anyhow::Result<Vec<ThreadSnapshot>> {
        let program: &mut Iter =
            self.ebpf.program_mut("threads").context("no program `threads`")?.try_into()?;
        let link = program.attach()?;
        let file = program.take_link(link)?.into_file()?;
        let size = size_of::<ThreadSnapshot>();
        let mut bytes = Vec::new();
        file.take((MAX_THREADS * size) as u64).read_to_end(&mut bytes)?;
        Ok(bytes
            .chunks_exact(size)
            .filter_map(|chunk| ThreadSnapshot::read_from_bytes(chunk).ok())
            .collect())
    }

    fn set_parks(&mut self, slot: Slot, parks: Parks) {
        self.table.set_parks(slot.index, parks);
    }

    fn set_handed_work(&mut self, slot: Slot, is_handed: bool) {
        self.table.set_handed_work(slot.index, is_handed);
    }

    fn set_python(&mut self, slot: Slot, places: PythonPlaces) {
        self.table.set_python(slot.index, places);
    }

    fn set_ticks(&mut self, wanted: super::Ticks) -> anyhow::Result<()> {
        match (wanted, self.ticks.are_on()) {
            (super::Ticks::On, false) => self.ticks.switch_on(&mut self.ebpf),
            (super::Ticks::Off, true) => self.ticks.switch_off(&mut self.ebpf),
            _ => Ok(()),
        }
    }

    fn set_wanted(&mut self, wanted: Wanted) -> anyhow::Result<()> {
        self.others.want(wanted)
    }

    fn set_thread_states(&mut self, states: &[(u64, u64)]) -> anyhow::Result<()> {
        self.others.tell_states(states)
    }

    fn watch_wakers(&mut self, wanted: bool) -> anyhow::Result<()> {
        self.others.watch_wakers(&mut self.ebpf, wanted)
    }

    fn take_reading(&mut self, slot: Slot) -> Option<(Loop, Reading)> {
        self.table.take_reading(slot.index)
    }

    fn count_accepts(&mut self, pid: u32) -> anyhow::Result<()> {
        self.accepts.begin(pid)
    }

    fn accepts(&mut self, pid: u32) -> Option<Accepts> {
        self.accepts.of(pid)
    }

    fn stop_counting_accepts(&mut self, pid: u32) -> Option<Accepts> {
        self.accepts.end(pid)
    }

    fn release(&mut self, slot: Slot) {
        self.table.clear_reading(slot.index);
        self.table.seed(slot.index, Loop::default(), CaptureHead::default());
        self.table.set_parks(slot.index, Parks::default());
        // A full queue is impossible: it has room for every slot there is.
        let _ = self.free.push(slot.index, 0);
    }

    fn losses(&mut self) -> Vec<(&'static str, u64)> {
        let mut losses: Vec<_> = Counter::ALL
            .into_iter()
            .map(|counter| {
                let values = self.counters.get(&(counter as u32), 0);
                (counter.name(), values.map_or(0, |values| values.iter().sum()))
            })
            .collect();
        losses.push(("malformed_records", self.malformed));
        losses
    }
}

fn take(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<Map> {
    ebpf.take_map(name).ok_or_else(|| anyhow!("the probes have no map `{name}`"))
}

fn descriptor<'a>(ebpf: &'a Ebpf, name: &str) -> anyhow::Result<&'a aya::maps::MapFd> {
    match ebpf.map(name) {
        Some(Map::Array(data)) => Ok(data.fd()),
        _ => Err(anyhow!("the probes have no array `{name}`")),
    }
}
