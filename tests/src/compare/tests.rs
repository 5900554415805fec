//! Sessions drawn by hand to the verdicts that they must get. Times in ms.

use super::{Bounds, Observation, Verdict, compare};
use crate::report::tests::{arrived, stall};
use crate::report::{Arrived, Report};
use crate::truth::Truth;

const MS: u64 = 1_000_000;
const BOUNDS: Bounds = Bounds { threshold_ns: 100 * MS, noise_ns: 2 * MS };

/// The target stalled from `start` to `end` in `pay` at app.py:31.
fn truth(kind: &str, start: u64, end: u64) -> Truth {
    Truth {
        kind: kind.to_owned(),
        function: Some("pay".to_owned()),
        file: Some("/elsewhere/app.py".to_owned()),
        line: Some(31),
        last_line: Some(31),
        thread: Some(42),
        start_ns: start * MS,
        end_ns: end * MS,
    }
}

fn lag(start: u64, end: u64) -> Truth {
    Truth { function: None, file: None, line: None, last_line: None, ..truth("lag", start, end) }
}

/// Lines of one stall from `start` to `end`: opened 110 ms after its start, ended 1 ms after its end.
fn reported(id: &str, start: u64, end: u64, function: &str) -> Vec<Arrived> {
    let so_far = |until: u64| stall(id, start * MS, (until - start) * MS, function);
    vec![
        arrived((start + 110) * MS, Report::StallOpen(so_far(start + 105))),
        arrived((end + 1) * MS, Report::StallEnd(so_far(end))),
    ]
}

/// The verdict on a session that was attached from 0 to 100 s.
fn verdict(truths: &[Truth], lines: &[Arrived]) -> Verdict {
    compare(Observation { truths, lines, from_ns: 0, until_ns: 100_000 * MS }, BOUNDS)
}

fn sentences(verdict: &Verdict) -> Vec<String> {
    verdict.failures.iter().map(ToString::to_string).collect()
}

/// A report that agrees with the record is right, and counted.
#[test]
fn agreement_is_right() {
    // ms   1000 ├───── pay ─────┤ 1300
    //       999 ├──── report ────┤ 1301
    let verdict = verdict(&[truth("sleep", 1000, 1300)], &reported("7", 999, 1301, "pay"));
    assert!(verdict.is_right(), "{verdict}");
    assert_eq!((verdict.confirmed, verdict.only_late), (1, 0));
    let apart = (verdict.start_apart_ns, verdict.duration_apart_ns, verdict.opened_after_ns);
    assert_eq!(apart, (MS, 2 * MS, 109 * MS));
}

/// No report is right where nothing reached twice the threshold, and wrong where something did.
#[test]
fn none_may_be_missed() {
    let quiet = [truth("short", 1000, 1030), truth("sleep", 2000, 2199), lag(1990, 2200)];
    assert!(verdict(&quiet, &[]).is_right());
    let missed = verdict(&[truth("sleep", 1000, 1200)], &[]);
    assert_eq!(sentences(&missed), ["sleep stall of 200.0 ms at 1000000000 ns was not reported"]);
}

/// Of a stall that had begun before the attachment only the rest must have been seen.
#[test]
fn only_what_was_visible_is_asked_for() {
    let truths = [truth("sleep", 1000, 3000)];
    let attached_at = |from_ns| {
        compare(
            Observation { truths: &truths, lines: &[], from_ns, until_ns: 100_000 * MS },
            BOUNDS,
        )
    };
    assert!(attached_at(2900 * MS).is_right());
    assert_eq!(attached_at(2500 * MS).failures.len(), 1);
}

/// A report without a record is invented; the heartbeat's word is enough to explain one.
#[test]
fn none_may_be_invented() {
    let lines = reported("7", 1000, 1200, "pay");
    let invented = verdict(&[truth("short", 1000, 1030)], &lines);
    assert_eq!(
        sentences(&invented),
        ["stall 7 of 200.0 ms at pay (app.py:31): the target explains only 30.0 ms of it"]
    );
    let late = verdict(&[truth("short", 1000, 1030), lag(990, 1205)], &lines);
    assert!(late.is_right(), "{late}");
    assert_eq!((late.confirmed, late.only_late), (0, 1));
}

