//! Where a thread is right now: registers, a bounded copy of its stack, its interpreter's frames.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_stack, bpf_probe_read_user};
use profiler_ebpf::counter::Counter;
use profiler_ebpf::limits::{
    INNER_PYTHON_FRAMES, KERNEL_FRAMES, PAGE_BYTES, PYTHON_FRAMES, PYTHON_STRIDE, PYTHON_STRIDES,
    STACK_BYTES,
};
use profiler_ebpf::python::{ABSENT, PythonFrame, PythonLayout, PythonWalk, code_check};
use profiler_ebpf::record::{Capture, CaptureHead, RecordHead, kind};
use profiler_ebpf::turn::Loop;

use crate::maps::{capture_at, count, python_layout};
use crate::task::Task;

/// Fills the head from the thread that is current. False where its registers cannot be had. A function of
/// its own: the head is put together on the stack, and a chain of calls has 512 bytes of that.
#[inline(never)]
pub fn take_registers(
    capture: &mut Capture,
    state: &Loop,
    reason: u32,
    in_user: u32,
    now_ns: u64,
) -> bool {
    let task = Task::current();
    let Some(registers) = task.registers() else { return false };
    let is_main = task.tgid() == state.tid;
    capture.head = CaptureHead {
        head: RecordHead { kind: kind::CAPTURE, tid: state.tid },
        at_ns: now_ns,
        turn_start_ns: state.turn.start_ns,
        blocked_ns: state.turn.blocked_ns + state.turn.stopped_ns,
        weight_ns: 0,
        reason,
        in_user,
        state: state.state,
        holds_gil: 0,
        task_state: 0,
        callback: 0,
        collecting: 0,
        waits: 0,
        registers,
        stack_top: if is_main { task.start_stack() } else { 0 },
        fsbase: task.fsbase(),
        stack_bytes: 0,
        kernel_frames: 0,
        python_frames: 0,
        python_walk: PythonWalk::NotTried.number(),
    };
    true
}

/// Adds the stack and the interpreter's frames to the capture at a place, whose head is filled. It takes numbers
/// alone, so that the verifier follows the walk of the frames once in each program, not at each way to it.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn take_stacks(place: u32, tstate: u64) -> u32 {
    let Some(capture) = capture_at(place) else { return 0 };
    copy_stack(capture);
    if let Some(layout) = python_layout()
        && tstate != 0
    {
        walk_python(capture, layout, tstate);
    }
    0
}

/// Adds the kernel's stack: 4 to 7 µs, so only for a tick that found the thread in the kernel, and for a
/// sleep that no system call explains.
#[inline(always)]
pub fn take_kernel_stack<C: EbpfContext>(context: &C, capture: &mut Capture) {
    let bytes = (KERNEL_FRAMES * 8) as u32;
    // SAFETY: the buffer is exactly that long.
    let copied =
        unsafe { bpf_get_stack(context.as_ptr(), capture.kernel.as_mut_ptr().cast(), bytes, 0) };
    if copied > 0 {
        capture.head.kernel_frames = (copied as u32) / 8;
    }
}

/// The most bytes that one masked read can ask for; a multiple of 8.
const MOST: u64 = (STACK_BYTES as u64) - 8;

/// Copies the stack from the stack pointer up to its known top in one read, or else page by page.
#[inline(never)]
fn copy_stack(capture: &mut Capture) {
    let sp = capture.head.registers.sp;
    // glibc puts a thread's control block, at which fsbase points, at the end of its stack.
    let top =
        if capture.head.stack_top != 0 { capture.head.stack_top } else { capture.head.fsbase };
    let length = top.wrapping_sub(sp);
    // A stack elsewhere (a coroutine's, a signal's) has no top that we know.
    let known = length < 1 << 30;
    let length = if length > MOST { MOST } else { length };
    // The black box keeps the compiler from proving the mask superfluous: the verifier needs it.
    let masked = core::hint::black_box(length) & (STACK_BYTES as u64 - 1);
    if known && read_user(capture.stack.as_mut_ptr(), masked, sp) {
        capture.head.stack_bytes = masked as u32;
        return;
    }
    let mut copied: u64 = 0;
    for _ in 0..=STACK_BYTES / PAGE_BYTES {
        let rest_of_page = PAGE_BYTES as u64 - ((sp + copied) & (PAGE_BYTES as u64 - 1));
        let bytes = core::hint::black_box(rest_of_page) & (2 * PAGE_BYTES as u64 - 1);
        let offset = core::hint::black_box(copied) & (STACK_BYTES as u64 - 1);
        if bytes > PAGE_BYTES as u64 || copied + bytes > MOST {
            break;
        }
        // SAFETY: the offset is within the stack, behind which lies another page.
        let into = unsafe { capture.stack.as_mut_ptr().add(offset as usize) };
        if !read_user(into, bytes, sp + copied) {
            break;
        }
        copied += bytes;
    }
    capture.head.stack_bytes = copied as u32;
    if copied == 0 {
        count(Counter::StackUnreadable);
    }
}

