//! Stacks of C functions below and above Python functions, merged, against what is known of their order.

use profiler_ebpf::limits::INNER_PYTHON_FRAMES;
use stalltrace::frame::{Frame, Language, Stack};

use crate::native::Merger;
use crate::target::{Interpreter, Target, Truth, UNPACKED, detect};

const SHAPES: [&str; 38] = [
    "libc_qsort",
    "sqlite_function",
    "sorted_key",
    "regex_callback",
    "reduced",
    "cached",
    "finaliser",
    "finaliser_at_return",
    "finaliser_of_a_cycle",
    "finaliser_while_raising",
    "op_add",
    "op_getitem",
    "op_missing_attribute",
    "op_hasattr",
    "op_equal_in_a_dict",
    "op_truth",
    "op_in",
    "op_exit",
    "op_exit_raising",
    "op_call",
    "op_format",
    "op_setattr",
    "unpacked",
    "starred",
    "list_extended",
    "for_over_a_map",
    "for_over_a_generator",
    "generator_closed",
    "generator_dropped",
    "generator_thrown_into",
    "metaclass",
    "descriptor_name",
    "exception_made",
    "exception_matched",
    "default_factory",
    "traced",
    "profiled",
    "one_below_the_other",
];

/// Those of `shapes.py` in which coroutines and generators wait for each other.
const WAITING: [&str; 8] = [
    "yield_from",
    "generators",
    "coroutine",
    "async_generator",
    "gathered_generators",
    "cancelled",
    "import_of_a_module",
    "hand_driven_coroutine",
];

/// What must stand between two Python functions, in this order, innermost first.
struct Between {
    shape: &'static str,
    /// The ends of their names.
    inner: &'static str,
    outer: &'static str,
    /// Parts of the native frames' modules, or of their names where libraries export these.
    always: &'static [&'static str],
    /// The C functions that call back, where the interpreter was not stripped.
    by_name: &'static [&'static str],
}

const fn between(
    [shape, inner, outer]: [&'static str; 3],
    always: &'static [&'static str],
    by_name: &'static [&'static str],
) -> Between {
    Between { shape, inner, outer, always, by_name }
}

const QSORT: &[&str] = &["/_ctypes", "/libffi", "qsort", "/libffi", "/_ctypes"];
const SQLITE: &[&str] = &["/_sqlite3", "/libsqlite3", "/_sqlite3"];
const FINALISED: &[&str] = &["PyObject_CallFinalizer"];

const KNOWN: [Between; 15] = [
    between(["libc_qsort", "compare", "libc_qsort"], QSORT, &["closure_fcn", "_ctypes_callproc"]),
    between(["sqlite_function", "twice", "sqlite_function"], SQLITE, &[]),
    between(["sorted_key", "key", "sorted_key"], &[], &["list_sort", "builtin_sorted"]),
    between(["regex_callback", "replacement", "sub"], &[], &["pattern_subx"]),
    between(["reduced", "add", "reduced"], &[], &["functools_reduce"]),
    between(["cached", "slow", "cached"], &[], &["bounded_lru_cache_wrapper"]),
    between(["finaliser", "__del__", "finaliser"], FINALISED, &["subtype_dealloc"]),
    between(["finaliser_of_a_cycle", "__del__", "finaliser_of_a_cycle"], &[], &["gc_collect"]),
    between(["metaclass", "__new__", "metaclass"], &[], &["type_call", "__build_class__"]),
    between(["default_factory", "make", "default_factory"], &[], &["defdict_missing"]),
    between(["one_below_the_other", "innermost", "sort"], QSORT, &[]),
    between(["one_below_the_other", "sort", "sub"], &[], &["pattern_subx"]),
    between(["one_below_the_other", "key", "add"], &[], &["list_sort", "builtin_sorted"]),
    between(["one_below_the_other", "add", "twice"], &[], &["starmap_next", "builtin_sum"]),
    between(["one_below_the_other", "twice", "one_below_the_other"], SQLITE, &[]),
];

