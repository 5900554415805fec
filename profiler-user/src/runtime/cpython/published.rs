//! The table of offsets that an interpreter carries, `_Py_DebugOffsets`, over our own table.
//!
//! It has numbers only, no names: which number is which differs between minor versions, whose groups grow at
//! their ends and within.

use super::layout::{Collecting, CpythonLayout, Current, FrameOf, KeysLayout, LockPlace};
use crate::gap::Gap;

/// The first minor version that carries its own table of offsets.
pub const FIRST_WITH_DEBUG_OFFSETS: u8 = 13;

/// What the interpreter's own table begins with.
pub const DEBUG_COOKIE: [u8; 8] = *b"xdebugpy";

/// Words of that table, after the cookie, up to the last one that is used.
pub const DEBUG_WORDS: usize = 95;

/// Offsets in the runtime and in interpreters lie below this; those structures have under 0.5 MiB.
const MAX_STATE_OFFSET: u64 = 1 << 20;

/// Offsets in threads, frames and objects lie below this; the largest of them has 944 bytes.
const MAX_OBJECT_OFFSET: u64 = 1 << 10;

/// Words of `_PyThreadStateImpl` from the end of what the table tells of it to `asyncio_running_task`.
const WORDS_TO_RUNNING_TASK_3_14: u32 = 5;
const WORDS_TO_RUNNING_TASK_3_15: u32 = 7;

/// The words of the interpreter's own table that carry its version and its kind of build.
pub const WORD_VERSION: usize = 0;
pub const WORD_FREE_THREADED: usize = 1;

/// Word numbers: of groups, where they begin; of what does not keep its place in its group, where it is.
struct Groups {
    /// Of the interpreter's state; those before it are at the same words in all.
    collector: usize,
    modules: usize,
    lock: usize,
    thread: usize,
    thread_id: usize,
    frame: usize,
    code: usize,
    object: usize,
    type_keys: Option<usize>,
    tuple: usize,
    bytes: usize,
    text: usize,
    collecting: usize,
}

const GROUPS_3_13: Groups = Groups {
    collector: 9,
    modules: 10,
    lock: 13,
    thread: 18,
    thread_id: 23,
    frame: 27,
    code: 33,
    object: 43,
    type_keys: None,
    tuple: 49,
    bytes: 63,
    text: 66,
    collecting: 71,
};
const GROUPS_3_14: Groups = Groups {
    collector: 10,
    modules: 11,
    lock: 14,
    thread: 21,
    thread_id: 26,
    frame: 30,
    code: 38,
    object: 49,
    type_keys: None,
    tuple: 55,
    bytes: 73,
    text: 76,
    collecting: 81,
};
const GROUPS_3_15: Groups = Groups {
    thread_id: 29,
    frame: 38,
    code: 46,
    object: 57,
    type_keys: Some(66),
    tuple: 67,
    bytes: 85,
    text: 88,
    collecting: 94,
    ..GROUPS_3_14
};

impl CpythonLayout {
    /// Replaces our offsets by those that the interpreter itself publishes.
    pub fn with_debug_offsets(mut self, minor: u8, words: &[u64]) -> Result<Self, Gap> {
        let group = match minor {
            13 => GROUPS_3_13,
            14 => GROUPS_3_14,
            _ => GROUPS_3_15,
        };
        let state = |word| offset(words, word, MAX_STATE_OFFSET);
        let object = |word| offset(words, word, MAX_OBJECT_OFFSET);

        self.runtime_interpreters = state(4)?;
        self.interpreter_next = state(7)?;
        self.interpreter_threads = state(8)?;
        self.modules = state(group.modules)?;
        self.gil = LockPlace::Interpreter(state(group.lock)?);
        self.collecting = Collecting::Interpreter {
            collector: state(group.collector)?,
            flag: object(group.collecting)?,
        };

        self.tstate_next = object(group.thread + 2)?;
        self.walk.tstate_frame = object(group.thread + 4)?;
        self.walk.tstate_thread_id = object(group.thread_id)?;
        self.tstate_native_id = Some(object(group.thread_id + 1)?);

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
        if let Some(word) = group.type_keys {
            self.type_keys = object(word)?;
        }
        self.tuple_items = object(group.tuple + 1)?;
        self.bytes_length = object(group.bytes + 1)?;
        self.bytes_data = object(group.bytes + 2)?;
        self.text.state = object(group.text + 1)?;
        self.text.length = object(group.text + 2)?;
        self.text.ascii_data = object(group.text + 3)?;
        // The long header has two words more, for the UTF-8 form; to 3.14 the table does not list it.
        self.text.compact_data = self.text.ascii_data + 16;

        // `_PyThreadStateImpl` begins with the thread's state, which grows in patch releases, and goes on,
        // from 3.15 on, with a frame.
        let (thread_bytes, frame_bytes) = (object(group.thread)?, object(group.frame)?);
        self.tasks.current = match (self.tasks.current, minor) {
            (Current::Table, _) => Current::Table,
            (Current::Thread(_), 14) => {
                Current::Thread(thread_bytes + 8 * WORDS_TO_RUNNING_TASK_3_14)
            }
            (Current::Thread(_), _) => {
                Current::Thread(thread_bytes + frame_bytes + 8 * WORDS_TO_RUNNING_TASK_3_15)
            }
        };
        match words.get(WORD_FREE_THREADED) {
            Some(0) => Ok(self),
            _ => self.free_threaded(minor, object(group.code + 10).ok()),
        }
    }

