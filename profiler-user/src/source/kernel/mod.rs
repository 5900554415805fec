//! The live source: the probes in the kernel. Privileged, and the only place that names aya.

pub mod attach;
pub mod layout;
mod accepts;
pub mod hooks;
mod interrupt;
mod load;
mod object;
mod other_threads;
pub mod preflight;
pub mod probed;
mod refusal;
mod slotless;
mod table;
pub mod sampling;

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::ScopedJoinHandle;

use anyhow::{Context, anyhow};
use aya::maps::{Array, HashMap, MapData, Queue, RingBuf};
use aya::programs::Iter;
use aya::{Btf, BtfError, Ebpf, EbpfLoader, include_bytes_aligned};
use profiler_ebpf::contention::{Contenders, TaskId};
use profiler_ebpf::counter::Counter;
use profiler_ebpf::limits::{MAX_LOOPS, MAX_WAITERS};
use profiler_ebpf::loop_counters::{Accepts, LoopCounters};
use profiler_ebpf::param::Params;
use profiler_ebpf::parks::Parks;
use profiler_ebpf::python::PythonLayout;
use profiler_ebpf::record::{CaptureHead, ThreadSnapshot};
use profiler_ebpf::turn::{Loop, phase};
use profiler_ebpf::wanted::Wanted;
use zerocopy::{FromBytes, IntoBytes};

use self::attach::Hooks;
use self::hooks::{HookOutcome, WatchParameters};
use self::layout::{BTF_PATH, KernelLayout};
use self::object::{descriptor, take};
use self::table::SharedTables;
use super::{Captured, Event, EventSource, InterpreterPlaces, Slot, decode};
use crate::error::Failure;
use crate::process::thread::{is_alive, is_in_call};

/// The probes as they were built, or nothing where the machine could not build them.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probes"));

/// Threads of one process looked at when we attach; a bound for a target with very many.
pub const MAX_THREADS: usize = 16 * 1024;

/// The probes, attached. Dropping it takes all of them out of the kernel.
#[allow(missing_debug_implementations, reason = "aya's maps have none")]
pub struct KernelSource {
    tgid: u32,
    // The table's pages and the ring belong to maps that `ebpf` holds: they go first.
    table: SharedTables,
    ring: RingBuf<MapData>,
    slots: HashMap<MapData, u32, u32>,
    free: Queue<MapData, u32>,
    python: Array<MapData, [u8; size_of::<PythonLayout>()]>,
    ticks: sampling::Sampler,
    others: other_threads::OtherThreadMaps,
    accepts: accepts::AcceptCounts,
    slotless: slotless::SlotlessMap,
    malformed: u64,
    /// Slots of threads that are watched no more. A hook under way may write to them for a moment yet: they serve
    /// others from the next look on.
    retired: Vec<Slot>,
    probes: Vec<HookOutcome>,
    #[cfg(feature = "probe-log")]
    log: aya_log::EbpfLogger<&'static dyn log::Log>,
    ebpf: Ebpf,
}

/// The probes, loaded and not attached. Dropping it costs nothing, while hooks take long to go.
#[allow(missing_debug_implementations, reason = "aya's maps have none")]
pub struct Loaded {
    ebpf: Ebpf,
    refused: load::Refused,
    watch: WatchParameters,
}

impl Loaded {
    /// Hooks whatever was loaded.
    pub fn attach(self) -> anyhow::Result<KernelSource> {
        let Self { mut ebpf, refused, watch } = self;
        let mut hooks = Hooks { ebpf: &mut ebpf, refused: &refused, wanted: watch.hooks };
        let mut probes = hooks.attach_all(&watch)?;
        let (ticks, sampling) = sampling::Sampler::new(&refused, watch.samples);
        probes.push(sampling);
        let mut source = KernelSource {
            tgid: watch.tgid,
            table: SharedTables::new(|name| descriptor(&ebpf, name), MAX_LOOPS, watch.stats)?,
            ring: take(&mut ebpf, "RECORDS")?.try_into()?,
            slots: take(&mut ebpf, "SLOTS")?.try_into()?,
            free: take(&mut ebpf, "FREE_SLOTS")?.try_into()?,
            python: take(&mut ebpf, "PYTHON")?.try_into()?,
            ticks,
            others: other_threads::OtherThreadMaps::new(&mut ebpf)?,
            accepts: accepts::AcceptCounts::new(&mut ebpf)?,
            slotless: slotless::SlotlessMap::new(&mut ebpf)?,
            malformed: 0,
            retired: Vec::new(),
            probes,
            #[cfg(feature = "probe-log")]
            log: aya_log::EbpfLogger::init(&mut ebpf)?,
            ebpf,
        };
        source.hand_out_slots()?;
        Ok(source)
    }
}

