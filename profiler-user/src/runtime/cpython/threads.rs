//! The runtime's lists to its thread states, and from those to the one of a given thread.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::frames::{innermost, is_outermost};
use super::layout::{CpythonLayout, Shims};
use super::object::{Object, Width};
use crate::gap::Gap;
use crate::process::{TargetMemory, Unreadable};

/// Interpreters of one process walked at most. Servers with sub-interpreters run one per core or
/// application.
pub(super) const MAX_INTERPRETERS: usize = 256;

/// Thread states walked at most, of all interpreters together: as many as threads are looked at.
pub(super) const MAX_THREAD_STATES: usize = 16 * 1024;

/// `PID_MAX_LIMIT` (include/linux/threads.h).
const MAX_TID: u32 = 4 * 1024 * 1024;

/// Where the `tid` lies from a thread's descriptor on, in glibc and in musl, x86-64.
const DESCRIPTOR_TIDS: [u64; 2] = [0x2d0, 0x30];

/// One thread as the interpreter knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PythonThread {
    /// Of the `PyThreadState`.
    pub address: u64,
    /// The thread's number in the innermost PID namespace. Not kept by CPython before 3.11.
    pub native_thread_id: Option<u32>,
    /// The address of the thread's descriptor; on x86-64 its `fsbase`. 0: not bound to a thread yet.
    pub thread_id: u64,
}

/// Every thread state that could be reached, and why the rest could not, if there is a rest.
pub fn list(
    memory: &dyn TargetMemory,
    layout: &CpythonLayout,
    runtime: u64,
) -> (Vec<PythonThread>, Option<Gap>) {
    let mut states = Vec::new();
    let end = collect(memory, layout, runtime, &mut states);
    let gap = match end {
        Ok(true) => None,
        Ok(false) => Some(Gap::new(
            "Python thread states",
            format_args!(
                "there are more than {MAX_THREAD_STATES}, or {MAX_INTERPRETERS} interpreters"
            ),
        )),
        Err(error) => Some(Gap::new("Python thread states", error)),
    };
    (states, gap)
}

/// False where a bound ended the walk: too many states, or lists that lead back into themselves.
fn collect(
    memory: &dyn TargetMemory,
    layout: &CpythonLayout,
    runtime: u64,
    states: &mut Vec<PythonThread>,
) -> Result<bool, Unreadable> {
    let word = |base: u64, offset: u32| memory.read_u64(base.wrapping_add(offset.into()));
    let mut interpreter = word(runtime, layout.runtime_interpreters)?;
    for _ in 0..MAX_INTERPRETERS {
        if interpreter == 0 {
            return Ok(true);
        }
        let mut address = word(interpreter, layout.interpreter_threads)?;
        while address != 0 {
            if states.len() == MAX_THREAD_STATES {
                return Ok(false);
            }
            let (state, next) = read(memory, layout, address)?;
            states.push(state);
            address = next;
        }
        interpreter = word(interpreter, layout.interpreter_next)?;
    }
    Ok(interpreter == 0)
}

fn read(
    memory: &dyn TargetMemory,
    layout: &CpythonLayout,
    address: u64,
) -> Result<(PythonThread, u64), Unreadable> {
    let native = layout.tstate_native_id;
    let object = Object::read(
        memory,
        address,
        &[
            (layout.tstate_next, Width::Word),
            (layout.walk.tstate_thread_id, Width::Word),
            (native.unwrap_or(layout.tstate_next), Width::Word),
        ],
    )?;
    let state = PythonThread {
        address,
        native_thread_id: native.map(|at| object.u32(at)).transpose()?,
        thread_id: object.u64(layout.walk.tstate_thread_id)?,
    };
    Ok((state, object.u64(layout.tstate_next)?))
}

/// The state in which a thread runs Python code. A thread may have several, one per interpreter
/// that it has entered; it is in the one that has frames.
pub fn of_thread(
    memory: &dyn TargetMemory,
    layout: &CpythonLayout,
    states: &[PythonThread],
    tid: u32,
    fsbase: Option<u64>,
) -> Option<u64> {
    let has_frames = |state: &&PythonThread| is_in_use(memory, layout, state.address);
    let find = |matches: &dyn Fn(&PythonThread) -> bool| {
        let bound = states.iter().filter(|state| state.thread_id != 0);
        let mut found = bound.filter(|state| matches(state)).peekable();
        let first = found.peek().map(|state| state.address);
        found.find(has_frames).map(|state| state.address).or(first)
    };
    match fsbase {
        Some(fsbase) => find(&|state| state.thread_id == fsbase),
        // A process that forked without telling the interpreter, as uWSGI does, has an old number in
        // its first thread's state; the C library knows better.
        None => find(&|state| state.native_thread_id == Some(tid))
            .or_else(|| find(&|state| has_tid(memory, state, tid))),
    }
}

