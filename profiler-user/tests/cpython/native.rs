//! A target that is blocked in `read` to its native frames, and these with its Python frames to one stack.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use profiler_ebpf::limits::STACK_BYTES;
use profiler_ebpf::record::Registers;
use stalltrace::frame::Stack;
use stalltrace::process::TargetMemory;
use stalltrace::process::live::{LiveMemory, open_region};
use stalltrace::process::maps::{self, Region};
use stalltrace::process::modules::Modules;
use stalltrace::runtime::cpython::{Python, python_stack};
use stalltrace::symbolize::native::NativeSymbolizer;
use stalltrace::unwind::merge::merge;
use stalltrace::unwind::native::NativeUnwinder;

use crate::target::Target;

/// `read`, in which the targets block.
const READ: &str = "0";

/// What reads native stacks, kept over the stacks of one interpreter: symbols are read once.
#[derive(Default)]
pub struct Merger {
    modules: Modules,
    unwinder: NativeUnwinder,
    symbolizer: NativeSymbolizer,
}

impl Merger {
    /// The main thread's stack, of at most so many bytes of native stack.
    pub fn look(&mut self, target: &Target, python: &mut Python, bytes: usize) -> Stack {
        let memory = LiveMemory::new(target.pid());
        let registers = asleep(target.pid());
        let regions = regions(target.pid());
        let open = |region: &Region| open_region(target.pid(), region);
        self.modules.update(&regions, &open, &memory);

        let inside = |region: &&Region| (region.start..region.end).contains(&registers.sp);
        let end = regions.iter().find(inside).expect("a stack").end;
        let mut stack = vec![0; bytes.min(STACK_BYTES).min((end - registers.sp) as usize)];
        memory.read(registers.sp, &mut stack).expect("the target lives");

        let native = self.unwinder.unwind(&self.modules, &registers, &stack);
        let native = self.symbolizer.name_stack(&self.modules, &native);
        let truth = target.truth();
        let ident = Some(truth.ident);
        let tstate = python.thread_state(&memory, truth.native_id, ident).expect("it is known");
        let (raw, walk) = python.walk(&memory, tstate, ident);
        merge(native, python_stack(&python.decode(&memory, &raw), walk))
    }
}

fn regions(pid: u32) -> Vec<Region> {
    maps::parse(&fs::read_to_string(format!("/proc/{pid}/maps")).expect("the target lives"))
}

/// The registers of the main thread, once it sleeps. It is stopped for a moment: /proc has not all of them,
/// and where code keeps frame pointers, its table counts from there.
fn asleep(pid: u32) -> Registers {
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        let text = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        if text.split_whitespace().next() == Some(READ) {
            return stopped(Pid::from_raw(pid.cast_signed())).expect("our child may be traced");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("process {pid} does not fall asleep");
}

/// Whoever is in a system call enters it again afterwards.
fn stopped(pid: Pid) -> nix::Result<Registers> {
    ptrace::seize(pid, ptrace::Options::empty())?;
    ptrace::interrupt(pid)?;
    waitpid(pid, None)?;
    let registers = ptrace::getregs(pid)?;
    ptrace::detach(pid, None)?;
    let (ip, sp, bp) = (registers.rip, registers.rsp, registers.rbp);
    Ok(Registers { ip, sp, bp, ..Registers::default() })
}
