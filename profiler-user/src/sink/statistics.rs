//! A line of statistics to text for a terminal: a few lines for each loop, and one for each process that accepts.

use super::page::{Page, Style};
use super::words::{called, counted, list, lost, milliseconds};
use crate::report::schema::stats::{Accepts, LoopStats, Percentiles, Stats};

/// Adds the text of a line of statistics.
pub fn stats(page: &mut Page, line: &Stats) {
    page.put(Style::Bold, "STATS").put(Style::Plain, &" ".repeat(7));
    page.put(Style::Plain, &line.common.message).end_line();
    for one in &line.loops {
        loop_stats(page, one);
    }
    list(page, "accepts", &line.accepts.iter().map(accepts).collect::<Vec<_>>());
    list(page, "gaps", &line.gaps);
    lost(page, &line.lost);
}

fn loop_stats(page: &mut Page, one: &LoopStats) {
    let thread = &one.thread;
    let name = called(thread);
    let mut told = format!(
        "thread {}{name}, {}: {}, {:.1} % busy",
        thread.tid,
        thread.loop_kind,
        counted(one.turns, "turn"),
        one.busy_share * 100.0
    );
    if one.stalls > 0 {
        told += &format!(", {}", counted(one.stalls, "stall"));
    }
    page.label("loop").put(Style::Plain, &told).end_line();
    let time = &one.time;
    let parts = [
        ("running", time.running_ns),
        ("blocked", time.blocked_ns),
        ("ready, no CPU", time.runnable_ns),
        ("stopped", time.stopped_ns),
    ];
    let parts = parts.into_iter().filter(|(_, ns)| *ns > 0);
    let parts: Vec<String> =
        parts.map(|(name, ns)| format!("{name} {}", milliseconds(ns))).collect();
    list(page, "in turns", &[parts.join(", ")]);
    list(page, "turns", &[percentiles(&one.turn_duration_ns)]);
    list(page, "run queue", &[percentiles(&one.run_queue_delay_ns.percentiles)]);
    list(page, "events", &[events(one)]);
}

/// `p50 0.100, p90 …, max 5.400 ms`; of nothing, nothing.
fn percentiles(percentiles: &Percentiles) -> String {
    let Percentiles { p50, p90, p99, p999, max } = percentiles;
    let named = [("p50", p50), ("p90", p90), ("p99", p99), ("p99.9", p999), ("max", max)];
    let told = |(name, value): (&str, &Option<u64>)| {
        let time = milliseconds((*value)?);
        Some(format!("{name} {}", time.trim_end_matches(" ms")))
    };
    let all: Vec<String> = named.into_iter().filter_map(told).collect();
    if all.is_empty() { String::new() } else { format!("{} ms", all.join(", ")) }
}

/// `1.25 a wait, 12 at most, 40 wakeups for none`
fn events(one: &LoopStats) -> String {
    let (mean, max) = one.ready_events.map_or((None, None), |events| (events.mean, events.max));
    let mean = mean.map(|mean| format!("{mean:.2} a wait"));
    let max = max.map(|max| format!("{max} at most"));
    let empty = one.empty_wakeups.filter(|count| *count > 0);
    let empty = empty.map(|count| format!("{} for none", counted(count, "wakeup")));
    [mean, max, empty].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// `process 4243 (uvicorn): 120 accepted, 3 found none, 1 failed`
fn accepts(one: &Accepts) -> String {
    let mut told = format!("process {} ({}): {} accepted", one.pid, one.name, one.accepted);
    if one.would_block > 0 {
        told += &format!(", {} found none", one.would_block);
    }
    if one.failed > 0 {
        told += &format!(", {} failed", one.failed);
    }
    told
}

#[cfg(test)]
mod tests {
    use crate::report::sample;
    use crate::sink::text::tests::plain;

    const STATS: &str = "\
STATS       uvicorn[4242]: 1 loop, 15 % busy, turns p99 1.5 ms, run-queue delay
            p99 0.20 ms, 1 stall; 1 of 2 processes accepted 95 % of 20
            connections
  loop      thread 4242 (uvicorn), asyncio: 1000 turns, 15.0 % busy, 1 stall
  in turns  running 1200.000 ms, blocked 200.000 ms, ready, no CPU 100.000 ms
  turns     p50 1.507, p90 1.507, p99 1.507, p99.9 1.507, max 9.000 ms
  run queue p50 0.051, p90 0.200, p99 0.200, p99.9 0.200, max 0.200 ms
  events    1.25 a wait, 12 at most, 40 wakeups for none
  accepts   process 4242 (uvicorn): 19 accepted, 2 found none
            process 4243 (uvicorn): 1 accepted, 7 found none
  lost      captures 3
";

    /// A whole block, as it stands on a terminal.
    #[test]
    fn a_block() {
        assert_eq!(plain(&sample::stats()), STATS);
    }

    /// Of a loop that did nothing, little is told.
    #[test]
    fn an_idle_loop() {
        let text = plain(&sample::stats_of(&[sample::idle_loop()]));
        assert!(text.contains("asyncio: 0 turns, 0.0 % busy"), "{text}");
        for label in ["in turns", "run queue", "events", "p50"] {
            assert!(!text.contains(label), "{label}: {text}");
        }
    }
}