/// Records that overlap explain a time once, not twice.
#[test]
fn explanations_are_not_counted_twice() {
    let twice = [lag(1000, 1100), lag(1000, 1100), lag(1050, 1100)];
    assert_eq!(verdict(&twice, &reported("7", 1000, 1200, "pay")).failures.len(), 1);
}

/// A turn below the threshold is no stall.
#[test]
fn the_threshold_holds() {
    let short = stall("7", 1000 * MS, 99 * MS, "pay");
    let lines = [arrived(1100 * MS, Report::StallEnd(short))];
    let below = verdict(&[truth("sleep", 1000, 1099)], &lines);
    assert_eq!(sentences(&below), ["stall 7 lasted 99.0 ms, less than the threshold of 100.0 ms"]);
}

/// Fifteen milliseconds too long, too early: each is outside of 10 ms and 2 ms noise.
#[test]
fn times_are_exact() {
    let truths = [truth("sleep", 1000, 1300)];
    let long = verdict(&truths, &reported("7", 1000, 1355, "pay"));
    assert_eq!(
        sentences(&long),
        ["stall 7 (sleep) lasts 355.0 ms, the target says 300.0 ms, allowed difference 52.0 ms"]
    );
    let early = verdict(&truths, &reported("7", 945, 1245, "pay"));
    assert_eq!(
        sentences(&early),
        ["stall 7 (sleep) starts at 945000000 ns, the target says 1000000000 ns: 55.0 ms apart"]
    );
    assert!(verdict(&truths, &reported("7", 1045, 1345, "pay")).is_right());
}

/// Where the start was not seen, the end must still fit, and nothing may begin before the stall.
#[test]
fn unknown_starts_are_lower_bounds() {
    let truths = [truth("sleep", 1000, 5000)];
    let attached = |start: u64, end: u64| {
        let so_far = |until: u64| {
            let mut line = stall("7", start * MS, (until - start) * MS, "pay");
            line.stall.start_known = false;
            line
        };
        let lines = [
            arrived(2150 * MS, Report::StallOpen(so_far(2110))),
            arrived((end + 1) * MS, Report::StallEnd(so_far(end))),
        ];
        let seen =
            Observation { truths: &truths, lines: &lines, from_ns: 2000 * MS, until_ns: 9000 * MS };
        compare(seen, BOUNDS)
    };
    assert!(attached(2000, 5000).is_right(), "{}", attached(2000, 5000));
    assert_eq!(attached(2000, 4900).failures.len(), 1, "the end is known and wrong");
    assert_eq!(attached(900, 5000).failures.len(), 1, "it had not begun by then");
}

/// Where the end was not seen, less is right and more is wrong.
#[test]
fn unknown_ends_are_lower_bounds() {
    let truths = [truth("sleep", 1000, 5000)];
    let until = |end: u64| {
        let mut lines = reported("7", 1000, end, "pay");
        for arrived in &mut lines {
            if let Report::StallOpen(line) | Report::StallEnd(line) = &mut arrived.line {
                line.stall.end_known = false;
            }
        }
        verdict(&truths, &lines)
    };
    assert!(until(3000).is_right(), "{}", until(3000));
    assert_eq!(until(5100).failures.len(), 1);
}

/// Function, file and line must all be right; a record without a function asks for none.
#[test]
fn the_culprit_is_right() {
    let lines = reported("7", 1000, 1300, "pay");
    let blamed = |truth: Truth| sentences(&verdict(&[truth], &lines));
    let recorded = truth("sleep", 1000, 1300);
    assert_eq!(
        blamed(Truth { function: Some("ship".to_owned()), ..recorded.clone() }),
        ["stall 7 is blamed on pay (app.py:31), the target says ship (app.py:31)"]
    );
    assert_eq!(blamed(Truth { file: Some("b.py".to_owned()), ..recorded.clone() }).len(), 1);
    assert_eq!(blamed(Truth { line: Some(30), last_line: Some(30), ..recorded.clone() }).len(), 1);
    assert_eq!(blamed(Truth { line: Some(30), ..recorded.clone() }), [""; 0], "line 30 to 31");
    assert_eq!(blamed(Truth { function: None, ..recorded }), [""; 0]);
}