impl KernelSource {
    /// Has the kernel verify the probes. Nothing is hooked yet.
    pub fn load(watch: WatchParameters) -> anyhow::Result<Loaded> {
        if OBJECT.is_empty() {
            return Err(Failure::unsupported(
                "this stalltrace was built without its probes: build it with `cargo xtask build`",
            )
            .into());
        }
        let (btf, ebpf) = std::thread::scope(|scope| {
            // For itself, aya reads the types once more.
            let btf = scope.spawn(Btf::from_sys_fs);
            let layout = KernelLayout::of_running_kernel()
                .map_err(|error| Failure::unsupported(format!("{error:#}")));
            let ebpf = layout.and_then(|layout| objects(&watch, &layout));
            (joined(btf), ebpf)
        });
        let (btf, mut ebpf) = (btf?, ebpf?);
        let programs = ebpf.programs_mut().map(|(name, program)| (name.to_owned(), program));
        let refused = load::load(programs, attach::tasks(&btf, &watch));
        if let Some(error) = refused.get(attach::THREADS) {
            return Err(refusal::of_program(attach::THREADS, error).into());
        }
        Ok(Loaded { ebpf, refused, watch })
    }

    /// Threads are watched from now on. Before, all hooks are there, so that no wait is seen to begin and not to
    /// end, or the other way round.
    fn hand_out_slots(&mut self) -> anyhow::Result<()> {
        for slot in 0..MAX_LOOPS {
            self.free.push(slot, 0)?;
        }
        self.slotless.begin(self.table.count(Counter::NoSlot));
        Ok(())
    }

    /// What is attached and what is not.
    pub fn probes(&self) -> &[HookOutcome] {
        &self.probes
    }

    /// Readable when the probes want their records to be read before the next look.
    pub fn wakes(&self) -> std::io::Result<OwnedFd> {
        self.ring.as_fd().try_clone_to_owned()
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
        for slot in std::mem::take(&mut self.retired) {
            self.release(slot);
        }
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
            .filter(|index| self.table.is_used(*index))
            .filter_map(|index| self.table.state(index).map(|state| Slot { index, state }))
            .filter(|slot| slot.state.phase != phase::NEW)
            .filter(|slot| !self.retired.iter().any(|retired| retired.index == slot.index))
            .collect()
    }

    fn executed_ns(&mut self) -> Option<u64> {
        self.table.executed_ns()
    }

    fn last_block(&mut self, slot: Slot) -> Option<Captured> {
        let bytes = self.table.capture(slot.index)?;
        let captured = decode::capture(&bytes).ok()?;
        // Unless the loop moved meanwhile, nobody wrote into its capture either.
        let still = slot.is_unchanged(&self.table.state(slot.index)?);
        let same_turn = captured.head.turn_start_ns == slot.state.turn.start_ns;
        (still && same_turn).then_some(captured)
    }

    fn contenders(&mut self, slot: Slot) -> Option<Contenders> {
        let mut contenders = self.table.contenders(slot.index)?;
        let waits_there = |other: &Contenders| other.waiter != 0 && other.cpu == contenders.cpu;
        let used = (0..MAX_LOOPS).filter(|index| self.table.is_used(*index));
        let all = used.filter_map(|index| self.table.contenders(index));
        if all.filter(waits_there).count() > MAX_WAITERS {
            // Who came onto that CPU last was not recorded for each of them.
            contenders.on_cpu = TaskId::UNKNOWN;
        }
        Some(contenders)
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
        // Whoever exits from here on is seen to.
        if !is_alive(self.tgid, state.tid) {
            self.unwatch(Slot { index: slot, state });
            return Ok(false);
        }
        Ok(true)
    }

