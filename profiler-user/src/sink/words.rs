//! Times, counts and names in words as all rows of a page have them, and lists of rows.

use std::collections::BTreeMap;

use super::page::{Page, Style};
use crate::report::schema::line::ReportedRuntime;
use crate::report::schema::stall::LoopThread;
use crate::report::units;

/// ` (ingest)`: what its people call a thread, or else the kernel.
pub fn called(thread: &LoopThread) -> String {
    let given = thread.python_name.as_ref().filter(|_| !thread.is_main);
    given.or(thread.name.as_ref()).map(|name| format!(" ({name})")).unwrap_or_default()
}

/// `cpython 3.11.2`
pub fn version(runtime: &ReportedRuntime) -> String {
    match &runtime.version {
        Some(version) => format!("{} {version}", runtime.name),
        None => runtime.name.clone(),
    }
}

/// One line each, the label before the first.
pub fn list(page: &mut Page, label: &str, lines: &[String]) {
    let mut label = label;
    for line in lines.iter().filter(|line| !line.is_empty()) {
        page.label(label).put(Style::Plain, line).end_line();
        label = "";
    }
}

pub fn lost(page: &mut Page, lost: &BTreeMap<String, u64>) {
    let counts = lost.iter().filter(|(_, count)| **count > 0);
    let counts: Vec<String> = counts.map(|(reason, count)| format!("{reason} {count}")).collect();
    list(page, "lost", &[counts.join(", ")]);
}

/// `5000.000 ms`
pub fn milliseconds(ns: u64) -> String {
    let us = ns / 1000;
    format!("{}.{:03} ms", us / 1000, us % 1000)
}

/// `31 ms`, `5020 ms`, `42.0 s`: as exact as a person reads it.
pub fn rounded(ns: u64) -> String {
    const NS_PER_MS: u64 = 1_000_000;
    let ms = units::milliseconds(ns);
    match ns {
        0..NS_PER_MS => format!("{}.{} ms", ns / NS_PER_MS, ns / 100_000 % 10),
        _ if ms < 10_000 => format!("{ms} ms"),
        _ => format!("{}.{} s", ms / 1000, ms / 100 % 10),
    }
}

/// `1 sample`, `2 samples`
pub fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::rounded;

    /// Times have the digits that a person reads.
    #[test]
    fn times() {
        let table = [
            (0, "0.0 ms"),
            (420_000, "0.4 ms"),
            (1_500_000, "2 ms"),
            (5_012_345_678, "5012 ms"),
            (42_040_000_000, "42.0 s"),
        ];
        for (ns, expected) in table {
            assert_eq!(rounded(ns), expected);
        }
    }
}
