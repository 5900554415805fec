//! Where one build of CPython keeps the fields that lead from its runtime to names and lines.
//!
//! All offsets are in bytes.

use profiler_ebpf::python::PythonLayout;

use super::lines::LineTableFormat;

/// Everything that is read of one CPython version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpythonLayout {
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
    /// Bytes that an object's header has past 16: those of free-threaded builds count references twice.
    pub extra_header: u32,
    pub object_type: u32,
    pub code_flags: u32,
    pub code_filename: u32,
    /// `co_qualname`, to 3.10 `co_name`.
    pub code_function: u32,
    /// The bytecode inside the code object that instruction pointers point into; to 3.10 frames
    /// hold an index instead.
    pub code_bytecode: Option<u32>,
    /// `PyCodeObject.co_tlbc`: where free-threaded builds, from 3.14 on, list the copies of the bytecode that
    /// threads have of their own.
    pub code_copies: Option<u32>,
    /// Bytes per step of that index.
    pub index_bytes: i64,
    pub bytes_length: u32,
    pub bytes_data: u32,
    /// `PyTupleObject.ob_item`.
    pub tuple_items: u32,
    pub text: StrLayout,
    pub lines: LineTableFormat,
    pub shims: Shims,
    pub gil: LockPlace,
    pub collecting: Collecting,
    pub tasks: TaskLayout,
    /// `PyInterpreterState.imports.modules`, by its earlier name `modules`.
    pub modules: u32,
    pub dict: KeysLayout,
    pub kept: Kept,
    /// `PyHeapTypeObject.ht_cached_keys`.
    pub type_keys: u32,
    /// Where in a word of an `int`'s the number of its digits begins; below it are its sign and a flag.
    pub int_count_shift: u32,
}

/// Owner bytes that mark a frame as interpreter plumbing rather than Python code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shims {
    /// There are none: to 3.10 every frame is an evaluation call of its own, 3.11 marks entries.
    None,
    /// `FRAME_OWNED_BY_CSTACK` is 3.
    Three,
    /// `FRAME_OWNED_BY_INTERPRETER` is 3 and `FRAME_OWNED_BY_CSTACK` 4.
    ThreeAndFour,
    /// `FRAME_OWNED_BY_INTERPRETER` is 3, and a thread's chain ends in one that no call has put there.
    ThreeAndBase,
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
    /// Bits of the state before its kind: how the string is interned.
    pub interned_bits: u32,
}

/// Where a version keeps the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockPlace {
    /// In the runtime, at this offset.
    Runtime(u32),
    /// Behind a pointer in the interpreter, at this offset.
    Interpreter(u32),
    /// The same in a free-threaded build: before it stands whether it is in use.
    Optional(u32),
}

/// Where a version keeps the flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collecting {
    /// In the runtime, at this offset.
    Runtime(u32),
    /// In the interpreter: where its collector's state begins, and the flag in that.
    Interpreter { collector: u32, flag: u32 },
}

/// Where a version keeps what leads from a thread to its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskLayout {
    pub current: Current,
    /// `TaskObj.task_coro`. `task_name` is the word after it.
    pub task_coroutine: u32,
    pub frame: FrameOf,
    /// Names that nobody gave are numbers until somebody asks for them.
    pub lazy_names: bool,
    /// `PyCodeObject.co_argcount`. `co_kwonlyargcount` follows two words later.
    pub code_parameters: u32,
    /// `PyCodeObject.co_localsplusnames`, to 3.10 `co_varnames`: parameters come first.
    pub code_names: u32,
}

/// Where asyncio keeps which task is current.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Current {
    /// In a dictionary of its module.
    Table,
    /// In the thread's state, at this offset.
    Thread(u32),
}

/// How a coroutine object leads to its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameOf {
    /// A pointer, at this offset.
    Behind(u32),
    /// It lies inside, at this offset.
    Inside(u32),
}

/// How a version lays out `PyDictKeysObject`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeysLayout {
    /// To 3.10: the number of slots, and entries of hash, key and value.
    Sized,
    /// From 3.11: the index's size as a power of two; where all keys are text, entries lack the hash.
    Logarithmic,
    /// The same behind the longer header of free-threaded builds.
    LogarithmicAfterLonger,
}

/// How a version keeps an object's attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// To 3.10, and later where the type does not have it otherwise: in a dictionary, to which the object
    /// points at an offset that the type tells.
    Behind,
    /// 3.11: before the object, a pointer each for values and for a dictionary.
    Apart,
    /// 3.12: before the object, one pointer for either. Of values it is one too low.
    Tagged,
    /// From 3.13: the values at the object's end; before it, a pointer to the dictionary, if there is one.
    Inline,
}

impl CpythonLayout {
    /// Where a field lies in an object: its header is longer in some builds than in that of the offset.
    pub fn in_object(&self, offset: u64) -> u64 {
        offset + u64::from(self.extra_header)
    }
}
