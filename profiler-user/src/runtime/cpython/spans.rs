//! The interpreter's frames to the pieces that one C-level call of the interpreter ran each.

use profiler_ebpf::python::PythonWalk;

use super::{FrameKind, NamedFrame};
use crate::frame::{Frame, Language};
use crate::unwind::merge::{PythonSpan, PythonStack};

/// The Python side of a stack, ready to be merged with the native one.
pub fn python_stack(frames: &[NamedFrame], walk: PythonWalk) -> PythonStack {
    let mut spans = Vec::new();
    let mut span = PythonSpan::default();
    let mut callee: Option<&NamedFrame> = None;
    let mut begun = false;
    for named in frames {
        match named.kind {
            FrameKind::Shown => {
                // A span of several frames was run: they call each other.
                span.ran.may_wait = span.frames.is_empty()
                    && named.is_resumable
                    && callee.is_some_and(|callee| callee.is_resumable);
                span.frames.push(python_frame(named));
                callee = Some(named);
            }
            FrameKind::CallBoundary => span.ran.anchor = Some(named.address),
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
    PythonStack { spans, truncated }
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
