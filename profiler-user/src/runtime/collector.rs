//! Frames of an interpreter's garbage collector: how a collection shows on a stack with names.

use profiler_ebpf::record::CaptureHead;

use super::ruby;
use crate::frame::{Frame, Language, Stack};

/// Functions of CPython's collector, 3.8 to 3.15 (Modules/gcmodule.c, since 3.13 Python/gc.c), and of V8's
/// (src/heap/). Beginnings: compilers add suffixes.
const COLLECTORS: [&str; 12] = [
    "gc_collect_",
    "collect_with_callback",
    "deduce_unreachable",
    "PyGC_Collect",
    "_PyGC_Collect",
    "_Py_RunGC",
    "v8::internal::Heap::CollectGarbage",
    "v8::internal::Heap::PerformGarbageCollection",
    "v8::internal::Heap::CollectAllGarbage",
    "v8::internal::MarkCompactCollector::",
    "v8::internal::ScavengerCollector::",
    "v8::internal::IncrementalMarking::",
];

/// Whether a frame is one of a garbage collector.
pub fn is_of_collector(frame: &Frame) -> bool {
    let name = frame.function.as_deref().unwrap_or_default();
    let is_known = || COLLECTORS.iter().any(|known| name.starts_with(known));
    frame.language == Language::Native && (is_known() || ruby::collects(frame))
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
    use super::is_of_collector;
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
}
