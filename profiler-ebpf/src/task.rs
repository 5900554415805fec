//! Fields of the kernel's task, loaded directly at the offsets that the daemon resolved.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};
use profiler_ebpf::record::Registers;
use profiler_ebpf::sleep::left_in;
use profiler_ebpf::turn::Faults;

use crate::maps::param;

/// A `task_struct` that the verifier knows as such: out of a BTF tracepoint or from
/// `bpf_get_current_task_btf` (since 5.11).
#[derive(Clone, Copy)]
pub struct Task(*const u8);

/// `struct pt_regs` of x86-64 up to where it ends (arch/x86/include/asm/ptrace.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct PtRegs {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    bp: u64,
    bx: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    ax: u64,
    cx: u64,
    dx: u64,
    si: u64,
    di: u64,
    orig_ax: u64,
    ip: u64,
    cs: u64,
    flags: u64,
    sp: u64,
    ss: u64,
}

/// `__USER32_CS` (arch/x86/include/asm/segment.h)
const USER32_CS: u64 = 0x23;

impl Task {
    pub fn from_tracepoint(task: *const u8) -> Self {
        Self(task)
    }

    pub fn current() -> Self {
        // SAFETY: the helper has no preconditions.
        Self(unsafe { bpf_get_current_task_btf() }.cast())
    }

    #[inline(always)]
    pub fn tgid(self) -> u32 {
        self.load(param!(offset.task_tgid))
    }

    #[inline(always)]
    pub fn tid(self) -> u32 {
        self.load(param!(offset.task_pid))
    }

    /// `__state`. Only its low half carries flags; the field was a `long` before 5.14.
    #[inline(always)]
    pub fn state(self) -> u32 {
        self.load(param!(offset.task_state))
    }

    /// The same, of a thread that leaves its CPU or is on none: see [`left_in`]. `announced` is what the
    /// scheduler's hook passes: from 5.18 to 6.15 what the thread wanted to be before a signal kept it awake.
    #[inline(always)]
    pub fn left_in(self, announced: u64) -> u64 {
        left_in(announced, u64::from(self.state()), self.load(param!(offset.task_jobctl)))
    }

    #[inline(always)]
    pub fn fsbase(self) -> u64 {
        self.load(param!(offset.task_fsbase))
    }

    /// Where the main thread's stack began.
    #[inline(always)]
    pub fn start_stack(self) -> u64 {
        let mm: *const u8 = self.load(param!(offset.task_mm));
        if core::hint::black_box(mm).is_null() {
            return 0;
        }
        Self(mm).load(param!(offset.mm_start_stack))
    }

    /// Whether somebody has the lock of the address space, or waits for it, as far as can be told.
    #[inline(always)]
    pub fn may_have_locked_memory(self) -> bool {
        if param!(offset.mm_lock_count) == 0 {
            return true;
        }
        let mm: *const u8 = self.load(param!(offset.task_mm));
        if core::hint::black_box(mm).is_null() {
            return true;
        }
        Self(mm).load::<u64>(param!(offset.mm_lock_count)) != 0
    }

    /// What kind of file a descriptor is, as the address of its operations: all epoll instances have
    /// the same. 0 where there is none.
    #[inline(never)]
    pub fn kind_of_file(self, fd: u32) -> u64 {
        let files: *const u8 = self.load(param!(offset.task_files));
        let files = core::hint::black_box(files);
        if files.is_null() {
            return 0;
        }
        let fdt: u64 = read_kernel(files as u64 + param!(offset.files_fdt)).unwrap_or(0);
        let max: u32 = read_kernel(fdt + param!(offset.fdtable_max_fds)).unwrap_or(0);
        if fdt == 0 || fd >= max {
            return 0;
        }
        let array: u64 = read_kernel(fdt + param!(offset.fdtable_fd)).unwrap_or(0);
        if array == 0 {
            return 0;
        }
        match read_kernel(array + u64::from(fd) * 8) {
            Some(0) | None => 0,
            Some(file) => read_kernel::<u64>(file + param!(offset.file_f_op)).unwrap_or(0),
        }
    }

