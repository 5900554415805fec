//! Which processes share the target's listening sockets, and what they have accepted since the last line.

use std::collections::BTreeMap;
use std::thread::JoinHandle;

use profiler_ebpf::loop_counters::Accepts;

use crate::gap::Gap;
use crate::interval::Acceptor;
use crate::process::listeners::{Search, Sharer, Sharers};
use crate::source::EventSource;

/// Between two searches for processes: servers replace workers now and then.
const SEARCH_EVERY_S: u64 = 5;
const SEARCH_EVERY_NS: u64 = SEARCH_EVERY_S * 1_000_000_000;

/// A process whose accepts are counted.
#[derive(Debug)]
struct Counted {
    sharer: Sharer,
    told: Accepts,
}

/// Everybody whose accepts are counted.
#[derive(Debug)]
pub struct Acceptors {
    /// What cannot be counted at all.
    unseen: Vec<Gap>,
    /// By process.
    counted: BTreeMap<u32, Counted>,
    /// Those that are gone, for the next line.
    gone: Vec<Acceptor>,
    /// Of the last search.
    gaps: Vec<Gap>,
    /// Of processes that it found and others had not, for the next line.
    late: Vec<Gap>,
    /// At rest; a search that goes on has it.
    search: Option<Search>,
    searching: Option<JoinHandle<(Search, Sharers)>>,
    next_search_ns: u64,
}

impl Acceptors {
    pub fn new(pid: u32, unseen: Vec<Gap>) -> Self {
        Self {
            unseen,
            counted: BTreeMap::new(),
            gone: Vec::new(),
            gaps: Vec::new(),
            late: Vec::new(),
            search: Some(Search::new(pid)),
            searching: None,
            next_search_ns: 0,
        }
    }

    /// The first search: nothing is watched yet that could wait.
    pub fn search_at_once(&mut self, source: &mut impl EventSource, now_ns: u64) {
        self.next_search_ns = now_ns + SEARCH_EVERY_NS;
        if let Some(search) = &mut self.search {
            let found = search.run();
            self.found(source, found);
            // No line tells of what was before.
            self.late.clear();
        }
    }

    /// Searches now and then, in a thread of its own: reading the descriptors of many processes takes
    /// milliseconds, and the target may be frozen.
    pub fn search(&mut self, source: &mut impl EventSource, now_ns: u64) {
        if let Some(done) = self.searching.take_if(|searching| searching.is_finished()) {
            match done.join() {
                Ok((search, found)) => {
                    self.search = Some(search);
                    self.found(source, found);
                }
                Err(_) => self.gaps.push(Gap::new("accepts", "the search for processes failed")),
            }
        }
        if now_ns >= self.next_search_ns
            && let Some(mut search) = self.search.take()
        {
            self.next_search_ns = now_ns + SEARCH_EVERY_NS;
            self.searching = Some(std::thread::spawn(move || {
                let found = search.run();
                (search, found)
            }));
        }
    }

    fn found(&mut self, source: &mut impl EventSource, found: Sharers) {
        self.gaps = found.gaps;
        let is_there =
            |counted: &Counted| found.processes.iter().any(|found| found.is_same(&counted.sharer));
        for (pid, counted) in self.counted.extract_if(.., |_, counted| !is_there(counted)) {
            let last = source.stop_counting_accepts(pid);
            let accepts = since(last.unwrap_or(counted.told), counted.told);
            if accepts != Accepts::default() {
                self.gone.push(Acceptor { pid, name: counted.sharer.name, accepts });
            }
        }
        for sharer in found.processes {
            if let Some(counted) = self.counted.get_mut(&sharer.pid) {
                // Servers rename their workers once these have started.
                counted.sharer = sharer;
                continue;
            }
            let what = format!("accepts of process {}", sharer.pid);
            match source.count_accepts(sharer.pid) {
                Ok(()) => {
                    let why =
                        format!("counted since it was found, by a search every {SEARCH_EVERY_S} s");
                    self.late.push(Gap::new(&what, why));
                    let told = Accepts::default();
                    self.counted.insert(sharer.pid, Counted { sharer, told });
                }
                Err(error) => self.gaps.push(Gap::new(&what, format!("{error:#}"))),
            }
        }
    }

    /// What everybody has accepted since the last time.
    pub fn tell(&mut self, source: &mut impl EventSource, gaps: &mut Vec<Gap>) -> Vec<Acceptor> {
        let mut told = std::mem::take(&mut self.gone);
        for (pid, counted) in &mut self.counted {
            let now = source.accepts(*pid).unwrap_or(counted.told);
            let accepts = since(now, counted.told);
            counted.told = now;
            told.push(Acceptor { pid: *pid, name: counted.sharer.name.clone(), accepts });
        }
        if !told.is_empty() {
            gaps.extend(self.unseen.iter().cloned());
        }
        gaps.extend(self.gaps.iter().cloned());
        gaps.append(&mut self.late);
        told
    }
}

fn since(now: Accepts, told: Accepts) -> Accepts {
    Accepts {
        accepted: now.accepted.saturating_sub(told.accepted),
        would_block: now.would_block.saturating_sub(told.would_block),
        failed: now.failed.saturating_sub(told.failed),
    }
}
