//! Fields of the kernel's task, loaded directly at the offsets that the daemon resolved.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::{self, bpf_get_current_task_btf, bpf_task_pt_regs};
use profiler_ebpf::param::Field;
use profiler_ebpf::record::Registers;
use profiler_ebpf::sleep::left_in;
use profiler_ebpf::turn::Faults;

use crate::maps::param;

/// A `task_struct` that the verifier knows as such: out of a BTF tracepoint or from
/// `bpf_get_current_task_btf` (since 5.11).
#[derive(Clone, Copy)]
pub struct Task(*const u8);

/// `struct pt_regs` of x86-64 up to where it is used (arch/x86/include/asm/ptrace.h).
#[repr(C)]
struct PtRegs {
    /// `r15` to `r12`.
    unused: [u64; 4],
    used: UsedRegs,
}

/// A copy of no more than this lies on the stack: a chain of calls has 512 bytes in all, and older kernels (6.1, not
/// 6.12) round each call's up to 32.
#[repr(C)]
#[derive(Clone, Copy)]
struct UsedRegs {
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
        self.load(param!(field.task_tgid)) as u32
    }

    #[inline(always)]
    pub fn tid(self) -> u32 {
        self.load(param!(field.task_pid)) as u32
    }

    /// `__state`. Only its low half carries flags; the field was a `long` before 5.14.
    #[inline(always)]
    pub fn state(self) -> u32 {
        self.load(param!(field.task_state)) as u32
    }

    /// The same, of a thread that leaves its CPU or is on none: see [`left_in`]. `announced` is what the
    /// scheduler's hook passes: from 5.18 to 6.15 what the thread wanted to be before a signal kept it awake.
    #[inline(always)]
    pub fn left_in(self, announced: u64) -> u64 {
        left_in(announced, u64::from(self.state()), self.load(param!(field.task_jobctl)))
    }

    #[inline(always)]
    pub fn fsbase(self) -> u64 {
        self.load(param!(field.task_fsbase))
    }

    /// Where the main thread's stack began.
    #[inline(always)]
    pub fn start_stack(self) -> u64 {
        let mm = self.pointer(param!(field.task_mm));
        if core::hint::black_box(mm).is_null() {
            return 0;
        }
        Self(mm).load(param!(field.mm_start_stack))
    }

    /// Whether somebody has the lock of the address space, or waits for it, as far as can be told.
    #[inline(always)]
    pub fn may_have_locked_memory(self) -> bool {
        if param!(field.mm_lock_count).bytes == 0 {
            return true;
        }
        let mm = self.pointer(param!(field.task_mm));
        if core::hint::black_box(mm).is_null() {
            return true;
        }
        Self(mm).load(param!(field.mm_lock_count)) != 0
    }

    /// The file that a descriptor stands for, as its address in the kernel: as long as it is open, no other
    /// has the same. 0 where there is none.
    #[inline(never)]
    pub fn file(self, fd: u32) -> u64 {
        let files = core::hint::black_box(self.pointer(param!(field.task_files)));
        if files.is_null() {
            return 0;
        }
        let fdt = read_field(files as u64, param!(field.files_fdt)).unwrap_or(0);
        let most = read_field(fdt, param!(field.fdtable_max_fds)).unwrap_or(0);
        if fdt == 0 || u64::from(fd) >= most {
            return 0;
        }
        let array = read_field(fdt, param!(field.fdtable_fd)).unwrap_or(0);
        if array == 0 { 0 } else { read_kernel(array + u64::from(fd) * 8).unwrap_or(0) }
    }

    /// The user registers: those of the interrupted code in user mode, else those of the entry into
    /// the kernel. Needs 5.15 (`bpf_task_pt_regs`).
    #[inline(always)]
    pub fn registers(self) -> Option<Registers> {
        // SAFETY: the helper takes any task that the verifier knows as one.
        let address = unsafe { bpf_task_pt_regs(self.0.cast_mut().cast()) };
        // A copy by helper, because the compiler would otherwise merge these loads with ones
        // through another kind of pointer, which the verifier refuses.
        let used = address as u64 + core::mem::offset_of!(PtRegs, used) as u64;
        let regs: UsedRegs = read_kernel(used)?;
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

    /// The system call that it is in; a number that no call has where an interrupt or a fault came upon user
    /// code. Not where the thread may run: what is there then is an earlier call's.
    #[inline(always)]
    pub fn syscall(self) -> u64 {
        // SAFETY: the helper takes any task that the verifier knows as one.
        let registers = unsafe { bpf_task_pt_regs(self.0.cast_mut().cast()) };
        Self(registers as *const u8).load_as(core::mem::offset_of!(PtRegs, used.orig_ax) as u32)
    }

    /// Times it has left a CPU, of its own will or not.
    #[inline(always)]
    pub fn switches(self) -> u64 {
        let voluntary = self.load(param!(field.task_nvcsw));
        let preempted = self.load(param!(field.task_nivcsw));
        voluntary + preempted
    }

    #[inline(always)]
    pub fn on_cpu(self) -> u32 {
        self.load(param!(field.task_on_cpu)) as u32
    }

    /// The CPU that it runs on or waits for.
    #[inline(always)]
    pub fn cpu(self) -> u32 {
        self.load(param!(field.task_cpu)) as u32
    }

    /// The `PF_` flags.
    #[inline(always)]
    pub fn flags(self) -> u32 {
        self.load(param!(field.task_flags)) as u32
    }

    #[inline(always)]
    pub fn faults(self) -> Faults {
        let minor = self.load(param!(field.task_min_flt));
        Faults { minor, major: self.load(param!(field.task_maj_flt)) }
    }

    /// Waited for CPUs so far, ns, without the queue that it is in now.
    #[inline(always)]
    pub fn run_delay_ns(self) -> u64 {
        self.load(param!(field.task_run_delay))
    }

    /// Times it was moved to another CPU.
    #[inline(always)]
    pub fn migrations(self) -> u64 {
        self.load(param!(field.task_migrations))
    }

    /// Where the kernel has it: for [`read_kernel`], past the end of the program that got it.
    pub fn address(self) -> u64 {
        self.0 as u64
    }

    /// A field as wide as this kernel has it. Width and offset are constants to the verifier, which follows
    /// one of the loads.
    #[inline(always)]
    fn load(self, field: Field) -> u64 {
        match field.bytes {
            1 => u64::from(self.load_as::<u8>(field.offset)),
            2 => u64::from(self.load_as::<u16>(field.offset)),
            4 => u64::from(self.load_as::<u32>(field.offset)),
            _ => self.load_as(field.offset),
        }
    }

    #[inline(always)]
    fn pointer(self, field: Field) -> *const u8 {
        self.load_as(field.offset)
    }

    #[inline(always)]
    fn load_as<T: Copy>(self, offset: u32) -> T {
        // SAFETY: the verifier allows the load only where the offset is a field of the structure
        // that the pointer is known to point to.
        unsafe { self.0.add(offset as usize).cast::<T>().read_volatile() }
    }
}

