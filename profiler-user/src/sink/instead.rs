//! Who had the CPU while the loop was ready, to lines of a page.

use super::page::{Page, Style};
use crate::report::schema::stall::{Cause, CauseKind, Preemptor};

/// Processes told; the rest is counted.
const MOST: usize = 4;

/// Names are padded up to here.
const NAME_COLUMNS: usize = 28;

/// Writes them, where the stall or a part of it is that the thread had no CPU.
pub fn instead(page: &mut Page, cause: &Cause) {
    let mut kinds = std::iter::once(&cause.kind).chain(cause.also.iter().map(|part| &part.kind));
    let of_kind = |kind: &CauseKind| match kind {
        CauseKind::RunQueue { preempted_by, .. } => preempted_by.clone(),
        _ => None,
    };
    let Some(preemptors) = kinds.find_map(of_kind) else { return };
    let mut label = "instead";
    for preemptor in preemptors.iter().take(MOST) {
        let Preemptor { pid, name, command, time_ns, .. } = preemptor;
        let name = format!("{}[{pid}]", name.as_deref().unwrap_or("process "));
        let (whole_ms, tenths) = (time_ns / 1_000_000, time_ns / 100_000 % 10);
        let told = format!("{name:<NAME_COLUMNS$}{whole_ms:>8}.{tenths} ms");
        page.label(label).put(Style::Plain, &told);
        if let Some(command) = command {
            page.put(Style::Dim, &format!("  {command}"));
        }
        page.end_line();
        label = "";
    }
    if preemptors.len() > MOST {
        let told = format!("{} more of less time", preemptors.len() - MOST);
        page.label("").put(Style::Dim, &told).end_line();
    }
}

#[cfg(test)]
mod tests {
    use super::instead;
    use crate::report::schema::stall::{Cause, CauseKind, Component, Confidence, Preemptor};
    use crate::sink::page::{Colour, Page};

    fn preemptor(pid: u32, time_ns: u64) -> Preemptor {
        Preemptor {
            pid,
            tid: Some(pid),
            name: Some("hog".to_owned()),
            command: (pid == 7).then(|| "hog \x1b[2J".to_owned()),
            container_id: None,
            time_ns,
            is_target: false,
        }
    }

    /// The longest are told with their times, the rest is counted, and nobody's words command the
    /// terminal; also where that is not the largest part.
    #[test]
    fn the_longest_are_told() {
        let preemptors = (7..13).map(|pid| preemptor(pid, 12_345_678)).collect();
        let also = Component {
            kind: CauseKind::RunQueue {
                preempted_ns: 1,
                woken_ns: 0,
                idle_ns: 0,
                preempted_by: Some(preemptors),
                allowed_cpus: None,
                confined_to: None,
            },
            summary: String::new(),
            time_ns: 1,
            times: None,
            culprit: None,
        };
        let cause = Cause {
            kind: CauseKind::Unknown,
            summary: String::new(),
            confidence: Confidence::Likely,
            time_ns: 2,
            times: None,
            also: vec![also],
        };
        let mut page = Page::new(Colour::Off);
        instead(&mut page, &cause);
        let text = page.into_text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert!(lines[0].starts_with("  instead   hog[7] "), "{text}");
        assert!(lines[0].ends_with("12.3 ms  hog \\u{1b}[2J"), "{text}");
        assert!(lines[4].contains("2 more"), "{text}");

        let mut page = Page::new(Colour::Off);
        instead(&mut page, &Cause { also: Vec::new(), ..cause });
        assert_eq!(page.into_text(), "");
    }
}
