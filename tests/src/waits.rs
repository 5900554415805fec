//! What a target's loops read from their clocks around each of their waits, held against the stalls that were reported:
//! which are right, invented, joined or missed.
//!
//! Between its two readings the kernel saw the wait begin and end, so a turn's true start and end are known within them.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::clock::milliseconds;
use crate::report::{StallExt as _, StallLine};

/// What the kernel's clock and the target's may differ by.
const APART_NS: u64 = 1_000;

/// Findings of a kind that are written out.
const SHOWN: usize = 6;

/// One wait: the clock and the thread's CPU time before it and after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    pub before_ns: u64,
    pub after_ns: u64,
    pub cpu_before_ns: u64,
    pub cpu_after_ns: u64,
}

/// All waits of one loop, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loop {
    pub tid: u32,
    pub waits: Vec<Wait>,
}

/// A stall as it was reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reported {
    pub tid: u32,
    pub start_ns: u64,
    pub end_ns: u64,
    /// Where not, it began before its start, or lasted past its end.
    pub start_known: bool,
    pub end_known: bool,
    pub running_ns: u64,
}

impl From<&StallLine> for Reported {
    fn from(line: &StallLine) -> Self {
        let stall = &line.stall;
        Self {
            tid: line.thread.tid,
            start_ns: stall.start_monotonic_ns,
            end_ns: line.end_ns(),
            start_known: stall.start_known,
            end_known: stall.end_known,
            running_ns: stall.time.running_user_ns.saturating_add(stall.time.running_kernel_ns),
        }
    }
}

/// The waits that a target wrote down.
pub fn read(path: &Path) -> Result<Vec<Loop>> {
    let bytes = std::fs::read(path).with_context(|| format!("no {}", path.display()))?;
    parse(&bytes).with_context(|| format!("{} is cut", path.display()))
}

fn parse(bytes: &[u8]) -> Option<Vec<Loop>> {
    let numbers: Vec<u64> = bytes
        .chunks(8)
        .map(|it| Some(u64::from_ne_bytes(it.try_into().ok()?)))
        .collect::<Option<_>>()?;
    let mut rest = &numbers[..];
    let mut loops = Vec::new();
    while let [tid, count, after @ ..] = rest {
        let (waits, others) =
            after.split_at_checked(usize::try_from(*count).ok()?.checked_mul(4)?)?;
        let waits = waits.chunks_exact(4).map(|it| Wait {
            before_ns: it[0],
            after_ns: it[1],
            cpu_before_ns: it[2],
            cpu_after_ns: it[3],
        });
        loops.push(Loop { tid: u32::try_from(*tid).ok()?, waits: waits.collect() });
        rest = others;
    }
    rest.is_empty().then_some(loops)
}

/// What the reports are, by the target's word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judged {
    /// Turns of the target, and those of them that are past the threshold.
    pub turns: usize,
    pub stalls: usize,
    /// Reports of one turn, from its start to its end.
    pub right: usize,
    /// Reports of a part of one turn that say so.
    pub partial: usize,
    /// Reports of turns that began before the first wait, or that no wait ended.
    pub outside: Vec<String>,
    /// Reports of what was no turn, or that make a stall of idleness for the most part.
    pub invented: Vec<String>,
    /// Reports of several turns as one, which together are long enough and most of it.
    pub joined: Vec<String>,
    /// Turns past the threshold that are in none of these.
    pub missed: Vec<String>,
    /// By how much each report's time on a CPU is more, or less, than the thread's own clock allows. That clock leaves
    /// out interrupts, which are long where an emulator is not let run in one.
    pub running_off_ns: Vec<i64>,
}

impl Judged {
    /// Reports and turns that were held against each other.
    pub fn compared(&self) -> usize {
        self.right + self.partial + self.invented.len() + self.joined.len() + self.missed.len()
    }
}

