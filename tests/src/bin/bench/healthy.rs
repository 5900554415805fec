//! The daemon beside a service that does not stall: its share of a CPU, its memory, and its ticks.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use profiler_tests::load::Traffic;
use profiler_tests::programs::held_by;
use profiler_tests::tracer::Tracer;

use crate::arms::{about_stalls, detach};
use crate::cpu::{Given, status_mib};
use crate::stats::{self, TICK};
use crate::table::{Aim, Compare, Measured, Row};
use crate::uvicorn;

/// Fifty requests a second: a loop that turns, and mostly waits.
const INTERVAL: Duration = Duration::from_millis(20);
const CONNECTIONS: usize = 16;
/// For target and daemon each: what happens once has happened.
const WARM_UP: Duration = Duration::from_secs(2);
/// The time is measured in so many pieces.
const PIECES: u32 = 8;

pub fn measure(time: Duration) -> Result<Measured> {
    let (server, port) = uvicorn::start("auto")?;
    let traffic = Traffic::start(port, "/", INTERVAL, CONNECTIONS)?;
    std::thread::sleep(WARM_UP);
    let (tracer, _) = Tracer::attach(server.pid(), &[])?;
    std::thread::sleep(WARM_UP);

    let daemon = tracer.pid();
    let _counting = stats::counting()?;
    let mut shares = Vec::new();
    for _ in 0..PIECES {
        let (start, before) = (Instant::now(), Given::to(daemon)?);
        std::thread::sleep(time / PIECES);
        let used_ns = Given::to(daemon)?.since(before).running_ns;
        shares.push(100.0 * used_ns as f64 / start.elapsed().as_nanos() as f64);
    }
    let memory = ["VmRSS", "RssAnon", "RssFile", "RssShmem"].map(|field| status_mib(daemon, field));
    let ticks = stats::of(&held_by(daemon)?).get(TICK).context("no program `tick`")?.calls;
    let stalls = detach(tracer)?;
    let answers = traffic.finish()?.len();

    let alone = |what: &str, unit, on, most: Option<f64>| Row {
        what: what.to_owned(),
        unit,
        off: Vec::new(),
        on,
        compare: Compare::Alone,
        aim: most.map(Aim::AtMost),
    };
    let [resident, anonymous, of_files, shared] = memory;
    let rows = vec![
        alone("the daemon's CPU", "% of a CPU", shares, Some(0.5)),
        alone("its resident memory", "MiB", vec![resident?], Some(40.0)),
        alone("  of it its own", "MiB", vec![anonymous?], None),
        alone("  of it of files", "MiB", vec![of_files?], None),
        alone("  of it shared", "MiB", vec![shared?], None),
        alone("ticks while nothing stalls", "calls", vec![ticks as f64], Some(0.0)),
    ];
    let mut notes = vec![format!("{answers} requests were answered")];
    notes.extend(about_stalls(stalls));
    Ok(Measured { meaning: "uvicorn and FastAPI at 50 requests a second", rows, notes })
}
