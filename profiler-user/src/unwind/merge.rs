//! Native frames and Python frames to one list in true calling order.
//!
//! CPython runs Python code in [`EVAL`]: one call of it runs one Python frame and, since 3.11, the
//! frames that this one calls without leaving it. So each such native frame stands for a span of
//! Python frames, and the n-th eval call from the inside for the n-th span. That is proved only when
//! both sides are whole and count the same; otherwise the two are shown apart, never mixed by guess.
//! A thread that was caught while it entered or left an eval call is such a case.

use crate::frame::{Frame, Language, Stack};
use crate::gap::Gap;

/// The function of CPython that runs Python code.
pub const EVAL: &str = "_PyEval_EvalFrameDefault";

/// What one eval call ran.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PythonSpan {
    /// The frames to show, innermost first. Empty where the interpreter itself had put its frame there.
    pub frames: Vec<Frame>,
}

/// The Python side of a stack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PythonStack {
    /// From the innermost eval call outwards.
    pub spans: Vec<PythonSpan>,
    /// Why the walk stopped before the outermost frame. The last span may then lack frames.
    pub truncated: Option<String>,
}

/// The native side of a stack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamedNativeStack {
    /// For each native frame its inlined functions, innermost first, and last the function itself.
    pub frames: Vec<Vec<Frame>>,
    pub truncated: Option<String>,
}

/// One list where the order is proved, else Python first and native after it, with the reason.
pub fn merge(native: NamedNativeStack, python: PythonStack) -> Stack {
    let evals = native.frames.iter().filter(|frames| is_eval(frames)).count();
    let spans = python.spans.len();
    let mut gaps = Vec::new();
    if let Some(why) = &python.truncated {
        gaps.push(Gap::new("outer Python frames", why));
    }
    let in_order = match (&native.truncated, &python.truncated) {
        (None, None) => evals == spans,
        (None, Some(_)) => spans <= evals,
        (Some(_), None) => evals <= spans,
        (Some(_), Some(_)) => true,
    };
    if !in_order {
        gaps.push(unprovable(evals, spans));
    } else if native.truncated.is_some() && evals < spans {
        let why = format!(
            "the native stack stops early; the Python frames of {} interpreter calls stand after its end",
            spans - evals
        );
        gaps.push(Gap::new("native frames between the outer Python frames", why));
    }
    let truncated = native.truncated.clone();
    let frames = if in_order { interleave(native, python) } else { apart(native, python) };
    Stack { frames, kernel: Vec::new(), truncated, gaps }
}

fn unprovable(evals: usize, spans: usize) -> Gap {
    if spans == 0 {
        let why = format!("none were captured for {evals} interpreter calls in the native stack");
        return Gap::new("Python frames", why);
    }
    let why = format!(
        "{evals} interpreter calls in the native stack, {spans} in Python's own: Python frames come first, native ones after"
    );
    Gap::new("calling order between Python and native frames", why)
}

/// Each eval call is replaced by what it ran; spans beyond the last eval call follow at the end.
fn interleave(native: NamedNativeStack, python: PythonStack) -> Vec<Frame> {
    let mut spans = python.spans.into_iter();
    let mut merged = Vec::new();
    for mut frames in native.frames {
        // What the compiler put into the eval function was called by the Python code that it runs,
        // so it stays, further in.
        if is_eval(&frames) {
            let ran = spans.next().unwrap_or_default().frames;
            if !ran.is_empty() {
                frames.pop();
                frames.extend(ran);
            }
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
fn is_eval(frames: &[Frame]) -> bool {
    let Some(Frame { function: Some(name), language: Language::Native, .. }) = frames.last() else {
        return false;
    };
    name.strip_prefix(EVAL).is_some_and(|suffix| suffix.is_empty() || suffix.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str, language: Language) -> Frame {
        Frame {
            function: Some(function.to_owned()),
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
        NamedNativeStack {
            frames: text.split_whitespace().map(group).collect(),
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
        };
        PythonStack {
            spans: text.split_whitespace().map(span).collect(),
            truncated: truncated.map(str::to_owned),
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
            native("_PyEval_EvalFrameDefault call _PyEval_EvalFrameDefault _start", None),
            python("f", Some("more than 256 frames")),
        );
        assert_eq!(names(&stack), "f call _PyEval_EvalFrameDefault _start");
        assert_eq!(stack.gaps, [Gap::new("outer Python frames", "more than 256 frames")]);
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
