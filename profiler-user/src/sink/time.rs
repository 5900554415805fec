//! Where a stall's time went, as one bar with its legend; with more detail each part's exact time.

use super::page::{Page, Style};
use super::words::{milliseconds, rounded};
use crate::report::schema::stall::StallLine;
use crate::sink::settings::Detail;

/// A bar that stands for the whole stall.
const BAR_COLUMNS: u64 = 24;

/// Parts below this are left out of a brief report.
const LEAST_NS: u64 = 500_000;

/// A part of the time: what it is called, its length, and its sign in the bar.
type Part = (&'static str, u64, char);

/// Writes it.
pub fn time(page: &mut Page, line: &StallLine, detail: Detail) {
    let time = &line.stall.time;
    let parts = [
        ("running", time.running_user_ns, '█'),
        ("in the kernel", time.running_kernel_ns, '▓'),
        ("blocked", time.blocked_ns, '░'),
        ("ready, no CPU", time.runnable_ns, '▒'),
        ("stopped", time.stopped_ns, '·'),
    ];
    let whole_ns = line.stall.duration_ns;
    let had = parts.into_iter().filter(|(_, part_ns, _)| *part_ns > 0);
    match detail {
        Detail::Brief => brief(page, had.filter(|(_, ns, _)| *ns >= LEAST_NS).collect(), whole_ns),
        Detail::More | Detail::Everything => {
            let mut label = "time";
            for (name, part_ns, sign) in had {
                let figures = format!("{name:<16}{:>12}  ", milliseconds(part_ns));
                page.label(label).put(Style::Plain, &figures);
                page.put(Style::Dim, &bar(sign, part_ns, whole_ns)).end_line();
                label = "";
            }
        }
    }
}

/// The longest first; what of the legend has no room in the row of the bar goes below.
fn brief(page: &mut Page, mut parts: Vec<Part>, whole_ns: u64) {
    parts.sort_by_key(|(_, part_ns, _)| std::cmp::Reverse(*part_ns));
    if parts.is_empty() {
        return;
    }
    let bars: String =
        parts.iter().map(|(_, part_ns, sign)| bar(*sign, *part_ns, whole_ns)).collect();
    page.label("time").put(Style::Plain, &bars);
    let mut taken = bars.chars().count();
    for (name, part_ns, sign) in parts {
        let told = format!("  {sign} {name} {}", rounded(part_ns));
        let columns = told.chars().count();
        if taken + columns > page.room() {
            page.end_line();
            page.label("");
            taken = 0;
        }
        page.put(Style::Plain, if taken == 0 { told.trim_start() } else { &told });
        taken += columns;
    }
    page.end_line();
}

/// A part's share of the whole as a bar, rounded to the nearest column.
fn bar(sign: char, part_ns: u64, whole_ns: u64) -> String {
    let (part, whole) = (u128::from(part_ns), u128::from(whole_ns.max(1)));
    let columns = (part * u128::from(BAR_COLUMNS) + whole / 2) / whole;
    std::iter::repeat_n(sign, usize::try_from(columns).unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::{bar, time};
    use crate::report::schema::stall::{StallLine, Time};
    use crate::report::{Report, sample};
    use crate::sink::page::{Colour, Page};
    use crate::sink::settings::Detail;
    use crate::turn::Moment;

    /// A bar is as long as its share, for any numbers.
    #[test]
    fn bars() {
        let columns = |part_ns, whole_ns| bar('█', part_ns, whole_ns).chars().count();
        assert_eq!(columns(50, 100), 12);
        assert_eq!(columns(100, 100), 24);
        assert_eq!(columns(1, 100), 0);
        assert_eq!(columns(0, 0), 0);
        assert_eq!(columns(u64::MAX, u64::MAX), 24);
    }

    /// The longest part comes first, small ones are left out, and no row is longer than the page.
    #[test]
    fn one_bar() {
        const MS: u64 = 1_000_000;
        let mut line: Box<StallLine> = match sample::report(Moment::End, &sample::stall()) {
            Report::StallEnd(line) => line,
            other => panic!("{other:?}"),
        };
        let told = |line: &StallLine, detail| {
            let mut page = Page::new(Colour::Off, 80);
            time(&mut page, line, detail);
            page.into_text()
        };
        line.stall.duration_ns = 1000 * MS;
        line.stall.time = Time {
            running_user_ns: 250 * MS,
            blocked_ns: 749 * MS,
            stopped_ns: 1,
            ..Time::default()
        };
        let expected = format!(
            "  time      {}{}  ░ blocked 749 ms  █ running 250 ms\n",
            "░".repeat(18),
            "█".repeat(6)
        );
        assert_eq!(told(&line, Detail::Brief), expected);
        assert!(told(&line, Detail::More).contains("stopped             0.000 ms"));
        line.stall.time = Time {
            running_user_ns: 200 * MS,
            running_kernel_ns: 200 * MS,
            blocked_ns: 200 * MS,
            runnable_ns: 200 * MS,
            stopped_ns: 200 * MS,
        };
        let text = told(&line, Detail::Brief);
        assert!(text.lines().all(|row| row.chars().count() <= 80), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.lines().all(|row| row.ends_with(" ms")), "{text}");
    }
}
