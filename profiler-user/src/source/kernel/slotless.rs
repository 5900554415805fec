//! Threads that asked for a slot while there was none.

use aya::Ebpf;
use aya::maps::{HashMap, MapData};

use super::object::take;

/// They are in a map, each once; a counter says how many have been added.
#[derive(Debug)]
pub struct SlotlessMap {
    asked: HashMap<MapData, u32, u32>,
    /// How many had asked before there were any slots.
    early: u64,
    /// How many had been added when they were last read.
    read: u64,
}

impl SlotlessMap {
    pub fn new(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        Ok(Self { asked: take(ebpf, "SLOTLESS")?.try_into()?, early: 0, read: 0 })
    }

    /// There are slots from now on: those who asked before will ask again.
    pub fn begin(&mut self, count: u64) {
        let early: Vec<u32> = self.asked.keys().flatten().collect();
        // Another may have been added meanwhile, and stays.
        early.iter().for_each(|tid| _ = self.asked.remove(tid));
        (self.early, self.read) = (count, count);
    }

    pub fn early(&self) -> u64 {
        self.early
    }

    /// All of them, where some have been added since they were last read.
    pub fn news(&mut self, count: u64) -> Vec<u32> {
        let has_more = std::mem::replace(&mut self.read, count) != count;
        if has_more { self.asked.keys().flatten().collect() } else { Vec::new() }
    }
}
