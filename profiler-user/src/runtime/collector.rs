//! Frames of an interpreter's garbage collector: how a collection shows on a stack with names.

use profiler_ebpf::record::CaptureHead;

use super::table;
use crate::frame::{Frame, Language, Stack};

/// Whether a frame is one of a garbage collector.
pub fn is_of_collector(frame: &Frame) -> bool {
    table::collects(frame)
}

/// Whether the thread was collecting garbage. The flag is the whole interpreter's, and whoever collects
/// holds its lock. Where the thread's innermost code is Python's own, another one collects all the same:
/// that of a finalizer which has given the lock away.
pub fn is_collecting(head: &CaptureHead, stack: &Stack) -> bool {
    let is_native = |frame: &Frame| frame.language == Language::Native;
    let may_be_the_flags = head.holds_gil == 1 && stack.frames.first().is_some_and(is_native);
    (head.collecting == 1 && may_be_the_flags) || stack.frames.iter().any(is_of_collector)
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::record::CaptureHead;

    use super::{is_collecting, is_of_collector};
    use crate::frame::{Frame, Stack};
    use crate::report::sample::{native, python};

    /// All interpreters' collectors are known, also with a compiler's suffix; what allocates is not one.
    #[test]
    fn known_collectors() {
        for name in ["gc_collect_main", "deduce_unreachable.lto_priv.0", "PyGC_Collect"] {
            assert!(is_of_collector(&native(name, "/usr/bin/python3")), "{name}");
        }
        let scavenge = "v8::internal::Heap::CollectGarbage(v8::internal::AllocationSpace)";
        assert!(is_of_collector(&native(scavenge, "/usr/bin/node")));
        assert!(is_of_collector(&native(
            "gc_marks_rest.constprop.0",
            "/usr/local/lib/libruby.so.3.3"
        )));
        assert!(!is_of_collector(&native("gc_start", "/srv/shop")), "anybody may call it so");
        assert!(!is_of_collector(&native("_PyObject_GC_New", "/usr/bin/python3")));
        assert!(!is_of_collector(&python("gc_collect_all", "/srv/app.py", 1)));
    }

    /// The interpreter's flag counts for the thread that holds its lock, and a collector's frame for
    /// itself.
    #[test]
    fn who_collects() {
        let is = |holds_gil, collecting, innermost: Frame| {
            let head = CaptureHead { holds_gil, collecting, ..CaptureHead::default() };
            is_collecting(&head, &Stack { frames: vec![innermost], ..Stack::default() })
        };
        let nameless = || Frame { function: None, ..native("", "/usr/bin/python3.11") };
        assert!(is(1, 1, nameless()));
        assert!(!is(0, 1, nameless()), "another thread collects, or nothing tells who");
        assert!(!is(1, 0, nameless()));
        assert!(!is(1, 1, python("parse", "/srv/app.py", 7)));
        assert!(is(0, 0, native("gc_collect_main", "/usr/bin/python3.11")));
    }
}
