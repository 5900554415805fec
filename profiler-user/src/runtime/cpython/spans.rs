//! The interpreter's frames to the pieces that one C-level call of the interpreter ran each.

use profiler_ebpf::limits::INNER_PYTHON_FRAMES;
use profiler_ebpf::python::PythonWalk;

use super::names::{FrameKind, NamedFrame};
use crate::frame::{Frame, Language};
use crate::unwind::merge::{PythonSpan, PythonStack};
use crate::unwind::pairs::Hole;

/// The Python side of a stack, ready to be merged with the native one.
pub fn python_stack(frames: &[NamedFrame], walk: PythonWalk) -> PythonStack {
    let mut spans = Vec::new();
    let mut span = PythonSpan::default();
    let mut callee: Option<&NamedFrame> = None;
    let mut begun = false;
    let mut hole = None;
    for (place, named) in frames.iter().enumerate() {
        let mut is_after_hole = false;
        if let PythonWalk::Shortened(left_out) = walk
            && place == INNER_PYTHON_FRAMES
        {
            // What one call ran may go on behind the hole, and it may not.
            let may_go_on = begun;
            if begun {
                spans.push(std::mem::take(&mut span));
            }
            hole = Some(Hole { at: spans.len(), may_go_on, left_out });
            (callee, is_after_hole) = (None, true);
        }
        match named.kind {
            FrameKind::Shown => {
                // A span of several frames was run: they call each other.
                span.ran.may_wait = span.frames.is_empty()
                    && named.is_resumable
                    && (is_after_hole || callee.is_some_and(|callee| callee.is_resumable));
                span.frames.push(python_frame(named));
                callee = Some(named);
            }
            FrameKind::CallBoundary => span.ran.anchor = Some(named.address),
            FrameKind::Base => continue,
        }
        begun = true;
        if named.ends_eval {
            spans.push(std::mem::take(&mut span));
            begun = false;
        }
    }
    if begun {
        spans.push(span);
    }
    let truncated = match walk {
        PythonWalk::TooDeep => Some("the interpreter has more frames than are walked".to_owned()),
        PythonWalk::Unreadable => Some("a frame of the interpreter could not be read".to_owned()),
        _ => None,
    };
    PythonStack { spans, truncated, hole }
}

fn python_frame(named: &NamedFrame) -> Frame {
    Frame {
        function: named.function.clone(),
        file: named.file.clone(),
        line: named.line,
        module: None,
        language: Language::Python,
        inlined: false,
        address: None,
        module_offset: None,
    }
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::limits::INNER_PYTHON_FRAMES;
    use profiler_ebpf::python::PythonWalk;

    use super::python_stack;
    use crate::runtime::cpython::{FrameKind, NamedFrame};
    use crate::unwind::merge::PythonStack;
    use crate::unwind::pairs::Hole;

    fn frame(function: &str, ends_eval: bool) -> NamedFrame {
        NamedFrame {
            kind: FrameKind::Shown,
            function: Some(function.into()),
            file: None,
            line: None,
            first_line: None,
            is_coroutine: false,
            is_resumable: function.starts_with("gen"),
            address: 0,
            ends_eval,
            gap: None,
        }
    }

    /// The frame in which a thread's chain ends belongs to no call.
    #[test]
    fn base_frame() {
        let base = NamedFrame { kind: FrameKind::Base, ..frame("", false) };
        let stack =
            python_stack(&[frame("f", false), boundary(0x7ff0), base], PythonWalk::Complete);
        assert_eq!(shown(&stack), [("f".to_owned(), Some(0x7ff0))]);
    }

    fn boundary(address: u64) -> NamedFrame {
        NamedFrame { kind: FrameKind::CallBoundary, address, ..frame("", true) }
    }

    /// Functions of each span, with `?` before those that may wait, and the address of its own frame.
    fn shown(stack: &PythonStack) -> Vec<(String, Option<u64>)> {
        let of_span = |span: &crate::unwind::merge::PythonSpan| {
            let names = span.frames.iter().filter_map(|frame| frame.function.as_deref());
            let mark = if span.ran.may_wait { "?" } else { "" };
            (format!("{mark}{}", names.collect::<Vec<_>>().join(",")), span.ran.anchor)
        };
        stack.spans.iter().map(of_span).collect()
    }

    /// What ends a call ends a span; frames of a call that goes on where the walk ended are one, too.
    #[test]
    fn spans_of_calls() {
        let frames = [
            frame("f", false),
            frame("g", false),
            boundary(0x7ff0),
            boundary(0x7ff8),
            frame("h", false),
        ];
        let stack = python_stack(&frames, PythonWalk::TooDeep);
        let expected = [
            ("f,g".to_owned(), Some(0x7ff0)),
            (String::new(), Some(0x7ff8)),
            ("h".to_owned(), None),
        ];
        assert_eq!(shown(&stack), expected);
        assert!(stack.truncated.is_some());
    }

    /// What is left out in the middle parts the frames of one call, and says where.
    #[test]
    fn hole_in_the_middle() {
        let of = |ends: bool| {
            let inner = vec![frame("f", false); INNER_PYTHON_FRAMES - 1];
            let outer = [frame("h", false), boundary(0x7ff0), frame("main", true)];
            let frames = [inner, vec![frame("g", ends)], outer.to_vec()].concat();
            python_stack(&frames, PythonWalk::Shortened(640))
        };
        for (ends, may_go_on) in [(false, true), (true, false)] {
            let stack = of(ends);
            assert_eq!(stack.hole, Some(Hole { at: 1, may_go_on, left_out: 640 }));
            assert_eq!((stack.spans.len(), &stack.truncated), (3, &None));
            assert_eq!(shown(&stack)[1], ("h".to_owned(), Some(0x7ff0)));
        }
        assert_eq!(python_stack(&[frame("f", true)], PythonWalk::Complete).hole, None);
    }

    /// A generator may wait only for another one, and only as the one frame of its span.
    #[test]
    fn generators_that_may_wait() {
        let frames = [
            frame("f", true),
            frame("gen1", true),
            frame("gen2", true),
            frame("gen3", false),
            frame("g", true),
            frame("gen4", true),
        ];
        let stack = python_stack(&frames, PythonWalk::Complete);
        let names: Vec<_> = shown(&stack).into_iter().map(|(names, _)| names).collect();
        assert_eq!(names, ["f", "gen1", "?gen2", "gen3,g", "gen4"]);
        assert_eq!(stack.truncated, None);
    }
}
