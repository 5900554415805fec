//! Who has the CPU that a loop's thread waits for.

use profiler_ebpf::contention::{Contenders, TaskId};

use super::attachment::Session;
use crate::process::TargetMemory;
use crate::process::other_process;
use crate::source::{EventSource, Slot};

impl<S: EventSource, M: TargetMemory> Session<S, M> {
    /// Who has run so far instead of a thread whose turn goes on.
    pub fn look_who_runs(&mut self, slot: Slot, now_ns: u64) {
        let Some(mut contenders) = self.source.contenders(slot) else { return };
        if contenders.waiter != 0 && !self.goes_on(&contenders, slot.state.tid) {
            contenders.on_cpu = TaskId::UNKNOWN;
        }
        self.followed(slot.state.tid).contenders = Some(Box::new(contenders.so_far(now_ns)));
    }

    /// Whether the thread still waits where it is recorded to, behind whom it is recorded to. The probes
    /// hear of its move elsewhere only at the next switch there.
    fn goes_on(&self, contenders: &Contenders, tid: u32) -> bool {
        let is_there = |pid, tid| other_process::ready_on(pid, tid) == Some(contenders.cpu);
        let Contenders { on_cpu, .. } = contenders;
        // The idle task is in no list of threads.
        let is_idle = on_cpu.tid == 0;
        is_there(self.target.pid(), tid) && (is_idle || is_there(on_cpu.tgid, on_cpu.tid))
    }
}