/// No culprit at all is not the right one.
#[test]
fn a_missing_culprit_is_wrong() {
    let mut line = stall("7", 1000 * MS, 150 * MS, "pay");
    line.culprit = None;
    let lines = [arrived(1151 * MS, Report::StallEnd(line))];
    let verdict = verdict(&[truth("sleep", 1000, 1150)], &lines);
    assert_eq!(
        sentences(&verdict),
        ["stall 7 is blamed on nothing, the target says pay (app.py:31)"]
    );
}

/// A long stall is spoken of while it lasts: at the latest 250 ms past the threshold.
#[test]
fn the_first_word_comes_soon() {
    let truths = [truth("sleep", 1000, 2000)];
    let opened_at = |at: Option<u64>| {
        let mut lines = reported("7", 1000, 2000, "pay");
        let open = lines.remove(0);
        lines.splice(0..0, at.map(|at| Arrived { at_ns: at * MS, ..open }));
        sentences(&verdict(&truths, &lines))
    };
    assert_eq!(opened_at(Some(1351)), [""; 0]);
    assert_eq!(
        opened_at(Some(1400)),
        ["stall 7 (sleep) was first reported 400.0 ms after its start, allowed 352.0 ms"]
    );
    assert_eq!(opened_at(None), ["stall 7 (sleep) was not reported while it lasted"]);
}

/// A stall of little more than twice the threshold must have been opened by its own end, or just after.
#[test]
fn the_first_word_comes_before_the_last() {
    let bounds = Bounds { threshold_ns: 40 * MS, noise_ns: 2 * MS };
    let truths = [truth("sleep", 1000, 1090)];
    let mut lines = reported("7", 1000, 1090, "pay");
    lines[0].at_ns = 1200 * MS;
    let seen = Observation { truths: &truths, lines: &lines, from_ns: 0, until_ns: 9000 * MS };
    let verdict = compare(seen, bounds);
    assert!(
        sentences(&verdict).contains(
            &"stall 7 (sleep) was first reported 200.0 ms after its start, allowed 192.0 ms"
                .to_owned()
        ),
        "{verdict}"
    );
}

/// Two records that fell into one turn are one stall; the longer one is to blame.
#[test]
fn records_of_one_turn_are_one_stall() {
    // ms   1000 ├ ship ┤ 1030 ├───── pay ─────┤ 1300
    //      1000 ├────────── report ───────────┤ 1300
    let ship = Truth { function: Some("ship".to_owned()), ..truth("short", 1000, 1030) };
    let verdict = verdict(&[ship, truth("sleep", 1031, 1300)], &reported("7", 1000, 1300, "pay"));
    assert!(verdict.is_right(), "{verdict}");
    assert_eq!(verdict.confirmed, 1);
}

/// The same time reported twice is wrong, even where each report by itself is right.
#[test]
fn a_thread_stalls_once_at_a_time() {
    let mut lines = reported("7", 1000, 1300, "pay");
    lines.extend(reported("8", 1001, 1300, "pay"));
    let verdict = verdict(&[truth("sleep", 1000, 1300)], &lines);
    assert_eq!(sentences(&verdict), ["stalls 7 and 8 of one thread overlap"]);
}

/// What the lines of one stall say against each other is part of the verdict.
#[test]
fn contradictions_are_told() {
    let mut lines = reported("7", 1000, 1300, "pay");
    lines.truncate(1);
    let verdict = verdict(&[truth("sleep", 1000, 1199)], &lines);
    assert_eq!(sentences(&verdict), ["stall 7: was never ended"]);
}
