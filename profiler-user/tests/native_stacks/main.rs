//! Real programs, asleep at a known place, to their native stacks: from registers and stack bytes down to `_start`.
//!
//! A program is compiled or started, waited for until it sleeps, and looked at the way a capture
//! looks at it: instruction and stack pointer from `/proc/PID/task/TID/syscall`, stack bytes copied.
//! The frame pointer is not known this way, and code compiled without frame pointers needs none.

#![allow(clippy::unwrap_used, reason = "in a test, what fails to unwrap fails the test")]

use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use profiler_ebpf::limits::STACK_BYTES;
use profiler_ebpf::record::Registers;
use stalltrace::frame::{Counts, Frame};
use stalltrace::process::maps::{self, Backing, Region};
use stalltrace::process::modules::Modules;
use stalltrace::process::{TargetMemory, Unreadable};
use stalltrace::symbolize::native::NativeSymbolizer;
use stalltrace::unwind::native::{NativeFrame, NativeStack, NativeUnwinder, Reached};

mod debug_files;

/// `main` sleeps in itself or in a thread, or in the handler of a signal that it sends itself.
const PROGRAM: &str = r#"
#include <pthread.h>
#include <signal.h>
#include <time.h>

static inline __attribute__((always_inline)) int nap(int n) {
    struct timespec forever = {3600 + n, 0};
    return nanosleep(&forever, 0); /* nap */
}
__attribute__((noinline)) int inner(int n) {
    volatile char room[200];
    room[n & 127] = (char)n;
    n += nap(n);
    return room[n & 127] + n;
}
__attribute__((noinline)) int middle(int n, int signal_first) {
    volatile int room[50];
    room[n & 31] = n;
    if (signal_first) raise(SIGUSR1);
    else n += inner(n + 1);
    return room[n & 31] + n;
}
__attribute__((noinline)) int outer(int n, int signal_first) {
    return middle(n + 2, signal_first) + 1;
}
static void *worker(void *n) { return (void *)(long)(outer((int)(long)n, 0) + 1); }
static volatile int handled;
static void handler(int signal) { handled = inner(signal); }

int main(int count, char **words) {
    signal(SIGUSR1, handler);
    char mode = count > 1 ? words[1][0] : 'm';
    pthread_t thread;
    if (mode == 't') { pthread_create(&thread, 0, worker, 0); pthread_join(thread, 0); }
    return outer(count, mode == 's') + 1;
}
"#;

/// `clock_nanosleep`, in which `nanosleep` and `time.sleep` end up.
const CLOCK_NANOSLEEP: &str = "230";

/// The call that musl's make.
const NANOSLEEP: &str = "35";

struct Target(Child);

