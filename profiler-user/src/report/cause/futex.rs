//! A wait on a futex that names no owner, to what it was: for another thread, for a time that ran out, or for itself.

use profiler_ebpf::record::Registers;

use super::held;
use crate::call::Timeout;
use crate::frame::{Frame, Language};
use crate::gap::Gap;
use crate::report::application::is_of_python;
use crate::report::purpose::{Purpose, is_grpc};
use crate::report::schema::stall::{AwaitedOf, CauseKind};
use crate::report::units::milliseconds;
use crate::turn::{End, Lock, Sampled, Stall};

/// Functions of Python's standard library that wait for other threads: the file, the end of the name.
const PYTHON_WAITS: [(&str, &str, AwaitedOf); 15] = [
    ("concurrent/futures/_base.py", "Future.result", AwaitedOf::Result),
    ("concurrent/futures/_base.py", "result", AwaitedOf::Result),
    ("concurrent/futures/_base.py", "Future.exception", AwaitedOf::Result),
    ("concurrent/futures/_base.py", "wait", AwaitedOf::Result),
    ("concurrent/futures/_base.py", "as_completed", AwaitedOf::Result),
    ("multiprocessing/pool.py", "ApplyResult.get", AwaitedOf::Result),
    ("threading.py", "Thread.join", AwaitedOf::End),
    ("threading.py", "Thread._wait_for_tstate_lock", AwaitedOf::End),
    ("concurrent/futures/thread.py", "ThreadPoolExecutor.shutdown", AwaitedOf::End),
    ("queue.py", "Queue.get", AwaitedOf::Queue),
    ("queue.py", "Queue.put", AwaitedOf::Queue),
    ("queue.py", "Queue.join", AwaitedOf::Queue),
    ("threading.py", "Event.wait", AwaitedOf::Event),
    ("threading.py", "Condition.wait", AwaitedOf::Event),
    ("threading.py", "Barrier.wait", AwaitedOf::Event),
];

/// gRPC's own, in Python. It waits in a loop, as its core does: each wait has a time that runs out, for signals
/// to be seen.
const GRPC_WAIT: (&str, &str) = ("/grpc/_common.py", "wait");

/// Those of native code, and how much of a stack's inner end they are looked for in.
const NATIVE_WAITS: [(&str, AwaitedOf); 8] = [
    ("pthread_join", AwaitedOf::End),
    ("__pthread_clockjoin_ex", AwaitedOf::End),
    ("std::thread::JoinInner", AwaitedOf::End),
    ("std::thread::JoinHandle", AwaitedOf::End),
    ("std::sync::mpsc::", AwaitedOf::Queue),
    ("crossbeam_channel::", AwaitedOf::Queue),
    ("std::__future_base::", AwaitedOf::Result),
    ("_PyCriticalSection", AwaitedOf::Object),
];

/// Half of the waits or more.
const MOST: u64 = 2;

/// What it was. Where the waits' times ran out, nobody was to end them: a sleep, in effect.
pub fn explain(stall: &Stall, sampled: &Sampled, futex: u64, gaps: &mut Vec<Gap>) -> CauseKind {
    let mut of_lock = Vec::new();
    let mut kind = held::lock(stall, futex, &mut of_lock);
    if let CauseKind::Lock { owner_thread: None, awaited, .. } = &mut kind {
        let waits = &stall.futexes;
        let futexes = stall.waited.iter().filter(|it| matches!(it.lock, Lock::Futex(_)));
        let waited_ns: u64 = futexes.map(|waited| waited.time_ns).sum();
        let mostly_ran_out = waits.ran_out_ns > 0 && waits.ran_out_ns >= waited_ns / MOST;
        let lasting_ns = match waits.lasting {
            Some(Some(Timeout::Ns(ns))) => Some(ns),
            _ => None,
        };
        let told = awaited_of(&sampled.stack.frames);
        let is_for_grpc = told == Some(AwaitedOf::Grpc);
        let is_alone = stall.company.others == Some(0) && is_private(&sampled.registers);
        if !is_for_grpc && (mostly_ran_out || lasting_ns.is_some() && is_alone) {
            return CauseKind::Sleep {
                syscall: "futex".to_owned(),
                asked_ns: lasting_ns.or(waits.timeouts_ns.last().copied()),
                purpose: Some(Purpose::TimedWait),
                path: None,
                held_by: Vec::new(),
                ran_out_ns: waits.timeouts_ns.clone(),
            };
        }
        *awaited = told;
    }
    gaps.append(&mut of_lock);
    kind
}

