//! The table of probes: which hook each takes here, required or optional, attached or why not.

use anyhow::{Context, bail};
use aya::programs::{BtfTracePoint, FEntry, FExit, PerfEvent, Program, ProgramError, TracePoint};
use aya::{Btf, Ebpf};

use super::preflight;
use crate::error::Failure;

/// The hook that costs others nothing, as a report names it.
pub const FENTRY: &str = "fentry";

/// One hook of the kernel and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What is hooked: `sched_switch`, `epoll_wait`.
    pub name: &'static str,
    /// By what: `btf-tracepoint`, `fentry`, `tracepoint`, `perf-event`; none where it is not attached.
    pub hook: Option<&'static str>,
    /// Why not, or why not by the better hook.
    pub reason: Option<String>,
}

/// The syscalls that a loop may wait in.
struct Wait {
    syscall: &'static str,
    family: Family,
    /// Whether nothing works without it.
    required: bool,
}

#[derive(PartialEq, Eq)]
enum Family {
    Epoll,
    IoUring,
    Poll,
}

const WAITS: [Wait; 8] = [
    Wait { syscall: "epoll_wait", family: Family::Epoll, required: true },
    Wait { syscall: "epoll_pwait", family: Family::Epoll, required: true },
    // Since 5.11.
    Wait { syscall: "epoll_pwait2", family: Family::Epoll, required: false },
    Wait { syscall: "io_uring_enter", family: Family::IoUring, required: false },
    Wait { syscall: "poll", family: Family::Poll, required: true },
    Wait { syscall: "ppoll", family: Family::Poll, required: false },
    Wait { syscall: "select", family: Family::Poll, required: false },
    Wait { syscall: "pselect6", family: Family::Poll, required: false },
];

/// Which waits are hooked. Each hooked syscall costs whoever calls it, so only what the target may
/// wait in is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    pub poll: bool,
    pub io_uring: bool,
}

/// Whether the better hook is tried first, or one of the two is asked for (by tests and benchmarks).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WaitHooks {
    #[default]
    Best,
    Fentry,
    Tracepoint,
}

/// Attaches everything, the scheduler first: a turn whose switches were not all seen must not begin.
pub fn all(
    ebpf: &mut Ebpf,
    btf: &Btf,
    waits: Waits,
    hooks: WaitHooks,
) -> anyhow::Result<Vec<Probe>> {
    let mut probes = vec![
        scheduler(ebpf, btf, "sched_switch").map_err(refused)?,
        scheduler(ebpf, btf, "sched_wakeup").map_err(refused)?,
        tick(ebpf).map_err(refused)?,
        waking(ebpf, btf),
    ];
    for wait in &WAITS {
        let wanted = match wait.family {
            Family::Epoll => true,
            Family::IoUring => waits.io_uring,
            Family::Poll => waits.poll,
        };
        if wanted {
            let (fentry, tracepoint) = (
                |ebpf: &mut Ebpf| by_fentry(ebpf, btf, wait.syscall),
                |ebpf: &mut Ebpf| by_tracepoint(ebpf, wait.syscall),
            );
            let probe = by_best_hook(ebpf, wait.syscall, hooks, fentry, tracepoint);
            if probe.hook.is_none() && wait.required {
                let reason = probe.reason.unwrap_or_default();
                let message = format!("cannot hook {}: {reason}", wait.syscall);
                return Err(Failure::unsupported(message).into());
            }
            probes.push(probe);
        }
    }
    Ok(probes)
}

/// The system calls by which connections are accepted. Nothing else depends on them, so each is optional.
pub fn accepts(ebpf: &mut Ebpf, btf: &Btf, hooks: WaitHooks) -> [Probe; 2] {
    ["accept", "accept4"].map(|syscall| {
        let fentry = |ebpf: &mut Ebpf| {
            let program: &mut FExit = program(ebpf, &format!("leave_{syscall}"))?.try_into()?;
            program.load(&format!("__x64_sys_{syscall}"), btf)?;
            program.attach()?;
            Ok(())
        };
        let tracepoint = |ebpf: &mut Ebpf| on_tracepoint(ebpf, "accept_left", "sys_exit", syscall);
        by_best_hook(ebpf, syscall, hooks, fentry, tracepoint)
    })
}

fn refused(error: anyhow::Error) -> anyhow::Error {
    let message = format!("the kernel refuses the probes: {error:#}");
    Failure::unsupported(message).into()
}

fn scheduler(ebpf: &mut Ebpf, btf: &Btf, name: &'static str) -> anyhow::Result<Probe> {
    let program: &mut BtfTracePoint = program(ebpf, name)?.try_into()?;
    program.load(name, btf)?;
    program.attach()?;
    Ok(Probe { name, hook: Some("btf-tracepoint"), reason: None })
}

