//! nginx, haproxy and memcached as Debian builds them: stalled for real, named as far as their symbols
//! go, each of several loops by itself; and left in peace while they are healthy.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use profiler_tests::clock::monotonic_ns;
use profiler_tests::load::Traffic;
use profiler_tests::report::{StallExt as _, StallLine};
use profiler_tests::scenario::{Played, alone, observe, observe_process};
use profiler_tests::servers::{Connection, Memcached, Server, busy_path, record, timed};
use profiler_tests::target::{Target, send};

fn only_end(played: &Played) -> Result<&StallLine> {
    let ends = played.finished.ends().collect::<Vec<_>>();
    ensure!(ends.len() == 1, "{} stalls were reported", ends.len());
    ends.first().copied().context("no stall was reported")
}

/// A pattern that goes back and forth: the CPU goes into PCRE's library, on behalf of nginx's function.
#[test]
fn nginx_matches_a_pattern() -> Result<()> {
    let _machine = alone();
    let nginx = Server::nginx(false)?;
    let path = busy_path(nginx.port(), Duration::from_millis(300))?;
    let played = observe_process(&nginx.target, nginx.pid, || {
        Ok(vec![timed(nginx.port(), &path, "regex", "ngx_regex_exec")?])
    })?;
    played.must_be_right()?;
    let end = only_end(&played)?;
    ensure!(end.is_caused_by("cpu"), "{:?}", end.cause);
    ensure!(end.loop_runs("pcre2_match_8") && end.loop_runs("main"), "{end:#?}");
    Ok(())
}

/// The same in code that PCRE makes at run time. No table tells how to unwind that: the stack says so,
/// and nobody is blamed.
#[test]
fn nginx_matches_a_compiled_pattern() -> Result<()> {
    let _machine = alone();
    let nginx = Server::nginx(true)?;
    let path = busy_path(nginx.port(), Duration::from_millis(300))?;
    let played = observe_process(&nginx.target, nginx.pid, || {
        let mut truth = timed(nginx.port(), &path, "regex", "")?;
        truth.function = None;
        Ok(vec![truth])
    })?;
    played.must_be_right()?;
    let end = only_end(&played)?;
    ensure!(end.is_caused_by("cpu"), "{:?}", end.cause);
    let heaviest = end.stacks.first().context("no stack")?;
    ensure!(heaviest.truncated.is_some(), "{heaviest:#?}");
    ensure!(heaviest.frames.iter().all(|frame| frame.function.is_none()), "{heaviest:#?}");
    Ok(())
}

/// A script in a module waits for a child: the module, loaded on demand, is part of nginx.
#[test]
fn nginx_waits_for_a_child() -> Result<()> {
    let _machine = alone();
    let nginx = Server::nginx(false)?;
    let played = observe_process(&nginx.target, nginx.pid, || {
        Ok(vec![timed(nginx.port(), "/nap", "child", "ngx_http_lua_run_thread")?])
    })?;
    played.must_be_right()?;
    let end = only_end(&played)?;
    let waited = end.cause.summary.starts_with("waiting for child");
    ensure!(end.is_caused_by("syscall") && waited, "{:?}", end.cause);
    Ok(())
}

/// A worker that somebody has stopped serves nobody.
#[test]
fn nginx_is_stopped() -> Result<()> {
    let _machine = alone();
    let nginx = Server::nginx(false)?;
    let played = observe_process(&nginx.target, nginx.pid, || {
        std::thread::sleep(Duration::from_millis(100));
        let start_ns = monotonic_ns();
        send(nginx.pid, Signal::SIGSTOP)?;
        std::thread::sleep(Duration::from_millis(400));
        send(nginx.pid, Signal::SIGCONT)?;
        Ok(vec![record("stopped", start_ns, monotonic_ns())])
    })?;
    played.must_be_right()?;
    let end = only_end(&played)?;
    ensure!(end.is_caused_by("stopped"), "{:?}", end.cause);
    Ok(())
}