/// Whether a state has frames. From 3.15 on it is never without its own, the outermost.
fn is_in_use(memory: &dyn TargetMemory, layout: &CpythonLayout, state: u64) -> bool {
    let Ok(frame) = innermost(memory, &layout.walk, state) else { return false };
    let is_base =
        || layout.shims == Shims::ThreeAndBase && is_outermost(memory, &layout.walk, frame);
    frame != 0 && !is_base()
}

/// The state of each thread, by its thread pointer; of several the one with frames.
pub fn by_thread(
    memory: &dyn TargetMemory,
    layout: &CpythonLayout,
    states: &[PythonThread],
) -> Vec<(u64, u64)> {
    let mut of_threads: BTreeMap<u64, u64> = BTreeMap::new();
    for state in states.iter().filter(|state| state.thread_id != 0) {
        match of_threads.entry(state.thread_id) {
            Entry::Vacant(entry) => {
                entry.insert(state.address);
            }
            Entry::Occupied(mut entry) => {
                let in_use = |state| is_in_use(memory, layout, state);
                if !in_use(*entry.get()) && in_use(state.address) {
                    entry.insert(state.address);
                }
            }
        }
    }
    of_threads.into_iter().collect()
}

/// The thread's number in its PID namespace; before 3.11 by the first descriptor field that is one.
pub fn number(memory: &dyn TargetMemory, state: &PythonThread) -> Option<u32> {
    let kept = |offset: &u64| memory.read_u32(state.thread_id.wrapping_add(*offset)).ok();
    let plausible = |number: &u32| (1..=MAX_TID).contains(number);
    state.native_thread_id.or_else(|| DESCRIPTOR_TIDS.iter().filter_map(kept).find(plausible))
}

/// Which kernel thread a descriptor is of, as the C library has it.
fn has_tid(memory: &dyn TargetMemory, state: &PythonThread, tid: u32) -> bool {
    DESCRIPTOR_TIDS
        .iter()
        .any(|offset| memory.read_u32(state.thread_id.wrapping_add(*offset)) == Ok(tid))
}

#[cfg(test)]
mod tests {
    use super::{MAX_THREAD_STATES, PythonThread, by_thread, list, of_thread};
    use crate::runtime::cpython::layout::CpythonLayout;
    use crate::runtime::cpython::offsets::of_minor;
    use crate::runtime::cpython::pages::CopiedPages;

    const RUNTIME: u64 = 0x1_0000;
    const FRAME: u64 = 0x9_0000;
    const BASE: u64 = 0xa_0000;

    /// Interpreters with thread states: (descriptor, kernel's number, whether it has frames).
    fn process(layout: &CpythonLayout, interpreters: &[&[(u64, u32, bool)]]) -> CopiedPages {
        let mut pages = CopiedPages::default();
        let interpreter = |number: usize| 0x100_0000 * (number as u64 + 1);
        let head = if interpreters.is_empty() { 0 } else { interpreter(0) };
        pages.put_u64(RUNTIME + u64::from(layout.runtime_interpreters), head);
        for (number, threads) in interpreters.iter().enumerate() {
            let base = interpreter(number);
            let next = if number + 1 < interpreters.len() { interpreter(number + 1) } else { 0 };
            let state = |position: usize| base + 0x1_0000 + 0x1000 * position as u64;
            let head = if threads.is_empty() { 0 } else { state(0) };
            pages.put_u64(base + u64::from(layout.interpreter_next), next);
            pages.put_u64(base + u64::from(layout.interpreter_threads), head);
            for (position, &(thread_id, native_id, has_frames)) in threads.iter().enumerate() {
                let at = state(position);
                let next = if position + 1 < threads.len() { state(position + 1) } else { 0 };
                pages.put(at, &[0; 256]);
                pages.put_u64(at + u64::from(layout.tstate_next), next);
                pages.put_u64(at + u64::from(layout.walk.tstate_thread_id), thread_id);
                let frame = if has_frames { FRAME } else { 0 };
                pages.put_u64(at + u64::from(layout.walk.tstate_frame), frame);
                if let Some(native) = layout.tstate_native_id {
                    pages.put_u64(at + u64::from(native), native_id.into());
                }
                // What glibc keeps in the thread's descriptor.
                pages.put(thread_id + 0x2d0, &native_id.to_le_bytes());
            }
        }
        pages
    }