    fn is_still_in(&self, capture: &CaptureHead) -> bool {
        // Where nobody may tell, it was just seen there.
        is_in_call(self.tgid, capture.head.tid, &capture.registers).unwrap_or(true)
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

    fn set_shares(&mut self, slot: Slot, shares: bool) {
        self.table.set_shares(slot.index, shares);
    }

    fn set_interpreter(&mut self, slot: Slot, places: InterpreterPlaces) {
        self.table.set_interpreter(slot.index, places);
    }

    fn set_ticks(&mut self, wanted: super::Sampling) -> anyhow::Result<()> {
        match (wanted, self.ticks.are_on()) {
            (super::Sampling::On, false) => self.ticks.switch_on(&mut self.ebpf),
            (super::Sampling::Off, true) => self.ticks.switch_off(&mut self.ebpf),
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

    fn take_reading(&mut self, slot: Slot) -> Option<(Loop, LoopCounters)> {
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

    fn unwatch(&mut self, slot: Slot) {
        // It is there, unless the thread has just exited.
        let _ = self.slots.remove(&slot.state.tid);
        self.retired.push(slot);
    }

    fn slotless(&mut self) -> Vec<u32> {
        let mut new = self.slotless.news(self.table.count(Counter::NoSlot));
        // Some have got one since.
        new.retain(|tid| self.slots.get(tid, 0).is_err());
        new
    }

    fn losses(&mut self) -> Vec<(&'static str, u64)> {
        let mut losses: Vec<_> = Counter::ALL
            .into_iter()
            .map(|counter| {
                let early = if counter == Counter::NoSlot { self.slotless.early() } else { 0 };
                (counter.name(), self.table.count(counter).saturating_sub(early))
            })
            .collect();
        losses.push(("malformed_records", self.malformed));
        losses
    }
}

/// The maps, made, and the programs, read.
fn objects(watch: &WatchParameters, layout: &KernelLayout) -> Result<Ebpf, Failure> {
    let params = Params {
        tgid: u64::from(watch.tgid),
        threshold_ns: watch.threshold_ns,
        suspect_ns: watch.threshold_ns / 2,
        poll_waits: u64::from(watch.waits.poll),
        switch_has_state: u64::from(layout.switch_has_state),
        stats: u64::from(watch.stats),
        field: layout.fields,
    };
    let ebpf = EbpfLoader::new()
        .override_global("PARAMS", params.as_bytes(), true)
        .override_global("INTERRUPTS", layout.interrupts.as_bytes(), true)
        .map_max_entries("LOOP_COUNTERS", readings(watch))
        .load(OBJECT);
    ebpf.map_err(|error| refusal::of_object(&error.into()))
}

/// Slots with statistics; an array without elements cannot be made.
fn readings(watch: &WatchParameters) -> u32 {
    if watch.stats { MAX_LOOPS } else { 1 }
}

/// The kernel's types, or why they cannot be had.
fn joined(btf: ScopedJoinHandle<'_, Result<Btf, BtfError>>) -> Result<Btf, Failure> {
    let refused = |why: String| Failure::unsupported(format!("cannot read {BTF_PATH}: {why}"));
    match btf.join() {
        Ok(btf) => btf.map_err(|error| refused(format!("{:#}", anyhow!(error)))),
        Err(_) => Err(refused("its reader failed; its message stands above".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use aya::Btf;

    use super::layout::KernelLayout;
    use super::{OBJECT, attach, load, objects, probed, refusal};

    /// A field that is not where the probes are told makes this kernel's own verifier refuse them: in one sentence, with
    /// its log in a file that only we can read.
    #[test]
    fn a_refused_program() {
        if !rustix::process::geteuid().is_root() || OBJECT.is_empty() {
            println!("skipped: it takes root, and probes");
            return;
        }
        let watch = probed::everything();
        let mut layout = KernelLayout::of_running_kernel().unwrap();
        layout.fields.task_state.offset = 1 << 20;
        layout.switch_has_state = false;
        let mut ebpf = objects(&watch, &layout).unwrap();
        let btf = Btf::from_sys_fs().unwrap();
        let programs = ebpf.programs_mut().map(|(name, program)| (name.to_owned(), program));
        let refused = load::load(programs, attach::tasks(&btf, &watch));
        let error = refused.get("sched_switch").expect("it reads that field");
        let message = refusal::of_program("sched_switch", error).message;
        println!("{message}");
        assert!(
            message.contains("one of its fields is not what stalltrace takes it for"),
            "{message}"
        );
        assert!(message.len() < 600 && message.lines().count() == 1, "{message}");
        let file = message.rsplit_once("log is in ").unwrap().1.trim_end_matches(')');
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(std::fs::read_to_string(file).unwrap().contains("task_struct"));
        std::fs::remove_file(file).unwrap();
    }
}
