//! The frames of a stack to the event loop that runs in it.

use super::tokio;
use crate::frame::Frame;

/// Which event loop's code the stack runs in, by its own frames.
pub fn loop_kind(frames: &[Frame]) -> Option<&'static str> {
    let of = |frame: &Frame| {
        let module = frame.module.as_deref().unwrap_or_default();
        let file = frame.file.as_deref().unwrap_or_default();
        let function = frame.function.as_deref().unwrap_or_default();
        if module.contains("/uvloop/") {
            Some("uvloop")
        } else if module.contains("/gevent/_gevent_c") || file.ends_with("/gevent/hub.py") {
            Some("gevent")
        } else if file.ends_with("/eventlet/greenthread.py")
            || file.ends_with("/eventlet/hubs/hub.py")
        {
            Some("eventlet")
        } else if file.ends_with("/trio/_core/_run.py") {
            Some("trio")
        } else if file.ends_with("/twisted/internet/base.py") && function.ends_with("mainLoop") {
            // Its reactor on asyncio's loop does without.
            Some("twisted")
        } else if file.ends_with("/asyncio/base_events.py") {
            Some("asyncio")
        } else if function == "uv_run" {
            Some("libuv")
        } else if tokio::is_runtime(frame) {
            Some("tokio")
        } else {
            None
        }
    };
    // uvloop's frames lie inside libuv's and those of asyncio's runner around both.
    frames.iter().find_map(of)
}

#[cfg(test)]
mod tests {
    use super::loop_kind;
    use crate::report::sample::{native, python};

    /// Each loop is known by its own code, and the inner one's name holds where it runs inside another's.
    #[test]
    fn loops_by_their_code() {
        let lib = |file: &str| format!("/v/lib/python3.11/site-packages/{file}");
        let asyncio =
            python("BaseEventLoop._run_once", "/usr/lib/python3.11/asyncio/base_events.py", 9);
        let trio = python("unrolled_run", &lib("trio/_core/_run.py"), 2760);
        let greenlet = native("Greenlet_run", &lib("gevent/_gevent_cgreenlet.cpython-311.so"));
        let hub = python("Hub.run", &lib("gevent/hub.py"), 647);
        let green = python("GreenThread.main", &lib("eventlet/greenthread.py"), 272);
        let uvloop = native("__pyx_f_6uvloop_4loop_4Loop__run", &lib("uvloop/loop.so"));
        let reactor = |function| python(function, &lib("twisted/internet/base.py"), 690);
        let table = [
            (vec![asyncio.clone()], Some("asyncio")),
            (
                vec![uvloop, native("uv_run", "/usr/lib/libuv.so.1"), asyncio.clone()],
                Some("uvloop"),
            ),
            (vec![trio], Some("trio")),
            (vec![greenlet], Some("gevent")),
            (vec![hub], Some("gevent")),
            (vec![green], Some("eventlet")),
            (vec![reactor("_SignalReactorMixin.mainLoop")], Some("twisted")),
            (vec![reactor("ReactorBase.runUntilCurrent"), asyncio], Some("asyncio")),
            (vec![python("handle", "/srv/gevent/app.py", 1)], None),
        ];
        for (frames, expected) in table {
            assert_eq!(loop_kind(&frames), expected, "{:?}", frames[0].function);
        }
    }
}