/// Both threads of haproxy wait for children at the same time: two loops, two stalls.
#[test]
fn haproxy_waits_in_two_threads() -> Result<()> {
    let _machine = alone();
    let haproxy = Server::haproxy()?;
    let played = observe(&haproxy.target, || {
        let asking: Vec<_> = haproxy
            .ports
            .iter()
            .map(|&port| {
                std::thread::spawn(move || timed(port, "/nap", "child", "hlua_applet_http_fct"))
            })
            .collect();
        let answered = asking.into_iter().map(|thread| match thread.join() {
            Ok(truth) => truth,
            Err(_) => anyhow::bail!("the thread that sends a request panicked"),
        });
        answered.collect()
    })?;
    played.must_be_right()?;
    let ends = played.finished.ends().collect::<Vec<_>>();
    let mut threads: Vec<u32> = ends.iter().map(|end| end.thread.tid).collect();
    threads.sort_unstable();
    threads.dedup();
    ensure!(threads.len() == 2, "stalls of {threads:?}");
    for end in ends {
        let culprit = end.culprit.as_ref().context("no culprit")?;
        ensure!(culprit.thread == end.thread.tid, "{culprit:?} of {:?}", end.thread);
        ensure!(end.cause.summary.starts_with("waiting for child"), "{:?}", end.cause);
        ensure!(end.loop_runs("run_poll_loop"), "{end:#?}");
    }
    Ok(())
}

/// memcached's workers block on a log that nobody reads. Debian's build has no symbol for any of its
/// functions: none is guessed, and the loop in libevent, which called them, is not blamed.
#[test]
fn memcached_blocks_on_its_log() -> Result<()> {
    let _machine = alone();
    let memcached = Memcached::start()?;
    let played = observe(&memcached.target, || memcached.choke(2, Duration::from_millis(800)))?;
    played.must_be_right()?;
    let ends = played.finished.ends().collect::<Vec<_>>();
    ensure!(ends.len() == 2, "{} stalls were reported", ends.len());
    ensure!(ends.iter().any(|end| end.cause.summary.contains("write on pipe")), "{ends:#?}");
    for end in ends {
        ensure!(end.thread.name.as_deref() == Some("mc-worker"), "{:?}", end.thread);
        ensure!(end.culprit.is_none(), "{:?}", end.culprit);
        let why = "no symbol covers /usr/bin/memcached+0x";
        ensure!(end.gaps.iter().any(|gap| gap.contains(why)), "{:?}", end.gaps);
        ensure!(end.loop_runs("event_base_loop"), "{end:#?}");
    }
    Ok(())
}

/// Servers at work and healthy: not a word.
#[test]
fn healthy_servers_are_left_in_peace() -> Result<()> {
    let _machine = alone();
    let quiet = |target: &Target, pid: u32, port: u16| -> Result<()> {
        let played = observe_process(target, pid, || {
            let traffic = Traffic::start(port, "/", Duration::from_millis(3), 16)?;
            std::thread::sleep(Duration::from_secs(2));
            ensure!(traffic.finish()?.len() > 100, "hardly any requests were answered");
            Ok(Vec::new())
        })?;
        played.must_be_right()?;
        ensure!(played.verdict.confirmed == 0, "{}", played.verdict);
        Ok(())
    };
    let nginx = Server::nginx(true)?;
    quiet(&nginx.target, nginx.pid, nginx.port())?;
    let haproxy = Server::haproxy()?;
    quiet(&haproxy.target, haproxy.pid, haproxy.port())?;
    let memcached = Memcached::start()?;
    let played = observe(&memcached.target, || {
        let mut connections = [
            Connection::open(memcached.port)?,
            Connection::open(memcached.port)?,
            Connection::open(memcached.port)?,
        ];
        for round in 0..3000 {
            connections[round % 3].get()?;
        }
        Ok(Vec::new())
    })?;
    played.must_be_right()?;
    ensure!(played.verdict.confirmed == 0, "{}", played.verdict);
    Ok(())
}
