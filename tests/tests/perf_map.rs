//! Code that a program makes at run time has the name that the program's own list gives it, and the last one.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use profiler_tests::clock::patience;
use profiler_tests::report::StallExt as _;
use profiler_tests::scenario::{alone, require_root};
use profiler_tests::target::{Scratch, Target, folder};
use profiler_tests::tracer::Tracer;

#[test]
fn made_code_is_named() -> Result<()> {
    require_root()?;
    let _machine = alone();
    let scratch = Scratch::new()?;
    let program = scratch.file("jit");
    let built = Command::new("gcc")
        .args(["-O1", "-o"])
        .args([&program, &folder().join("jit.c")])
        .status()?;
    ensure!(built.success(), "gcc: {built}");
    let target = Target::program(Command::new(&program))?;
    target.line_starting("ready", patience(60))?;
    let (tracer, _) = Tracer::attach(target.pid(), &[])?;
    target.signal(Signal::SIGUSR1)?;
    let finished = tracer.finish()?;
    let ends: Vec<_> = finished.ends().collect();
    for (name, other) in [
        ("Orders::total(int, long)", "Orders::discount(int)"),
        ("Orders::discount(int)", "Orders::total(int, long)"),
    ] {
        let end = ends.iter().find(|end| end.loop_runs(name));
        let end = end.with_context(|| format!("{name} is on no stack of {ends:#?}"))?;
        ensure!(end.loop_runs("serve") && end.loop_runs("main"), "{name}: {:?}", end.stacks);
        ensure!(!end.loop_runs(other), "{other} is on the stacks of {name}");
    }
    Ok(())
}
