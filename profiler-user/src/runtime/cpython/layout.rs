//! A CPython version to the offsets of the fields that lead from its runtime to names and lines.
//!
//! Up to 3.12 no patch release has moved a field that is used here, so one table per minor version
//! is enough. From 3.13 on fields do move between patch releases, but the interpreter carries its
//! own table (`_Py_DebugOffsets`, at the very beginning of `_PyRuntime`), which replaces ours.
//! All offsets are in bytes and those of 64-bit builds with a global interpreter lock.

use profiler_ebpf::python::{ABSENT, PythonLayout};

use super::collecting::Collecting;
use super::dict::Form;
use super::gil::Place;
use super::lines::Format;
use super::tasks::{Current, FrameOf, TaskLayout};
use crate::gap::Gap;

/// Owner bytes that mark a frame as interpreter plumbing rather than Python code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shims {
    /// There are none: to 3.10 every frame is an evaluation call of its own, 3.11 marks entries.
    None,
    /// `FRAME_OWNED_BY_CSTACK` is 3.
    Three,
    /// `FRAME_OWNED_BY_INTERPRETER` is 3 and `FRAME_OWNED_BY_CSTACK` 4.
    ThreeAndFour,
}

/// Where a `str` keeps its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StrLayout {
    pub length: u32,
    pub state: u32,
    /// The characters of a compact ASCII string.
    pub ascii_data: u32,
    /// The characters of any other compact string.
    pub compact_data: u32,
}

/// Everything that is read of one CPython version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// What the probes need, too.
    pub walk: PythonLayout,
    pub runtime_interpreters: u32,
    pub interpreter_next: u32,
    pub interpreter_threads: u32,
    pub tstate_next: u32,
    /// Since 3.11.
    pub tstate_native_id: Option<u32>,
    /// The first of a frame's local variables.
    pub frame_variables: u32,
    pub object_type: u32,
    pub code_flags: u32,
    pub code_filename: u32,
    /// `co_qualname`, to 3.10 `co_name`.
    pub code_function: u32,
    /// The bytecode inside the code object that instruction pointers point into; to 3.10 frames
    /// hold an index instead.
    pub code_bytecode: Option<u32>,
    /// Bytes per step of that index.
    pub index_bytes: i64,
    pub bytes_length: u32,
    pub bytes_data: u32,
    pub text: StrLayout,
    pub lines: Format,
    pub shims: Shims,
    pub gil: Place,
    pub collecting: Collecting,
    pub tasks: TaskLayout,
}

const V3_8: Layout = Layout {
    walk: PythonLayout {
        known: 1,
        tstate_thread_id: 176,
        tstate_frame: 24,
        cframe_frame: ABSENT,
        frame_previous: 24,
        frame_code: 32,
        frame_instruction: 104,
        instruction_bytes: 4,
        frame_owner: ABSENT,
        frame_entry: ABSENT,
        code_tag_mask: 0,
        code_firstlineno: 40,
        code_name: 112,
        code_linetable: 120,
    },
    runtime_interpreters: 32,
    interpreter_next: 0,
    interpreter_threads: 8,
    tstate_next: 8,
    tstate_native_id: None,
    frame_variables: 360,
    object_type: 8,
    code_flags: 36,
    code_filename: 104,
    code_function: 112,
    code_bytecode: None,
    index_bytes: 1,
    bytes_length: 16,
    bytes_data: 32,
    text: StrLayout { length: 16, state: 32, ascii_data: 48, compact_data: 72 },
    lines: Format::Lnotab,
    shims: Shims::None,
    gil: Place::Runtime(1152),
    collecting: Collecting::Runtime(344 + 200),
    tasks: TaskLayout {
        current: Current::Table { modules: 56, form: Form::Sized },
        task_coroutine: 112,
        frame: FrameOf::Behind(16),
        lazy_names: false,
        code_parameters: 16,
        code_names: 72,
    },
};

const V3_9: Layout = Layout {
    gil: Place::Runtime(352),
    collecting: Collecting::Interpreter { collector: 616, flag: 200 },
    tasks: TaskLayout {
        current: Current::Table { modules: 856, form: Form::Sized },
        task_coroutine: 152,
        ..V3_8.tasks
    },
    ..V3_8
};

const V3_10: Layout = Layout {
    walk: PythonLayout { frame_instruction: 96, ..V3_9.walk },
    frame_variables: 352,
    index_bytes: 2,
    lines: Format::Ranges,
    tasks: TaskLayout { task_coroutine: 160, ..V3_9.tasks },
    ..V3_9
};

