//! Who has the CPU that a loop's thread waits for.

use profiler_ebpf::rivals::{Rivals, TaskId};

use super::attachment::Session;
use crate::process::TargetMemory;
use crate::process::neighbour;
use crate::source::{EventSource, Slot};

impl<S: EventSource, M: TargetMemory> Session<S, M> {
    /// Who has run so far instead of a thread whose turn goes on.
    pub fn look_who_runs(&mut self, slot: Slot, now_ns: u64) {
        let Some(mut rivals) = self.source.rivals(slot) else { return };
        if rivals.waiter != 0 && !self.goes_on(&rivals, slot.state.tid) {
            rivals.on_cpu = TaskId::UNKNOWN;
        }
        self.followed(slot.state.tid).rivals = Some(Box::new(rivals.so_far(now_ns)));
    }

    /// Whether the thread still waits where it is recorded to, behind whom it is recorded to. The probes
    /// hear of its move elsewhere only at the next switch there.
    fn goes_on(&self, rivals: &Rivals, tid: u32) -> bool {
        let is_there = |pid, tid| neighbour::ready_on(pid, tid) == Some(rivals.cpu);
        let Rivals { on_cpu, .. } = rivals;
        // The idle task is in no list of threads.
        let is_idle = on_cpu.tid == 0;
        is_there(self.target.pid(), tid) && (is_idle || is_there(on_cpu.tgid, on_cpu.tid))
    }
}