/// Every shape comes out as one stack, whose Python frames are the target's own word and whose native
/// ones stand between the Python functions that they call and those that call them.
fn every_shape(interpreter: Option<Interpreter>) {
    let Some(interpreter) = interpreter else { return };
    shapes_of(&interpreter, "callbacks.py", &SHAPES);
    shapes_of(&interpreter, "shapes.py", &WAITING);
    deep(&interpreter);
}

/// More frames than are kept, and to 3.10 more native stack than is copied: both ends of these, what
/// there is of that, in order, and the rest said.
fn deep(interpreter: &Interpreter) {
    let target = Target::start(interpreter, &["recursion_300"]);
    let mut python = detect(&target).expect("readable").expect("it is Python");
    let stack = Merger::default().look(&target, &mut python, usize::MAX);
    let context = format!("{} {:?}:\n{}", python.version(), stack.gaps, shown(&stack));
    let frames = || stack.frames.iter().filter(|frame| frame.language == Language::Python);
    let told = target.truth().stack.iter().map(|frame| (frame.function.as_str(), frame.line));
    let told: Vec<_> = told.collect();
    let got: Vec<_> = frames().map(|frame| (name(frame), frame.line.unwrap_or(0))).collect();
    let (inner, outer) = got.split_at(INNER_PYTHON_FRAMES);
    assert_eq!(inner, &told[..inner.len()], "{context}");
    assert_eq!(outer, &told[told.len() - outer.len()..], "{context}");
    assert_eq!(told.len() - got.len(), stack.left_out as usize, "{context}");
    let said = |words: &str| stack.gaps.iter().any(|gap| gap.to_string().contains(words));
    assert!(!said("calling order"), "{context}");
    assert_eq!(stack.truncated.is_some(), said("stand after its end"), "{context}");
    assert_eq!(stack.frames[0].language, Language::Native, "{context}");
    assert_eq!(frames().next(), stack.frames.iter().find(|frame| name(frame) == "block"));
}

fn shapes_of(interpreter: &Interpreter, script: &str, shapes: &[&str]) {
    let mut merger = Merger::default();
    let mut target = Target::start_script(interpreter, script, shapes);
    for shape in shapes {
        let mut python = detect(&target).expect("readable").expect("it is Python");
        let stack = merger.look(&target, &mut python, usize::MAX);
        let context = format!("{} {shape}:\n{}", python.version(), shown(&stack));
        assert_eq!(target.truth().shape, *shape);
        if is_told_wrong(target.truth(), &python.version()[2..]) {
            assert!(stack.gaps[0].to_string().contains("calling order"), "{context}");
        } else {
            assert_one_stack(&stack, target.truth(), &context);
            for bytes in CUTS {
                let cut = merger.look(&target, &mut python, bytes);
                assert_begins_alike(&cut, &stack, &format!("{context}\n{bytes}:\n{}", shown(&cut)));
            }
        }
        if Some(shape) != shapes.last() {
            target.go_on();
        }
    }
}

/// Bytes of stack that a copy may happen to end after.
const CUTS: [usize; 6] = [0, 200, 700, 1500, 2500, 5000];

/// Of a native stack that was cut off, what is merged is merged as in the whole one, and the frames that
/// have no place stand behind it: native ones first, then Python's.
fn assert_begins_alike(cut: &Stack, whole: &Stack, context: &str) {
    if cut.truncated.is_none() {
        assert_eq!(cut.frames, whole.frames, "{context}");
        return;
    }
    let pairs = cut.frames.iter().zip(&whole.frames);
    let alike = pairs.take_while(|(of_cut, of_whole)| of_cut == of_whole).count();
    let python = |frame: &&Frame| frame.language == Language::Python;
    let rest = cut.frames[alike..].iter().skip_while(|frame| !python(frame));
    let expected = whole.frames[alike..].iter().filter(python);
    assert!(rest.eq(expected), "{alike} frames are alike {context}");
    let said = cut.gaps.iter().any(|gap| gap.to_string().contains("stand after its end"));
    assert!(said || !cut.frames[alike..].iter().any(|frame| python(&frame)), "{context}");
}

