//! A stack's frames to whose code they are: the application's, a library's, or plumbing.

use super::facts::{Libc, ProcessFacts};
use super::foreign::{is_compiled_in, is_waiter};
use super::libc_names::is_of_libc;
use crate::frame::{Frame, Language};
use crate::process::executables::{
    basename, interpreter, is_interpreter_library, is_system_library,
};
use crate::runtime::tokio;
use crate::unwind::greenlet::is_beginning;

/// Whose code a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// What the people who run the process wrote themselves.
    Application,
    /// Somebody's package, or a language's standard library.
    Library,
    /// The C library, the loader, the interpreter's own code, the kernel: under everything, and to
    /// blame for nothing.
    Plumbing,
}

/// The files and functions of the event loops that are written in Python.
const LOOPS: [(&str, &[&str]); 6] = [
    ("asyncio/events.py", &["_run"]),
    ("asyncio/base_events.py", &["_run_once", "run_forever", "run_until_complete"]),
    ("asyncio/runners.py", &["run"]),
    ("trio/_core/_run.py", &["unrolled_run", "run"]),
    ("twisted/internet/base.py", &["runUntilCurrent", "mainLoop", "run"]),
    ("twisted/internet/posixbase.py", &["_doReadOrWrite"]),
];

/// Tells whose code the frames of one process are.
#[derive(Debug, Clone, Copy)]
pub struct CodeOwner<'a> {
    /// The main executable; `None` where it is unknown, or an interpreter: then no native frame is
    /// the application's.
    program: Option<&'a str>,
    interpreter: Option<&'a str>,
    libc: Libc,
    is_unread: bool,
}

impl<'a> CodeOwner<'a> {
    pub fn new(process: &'a ProcessFacts) -> Self {
        let exe = process.exe.as_deref().map(|path| path.trim_end_matches(" (deleted)"));
        let (program, interpreter) = if exe.is_some_and(|path| interpreter(path).is_some()) {
            (None, exe)
        } else {
            (exe, None)
        };
        Self { program, interpreter, libc: process.libc, is_unread: process.unread.is_some() }
    }

    /// Whether the process runs an interpreter whose frames cannot be read: the application's may be missing
    /// on any stack, between whatever frames.
    pub fn is_unread(&self) -> bool {
        self.is_unread
    }

    /// Whose code a frame is.
    pub fn of(&self, frame: &Frame) -> Origin {
        match frame.language {
            Language::Python => python(frame),
            Language::JavaScript => javascript(frame),
            Language::Native => self.native(frame),
            Language::Kernel => Origin::Plumbing,
        }
    }

    fn native(&self, frame: &Frame) -> Origin {
        let Some(module) = frame.module.as_deref() else { return Origin::Library };
        if self.interpreter == Some(module)
            || module.starts_with('[')
            || is_interpreter_library(module)
            || self.is_of_system(frame)
            || is_waiter(frame)
        {
            return Origin::Plumbing;
        }
        let is_own = self.program.is_some_and(|exe| exe == module || is_plugin(exe, module));
        let is_linked = frame.file.is_none() && self.libc == Libc::Linked { has_lines: true };
        match is_own && !is_linked && !is_compiled_in(frame) {
            true => Origin::Application,
            false => Origin::Library,
        }
    }

    /// Whether a frame is of the C library or its like, also where it is linked into the program.
    pub fn is_of_system(&self, frame: &Frame) -> bool {
        let module = frame.module.as_deref().unwrap_or_default();
        let is_linked = || {
            self.libc != Libc::Shared
                && self.program == Some(module)
                && frame.file.is_none()
                && frame.function.as_deref().is_some_and(is_of_libc)
        };
        is_system_library(module) || is_linked()
    }
}

/// Whether a library is a part of the program that is loaded on demand: `/usr/lib/nginx/modules/x.so`.
fn is_plugin(exe: &str, module: &str) -> bool {
    let mut before = "";
    module.split('/').any(|folder| {
        let is_own = matches!(before, "lib" | "lib64" | "libexec") && folder == basename(exe);
        before = folder;
        is_own
    })
}

