//! Loops that are one too many: which threads are not watched, said once of each.

use std::collections::BTreeSet;

use profiler_ebpf::limits::MAX_LOOPS;

use crate::process::arguments::printable;
use crate::process::other_process::thread_name;
use crate::source::EventSource;

/// Between two looks for them.
const LOOK_EVERY_NS: u64 = 1_000_000_000;

/// Of so many, the names are said. The others are counted.
const MAX_NAMED: usize = 16;

/// Who is not watched.
#[derive(Debug, Default)]
pub struct Slotless {
    told: BTreeSet<u32>,
    /// None before the first call: the first look waits, too, so that one sentence names all that were there.
    next_ns: Option<u64>,
}

impl Slotless {
    /// Says which threads of the process are not watched, now and then.
    pub fn tell(&mut self, source: &mut impl EventSource, pid: u32, now_ns: u64) {
        let due_ns = *self.next_ns.get_or_insert(now_ns + LOOK_EVERY_NS);
        if now_ns < due_ns {
            return;
        }
        self.next_ns = Some(now_ns + LOOK_EVERY_NS);
        let told = &mut self.told;
        let new: Vec<u32> = source.slotless().into_iter().filter(|tid| told.insert(*tid)).collect();
        let name = |tid: &u32| match thread_name(pid, *tid) {
            Some(name) => format!("{tid} ({})", printable(name.as_bytes())),
            None => tid.to_string(),
        };
        if !new.is_empty() {
            tracing::warn!("{}", sentence(new.iter().map(name)));
        }
    }
}

fn sentence(names: impl ExactSizeIterator<Item = String>) -> String {
    let all = names.len();
    let named: Vec<String> = names.take(MAX_NAMED).collect();
    let rest = all - named.len();
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    let threads = if all == 1 { "1 thread is" } else { &format!("{all} threads are") };
    format!(
        "{threads} not watched, as {MAX_LOOPS} event loops of a process are at most: {}{more}",
        named.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::sentence;

    /// Some are named, and all are counted.
    #[test]
    fn sentences() {
        let of = |count: u32| {
            sentence((1..=count).map(|tid| format!("{tid} (w)")).collect::<Vec<_>>().into_iter())
        };
        let most = "as 64 event loops of a process are at most";
        assert_eq!(of(1), format!("1 thread is not watched, {most}: 1 (w)"));
        assert_eq!(of(2), format!("2 threads are not watched, {most}: 1 (w), 2 (w)"));
        assert!(of(20).ends_with(", 16 (w) and 4 more"));
    }
}
