//! The loops' table, mapped from the kernel, so that looking at it costs no syscall.

use std::mem::offset_of;
use std::os::fd::AsFd;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{Ordering, fence};

use anyhow::Context;
use aya::maps::MapFd;
use profiler_ebpf::contention::Contenders;
use profiler_ebpf::counter::Counter;
use profiler_ebpf::histogram::Histogram;
use profiler_ebpf::loop_counters::LoopCounters;
use profiler_ebpf::parks::Parks;
use profiler_ebpf::record::{Capture, CaptureHead};
use profiler_ebpf::turn::Loop;
use profiler_ebpf::version;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::source::InterpreterPlaces;

/// Tries before a slot that the kernel keeps changing is passed over until the next look.
const MAX_TRIES: u32 = 16;

/// A memory-mapped BPF array (`BPF_F_MMAPABLE`, since 5.5).
#[derive(Debug)]
struct Mapped {
    start: NonNull<u8>,
    bytes: usize,
    stride: usize,
}

impl Mapped {
    fn new<T>(map: impl AsFd, entries: u32) -> anyhow::Result<Self> {
        // The kernel lays elements out in multiples of 8 bytes and whole pages in all.
        let stride = size_of::<T>().next_multiple_of(8);
        let bytes = (stride * entries as usize).next_multiple_of(4096);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { mmap(null_mut(), bytes, protection, MapFlags::SHARED, map, 0) }
            .context("cannot map the loops' table")?;
        let start = NonNull::new(start.cast()).context("the loops' table is mapped at 0")?;
        Ok(Self { start, bytes, stride })
    }

    /// The element's address, for an index that is in range.
    fn at<T>(&self, index: u32) -> Option<NonNull<T>> {
        self.part(index, 0)
    }

    /// The address of a part of an element, by its offset there.
    fn part<T>(&self, index: u32, offset: usize) -> Option<NonNull<T>> {
        let fits = offset.checked_add(size_of::<T>())? <= self.stride;
        let from = self.stride.checked_mul(index as usize)?.checked_add(offset)?;
        let is_within = from.checked_add(size_of::<T>())? <= self.bytes;
        // SAFETY: the part lies within the mapping, as was just checked.
        (fits && is_within).then(|| unsafe { self.start.add(from) }.cast())
    }

