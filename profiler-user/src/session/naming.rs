//! Which loops threads run, and what their runtime calls them, to the analyst.
//!
//! A stack inside a turn may be too deep to show the loop; that of a wait is not.

use super::attachment::Session;
use crate::gap::Gap;
use crate::job::Job;
use crate::process::TargetMemory;
use crate::runtime::{Effort, THREAD_NAME};
use crate::source::{EventSource, Slot};

impl<S: EventSource, M: TargetMemory> Session<S, M> {
    /// Has the analyst look at threads that sleep in a wait. The main thread's is looked at for the statistics only.
    pub fn show_waiting(&mut self, slots: &[Slot], now_ns: u64, jobs: &mut Vec<Job>) {
        let main = if self.statistics.is_some() { None } else { Some(self.target.pid()) };
        let new = self.shown.next(&mut self.source, slots, main, now_ns);
        if new.is_empty() {
            return;
        }
        let states = self.interpreter_states();
        for thread in new {
            let (captured, frames) = self.asleep(&thread, &states, Effort::Walked, now_ns);
            jobs.push(Job::Show { captured: Box::new(captured), frames });
        }
    }

    /// Has the analyst know what its runtime calls the thread: its program may rename it at any time. Not where its
    /// address space was locked since then: whoever reads it may wait for as long as the thread does.
    pub fn tell_name(&mut self, tid: u32, since_ns: u64, jobs: &mut Vec<Job>) {
        let Some(interpreter) = self.runtimes.interpreter_mut() else { return };
        let followed = self.loops.get(&tid);
        if followed.is_some_and(|followed| followed.locked_ns >= since_ns.max(1)) {
            let why = "the address space was locked, and the interpreter's memory in it";
            jobs.push(Job::Named { tid, name: Err(Gap::new(THREAD_NAME, why)) });
            return;
        }
        let known = followed.and_then(|followed| followed.interpreter_state);
        let state = known.or_else(|| {
            let number = self.target.tid_in_container(tid)?;
            interpreter.state_of(&self.memory, number)
        });
        // A thread without a state runs none of the interpreter's code.
        let Some(state) = state else { return };
        jobs.push(Job::Named { tid, name: interpreter.thread_name(&self.memory, state) });
    }
}
