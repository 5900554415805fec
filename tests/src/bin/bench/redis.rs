//! Redis under `redis-benchmark`: what being watched, and what another's being watched, costs a server
//! that does little but wait.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use profiler_tests::redis::start;

use crate::arms::{Arm, alternate};
use crate::cpu::{Given, Places, on};
use crate::echo::Echo;
use crate::table::{Aim, Compare, Measured, Row};

/// So many requests show how fast this machine is.
const TRIAL_REQUESTS: u64 = 20_000;

/// The arms.
const ARMS: [&str; 3] = ["watched", "watched with statistics", "another process watched"];

const OFF: &[&str] = &["--stats-interval", "off"];
const ON: &[&str] = &["--stats-interval", "1s"];

pub fn measure(rounds: usize, run: Duration) -> Result<Measured> {
    let places = Places::find()?;
    let (server, port) = on(places.server, start)?;
    let other = Echo::start()?;
    let trial = benchmark(places, port, TRIAL_REQUESTS)?;
    let requests = (trial * run.as_secs_f64()).max(TRIAL_REQUESTS as f64) as u64;

    let arms = [
        Arm::Nobody,
        Arm::Watched(server.pid(), OFF),
        Arm::Watched(server.pid(), ON),
        Arm::Watched(other.pid(), OFF),
    ];
    let figures = alternate(rounds, &arms, || {
        let before = Given::to(server.pid())?;
        let throughput = benchmark(places, port, requests)?;
        let given = Given::to(server.pid())?.since(before);
        let ns_per_request = given.running_ns as f64 / requests as f64;
        Ok([throughput, ns_per_request, given.waited_percent()])
    })?;

    let mut rows = Vec::new();
    for (arm, who) in ARMS.iter().enumerate() {
        let aim = (arm == 0).then_some(Aim::AtLeast(0.98));
        let (off, on) = (figures.of(0, 0), figures.of(arm + 1, 0));
        let what = format!("throughput, {who}");
        rows.push(Row { what, unit: "requests/s", off, on, compare: Compare::Ratio, aim });
    }
    for (arm, who) in ARMS.iter().enumerate() {
        for (what, compare) in [("", Compare::Ratio), (" added", Compare::Difference)] {
            let (off, on) = (figures.of(0, 1), figures.of(arm + 1, 1));
            let what = format!("server's CPU{what}, {who}");
            rows.push(Row { what, unit: "ns/request", off, on, compare, aim: None });
        }
    }
    let mut notes = figures.notes(2);
    if !places.are_apart() {
        notes.push("server and clients share the one CPU there is".to_owned());
    }
    Ok(Measured {
        meaning: "off: nobody is watched; `another process watched`: the hooks' own share, paid by everybody",
        rows,
        notes,
    })
}

/// Requests per second.
fn benchmark(places: Places, port: u16, requests: u64) -> Result<f64> {
    let mut command = Command::new("redis-benchmark");
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-n", &requests.to_string()]);
    command.args(["-t", "get", "-P", "1", "-q", "--csv"]);
    let output = on(places.client, || {
        command.output().context("redis-benchmark does not start: apt-get install redis-tools")
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "redis-benchmark: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    requests_per_second(&text).with_context(|| format!("redis-benchmark says {text:?}"))
}

/// `"GET","83857.45","0.312",…`
fn requests_per_second(csv: &str) -> Option<f64> {
    let line = csv.lines().find(|line| line.starts_with("\"GET\""))?;
    line.split(',').nth(1)?.trim_matches('"').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::requests_per_second;

    /// The figure is the second of the line about GET, not of the line of titles.
    #[test]
    fn csv_is_read() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\"\n\"GET\",\"83857.45\",\"0.312\"\n";
        assert_eq!(requests_per_second(csv), Some(83857.45));
        assert_eq!(requests_per_second("\"test\",\"rps\"\n"), None);
    }
}
