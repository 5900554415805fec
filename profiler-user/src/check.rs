//! `check`: what this machine, these privileges and a target allow, and what to do about the rest.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::error::Exit;
use crate::process::live::{LiveMemory, open_region};
use crate::process::target::Target;
use crate::runtime::cpython::Python;
use crate::source::kernel::preflight::{self, Check, State};

/// Prints one line a finding; exits 3 where something is missing.
pub fn run(pid: Option<u32>) -> anyhow::Result<ExitCode> {
    let mut checks = preflight::machine();
    let lacking = checks.iter().any(|check| matches!(check.state, State::Missing(_)));
    if !lacking {
        checks.extend(crate::source::kernel::probe_machine());
    }
    if let Some(pid) = pid {
        checks.extend(target(pid)?);
    }
    print(&checks)?;
    let missing = checks.iter().any(|check| matches!(check.state, State::Missing(_)));
    Ok(if missing { ExitCode::from(Exit::Unsupported as u8) } else { ExitCode::SUCCESS })
}

fn target(pid: u32) -> anyhow::Result<Vec<Check>> {
    let target = Target::open(pid)?;
    let found = target.wait_descriptors();
    let event_loop = match (found.epoll, found.io_uring) {
        (true, _) => State::Fine("has an epoll instance".to_owned()),
        (false, true) => State::Fine("has an io_uring".to_owned()),
        (false, false) => State::Worse(
            "no epoll instance and no io_uring: it is watched only if its main thread polls"
                .to_owned(),
        ),
    };
    let memory = LiveMemory::new(pid);
    let python = Python::detect(&memory, &target.regions(), &|region| open_region(pid, region));
    let runtime = match python {
        Ok(Some(python)) => {
            State::Fine(format!("CPython {}: its frames are read", python.version()))
        }
        Ok(None) => State::Fine("no CPython: native frames only".to_owned()),
        Err(gap) => State::Worse(gap.to_string()),
    };
    Ok(vec![
        Check { what: "target", state: State::Fine(format!("{pid} ({})", target.name())) },
        Check { what: "event loop", state: event_loop },
        Check { what: "runtime", state: runtime },
    ])
}

fn print(checks: &[Check]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for check in checks {
        let (mark, text) = match &check.state {
            State::Fine(text) => ("ok", text),
            State::Worse(text) => ("worse", text),
            State::Missing(text) => ("MISSING", text),
        };
        writeln!(out, "{mark:<8}{:<20}{text}", check.what)?;
    }
    out.flush()
}
