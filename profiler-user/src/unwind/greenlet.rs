//! Ends a native stack where the greenlet that runs on it ends.
//!
//! Greenlets (gevent's, SQLAlchemy's) share their thread's stack: each has the part from its own
//! beginning down, and is copied away while another needs the place. What lies above its beginning is
//! another greenlet's, which has gone on since: unwinding into it finds return addresses that were
//! overwritten, or frames that called nobody. The interpreter's frames end at the same place.

use super::merge::NamedNativeStack;
use crate::frame::{Frame, Language};

/// The functions in which a greenlet begins. Their names hold for the C++ and the older C sources.
const BEGINNINGS: [&str; 2] = ["inner_bootstrap", "g_initialstub"];

/// Why the stack has no frames further out.
const TRUNCATED: &str = "a greenlet's own stack ends here; what switched to it is not on it";

/// Drops what lies beyond the innermost greenlet's beginning. Returns the reason to give, if there was one.
pub fn end(native: &mut NamedNativeStack) -> Option<String> {
    let frames = &native.frames;
    let first = frames.iter().position(|inlined| inlined.iter().any(is_beginning))?;
    let beyond = frames.iter().skip(first).take_while(|inlined| inlined.iter().any(is_beginning));
    native.frames.truncate(first + beyond.count());
    native.truncated = None;
    Some(TRUNCATED.to_owned())
}

/// Whether a greenlet begins in this frame. A stripped library has no names; then any of its frames
/// counts: others of them are on a running greenlet's stack only while it switches.
pub fn is_beginning(frame: &Frame) -> bool {
    let module = frame.module.as_deref().unwrap_or_default();
    let of_greenlet = frame.language == Language::Native && module.contains("/greenlet/_greenlet.");
    of_greenlet
        && frame
            .function
            .as_deref()
            .is_none_or(|function| BEGINNINGS.iter().any(|beginning| function.contains(beginning)))
}

#[cfg(test)]
mod tests {
    use super::{end, is_beginning};
    use crate::report::sample::native;
    use crate::unwind::merge::NamedNativeStack;

    const GREENLET: &str = "/v/site-packages/greenlet/_greenlet.cpython-311-x86_64-linux-gnu.so";
    const PYTHON: &str = "/usr/bin/python3.11";

    fn stack(frames: &[(&str, &str)]) -> NamedNativeStack {
        let mut stack = NamedNativeStack::default();
        let frames = frames.iter().map(|(function, module)| vec![native(function, module)]);
        stack.frames.extend(frames);
        stack.truncated = Some("lost".to_owned());
        stack
    }

    /// Both frames of the beginning stay, what was found beyond does not, and why the unwinding broke
    /// off there is of no interest.
    #[test]
    fn what_lies_beyond_is_dropped() {
        let mut found = stack(&[
            ("clock_nanosleep", "/usr/lib/libc.so.6"),
            ("_PyEval_EvalFrameDefault", PYTHON),
            ("greenlet::UserGreenlet::inner_bootstrap(_greenlet*, _object*)", GREENLET),
            ("greenlet::UserGreenlet::g_initialstub(void*)", GREENLET),
            ("greenlet::UserGreenlet::g_switch()", GREENLET),
            ("_PyEval_EvalFrameDefault", PYTHON),
        ]);
        assert!(end(&mut found).is_some());
        assert_eq!((found.frames.len(), found.truncated), (4, None));
    }

    /// A thread that runs no greenlet keeps its stack, and the reason for its end.
    #[test]
    fn other_stacks_stay_whole() {
        let mut found = stack(&[("_PyEval_EvalFrameDefault", PYTHON), ("_start", PYTHON)]);
        assert_eq!(end(&mut found), None);
        assert_eq!((found.frames.len(), found.truncated.as_deref()), (2, Some("lost")));
    }

    /// Without names the library is enough; with them, it takes the right ones.
    #[test]
    fn beginnings() {
        let mut unnamed = native("", GREENLET);
        unnamed.function = None;
        assert!(is_beginning(&unnamed));
        assert!(is_beginning(&native("g_initialstub", GREENLET)));
        assert!(!is_beginning(&native("PyGreenlet_GetCurrent", GREENLET)));
        assert!(!is_beginning(&native("g_initialstub", "/srv/server")));
    }
}
