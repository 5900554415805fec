//! A pause of a whole runtime that a loop waited for: what for, and who set it off.

use super::locked;
use super::verdict::Conclusion;
use crate::frame::Frame;
use crate::report::schema::stall::{Confidence, Pause, StopTheWorld, Thread};
use crate::runtime::collector::is_of_collector;
use crate::turn::{Awaited, Companion, Sampled, Stall};

/// Where a thread of HotSpot's waits for a safepoint to end (src/hotspot/share/runtime/safepoint.cpp).
const SAFEPOINTS: [&str; 2] = ["SafepointSynchronize::block", "SafepointSynchronize::do_call_back"];

/// Where one waits that asked for the operation which the safepoint is for (vmThread.cpp).
const ASKS: [&str; 2] = ["VMThread::execute", "VMThread::wait_until_executed"];

/// The thread that does such operations, by the name that HotSpot gives it.
const VM_THREAD: &str = "VM Thread";

/// Parts of the names of functions that collect garbage.
const COLLECTS: [&str; 3] = ["Collect", "GC", "Compact"];

/// Where a thread of a CPython without the interpreter's lock waits until all threads may go on (Python/pystate.c since
/// 3.13).
const SUSPENDED: [&str; 2] = ["_PyThreadState_Attach", "tstate_wait_attach"];

/// Says so where the whole runtime stood still. The line that waits for that is innocent: every line would.
pub fn attach<'a>(verdict: &mut Conclusion<'a>, stall: &'a Stall) -> bool {
    if is_mostly_at(verdict, &SUSPENDED) {
        cpython(verdict, stall);
        return true;
    }
    let is_jvms = is_mostly_at(verdict, &SAFEPOINTS);
    if is_jvms {
        jvm(verdict, stall);
    }
    is_jvms
}

/// Whether most of it went into waits on futexes inside these functions.
fn is_mostly_at(verdict: &Conclusion<'_>, functions: &[&str]) -> bool {
    let waits = |sampled: &&Sampled| {
        sampled.awaited == Awaited::Futex && calls(&sampled.stack.frames, functions)
    };
    let waited_ns: u64 = verdict.evidence.iter().copied().filter(waits).map(|it| it.time_ns).sum();
    waited_ns.saturating_mul(2) > verdict.cause.time_ns
}

/// Without the interpreter's lock all threads run at once, but while one of them collects garbage, or changes what all
/// may be reading.
fn cpython<'a>(verdict: &mut Conclusion<'a>, stall: &'a Stall) {
    let waker = stall.wakers.iter().find(|waker| waker.awaited == Awaited::Futex);
    let collector = stall.company.threads.iter().find(|it| collects(&it.seen));
    let set_off_by = match (waker, collector) {
        (Some(waker), _) => Some(Thread { tid: waker.tid, name: Some(waker.name.clone()) }),
        (None, Some(it)) => Some(Thread { tid: it.tid, name: it.name.clone() }),
        (None, None) => None,
    };
    let seen = waker.and_then(|waker| waker.seen.as_ref());
    let is_collection = collector.is_some() || seen.is_some_and(collects);
    let pause = if is_collection { Pause::GarbageCollection } else { Pause::StopTheWorld };
    let what = if is_collection { " to collect garbage" } else { "" };
    let by = set_off_by.as_ref().map(|it| format!(", set off by {}", locked::words(it)));
    let cause = &mut verdict.cause;
    cause.summary = format!("stopped by the interpreter{what}{}", by.unwrap_or_default());
    cause.confidence = cause.confidence.max(Confidence::Likely);
    let thread = set_off_by.clone();
    cause.kind.set_stop_the_world(StopTheWorld { pause, thread, set_off_by });
    verdict.blamed = waker.map(|it| it.tid).or(collector.map(|it| it.tid)).unwrap_or(stall.tid);
    verdict.evidence = seen.or(collector.map(|it| &it.seen)).into_iter().collect();
}

fn collects(seen: &Sampled) -> bool {
    seen.stack.frames.iter().any(is_of_collector)
}

fn jvm<'a>(verdict: &mut Conclusion<'a>, stall: &'a Stall) {
    let threads = &stall.company.threads;
    let is_it = |name: &str| name == VM_THREAD;
    let waker = stall.wakers.iter().find(|waker| is_it(&waker.name)).map(|waker| waker.tid);
    let working = threads.iter().filter(|it| it.name.as_deref().is_some_and(is_it));
    let tid = waker.or_else(|| working.clone().next().map(|it| it.tid));
    let asks = threads.iter().find(|it| calls(&it.seen.stack.frames, &ASKS));
    let collects = |it: &Companion| it.seen.stack.frames.iter().any(is_of_collection);
    let is_collection = working.clone().chain(asks).any(collects);
    let pause = if is_collection { Pause::GarbageCollection } else { Pause::Safepoint };
    let set_off_by = asks.map(|it| Thread { tid: it.tid, name: it.name.clone() });
    let what = if is_collection { " to collect garbage" } else { "" };
    let by = set_off_by.as_ref().map(|it| format!(", set off by {}", locked::words(it)));
    let cause = &mut verdict.cause;
    cause.summary = format!("stopped by the JVM at a safepoint{what}{}", by.unwrap_or_default());
    cause.confidence = cause.confidence.max(Confidence::Likely);
    let thread = tid.map(|tid| Thread { tid, name: Some(VM_THREAD.to_owned()) });
    cause.kind.set_stop_the_world(StopTheWorld { pause, thread, set_off_by });
    // Java's own frames have names only where the JVM lists them.
    let has_names = |it: &&Companion| it.seen.stack.frames.iter().any(is_made_at_run_time);
    verdict.evidence = asks.filter(has_names).map(|it| &it.seen).into_iter().collect();
    verdict.blamed = asks.map_or(stall.tid, |it| it.tid);
}