    /// The user registers: those of the interrupted code in user mode, else those of the entry into
    /// the kernel. Needs 5.15 (`bpf_task_pt_regs`).
    #[inline(always)]
    pub fn registers(self) -> Option<Registers> {
        // SAFETY: the helper takes any task that the verifier knows as one.
        let address = unsafe { bpf_task_pt_regs(self.0.cast_mut().cast()) };
        // A copy by helper, because the compiler would otherwise merge these loads with ones
        // through another kind of pointer, which the verifier refuses.
        let regs: PtRegs = read_kernel(address as u64)?;
        Some(Registers {
            ip: regs.ip,
            sp: regs.sp,
            bp: regs.bp,
            // An interrupt or fault from user mode leaves a negative number here, and the numbers of
            // 32-bit programs are others.
            syscall: if (regs.orig_ax as i64) < 0 || regs.cs == USER32_CS {
                -1
            } else {
                regs.orig_ax as i64
            },
            args: [regs.di, regs.si, regs.dx, regs.r10, regs.r8, regs.r9],
        })
    }

    /// Times it has left a CPU, of its own will or not.
    #[inline(always)]
    pub fn switches(self) -> u64 {
        let voluntary: u64 = self.load(param!(offset.task_nvcsw));
        let preempted: u64 = self.load(param!(offset.task_nivcsw));
        voluntary + preempted
    }

    #[inline(always)]
    pub fn on_cpu(self) -> u32 {
        self.load(param!(offset.task_on_cpu))
    }

    /// The CPU that it runs on or waits for.
    #[inline(always)]
    pub fn cpu(self) -> u32 {
        self.load(param!(offset.task_cpu))
    }

    /// The `PF_` flags.
    #[inline(always)]
    pub fn flags(self) -> u32 {
        self.load(param!(offset.task_flags))
    }

    #[inline(always)]
    pub fn faults(self) -> Faults {
        let minor = self.load(param!(offset.task_min_flt));
        Faults { minor, major: self.load(param!(offset.task_maj_flt)) }
    }

    /// Waited for CPUs so far, ns, without the queue that it is in now.
    #[inline(always)]
    pub fn run_delay_ns(self) -> u64 {
        self.load(param!(offset.task_run_delay))
    }

    /// Times it was moved to another CPU.
    #[inline(always)]
    pub fn migrations(self) -> u64 {
        self.load(param!(offset.task_migrations))
    }

    /// Where the kernel has it: for [`read_kernel`], past the end of the program that got it.
    pub fn address(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    fn load<T: Copy>(self, offset: u64) -> T {
        // SAFETY: the verifier allows the load only where the offset is a field of the structure
        // that the pointer is known to point to.
        unsafe { self.0.add(offset as usize).cast::<T>().read_volatile() }
    }
}

/// Reads kernel memory that the verifier cannot follow.
#[inline(always)]
pub fn read_kernel<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// The syscall's number and first four arguments, out of the `pt_regs` that fentry gets.
#[inline(always)]
pub fn syscall_of(regs: *const u8) -> (u64, [u64; 4]) {
    let load = |offset: usize| {
        // SAFETY: the argument of every `__x64_sys_*` is a pointer to its `pt_regs`, which the
        // verifier knows from the function's BTF.
        unsafe { regs.add(offset).cast::<u64>().read_volatile() }
    };
    (
        load(core::mem::offset_of!(PtRegs, orig_ax)),
        [
            load(core::mem::offset_of!(PtRegs, di)),
            load(core::mem::offset_of!(PtRegs, si)),
            load(core::mem::offset_of!(PtRegs, dx)),
            load(core::mem::offset_of!(PtRegs, r10)),
        ],
    )
}