impl Drop for Target {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Target {
    fn start(command: &mut Command) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map(Self)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// The thread that sleeps, and its registers.
    fn asleep(&self) -> (u32, Registers) {
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            for entry in fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().flatten() {
                let text = fs::read_to_string(entry.path().join("syscall")).unwrap_or_default();
                let words: Vec<_> = text.split_whitespace().collect();
                if let [CLOCK_NANOSLEEP | NANOSLEEP, .., sp, ip] = words[..] {
                    let number = |word: &str| u64::from_str_radix(&word[2..], 16).unwrap();
                    let tid = entry.file_name().to_string_lossy().parse().unwrap();
                    return (
                        tid,
                        Registers { ip: number(ip), sp: number(sp), ..Registers::default() },
                    );
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("process {} does not fall asleep", self.pid());
    }

    fn regions(&self) -> Vec<Region> {
        maps::parse(&fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap())
    }

    fn open(&self, region: &Region) -> io::Result<File> {
        let Backing::File(path) = &region.backing else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let Region { start, end, .. } = region;
        File::open(format!("/proc/{}/map_files/{start:x}-{end:x}", self.pid())).or_else(|_| {
            File::open(
                Path::new(&format!("/proc/{}/root", self.pid()))
                    .join(path.strip_prefix("/").unwrap()),
            )
        })
    }

    fn modules(&self) -> Modules {
        let mut modules = Modules::new();
        modules.update(&self.regions(), &|region| self.open(region), self);
        modules
    }

    /// The stack from the stack pointer upwards, as far as a capture reaches.
    fn stack(&self, registers: &Registers) -> Vec<u8> {
        let regions = self.regions();
        let region =
            regions.iter().find(|region| (region.start..region.end).contains(&registers.sp));
        let length = (region.unwrap().end - registers.sp).min(STACK_BYTES as u64);
        let mut stack = vec![0; length as usize];
        self.read(registers.sp, &mut stack).unwrap();
        stack
    }

    fn look(&self) -> Look {
        let (_, registers) = self.asleep();
        let modules = self.modules();
        let stack = NativeUnwinder::new().unwind(&modules, &registers, &self.stack(&registers));
        let mut symbolizer = NativeSymbolizer::of_process(self.pid(), None);
        let frames = symbolizer.name_stack(&modules, &stack).frames;
        let images = modules.iter().filter_map(|module| module.image.as_ref().ok());
        let gaps = images.flat_map(|image| symbolizer.gaps(image)).map(ToString::to_string);
        let gaps = gaps.collect();
        Look { stack, frames, gaps }
    }
}

impl TargetMemory for Target {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Unreadable> {
        let bytes = buffer.len();
        let remote = RemoteIoVec { base: address as usize, len: bytes };
        let pid = Pid::from_raw(self.pid() as i32);
        match process_vm_readv(pid, &mut [IoSliceMut::new(buffer)], &[remote]) {
            Ok(read) if read == bytes => Ok(()),
            _ => Err(Unreadable { address, bytes }),
        }
    }
}

struct Look {
    stack: NativeStack,
    frames: Vec<Vec<Frame>>,
    gaps: Vec<String>,
}

impl Look {
    fn all(&self) -> impl Iterator<Item = &Frame> {
        self.frames.iter().flatten()
    }

    fn functions(&self) -> Vec<&str> {
        self.all().map(|frame| frame.function.as_deref().unwrap_or("-")).collect()
    }

    fn show(&self, title: &str) {
        println!("{title}: {}", self.stack.truncated.as_deref().unwrap_or("complete"));
        for frame in self.all() {
            let (function, module) = (frame.function.as_deref(), frame.module.as_deref());
            let (inlined, file) =
                (if frame.inlined { " (inlined)" } else { "" }, frame.file.as_deref());
            println!(
                "  {:#x} {}{inlined} {}:{} in {}+{:#x}",
                frame.address.unwrap_or(0),
                function.unwrap_or("-"),
                file.unwrap_or("-"),
                frame.line.unwrap_or(0),
                module.unwrap_or("-"),
                frame.module_offset.unwrap_or(0),
            );
        }
    }
}

/// The program compiled with the given flags; `None`, with a line that says so, without a compiler.
fn compile(name: &str, flags: &[&str]) -> Option<PathBuf> {
    compile_with("gcc", name, flags)
}

fn compile_with(compiler: &str, name: &str, flags: &[&str]) -> Option<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let source = folder.join(format!("{name}.c"));
    let binary = folder.join(name);
    fs::write(&source, PROGRAM).unwrap();
    let mut command = Command::new(compiler);
    command.args(["-O2", "-fomit-frame-pointer", "-pthread"]).args(flags);
    match command.arg(&source).arg("-o").arg(&binary).status() {
        Ok(status) => assert!(status.success()),
        Err(error) => {
            println!("skipped: {compiler}: {error}");
            return None;
        }
    }
    Some(binary)
}

/// The frames between the sleep in libc and the start, which differ between versions of libc.
fn from_inner_to_main<'a>(functions: &[&'a str]) -> Vec<&'a str> {
    let start = functions.iter().position(|function| *function == "inner").unwrap();
    functions[start..].to_vec()
}

/// A position-independent program without frame pointers unwinds to `_start`, and debug information
/// adds the inlined function and the lines.
#[test]
fn position_independent_program() {
    let Some(binary) = compile("pie", &["-g", "-pie", "-fPIE"]) else { return };
    let target = Target::start(&mut Command::new(&binary)).unwrap();
    let look = target.look();
    look.show("pie");
    assert_eq!(look.stack.truncated, None);
    let functions = look.functions();
    let ours = from_inner_to_main(&functions);
    assert_eq!(ours[..4], ["inner", "middle", "outer", "main"]);
    assert_eq!(functions.last(), Some(&"_start"));
    let nap = look.all().find(|frame| frame.function.as_deref() == Some("nap")).unwrap();
    assert!(nap.inlined);
    let line = 1 + PROGRAM.lines().position(|line| line.contains("/* nap */")).unwrap() as u32;
    assert_eq!(nap.line, Some(line));
    assert!(nap.file.as_deref().unwrap().ends_with("pie.c"));
    assert_eq!(nap.module.as_deref(), binary.to_str());
}