/// Reads a field of kernel memory that the verifier cannot follow.
#[inline(always)]
pub fn read_field(structure: u64, field: Field) -> Option<u64> {
    let mut value = 0_u64;
    let bytes = if field.bytes == 0 { 8 } else { field.bytes };
    // SAFETY: no field is wider than the buffer; x86-64 has the lowest byte first. The helper checks the
    // address and fails instead of faulting.
    let failed = unsafe {
        generated::bpf_probe_read_kernel(
            (&raw mut value).cast(),
            bytes,
            (structure + u64::from(field.offset)) as *const _,
        )
    };
    (failed == 0).then_some(value)
}

/// The time, ns of `CLOCK_MONOTONIC`.
#[inline(always)]
pub fn clock() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { generated::bpf_ktime_get_ns() }
}

/// Reads kernel memory that the verifier cannot follow.
#[inline(always)]
pub fn read_kernel<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// Where registers that the kernel saved say that a CPU was: (the instruction, whether it is user code).
#[inline(always)]
pub fn interrupted_at(registers: u64) -> Option<(u64, bool)> {
    let ip = read_kernel(registers + core::mem::offset_of!(PtRegs, used.ip) as u64)?;
    let cs: u64 = read_kernel(registers + core::mem::offset_of!(PtRegs, used.cs) as u64)?;
    Some((ip, cs & 3 == 3))
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
        load(core::mem::offset_of!(PtRegs, used.orig_ax)),
        [
            load(core::mem::offset_of!(PtRegs, used.di)),
            load(core::mem::offset_of!(PtRegs, used.si)),
            load(core::mem::offset_of!(PtRegs, used.dx)),
            load(core::mem::offset_of!(PtRegs, used.r10)),
        ],
    )
}
