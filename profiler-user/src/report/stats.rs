//! What was measured in one interval to its line: percentiles, shares, and one sentence.

use profiler_ebpf::histogram::Histogram;
use profiler_ebpf::turn::wait;

use super::facts::{SessionFacts, ThreadFacts};
use super::schema::stats::{Accepts, Delays, LoopStats, Percentiles, ReadyEvents, Stats, TurnTime};
use super::{LoopThread, Report, Severity, common, distinct, lost, message};
use crate::gap::Gap;
use crate::interval::{Acceptor, LoopInterval};

/// How many of all connections those processes have accepted that a sentence counts.
const MOST_PERCENT: u64 = 90;

/// One loop of an interval.
#[derive(Debug)]
pub struct Measured<'a> {
    pub thread: ThreadFacts,
    pub interval: &'a LoopInterval,
    /// Stalls whose end was told.
    pub stalls: u64,
}

/// What a line of statistics needs besides its loops.
#[derive(Debug, Clone, Copy)]
pub struct StatsContext<'a> {
    pub session: &'a SessionFacts,
    /// When the line is made, `CLOCK_MONOTONIC`.
    pub now_ns: u64,
    pub duration_ns: u64,
    pub accepts: &'a [Acceptor],
    /// What this session has lost so far, by reason.
    pub losses: &'a [(&'static str, u64)],
    pub gaps: &'a [Gap],
}

