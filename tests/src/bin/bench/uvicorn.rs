//! FastAPI under uvicorn and `wrk`: what being watched costs a service that does real work.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use profiler_tests::clock::patience;
use profiler_tests::load::Client;
use profiler_tests::target::{Target, folder, free_port, venv_python};

use crate::arms::{Arm, alternate};
use crate::cpu::{Given, Places, on};
use crate::table::{Aim, Compare, Measured, Row};

const CONNECTIONS: usize = 16;

pub fn measure(rounds: usize, run: Duration, loops: &[&str]) -> Result<Measured> {
    let places = Places::find()?;
    let mut rows = Vec::new();
    let mut notes = Vec::new();
    for event_loop in loops {
        let (server, port) = on(places.server, || start(event_loop))?;
        // Caches and the interpreter's adaptive code fill first.
        load(places, port, Duration::from_secs(1))?;
        let arms = [Arm::Nobody, Arm::Watched(server.pid(), &[])];
        let figures = alternate(rounds, &arms, || {
            let before = Given::to(server.pid())?;
            let Load { requests, time } = load(places, port, run)?;
            let given = Given::to(server.pid())?.since(before);
            let ns_per_request = given.running_ns as f64 / requests as f64;
            Ok([requests as f64 / time.as_secs_f64(), ns_per_request, given.waited_percent()])
        })?;
        let row = |what: &str, unit, figure, aim| Row {
            what: format!("{what}, {event_loop}"),
            unit,
            off: figures.of(0, figure),
            on: figures.of(1, figure),
            compare: Compare::Ratio,
            aim,
        };
        rows.push(row("throughput", "requests/s", 0, Some(Aim::AtLeast(0.99))));
        rows.push(row("server's CPU", "ns/request", 1, None));
        notes.extend(figures.notes(2).iter().map(|note| format!("{event_loop}: {note}")));
    }
    Ok(Measured { meaning: "off: nobody is watched; on: the server is", rows, notes })
}

/// The application that never stalls, on the loop that is named, or on uvicorn's own choice: `auto`.
pub fn start(event_loop: &str) -> Result<(Target, u16)> {
    let port = free_port()?;
    let mut command = Command::new(venv_python()?);
    command.args(["-m", "uvicorn", "healthy_app:app", "--loop", event_loop]);
    command.args(["--no-access-log", "--log-level", "warning"]);
    command.args([OsStr::new("--app-dir"), folder().as_os_str()]);
    command.args(["--port", &port.to_string()]);
    let server = Target::program(command)?;
    let deadline = Instant::now() + patience(20);
    while Client::connect(port).and_then(|mut client| client.get("/")).is_err() {
        if Instant::now() > deadline {
            bail!("uvicorn does not answer");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok((server, port))
}

/// What was answered in a run.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Load {
    requests: u64,
    time: Duration,
}

/// By `wrk`, or by connections of our own where there is none.
fn load(places: Places, port: u16, run: Duration) -> Result<Load> {
    let mut command = Command::new("wrk");
    command.args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{}s", run.as_secs().max(1))]);
    command.arg(format!("http://127.0.0.1:{port}/"));
    let output = match on(places.client, || Ok(command.output()))? {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return on(places.client, || own_load(port, run));
        }
        Err(error) => return Err(error).context("wrk does not start"),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "wrk: {}", String::from_utf8_lossy(&output.stderr));
    answered(&text).with_context(|| format!("wrk says {text:?}"))
}

/// `  12345 requests in 2.00s, 1.73MB read`, and no word about errors. An answer that is late is none:
/// on a busy machine the server may not have had a CPU.
fn answered(text: &str) -> Option<Load> {
    const ONLY_LATE: &str = "connect 0, read 0, write 0,";
    let is_error = |line: &str| {
        line.contains("Non-2xx") || line.contains("Socket errors") && !line.contains(ONLY_LATE)
    };
    if text.lines().any(is_error) {
        return None;
    }
    let (requests, rest) = text.lines().find_map(|line| line.trim().split_once(" requests in "))?;
    let seconds: f64 = rest.split_once("s,")?.0.parse().ok()?;
    let time = Duration::try_from_secs_f64(seconds).ok()?;
    Some(Load { requests: requests.parse().ok()?, time })
}

/// A thread for each connection, one request after the other.
fn own_load(port: u16, run: Duration) -> Result<Load> {
    let start = Instant::now();
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            std::thread::spawn(move || -> Result<u64> {
                let mut client = Client::connect(port)?;
                let mut requests = 0;
                while start.elapsed() < run {
                    client.get("/")?;
                    requests += 1;
                }
                Ok(requests)
            })
        })
        .collect();
    let mut requests = 0;
    for thread in threads {
        requests += thread.join().ok().context("a thread that sends requests panicked")??;
    }
    Ok(Load { requests, time: start.elapsed() })
}

#[cfg(test)]
mod tests {
    use super::{Load, answered};
    use std::time::Duration;

    /// Requests and time are read, and a run with errors is none.
    #[test]
    fn words_of_wrk_are_read() {
        let text = "Running 2s test @ http://127.0.0.1:8000/\n  1 threads and 16 connections\n  \
                    9874 requests in 2.01s, 1.41MB read\nRequests/sec:   4912.43\n";
        let load = Load { requests: 9874, time: Duration::from_millis(2010) };
        assert_eq!(answered(text), Some(load));
        assert_eq!(answered(&format!("{text}  Non-2xx or 3xx responses: 3\n")), None);
        assert_eq!(answered(""), None);
        let errors = "  Socket errors: connect 0, read 0, write 0, timeout 16\n";
        assert_eq!(answered(&format!("{text}{errors}")), Some(load));
        assert_eq!(answered(&format!("{text}{}", errors.replace("read 0", "read 1"))), None);
    }
}
