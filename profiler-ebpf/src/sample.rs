//! The timer interrupts of the CPU that a thread is on, taken for samples where perf events are refused.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_get_stack};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use profiler_ebpf::interrupt::InterruptPlaces;
use profiler_ebpf::limits::KERNEL_FRAMES;
use profiler_ebpf::record::Capture;

use crate::task::{self, Task, read_kernel};

/// Set by the daemon before loading, frozen after.
#[unsafe(no_mangle)]
static INTERRUPTS: InterruptPlaces =
    InterruptPlaces { known: 0, task_queue: 0, queue_owner: 0, registers_from_owner: 0 };

/// A field of the places, as the constant that the verifier sees.
macro_rules! place {
    ($field:ident) => {
        // SAFETY: the static is never written; the volatile read keeps the compiler from folding
        // the zeros that stand in the source.
        unsafe { core::ptr::read_volatile(&raw const INTERRUPTS.$field) }
    };
}

/// Between two samples on one CPU: from the first to both together, at random, and then until a tick. The
/// scheduler hands out the CPU in whole ticks, so that samples in step with them could meet the same thread
/// of several time after time. Of 250 ticks a second 100 are samples, of a hundred 77, of a thousand 118.
const LEAST_NS: u64 = 3_000_000;
const SPREAD_NS: u64 = 10_000_000;

/// Frames of the interrupt itself at most, ahead of what it came upon; 12 were seen.
const INTERRUPT_FRAMES: usize = 32;

/// When the next sample is due on this CPU.
#[map]
static NEXT_SAMPLE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// What an interrupt came upon.
#[derive(Clone, Copy)]
pub struct Interrupted {
    pub in_user: u32,
    /// Where in the kernel; 0 where the kernel's stack begins there anyway, or it is not known.
    pub kernel_ip: u64,
}

/// Whether a sample is due on this CPU; then this is one.
#[inline(always)]
pub fn is_due(now_ns: u64) -> bool {
    let Some(next) = NEXT_SAMPLE.get_ptr_mut(0) else { return false };
    // SAFETY: the pointer is to this CPU's own element, and a timer's interrupt is not interrupted by another.
    let is_due = now_ns >= unsafe { next.read_volatile() };
    if is_due {
        // SAFETY: the helper has no preconditions.
        let random = u64::from(unsafe { bpf_get_prandom_u32() });
        // SAFETY: as above.
        unsafe { next.write_volatile(now_ns + LEAST_NS + random % SPREAD_NS) };
    }
    is_due
}

/// What the interrupt under way on this CPU came upon. None where there is none: some timers expire
/// after the interrupt, in whatever thread that is.
#[inline(never)]
pub fn interrupted() -> Option<Interrupted> {
    if place!(known) == 0 {
        // A page fault is taken for user code then: it is no system call.
        let in_user = u32::from(Task::current().registers()?.syscall < 0);
        return Some(Interrupted { in_user, kernel_ip: 0 });
    }
    let queue: u64 = read_kernel(Task::current().address() + place!(task_queue))?;
    let owner: u64 = read_kernel(queue + place!(queue_owner))?;
    let registers: u64 = read_kernel(owner.wrapping_add(place!(registers_from_owner)))?;
    if registers == 0 {
        return None;
    }
    let (ip, in_user) = task::interrupted_at(registers)?;
    Some(Interrupted { in_user: u32::from(in_user), kernel_ip: if in_user { 0 } else { ip } })
}

/// Takes the kernel's stack anew without the interrupt's own frames, which lie ahead of `kernel_ip`.
#[inline(always)]
pub fn leave_out_interrupt<C: EbpfContext>(context: &C, capture: &mut Capture, kernel_ip: u64) {
    if kernel_ip == 0 {
        return;
    }
    let mut ahead = 0;
    for index in 0..INTERRUPT_FRAMES {
        if capture.kernel[index] == kernel_ip {
            ahead = index;
            break;
        }
    }
    let bytes = (KERNEL_FRAMES * 8) as u32;
    // SAFETY: the buffer is exactly that long; the low byte of the flags counts frames to leave out.
    let copied = unsafe {
        bpf_get_stack(context.as_ptr(), capture.kernel.as_mut_ptr().cast(), bytes, ahead as u64)
    };
    capture.head.kernel_frames = if copied > 0 { (copied as u32) / 8 } else { 0 };
}