fn calls(frames: &[Frame], known: &[&str]) -> bool {
    let is_known = |name: &str| known.iter().any(|start| name.starts_with(start));
    frames.iter().any(|frame| frame.function.as_deref().is_some_and(is_known))
}

fn is_made_at_run_time(frame: &Frame) -> bool {
    frame.module.is_none() && frame.function.is_some()
}

fn is_of_collection(frame: &Frame) -> bool {
    let name = frame.function.as_deref().unwrap_or_default();
    COLLECTS.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::judge;
    use super::attach;
    use crate::report::sample::{self, blocked_in, native, python};
    use crate::report::schema::stall::Pause;
    use crate::turn::{Awaited, Companion, Sampled, Stall, Waker};

    const JVM: &str = "/usr/lib/jvm/lib/server/libjvm.so";

    fn futex(functions: &[&str]) -> Sampled {
        let mut seen = blocked_in(202, [0x7f10, 128, 0, 0, 0, 0], 5_000_000_000);
        seen.awaited = Awaited::Futex;
        seen.stack.frames = functions.iter().map(|name| native(name, JVM)).collect();
        seen
    }

    /// Where CPython has no lock for all, its collector stops the world: with whose line, once that is known.
    #[test]
    fn cpython_without_its_lock() {
        let frames = |functions: &[&str]| {
            let mut seen = futex(&[]);
            let exe = "/usr/bin/python3.14t";
            seen.stack.frames = functions.iter().map(|name| native(name, exe)).collect();
            seen
        };
        let wait = frames(&["_PyParkingLot_Park", "_PyThreadState_Attach", "time_sleep"]);
        let mut stall = Stall { stacks: vec![wait], wakers: Vec::new(), ..sample::stall() };
        let mut verdict = judge(&stall, &BTreeMap::new());
        assert!(attach(&mut verdict, &stall));
        assert_eq!(verdict.cause.summary, "stopped by the interpreter");
        let pause = verdict.cause.kind.stop_the_world().unwrap();
        assert_eq!((pause.pause, &pause.set_off_by), (Pause::StopTheWorld, &None));
        assert!(verdict.evidence.is_empty(), "the line that waits is innocent");

        let mut seen = frames(&["gc_collect_main"]);
        seen.stack.frames.push(python("collect_reports", "/srv/app.py", 6));
        let waker = Waker { tid: 8, name: "reports".to_owned(), ..Waker::default() };
        stall.wakers.push(Waker { awaited: Awaited::Futex, seen: Some(seen), ..waker });
        let mut verdict = judge(&stall, &BTreeMap::new());
        assert!(attach(&mut verdict, &stall));
        let expected =
            "stopped by the interpreter to collect garbage, set off by thread 8 (reports)";
        assert_eq!(verdict.cause.summary, expected);
        assert_eq!((verdict.evidence.len(), verdict.blamed), (1, 8));
    }

    /// A safepoint is told with the thread that asked for it, and what for.
    #[test]
    fn safepoints() {
        let block = "SafepointSynchronize::block(JavaThread*)";
        let waker = Waker { tid: 8, name: "VM Thread".to_owned(), ..Waker::default() };
        let wakers = vec![Waker { awaited: Awaited::Futex, ..waker }];
        let mut stall = Stall { stacks: vec![futex(&[block])], wakers, ..sample::stall() };
        let mut verdict = judge(&stall, &BTreeMap::new());
        assert!(attach(&mut verdict, &stall));
        assert_eq!(verdict.cause.summary, "stopped by the JVM at a safepoint");
        assert!(verdict.evidence.is_empty(), "nobody's line is known");

        let seen = futex(&["VMThread::execute(VM_Operation*)", "GenCollectedHeap::collect"]);
        let name = Some("reindexer".to_owned());
        let asks = Companion { tid: 9, name, seen, is_parked: false, waits_for: None };
        stall.company.threads.push(asks);
        let mut verdict = judge(&stall, &BTreeMap::new());
        assert!(attach(&mut verdict, &stall));
        let expected = "stopped by the JVM at a safepoint to collect garbage, set off by thread 9 \
                        (reindexer)";
        assert_eq!(verdict.cause.summary, expected);
        let told = verdict.cause.kind.stop_the_world().unwrap();
        assert_eq!((told.pause, verdict.blamed), (Pause::GarbageCollection, 9));

        let stall = Stall { stacks: vec![futex(&["Monitor::wait"])], ..sample::stall() };
        assert!(!attach(&mut judge(&stall, &BTreeMap::new()), &stall), "a lock of Java's");
    }
}
