//! A thread state to its chain of raw frames: the probes' walk, for a thread that stands still.

use profiler_ebpf::limits::{INNER_PYTHON_FRAMES, PYTHON_FRAMES, PYTHON_STRIDE, PYTHON_STRIDES};
use profiler_ebpf::python::{ABSENT, PythonFrame, PythonLayout, PythonWalk, code_check};

use super::object::{Object, Width};
use crate::process::{TargetMemory, Unreadable};

/// Walks from the innermost frame outwards. What was found before the walk ended is good.
///
/// Where `thread_id` is given, the thread state must still be that thread's: states are freed when
/// threads end, and their memory serves others.
pub fn walk(
    memory: &dyn TargetMemory,
    layout: &PythonLayout,
    tstate: u64,
    thread_id: Option<u64>,
) -> (Vec<PythonFrame>, PythonWalk) {
    let mut frames = Vec::new();
    let end = match first(memory, layout, tstate, thread_id) {
        Ok(Some(frame)) => follow(memory, layout, frame, &mut frames),
        Ok(None) => Ok(PythonWalk::WrongThread),
        Err(error) => Err(error),
    };
    (frames, end.unwrap_or(PythonWalk::Unreadable))
}

/// The frame that a thread is in: 0 where it is in none. None where the state is another thread's.
fn first(
    memory: &dyn TargetMemory,
    layout: &PythonLayout,
    tstate: u64,
    thread_id: Option<u64>,
) -> Result<Option<u64>, Unreadable> {
    if let Some(expected) = thread_id {
        let found = memory.read_u64(tstate.wrapping_add(layout.tstate_thread_id.into()))?;
        if found != expected {
            return Ok(None);
        }
    }
    innermost(memory, layout, tstate).map(Some)
}

/// The frame that a thread state points to, 0 where its thread runs no Python code.
pub fn innermost(
    memory: &dyn TargetMemory,
    layout: &PythonLayout,
    tstate: u64,
) -> Result<u64, Unreadable> {
    memory.read_u64(innermost_at(memory, layout, tstate)?)
}

/// Where that address stands: in the thread state, or in what 3.11 and 3.12 put between.
pub fn innermost_at(
    memory: &dyn TargetMemory,
    layout: &PythonLayout,
    tstate: u64,
) -> Result<u64, Unreadable> {
    let at = tstate.wrapping_add(layout.tstate_frame.into());
    if layout.cframe_frame == ABSENT {
        return Ok(at);
    }
    match memory.read_u64(at)? {
        // As good as a frame of 0.
        0 => Ok(at),
        cframe => Ok(cframe.wrapping_add(layout.cframe_frame.into())),
    }
}

fn follow(
    memory: &dyn TargetMemory,
    layout: &PythonLayout,
    mut address: u64,
    frames: &mut Vec<PythonFrame>,
) -> Result<PythonWalk, Unreadable> {
    let mut left_out = 0;
    while address != 0 {
        if frames.len() == PYTHON_FRAMES {
            return Ok(PythonWalk::TooDeep);
        }
        if frames.len() == INNER_PYTHON_FRAMES {
            match outer_end(memory, layout.frame_previous, address)? {
                Some((end, strides)) => (address, left_out) = (end, strides * PYTHON_STRIDE),
                None => return Ok(PythonWalk::TooDeep),
            }
        }
        let (frame, previous) = read(memory, layout, address)?;
        frames.push(frame);
        address = previous;
    }
    Ok(match u32::try_from(left_out) {
        Ok(0) => PythonWalk::Complete,
        Ok(left_out) => PythonWalk::Shortened(left_out),
        Err(_) => PythonWalk::TooDeep,
    })
}

/// The frame from which on all that is left is kept, and how many strides lie before it. Also what ends a walk
/// around a ring of frames.
fn outer_end(
    memory: &dyn TargetMemory,
    previous: u32,
    first: u64,
) -> Result<Option<(u64, usize)>, Unreadable> {
    // Two marks, one stride apart: between the outer one and the end there is less than a stride.
    let (mut inner, mut outer, mut strides) = (first, first, 0);
    for stride in 0..PYTHON_STRIDES {
        let mut frame = outer;
        for _ in 0..PYTHON_STRIDE {
            frame = memory.read_u64(frame.wrapping_add(previous.into()))?;
            if frame == 0 {
                return Ok(Some((inner, strides)));
            }
        }
        (inner, outer, strides) = (outer, frame, stride);
    }
    Ok(None)
}

