//! Real interpreters, each blocked in a known shape, to frames that must equal what they say themselves.
//!
//! The targets are our own children, which the kernel lets us read without privileges.

mod merged;
mod native;
mod target;

use std::time::Instant;

use profiler_ebpf::limits::{INNER_PYTHON_FRAMES, PYTHON_FRAMES};
use profiler_ebpf::python::PythonWalk;
use stalltrace::process::live::LiveMemory;
use stalltrace::runtime::cpython::{FrameKind, NamedFrame, Python};

use target::{Interpreter, Target, Truth, detect};

/// A target's blocked thread, as we read it.
struct Reading {
    frames: Vec<NamedFrame>,
    end: PythonWalk,
}

impl Reading {
    fn of(python: &mut Python, target: &Target) -> Self {
        let memory = LiveMemory::new(target.pid());
        let truth = target.truth();
        let tstate = python
            .thread_state(&memory, truth.native_id, Some(truth.ident))
            .expect("the thread runs Python");
        let (raw, end) = python.walk(&memory, tstate, Some(truth.ident));
        let frames = python.decode(&memory, &raw);
        assert_eq!(frames.len(), raw.len(), "one named frame for each raw one");
        Self { frames, end }
    }

    fn shown(&self) -> impl Iterator<Item = &NamedFrame> {
        self.frames.iter().filter(|frame| frame.kind == FrameKind::Shown)
    }

    /// Shown functions, grouped by the evaluation call that runs them.
    fn evaluation_calls(&self) -> Vec<Vec<&str>> {
        let mut calls = vec![Vec::new()];
        for frame in &self.frames {
            if frame.kind == FrameKind::Shown {
                let function = frame.function.as_deref().expect("a name");
                calls.last_mut().expect("never empty").push(function);
            }
            if frame.ends_eval {
                calls.push(Vec::new());
            }
        }
        assert_eq!(calls.pop(), Some(Vec::new()), "the outermost frame ends a call");
        calls
    }
}

/// Frame by frame: function, file, line, first line, kind.
fn assert_same(reading: &Reading, truth: &Truth, context: &str) {
    let got: Vec<_> = reading
        .shown()
        .map(|frame| {
            assert_eq!(frame.gap, None, "{context}");
            (
                frame.function.as_deref().unwrap_or_default(),
                frame.file.as_deref().unwrap_or_default(),
                frame.line,
                frame.first_line,
                frame.is_coroutine,
            )
        })
        .collect();
    let expected: Vec<_> = truth
        .stack
        .iter()
        .map(|frame| {
            (
                frame.function.as_str(),
                frame.file.as_str(),
                Some(frame.line),
                Some(frame.first_line),
                frame.is_coroutine,
            )
        })
        .collect();
    let PythonWalk::Shortened(left_out) = reading.end else {
        return assert_eq!(got, expected, "{context}");
    };
    assert!(reading.frames.len() <= PYTHON_FRAMES, "{context}");
    assert_eq!(expected.len() - got.len(), left_out as usize, "{context}");
    // What is left out are calls of one function by itself: of that, any may be the last before the gap.
    let (inner, outer) = got.split_at(INNER_PYTHON_FRAMES);
    assert_eq!(inner, &expected[..inner.len()], "{context}");
    assert_eq!(outer, &expected[expected.len() - outer.len()..], "{context}");
}

const SHAPES: [&str; 28] = [
    "nested",
    "builtin_sorted",
    "builtin_map",
    "regex",
    "yield_from",
    "generator_expression",
    "generators",
    "comprehensions",
    "class_body",
    "executed",
    "exit_stack",
    "context",
    "attributes",
    "decorated",
    "coroutine",
    "async_generator",
    "gathered_generators",
    "cancelled",
    "recursion_100",
    "recursion_300",
    "import_of_a_module",
    "constructors",
    "keyword_calls",
    "long_module",
    "iter_of_a_callable",
    "hand_driven_coroutine",
    "non_ascii",
    "in_a_thread",
];