fn python(frame: &Frame) -> Origin {
    let Some(file) = frame.file.as_deref() else { return Origin::Library };
    // `<frozen importlib._bootstrap>`, `<string>`, and what Sanic compiles: it names the function there.
    let made_of_text = file.starts_with('<') || frame.function.as_deref() == Some(file);
    if made_of_text || is_python_library(file) || is_launcher(frame, file) {
        return Origin::Library;
    }
    Origin::Application
}

fn javascript(frame: &Frame) -> Origin {
    let Some(file) = frame.file.as_deref() else { return Origin::Library };
    // Debian installs packages into /usr/share/nodejs.
    let is_package = |part| matches!(part, "node_modules" | "nodejs");
    if is_of_node(file) || file.split('/').any(is_package) {
        return Origin::Library;
    }
    Origin::Application
}

/// Whether a script is one of those that are compiled into node.
pub fn is_of_node(file: &str) -> bool {
    file.starts_with("node:")
}

/// Whether a source file lies in the standard library or among installed packages.
fn is_python_library(file: &str) -> bool {
    below_library(file).is_some() || file.split('/').any(is_package_folder)
}

/// Whether a source file is this one of Python's standard library: `asyncio/subprocess.py`.
pub fn is_of_python(file: &str, name: &str) -> bool {
    below_library(file) == Some(name)
}

/// What follows the folder of a Python's library: `/usr/lib/python3.11/`.
fn below_library(file: &str) -> Option<&str> {
    let mut before = "";
    let mut rest = file;
    while let Some((component, below)) = rest.split_once('/') {
        if before.starts_with("lib") && is_version_folder(component) {
            return Some(below);
        }
        (before, rest) = (component, below);
    }
    None
}

fn is_package_folder(component: &str) -> bool {
    matches!(component, "site-packages" | "dist-packages")
}

/// `python3.11`, `python3.13t`, `pypy3.10`, `python311.zip`.
fn is_version_folder(component: &str) -> bool {
    ["python", "pypy"].iter().any(|name| {
        let version = component.strip_prefix(name);
        version.is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit()))
    })
}

/// The script that an installer wrote to start a package: `/venv/bin/uvicorn`.
fn is_launcher(frame: &Frame, file: &str) -> bool {
    let folder = file.rsplit('/').nth(1);
    folder == Some("bin") && !file.ends_with(".py") && frame.function.as_deref() == Some("<module>")
}

/// How many of a stack's innermost frames run inside the loop's callback.
///
/// What lies further out called the loop. It is on the stack of every turn, so it explains none:
/// `asyncio.run(main())` at the end of a script is the application's, and to blame for nothing.
pub fn inside_callback(frames: &[Frame]) -> usize {
    let runs_callbacks =
        |frame: &Frame| is_loop(frame) || is_beginning(frame) || tokio::runs_tasks(frame);
    let innermost = frames.iter().position(runs_callbacks);
    // What called uvloop need not be asyncio. Outermost: a callback may run a loop of its own.
    let libuv = || frames.iter().rposition(is_libuv);
    innermost.or_else(libuv).unwrap_or(frames.len())
}

/// The frame that tells one callback from another: the outermost of the application's interpreted code,
/// as a server calls all of it from the same function of its own; else the outermost of any, but for
/// node's own, which calls all callbacks from the same few functions.
pub fn callback_root(inside: &[Frame]) -> Option<&Frame> {
    let of_node = |frame: &Frame| frame.file.as_deref().is_some_and(is_of_node);
    let frames = || {
        inside.iter().rev().filter(|frame| match frame.language {
            Language::Python => true,
            Language::JavaScript => !of_node(frame),
            Language::Native | Language::Kernel => false,
        })
    };
    let is_of_application = |frame: &&Frame| match frame.language {
        Language::JavaScript => javascript(frame) == Origin::Application,
        _ => python(frame) == Origin::Application,
    };
    frames().find(is_of_application).or_else(|| frames().next())
}