    /// A copy of an element that the kernel did not change meanwhile, by the element's version, which lies there.
    fn whole<T: FromBytes>(&self, index: u32, version_at: usize) -> Option<T> {
        let at = self.at::<T>(index)?;
        let version = self.part::<u64>(index, version_at)?;
        for _ in 0..MAX_TRIES {
            // SAFETY: it lies within the mapping, and is aligned as a field is; any bytes are a number. Volatile,
            // because the kernel writes at the same time; whether it did is what the version tells.
            let before = unsafe { version.read_volatile() };
            fence(Ordering::Acquire);
            // SAFETY: as above, of any bytes that are a valid `T`.
            let copy = unsafe { at.read_volatile() };
            fence(Ordering::Acquire);
            // SAFETY: as the first.
            let after = unsafe { version.read_volatile() };
            if version::is_whole(before) && before == after {
                return Some(copy);
            }
        }
        None
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing that was handed out borrows from it.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

// SAFETY: the mapping belongs to this value alone on our side, and is reached by volatile copies.
unsafe impl Send for Mapped {}

/// Where a reading keeps its greatest values: two cells of each kind.
const GREATEST: [usize; 3] = [
    offset_of!(LoopCounters, most_ready),
    offset_of!(LoopCounters, turns) + offset_of!(Histogram, greatest_ns),
    offset_of!(LoopCounters, delays) + offset_of!(Histogram, greatest_ns),
];

/// Loops, captures, ways to park, contenders for a CPU and statistics, by slot; and what was lost.
#[derive(Debug)]
pub struct SharedTables {
    loops: Mapped,
    captures: Mapped,
    parks: Mapped,
    contenders: Mapped,
    executed: Mapped,
    counters: Mapped,
    /// Where they are wanted.
    readings: Option<Mapped>,
}

impl SharedTables {
    /// Of the maps with these names, for so many slots; `has_readings` where statistics are wanted.
    pub fn new<'a>(
        map: impl Fn(&'static str) -> anyhow::Result<&'a MapFd>,
        slots: u32,
        has_readings: bool,
    ) -> anyhow::Result<Self> {
        let readings = || Mapped::new::<LoopCounters>(map("LOOP_COUNTERS")?, slots);
        Ok(Self {
            loops: Mapped::new::<Loop>(map("LOOPS")?, slots)?,
            captures: Mapped::new::<Capture>(map("CAPTURES")?, slots)?,
            parks: Mapped::new::<Parks>(map("PARKS")?, slots)?,
            contenders: Mapped::new::<Contenders>(map("CONTENDERS")?, slots)?,
            executed: Mapped::new::<u64>(map("EXECUTED")?, 1)?,
            counters: Mapped::new::<u64>(map("COUNTERS")?, Counter::ALL.len() as u32)?,
            readings: has_readings.then(readings).transpose()?,
        })
    }

    /// How often that was counted.
    pub fn count(&self, counter: Counter) -> u64 {
        let at = self.counters.at::<u64>(counter as u32);
        // SAFETY: within the mapping and aligned. Volatile, because the kernel writes it.
        at.map_or(0, |at| unsafe { at.read_volatile() })
    }

    /// Whether a thread has the slot, or had it and has exited. Most have none: that costs one word each.
    pub fn is_used(&self, slot: u32) -> bool {
        let tid = self.loops.part::<u32>(slot, offset_of!(Loop, tid));
        // SAFETY: within the mapping and aligned. Volatile, because the kernel writes it.
        tid.is_some_and(|tid| unsafe { tid.read_volatile() } != 0)
    }

    /// A whole state of the loop, or none if the kernel kept changing it.
    pub fn state(&self, slot: u32) -> Option<Loop> {
        self.loops.whole(slot, offset_of!(Loop, version))
    }

    /// Who has run instead of the slot's thread, whole; none if the kernel kept changing it.
    pub fn contenders(&self, slot: u32) -> Option<Contenders> {
        self.contenders.whole(slot, offset_of!(Contenders, version))
    }

    /// When the target executed another program, if it did.
    pub fn executed_ns(&self) -> Option<u64> {
        let at = self.executed.at::<u64>(0)?;
        // SAFETY: within the mapping and aligned. Volatile, because the kernel writes it.
        let at_ns = unsafe { at.read_volatile() };
        // What the probes told before is there, too.
        fence(Ordering::Acquire);
        (at_ns != 0).then_some(at_ns)
    }

    /// Writes a loop that the probes do not know yet: before its thread's entry is made.
    pub fn seed(&self, slot: u32, state: Loop, capture: CaptureHead) {
        if let (Some(at), Some(into)) = (self.loops.at::<Loop>(slot), self.captures.at(slot)) {
            // SAFETY: within the mappings, and no probe touches a slot that no thread has.
            unsafe { at.write_volatile(state) };
            // SAFETY: as above.
            unsafe { into.write_volatile(capture) };
        }
    }

    /// A slot's sums and its state at the same moment; the greatest values begin anew.
    pub fn take_reading(&self, slot: u32) -> Option<(Loop, LoopCounters)> {
        let at = self.readings.as_ref()?.at::<LoopCounters>(slot)?;
        let cell = at.cast::<u8>();
        // SAFETY: within the mapping and aligned; nobody else writes the cell's number.
        let old =
            unsafe { cell.add(offset_of!(LoopCounters, cell)).cast::<u64>().read_volatile() } & 1;
        // From here on the probes leave the other cell's values to us.
        self.set_reading_word(slot, offset_of!(LoopCounters, cell), 1 - old);
        let (state, counters) = self.at_one_moment(slot, at)?;
        for offset in GREATEST {
            self.set_reading_word(slot, offset + old as usize * 8, 0);
        }
        Some((state, counters))
    }

    /// Both copies, between two turns' ends where possible: in a loop whose turns are as short as the
    /// copying, the sums may lack one of them.
    fn at_one_moment(&self, slot: u32, at: NonNull<LoopCounters>) -> Option<(Loop, LoopCounters)> {
        let mut last = None;
        for _ in 0..MAX_TRIES {
            let before = self.state(slot)?;
            // SAFETY: within the mapping; any bytes are a valid `Reading`. Volatile, because the kernel
            // writes at the same time: every sum is a word of its own.
            let counters = unsafe { at.read_volatile() };
            let is_whole = counters.turns.count() == before.turns;
            if is_whole && self.state(slot)?.version == before.version {
                return Some((before, counters));
            }
            last = Some((before, counters));
        }
        last
    }

    /// A slot's sums begin at zero for the next thread.
    pub fn clear_reading(&self, slot: u32) {
        if let Some(at) = self.readings.as_ref().and_then(|all| all.at::<LoopCounters>(slot)) {
            // SAFETY: within the mapping, and no probe touches a slot that no thread has.
            unsafe { at.write_volatile(LoopCounters::new_zeroed()) };
        }
    }

    fn set_reading_word(&self, slot: u32, offset: usize, value: u64) {
        if let Some(at) = self.readings.as_ref().and_then(|all| all.at::<LoopCounters>(slot)) {
            // SAFETY: within the mapping and aligned; the words are ours to write.
            unsafe { at.cast::<u8>().add(offset).cast::<u64>().write_volatile(value) };
        }
    }

    pub fn set_interpreter(&self, slot: u32, places: InterpreterPlaces) {
        let InterpreterPlaces { state, collecting, callback } = places;
        self.set_word(slot, offset_of!(Loop, python_tstate), state);
        self.set_word(slot, offset_of!(Loop, python_collecting), collecting);
        self.set_word(slot, offset_of!(Loop, python_callback), callback);
    }

    pub fn set_handed_work(&self, slot: u32, is_handed: bool) {
        self.set_word(slot, offset_of!(Loop, handed_work), u64::from(is_handed));
    }

    pub fn set_shares(&self, slot: u32, shares: bool) {
        self.set_word(slot, offset_of!(Loop, shares), u64::from(shares));
    }

    /// Writes a field that is the daemon's own.
    fn set_word(&self, slot: u32, offset: usize, value: u64) {
        if let Some(at) = self.loops.at::<Loop>(slot) {
            // SAFETY: within the mapping and aligned; the probes only read these fields.
            unsafe { at.cast::<u8>().add(offset).cast::<u64>().write_volatile(value) };
        }
    }

    /// Writes how a slot's thread parks. A probe that reads a half-written park takes it for no park.
    pub fn set_parks(&self, slot: u32, parks: Parks) {
        if let Some(at) = self.parks.at::<Parks>(slot) {
            // SAFETY: within the mapping; the probes only read it.
            unsafe { at.write_volatile(parks) };
        }
    }

    /// The bytes of a slot's capture as far as its stack goes. They may be half written: the caller
    /// compares the loop's state before and after.
    pub fn capture(&self, slot: u32) -> Option<Vec<u8>> {
        let at = self.captures.at::<Capture>(slot)?;
        // SAFETY: within the mapping; any bytes are a valid head.
        let head = unsafe { at.cast::<CaptureHead>().read_volatile() };
        if head.stack_bytes == 0 {
            return Some(head.as_bytes().to_vec());
        }
        let bytes = offset_of!(Capture, stack) + head.stack_bytes as usize;
        let mut copy = vec![0; bytes.min(size_of::<Capture>())];
        // SAFETY: both are at least as long, and the copy is new. The kernel may write meanwhile;
        // the bytes are plain data, and torn ones are found out by the caller.
        unsafe {
            std::ptr::copy_nonoverlapping(at.cast::<u8>().as_ptr(), copy.as_mut_ptr(), copy.len())
        };
        Some(copy)
    }
}