const V3_11: Layout = Layout {
    walk: PythonLayout {
        tstate_thread_id: 152,
        tstate_frame: 56,
        cframe_frame: 8,
        frame_previous: 48,
        frame_code: 32,
        frame_instruction: 56,
        instruction_bytes: 8,
        frame_owner: 69,
        frame_entry: 68,
        code_firstlineno: 72,
        code_name: 120,
        code_linetable: 136,
        ..V3_8.walk
    },
    runtime_interpreters: 40,
    interpreter_threads: 16,
    tstate_native_id: Some(160),
    frame_variables: 72,
    code_flags: 48,
    code_filename: 112,
    code_function: 128,
    code_bytecode: Some(184),
    lines: Format::Locations,
    gil: Place::Runtime(360),
    collecting: Collecting::Interpreter { collector: 648, flag: 200 },
    tasks: TaskLayout {
        current: Current::Table { modules: 888, form: Form::Logarithmic },
        task_coroutine: 136,
        frame: FrameOf::Inside(80),
        lazy_names: false,
        code_parameters: 56,
        code_names: 96,
    },
    ..V3_8
};

const V3_12: Layout = Layout {
    walk: PythonLayout {
        tstate_thread_id: 136,
        cframe_frame: 0,
        frame_previous: 8,
        frame_code: 0,
        frame_owner: 70,
        frame_entry: ABSENT,
        code_firstlineno: 68,
        ..V3_11.walk
    },
    interpreter_threads: 72,
    tstate_native_id: Some(144),
    code_bytecode: Some(192),
    text: StrLayout { length: 16, state: 32, ascii_data: 40, compact_data: 56 },
    shims: Shims::Three,
    gil: Place::Interpreter(384),
    collecting: Collecting::Interpreter { collector: 112, flag: 200 },
    tasks: TaskLayout {
        current: Current::Table { modules: 944, form: Form::Logarithmic },
        frame: FrameOf::Inside(72),
        lazy_names: true,
        code_parameters: 52,
        ..V3_11.tasks
    },
    ..V3_11
};

const V3_13: Layout = Layout {
    walk: PythonLayout {
        tstate_thread_id: 152,
        tstate_frame: 72,
        cframe_frame: ABSENT,
        ..V3_12.walk
    },
    runtime_interpreters: 632,
    interpreter_next: 7264,
    interpreter_threads: 7344,
    tstate_native_id: Some(160),
    code_bytecode: Some(200),
    gil: Place::Interpreter(16),
    collecting: Collecting::Interpreter { collector: 7400, flag: 200 },
    tasks: TaskLayout {
        current: Current::Table { modules: 7656, form: Form::Logarithmic },
        task_coroutine: 120,
        ..V3_12.tasks
    },
    ..V3_12
};

const V3_14: Layout = Layout {
    walk: PythonLayout {
        frame_owner: 74,
        // The two low bits of a stack reference tell how it is counted.
        code_tag_mask: 3,
        ..V3_13.walk
    },
    runtime_interpreters: 808,
    interpreter_next: 7272,
    frame_variables: 80,
    collecting: Collecting::Interpreter { collector: 7408, flag: 192 },
    code_bytecode: Some(208),
    shims: Shims::ThreeAndFour,
    tasks: TaskLayout { current: Current::Thread(872), task_coroutine: 128, ..V3_13.tasks },
    ..V3_13
};

/// The table of one minor version of CPython 3, or that there is none.
pub fn of_minor(minor: u8) -> Result<Layout, Gap> {
    match minor {
        8 => Ok(V3_8),
        9 => Ok(V3_9),
        10 => Ok(V3_10),
        11 => Ok(V3_11),
        12 => Ok(V3_12),
        13 => Ok(V3_13),
        14 => Ok(V3_14),
        _ => Err(Gap::new(
            "Python frames",
            format_args!("CPython 3.{minor} is not among the versions known, 3.8 to 3.14"),
        )),
    }
}

/// The first minor version that carries its own table of offsets.
pub const FIRST_WITH_DEBUG_OFFSETS: u8 = 13;

/// What the interpreter's own table begins with.
pub const DEBUG_COOKIE: [u8; 8] = *b"xdebugpy";

/// Words of that table, after the cookie, up to the last one that is used.
pub const DEBUG_WORDS: usize = 80;

