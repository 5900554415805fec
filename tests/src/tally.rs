//! What a test compared, passed over and left out, to lines for the summary of all tests; too little is a failure.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// Names the file in which the lines of all tests are collected.
pub const COLLECTED: &str = "STALLTRACE_TALLY";

/// What each kind of machine cannot run.
const CANNOT_RUN: &str = include_str!("../cannot-run.toml");

/// The rounds of one test.
#[derive(Debug)]
pub struct Tally {
    test: String,
    compared: usize,
}

impl Tally {
    pub fn of(test: impl Into<String>) -> Self {
        Self { test: test.into(), compared: 0 }
    }

    /// One more round was held against the truth.
    pub fn compared(&mut self) {
        self.compared += 1;
    }

    /// A round that says nothing here, as where the machine had no CPU for it.
    pub fn passed_over(&mut self, why: impl Display) {
        tell("passed over", &self.test, &why.to_string());
    }

    pub fn count(&self) -> usize {
        self.compared
    }

    /// The end of the test: a failure where fewer rounds were compared.
    pub fn must_be(self, least: usize) -> Result<()> {
        let Self { test, compared } = self;
        tell("compared", &test, &format!("{compared} of at least {least}"));
        enough(&test, compared, least)
    }
}

fn enough(test: &str, compared: usize, least: usize) -> Result<()> {
    ensure!(compared >= least, "{test}: only {compared} comparisons, {least} are needed");
    Ok(())
}

/// A test, or a part of one, that cannot run here. A failure where the tests decide about a change, unless it is listed
/// for this kind of machine.
pub fn skip(test: &str, why: impl Display) -> Result<()> {
    let why = why.to_string();
    tell("skipped", test, &why);
    if decides() { must_be_listed(test, &why, &listed(CANNOT_RUN)?) } else { Ok(()) }
}

fn must_be_listed(test: &str, why: &str, list: &[Entry]) -> Result<()> {
    let is_listed = list.iter().any(|it| it.test == test && it.machine.is_this());
    ensure!(
        is_listed,
        "{test} was skipped ({why}), and tests/cannot-run.toml does not list it for this machine"
    );
    Ok(())
}

fn decides() -> bool {
    std::env::var_os("CI").is_some_and(|ci| ci == "true")
}

/// For whoever reads this test's output, and for the summary. What cannot be collected is at least shown.
fn tell(what: &str, test: &str, words: &str) {
    let words = words.replace(['\n', '\t'], " ");
    println!("{what}: {test}: {words}");
    let Some(path) = std::env::var_os(COLLECTED) else { return };
    let opened = OpenOptions::new().create(true).append(true).open(path);
    // In one piece: a child may write at the same time.
    let line = format!("{what}\t{test}\t{words}\n");
    if let Err(error) = opened.and_then(|mut file| file.write_all(line.as_bytes())) {
        println!("not collected: {error}");
    }
}

#[derive(Debug, Deserialize)]
struct List {
    cannot_run: Vec<Entry>,
}

/// One line of the list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    test: String,
    machine: Machine,
    reason: String,
}

/// A property of a machine, which is looked up, not believed.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Machine {
    /// The controllers are in the first version of the hierarchy of control groups.
    CgroupV1,
    /// No CPython of every version was built here.
    NoPyenv,
    /// Not every CPython without the interpreter's lock was built: it takes long, and Debian's sources.
    NoFreeThreaded,
}

impl Machine {
    fn is_this(self) -> bool {
        match self {
            Self::CgroupV1 => !Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
            Self::NoPyenv => {
                let home = std::env::var_os("HOME").unwrap_or_default();
                !Path::new(&home).join(".pyenv/versions").exists()
            }
            Self::NoFreeThreaded => {
                let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
                let is_built = |minor| target.join(format!("python-3.{minor}t/complete")).exists();
                !(13..=15).all(is_built)
            }
        }
    }
}

fn listed(text: &str) -> Result<Vec<Entry>> {
    let list: List = toml::from_str(text).context("tests/cannot-run.toml is not readable")?;
    let unexplained = list.cannot_run.iter().find(|entry| entry.reason.trim().is_empty());
    ensure!(unexplained.is_none(), "no reason is given for {unexplained:?}");
    Ok(list.cannot_run)
}

#[cfg(test)]
mod tests {
    use super::{CANNOT_RUN, Entry, Machine, enough, listed, must_be_listed};

    /// Too few rounds fail, enough of them pass.
    #[test]
    fn rounds_are_counted() {
        assert!(enough("a", 1, 2).unwrap_err().to_string().contains("only 1 comparisons"));
        assert!(enough("a", 2, 2).is_ok());
    }

    /// The list that is checked in is readable, gives reasons, and names each thing once for a machine.
    #[test]
    fn the_list_is_in_order() {
        let list = listed(CANNOT_RUN).unwrap();
        let mut names: Vec<_> =
            list.iter().map(|entry| (&entry.test, format!("{:?}", entry.machine))).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        let entry = "[[cannot_run]]\ntest = \"a/b\"\nmachine = \"cgroup-v1\"\nreason = \" \"";
        assert!(listed(entry).is_err());
        assert!(listed(&entry.replace("\" \"", "\"why\"")).is_ok());
        assert!(listed(&entry.replace("cgroup-v1", "some")).is_err());
    }

    /// A skip passes by its own entry, on the machine that this names, and by no other.
    #[test]
    fn what_is_not_listed_fails() {
        for machine in [Machine::CgroupV1, Machine::NoPyenv] {
            let list = [Entry { test: "a".to_owned(), machine, reason: "why".to_owned() }];
            assert_eq!(must_be_listed("a", "why", &list).is_ok(), machine.is_this());
            assert!(must_be_listed("b", "why", &list).is_err());
        }
        assert!(must_be_listed("a", "why", &[]).is_err());
    }
}
