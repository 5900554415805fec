//! Who had the CPU instead of a loop's thread, by name.

use std::collections::BTreeMap;

use crate::process::other_process::{OtherProcess, thread_name};
use crate::turn::contention::Contention;

/// Asks who they are. `known` has those that were asked before, and may be gone by now.
pub fn introduce(contention: &mut Contention, known: &mut BTreeMap<u32, OtherProcess>) {
    for ran in &mut contention.ran {
        ran.name = ran.name.take().or_else(|| thread_name(ran.pid, ran.tid));
        if let Some(name) = &ran.name
            && !known.contains_key(&ran.pid)
            && let Some(process) = OtherProcess::of_thread(ran.pid, ran.tid, name)
        {
            known.insert(ran.pid, process);
        }
        if let Some(process) = known.get(&ran.pid) {
            contention.processes.insert(ran.pid, process.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{introduce, thread_name};
    use crate::turn::contention::{Contender, Contention};

    /// Who was asked once is known also when it is gone.
    #[test]
    fn processes_are_remembered() {
        let pid = std::process::id();
        let name = Some(thread_name(pid, pid).unwrap());
        let mut known = BTreeMap::new();
        let ran = vec![Contender { pid, tid: pid, name, time_ns: 5 }];
        let mut contention = Contention { ran, ..Contention::default() };
        introduce(&mut contention, &mut known);
        assert!(contention.processes[&pid].command.is_some());

        let gone = Contender { pid, tid: pid, name: Some("it was".to_owned()), time_ns: 5 };
        let mut later = Contention { ran: vec![gone.clone()], ..Contention::default() };
        introduce(&mut later, &mut known);
        assert_eq!(later.processes, contention.processes);
        let mut unknown = Contention { ran: vec![gone], ..Contention::default() };
        introduce(&mut unknown, &mut BTreeMap::new());
        assert!(unknown.processes.is_empty());
    }
}