/// Offsets in the runtime and in interpreters lie below this; those structures have under 0.5 MiB.
const MAX_STATE_OFFSET: u64 = 1 << 20;

/// Offsets in threads, frames and objects lie below this; the largest of them has 888 bytes.
const MAX_OBJECT_OFFSET: u64 = 1 << 10;

/// `_PyThreadStateImpl` (3.14) begins with the thread's state, which grows in patch releases, and
/// goes on with five words of which the last is `asyncio_running_task`.
const RUNNING_TASK_BEHIND_THREAD: u32 = 40;

/// The words of the interpreter's own table that carry its version and its kind of build.
pub const WORD_VERSION: usize = 0;
pub const WORD_FREE_THREADED: usize = 1;

/// Where the groups of the interpreter's own table begin, as word numbers. New fields are put at the
/// end of a group, which moves the groups after it but nothing inside one.
struct Groups {
    thread: usize,
    frame: usize,
    code: usize,
    object: usize,
    bytes: usize,
    text: usize,
}

const GROUPS_3_13: Groups =
    Groups { thread: 18, frame: 27, code: 33, object: 43, bytes: 63, text: 66 };
const GROUPS_3_14: Groups =
    Groups { thread: 21, frame: 30, code: 38, object: 49, bytes: 73, text: 76 };

impl Layout {
    /// Replaces our offsets by those that the interpreter itself publishes.
    pub fn with_debug_offsets(mut self, minor: u8, words: &[u64]) -> Result<Self, Gap> {
        let group = if minor == 13 { GROUPS_3_13 } else { GROUPS_3_14 };
        let state = |word| offset(words, word, MAX_STATE_OFFSET);
        let object = |word| offset(words, word, MAX_OBJECT_OFFSET);

        // runtime_state and interpreter_state begin at the same words in both.
        self.runtime_interpreters = state(4)?;
        self.interpreter_next = state(7)?;
        self.interpreter_threads = state(8)?;

        if let Collecting::Interpreter { collector, .. } = &mut self.collecting {
            *collector = state(9)?;
        }

        self.tstate_next = object(group.thread + 2)?;
        self.walk.tstate_frame = object(group.thread + 4)?;
        self.walk.tstate_thread_id = object(group.thread + 5)?;
        self.tstate_native_id = Some(object(group.thread + 6)?);

        self.walk.frame_previous = object(group.frame + 1)?;
        self.walk.frame_code = object(group.frame + 2)?;
        self.walk.frame_instruction = object(group.frame + 3)?;
        self.frame_variables = object(group.frame + 4)?;
        self.walk.frame_owner = object(group.frame + 5)?;

        self.code_filename = object(group.code + 1)?;
        self.walk.code_name = object(group.code + 2)?;
        self.code_function = object(group.code + 3)?;
        self.walk.code_linetable = object(group.code + 4)?;
        self.walk.code_firstlineno = object(group.code + 5)?;
        self.tasks.code_parameters = object(group.code + 6)?;
        self.tasks.code_names = object(group.code + 7)?;
        self.code_bytecode = Some(object(group.code + 9)?);

        self.object_type = object(group.object + 1)?;
        self.bytes_length = object(group.bytes + 1)?;
        self.bytes_data = object(group.bytes + 2)?;
        self.text.state = object(group.text + 1)?;
        self.text.length = object(group.text + 2)?;
        self.text.ascii_data = object(group.text + 3)?;
        self.tasks.current = match self.tasks.current {
            Current::Table { form, .. } => Current::Table { modules: state(10)?, form },
            Current::Thread(_) => {
                Current::Thread(object(group.thread)? + RUNNING_TASK_BEHIND_THREAD)
            }
        };
        // The long header has two words more, for the UTF-8 form; the table does not list it.
        self.text.compact_data = self.text.ascii_data + 16;
        Ok(self)
    }
}

