//! A CPython that is newer than all that are known, or whose table of offsets is wrong: the sentence says so, and nobody is
//! blamed for what its code did.

use anyhow::{Context as _, Result, ensure};
use profiler_tests::interpreters::{Interpreter, all};
use profiler_tests::report::{Report, StallExt as _, StallLine};
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::tally::{Tally, skip};
use profiler_tests::tracer::Finished;
use profiler_tests::turns::run;

/// What its table of offsets begins with.
const COOKIE: &[u8] = b"xdebugpy";

/// `PY_VERSION_HEX` of a release that will not come: 3.99.1.
const UNKNOWN: [u8; 4] = [0xf0, 1, 99, 3];

/// The ends of stalls with their sentences.
fn ends(finished: &Finished) -> impl Iterator<Item = (&str, &StallLine)> {
    finished.lines.iter().filter_map(|arrived| match &arrived.line {
        Report::StallEnd(end) => Some((arrived.line.common().message.as_str(), &**end)),
        _ => None,
    })
}

/// Both of its stalls are told without a culprit, and with this reason.
fn says(interpreter: Interpreter, reason: &str) -> Result<()> {
    let mut tally = Tally::of(format!("unread_python/{}", interpreter.name));
    let (_, finished) = run(interpreter.run("versions.py")?, &[])?;
    for (message, end) in ends(&finished).filter(|(_, end)| !end.is_starved()) {
        ensure!(end.culprit.is_none(), "{:?} is blamed: {message}", end.culprit);
        ensure!(message.contains(reason), "{message}");
        let is_gap = |gap: &String| gap.starts_with("culprit: ") && gap.contains(reason);
        ensure!(end.gaps.iter().any(is_gap), "{:?}", end.gaps);
        tally.compared();
    }
    let (_, healthy) = run(interpreter.run_with("versions.py", &["--healthy"])?, &[])?;
    ensure!(healthy.own_ends().count() == 0, "stalls invented");
    interpreter.remove()?;
    tally.must_be(1)
}

/// The interpreter of this version that Debian built.
fn of_debian<'a>(all: &'a [Interpreter], version: &str) -> Option<&'a Interpreter> {
    let name = format!("{version} in a root of its own");
    all.iter().find(|interpreter| interpreter.name == name)
}

/// Its version is everywhere one that nobody knows.
#[test]
fn unknown_version() -> Result<()> {
    require_root()?;
    let _machine = alone();
    let all = all()?;
    let system = all.first().context("no Python")?;
    let mut command = system.run("version_word.py")?;
    let told = String::from_utf8(command.output()?.stdout)?;
    let version = told.trim().parse::<u32>().context("no version")?.to_le_bytes();
    let of_unknown = system.altered("python3.99", |bytes| {
        while let Some(at) = bytes.windows(4).position(|word| word == version) {
            bytes[at..at + 4].copy_from_slice(&UNKNOWN);
        }
    })?;
    says(of_unknown, "no Python frames: CPython 3.99 is not among the versions known")
}

/// Its table of offsets has numbers that cannot be, or such that lead to something else.
#[test]
fn wrong_offsets() -> Result<()> {
    require_root()?;
    let _machine = alone();
    let all = all()?;
    let Some(python) = of_debian(&all, "3.15") else {
        return skip("unread_python/wrong_offsets", "CPython 3.15 is not here");
    };
    let table =
        "no Python frames: word 43 of the interpreter's own table of offsets makes no sense";
    let (executable, owner) = (40, 43);
    for (name, word, value, reason) in [
        ("python3.15-impossible", owner, 2000_u64, table),
        ("python3.15-misleading", executable, 24, "its Python code could not be read"),
    ] {
        let altered = python.altered(name, |bytes| {
            let begins = |at: &usize| {
                let rest = bytes.get(at + COOKIE.len()..).unwrap_or_default();
                bytes[*at..].starts_with(COOKIE) && rest.get(2..4) == Some(&[15, 3])
            };
            let table = (0..bytes.len()).find(begins).unwrap_or(0);
            let at = table + COOKIE.len() + 8 * word;
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        })?;
        says(altered, reason).with_context(|| name)?;
    }
    Ok(())
}