/// Whether nobody is known to have had to do with it.
pub fn is_guess(kind: &CauseKind) -> bool {
    matches!(kind, CauseKind::Lock { owner_thread: None, woken_by: None, .. })
}

/// What a stack waits for another thread to give, by the innermost function that tells.
fn awaited_of(frames: &[Frame]) -> Option<AwaitedOf> {
    let mut found = None;
    for frame in frames {
        let (file, function) = (frame.file.as_deref(), frame.function.as_deref());
        let (file, function) = (file.unwrap_or_default(), function.unwrap_or_default());
        let of_frame = match frame.language {
            Language::Python if file.starts_with("<frozen importlib") => Some(AwaitedOf::Import),
            Language::Python if is_wait_of_grpc(file, function) => Some(AwaitedOf::Grpc),
            Language::Python => PYTHON_WAITS.into_iter().find_map(|(module, name, awaited)| {
                (is_of_python(file, module) && is_last(function, name)).then_some(awaited)
            }),
            // Its core, where another thread takes what comes out of the completion queue.
            Language::Native if is_grpc(frame) => Some(AwaitedOf::Grpc),
            Language::Native => NATIVE_WAITS
                .into_iter()
                .find_map(|(start, awaited)| function.starts_with(start).then_some(awaited)),
            Language::JavaScript | Language::Kernel => None,
        };
        // What an event is waited for within says more: `Thread.join` has its own.
        match of_frame {
            Some(AwaitedOf::Event) => found = found.or(of_frame),
            Some(_) => return of_frame,
            // gRPC's own function stands between the condition and the one that tells.
            None if found.is_some() && !file.ends_with(GRPC_WAIT.0) => return found,
            None => {}
        }
    }
    found
}

fn is_wait_of_grpc(file: &str, function: &str) -> bool {
    file.ends_with(GRPC_WAIT.0) && function == GRPC_WAIT.1
}

/// `Future.result` also where only `result` is known, as before 3.11.
fn is_last(function: &str, name: &str) -> bool {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    if function.contains('.') { function == name } else { function == last(name) }
}

/// `in waits whose timeouts of 400 and 800 ms ran out`; `asked_ns` is that of one that still goes on.
pub fn ran_out(timeouts_ns: &[u64], asked_ns: Option<u64>) -> String {
    let times: Vec<String> = timeouts_ns.iter().map(|ns| milliseconds(*ns).to_string()).collect();
    match times.as_slice() {
        [] => {
            let asked = asked_ns.map(|ns| format!(" of {} ms", milliseconds(ns)));
            format!("in a wait with a timeout{}", asked.unwrap_or_default())
        }
        [only] => format!("in a wait whose timeout of {only} ms ran out"),
        [first @ .., last] => {
            format!("in waits whose timeouts of {} and {last} ms ran out", first.join(", "))
        }
    }
}

/// Whether nobody can end the wait that still goes on: it has no timeout, is none that other processes see,
/// and there is no other thread.
pub fn is_for_itself(stall: &Stall, sampled: &Sampled) -> bool {
    lasts(stall) && is_private(&sampled.registers) && stall.company.others == Some(0)
}

/// Whether it has been going on without a timeout up to now, or to where it was lost sight of.
pub fn lasts(stall: &Stall) -> bool {
    stall.end != End::Seen && stall.futexes.lasting == Some(Some(Timeout::None))
}

fn is_private(registers: &Registers) -> bool {
    const PRIVATE: u64 = 128;
    registers.args[1] & PRIVATE != 0
}

#[cfg(test)]
mod tests {
    use super::{awaited_of, explain, is_for_itself, ran_out};
    use crate::call::Timeout;
    use crate::frame::Frame;
    use crate::report::sample::{self, blocked_in, native, python};
    use crate::report::schema::stall::{AwaitedOf, CauseKind};
    use crate::turn::futex::FutexWaits;
    use crate::turn::{Company, End, Lock, Stall, Waited};

    const MS: u64 = 1_000_000;
    const LIB: &str = "/usr/lib/python3.11";

    fn stall(futexes: FutexWaits) -> Stall {
        let waited = [(Lock::Futex(0x7f10), 100), (Lock::Gil, 900)];
        let waited = waited.map(|(lock, ms)| Waited { lock, time_ns: ms * MS }).to_vec();
        Stall { futexes, waited, ..sample::stall() }
    }