/// One word of the interpreter's own table. A field that a build lacks has all bits set.
fn offset(words: &[u64], word: usize, below: u64) -> Result<u32, Gap> {
    match words.get(word) {
        Some(&value) if value < below => Ok(u32::try_from(value).unwrap_or(ABSENT)),
        _ => Err(Gap::new(
            "Python frames",
            format_args!("word {word} of the interpreter's own table of offsets makes no sense"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        DEBUG_WORDS, GROUPS_3_13, GROUPS_3_14, Groups, V3_13, V3_14, WORD_FREE_THREADED,
        WORD_VERSION, of_minor,
    };
    use profiler_ebpf::python::ABSENT;

    /// The words of a release as its binary has them; what is not used stays implausible on purpose.
    fn published(group: &Groups, version: u64, state: [u64; 3], rest: [u64; 7]) -> Vec<u64> {
        let mut words = vec![u64::MAX; DEBUG_WORDS];
        words[WORD_VERSION] = version;
        words[WORD_FREE_THREADED] = 0;
        [words[4], words[7], words[8]] = state;
        words[9] = if version >> 16 == 0x030e { 7408 } else { 7400 };
        words[10] = 7656;
        words[group.thread] = 832;
        let [next, frame, thread_id, native_id, owner, bytecode, previous] = rest;
        words[group.thread + 2] = next;
        words[group.thread + 4] = frame;
        words[group.thread + 5] = thread_id;
        words[group.thread + 6] = native_id;
        words[group.frame + 1] = previous;
        words[group.frame + 2] = 0;
        words[group.frame + 3] = 56;
        words[group.frame + 4] = if version >> 16 == 0x030e { 80 } else { 72 };
        words[group.frame + 5] = owner;
        for (place, value) in
            [(1, 112), (2, 120), (3, 128), (4, 136), (5, 68), (6, 52), (7, 96), (9, bytecode)]
        {
            words[group.code + place] = value;
        }
        words[group.object + 1] = 8;
        words[group.bytes + 1] = 16;
        words[group.bytes + 2] = 32;
        words[group.text + 1] = 32;
        words[group.text + 2] = 16;
        words[group.text + 3] = 40;
        words
    }

    /// What 3.13.0 and 3.14.10 publish about themselves is what our tables say.
    #[test]
    fn tables_agree_with_published_offsets() {
        let words =
            published(&GROUPS_3_13, 0x030d_00f0, [632, 7264, 7344], [8, 72, 152, 160, 70, 200, 8]);
        assert_eq!(V3_13.with_debug_offsets(13, &words), Ok(V3_13));
        let words =
            published(&GROUPS_3_14, 0x030e_0af0, [808, 7272, 7344], [8, 72, 152, 160, 74, 208, 8]);
        assert_eq!(V3_14.with_debug_offsets(14, &words), Ok(V3_14));
    }

    /// A patch release that moved a field is read by its own table, not by ours.
    #[test]
    fn published_offsets_win() {
        let words =
            published(&GROUPS_3_13, 0x030d_63f0, [640, 7264, 7344], [8, 80, 160, 168, 71, 208, 8]);
        let layout = V3_13.with_debug_offsets(13, &words).expect("plausible");
        assert_eq!(layout.runtime_interpreters, 640);
        assert_eq!((layout.walk.tstate_frame, layout.walk.frame_owner), (80, 71));
        assert_eq!(layout.code_bytecode, Some(208));
    }

    /// A table that is cut off or holds absent fields is refused, not half believed.
    #[test]
    fn implausible_offsets_are_refused() {
        let words = published(
            &GROUPS_3_13,
            0x030d_00f0,
            [632, 7264, 7344],
            [8, 72, 152, 160, u64::MAX, 200, 8],
        );
        let gap = V3_13.with_debug_offsets(13, &words).expect_err("the owner is absent");
        assert!(gap.0.contains("word 32"), "{gap}");
        assert!(V3_13.with_debug_offsets(13, &[]).is_err());
        assert!(V3_13.with_debug_offsets(13, &[1 << 40; DEBUG_WORDS]).is_err());
    }

    /// Versions before and after those known are a gap; each known one is complete for the probes.
    #[test]
    fn unknown_versions_are_gaps() {
        for minor in [0, 7, 15, 255] {
            assert!(of_minor(minor).is_err(), "3.{minor}");
        }
        for minor in 8..=14 {
            let walk = of_minor(minor).expect("known").walk;
            assert_eq!(walk.known, 1);
            assert_eq!(walk.instruction_bytes, if minor <= 10 { 4 } else { 8 });
            assert_eq!(walk.frame_owner == ABSENT, minor <= 10, "3.{minor}");
            assert_eq!(walk.frame_entry == ABSENT, minor != 11, "3.{minor}");
            assert_eq!(walk.cframe_frame == ABSENT, minor != 11 && minor != 12, "3.{minor}");
        }
    }
}
