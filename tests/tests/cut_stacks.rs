//! Where no unwind table leads out of the C library, its callers are searched for on the stack: the program's own line is
//! named, and nothing is said of a healthy one.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use profiler_tests::report::{Confidence, Report};
use profiler_tests::scenario::{alone, observe, require_root};
use profiler_tests::target::{Scratch, Target, folder};

/// Enough for each of the three handlers to have stalled twice.
const WATCHED: Duration = Duration::from_secs(4);

/// Stalls that must have been compared with the target's own record.
const CONFIRMED: usize = 5;

/// One way to link a program: what its file is called, the compiler and its flags.
type Linked = (&'static str, &'static str, &'static [&'static str]);

const MUSL_STATIC: Linked = ("cut-musl-static", "musl-gcc", &["-static"]);
const MUSL_STRIPPED: Linked = ("cut-musl", "musl-gcc", &[]);
const MUSL_FRAME_POINTERS: Linked =
    ("cut-musl-fp", "musl-gcc", &["-static", "-fno-omit-frame-pointer"]);
const GLIBC_STATIC: Linked = ("cut-glibc-static", "gcc", &["-static"]);
const GLIBC_STATIC_PIE: Linked = ("cut-glibc-static-pie", "gcc", &["-static-pie"]);

fn built(scratch: &Scratch, (name, compiler, flags): Linked) -> Result<Command> {
    let program = scratch.file(name);
    let mut build = Command::new(compiler);
    build.args(["-O2", "-g"]).args(flags).arg("-o").args([&program, &folder().join("cut.c")]);
    let status = build.status().with_context(|| format!("no {compiler}: `cargo xtask setup`"))?;
    ensure!(status.success(), "{compiler}: {status}");
    Ok(Command::new(program))
}

/// All its stalls are told, each with the handler and the line that slept, and none for certain that had to be
/// searched for.
fn handlers_are_named(linked: Linked, is_searched: bool) -> Result<()> {
    require_root()?;
    let _machine = alone();
    let scratch = Scratch::new()?;
    let target = Target::of_ours(built(&scratch, linked)?)?;
    let played = observe(&target, || {
        std::thread::sleep(WATCHED);
        Ok(Vec::new())
    })?;
    played.must_be_right()?;
    ensure!(played.verdict.confirmed >= CONFIRMED, "{}", played.verdict);
    let ends = played.finished.lines.iter().filter_map(|arrived| match &arrived.line {
        Report::StallEnd(end) => Some(end),
        _ => None,
    });
    for end in ends.filter(|end| end.stall.start_known && end.stall.end_known) {
        let confidence = end.cause.confidence;
        let expected = if is_searched { Confidence::Likely } else { Confidence::Certain };
        ensure!(confidence == expected, "{confidence:?}: {:?}", end.stacks);
        let says_so = end.gaps.iter().any(|gap| gap.starts_with("native frames from "));
        ensure!(says_so == is_searched, "{:?}", end.gaps);
    }
    Ok(())
}

fn is_left_in_peace(linked: Linked) -> Result<()> {
    require_root()?;
    let _machine = alone();
    let scratch = Scratch::new()?;
    let mut command = built(&scratch, linked)?;
    command.arg("--healthy");
    let target = Target::of_ours(command)?;
    let played = observe(&target, || {
        std::thread::sleep(WATCHED);
        Ok(Vec::new())
    })?;
    played.must_be_right()
}

#[test]
fn musl_static() -> Result<()> {
    handlers_are_named(MUSL_STATIC, true)?;
    is_left_in_peace(MUSL_STATIC)
}

/// musl's own library exports its functions, and has no symbols of the others.
#[test]
fn musl_shared() -> Result<()> {
    handlers_are_named(MUSL_STRIPPED, true)?;
    is_left_in_peace(MUSL_STRIPPED)
}

/// The program's frame pointer, which musl leaves as it is, would lead past the handler.
#[test]
fn musl_below_frame_pointers() -> Result<()> {
    handlers_are_named(MUSL_FRAME_POINTERS, true)
}

/// glibc has tables, and its functions in the program's own file are none of the program's.
#[test]
fn glibc_static() -> Result<()> {
    handlers_are_named(GLIBC_STATIC, false)?;
    is_left_in_peace(GLIBC_STATIC)
}

#[test]
fn glibc_static_pie() -> Result<()> {
    handlers_are_named(GLIBC_STATIC_PIE, false)
}
