//! C++ programs that block and compute in templates: their own functions are named, not what they instantiate.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use profiler_tests::report::{StallExt as _, file_of};
use profiler_tests::scenario::alone;
use profiler_tests::tally::Tally;
use profiler_tests::target::{Scratch, folder};
use profiler_tests::turns::{Watched, watch};
use serde::Deserialize;

/// One turn, in the target's own words.
#[derive(Debug, Deserialize)]
struct Turn {
    function: String,
    start_ns: u64,
    end_ns: u64,
}

/// With and without optimizing, and with nothing but symbols.
const BUILDS: [&[&str]; 4] = [&["-O0", "-g"], &["-O1", "-g"], &["-O2", "-g"], &["-O2"]];

/// The name without what it returns, and without its parameters.
fn is_of(told: &str, function: &str) -> bool {
    let begins = told.strip_prefix(function).or_else(|| {
        let (_, rest) = told.split_once(&format!(" {function}"))?;
        Some(rest)
    });
    begins.is_some_and(|rest| rest.is_empty() || rest.starts_with(['(', '<']))
}

#[test]
fn own_functions_are_named() -> Result<()> {
    let _machine = alone();
    let scratch = Scratch::new()?;
    for options in BUILDS {
        let name = options.concat();
        let mut tally = Tally::of(format!("templates/{name}"));
        let program = scratch.file(&format!("shop{name}"));
        let mut compiler = Command::new("g++");
        compiler.args(options).args(["-std=c++17", "-pthread", "-o"]);
        let built = compiler.args([&program, &folder().join("templates.cpp")]).status()?;
        ensure!(built.success(), "g++: {built}");
        let Watched { turns, finished, .. } =
            watch::<Turn>(Command::new(&program), &[], "stalled")?;
        ensure!(turns.len() == 3, "{} turns", turns.len());
        for turn in &turns {
            let stall = finished.stall_in(turn.start_ns, turn.end_ns);
            let stall = stall.with_context(|| format!("{turn:?} was missed, {name}"))?;
            let Some(culprit) = &stall.culprit else {
                ensure!(stall.is_starved(), "{name}: nobody is blamed: {:?}", stall.gaps);
                tally.passed_over(format!("{turn:?}: {}", stall.cause.summary));
                continue;
            };
            println!("{name}: {} at {:?}", stall.cause.summary, culprit.function);
            let told = culprit.function.as_deref().unwrap_or_default();
            ensure!(is_of(told, &turn.function), "{name}: {culprit:?} for {turn:?}");
            let file = options.contains(&"-g").then_some("templates.cpp");
            ensure!(file_of(culprit) == file, "{name}: {culprit:?}");
            tally.compared();
        }
        tally.must_be(1)?;
    }
    Ok(())
}