/// Loaded now, attached while a turn is suspected.
fn tick(ebpf: &mut Ebpf) -> anyhow::Result<Probe> {
    let program: &mut PerfEvent = program(ebpf, "tick")?.try_into()?;
    program.load()?;
    Ok(Probe { name: "cpu-clock", hook: Some("perf-event"), reason: None })
}

/// Loaded now, attached while a loop is suspected that waits on a futex.
fn waking(ebpf: &mut Ebpf, btf: &Btf) -> Probe {
    const NAME: &str = "sched_waking";
    let load = |ebpf: &mut Ebpf| -> anyhow::Result<()> {
        let program: &mut BtfTracePoint = program(ebpf, NAME)?.try_into()?;
        Ok(program.load(NAME, btf)?)
    };
    match load(ebpf) {
        Ok(()) => Probe { name: NAME, hook: Some("btf-tracepoint"), reason: None },
        Err(error) => Probe { name: NAME, hook: None, reason: Some(why(&error)) },
    }
}

/// fentry costs unrelated syscalls nothing; any syscall tracepoint puts every syscall of every
/// process on the kernel's slow path. So fentry wherever the kernel allows it.
fn by_best_hook(
    ebpf: &mut Ebpf,
    syscall: &'static str,
    hooks: WaitHooks,
    fentry: impl FnOnce(&mut Ebpf) -> anyhow::Result<()>,
    tracepoint: impl FnOnce(&mut Ebpf) -> anyhow::Result<()>,
) -> Probe {
    let mut reason = None;
    if hooks != WaitHooks::Tracepoint {
        match fentry(ebpf) {
            Ok(()) => return Probe { name: syscall, hook: Some(FENTRY), reason: None },
            Err(error) => reason = Some(format!("fentry: {}", why(&error))),
        }
    }
    if hooks != WaitHooks::Fentry {
        match tracepoint(ebpf) {
            Ok(()) => return Probe { name: syscall, hook: Some("tracepoint"), reason },
            Err(error) => {
                let before = reason.map(|reason| reason + "; ").unwrap_or_default();
                reason = Some(format!("{before}tracepoint: {}", why(&error)));
            }
        }
    }
    Probe { name: syscall, hook: None, reason }
}

/// The kernel's answer in a few words; a verifier's log only where it wrote one.
fn why(error: &anyhow::Error) -> String {
    match error.downcast_ref::<ProgramError>() {
        Some(ProgramError::LoadError { io_error, verifier_log })
            if verifier_log.to_string().trim().is_empty() =>
        {
            format!("the kernel refuses to load the program: {io_error}")
        }
        _ => format!("{error:#}"),
    }
}

fn by_fentry(ebpf: &mut Ebpf, btf: &Btf, syscall: &str) -> anyhow::Result<()> {
    let function = format!("__x64_sys_{syscall}");
    let enter: &mut FEntry = program(ebpf, &format!("enter_{syscall}"))?.try_into()?;
    enter.load(&function, btf)?;
    let entered = enter.attach()?;
    let leave: &mut FExit = program(ebpf, &format!("leave_{syscall}"))?.try_into()?;
    let left = leave.load(&function, btf).and_then(|()| leave.attach());
    if let Err(error) = left {
        // Half a pair would see waits begin and never end.
        let enter: &mut FEntry = program(ebpf, &format!("enter_{syscall}"))?.try_into()?;
        enter.detach(entered)?;
        return Err(error.into());
    }
    Ok(())
}

/// The entry first, as with fentry: a return that is missed meanwhile leaves the loop waiting, which
/// is harmless, where a missed entry would make one turn of two and the idleness between them.
fn by_tracepoint(ebpf: &mut Ebpf, syscall: &str) -> anyhow::Result<()> {
    let entered = if syscall == "io_uring_enter" { "ring_entered" } else { "wait_entered" };
    on_tracepoint(ebpf, entered, "sys_enter", syscall)?;
    on_tracepoint(ebpf, "wait_left", "sys_exit", syscall)
}

fn on_tracepoint(ebpf: &mut Ebpf, name: &str, event: &str, syscall: &str) -> anyhow::Result<()> {
    if preflight::tracefs_path().is_none() {
        bail!(
            "tracefs is not mounted, and without CAP_SYS_ADMIN stalltrace cannot mount it for itself: \
             mount -t tracefs tracefs /sys/kernel/tracing (or give it to the container)"
        );
    }
    let program: &mut TracePoint = program(ebpf, name)?.try_into()?;
    // One program serves all syscalls; the kernel takes it once.
    if program.fd().is_err() {
        program.load()?;
    }
    program.attach("syscalls", &format!("{event}_{syscall}"))?;
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Program> {
    ebpf.program_mut(name).with_context(|| format!("the probes have no program `{name}`"))
}
