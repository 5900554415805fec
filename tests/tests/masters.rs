//! Whoever names a program or a master, and not the process that serves, is told which one to attach to.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use profiler_tests::clock::patience;
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::servers::Server;
use profiler_tests::target::{Target, folder, system_python};
use profiler_tests::tracer::{Tracer, run};

const BAD_USAGE: i32 = 2;
const NOT_POSSIBLE: i32 = 3;
const NO_PROCESS: i32 = 4;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What stalltrace says to this, once it says anything of the kind: workers take a moment to start.
fn refused(arguments: &[&str], code: i32, is_it: impl Fn(&str) -> bool) -> Result<String> {
    let deadline = Instant::now() + patience(20);
    loop {
        let output = run(arguments)?;
        let said = said(&output);
        if output.status.code() == Some(code) && is_it(&said) {
            ensure!(output.stdout.is_empty(), "it is an error, and no report");
            return Ok(said);
        }
        ensure!(Instant::now() < deadline, "{arguments:?}: {:?}: {said}", output.status);
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn children(pid: u32) -> Result<Vec<u32>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

/// A master is not attached to: its workers are listed, each of them and nobody else, with how they serve.
fn must_list(master: u32, workers: usize, by: &str) -> Result<()> {
    let pid = master.to_string();
    let arguments = ["attach", &pid, "--duration", "1ms", "--format", "json"];
    let row = format!("serves by {by}");
    let said = refused(&arguments, NOT_POSSIBLE, |said| said.matches(&row).count() == workers)?;
    println!("{said}");
    let children = children(master)?;
    let listed = children.iter().filter(|child| said.contains(&format!("{child:>9}  ")));
    ensure!(listed.count() == workers, "{children:?}: {said}");
    let first = said.split_once("Try: stalltrace attach ").context("how to go on")?.1;
    let first: u32 = first.lines().next().unwrap_or_default().parse()?;
    ensure!(children.contains(&first), "{said}");
    // The one that it names can be attached to.
    let attached = run(&["attach", &first.to_string(), "--duration", "1ms", "--format", "json"])?;
    ensure!(attached.status.success(), "{}", self::said(&attached));
    Ok(())
}

fn server(name: &str, workers: &[&str]) -> Result<Target> {
    Target::framework(&[&["-m", name][..], workers, &["starlette_app:app"]].concat())
        .with_context(|| name.to_owned())
}

#[test]
fn gunicorn() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let threads = ["--bind", "127.0.0.1:{port}", "--workers", "2", "--threads", "2"];
    let target = Target::framework(
        &[
            &["-m", "gunicorn"][..],
            &threads,
            &["--chdir", &folder().display().to_string(), "wsgi_app:application"],
        ]
        .concat(),
    )?;
    must_list(target.pid(), 2, "epoll")?;
    // A worker of the plain kind waits for connections by select.
    let plain = ["-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "2"];
    let target = Target::framework(
        &[&plain[..], &["--chdir", &folder().display().to_string(), "wsgi_app:application"]]
            .concat(),
    )?;
    must_list(target.pid(), 2, "poll or accept")
}

#[test]
fn uvicorn() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target =
        server("uvicorn", &["--port", "{port}", "--workers", "2", "--log-level", "warning"])?;
    must_list(target.pid(), 2, "epoll")
}

#[test]
fn hypercorn() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = server("hypercorn", &["--bind", "127.0.0.1:{port}", "--workers", "2"])?;
    must_list(target.pid(), 2, "epoll")
}

#[test]
fn granian() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let options = ["--interface", "asgi", "--port", "{port}", "--workers", "2", "--no-ws"];
    let target = server("granian", &options)?;
    must_list(target.pid(), 2, "epoll")
}

#[test]
fn nginx() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let server = Server::nginx(true)?;
    must_list(server.target.pid(), 1, "epoll")
}

/// A process that starts others, and the numbers of these.
fn program(kind: &str) -> Result<Target> {
    let mut command = Command::new(system_python());
    command.arg(folder().join("masters.py")).arg(kind);
    let target = Target::program(command)?;
    target.line_starting("ready", patience(20))?;
    Ok(target)
}

/// One that sleeps, and one whose own loop is about other things than connections, are masters.
#[test]
fn of_any_name() -> Result<()> {
    let _machine = alone();
    require_root()?;
    for kind in ["sleeper", "supervisor"] {
        let target = program(kind)?;
        must_list(target.pid(), 2, "epoll").with_context(|| kind.to_owned())?;
        let (tracer, _) = Tracer::attach(target.pid(), &["--master"])?;
        ensure!(tracer.interrupt()?.code == Some(0), "{kind}: --master attaches all the same");
    }
    Ok(())
}

/// Whoever serves itself is attached to, whatever its children do.
#[test]
fn servers_with_children() -> Result<()> {
    let _machine = alone();
    require_root()?;
    for kind in ["server", "poller", "job"] {
        let target = program(kind)?;
        let (tracer, _) = Tracer::attach(target.pid(), &[]).with_context(|| kind.to_owned())?;
        ensure!(tracer.interrupt()?.code == Some(0), "{kind}");
    }
    Ok(())
}

/// A name is answered with the processes that have it, and how to attach to one; `--pid` is the number.
#[test]
fn names() -> Result<()> {
    let _machine = alone();
    require_root()?;
    let target = program("server")?;
    let pid = target.pid().to_string();
    let said = refused(&["attach", "masters"], BAD_USAGE, |said| said.contains(&pid))?;
    ensure!(said.contains("Try: stalltrace attach "), "{said}");
    let said = refused(&["check", "masters"], BAD_USAGE, |said| said.contains(&pid))?;
    ensure!(said.contains("Try: stalltrace check "), "{said}");
    refused(&["attach", "no-such-program"], NO_PROCESS, |said| said.contains("no process called"))?;
    let attached = run(&["attach", "--pid", &pid, "--duration", "1ms", "--format", "json"])?;
    ensure!(attached.status.success(), "{}", self::said(&attached));
    Ok(())
}