/// Whether the interpreter itself leaves out the callers of this stack: 3.9 does below `throw()`.
fn is_told_wrong(truth: &Truth, minor: &str) -> bool {
    minor == "9" && ["generator_thrown_into", "cancelled"].contains(&truth.shape.as_str())
}

fn assert_one_stack(stack: &Stack, truth: &Truth, context: &str) {
    assert_eq!((&stack.truncated, stack.gaps.len()), (&None, 0), "{:?} {context}", stack.gaps);
    let python = stack.frames.iter().filter(|frame| frame.language == Language::Python);
    let got: Vec<_> = python.map(|frame| (frame.function.as_deref(), frame.line)).collect();
    let told = truth.stack.iter().map(|frame| (Some(frame.function.as_str()), Some(frame.line)));
    assert_eq!(got, told.collect::<Vec<_>>(), "{context}");

    let mut innermost = stack.frames.iter().take_while(|frame| frame.language != Language::Python);
    assert!(innermost.any(|frame| name(frame).contains("read")), "what blocks: {context}");
    assert_eq!(stack.frames.last().and_then(|frame| frame.function.as_deref()), Some("_start"));
    let eval = |frame: &&Frame| name(frame).starts_with("_PyEval_EvalFrameDefault");
    assert_eq!(stack.frames.iter().find(eval), None, "{context}");

    for known in KNOWN.iter().filter(|known| known.shape == truth.shape) {
        let place = |function: &str| {
            let is_it = |frame: &Frame| {
                frame.language == Language::Python
                    && name(frame).rsplit('.').next() == Some(function)
            };
            stack.frames.iter().position(is_it).expect(function)
        };
        let native = &stack.frames[place(known.inner) + 1..place(known.outer)];
        let in_c = |frame: &Frame| frame.language == Language::Native;
        assert!(!native.is_empty() && native.iter().all(in_c), "{} {context}", known.inner);
        assert_in_order(native, known.always, context);
        if native.iter().all(|frame| frame.function.is_some() || is_library(frame)) {
            assert_in_order(native, known.by_name, context);
        }
    }
}

/// Libraries of the system, stripped everywhere.
fn is_library(frame: &Frame) -> bool {
    ["/libc", "/libffi", "/libsqlite3"].iter().any(|name| module(frame).contains(name))
}

/// Each of the parts of names or modules is found, outside of the one before it.
fn assert_in_order(frames: &[Frame], parts: &[&str], context: &str) {
    let mut frames = frames.iter();
    for part in parts {
        let found = frames.any(|frame| name(frame).contains(part) || module(frame).contains(part));
        assert!(found, "{part} {context}");
    }
}

fn name(frame: &Frame) -> &str {
    frame.function.as_deref().unwrap_or_default()
}

fn module(frame: &Frame) -> &str {
    frame.module.as_deref().unwrap_or_default()
}

fn shown(stack: &Stack) -> String {
    let line = |frame: &Frame| match frame.language {
        Language::Python => format!("  > {}:{}\n", name(frame), frame.line.unwrap_or(0)),
        _ => format!("    {} {}\n", name(frame), module(frame)),
    };
    stack.frames.iter().map(line).collect()
}

#[test]
fn pyenv() {
    for version in ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13"] {
        every_shape(Interpreter::find(version));
    }
}

#[test]
fn free_threaded() {
    for version in ["3.13t", "3.14t", "3.15t"] {
        every_shape(Interpreter::find(version));
    }
}

/// Without names of static functions, and with the greater part of the main loop split off in 3.14.
#[test]
fn stripped() {
    every_shape(Interpreter::find("system"));
    every_shape(Interpreter::find("3.14"));
    every_shape(Interpreter::find("3.15"));
    every_shape(Interpreter::find("3.15").map(Interpreter::with_jit));
    for version in UNPACKED {
        every_shape(Interpreter::in_its_own_root(version));
    }
}