#[inline(always)]
fn read_user(into: *mut u8, bytes: u64, from: u64) -> bool {
    // SAFETY: the verifier checks that the buffer holds as many bytes; the helper fails instead of
    // faulting where the target's page is not there.
    unsafe { bpf_probe_read_user(into.cast(), bytes as u32, from as *const _) == 0 }
}

/// Walks the frame chain in the thread's own context, where nothing can change it.
#[inline(never)]
fn walk_python(capture: &mut Capture, layout: &PythonLayout, tstate: u64) {
    let mut frames = 0;
    let outcome = match first_frame(capture.head.fsbase, layout, tstate) {
        Ok(first) => follow(capture, layout, first, &mut frames),
        Err(outcome) => outcome,
    };
    capture.head.python_frames = frames;
    capture.head.python_walk = outcome.number();
}

#[inline(always)]
fn first_frame(fsbase: u64, layout: &PythonLayout, tstate: u64) -> Result<u64, PythonWalk> {
    let owner: u64 = word(tstate, layout.tstate_thread_id)?;
    if owner != fsbase {
        return Err(PythonWalk::WrongThread);
    }
    let frame: u64 = word(tstate, layout.tstate_frame)?;
    if layout.cframe_frame == ABSENT || frame == 0 {
        return Ok(frame);
    }
    word(frame, layout.cframe_frame)
}

/// Where a field of a frame lies and which of its bits count: an absent one is read as 0 from
/// somewhere else. The verifier follows every branch of the walk once per frame, so the walk has none; and on
/// 6.1 it follows the whole walk anew for every branch before it, so which fields there are is reckoned
/// without any.
#[derive(Clone, Copy)]
struct Field {
    offset: u32,
    mask: u64,
}

impl Field {
    #[inline(always)]
    fn byte(offset: u32) -> Self {
        // 1, or of `ABSENT` 0. The black box keeps the compiler from making a branch of it.
        let is_there = 1 - core::hint::black_box((u64::from(offset) + 1) >> 32);
        Self { offset: offset * is_there as u32, mask: 0xff * is_there }
    }

    /// Adds to `failed` where the frame cannot be read there.
    #[inline(always)]
    fn of(self, frame: u64, failed: &mut i64) -> u64 {
        read(frame, self.offset, failed) & self.mask
    }
}

#[inline(always)]
fn follow(
    capture: &mut Capture,
    layout: &PythonLayout,
    first: u64,
    frames: &mut u32,
) -> PythonWalk {
    let owner = Field::byte(layout.frame_owner);
    let entry = Field::byte(layout.frame_entry);
    // Read as 8 bytes in any case: to 3.10 more of the frame follows the index of 4.
    let unused_bits = core::hint::black_box(64 - layout.instruction_bytes * 8) & 63;
    let mask = u64::MAX >> unused_bits;
    let instruction = Field { offset: layout.frame_instruction, mask };

    let mut frame = first;
    let mut left_out = 0;
    for index in 0..PYTHON_FRAMES {
        if index == INNER_PYTHON_FRAMES && frame != 0 {
            let end = outer_end(frame, layout.frame_previous);
            if end == NO_END {
                return PythonWalk::TooDeep;
            }
            left_out = passed_over(end);
            frame = end & ADDRESS;
        }
        if frame == 0 {
            return reached(left_out);
        }
        let mut failed = 0;
        let previous = read(frame, layout.frame_previous, &mut failed);
        let code = read(frame, layout.frame_code, &mut failed) & !u64::from(layout.code_tag_mask);
        let raw = PythonFrame {
            frame,
            code,
            instruction: instruction.of(frame, &mut failed),
            check: check(layout, code),
            owner: owner.of(frame, &mut failed) as u8,
            entry: entry.of(frame, &mut failed) as u8,
            reserved: 0,
        };
        if core::hint::black_box(failed) != 0 {
            return PythonWalk::Unreadable;
        }
        capture.python[index] = raw;
        *frames = index as u32 + 1;
        frame = previous;
    }
    if frame == 0 { reached(left_out) } else { PythonWalk::TooDeep }
}

