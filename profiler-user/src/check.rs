//! `check`: what this machine, these privileges and a target allow, and what to do about the rest.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::detected::Detected;
use crate::error::{Exit, Failure};
use crate::process::live::LiveMemory;
use crate::process::target::{Target, WaitDescriptors};
use crate::report::facts::RuntimeFacts;
use crate::runtime::{ruby, table};
use crate::source::kernel::preflight::{self, Requirement, RequirementState};
use crate::source::kernel::probed;

/// Prints one line a finding, each as soon as it is known; exits 3 where something is missing.
pub fn run(pid: Option<u32>) -> anyhow::Result<ExitCode> {
    let mut is_missing = show(&preflight::machine())?;
    if !is_missing {
        is_missing = show(&probed::machine())?;
    }
    if let Some(pid) = pid {
        match Target::open(pid) {
            Ok(target) => {
                show(&[is_there(&target)])?;
                show(&[event_loop(&target)])?;
                show(&[runtime(&target)])?;
            }
            Err(Failure { exit: Exit::Unsupported, message }) => {
                is_missing = true;
                show(&[Requirement { what: "target", state: RequirementState::Missing(message) }])?;
            }
            Err(failure) => return Err(failure.into()),
        }
    }
    Ok(if is_missing { ExitCode::from(Exit::Unsupported as u8) } else { ExitCode::SUCCESS })
}

/// Prints findings; whether something is missing.
fn show(checks: &[Requirement]) -> io::Result<bool> {
    print(checks)?;
    Ok(checks.iter().any(|check| matches!(check.state, RequirementState::Missing(_))))
}

fn is_there(target: &Target) -> Requirement {
    Requirement {
        what: "target",
        state: RequirementState::Fine(format!("{} ({})", target.pid(), target.name())),
    }
}

fn event_loop(target: &Target) -> Requirement {
    let regions = target.regions().unwrap_or_default();
    let found = target.wait_descriptors().map(|found| table::without_their_own(found, &regions));
    let state = match found {
        Ok(WaitDescriptors { epoll: true, .. }) => {
            RequirementState::Fine("has an epoll instance".to_owned())
        }
        Ok(WaitDescriptors { io_uring: true, .. }) => {
            RequirementState::Fine("has an io_uring".to_owned())
        }
        Ok(_) => RequirementState::Worse(
            "no epoll instance and no io_uring: it is watched only if its main thread polls"
                .to_owned(),
        ),
        Err(why) => {
            RequirementState::Worse(format!("not known, so that every wait is hooked: {why}"))
        }
    };
    Requirement { what: "event loop", state }
}

/// As `attach` finds it.
fn runtime(target: &Target) -> Requirement {
    let found = Detected::of(target, &LiveMemory::new(target.pid())).facts;
    let state = match (found.runtime, found.gap) {
        (Some(runtime), None) => {
            RequirementState::Fine(format!("{}: its frames are read", called(&runtime)))
        }
        (Some(runtime), Some(gap)) if runtime.name == ruby::NAME => {
            let told = "waits for its GVL are told, with the thread that has it";
            RequirementState::Worse(format!("{}: {told}; {gap}", called(&runtime)))
        }
        (Some(runtime), Some(gap)) => {
            RequirementState::Worse(format!("{}: {gap}", called(&runtime)))
        }
        (None, Some(gap)) => RequirementState::Worse(gap.to_string()),
        (None, None) => {
            RequirementState::Fine("neither CPython nor V8: native frames only".to_owned())
        }
    };
    Requirement { what: "runtime", state }
}

/// Its name as its makers write it, and its version.
fn called(RuntimeFacts { name, version }: &RuntimeFacts) -> String {
    let name = match name.as_str() {
        "cpython" => "CPython",
        "node" => "Node.js",
        "go" => "Go",
        ruby::NAME => "Ruby",
        // Its version says that it is V8's.
        "v8" => "",
        other => other,
    };
    let words = [name, version.as_deref().unwrap_or_default()];
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

fn print(checks: &[Requirement]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for check in checks {
        let (mark, text) = match &check.state {
            RequirementState::Fine(text) => ("ok", text),
            RequirementState::Worse(text) => ("worse", text),
            RequirementState::Missing(text) => ("MISSING", text),
        };
        writeln!(out, "{mark:<8}{:<20}{text}", check.what)?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::called;
    use crate::report::facts::RuntimeFacts;

    /// Names are their makers', and nothing is said twice.
    #[test]
    fn names_of_runtimes() {
        let text = |name: &str, version: Option<&str>| {
            called(&RuntimeFacts { name: name.to_owned(), version: version.map(str::to_owned) })
        };
        assert_eq!(text("cpython", Some("3.11.7")), "CPython 3.11.7");
        assert_eq!(text("v8", Some("V8 11.3.244.8")), "V8 11.3.244.8");
        assert_eq!(text("go", None), "Go");
    }
}