/// Every shape of calls comes out as the interpreter itself tells it.
fn every_shape(interpreter: Option<Interpreter>) {
    let Some(interpreter) = interpreter else { return };
    let (last, of_main) = SHAPES.split_last().expect("there are shapes");
    let mut target = Target::start(&interpreter, of_main);
    for shape in of_main {
        assert_eq!(target.truth().shape, *shape);
        whole_stack(&interpreter, &target);
        if Some(shape) != of_main.last() {
            target.go_on();
        }
    }
    whole_stack(&interpreter, &Target::start(&interpreter, &[last]));
    threads(&interpreter);
    evaluation_calls(&interpreter);
}

/// The target is looked at as one that nobody has seen before.
fn whole_stack(interpreter: &Interpreter, target: &Target) {
    let truth = target.truth();
    let mut python = detect(target).expect("readable").expect("it is Python");
    let version = python.version().to_owned();
    let context = format!("{} {version} {}", interpreter.path.display(), truth.shape);
    assert!(truth.version.starts_with(&version), "{context}");
    let reading = Reading::of(&mut python, target);
    let deep = truth.shape == "recursion_300";
    let is_right = match reading.end {
        PythonWalk::Complete => !deep,
        PythonWalk::Shortened(_) => deep,
        _ => false,
    };
    assert!(is_right, "{context}: {:?}", reading.end);
    assert_same(&reading, truth, &context);
}

/// All threads are found, by their number as well as by their thread pointer, and none other.
fn threads(interpreter: &Interpreter) {
    let target = Target::start(interpreter, &["in_a_thread"]);
    let memory = LiveMemory::new(target.pid());
    let python = detect(&target).expect("readable").expect("it is Python");
    let states = python.thread_states(&memory).expect("all at rest");
    let truth = target.truth();
    assert_eq!(states.len(), 2, "main, which reports, and the blocked one");
    for (native_id, ident) in
        [(truth.native_id, truth.ident), (truth.reporter_native_id, truth.reporter_ident)]
    {
        let by_number = python.thread_state(&memory, native_id, None).expect("found");
        assert_eq!(python.thread_state(&memory, 0, Some(ident)), Ok(by_number));
        let state = states.iter().find(|state| state.address == by_number).expect("listed");
        assert_eq!(state.thread_id, ident);
        assert!(state.native_thread_id.is_none_or(|native| native == native_id));
        let (frames, end) = python.walk(&memory, by_number, Some(ident + 64));
        assert_eq!((frames.len(), end), (0, PythonWalk::WrongThread));
    }
    assert!(python.thread_state(&memory, u32::MAX, None).is_err());
}

/// Which frames one evaluation call runs: all of them, until C code calls back into Python.
fn evaluation_calls(interpreter: &Interpreter) {
    let target = Target::start(interpreter, &["builtin_sorted"]);
    let mut python = detect(&target).expect("readable").expect("it is Python");
    let reading = Reading::of(&mut python, &target);
    let minor: u32 =
        python.version().split('.').nth(1).and_then(|n| n.parse().ok()).expect("a minor version");
    let expected: &[&[&str]] = if minor <= 10 {
        &[&["block"], &["key"], &["builtin_sorted"], &["main"], &["<module>"]]
    } else {
        &[&["block", "key"], &["builtin_sorted", "main", "<module>"]]
    };
    assert_eq!(reading.evaluation_calls(), expected, "{}", python.version());
}

#[test]
fn cpython_3_8() {
    every_shape(Interpreter::find("3.8"));
}

#[test]
fn cpython_3_9() {
    every_shape(Interpreter::find("3.9"));
}

#[test]
fn cpython_3_10() {
    every_shape(Interpreter::find("3.10"));
}

#[test]
fn cpython_3_11() {
    every_shape(Interpreter::find("3.11"));
}

#[test]
fn cpython_3_12() {
    every_shape(Interpreter::find("3.12"));
}

#[test]
fn cpython_3_13() {
    every_shape(Interpreter::find("3.13"));
}

#[test]
fn cpython_3_14() {
    every_shape(Interpreter::find("3.14"));
}

#[test]
fn cpython_3_15() {
    every_shape(Interpreter::find("3.15"));
}

/// Code that was compiled at run time has the same frames.
#[test]
fn cpython_3_15_with_its_jit() {
    every_shape(Interpreter::find("3.15").map(Interpreter::with_jit));
}

/// Without the interpreter's lock: objects have longer headers, and threads copies of bytecode.
#[test]
fn free_threaded() {
    for version in ["3.13t", "3.14t", "3.15t"] {
        every_shape(Interpreter::find(version));
    }
}

