//! Ways to block the thread that a task runs on, each recorded with its function, line and times.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::unistd::gettid;
use profiler_tests::clock::monotonic_ns;

/// Writes down each stall as one line of JSON.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<File>);

/// What blocks, from its first to its last line.
struct Place {
    kind: &'static str,
    function: &'static str,
    first: u32,
    last: u32,
}

impl Recorder {
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("no {}", path.display()))?;
        Ok(Self(Arc::new(file)))
    }

    fn write(&self, place: &Place, start_ns: u64) {
        let end_ns = monotonic_ns();
        let Place { kind, function, first, last } = place;
        let record = serde_json::json!({
            "kind": kind, "function": format!("tokio_target::block::{function}"),
            "file": file!(), "line": first, "last_line": last, "thread": gettid().as_raw(),
            "start_ns": start_ns, "end_ns": end_ns,
        });
        // In one piece: the reader may come at any time. What cannot be written, the test will miss.
        let _ = (&*self.0).write_all(format!("{record}\n").as_bytes());
    }
}

/// The body of an `async fn` is a function of its own, which the compiler names so.
pub async fn sleep_on_worker(duration: Duration, recorder: &Recorder) {
    let start_ns = monotonic_ns();
    let first = line!() + 1;
    std::thread::sleep(duration);
    let function = "sleep_on_worker::{{closure}}";
    recorder.write(&Place { kind: "sleep", function, first, last: first }, start_ns);
}

pub async fn spin(duration: Duration, recorder: &Recorder) {
    let start_ns = monotonic_ns();
    let first = line!() + 1;
    burn(duration);
    let last = first + 100;
    recorder.write(&Place { kind: "spin", function: "burn", first, last }, start_ns);
}

/// Computes. Inlined or not, it is the function to blame.
#[inline]
fn burn(duration: Duration) {
    let begun = Instant::now();
    let mut state = 1u64;
    while begun.elapsed() < duration {
        for round in 0..2000 {
            state = std::hint::black_box(state.wrapping_mul(0x9e37_79b9).rotate_left(7) ^ round);
        }
    }
}

/// Another thread has the lock.
pub async fn wait_for_lock(duration: Duration, recorder: &Recorder) {
    let (lock, held) = (Arc::new(Mutex::new(())), Arc::new(Barrier::new(2)));
    let (its_lock, its_held) = (Arc::clone(&lock), Arc::clone(&held));
    let holder = std::thread::spawn(move || {
        let guard = its_lock.lock().unwrap_or_else(PoisonError::into_inner);
        its_held.wait();
        std::thread::sleep(duration);
        drop(guard);
    });
    held.wait();
    let start_ns = monotonic_ns();
    let first = line!() + 1;
    drop(lock.lock().unwrap_or_else(PoisonError::into_inner));
    let function = "wait_for_lock::{{closure}}";
    recorder.write(&Place { kind: "lock", function, first, last: first }, start_ns);
    let _ = holder.join();
}

/// Reads what another thread writes only later.
pub async fn read_pipe(duration: Duration, recorder: &Recorder) {
    let Ok((mut reader, mut writer)) = std::io::pipe() else { return };
    let sender = std::thread::spawn(move || {
        std::thread::sleep(duration);
        let _ = writer.write_all(b"x");
    });
    let start_ns = monotonic_ns();
    let first = line!() + 1;
    let _ = reader.read_exact(&mut [0]);
    let function = "read_pipe::{{closure}}";
    recorder.write(&Place { kind: "read", function, first, last: first }, start_ns);
    let _ = sender.join();
}

/// Blocks all workers at once, each 150 ms longer than the one before it: the first is back after `duration`.
pub async fn hold_all(duration: Duration, workers: usize, recorder: &Recorder) {
    let gate = Arc::new((Barrier::new(workers), AtomicU32::new(0)));
    for _ in 1..workers {
        let (gate, recorder) = (Arc::clone(&gate), recorder.clone());
        tokio::spawn(async move { hold(duration, &gate, &recorder) });
    }
    // Nobody takes the task that was spawned last from a worker that is blocked.
    tokio::spawn(async {});
    hold(duration, &gate, recorder);
}

#[inline(never)]
fn hold(duration: Duration, gate: &(Barrier, AtomicU32), recorder: &Recorder) {
    let rank = gate.1.fetch_add(1, Ordering::Relaxed);
    gate.0.wait();
    let start_ns = monotonic_ns();
    let first = line!() + 1;
    std::thread::sleep(duration + rank * Duration::from_millis(150));
    recorder.write(&Place { kind: "all", function: "hold", first, last: first }, start_ns);
}