    /// What the table does not tell of a build without the interpreter's lock, by `offsetof` over the headers
    /// of 3.13, 3.14 and 3.15.
    fn free_threaded(mut self, minor: u8, copies: Option<u32>) -> Result<Self, Gap> {
        const EXTRA: u32 = 16;
        if self.object_type != 8 + EXTRA {
            let why = "the interpreter's own table of offsets contradicts its kind of build";
            return Err(Gap::new("Python frames", why));
        }
        self.extra_header = EXTRA;
        self.code_flags += EXTRA;
        self.tasks.task_coroutine += EXTRA;
        self.tasks.frame = match self.tasks.frame {
            FrameOf::Inside(offset) => FrameOf::Inside(offset + EXTRA),
            FrameOf::Behind(offset) => FrameOf::Behind(offset + EXTRA),
        };
        self.dict = KeysLayout::LogarithmicAfterLonger;
        self.gil = match self.gil {
            LockPlace::Interpreter(offset) => LockPlace::Optional(offset),
            place => place,
        };
        if minor < 15 {
            self.type_keys += EXTRA;
        }
        if minor >= 14 {
            self.text.interned_bits = 8;
            // Without it, no line can be told of a thread that has a copy.
            self.code_copies = copies.filter(|&offset| offset != 0);
        }
        Ok(self)
    }
}