#[inline(always)]
fn reached(left_out: u32) -> PythonWalk {
    if left_out == 0 { PythonWalk::Complete } else { PythonWalk::Shortened(left_out) }
}

/// Bits of an address of the target. Above them there is room for a number of strides.
const ADDRESS: u64 = (1 << 48) - 1;

/// No outer end was found: the chain cannot be read, or is longer than is followed.
const NO_END: u64 = u64::MAX;

/// How many frames lie before the outer end.
#[inline(always)]
fn passed_over(end: u64) -> u32 {
    (end >> 48) as u32 * PYTHON_STRIDE as u32
}

/// The frame from which on all that is left is kept, and above its address how many strides lie before it.
/// A function that takes numbers alone is followed by the verifier once, however many programs call it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn outer_end(first: u64, previous: u32) -> u64 {
    // Two marks, one stride apart: between the outer one and the end there is less than a stride.
    let (mut inner, mut outer, mut strides) = (first, first, 0_u64);
    for stride in 0..PYTHON_STRIDES as u64 {
        let next = stride_from(outer, previous);
        if next == 0 {
            return (strides << 48) | (inner & ADDRESS);
        }
        if next & !ADDRESS != 0 {
            return NO_END;
        }
        (inner, outer, strides) = (outer, next, stride);
    }
    NO_END
}

/// The frame that is one stride further out, 0 where the chain ends before that, or what is no address.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stride_from(first: u64, previous: u32) -> u64 {
    let mut frame = first;
    for _ in 0..PYTHON_STRIDE {
        let mut failed = 0;
        frame = read(frame, previous, &mut failed);
        if failed != 0 {
            return NO_END;
        }
        if frame == 0 {
            return 0;
        }
    }
    frame
}

/// What identifies the code object. A shim frame's may be none: what cannot be read counts as 0.
#[inline(always)]
fn check(layout: &PythonLayout, code: u64) -> u32 {
    let mut ignored = 0;
    let first = read(code, layout.code_firstlineno, &mut ignored) as u32;
    let name = read(code, layout.code_name, &mut ignored);
    let linetable = read(code, layout.code_linetable, &mut ignored);
    code_check(first, name, linetable)
}

/// Eight bytes of the target, or 0 where the address is not known or not mapped.
#[inline(always)]
pub fn word_at(address: u64) -> u64 {
    if address == 0 { 0 } else { read(address, 0, &mut 0) }
}

/// Eight bytes, or 0 and a mark in `failed`.
#[inline(always)]
fn read(base: u64, offset: u32, failed: &mut i64) -> u64 {
    let mut value = core::mem::MaybeUninit::<u64>::uninit();
    let from = base.wrapping_add(u64::from(offset));
    // SAFETY: the buffer is of that size; the helper fills it with zeros where it fails.
    unsafe {
        *failed |= bpf_probe_read_user(value.as_mut_ptr().cast(), 8, from as *const _);
        value.assume_init()
    }
}

#[inline(always)]
fn word<T>(base: u64, offset: u32) -> Result<T, PythonWalk> {
    let address = base.wrapping_add(u64::from(offset)) as *const T;
    // SAFETY: the helper fails instead of faulting.
    unsafe { aya_ebpf::helpers::bpf_probe_read_user(address) }.map_err(|_| PythonWalk::Unreadable)
}
