//! Who had the CPU while the loop was ready, to lines of a page.

use super::page::{Page, Style};
use crate::report::schema::stall::{Cause, CauseKind, Preemptor};
use crate::sink::settings::Detail;

/// Processes told in brief, and with more detail; the rest is counted.
const MOST: [usize; 2] = [2, 8];

/// Names are padded up to here.
const NAME_COLUMNS: usize = 28;

/// Writes them, where the stall or a part of it is that the thread had no CPU.
pub fn instead(page: &mut Page, cause: &Cause, detail: Detail) {
    let mut kinds = std::iter::once(&cause.kind).chain(cause.also.iter().map(|part| &part.kind));
    let of_kind = |kind: &CauseKind| match kind {
        CauseKind::RunQueue { preempted_by, .. } => preempted_by.clone(),
        _ => None,
    };
    let Some(preemptors) = kinds.find_map(of_kind) else { return };
    let most = MOST[usize::from(detail != Detail::Brief)];
    let mut label = "instead";
    for preemptor in preemptors.iter().take(most) {
        let Preemptor { pid, name, command, time_ns, .. } = preemptor;
        let name = format!("{}[{pid}]", name.as_deref().unwrap_or("process "));
        let (whole_ms, tenths) = (time_ns / 1_000_000, time_ns / 100_000 % 10);
        let told = format!("{name:<NAME_COLUMNS$}{whole_ms:>8}.{tenths} ms");
        page.label(label).put(Style::Plain, &told);
        if let Some(command) = command {
            page.put(Style::Dim, &format!("  {command}"));
        }
        page.cut_line();
        label = "";
    }
    if preemptors.len() > most {
        let rest = preemptors.len() - most;
        let processes = if rest == 1 { "process" } else { "processes" };
        let told = format!("{rest} more {processes}, each for less");
        page.label("").put(Style::Dim, &told).end_line();
    }
}

#[cfg(test)]
mod tests {
    use super::instead;
    use crate::report::schema::stall::{
        Cause, CauseKind, Confidence, Preemptor, ReportedComponent,
    };
    use crate::sink::page::{Colour, Page};
    use crate::sink::settings::Detail;

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
        let also = ReportedComponent {
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
            waits: None,
            culprit: None,
        };
        let cause = Cause {
            kind: CauseKind::Unknown,
            summary: String::new(),
            confidence: Confidence::Likely,
            time_ns: 2,
            times: None,
            waits: None,
            because: Vec::new(),
            deadlock: false,
            also: vec![also],
        };
        let told = |cause: &Cause, detail| {
            let mut page = Page::new(Colour::Off, 80);
            instead(&mut page, cause, detail);
            page.into_text()
        };
        let text = told(&cause, Detail::Brief);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("  instead   hog[7] "), "{text}");
        assert!(lines[0].ends_with("12.3 ms  hog \\u{1b}[2J"), "{text}");
        assert!(lines[2].ends_with("4 more processes, each for less"), "{text}");
        assert_eq!(told(&cause, Detail::More).lines().count(), 6);
        assert_eq!(told(&Cause { also: Vec::new(), ..cause }, Detail::Brief), "");
    }
}