/// One word of the interpreter's own table. A field that a build lacks has all bits set.
fn offset(words: &[u64], word: usize, below: u64) -> Result<u32, Gap> {
    match words.get(word) {
        Some(&value) if value < below => Ok(u32::try_from(value).unwrap_or(u32::MAX)),
        _ => Err(Gap::new(
            "Python frames",
            format_args!("word {word} of the interpreter's own table of offsets makes no sense"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::DEBUG_WORDS;
    use crate::runtime::cpython::offsets::of_minor;

    /// What the binaries of these releases hold: pyenv's 3.13.0, Debian's 3.14.10 and 3.15.2.
    const OF_3_13_0: [u64; 72] = [
        0x030d_00f0,
        0,
        283320,
        608,
        632,
        194968,
        7272,
        7264,
        7344,
        7400,
        7656,
        7640,
        7648,
        16,
        7752,
        0,
        7768,
        7760,
        304,
        0,
        8,
        16,
        72,
        152,
        160,
        232,
        32,
        80,
        8,
        0,
        56,
        72,
        70,
        208,
        112,
        120,
        128,
        136,
        68,
        52,
        96,
        104,
        200,
        16,
        8,
        416,
        24,
        88,
        168,
        32,
        24,
        16,
        40,
        24,
        16,
        48,
        32,
        40,
        24,
        16,
        32,
        16,
        24,
        40,
        16,
        32,
        64,
        32,
        16,
        40,
        240,
        200,
    ];
    const OF_3_14_10: [u64; 82] = [
        0x030e_0af0,
        0,
        316616,
        784,
        808,
        225864,
        7280,
        7272,
        7344,
        7360,
        7408,
        7688,
        7672,
        7680,
        16,
        7784,
        0,
        7800,
        7792,
        7992,
        0,
        832,
        0,
        8,
        16,
        72,
        152,
        160,
        232,
        32,
        88,
        8,
        0,
        56,
        80,
        74,
        64,
        0,
        216,
        112,
        120,
        128,
        136,
        68,
        52,
        96,
        104,
        208,
        0,
        16,
        8,
        416,
        24,
        88,
        168,
        40,
        32,
        16,
        40,
        24,
        16,
        200,
        24,
        40,
        32,
        48,
        32,
        40,
        24,
        16,
        32,
        16,
        24,
        40,
        16,
        32,
        64,
        32,
        16,
        40,
        264,
        192,
    ];
    const OF_3_15_2: [u64; 95] = [
        0x030f_02f0,
        0,
        346568,
        912,
        936,
        226240,
        7272,
        7264,
        7336,
        7352,
        7400,
        7592,
        7576,
        7584,
        16,
        7736,
        0,
        7752,
        7744,
        7944,
        0,
        888,
        0,
        8,
        16,
        72,
        80,
        88,
        96,
        176,
        184,
        256,
        32,
        36,
        40,
        136,
        288,
        0,
        88,
        8,
        0,
        56,
        80,
        74,
        64,
        0,
        216,
        112,
        120,
        128,
        136,
        68,
        52,
        96,
        104,
        208,
        0,
        16,
        8,
        424,
        24,
        88,
        168,
        32,
        288,
        944,
        888,
        40,
        32,
        16,
        40,
        24,
        16,
        200,
        24,
        40,
        32,
        48,
        32,
        40,
        24,
        16,
        32,
        16,
        24,
        40,
        16,
        32,
        64,
        32,
        16,
        40,
        56,
        176,
        112,
    ];

    /// What releases publish about themselves is what our tables say.
    #[test]
    fn tables_agree_with_published_offsets() {
        for (minor, words) in [(13, &OF_3_13_0[..]), (14, &OF_3_14_10), (15, &OF_3_15_2)] {
            let layout = of_minor(minor).expect("known");
            assert_eq!(layout.with_debug_offsets(minor, words), Ok(layout), "3.{minor}");
        }
    }

    /// A patch release that moved a field is read by its own table, not by ours.
    #[test]
    fn published_offsets_win() {
        let mut words = OF_3_13_0;
        for (word, value) in [(4, 640), (22, 80), (23, 160), (32, 71), (42, 208), (71, 192)] {
            words[word] = value;
        }
        let layout = of_minor(13).expect("known").with_debug_offsets(13, &words);
        let layout = layout.expect("plausible");
        assert_eq!(layout.runtime_interpreters, 640);
        assert_eq!((layout.walk.tstate_frame, layout.walk.tstate_thread_id), (80, 160));
        assert_eq!((layout.walk.frame_owner, layout.code_bytecode), (71, Some(208)));
    }

    /// A table that is cut off or holds absent fields is refused, not half believed.
    #[test]
    fn implausible_offsets_are_refused() {
        let refused = |minor, words: &[u64]| {
            let layout = of_minor(minor).expect("known").with_debug_offsets(minor, words);
            layout.expect_err("implausible").0
        };
        let mut words = OF_3_13_0;
        words[32] = u64::MAX;
        let gap = refused(13, &words);
        assert!(gap.contains("word 32"), "the owner is absent: {gap}");
        for minor in [13, 14, 15] {
            refused(minor, &[]);
            refused(minor, &[1 << 40; DEBUG_WORDS]);
            refused(minor, &OF_3_15_2[..60]);
        }
    }

    /// What pyenv's or Debian's 3.13.5 holds where it was built without the interpreter's lock.
    const OF_3_13_5_FREE: [u64; 72] = [
        0x030d_05f0,
        1,
        328320,
        608,
        632,
        215616,
        7272,
        7264,
        7344,
        7400,
        7664,
        7648,
        7656,
        16,
        7760,
        0,
        7784,
        7776,
        304,
        0,
        8,
        16,
        72,
        152,
        160,
        232,
        32,
        80,
        8,
        0,
        56,
        72,
        70,
        224,
        128,
        136,
        144,
        152,
        84,
        68,
        112,
        120,
        216,
        32,
        24,
        432,
        40,
        104,
        184,
        48,
        40,
        32,
        56,
        40,
        32,
        64,
        48,
        56,
        40,
        32,
        48,
        32,
        40,
        56,
        32,
        48,
        80,
        48,
        32,
        56,
        248,
        200,
    ];

    /// A free-threaded build has longer headers, which move what the table does not list, too. A table that
    /// says that it is of one and has short headers is refused.
    #[test]
    fn free_threaded_builds() {
        let layout = of_minor(13).expect("known");
        let free = layout.with_debug_offsets(13, &OF_3_13_5_FREE).expect("plausible");
        assert_eq!((free.extra_header, free.object_type, free.code_flags), (16, 24, 64));
        assert_eq!((free.tasks.task_coroutine, free.type_keys), (136, 896));
        assert_eq!((free.code_copies, free.text.interned_bits), (None, 2));
        let mut words = OF_3_15_2;
        words[1] = 1;
        assert!(of_minor(15).expect("known").with_debug_offsets(15, &words).is_err());
        words[58] = 24;
        words[56] = 224;
        let free = of_minor(15).expect("known").with_debug_offsets(15, &words).expect("plausible");
        assert_eq!((free.code_copies, free.text.interned_bits), (Some(224), 8));
    }
}