/// An executable at a fixed address, without debug information, whose file is gone by the time.
#[test]
fn fixed_address_and_deleted() {
    let Some(binary) = compile("fixed", &["-no-pie", "-fno-pie"]) else { return };
    let target = Target::start(&mut Command::new(&binary)).unwrap();
    target.asleep();
    fs::remove_file(&binary).unwrap();
    let look = target.look();
    look.show("fixed");
    assert_eq!(look.stack.truncated, None);
    let functions = look.functions();
    assert_eq!(from_inner_to_main(&functions)[..4], ["inner", "middle", "outer", "main"]);
    let inner = look.all().find(|frame| frame.function.as_deref() == Some("inner")).unwrap();
    assert_eq!((inner.line, inner.inlined), (None, false));
}

/// A stripped program unwinds as well; its functions are offsets, not the names of neighbours.
#[test]
fn stripped_program() {
    let Some(binary) = compile("stripped", &["-s"]) else { return };
    let target = Target::start(&mut Command::new(&binary)).unwrap();
    let look = target.look();
    look.show("stripped");
    assert_eq!(look.stack.truncated, None);
    let own: Vec<_> =
        look.all().filter(|frame| frame.module.as_deref() == binary.to_str()).collect();
    assert_eq!(own.len(), 5);
    assert!(own.iter().all(|frame| frame.function.is_none() && frame.module_offset.is_some()));
}

/// A thread's stack ends at the function that clones.
#[test]
fn thread_of_its_own() {
    let Some(binary) = compile("thread", &["-g"]) else { return };
    let target = Target::start(Command::new(binary).arg("t")).unwrap();
    assert_ne!(target.asleep().0, target.pid());
    let look = target.look();
    look.show("thread");
    assert_eq!(look.stack.truncated, None);
    let functions = look.functions();
    assert_eq!(from_inner_to_main(&functions)[..4], ["inner", "middle", "outer", "worker"]);
}

/// From a signal handler the walk goes on to the code that was interrupted.
#[test]
fn signal_handler() {
    let Some(binary) = compile("signal", &["-g"]) else { return };
    let target = Target::start(Command::new(binary).arg("s")).unwrap();
    let look = target.look();
    look.show("signal");
    assert_eq!(look.stack.truncated, None);
    let by_signal = |frame: &&NativeFrame| frame.reached == Reached::Signal;
    assert_eq!(look.stack.frames.iter().filter(by_signal).count(), 1);
    let functions = look.functions();
    let ours = from_inner_to_main(&functions);
    assert_eq!(ours[..2], ["inner", "handler"]);
    let middle = ours.iter().position(|function| *function == "middle").unwrap();
    assert_eq!(ours[middle..middle + 3], ["middle", "outer", "main"]);
}

/// musl has no unwind tables: the callers of its functions are searched for on the stack, whatever else
/// lies there, and from them on the tables lead.
#[test]
fn without_unwind_tables() {
    for (name, flags) in [("musl", &[][..]), ("musl-static", &["-static"])] {
        let Some(binary) = compile_with("musl-gcc", name, &[&["-g"], flags].concat()) else {
            return;
        };
        for (mode, caller) in [("m", "main"), ("t", "worker")] {
            let target = Target::start(Command::new(&binary).arg(mode)).unwrap();
            let look = target.look();
            look.show(name);
            let functions = look.functions();
            let ours = from_inner_to_main(&functions);
            assert_eq!(ours[..4], ["inner", "middle", "outer", caller], "{name} {mode}");
            let (from, _) = look.stack.searched_from().unwrap();
            let inner = look.stack.frames.iter().zip(&look.frames).position(|(_, frames)| {
                frames.iter().any(|frame| frame.function.as_deref() == Some("inner"))
            });
            assert!(from <= inner.unwrap(), "{name} {mode}: by a table out of musl");
        }
    }
}