    /// Waits that mostly ran out are sleeps; one that somebody ended, or that goes on, is a wait for another
    /// thread.
    #[test]
    fn times_that_ran_out() {
        let kind_in = |ran_out_ms: u64, frames| {
            let timeouts_ns = vec![60 * MS];
            let ran_out_ns = ran_out_ms * MS;
            let stall = stall(FutexWaits { ran_out_ns, timeouts_ns, ..FutexWaits::default() });
            let mut futex = blocked_in(202, [0x7f10, 128, 0, 0, 0, 0], 100 * MS);
            futex.stack.frames = frames;
            explain(&stall, &futex, 0x7f10, &mut Vec::new())
        };
        let kind = |ran_out_ms| kind_in(ran_out_ms, Vec::new());
        let grpc = kind_in(60, vec![python("wait", "/v/grpc/_common.py", 116)]);
        assert!(matches!(grpc, CauseKind::Lock { awaited: Some(AwaitedOf::Grpc), .. }), "its own");
        let CauseKind::Sleep { ran_out_ns, .. } = kind(60) else { panic!("{:?}", kind(60)) };
        assert_eq!(ran_out_ns, [60 * MS]);
        assert!(matches!(kind(40), CauseKind::Lock { .. }));
        assert_eq!(ran_out(&[400 * MS], None), "in a wait whose timeout of 400 ms ran out");
        let several = ran_out(&[MS, 2 * MS, 3 * MS], None);
        assert_eq!(several, "in waits whose timeouts of 1, 2 and 3 ms ran out");
        assert_eq!(ran_out(&[], Some(400 * MS)), "in a wait with a timeout of 400 ms");
    }

    /// The wait is told by what it is for, not by the condition underneath.
    #[test]
    fn what_is_awaited() {
        let of = |function: &str, file: &str| python(function, &format!("{LIB}/{file}"), 9);
        let wait = || of("Condition.wait", "threading.py");
        let of_grpc = |function| python(function, "/v/site-packages/grpc/_common.py", 116);
        let critical = ["PyMutex_Lock", "_PyCriticalSection_BeginSlow", "list_append"];
        let table: [(Vec<Frame>, _); 11] = [
            (
                critical.map(|name| native(name, "/usr/bin/python3.14t")).to_vec(),
                Some(AwaitedOf::Object),
            ),
            (
                vec![native("wait", "/lib/libc.so.6"), native("cq_next", "/lib/libgrpc.so.29")],
                Some(AwaitedOf::Grpc),
            ),
            (vec![wait(), of_grpc("_wait_once"), of_grpc("wait")], Some(AwaitedOf::Grpc)),
            (
                vec![wait(), of("Future.result", "concurrent/futures/_base.py")],
                Some(AwaitedOf::Result),
            ),
            (vec![wait(), of("result", "concurrent/futures/_base.py")], Some(AwaitedOf::Result)),
            (
                vec![wait(), of("Event.wait", "threading.py"), of("Thread.start", "threading.py")],
                Some(AwaitedOf::Event),
            ),
            (vec![wait(), of("Queue.get", "queue.py")], Some(AwaitedOf::Queue)),
            (
                vec![wait(), python("on_write", "/srv/app.py", 3), of("Queue.get", "queue.py")],
                Some(AwaitedOf::Event),
            ),
            (
                vec![python("_ModuleLock.acquire", "<frozen importlib._bootstrap>", 120)],
                Some(AwaitedOf::Import),
            ),
            (vec![native("__pthread_clockjoin_ex", "/lib/libc.so.6")], Some(AwaitedOf::End)),
            (vec![python("result", "/srv/concurrent/futures/_base.py", 3)], None),
        ];
        for (frames, expected) in table {
            assert_eq!(awaited_of(&frames), expected, "{:?}", frames.last());
        }
    }

    /// A loop waits for itself where nobody else is there, nothing limits the wait, and no other process
    /// can see the futex.
    #[test]
    fn alone() {
        let lasting = |timeout| FutexWaits { lasting: Some(timeout), ..FutexWaits::default() };
        let with = |others, timeout, operation, end| {
            let company = Company { others, ..Company::default() };
            let stall = Stall { company, end, ..stall(lasting(timeout)) };
            is_for_itself(&stall, &blocked_in(202, [0x7f10, operation, 0, 0, 0, 0], MS))
        };
        let endless = Some(Timeout::None);
        assert!(with(Some(0), endless, 128 | 9, End::NotYet));
        assert!(!with(Some(1), endless, 128, End::NotYet));
        assert!(!with(None, endless, 128, End::NotYet), "nobody has looked");
        assert!(!with(Some(0), None, 128, End::NotYet), "it may have a timeout");
        assert!(!with(Some(0), endless, 0, End::NotYet), "another process may end it");
        assert!(!with(Some(0), endless, 128, End::Seen));
    }
}