/// One frame, and the address of its caller's.
fn read(
    memory: &dyn TargetMemory,
    layout: &PythonLayout,
    address: u64,
) -> Result<(PythonFrame, u64), Unreadable> {
    let instruction_width = if layout.instruction_bytes == 4 { Width::Half } else { Width::Word };
    // A field that this version lacks asks for a byte that is read anyway.
    let byte_field = |at| (if at == ABSENT { layout.frame_code } else { at }, Width::Byte);
    let fields = [
        (layout.frame_previous, Width::Word),
        (layout.frame_code, Width::Word),
        (layout.frame_instruction, instruction_width),
        byte_field(layout.frame_owner),
        byte_field(layout.frame_entry),
    ];
    let object = Object::read(memory, address, &fields)?;

    let byte = |at| if at == ABSENT { Ok(0) } else { object.u8(at) };
    let code = object.u64(layout.frame_code)? & !u64::from(layout.code_tag_mask);
    let frame = PythonFrame {
        frame: address,
        code,
        instruction: match instruction_width {
            Width::Half => object.u32(layout.frame_instruction)?.into(),
            _ => object.u64(layout.frame_instruction)?,
        },
        check: check_of(memory, layout, code)?,
        owner: byte(layout.frame_owner)?,
        entry: byte(layout.frame_entry)?,
        reserved: 0,
    };
    Ok((frame, object.u64(layout.frame_previous)?))
}

/// Whether a frame has no caller. One that cannot be read any more is taken for one that has.
pub fn is_outermost(memory: &dyn TargetMemory, layout: &PythonLayout, frame: u64) -> bool {
    memory.read_u64(frame.wrapping_add(layout.frame_previous.into())) == Ok(0)
}