/// Every prefix of a stack gives the first frames of the whole one, and says that more is missing.
#[test]
fn cut_off_stacks() {
    let Some(binary) = compile("cut", &["-g"]) else { return };
    let target = Target::start(&mut Command::new(binary)).unwrap();
    let (_, registers) = target.asleep();
    let (modules, stack) = (target.modules(), target.stack(&registers));
    let mut unwinder = NativeUnwinder::new();
    let whole = unwinder.unwind(&modules, &registers, &stack);
    assert_eq!(whole.truncated, None);
    let mut cut_off = 0;
    for length in (0..stack.len()).step_by(4) {
        let part = unwinder.unwind(&modules, &registers, &stack[..length]);
        assert_eq!(part.frames[..], whole.frames[..part.frames.len()], "{length} bytes");
        if part.frames.len() < whole.frames.len() {
            let expected = format!("the stack goes on past the {length} bytes copied");
            assert_eq!(part.truncated.as_deref(), Some(expected.as_str()));
            cut_off += 1;
        }
    }
    assert!(cut_off > 50, "{cut_off}");
}

fn python_asleep(python: &str) {
    let mut command = Command::new(python);
    let code = "import time\ndef inner():\n    time.sleep(3600)\ninner()";
    let Ok(target) = Target::start(command.args(["-c", code])) else {
        return println!("skipped: no {python}");
    };
    let look = target.look();
    look.show(python);
    assert_eq!(look.stack.truncated, None);
    let functions = look.functions();
    assert!(functions.contains(&"_PyEval_EvalFrameDefault"), "{functions:?}");
    assert!(functions.contains(&"Py_BytesMain"), "{functions:?}");
}

/// Python as the distribution builds it, stripped and with the interpreter in the executable.
#[test]
fn python_of_the_distribution() {
    python_asleep("/usr/bin/python3");
}

/// Whatever Python the path leads to, often one with the interpreter in a shared library.
#[test]
fn python_of_the_path() {
    python_asleep("python3");
}

/// The address of a function of the vdso, found by asking for names all over it.
fn clock_gettime(modules: &Modules) -> u64 {
    let vdso = modules.iter().find(|module| &*module.path == "[vdso]").unwrap();
    let mut symbolizer = NativeSymbolizer::new();
    let mut addresses = vdso.range.clone().step_by(16);
    let is_it = |address: &u64| {
        let frame = NativeFrame {
            address: *address,
            is_return_address: false,
            frame_pointer: 0,
            module: Some(vdso.id),
            file_offset: Some(vdso.file_offset(*address)),
            stack_pointer: 0,
            reached: Reached::Registers,
        };
        let names = symbolizer.name(modules, &frame);
        names[0].function.as_deref().is_some_and(|name| name.ends_with("clock_gettime"))
    };
    addresses.find(is_it).unwrap()
}

/// The vdso's functions are named and unwound like others: at the first instruction the caller lies
/// on top of the stack.
#[test]
fn vdso() {
    let Some(binary) = compile("vdso", &[]) else { return };
    let target = Target::start(&mut Command::new(&binary)).unwrap();
    let (_, asleep) = target.asleep();
    let (modules, stack) = (target.modules(), target.stack(&asleep));
    let called = Registers { ip: clock_gettime(&modules), sp: asleep.sp - 8, ..asleep };
    let stack = [&asleep.ip.to_le_bytes(), stack.as_slice()].concat();
    let mut unwinder = NativeUnwinder::new();
    let found = unwinder.unwind(&modules, &called, &stack);
    assert_eq!(found.truncated, None);
    let rest = unwinder.unwind(&modules, &asleep, &stack[8..]);
    assert_eq!(found.frames[1].address, asleep.ip);
    assert_eq!(found.frames[2..], rest.frames[1..]);
}

/// Code that no file backs is passed by its frame pointer, as code made at run time keeps one, and
/// without one the stack says why it ends.
#[test]
fn code_made_at_run_time() {
    let Some(binary) = compile("jit", &[]) else { return };
    let target = Target::start(&mut Command::new(&binary)).unwrap();
    let (_, asleep) = target.asleep();
    let (modules, stack) = (target.modules(), target.stack(&asleep));
    // sp: a local, then where bp points: the caller's frame pointer, and the return address.
    let frame = [0x5555_u64, asleep.bp, asleep.ip].map(u64::to_le_bytes).concat();
    let made = Registers { ip: 0x1234, sp: asleep.sp - 24, bp: asleep.sp - 16, ..asleep };
    let stack = [frame.as_slice(), stack.as_slice()].concat();
    let mut unwinder = NativeUnwinder::new();
    let found = unwinder.unwind(&modules, &made, &stack);
    let mut counts = Counts::default();
    found.count(&mut counts);
    assert_eq!((counts.registers, counts.frame_pointer), (1, 1), "{counts:?}");
    assert_eq!(counts.unwind_table + 2, found.frames.len() as u64, "{counts:?}");
    assert_eq!((found.truncated, found.frames[0].module), (None, None));
    assert_eq!(found.frames[1].address, asleep.ip);
    let found = unwinder.unwind(&modules, &Registers { bp: 0, ..made }, &stack);
    assert_eq!(found.frames.len(), 1);
    assert!(found.truncated.unwrap().contains("the frame pointer leads nowhere"));
}

