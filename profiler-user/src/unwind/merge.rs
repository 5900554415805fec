//! Native frames and Python frames to one list in true calling order.
//!
//! CPython runs Python code in [`EVAL`]: one call of it runs one Python frame and, since 3.11, the
//! frames that this one calls without leaving it. So each such native frame stands for a span of
//! Python frames. Where it is proved for which (see [`pairs`](super::pairs)), the span takes its
//! place; otherwise the two sides are shown apart, never mixed by guess.

use super::pairs::{EvalCall, EvalRun, Hole, Sides, pair};
use crate::frame::{Frame, Language, Stack};
use crate::gap::Gap;

/// The function of CPython that runs Python code.
pub const EVAL: &str = "_PyEval_EvalFrameDefault";

/// What one eval call ran.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PythonSpan {
    /// The frames to show, innermost first. Empty where the interpreter itself had put its frame there.
    pub frames: Vec<Frame>,
    pub ran: EvalRun,
}

/// The Python side of a stack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PythonStack {
    /// From the innermost eval call outwards.
    pub spans: Vec<PythonSpan>,
    /// Why the walk stopped before the outermost frame. The last span may then lack frames.
    pub truncated: Option<String>,
    /// Where frames in the middle are left out.
    pub hole: Option<Hole>,
}

/// The native side of a stack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamedNativeStack {
    /// For each native frame its inlined functions, innermost first, and last the function itself.
    pub frames: Vec<Vec<Frame>>,
    /// The stack pointer in each native frame. It takes the stack from there to its caller's.
    pub stack_pointers: Vec<u64>,
    pub truncated: Option<String>,
}

/// One list where the order is proved, else Python first and native after it, with the reason.
pub fn merge(native: NamedNativeStack, python: PythonStack) -> Stack {
    let calls = calls(&native);
    let ran: Vec<EvalRun> = python.spans.iter().map(|span| span.ran).collect();
    let native_cut_at =
        native.truncated.as_ref().map(|_| native.stack_pointers.last().copied().unwrap_or(0));
    let pairs = pair(&Sides {
        calls: &calls,
        native_cut_at,
        spans: &ran,
        python_is_cut: python.truncated.is_some(),
        hole: python.hole,
    });
    let mut gaps = Vec::new();
    if let Some(why) = &python.truncated {
        gaps.push(Gap::new("outer Python frames", why));
    }
    match &pairs {
        None => gaps.push(unprovable(calls.len(), ran.len())),
        Some(pairs) => gaps.extend(left_over(&calls, pairs, &python)),
    }
    let truncated = native.truncated.clone();
    let left_out = python.hole.map_or(0, |hole| hole.left_out);
    let frames = match pairs {
        Some(pairs) => interleave(native, &calls, python, &pairs),
        None => apart(native, python),
    };
    Stack { frames, truncated, gaps, left_out, ..Stack::default() }
}

fn calls(native: &NamedNativeStack) -> Vec<EvalCall> {
    let is_call = |&(_, frames): &(usize, &Vec<Frame>)| frames.last().is_some_and(is_eval);
    let pointer = |frame: usize| native.stack_pointers.get(frame).copied();
    let call = |(frame, _)| {
        let start = pointer(frame).unwrap_or(0);
        EvalCall { frame, stack: start..pointer(frame + 1).unwrap_or(start) }
    };
    native.frames.iter().enumerate().filter(is_call).map(call).collect()
}

/// What of either side has no place beside the other.
fn left_over(calls: &[EvalCall], pairs: &[usize], python: &PythonStack) -> Option<Gap> {
    let beyond = python.spans.len() - pairs.len();
    if beyond > 0 {
        let why = format!(
            "the native stack stops early; the Python frames of {beyond} interpreter calls stand after its end"
        );
        return Some(Gap::new("native frames between the outer Python frames", why));
    }
    // The innermost call may be being entered or left, and of a walk that was cut off we have said so.
    let without = |call: &usize| *call > 0 && !pairs.contains(call);
    let without = (0..calls.len()).filter(without).count();
    (without > 0 && python.truncated.is_none() && python.hole.is_none()).then(|| {
        let why = format!(
            "{without} interpreter calls in the native stack are none of those that this thread's Python frames lead to"
        );
        Gap::new("Python frames", why)
    })
}

fn unprovable(evals: usize, spans: usize) -> Gap {
    if spans == 0 {
        let why = format!("none were captured for {evals} interpreter calls in the native stack");
        return Gap::new("Python frames", why);
    }
    let why = format!(
        "{evals} interpreter calls in the native stack, {spans} in Python's own, and which belongs to which is not proved: Python frames come first, native ones after"
    );
    Gap::new("calling order between Python and native frames", why)
}