/// Interpreters in other roots: their files are reached through the target, not by our paths.
#[test]
fn cpython_in_roots_of_their_own() {
    for version in target::UNPACKED {
        every_shape(Interpreter::in_its_own_root(version));
    }
}

/// The distribution's own interpreter: stripped, at a fixed address, with the library inside.
#[test]
fn cpython_of_the_system() {
    every_shape(Interpreter::find("system"));
}

/// Interpreters that are too old are recognised, with the reason why they are not read.
#[test]
fn too_old() {
    for (version, reason) in [("2.7", "_PyRuntime"), ("3.6", "_PyRuntime"), ("3.7", "3.7 is not")] {
        let Some(interpreter) = Interpreter::find(version) else { continue };
        let target = Target::start_idle(&interpreter.path, &["-c", "print(1); input()"]);
        let gap = detect(&target).expect_err("not to be read");
        assert!(gap.0.contains(reason), "{version}: {gap}");
    }
}

/// The file may be gone by the time we look: the mapping still leads to it, for whoever may follow.
#[test]
fn deleted_interpreter() {
    let Some(interpreter) = Interpreter::find("system") else { return };
    if !target::may_open_mappings() {
        println!("skipped: only a privileged reader may open the files of a mapping");
        return;
    }
    let name = interpreter.path.file_name().expect("it is a file");
    let directory = std::env::temp_dir().join(format!("stalltrace-gone-{}", std::process::id()));
    std::fs::create_dir(&directory).expect("the temporary directory is writable");
    let path = directory.join(name);
    std::fs::copy(&interpreter.path, &path).expect("it can be copied");
    let target = Target::start(&Interpreter::at(path), &["nested"]);
    std::fs::remove_dir_all(&directory).expect("it was made above");
    let mut python = detect(&target).expect("readable").expect("it is Python");
    let reading = Reading::of(&mut python, &target);
    assert_same(&reading, target.truth(), "deleted");
}

/// A target that has ended in between is a gap at every step, not a panic.
#[test]
fn ended_target() {
    let Some(interpreter) = Interpreter::find("system") else { return };
    let target = Target::start(&interpreter, &["nested"]);
    let memory = LiveMemory::new(target.pid());
    let mut python = detect(&target).expect("readable").expect("it is Python");
    let tstate = python.thread_state(&memory, target.truth().native_id, None).expect("found");
    let (raw, _) = python.walk(&memory, tstate, None);
    drop(target);
    assert!(python.thread_states(&memory).is_err());
    assert!(python.thread_state(&memory, 1, None).is_err());
    assert_eq!(python.walk(&memory, tstate, None), (Vec::new(), PythonWalk::Unreadable));
    for named in python.decode(&memory, &raw) {
        assert!(named.gap.is_some() || named.kind == FrameKind::CallBoundary, "{named:?}");
    }
}

/// A process without Python is not a gap.
#[test]
fn not_python() {
    let target = Target::start_idle("/bin/sh".as_ref(), &["-c", "echo; read line"]);
    assert!(detect(&target).expect("no gap").is_none());
}

/// Naming a stack whose code objects are known costs microseconds.
#[test]
fn known_stacks_are_cheap() {
    /// Tests are built without optimisation, on machines with other work.
    const MOST_NS: u128 = 150_000;
    let Some(interpreter) = Interpreter::find("system") else { return };
    let target = Target::start(&interpreter, &["recursion_100"]);
    let memory = LiveMemory::new(target.pid());
    let mut python = detect(&target).expect("readable").expect("it is Python");
    let truth = target.truth();
    let tstate = python.thread_state(&memory, truth.native_id, None).expect("found");
    let begin = Instant::now();
    let (mut raw, _) = python.walk(&memory, tstate, None);
    let walk = begin.elapsed() / raw.len() as u32;
    raw.truncate(30);
    let begin = Instant::now();
    python.decode(&memory, &raw);
    let first = begin.elapsed();
    let again = (0..200).map(|_| {
        let begin = Instant::now();
        python.decode(&memory, &raw);
        begin.elapsed()
    });
    let again = again.min().expect("200 rounds");
    println!("30 frames: walk {walk:?} a frame, decode {first:?} at first, {again:?} when known");
    assert!(again.as_nanos() < MOST_NS, "{again:?}");
}