/// Names stay when the memory for finding them is given back.
#[test]
fn release_keeps_names() {
    let Some(binary) = compile("release", &["-g"]) else { return };
    let target = Target::start(&mut Command::new(&binary)).unwrap();
    let (_, registers) = target.asleep();
    let modules = target.modules();
    let stack = NativeUnwinder::new().unwind(&modules, &registers, &target.stack(&registers));
    let mut symbolizer = NativeSymbolizer::new();
    let named = symbolizer.name_stack(&modules, &stack);
    symbolizer.release();
    drop(target);
    assert_eq!(symbolizer.name_stack(&modules, &stack), named);
    // With the process gone and its file deleted, names that nobody asked for yet are found as well.
    fs::remove_file(&binary).unwrap();
    assert_eq!(NativeSymbolizer::new().name_stack(&modules, &stack), named);
}

/// Flips bytes so that the same ones are flipped in every run.
fn corrupt(bytes: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..bytes.len() / 64 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let index = (state >> 16) as usize % bytes.len();
        bytes[index] ^= state as u8;
    }
}

/// Files that were forged, anywhere from headers to debug information, cost names and frames, never the daemon.
#[test]
fn forged_files() {
    let Some(binary) = compile("forged", &["-g", "-pie", "-fPIE"]) else { return };
    let target = Target::start(&mut Command::new(&binary)).unwrap();
    let (_, registers) = target.asleep();
    let (regions, stack) = (target.regions(), target.stack(&registers));
    let good = fs::read(&binary).unwrap();
    let (mut opened, mut ended_early) = (0, 0);
    for seed in 1..200 {
        let mut bad = good.clone();
        // The first half of the seeds leaves the headers alone, so that the tables are reached.
        let first = if seed < 100 { 0x800 } else { 0 };
        corrupt(&mut bad[first..], seed);
        let path = binary.with_extension("bad");
        fs::write(&path, bad).unwrap();
        let open = |region: &Region| match &region.backing {
            Backing::File(file) if *file == binary => File::open(&path),
            _ => target.open(region),
        };
        let mut modules = Modules::new();
        modules.update(&regions, &open, &target);
        opened += modules.gaps().next().map_or(1, |_| 0);
        let found = NativeUnwinder::new().unwind(&modules, &registers, &stack);
        ended_early += i32::from(found.truncated.is_some());
        let named = NativeSymbolizer::new().name_stack(&modules, &found);
        assert_eq!(named.frames.len(), found.frames.len());
        fs::remove_file(&path).unwrap();
    }
    assert!(opened >= 99, "{opened}");
    assert!(ended_early > 20, "{ended_early}");
}

/// Stack bytes that mean nothing end the walk with a reason.
#[test]
fn forged_stacks() {
    let Some(binary) = compile("noise", &[]) else { return };
    let target = Target::start(&mut Command::new(&binary)).unwrap();
    let (_, mut registers) = target.asleep();
    let (modules, good) = (target.modules(), target.stack(&registers));
    let mut unwinder = NativeUnwinder::new();
    for seed in 1..2000 {
        let mut bad = good.clone();
        corrupt(&mut bad, seed);
        registers.bp = registers.sp.wrapping_add(seed.rotate_right(seed as u32));
        let found = unwinder.unwind(&modules, &registers, &bad);
        assert!(!found.frames.is_empty());
    }
    let nowhere = Registers { ip: 0x1234, sp: u64::MAX - 7, bp: u64::MAX, ..registers };
    let found = unwinder.unwind(&modules, &nowhere, &good);
    assert_eq!(found.frames.len(), 1);
    let why = found.truncated.unwrap();
    assert!(why.contains("no file is mapped at 0x1234"), "{why}");
}