/// Each eval call is replaced by what it ran; spans beyond the last eval call follow at the end.
fn interleave(
    native: NamedNativeStack,
    calls: &[EvalCall],
    python: PythonStack,
    pairs: &[usize],
) -> Vec<Frame> {
    let mut spans = python.spans.into_iter();
    let mut paired = pairs.iter().filter_map(|&call| Some(calls.get(call)?.frame)).peekable();
    let mut merged = Vec::new();
    for (place, mut frames) in native.frames.into_iter().enumerate() {
        let mut ran = Vec::new();
        while paired.next_if_eq(&place).is_some() {
            ran.extend(spans.next().unwrap_or_default().frames);
        }
        // What the compiler put into the eval function was called by the Python code that it runs,
        // so it stays, further in.
        if !ran.is_empty() {
            frames.pop();
            frames.append(&mut ran);
        }
        merged.append(&mut frames);
    }
    merged.extend(spans.flat_map(|span| span.frames));
    merged
}

fn apart(native: NamedNativeStack, python: PythonStack) -> Vec<Frame> {
    let python = python.spans.into_iter().flat_map(|span| span.frames);
    python.chain(native.frames.into_iter().flatten()).collect()
}

/// Whether a native frame is an eval call. Compilers split off parts of a function under names such
/// as `_PyEval_EvalFrameDefault.cold`.
pub fn is_eval(frame: &Frame) -> bool {
    let Frame { function: Some(name), language: Language::Native, .. } = frame else {
        return false;
    };
    name.strip_prefix(EVAL).is_some_and(|suffix| suffix.is_empty() || suffix.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str, language: Language) -> Frame {
        Frame {
            function: Some(function.into()),
            file: None,
            line: None,
            module: None,
            language,
            inlined: false,
            address: None,
            module_offset: None,
        }
    }

    /// A native stack from its frames, innermost first; `a<b` is `a` inlined into `b`.
    fn native(text: &str, truncated: Option<&str>) -> NamedNativeStack {
        let group =
            |word: &str| word.split('<').map(|name| frame(name, Language::Native)).collect();
        let frames: Vec<_> = text.split_whitespace().map(group).collect();
        NamedNativeStack {
            stack_pointers: (0..frames.len() as u64).map(|place| place * 100).collect(),
            frames,
            truncated: truncated.map(str::to_owned),
        }
    }

    /// A Python stack from its eval calls, innermost first; `f,g` are two frames of one call.
    fn python(text: &str, truncated: Option<&str>) -> PythonStack {
        let span = |word: &str| PythonSpan {
            frames: word
                .split(',')
                .filter(|name| *name != "-")
                .map(|name| frame(name, Language::Python))
                .collect(),
            ran: EvalRun::default(),
        };
        PythonStack {
            spans: text.split_whitespace().map(span).collect(),
            truncated: truncated.map(str::to_owned),
            hole: None,
        }
    }

    fn names(stack: &Stack) -> String {
        let name = |frame: &Frame| frame.function.clone().unwrap_or_default();
        stack.frames.iter().map(name).collect::<Vec<_>>().join(" ")
    }

    /// A whole stack of a Python program comes out in calling order, plumbing included.
    #[test]
    fn whole_stacks_interleave() {
        let stack = merge(
            native(
                "clock_nanosleep time_sleep _PyEval_EvalFrameDefault method_vectorcall \
                 task_step _PyEval_EvalFrameDefault Py_BytesMain _start",
                None,
            ),
            python("handler,serve run,<module>", None),
        );
        assert_eq!(
            names(&stack),
            "clock_nanosleep time_sleep handler serve method_vectorcall task_step run <module> \
             Py_BytesMain _start"
        );
        assert_eq!((stack.gaps, stack.truncated), (vec![], None));
    }

    /// Parts that the compiler split off count as eval calls; functions of a similar name do not.
    #[test]
    fn names_of_eval_calls() {
        let stack = merge(
            native(
                "_PyEval_EvalFrameDefault.cold _PyEval_EvalFrameDefaultish \
                 _PyEval_EvalFrameDefault.part.0 _start",
                None,
            ),
            python("f g", None),
        );
        assert_eq!(names(&stack), "f _PyEval_EvalFrameDefaultish g _start");
        assert!(stack.gaps.is_empty());
    }

    /// What is inlined into the eval function stays further in than the Python code it serves.
    #[test]
    fn inlined_into_the_eval_call() {
        let stack = merge(
            native("_PyObject_Free<_Py_DECREF<_PyEval_EvalFrameDefault _start", None),
            python("f,g", None),
        );
        assert_eq!(names(&stack), "_PyObject_Free _Py_DECREF f g _start");
    }

    /// A thread caught while it enters an eval call has one call more than Python knows of: apart.
    #[test]
    fn entering_is_not_guessed() {
        let stack = merge(
            native("_PyEval_EvalFrameDefault call _PyEval_EvalFrameDefault _start", None),
            python("f", None),
        );
        assert_eq!(
            names(&stack),
            "f _PyEval_EvalFrameDefault call _PyEval_EvalFrameDefault _start"
        );
        let gap = stack.gaps[0].to_string();
        assert!(gap.contains("2 interpreter calls") && gap.contains("1 in Python"), "{gap}");
    }

    /// The same with one call fewer, as while leaving.
    #[test]
    fn leaving_is_not_guessed() {
        let stack = merge(native("_PyEval_EvalFrameDefault _start", None), python("f g", None));
        assert_eq!(names(&stack), "f g _PyEval_EvalFrameDefault _start");
        assert_eq!(stack.gaps.len(), 1);
    }

    /// A native stack that was cut off keeps what it has in order; the rest of Python stands at the end.
    #[test]
    fn truncated_native_stack() {
        let stack = merge(
            native("read _PyEval_EvalFrameDefault call", Some("the stack goes on")),
            python("f g h", None),
        );
        assert_eq!(names(&stack), "read f call g h");
        assert_eq!(stack.truncated.as_deref(), Some("the stack goes on"));
        assert!(stack.gaps[0].to_string().contains("of 2 interpreter calls"), "{:?}", stack.gaps);
    }

    /// A cut-off native stack with more eval calls than Python has frames proves that they differ.
    #[test]
    fn truncated_native_stack_with_too_many_calls() {
        let stack = merge(
            native("_PyEval_EvalFrameDefault _PyEval_EvalFrameDefault", Some("cut")),
            python("f", None),
        );
        assert_eq!(names(&stack), "f _PyEval_EvalFrameDefault _PyEval_EvalFrameDefault");
        assert_eq!(stack.gaps.len(), 1);
    }

    /// Without native frames at all, Python's frames are the stack.
    #[test]
    fn no_native_frames() {
        let stack = merge(native("", Some("no registers")), python("f g", None));
        assert_eq!(names(&stack), "f g");
    }

    /// A Python walk that was cut off leaves the outer eval calls as they are.
    #[test]
    fn truncated_python_stack() {
        let stack = merge(
            native("read _PyEval_EvalFrameDefault call _PyEval_EvalFrameDefault _start", None),
            python("f", Some("more than 256 frames")),
        );
        assert_eq!(names(&stack), "read f call _PyEval_EvalFrameDefault _start");
        assert_eq!(stack.gaps, [Gap::new("outer Python frames", "more than 256 frames")]);
    }

    /// Where each call's own frame is known, a call that is being entered keeps its place, and one of
    /// somebody else's is said to be there.
    #[test]
    fn calls_known_by_their_stack() {
        let anchored = |text, anchors: [u64; 2]| {
            let mut python = python(text, None);
            for (span, anchor) in python.spans.iter_mut().zip(anchors) {
                span.ran.anchor = Some(anchor);
            }
            python
        };
        let entering = "_PyEval_EvalFrameDefault call _PyEval_EvalFrameDefault \
                        call _PyEval_EvalFrameDefault _start";
        let stack = merge(native(entering, None), anchored("f g", [250, 450]));
        assert_eq!(names(&stack), "_PyEval_EvalFrameDefault call f call g _start");
        assert!(stack.gaps.is_empty(), "{:?}", stack.gaps);

        let stack = merge(native(entering, None), anchored("f g", [50, 450]));
        assert_eq!(names(&stack), "f call _PyEval_EvalFrameDefault call g _start");
        assert!(stack.gaps[0].to_string().contains("1 interpreter calls"), "{:?}", stack.gaps);
    }

    /// Frames that no call ran stand before those of the next call, as Python has them.
    #[test]
    fn passed_over_by_throw() {
        let mut python = python("f w g", None);
        python.spans[1].ran.may_wait = true;
        let stack = merge(
            native("read _PyEval_EvalFrameDefault throw _PyEval_EvalFrameDefault _start", None),
            python,
        );
        assert_eq!(names(&stack), "read f throw w g _start");
        assert!(stack.gaps.is_empty(), "{:?}", stack.gaps);
    }

    /// An eval call in which only the interpreter's own frame stands is shown as itself.
    #[test]
    fn span_without_frames() {
        let stack = merge(
            native("_PyEval_EvalFrameDefault call _PyEval_EvalFrameDefault", None),
            python("- f", None),
        );
        assert_eq!(names(&stack), "_PyEval_EvalFrameDefault call f");
        assert!(stack.gaps.is_empty());
    }

    /// Python code in the native stack whose frames nobody captured is a gap; a program without
    /// Python has none.
    #[test]
    fn nothing_from_python() {
        let stack = merge(native("_PyEval_EvalFrameDefault _start", None), PythonStack::default());
        assert_eq!(names(&stack), "_PyEval_EvalFrameDefault _start");
        assert_eq!(stack.gaps.len(), 1);
        let stack = merge(native("epoll_wait main _start", None), PythonStack::default());
        assert_eq!((names(&stack).as_str(), stack.gaps.len()), ("epoll_wait main _start", 0));
    }
}
