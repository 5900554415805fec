//! Frames in a row that are not the application's to one line that says whose they are.

use super::words::counted;
use crate::process::executables::{
    basename, interpreter, is_interpreter_library, is_system_library,
};
use crate::report::schema::stall::{ReportedFrame, ReportedLanguage};

/// Packages named in one line.
const NAMED: usize = 4;

/// Packages that run an event loop or lead from it to handlers: the same in every stall.
const LOOPS: [&str; 11] = [
    "asyncio",
    "uvloop",
    "uvicorn",
    "starlette",
    "fastapi",
    "anyio",
    "hypercorn",
    "gunicorn",
    "aiohttp",
    "sanic",
    "quart",
];

/// `… 51 frames of fastapi, starlette`; where nobody's name is to be had, `… 3 frames, out to main`.
pub fn told(run: &[&ReportedFrame]) -> String {
    let count = counted(run.len() as u64, "frame");
    let names = |of: &dyn Fn(&ReportedFrame) -> Option<String>| {
        let mut names: Vec<String> = Vec::new();
        for name in run.iter().filter_map(|frame| of(frame)) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    };
    let packages = names(&|frame| package(frame).map(str::to_owned));
    // What is under everything is worth a word only where there is nothing else.
    let mut names = if packages.is_empty() { names(&|frame| below(frame)) } else { packages };
    let outermost = run.last().and_then(|frame| frame.function.as_deref()).unwrap_or("?");
    if names.is_empty() && run.iter().all(|frame| frame.function.is_none()) {
        return format!("… {count} without a name");
    }
    if names.is_empty() {
        return format!("… {count}, out to {outermost}");
    }
    let rest = if names.len() > NAMED { " and others" } else { "" };
    names.truncate(NAMED);
    format!("… {count} of {}{rest}", names.join(", "))
}

/// What stands below every package: the interpreter, the kernel, or a library by its name.
fn below(frame: &ReportedFrame) -> Option<String> {
    if is_interpreter(frame) {
        return Some("the interpreter".to_owned());
    }
    if frame.language == ReportedLanguage::Kernel {
        return Some("the kernel".to_owned());
    }
    let (name, _) = basename(frame.module.as_deref()?).split_once(".so")?;
    Some(name.to_owned())
}

/// Whether a frame belongs to what runs the loop.
pub fn is_of_loop(frame: &ReportedFrame) -> bool {
    package(frame).is_some_and(|package| LOOPS.contains(&package))
}

/// Whether a frame lies under every program: in the interpreter or the C library.
pub fn is_plumbing(frame: &ReportedFrame) -> bool {
    is_interpreter(frame) || frame.module.as_deref().is_some_and(is_system_library)
}

/// Whether a frame was built with the interpreter: itself, or an extension module of the standard library.
pub fn is_of_python(frame: &ReportedFrame) -> bool {
    let module = frame.module.as_deref();
    is_interpreter(frame) || module.is_some_and(|module| module.contains("/lib-dynload/"))
}

/// Whether a frame is the interpreter's own code.
pub fn is_interpreter(frame: &ReportedFrame) -> bool {
    let module = frame.module.as_deref();
    module.is_some_and(|module| interpreter(module).is_some() || is_interpreter_library(module))
}

/// The package, or the module of the standard library, that a frame's code was installed with.
pub fn package(frame: &ReportedFrame) -> Option<&str> {
    let path = frame.file.as_deref().filter(|path| !path.ends_with(".c"));
    let path = path.or(frame.module.as_deref())?;
    let installed = path.split("-packages/").nth(1);
    let within = installed.or_else(|| {
        let (_, library) = path.split_once("/python3.")?;
        library.split_once('/').map(|(_, within)| within)
    })?;
    let first = within.split('/').next()?;
    // Extension modules of the standard library: `lib-dynload/_asyncio.cpython-311-….so`.
    let first = if first == "lib-dynload" { basename(within) } else { first };
    Some(first.split('.').next()?.trim_start_matches('_'))
}

#[cfg(test)]
mod tests {
    use super::{is_of_loop, told};
    use crate::report::schema::stall::{ReportedFrame, ReportedLanguage};

    fn frame(function: &str, file: Option<&str>, module: Option<&str>) -> ReportedFrame {
        ReportedFrame {
            function: Some(function.to_owned()),
            file: file.map(str::to_owned),
            line: None,
            module: module.map(str::to_owned),
            language: if module.is_some() {
                ReportedLanguage::Native
            } else {
                ReportedLanguage::Python
            },
            inlined: false,
            in_app: false,
            address: None,
            module_offset: None,
            left_out: 0,
        }
    }

    const LIB: &str = "/usr/lib/python3.11";

    /// Whose frames they are, innermost first and each once, whatever lies between them.
    #[test]
    fn packages() {
        let python = "/usr/bin/python3.11";
        let run = [
            frame("app", Some("/v/site-packages/fastapi/routing.py"), None),
            frame("gen_send_ex2", Some("/build/Python/Objects/genobject.c"), Some(python)),
            frame("app", Some("/v/site-packages/starlette/routing.py"), None),
            frame("app", Some("/v/site-packages/fastapi/applications.py"), None),
            frame("task_step", None, Some("/l/python3.11/lib-dynload/_asyncio.cpython-311.so")),
            frame("uv_run", None, Some("/v/dist-packages/uvloop/loop.cpython-311.so")),
            frame("Handle._run", Some(&format!("{LIB}/asyncio/events.py")), None),
            frame("_start", None, Some("/usr/lib/libc.so.6")),
        ];
        let all: Vec<&ReportedFrame> = run.iter().collect();
        assert_eq!(told(&all), "… 8 frames of fastapi, starlette, asyncio, uvloop");
        assert_eq!(told(&all[1..2]), "… 1 frame of the interpreter");
        assert_eq!(told(&all[7..]), "… 1 frame of libc");
        let nameless = ReportedFrame { function: None, ..frame("", None, Some("/srv/bin/shop")) };
        assert_eq!(told(&[&nameless]), "… 1 frame without a name");
        let own = [frame("main", None, Some("/srv/bin/shop"))];
        assert_eq!(told(&[&own[0], &own[0]]), "… 2 frames, out to main");
        let kernel = ReportedFrame {
            language: ReportedLanguage::Kernel,
            ..frame("schedule", None, Some("[kernel]"))
        };
        assert_eq!(told(&[&kernel, all[7]]), "… 2 frames of the kernel, libc");
        let run = [frame("get", Some(&format!("{LIB}/socket.py")), None)];
        let more: Vec<&ReportedFrame> = all.iter().copied().chain(&run).collect();
        assert!(told(&more).ends_with("asyncio, uvloop and others"), "{}", told(&more));
    }

    /// A package is the loop's by its whole name.
    #[test]
    fn loops() {
        assert!(is_of_loop(&frame("run", Some(&format!("{LIB}/asyncio/runners.py")), None)));
        assert!(!is_of_loop(&frame("run", Some("/v/site-packages/asyncio_extras/x.py"), None)));
        assert!(!is_of_loop(&frame("run", Some("/srv/shop/uvicorn/app.py"), None)));
    }
}