    /// All threads of all interpreters are listed, in every version.
    #[test]
    fn lists_every_thread() {
        for minor in [8, 10, 13, 14, 15] {
            let layout = of_minor(minor).expect("known");
            let memory = process(&layout, &[&[(0x7000, 11, true), (0x8000, 12, true)], &[]]);
            let (states, gap) = list(&memory, &layout, RUNTIME);
            assert_eq!(gap, None);
            let ids: Vec<_> = states.iter().map(|state| state.thread_id).collect();
            assert_eq!(ids, [0x7000, 0x8000], "3.{minor}");
            let native = states.first().and_then(|state| state.native_thread_id);
            assert_eq!(native, (minor >= 11).then_some(11), "3.{minor}");
        }
    }

    /// A thread is found by its number, or by its thread pointer, which is the better witness.
    #[test]
    fn finds_a_thread() {
        for minor in [9, 13] {
            let layout = of_minor(minor).expect("known");
            let memory = process(&layout, &[&[(0x7000, 11, true), (0x8000, 12, true)]]);
            let (states, _) = list(&memory, &layout, RUNTIME);
            let [first, second] = states.as_slice() else { panic!("two states") };
            let find = |tid, fsbase| of_thread(&memory, &layout, &states, tid, fsbase);
            assert_eq!(find(12, None), Some(second.address), "3.{minor}");
            assert_eq!(find(12, Some(0x7000)), Some(first.address), "3.{minor}");
            assert_eq!(find(13, None), None);
            assert_eq!(find(11, Some(0x9000)), None);
        }
    }

    /// Of several states of one thread the one with frames counts; a state without a thread never.
    #[test]
    fn prefers_the_state_in_use() {
        for minor in [13, 15] {
            prefers_the_state_in_use_of(minor);
        }
    }

    fn prefers_the_state_in_use_of(minor: u8) {
        let layout = of_minor(minor).expect("known");
        let mut memory =
            process(&layout, &[&[(0x7000, 11, false)], &[(0x7000, 11, true), (0, 0, true)]]);
        if minor >= 15 {
            memory.put_u64(FRAME + u64::from(layout.walk.frame_previous), BASE);
            memory.put_u64(BASE + u64::from(layout.walk.frame_previous), 0);
            let unused = list(&memory, &layout, RUNTIME).0[0].address;
            memory.put_u64(unused + u64::from(layout.walk.tstate_frame), BASE);
        }
        let (states, _) = list(&memory, &layout, RUNTIME);
        let used = states.get(1).map(|state| state.address);
        assert_eq!(of_thread(&memory, &layout, &states, 11, None), used);
        assert_eq!(by_thread(&memory, &layout, &states), [(0x7000, used.unwrap_or(0))]);
        assert_eq!(of_thread(&memory, &layout, &states, 0, None), None);
        let idle: Vec<PythonThread> = states.iter().copied().take(1).collect();
        let first = idle.first().map(|state| state.address);
        assert_eq!(of_thread(&memory, &layout, &idle, 11, None), first, "no frames, but its own");
    }

    /// Lists that lead into themselves or nowhere end, keep what they had, and say so.
    #[test]
    fn torn_lists() {
        let layout = of_minor(13).expect("known");
        let mut memory = process(&layout, &[&[(0x7000, 11, true), (0x8000, 12, true)]]);
        let (states, _) = list(&memory, &layout, RUNTIME);
        let first = states.first().map_or(0, |state| state.address);
        let second_next = states.get(1).map_or(0, |s| s.address + u64::from(layout.tstate_next));
        memory.put_u64(second_next, first);
        let (states, gap) = list(&memory, &layout, RUNTIME);
        assert_eq!(states.len(), MAX_THREAD_STATES);
        assert!(gap.is_some_and(|gap| gap.0.contains("more than")));
        memory.put_u64(second_next, 0xdead_0000);
        let (states, gap) = list(&memory, &layout, RUNTIME);
        assert_eq!(states.len(), 2);
        assert!(gap.is_some_and(|gap| gap.0.contains("not readable")));
    }
}