impl fmt::Display for Judged {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { turns, stalls, right, partial, .. } = self;
        write!(to, "{turns} turns, {stalls} of them stalls: {right} right, {partial} in part, ")?;
        let kinds = [
            ("invented", &self.invented),
            ("joined", &self.joined),
            ("missed", &self.missed),
            ("outside", &self.outside),
        ];
        let counts = kinds.map(|(kind, all)| format!("{} {kind}", all.len()));
        write!(to, "{}", counts.join(", "))?;
        let off = || self.running_off_ns.iter().copied();
        let most = |ns: Option<i64>| milliseconds(ns.unwrap_or(0).unsigned_abs());
        write!(to, "; running time off in {}", off().filter(|ns| *ns != 0).count())?;
        let (less, more) = (off().min().map(|ns| ns.min(0)), off().max().map(|ns| ns.max(0)));
        write!(to, ", by {} less to {} more", most(less), most(more))?;
        for (kind, all) in kinds {
            for one in all.iter().take(SHOWN) {
                write!(to, "\n  {kind}: {one}")?;
            }
        }
        Ok(())
    }
}

/// Holds the reports against the loops that were watched from `from_ns` on.
pub fn judge(loops: &[Loop], reports: &[Reported], threshold_ns: u64, from_ns: u64) -> Judged {
    let mut judged = Judged::default();
    for report in reports.iter().filter(|report| loops.iter().all(|it| it.tid != report.tid)) {
        judged.invented.push(format!("{report:?}: its thread has no loop"));
    }
    for one in loops {
        let reports: Vec<_> = reports.iter().filter(|report| report.tid == one.tid).collect();
        // The turns that a report speaks of, by the wait before them.
        let mut told = vec![false; one.waits.len()];
        for report in &reports {
            judge_report(one, report, threshold_ns, &mut told, &mut judged);
        }
        for (turn, pair) in one.waits.windows(2).enumerate() {
            // A turn that began before the watching has no report that says so.
            if pair[0].before_ns < from_ns {
                continue;
            }
            judged.turns += 1;
            let length_ns = turn_ns(pair);
            if length_ns > threshold_ns {
                judged.stalls += 1;
                if !told[turn] {
                    let at_ns = pair[0].after_ns;
                    let length = milliseconds(length_ns);
                    judged.missed.push(format!("{length} of thread {} at {at_ns}", one.tid));
                }
            }
        }
    }
    judged
}

fn judge_report(
    one: &Loop,
    report: &Reported,
    threshold_ns: u64,
    told: &mut [bool],
    judged: &mut Judged,
) {
    let waits = &one.waits;
    // The last wait that began before the stall did, and the last that began before its end.
    let began_by = |moment_ns: u64| waits.partition_point(|wait| wait.before_ns <= moment_ns);
    let (first, last) = (began_by(report.start_ns), began_by(report.end_ns + APART_NS));
    if first == 0 || last == waits.len() && !ends_in(report, waits) {
        let length = milliseconds(report.end_ns.saturating_sub(report.start_ns));
        judged.outside.push(format!("{length} of thread {} at {}", one.tid, report.start_ns));
        return;
    }
    let (first, last) = (first - 1, last - 1);
    let starts_in_wait = report.start_ns <= waits[first].after_ns + APART_NS;
    let ends_in_wait = last > first && report.end_ns <= waits[last].after_ns + APART_NS;
    let start_fits = starts_in_wait || !report.start_known;
    let end_fits = ends_in_wait || !report.end_known;
    if start_fits && end_fits && last <= first + 1 {
        told[first] = true;
        if starts_in_wait && ends_in_wait && report.start_known && report.end_known {
            judged.right += 1;
            judged.running_off_ns.push(running_off_ns(&waits[first..=last], report.running_ns));
        } else {
            judged.partial += 1;
        }
        return;
    }
    let at_work_ns: u64 = waits[first..=last].windows(2).map(turn_ns).sum();
    let length_ns = report.end_ns.saturating_sub(report.start_ns);
    let words = format!(
        "{} of thread {}, {} turns of {} together, from {} to {}",
        milliseconds(length_ns),
        one.tid,
        last - first,
        milliseconds(at_work_ns),
        place(report.start_ns, &waits[first..]),
        place(report.end_ns, &waits[last..])
    );
    let is_idle = at_work_ns < threshold_ns.max(length_ns / 2);
    if start_fits && end_fits && !is_idle {
        told[first..last].fill(true);
        judged.joined.push(words);
    } else {
        judged.invented.push(words);
    }
}