/// The check word of the code object that lies at an address now. Of a shim frame, whose code is
/// no code object from 3.13 on, it is made of whatever lies there.
pub fn check_of(
    memory: &dyn TargetMemory,
    layout: &PythonLayout,
    code: u64,
) -> Result<u32, Unreadable> {
    let object = Object::read(
        memory,
        code,
        &[
            (layout.code_firstlineno, Width::Half),
            (layout.code_name, Width::Word),
            (layout.code_linetable, Width::Word),
        ],
    )?;
    Ok(code_check(
        object.u32(layout.code_firstlineno)?,
        object.u64(layout.code_name)?,
        object.u64(layout.code_linetable)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::walk;
    use crate::runtime::cpython::offsets::of_minor;
    use crate::runtime::cpython::pages::CopiedPages;
    use profiler_ebpf::limits::{INNER_PYTHON_FRAMES, PYTHON_STRIDE, PYTHON_STRIDES};
    use profiler_ebpf::python::{ABSENT, PythonLayout, PythonWalk, code_check};

    const TSTATE: u64 = 0x10_0000;
    const CFRAME: u64 = 0x11_0000;
    const FRAMES: u64 = 0x4000_0000;
    const CODE: u64 = 0x30_0000;
    const THREAD: u64 = 0x7f00_1234;

    fn layout(minor: u8) -> PythonLayout {
        of_minor(minor).expect("known").walk
    }

    fn frame(number: u64) -> u64 {
        FRAMES + number * 0x200
    }

    /// A thread with this many frames of one code object; the outermost points to `beyond`.
    fn thread(layout: &PythonLayout, frames: u64, beyond: u64) -> CopiedPages {
        let mut pages = CopiedPages::default();
        pages.put(TSTATE, &[0; 256]);
        pages.put_u64(TSTATE + u64::from(layout.tstate_thread_id), THREAD);
        let innermost = if frames == 0 { 0 } else { frame(0) };
        if layout.cframe_frame == ABSENT {
            pages.put_u64(TSTATE + u64::from(layout.tstate_frame), innermost);
        } else {
            pages.put_u64(TSTATE + u64::from(layout.tstate_frame), CFRAME);
            pages.put_u64(CFRAME + u64::from(layout.cframe_frame), innermost);
        }
        for number in 0..frames {
            let next = if number + 1 == frames { beyond } else { frame(number + 1) };
            pages.put(frame(number), &[0; 128]);
            pages.put_u64(frame(number) + u64::from(layout.frame_previous), next);
            let tagged = CODE | u64::from(layout.code_tag_mask & 1);
            pages.put_u64(frame(number) + u64::from(layout.frame_code), tagged);
            pages.put(
                frame(number) + u64::from(layout.frame_instruction),
                &(40 + number).to_le_bytes()[..layout.instruction_bytes as usize],
            );
            if layout.frame_owner != ABSENT {
                pages.put(frame(number) + u64::from(layout.frame_owner), &[1]);
            }
        }
        pages.put(CODE, &[0; 256]);
        pages.put(CODE + u64::from(layout.code_firstlineno), &7_u32.to_le_bytes());
        pages.put_u64(CODE + u64::from(layout.code_name), 0xaaaa);
        pages.put_u64(CODE + u64::from(layout.code_linetable), 0xbbbb);
        pages
    }

    /// In every version the chain is followed to its end and each field lands where it belongs.
    #[test]
    fn whole_chain() {
        for minor in 8..=15 {
            let layout = layout(minor);
            let pages = thread(&layout, 3, 0);
            let (frames, end) = walk(&pages, &layout, TSTATE, Some(THREAD));
            assert_eq!(end, PythonWalk::Complete, "3.{minor}");
            assert_eq!(frames.len(), 3);
            for (number, raw) in (0..).zip(&frames) {
                assert_eq!(raw.frame, frame(number));
                assert_eq!(raw.code, CODE, "3.{minor}: tags are cleared");
                assert_eq!(raw.instruction, 40 + number);
                assert_eq!(raw.check, code_check(7, 0xaaaa, 0xbbbb));
                assert_eq!(raw.owner, u8::from(minor >= 11));
            }
        }
    }

    /// A thread in no Python code has no frames, and that is complete.
    #[test]
    fn no_python_code() {
        for minor in [10, 12, 13] {
            let layout = layout(minor);
            let (frames, end) = walk(&thread(&layout, 0, 0), &layout, TSTATE, None);
            assert_eq!((frames.len(), end), (0, PythonWalk::Complete), "3.{minor}");
        }
        let layout = layout(12);
        let mut pages = thread(&layout, 1, 0);
        pages.put_u64(TSTATE + u64::from(layout.tstate_frame), 0);
        let (frames, end) = walk(&pages, &layout, TSTATE, None);
        assert_eq!((frames.len(), end), (0, PythonWalk::Complete), "no cframe");
    }

    /// A state that now serves another thread yields nothing rather than that thread's stack.
    #[test]
    fn another_threads_state() {
        let layout = layout(13);
        let pages = thread(&layout, 2, 0);
        let (frames, end) = walk(&pages, &layout, TSTATE, Some(THREAD + 1));
        assert_eq!((frames.len(), end), (0, PythonWalk::WrongThread));
    }

    /// A chain that leads nowhere keeps the frames before it.
    #[test]
    fn torn_chain() {
        let layout = layout(11);
        let (frames, end) = walk(&thread(&layout, 2, 0xdead_0000), &layout, TSTATE, None);
        assert_eq!((frames.len(), end), (2, PythonWalk::Unreadable));
        let (frames, end) = walk(&CopiedPages::default(), &layout, u64::MAX, None);
        assert_eq!((frames.len(), end), (0, PythonWalk::Unreadable));
    }

    /// A ring of frames ends at the bound.
    #[test]
    fn ring() {
        let layout = layout(12);
        let (frames, end) = walk(&thread(&layout, 2, frame(0)), &layout, TSTATE, None);
        assert_eq!((frames.len(), end), (INNER_PYTHON_FRAMES, PythonWalk::TooDeep));
    }

    /// Of a deep chain both ends are kept, and how many lie between is known exactly.
    #[test]
    fn both_ends_of_a_deep_chain() {
        let layout = layout(12);
        let deepest = (INNER_PYTHON_FRAMES + PYTHON_STRIDES * PYTHON_STRIDE) as u64;
        for depth in [128, 129, 192, 255, 256, 319, 320, 321, 1_700, 10_007, deepest] {
            let (frames, end) = walk(&thread(&layout, depth, 0), &layout, TSTATE, None);
            let left_out = depth - frames.len() as u64;
            match end {
                PythonWalk::Complete => assert_eq!(left_out, 0, "{depth}"),
                PythonWalk::Shortened(told) => assert_eq!(left_out, u64::from(told), "{depth}"),
                other => unreachable!("{other:?} of {depth}"),
            }
            let inner = depth.min(INNER_PYTHON_FRAMES as u64);
            let outer = depth - (frames.len() as u64 - inner)..depth;
            let found: Vec<u64> = frames.iter().map(|raw| raw.frame).collect();
            assert_eq!(found, (0..inner).chain(outer).map(frame).collect::<Vec<_>>(), "{depth}");
            assert!(left_out == 0 || frames.len() >= INNER_PYTHON_FRAMES + PYTHON_STRIDE);
        }
        let beyond = deepest + 1;
        let (frames, end) = walk(&thread(&layout, beyond, 0), &layout, TSTATE, None);
        assert_eq!((frames.len(), end), (INNER_PYTHON_FRAMES, PythonWalk::TooDeep));
    }
}
