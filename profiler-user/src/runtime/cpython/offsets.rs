//! A minor version of CPython to where it keeps its fields.
//!
//! Up to 3.12 no patch release has moved a field that is used here, so one table per minor version
//! is enough. From 3.13 on fields do move between patch releases, but the interpreter carries its
//! own table (`_Py_DebugOffsets`, at the very beginning of `_PyRuntime`), which replaces ours.
//! All offsets are in bytes and those of 64-bit builds with a global interpreter lock; what differs in those
//! without is in `published`.

use profiler_ebpf::python::{ABSENT, PythonLayout};

use super::layout::{
    Collecting, CpythonLayout, Current, FrameOf, Kept, KeysLayout, LockPlace, Shims, StrLayout,
    TaskLayout,
};
use super::lines::LineTableFormat;
use crate::gap::Gap;

const V3_8: CpythonLayout = CpythonLayout {
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
    extra_header: 0,
    object_type: 8,
    code_flags: 36,
    code_filename: 104,
    code_function: 112,
    code_bytecode: None,
    code_copies: None,
    index_bytes: 1,
    bytes_length: 16,
    bytes_data: 32,
    tuple_items: 24,
    text: StrLayout { length: 16, state: 32, ascii_data: 48, compact_data: 72, interned_bits: 2 },
    lines: LineTableFormat::Lnotab,
    shims: Shims::None,
    gil: LockPlace::Runtime(1152),
    collecting: Collecting::Runtime(344 + 200),
    tasks: TaskLayout {
        current: Current::Table,
        task_coroutine: 112,
        frame: FrameOf::Behind(16),
        lazy_names: false,
        code_parameters: 16,
        code_names: 72,
    },
    modules: 56,
    dict: KeysLayout::Sized,
    kept: Kept::Behind,
    type_keys: 872,
    int_count_shift: 0,
};

const V3_9: CpythonLayout = CpythonLayout {
    gil: LockPlace::Runtime(352),
    collecting: Collecting::Interpreter { collector: 616, flag: 200 },
    tasks: TaskLayout { task_coroutine: 152, ..V3_8.tasks },
    modules: 856,
    type_keys: 864,
    ..V3_8
};

const V3_10: CpythonLayout = CpythonLayout {
    walk: PythonLayout { frame_instruction: 96, ..V3_9.walk },
    frame_variables: 352,
    index_bytes: 2,
    lines: LineTableFormat::Ranges,
    tasks: TaskLayout { task_coroutine: 160, ..V3_9.tasks },
    type_keys: 872,
    ..V3_9
};

const V3_11: CpythonLayout = CpythonLayout {
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
    lines: LineTableFormat::Locations,
    gil: LockPlace::Runtime(360),
    collecting: Collecting::Interpreter { collector: 648, flag: 200 },
    tasks: TaskLayout {
        current: Current::Table,
        task_coroutine: 136,
        frame: FrameOf::Inside(80),
        lazy_names: false,
        code_parameters: 56,
        code_names: 96,
    },
    modules: 888,
    dict: KeysLayout::Logarithmic,
    kept: Kept::Apart,
    ..V3_8
};

const V3_12: CpythonLayout = CpythonLayout {
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
    text: StrLayout { ascii_data: 40, compact_data: 56, ..V3_8.text },
    shims: Shims::Three,
    gil: LockPlace::Interpreter(384),
    collecting: Collecting::Interpreter { collector: 112, flag: 200 },
    tasks: TaskLayout {
        frame: FrameOf::Inside(72),
        lazy_names: true,
        code_parameters: 52,
        ..V3_11.tasks
    },
    modules: 944,
    kept: Kept::Tagged,
    type_keys: 880,
    int_count_shift: 3,
    ..V3_11
};

const V3_13: CpythonLayout = CpythonLayout {
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
    gil: LockPlace::Interpreter(16),
    collecting: Collecting::Interpreter { collector: 7400, flag: 200 },
    tasks: TaskLayout { task_coroutine: 120, ..V3_12.tasks },
    modules: 7656,
    kept: Kept::Inline,
    ..V3_12
};

const V3_14: CpythonLayout = CpythonLayout {
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
    tuple_items: 32,
    shims: Shims::ThreeAndFour,
    tasks: TaskLayout { current: Current::Thread(872), task_coroutine: 128, ..V3_13.tasks },
    modules: 7688,
    ..V3_13
};

const V3_15: CpythonLayout = CpythonLayout {
    walk: PythonLayout { tstate_thread_id: 176, ..V3_14.walk },
    runtime_interpreters: 936,
    interpreter_next: 7264,
    interpreter_threads: 7336,
    tstate_native_id: Some(184),
    shims: Shims::ThreeAndBase,
    collecting: Collecting::Interpreter { collector: 7400, flag: 112 },
    tasks: TaskLayout { current: Current::Thread(1032), ..V3_14.tasks },
    modules: 7592,
    type_keys: 888,
    ..V3_14
};

/// The table of one minor version of CPython 3, or that there is none.
pub fn of_minor(minor: u8) -> Result<CpythonLayout, Gap> {
    match minor {
        8 => Ok(V3_8),
        9 => Ok(V3_9),
        10 => Ok(V3_10),
        11 => Ok(V3_11),
        12 => Ok(V3_12),
        13 => Ok(V3_13),
        14 => Ok(V3_14),
        15 => Ok(V3_15),
        _ => Err(Gap::new(
            "Python frames",
            format_args!("CPython 3.{minor} is not among the versions known, 3.8 to 3.15"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::of_minor;
    use profiler_ebpf::python::ABSENT;

    /// Versions before and after those known are a gap; each known one is complete for the probes.
    #[test]
    fn unknown_versions_are_gaps() {
        for minor in [0, 7, 16, 255] {
            assert!(of_minor(minor).is_err(), "3.{minor}");
        }
        for minor in 8..=15 {
            let walk = of_minor(minor).expect("known").walk;
            assert_eq!(walk.known, 1);
            assert_eq!(walk.instruction_bytes, if minor <= 10 { 4 } else { 8 });
            assert_eq!(walk.frame_owner == ABSENT, minor <= 10, "3.{minor}");
            assert_eq!(walk.frame_entry == ABSENT, minor != 11, "3.{minor}");
            assert_eq!(walk.cframe_frame == ABSENT, minor != 11 && minor != 12, "3.{minor}");
        }
    }
}
