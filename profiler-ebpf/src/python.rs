//! CPython's frame chain as the probes walk it: one walker, driven by a table of offsets per version.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An offset that this version of CPython does not have.
pub const ABSENT: u32 = u32::MAX;

/// Where one CPython version keeps the fields on the way from a thread state to its frames.
/// Offsets in bytes. All zero: the target runs no CPython that we know.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PythonLayout {
    /// 1 where the rest is filled.
    pub known: u32,
    /// `PyThreadState.thread_id`: equals the thread pointer (`fsbase`), and so proves the state.
    pub tstate_thread_id: u32,
    /// `PyThreadState.cframe` (3.11, 3.12), `.current_frame` (3.13+) or `.frame` (to 3.10).
    pub tstate_frame: u32,
    /// `_PyCFrame.current_frame` where there is a cframe between, else [`ABSENT`].
    pub cframe_frame: u32,
    /// The frame's caller.
    pub frame_previous: u32,
    /// The frame's code object.
    pub frame_code: u32,
    /// The frame's instruction: a pointer of 8 bytes, or to 3.10 an index of 4.
    pub frame_instruction: u32,
    /// 8 or 4: the size of `frame_instruction`.
    pub instruction_bytes: u32,
    /// `_PyInterpreterFrame.owner`, one byte, or [`ABSENT`].
    pub frame_owner: u32,
    /// `_PyInterpreterFrame.is_entry` (3.11), one byte, or [`ABSENT`].
    pub frame_entry: u32,
    /// Bits to clear in `frame_code`: tags of stack references (3.14+).
    pub code_tag_mask: u32,
    /// `PyCodeObject.co_firstlineno`
    pub code_firstlineno: u32,
    /// `PyCodeObject.co_name`
    pub code_name: u32,
    /// `PyCodeObject.co_linetable`, to 3.9 `co_lnotab`
    pub code_linetable: u32,
}

/// One frame as the target's memory had it at the moment of the capture. Undecoded.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PythonFrame {
    /// Address of the frame.
    pub frame: u64,
    /// Address of the code object, tags cleared.
    pub code: u64,
    /// The raw instruction field.
    pub instruction: u64,
    /// [`code_check`] of the code object, so that a freed and reused one is not taken for it.
    pub check: u32,
    /// The raw owner byte, 0 where there is none.
    pub owner: u8,
    /// The raw `is_entry` byte, 0 where there is none.
    pub entry: u8,
    /// Always 0.
    pub reserved: u16,
}

/// How a walk along the frame chain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PythonWalk {
    /// No thread state is known for this thread, or the target runs no known CPython.
    NotTried,
    /// Down to the outermost frame.
    Complete,
    /// The thread state belongs to another thread by now.
    WrongThread,
    /// A field could not be read; the frames before it are good.
    Unreadable,
    /// So deep that the outer end was not looked for any further.
    TooDeep,
    /// Down to the outermost frame, but so many between the first
    /// [`crate::limits::INNER_PYTHON_FRAMES`] and the others are left out.
    Shortened(u32),
}

/// The number of [`PythonWalk::Shortened`], above which there is how many.
const SHORTENED: u32 = 5;
const COUNT_SHIFT: u32 = 8;

impl PythonWalk {
    /// As records have it.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        match self {
            Self::NotTried => 0,
            Self::Complete => 1,
            Self::WrongThread => 2,
            Self::Unreadable => 3,
            Self::TooDeep => 4,
            Self::Shortened(left_out) => SHORTENED | (left_out << COUNT_SHIFT),
        }
    }

    /// Reads the number back; anything unknown counts as unreadable.
    pub const fn from_u32(number: u32) -> Self {
        match number {
            0 => Self::NotTried,
            1 => Self::Complete,
            2 => Self::WrongThread,
            4 => Self::TooDeep,
            _ if number & 0xff == SHORTENED => Self::Shortened(number >> COUNT_SHIFT),
            _ => Self::Unreadable,
        }
    }
}

/// Folds what identifies a code object besides its address. The line alone collides (lambdas).
#[inline(always)]
pub const fn code_check(firstlineno: u32, name: u64, linetable: u64) -> u32 {
    let mixed = name.rotate_left(17) ^ linetable;
    firstlineno ^ (mixed as u32) ^ ((mixed >> 32) as u32).rotate_left(7)
}