/// Whether a frame is libuv's loop.
fn is_libuv(frame: &Frame) -> bool {
    frame.language == Language::Native && frame.function.as_deref() == Some("uv_run")
}

/// Whether a frame is the part of an event loop that runs callbacks or tasks.
fn is_loop(frame: &Frame) -> bool {
    let function = frame.function.as_deref().unwrap_or_default();
    let file = frame.file.as_deref().unwrap_or_default();
    // Before 3.11 there are only plain names, afterwards qualified ones.
    let name = function.rsplit('.').next().unwrap_or(function);
    frame.language == Language::Python
        && LOOPS.iter().any(|(path, names)| file.ends_with(path) && names.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::Origin::{Application, Library, Plumbing};
    use super::{CodeOwner, inside_callback, is_of_python};
    use crate::frame::Frame;
    use crate::report::facts::{Libc, ProcessFacts};
    use crate::report::sample::{javascript, native, python};

    fn process(exe: &str) -> ProcessFacts {
        ProcessFacts { exe: Some(exe.to_owned()), ..ProcessFacts::default() }
    }

    /// Python code is the application's by where its file lies.
    #[test]
    fn python_by_path() {
        let process = process("/usr/bin/python3.11");
        let table = [
            ("/srv/app/app.py", Application),
            ("app.py", Application),
            ("/home/u/lib/tool/app.py", Application),
            ("/srv/python3.11/app.py", Application),
            ("/usr/lib/python3.11/asyncio/base_events.py", Library),
            ("/opt/python/lib/python3.13t/json/decoder.py", Library),
            ("/usr/lib64/python3.9/ssl.py", Library),
            ("/usr/lib/python311.zip/re.py", Library),
            ("/venv/lib/python3.12/site-packages/uvicorn/server.py", Library),
            ("/usr/lib/python3/dist-packages/yaml/__init__.py", Library),
            ("<frozen importlib._bootstrap>", Library),
            ("<string>", Library),
            ("f", Library),
        ];
        for (file, expected) in table {
            assert_eq!(CodeOwner::new(&process).of(&python("f", file, 1)), expected, "{file}");
        }
    }

    /// A module of the standard library is known by its place in that: others may be called alike.
    #[test]
    fn modules_of_python() {
        let is_it = |file| is_of_python(file, "subprocess.py");
        assert!(is_it("/usr/lib/python3.11/subprocess.py"));
        assert!(is_it("/opt/python/lib/python3.13t/subprocess.py"));
        assert!(is_it("/usr/lib/python311.zip/subprocess.py"));
        assert!(!is_it("/srv/app/subprocess.py"));
        assert!(!is_it("/usr/lib/python3.11/asyncio/subprocess.py"));
        assert!(!is_it("/v/lib/python3.11/site-packages/subprocess.py"));
    }

    /// JavaScript is the application's unless it is node's own, or lies among packages.
    #[test]
    fn javascript_by_file() {
        let process = process("/usr/bin/node");
        let table = [
            ("/srv/app.js", Application),
            ("/srv/nodes/app.mjs", Application),
            ("[eval]", Application),
            ("node:internal/timers", Library),
            ("/srv/node_modules/express/lib/router.js", Library),
            ("/usr/share/nodejs/ws/index.js", Library),
        ];
        for (file, expected) in table {
            assert_eq!(CodeOwner::new(&process).of(&javascript("f", file, 1)), expected, "{file}");
        }
        let made_up = Frame { file: None, ..javascript("f", "", 1) };
        assert_eq!(CodeOwner::new(&process).of(&made_up), Library);
    }

    /// In node, all inside the outermost `uv_run` is the callback's: `execSync` has one of its own.
    #[test]
    fn callback_of_libuv() {
        let frames = [
            native("uv_run", "/usr/bin/node"),
            javascript("execSync", "node:child_process", 1),
            javascript("handler", "/srv/app.js", 1),
            native("uv_run", "/usr/bin/node"),
            native("main", "/usr/bin/node"),
        ];
        assert_eq!(inside_callback(&frames), 3);
    }

    /// The script that starts a package is nobody's code, unless it is a program of one's own.
    #[test]
    fn launchers() {
        let process = process("/usr/bin/python3.11");
        let origin = |function, file| CodeOwner::new(&process).of(&python(function, file, 8));
        assert_eq!(origin("<module>", "/venv/bin/uvicorn"), Library);
        assert_eq!(origin("<module>", "/srv/bin/serve.py"), Application);
        assert_eq!(origin("handle", "/srv/bin/serve"), Application);
    }

    /// Native code is the application's in the main executable, unless that is an interpreter.
    #[test]
    fn native_by_module() {
        let redis = "/usr/bin/redis-server";
        let table = [
            (redis, "debugCommand", redis, Application),
            ("/usr/bin/redis-server (deleted)", "debugCommand", redis, Application),
            (redis, "clock_nanosleep", "/usr/lib/x86_64-linux-gnu/libc.so.6", Plumbing),
            (redis, "_dl_runtime_resolve", "/lib64/ld-linux-x86-64.so.2", Plumbing),
            (redis, "clock_gettime", "[vdso]", Plumbing),
            (redis, "je_malloc", "/usr/lib/libjemalloc.so.2", Library),
            (redis, "std::sort<int*>", redis, Library),
            (redis, "<std::sync::Mutex as Drop>::drop", redis, Library),
            (redis, "<&mut std::fs::File as std::io::Read>::read", redis, Library),
            (redis, "tokio::sync::mutex::Mutex<T>::blocking_lock", redis, Library),
            (redis, "tokio_target::handler::{{closure}}", redis, Application),
            (redis, "<tokio_target::Job as core::future::Future>::poll", redis, Application),
            ("/usr/sbin/nginx", "ngx_x", "/usr/lib/nginx/modules/ngx_x_module.so", Application),
            ("/opt/shop/bin/shop", "SSL_read", "/opt/shop/lib/libssl.so.3", Library),
            ("/usr/bin/python3.11", "sock_recv", "/usr/bin/python3.11", Plumbing),
            ("/usr/bin/python3.11", "sre_search", "/usr/lib/libpython3.11.so.1.0", Plumbing),
            ("/usr/bin/uwsgi", "uwsgi_loop", "/usr/bin/uwsgi", Plumbing),
            ("/usr/bin/python3.11", "quicksort", "/v/site-packages/numpy/core.so", Library),
        ];
        for (exe, function, module, expected) in table {
            let process = process(exe);
            let origin = CodeOwner::new(&process).of(&native(function, module));
            assert_eq!(origin, expected, "{function} in {module} of {exe}");
        }
    }

    /// Without the executable's path no native frame is guessed to be the application's.
    #[test]
    fn unknown_executable() {
        let process = ProcessFacts::default();
        assert_eq!(CodeOwner::new(&process).of(&native("main", "/srv/server")), Library);
    }

    /// A program that is linked with its C library has that one's functions in its own file: they are
    /// plumbing by their names, and by having no line where the program's have.
    #[test]
    fn linked_with_libc() {
        const EXE: &str = "/srv/server";
        let lined = |function| Frame { file: Some("pay.c".into()), ..native(function, EXE) };
        for (has_lines, frame, expected) in [
            (true, lined("charge_card"), Application),
            (true, lined("poll"), Application),
            (true, native("inflate_fast", EXE), Library),
            (false, native("charge_card", EXE), Application),
            (false, native("poll", EXE), Plumbing),
            (false, native("__clock_nanosleep", EXE), Plumbing),
            (true, native("__clock_nanosleep", EXE), Plumbing),
            (true, native("nanosleep", "/srv/lib/plugin.so"), Library),
        ] {
            let linked = ProcessFacts { libc: Libc::Linked { has_lines }, ..process(EXE) };
            assert_eq!(CodeOwner::new(&linked).of(&frame), expected, "{frame:?}");
        }
        let shared = process(EXE);
        assert_eq!(CodeOwner::new(&shared).of(&native("poll", EXE)), Application);
    }

    /// Crates compiled into a Rust program are libraries by their source.
    #[test]
    fn crates_by_source() {
        let process = process("/srv/server");
        let mut frame = native("serde_json::de::from_str", "/srv/server");
        assert_eq!(CodeOwner::new(&process).of(&frame), Application);
        for file in [
            "/home/dev/.cargo/registry/src/index/serde_json-1.0/src/de.rs",
            "/usr/local/cargo/registry/src/index/serde_json-1.0/src/de.rs",
            "/home/dev/.cargo/git/checkouts/json-1f/9e/src/de.rs",
            "/rustc/5980/library/core/src/ops/function.rs",
            "/home/dev/.rustup/toolchains/1.95/lib/rustlib/src/rust/library/core/src/str/mod.rs",
        ] {
            frame.file = Some(file.into());
            assert_eq!(CodeOwner::new(&process).of(&frame), Library, "{file}");
        }
        frame.file = Some("/srv/cargo/src/main.rs".into());
        assert_eq!(CodeOwner::new(&process).of(&frame), Application);
    }

    /// What called the loop is outside, in each of asyncio's ways to be called.
    #[test]
    fn callback_boundary() {
        let lib = "/usr/lib/python3.11/asyncio";
        let frames = [
            python("handler", "app.py", 3),
            python("Handle._run", &format!("{lib}/events.py"), 80),
            python("BaseEventLoop._run_once", &format!("{lib}/base_events.py"), 1922),
            python("<module>", "app.py", 99),
        ];
        assert_eq!(inside_callback(&frames), 1);
        // uvloop runs callbacks in native code; the first of asyncio's own frames is the runner's.
        let frames = [
            python("handler", "app.py", 3),
            native("__pyx_f_6uvloop_4loop_6Handle__run", "/v/site-packages/uvloop/loop.so"),
            python("Runner.run", &format!("{lib}/runners.py"), 118),
            python("<module>", "app.py", 99),
        ];
        assert_eq!(inside_callback(&frames), 2);
        let site = "/v/site-packages";
        for outside in [
            python("unrolled_run", &format!("{site}/trio/_core/_run.py"), 2760),
            python(
                "_PollLikeMixin._doReadOrWrite",
                &format!("{site}/twisted/internet/posixbase.py"),
                492,
            ),
            python(
                "ReactorBase.runUntilCurrent",
                &format!("{site}/twisted/internet/base.py"),
                1099,
            ),
            native("inner_bootstrap", &format!("{site}/greenlet/_greenlet.so")),
            native("uv_run", &format!("{site}/uvloop/loop.so")),
        ] {
            let frames =
                [python("handler", "app.py", 3), outside, python("<module>", "app.py", 99)];
            assert_eq!(inside_callback(&frames), 1, "{:?}", frames[1]);
        }
        let frames = [python("_run", &format!("{lib}/events.py"), 80)];
        assert_eq!(inside_callback(&frames), 0);
        // `main` calls tokio's runtime, which calls the handler.
        let frames = [
            native("shop::pay::{{closure}}", "/srv/shop"),
            native("tokio::runtime::task::raw::poll", "/srv/shop"),
            native("tokio::runtime::runtime::Runtime::block_on", "/srv/shop"),
            native("shop::main", "/srv/shop"),
        ];
        assert_eq!(inside_callback(&frames), 1);
        let frames = [native("dictFind", "/usr/bin/redis-server"), python("run", "app.py", 1)];
        assert_eq!(inside_callback(&frames), 2);
    }
}
