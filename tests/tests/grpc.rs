//! A loop that calls a gRPC server and waits for the answer: not at an epoll instance that says nothing, but for gRPC,
//! with the peer.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use profiler_tests::report::{CauseKind, Purpose, StallLine};
use profiler_tests::scenario::alone;
use profiler_tests::target::{folder, venv_python};
use profiler_tests::turns::{self, Watched};
use serde::Deserialize;

/// One call, in the target's own words.
#[derive(Debug, Deserialize)]
struct Called {
    kind: String,
    start_ns: u64,
    end_ns: u64,
    /// The server's.
    address: String,
    server: u32,
}

impl Called {
    fn check(&self, stall: &StallLine) -> Result<()> {
        let summary = &stall.cause.summary;
        let peer = format!("tcp {}", self.address);
        let culprit = stall.culprit.as_ref().and_then(|culprit| culprit.function.as_deref());
        ensure!(culprit == Some(&format!("Calls.{}", self.kind)), "{culprit:?} is to blame");
        if ["of_a_future", "beside_aio"].contains(&self.kind.as_str()) {
            let kind = stall.cause.kind.name();
            ensure!(kind == "lock", "another kind: {kind}");
            let start = "waiting for the answer to a gRPC call";
            ensure!(summary.starts_with(start), "{summary}");
            // A machine with other work may have no time to look at who ends the last of its waits.
            let is_told = !summary.contains("waiting for gRPC's") || summary.contains(&peer);
            ensure!(is_told, "{summary}");
            return Ok(());
        }
        let CauseKind::Syscall { call, .. } = &stall.cause.kind else {
            bail!("another kind: {}", stall.cause.kind.name());
        };
        ensure!(
            *summary == format!("waiting for gRPC's completion queue, peer {peer}"),
            "{summary}"
        );
        ensure!(call.purpose == Some(Purpose::CompletionQueue), "{call:?}");
        let server = call.connection.as_ref().and_then(|it| it.process.as_ref());
        ensure!(server.is_some_and(|it| it.pid == self.server), "{server:?}");
        Ok(())
    }
}

/// Each call that blocks the loop is told; the one that the loop itself waits for stalls nobody.
#[test]
fn calls() -> Result<()> {
    const KINDS: [&str; 5] = ["blocking", "with_deadline", "of_a_future", "healthy", "beside_aio"];
    let _machine = alone();
    let mut command = Command::new(venv_python()?);
    command.arg(folder().join("grpc_calls.py"));
    let watched: Watched<Called> = turns::watch(command, &[], "waited")?;
    let Watched { turns: calls, finished, .. } = watched;
    let kinds: Vec<_> = calls.iter().map(|call| call.kind.as_str()).collect();
    ensure!(kinds == KINDS, "{kinds:?}");
    for call in &calls {
        let stall = finished.stall_in(call.start_ns, call.end_ns);
        if call.kind == "healthy" {
            // A machine that keeps its CPUs from the loop does stall it.
            let stall = stall.filter(|stall| stall.cause.kind.name() != "run_queue");
            ensure!(stall.is_none(), "{stall:?}");
            continue;
        }
        let stall = stall.with_context(|| format!("{call:?} was missed"))?;
        println!("{}: {}", call.kind, stall.cause.summary);
        call.check(stall).with_context(|| format!("{}: {:?}", call.kind, stall.gaps))?;
    }
    Ok(())
}