/// Where a moment is, by the waits around it, the first of which had begun before it.
fn place(moment_ns: u64, waits: &[Wait]) -> String {
    let apart = |from_ns: u64, to_ns: u64| milliseconds(to_ns.saturating_sub(from_ns));
    let Some(wait) = waits.first() else { return "nowhere".to_owned() };
    if moment_ns <= wait.after_ns {
        let length = apart(wait.before_ns, wait.after_ns);
        return format!("{} into a wait of {length}", apart(wait.before_ns, moment_ns));
    }
    let after = apart(wait.after_ns, moment_ns);
    let next = waits.get(1).map(|next| apart(moment_ns, next.before_ns));
    format!("{after} after a wait, {} before the next", next.as_deref().unwrap_or("never"))
}

/// Whether a report's end is the last wait's.
fn ends_in(report: &Reported, waits: &[Wait]) -> bool {
    waits.last().is_some_and(|wait| report.end_ns <= wait.after_ns + APART_NS)
}

/// How long the turn between two waits was, at least.
fn turn_ns(pair: &[Wait]) -> u64 {
    pair[1].before_ns.saturating_sub(pair[0].after_ns)
}

/// How far a time on a CPU is from what the thread's clock said around the turn, at least and at most.
fn running_off_ns(waits: &[Wait], running_ns: u64) -> i64 {
    let [start, .., end] = waits else { return 0 };
    let least_ns = end.cpu_before_ns.saturating_sub(start.cpu_after_ns);
    let most_ns = end.cpu_after_ns.saturating_sub(start.cpu_before_ns);
    let allowed_ns = running_ns.clamp(least_ns.min(most_ns), most_ns);
    running_ns.cast_signed().saturating_sub(allowed_ns.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::{Judged, Loop, Reported, Wait, judge, parse};
    use crate::clock::MILLISECOND;

    const TID: u32 = 7;
    const THRESHOLD_NS: u64 = 20 * MILLISECOND;

    /// Waits of a millisecond, and turns of this many between them; the first wait begins at 0.
    fn target(turns_ms: &[u64]) -> Loop {
        let mut waits = Vec::new();
        let mut at_ns = 0;
        for turn_ms in turns_ms.iter().chain([&0]) {
            let (before_ns, after_ns) = (at_ns, at_ns + MILLISECOND);
            waits.push(Wait {
                before_ns,
                after_ns,
                cpu_before_ns: before_ns,
                cpu_after_ns: after_ns,
            });
            at_ns = after_ns + turn_ms * MILLISECOND;
        }
        Loop { tid: TID, waits }
    }

    /// A stall from one moment to another, in ms and half a millisecond: in the midst of the waits.
    fn report(start_ms: u64, end_ms: u64) -> Reported {
        let half = MILLISECOND / 2;
        let (start_ns, end_ns) = (start_ms * MILLISECOND + half, end_ms * MILLISECOND + half);
        let running_ns = end_ns - start_ns;
        Reported { tid: TID, start_ns, end_ns, start_known: true, end_known: true, running_ns }
    }

    fn judged(turns_ms: &[u64], reports: &[Reported]) -> Judged {
        judge(&[target(turns_ms)], reports, THRESHOLD_NS, 0)
    }

    /// How many are right, partial, outside, invented, joined, missed.
    fn counts(it: &Judged) -> [usize; 6] {
        let lists = [&it.outside, &it.invented, &it.joined, &it.missed].map(Vec::len);
        [it.right, it.partial, lists[0], lists[1], lists[2], lists[3]]
    }

    /// Turns of 5, 30 and 5 ms: the stall lies from 7 to 37.
    const ONE_STALL: [u64; 3] = [5, 30, 5];

    /// A report of the stall is right; without one it is missed; a short turn needs none.
    #[test]
    fn right_and_missed() {
        let right = judged(&ONE_STALL, &[report(6, 37)]);
        assert_eq!(counts(&right), [1, 0, 0, 0, 0, 0]);
        assert_eq!((right.turns, right.stalls, right.compared()), (3, 1, 1));
        let missed = judged(&ONE_STALL, &[]);
        assert_eq!(counts(&missed), [0, 0, 0, 0, 0, 1]);
        assert!(missed.missed[0].starts_with("30.0 ms of thread 7"), "{missed}");
    }

    /// A report that begins in a turn's midst, ends there, or is of another thread, is invented; the stall is missed.
    #[test]
    fn invented() {
        for wrong in [report(10, 37), report(6, 30), Reported { tid: 8, ..report(6, 37) }] {
            assert_eq!(counts(&judged(&ONE_STALL, &[wrong])), [0, 0, 0, 1, 0, 1], "{wrong:?}");
        }
    }

    /// A wait that was told as a turn's time: nothing in it was long enough.
    #[test]
    fn idleness_is_invented() {
        let mut idle = target(&[5, 5, 5]);
        // The second wait lasts 30 ms longer.
        for wait in &mut idle.waits[2..] {
            wait.before_ns += 30 * MILLISECOND;
            wait.after_ns += 30 * MILLISECOND;
        }
        idle.waits[1].after_ns += 30 * MILLISECOND;
        let judged = judge(&[idle], &[report(0, 42)], THRESHOLD_NS, 0);
        assert_eq!(counts(&judged), [0, 0, 0, 1, 0, 0]);
    }

    /// Several turns told as one, of which one or all together are long: the stall in it is not missed besides.
    #[test]
    fn joined() {
        assert_eq!(counts(&judged(&ONE_STALL, &[report(0, 37)])), [0, 0, 0, 0, 1, 0]);
        assert_eq!(counts(&judged(&[15, 15], &[report(0, 32)])), [0, 0, 0, 0, 1, 0]);
        assert_eq!(counts(&judged(&[5, 5], &[report(0, 12)])), [0, 0, 0, 1, 0, 0]);
    }

    /// A part of a turn is fine where the report says that it is one.
    #[test]
    fn partial() {
        let late = Reported { start_known: false, ..report(15, 37) };
        assert_eq!(counts(&judged(&ONE_STALL, &[late])), [0, 1, 0, 0, 0, 0]);
        let cut = Reported { end_known: false, ..report(6, 30) };
        assert_eq!(counts(&judged(&ONE_STALL, &[cut])), [0, 1, 0, 0, 0, 0]);
    }

    /// What ends after the last wait, or begins before the first, is not judged.
    #[test]
    fn outside() {
        assert_eq!(counts(&judged(&[5, 5], &[report(12, 50)])), [0, 0, 1, 0, 0, 0]);
        let mut late = target(&[30]);
        late.waits.remove(0);
        assert_eq!(counts(&judge(&[late], &[report(0, 31)], THRESHOLD_NS, 0)), [0, 0, 1, 0, 0, 0]);
    }

    /// A turn that was under way as the watching began is none that can be missed; a report of it is judged.
    #[test]
    fn watched_from_then_on() {
        let from = |reports: &[Reported]| {
            judge(&[target(&ONE_STALL)], reports, THRESHOLD_NS, 8 * MILLISECOND)
        };
        assert_eq!((counts(&from(&[])), from(&[]).stalls), ([0; 6], 0));
        let half = Reported { start_known: false, ..report(8, 37) };
        assert_eq!(counts(&from(&[half])), [0, 1, 0, 0, 0, 0]);
        let both = Reported { start_known: false, ..report(3, 37) };
        assert_eq!(counts(&from(&[both])), [0, 0, 0, 0, 1, 0]);
    }

    /// Time on a CPU is right within the readings around the turn, and off by what is past them.
    #[test]
    fn running_time() {
        let with =
            |running_ms: u64| Reported { running_ns: running_ms * MILLISECOND, ..report(6, 37) };
        let off =
            |running_ms| judged(&ONE_STALL, &[with(running_ms)]).running_off_ns[0] / 1_000_000;
        assert_eq!([29, 30, 32, 34].map(off), [-1, 0, 0, 2]);
    }

    /// The file of two loops, and one that is cut.
    #[test]
    fn file() {
        let numbers = [7, 1, 10, 20, 1, 2, 8, 0_u64];
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        let wait = Wait { before_ns: 10, after_ns: 20, cpu_before_ns: 1, cpu_after_ns: 2 };
        let expected = vec![Loop { tid: 7, waits: vec![wait] }, Loop { tid: 8, waits: vec![] }];
        assert_eq!(parse(&bytes), Some(expected));
        assert_eq!(parse(&bytes[..40]), None);
        assert_eq!(parse(&bytes[..63]), None);
    }
}