impl Report {
    /// How loops fared in one interval.
    pub fn stats(measured: &[Measured<'_>], context: &StatsContext<'_>) -> Self {
        let mut gaps = context.session.gaps.clone();
        gaps.extend_from_slice(context.gaps);
        let loops: Vec<LoopStats> =
            measured.iter().map(|one| loop_stats(one, context.duration_ns, &mut gaps)).collect();
        let told = format!(
            "{}: {}{}",
            message::name(&context.session.process),
            about_loops(&loops, measured),
            about_accepts(context.accepts)
        );
        Self::Stats(Box::new(Stats {
            common: common(context.session, context.now_ns, Severity::Info, told),
            interval_ns: context.duration_ns,
            loops,
            accepts: context.accepts.iter().map(accepts).collect(),
            gaps: distinct(&gaps),
            lost: lost(context.losses),
        }))
    }
}

fn loop_stats(measured: &Measured<'_>, duration_ns: u64, gaps: &mut Vec<Gap>) -> LoopStats {
    let Measured { thread, interval, stalls } = measured;
    // A ring says how much it took, not how much is ready; who parks is handed work by other means.
    let tells_events = matches!(interval.home_kind, wait::EPOLL | wait::POLL);
    if !tells_events {
        let why = format!("the waits of {} loops do not tell", thread.loop_kind);
        gaps.push(Gap::new("ready_events and empty_wakeups", why));
    }
    let time = interval.time;
    LoopStats {
        thread: LoopThread::from(thread),
        turns: interval.turns.count(),
        busy_share: share(time.sum_ns(), duration_ns),
        time: TurnTime {
            running_ns: time.running_ns,
            blocked_ns: time.blocked_ns,
            runnable_ns: time.runnable_ns,
            stopped_ns: time.stopped_ns,
        },
        turn_duration_ns: percentiles(&interval.turns),
        run_queue_delay_ns: Delays {
            count: interval.delays.count(),
            percentiles: percentiles(&interval.delays),
        },
        ready_events: tells_events.then(|| ready_events(interval)),
        empty_wakeups: tells_events.then_some(interval.empty_wakeups),
        stalls: *stalls,
    }
}

fn percentiles(histogram: &Histogram) -> Percentiles {
    let [one, other] = histogram.greatest_ns;
    let max = one.max(other);
    let at = |per_thousand| histogram.quantile_ns(per_thousand).map(|value| value.min(max));
    Percentiles {
        p50: at(500),
        p90: at(900),
        p99: at(990),
        p999: at(999),
        max: (histogram.count() > 0).then_some(max),
    }
}

fn ready_events(interval: &LoopInterval) -> ReadyEvents {
    let has_waited = interval.waits > 0;
    ReadyEvents {
        mean: has_waited.then(|| rounded(interval.ready_events as f64 / interval.waits as f64)),
        max: has_waited.then_some(interval.most_ready),
    }
}

fn accepts(acceptor: &Acceptor) -> Accepts {
    let Acceptor { pid, name, accepts } = acceptor;
    let profiler_ebpf::loop_counters::Accepts { accepted, would_block, failed } = *accepts;
    Accepts { pid: *pid, name: name.clone(), accepted, would_block, failed }
}

/// No more than the whole, though both ends of the interval are read a moment late.
fn share(part_ns: u64, whole_ns: u64) -> f64 {
    rounded((part_ns as f64 / whole_ns.max(1) as f64).min(1.0))
}

/// To four places.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// `1 loop, 15 % busy, turns p99 3.1 ms, run-queue delay p99 0.2 ms`, with stalls if there were any.
fn about_loops(loops: &[LoopStats], measured: &[Measured<'_>]) -> String {
    let busiest = loops.iter().map(|one| one.busy_share).max_by(f64::total_cmp);
    let Some(busiest) = busiest else { return "no loop has been seen yet".to_owned() };
    let percent = (busiest * 100.0).round();
    let mut told = match loops.len() {
        1 => format!("1 loop, {percent} % busy"),
        count => format!("{count} loops, the busiest {percent} % busy"),
    };
    let of_all = |histogram: fn(&LoopInterval) -> &Histogram| {
        let mut all = measured.iter().map(|one| histogram(one.interval));
        let mut sum = all.next()?.clone();
        all.for_each(|one| sum.add_all(one));
        percentiles(&sum).p99
    };
    match of_all(|interval| &interval.turns) {
        Some(p99) => told += &format!(", turns p99 {}", milliseconds(p99)),
        None => told += ", no turn ended",
    }
    if let Some(p99) = of_all(|interval| &interval.delays) {
        told += &format!(", run-queue delay p99 {}", milliseconds(p99));
    }
    match loops.iter().map(|one| one.stalls).sum() {
        0 => {}
        1 => told += ", 1 stall",
        stalls => told += &format!(", {stalls} stalls"),
    }
    told
}

/// `; 3 of 5 processes accepted 95 % of 1200 connections`, with the herd if it is larger than those.
fn about_accepts(acceptors: &[Acceptor]) -> String {
    let mut each: Vec<u64> = acceptors.iter().map(|one| one.accepts.accepted).collect();
    each.sort_unstable_by(|one, other| other.cmp(one));
    let all: u64 = each.iter().sum();
    let in_vain: u64 = acceptors.iter().map(|one| one.accepts.would_block).sum();
    let herd =
        if in_vain > all { format!(", {in_vain} accepts found none") } else { String::new() };
    let plural = if all == 1 { "" } else { "s" };
    match each.len() {
        _ if all == 0 => String::new(),
        1 => format!("; {all} connection{plural} accepted{herd}"),
        processes => {
            let mut accepted = 0;
            let enough = |one: &u64| {
                accepted += one;
                u128::from(accepted) * 100 >= u128::from(all) * u128::from(MOST_PERCENT)
            };
            let few = each.iter().position(enough).map_or(processes, |last| last + 1);
            let percent = u128::from(accepted) * 100 / u128::from(all);
            format!(
                "; {few} of {processes} processes accepted {percent} % of {all} connection{plural}{herd}"
            )
        }
    }
}

/// With one decimal place, below 10 µs with three.
fn milliseconds(ns: u64) -> String {
    let ms = ns as f64 / 1e6;
    if ns < 10_000 {
        format!("{ms:.3} ms")
    } else if ns < 1_000_000 {
        format!("{ms:.2} ms")
    } else {
        format!("{ms:.1} ms")
    }
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::loop_counters::Accepts;
    use profiler_ebpf::turn::wait;
    use serde_json::{Value, json};

    use super::{about_accepts, milliseconds, rounded};
    use crate::interval::{Acceptor, LoopInterval};
    use crate::report::sample;

    fn stats(loops: &[LoopInterval]) -> Value {
        serde_json::to_value(sample::stats_of(loops)).unwrap()
    }

    /// A whole line, field by field.
    #[test]
    fn whole_line() {
        let line = serde_json::to_value(sample::stats()).unwrap();
        assert_eq!((&line["event"], &line["severity"]), (&json!("stats"), &json!("INFO")));
        let expected = json!([{
            "thread": { "tid": 4242, "tid_in_container": 7, "name": "uvicorn",
                        "python_name": "MainThread", "is_main": true, "loop": "asyncio" },
            "turns": 1000,
            "busy_share": 0.15,
            "time": {
                "running_ns": 1_200_000_000,
                "blocked_ns": 200_000_000,
                "runnable_ns": 100_000_000,
                "stopped_ns": 0,
            },
            "turn_duration_ns": {
                "p50": 1_507_328, "p90": 1_507_328, "p99": 1_507_328, "p999": 1_507_328,
                "max": 9_000_000,
            },
            "run_queue_delay_ns": {
                "count": 2, "p50": 51_200, "p90": 200_000, "p99": 200_000, "p999": 200_000,
                "max": 200_000,
            },
            "ready_events": { "mean": 1.25, "max": 12 },
            "empty_wakeups": 40,
            "stalls": 1,
        }]);
        assert_eq!(line["loops"], expected, "{:#}", line["loops"]);
        assert_eq!(line["interval_ns"], json!(10_000_000_000_u64));
        assert_eq!(line["accepts"][1]["would_block"], json!(7));
        assert_eq!(line["gaps"], json!([]));
        assert_eq!(
            line["message"],
            "uvicorn[4242]: 1 loop, 15 % busy, turns p99 1.5 ms, run-queue delay p99 0.20 ms, \
             1 stall; 1 of 2 processes accepted 95 % of 20 connections"
        );
    }

    /// Of nothing there are no percentiles, no mean, and no sentence about them.
    #[test]
    fn nothing_counted() {
        let line = stats(&[sample::idle_loop()]);
        let one = &line["loops"][0];
        for kind in ["turn_duration_ns", "run_queue_delay_ns"] {
            for value in ["p50", "p999", "max"] {
                assert_eq!(one[kind].get(value), Some(&Value::Null), "{kind} {value}");
            }
        }
        assert_eq!(one["ready_events"], json!({ "mean": null, "max": null }));
        assert_eq!((&one["turns"], &one["busy_share"]), (&json!(0), &json!(0.0)));
        let message = line["message"].as_str().unwrap();
        assert!(message.starts_with("uvicorn[4242]: 1 loop, 0 % busy, no turn ended"), "{message}");
        let message = stats(&[])["message"].to_string();
        assert!(message.contains("no loop has been seen yet"), "{message}");
    }

    /// A ring's waits do not say how many events are ready: that is a gap, not a zero.
    #[test]
    fn waits_that_do_not_tell() {
        let ring = LoopInterval { home_kind: wait::IO_URING, ..sample::idle_loop() };
        let line = stats(&[ring]);
        assert_eq!(line["loops"][0].get("ready_events"), Some(&Value::Null));
        assert_eq!(line["loops"][0].get("empty_wakeups"), Some(&Value::Null));
        assert!(line["gaps"][0].as_str().unwrap().starts_with("ready_events"), "{line:#}");
    }

    /// The sentence counts the fewest processes that have accepted nine tenths.
    #[test]
    fn who_accepted() {
        let told = |counts: &[(u64, u64)]| {
            let acceptor = |(pid, (accepted, would_block)): (usize, &(u64, u64))| Acceptor {
                pid: pid as u32,
                name: "w".to_owned(),
                accepts: Accepts {
                    accepted: *accepted,
                    would_block: *would_block,
                    ..Accepts::default()
                },
            };
            about_accepts(&counts.iter().enumerate().map(acceptor).collect::<Vec<_>>())
        };
        assert_eq!(told(&[]), "");
        assert_eq!(told(&[(0, 0), (0, 9)]), "");
        assert_eq!(told(&[(1, 0)]), "; 1 connection accepted");
        assert_eq!(
            told(&[(5, 0), (85, 0), (10, 0)]),
            "; 2 of 3 processes accepted 95 % of 100 connections"
        );
        assert_eq!(
            told(&[(50, 70), (50, 31)]),
            "; 2 of 2 processes accepted 100 % of 100 connections, 101 accepts found none"
        );
    }

    /// Figures are as long as they need be.
    #[test]
    fn figures() {
        let told = [1_234, 56_789, 3_149_999].map(milliseconds);
        assert_eq!(told, ["0.001 ms", "0.06 ms", "3.1 ms"]);
        assert_eq!(rounded(1.0 / 3.0), 0.3333);
    }
}
