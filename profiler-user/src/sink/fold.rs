//! Frames in a row that are not the application's to one line that says whose they are.

use crate::report::application::{basename, interpreter};
use crate::report::schema::stall::Frame;

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
pub fn told(run: &[&Frame]) -> String {
    let mut packages: Vec<&str> = Vec::new();
    for package in run.iter().filter_map(|frame| package(frame)) {
        if !packages.contains(&package) {
            packages.push(package);
        }
    }
    let count = run.len();
    let outermost = run.last().and_then(|frame| frame.function.as_deref()).unwrap_or("?");
    if run.iter().all(|frame| is_interpreter(frame)) {
        format!("… {count} frames of the interpreter")
    } else if packages.is_empty() {
        format!("… {count} frames, out to {outermost}")
    } else {
        let rest = if packages.len() > NAMED { " and others" } else { "" };
        packages.truncate(NAMED);
        format!("… {count} frames of {}{rest}", packages.join(", "))
    }
}

/// Whether a frame belongs to what runs the loop.
pub fn is_of_loop(frame: &Frame) -> bool {
    package(frame).is_some_and(|package| LOOPS.contains(&package))
}

fn is_interpreter(frame: &Frame) -> bool {
    let module = frame.module.as_deref();
    module.is_some_and(|module| {
        interpreter(module).is_some() || basename(module).starts_with("libpython")
    })
}

/// The package, or the module of the standard library, that a frame's code was installed with.
fn package(frame: &Frame) -> Option<&str> {
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
    use crate::report::schema::stall::{Frame, Language};

    fn frame(function: &str, file: Option<&str>, module: Option<&str>) -> Frame {
        Frame {
            function: Some(function.to_owned()),
            file: file.map(str::to_owned),
            line: None,
            module: module.map(str::to_owned),
            language: if module.is_some() { Language::Native } else { Language::Python },
            inlined: false,
            in_app: false,
            address: None,
            module_offset: None,
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
        let all: Vec<&Frame> = run.iter().collect();
        assert_eq!(told(&all), "… 8 frames of fastapi, starlette, asyncio, uvloop");
        assert_eq!(told(&all[1..2]), "… 1 frames of the interpreter");
        assert_eq!(told(&all[7..]), "… 1 frames, out to _start");
        let run = [frame("get", Some(&format!("{LIB}/socket.py")), None)];
        let more: Vec<&Frame> = all.iter().copied().chain(&run).collect();
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
