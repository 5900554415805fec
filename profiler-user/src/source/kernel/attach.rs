//! The table of probes: which hook each takes here, required or optional, loaded, then attached, or why not.

use anyhow::bail;
use aya::programs::trace_point::TracePointLinkId;
use aya::programs::{BtfTracePoint, FEntry, FExit, Iter, Program, TracePoint};
use aya::{Btf, Ebpf};

use super::hooks::{HookOutcome, HookedWaits, WaitHooks, WatchParameters};
use super::load::{LoadTask, Refused};
use super::object::program;
use super::preflight::{self, Tracefs};
use super::refusal::{self, why};
use super::sampling;
use crate::error::Failure;

/// The hook that costs others nothing, as a report names it.
pub const FENTRY: &str = "fentry";

/// The hook of the scheduler's tracepoints.
const SCHEDULER: &str = "btf-tracepoint";

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

/// The program that lists threads.
pub(super) const THREADS: &str = "threads";

/// A pool hands its first piece of work to a thread as that is born. Optional: without, it is the second that is
/// measured.
const BIRTHS: &str = "sched_process_fork";

/// Attached while a loop is suspected that waits on a futex.
const WAKING: &str = "sched_waking";

const SWITCH: &str = "sched_switch";
const WAKEUP: &str = "sched_wakeup";

/// Costs an `execve` of whatever process one comparison.
const EXEC: &str = "sched_process_exec";

/// The system calls that make epoll instances: one with the number of a loop's tells that this is closed. Optional:
/// mostly its file tells, too.
const INSTANCES: [&str; 2] = ["epoll_create", "epoll_create1"];

/// The system calls by which connections are accepted. Nothing else depends on them, so each is optional.
const ACCEPTS: [&str; 2] = ["accept", "accept4"];

/// Whatever is to be loaded, what takes the verifier longest first.
pub fn tasks<'a>(btf: &'a Btf, watch: &WatchParameters) -> Vec<LoadTask<'a>> {
    let mut tasks = vec![scheduler_task(btf, SWITCH)];
    tasks.extend(sampling::tasks(btf, watch.samples));
    tasks.push(scheduler_task(btf, WAKING));
    for wait in waits(watch.waits) {
        tasks.extend(wait_tasks(btf, watch.hooks, wait.syscall));
    }
    tasks.push(scheduler_task(btf, WAKEUP));
    tasks.push(scheduler_task(btf, EXEC));
    for syscall in INSTANCES {
        tasks.push(return_task(btf, watch.hooks, syscall, "instance_made"));
    }
    if watch.stats {
        for syscall in ACCEPTS {
            tasks.push(return_task(btf, watch.hooks, syscall, "accept_left"));
        }
    }
    if watch.workers {
        tasks.push(scheduler_task(btf, BIRTHS));
    }
    tasks.push(LoadTask::new(THREADS, |program: &mut Program| {
        let program: &mut Iter = program.try_into()?;
        Ok(program.load("task", btf)?)
    }));
    tasks
}

fn scheduler_task<'a>(btf: &'a Btf, tracepoint: &'static str) -> LoadTask<'a> {
    LoadTask::new(tracepoint, move |program: &mut Program| {
        let program: &mut BtfTracePoint = program.try_into()?;
        Ok(program.load(tracepoint, btf)?)
    })
}

fn wait_tasks<'a>(btf: &'a Btf, hooks: WaitHooks, syscall: &'static str) -> Vec<LoadTask<'a>> {
    let tracepoints = || [entered(syscall), "wait_left"].map(tracepoint_task);
    if hooks == WaitHooks::Tracepoint {
        return tracepoints().into();
    }
    let enter = LoadTask::new(format!("enter_{syscall}"), move |program: &mut Program| {
        let program: &mut FEntry = program.try_into()?;
        Ok(program.load(&function(syscall), btf)?)
    });
    let pair = [enter, leave_task(btf, syscall)];
    match hooks {
        WaitHooks::Fentry => pair.into(),
        _ => pair.into_iter().map(|task| task.or(tracepoints())).collect(),
    }
}

/// A system call of which the return alone is of interest; `fallback` is the program for its tracepoint.
fn return_task<'a>(
    btf: &'a Btf,
    hooks: WaitHooks,
    syscall: &'static str,
    fallback: &'static str,
) -> LoadTask<'a> {
    match hooks {
        WaitHooks::Tracepoint => tracepoint_task(fallback),
        WaitHooks::Fentry => leave_task(btf, syscall),
        WaitHooks::Best => leave_task(btf, syscall).or([tracepoint_task(fallback)]),
    }
}

fn leave_task<'a>(btf: &'a Btf, syscall: &'static str) -> LoadTask<'a> {
    LoadTask::new(format!("leave_{syscall}"), move |program: &mut Program| {
        let program: &mut FExit = program.try_into()?;
        Ok(program.load(&function(syscall), btf)?)
    })
}

/// One program serves all syscalls; the kernel takes it once.
fn tracepoint_task<'a>(name: &'static str) -> LoadTask<'a> {
    LoadTask::new(name, |program: &mut Program| {
        let program: &mut TracePoint = program.try_into()?;
        Ok(program.load()?)
    })
}

fn function(syscall: &str) -> String {
    format!("__x64_sys_{syscall}")
}

/// The program for the tracepoint at a wait's entry.
fn entered(syscall: &str) -> &'static str {
    if syscall == "io_uring_enter" { "ring_entered" } else { "wait_entered" }
}

fn waits(wanted: HookedWaits) -> impl Iterator<Item = &'static Wait> {
    WAITS.iter().filter(move |wait| match wait.family {
        Family::Epoll => true,
        Family::IoUring => wanted.io_uring,
        Family::Poll => wanted.poll,
    })
}

/// Loaded programs to their hooks.
#[allow(missing_debug_implementations, reason = "aya's programs have none")]
pub struct Hooks<'a> {
    pub ebpf: &'a mut Ebpf,
    pub refused: &'a Refused,
    pub wanted: WaitHooks,
}

impl Hooks<'_> {
    /// Attaches everything that was loaded. No thread has a slot yet: nothing is recorded before all is there.
    pub fn attach_all(&mut self, watch: &WatchParameters) -> Result<Vec<HookOutcome>, Failure> {
        let mut probes = vec![
            self.required(SWITCH)?,
            self.required(WAKEUP)?,
            self.required(EXEC)?,
            self.loaded_only(WAKING),
        ];
        probes.extend(INSTANCES.map(|syscall| self.at_return(syscall, "instance_made")));
        for wait in waits(watch.waits) {
            let probe = self.by_best_hook(wait.syscall, Self::by_fentry, Self::by_tracepoint);
            if probe.hook.is_none() && wait.required {
                return Err(self.no_wait(wait.syscall, &probe));
            }
            probes.push(probe);
        }
        if watch.workers {
            probes.push(self.optional(BIRTHS));
        }
        if watch.stats {
            probes.extend(ACCEPTS.map(|syscall| self.at_return(syscall, "accept_left")));
        }
        Ok(probes)
    }

    /// Why the program is not loaded, if it is not.
    fn loaded(&self, program: &str) -> anyhow::Result<()> {
        match self.refused.get(program) {
            Some(error) => bail!("{}", why(error)),
            None => Ok(()),
        }
    }

    fn required(&mut self, name: &'static str) -> Result<HookOutcome, Failure> {
        if let Some(error) = self.refused.get(name) {
            return Err(refusal::of_program(name, error));
        }
        self.on_scheduler(name).map_err(|error| refusal::of_program(name, &error))?;
        Ok(HookOutcome { name, hook: Some(SCHEDULER), reason: None })
    }

    fn optional(&mut self, name: &'static str) -> HookOutcome {
        match self.loaded(name).and_then(|()| self.on_scheduler(name)) {
            Ok(()) => HookOutcome { name, hook: Some(SCHEDULER), reason: None },
            Err(error) => HookOutcome { name, hook: None, reason: Some(why(&error)) },
        }
    }

    /// It is attached later.
    fn loaded_only(&self, name: &'static str) -> HookOutcome {
        let reason = self.refused.get(name).map(why);
        HookOutcome { name, hook: reason.is_none().then_some(SCHEDULER), reason }
    }

    fn on_scheduler(&mut self, name: &str) -> anyhow::Result<()> {
        let program: &mut BtfTracePoint = program(self.ebpf, name)?.try_into()?;
        program.attach()?;
        Ok(())
    }

    fn at_return(&mut self, syscall: &'static str, fallback: &'static str) -> HookOutcome {
        let fentry = |hooks: &mut Self, syscall| {
            let name = format!("leave_{syscall}");
            hooks.loaded(&name)?;
            let program: &mut FExit = program(hooks.ebpf, &name)?.try_into()?;
            program.attach()?;
            Ok(())
        };
        let tracepoint = |hooks: &mut Self, syscall| {
            hooks.on_tracepoint(fallback, "sys_exit", syscall).map(|_| ())
        };
        self.by_best_hook(syscall, fentry, tracepoint)
    }

    /// fentry costs unrelated syscalls nothing; any syscall tracepoint puts every syscall of every
    /// process on the kernel's slow path. So fentry wherever the kernel allows it.
    fn by_best_hook(
        &mut self,
        syscall: &'static str,
        fentry: impl FnOnce(&mut Self, &'static str) -> anyhow::Result<()>,
        tracepoint: impl FnOnce(&mut Self, &'static str) -> anyhow::Result<()>,
    ) -> HookOutcome {
        let mut reason = None;
        if self.wanted != WaitHooks::Tracepoint {
            match fentry(self, syscall) {
                Ok(()) => return HookOutcome { name: syscall, hook: Some(FENTRY), reason: None },
                Err(error) => reason = Some(format!("fentry: {}", why(&error))),
            }
        }
        if self.wanted != WaitHooks::Fentry {
            match tracepoint(self, syscall) {
                Ok(()) => return HookOutcome { name: syscall, hook: Some("tracepoint"), reason },
                Err(error) => {
                    let before = reason.map(|reason| reason + "; ").unwrap_or_default();
                    reason = Some(format!("{before}tracepoint: {}", why(&error)));
                }
            }
        }
        HookOutcome { name: syscall, hook: None, reason }
    }

    /// The return first: a wait that is entered between the two then has its return seen.
    fn by_fentry(&mut self, syscall: &'static str) -> anyhow::Result<()> {
        let (enter, leave) = (format!("enter_{syscall}"), format!("leave_{syscall}"));
        self.loaded(&enter)?;
        self.loaded(&leave)?;
        let program_left: &mut FExit = program(self.ebpf, &leave)?.try_into()?;
        let left = program_left.attach()?;
        let program_entered: &mut FEntry = program(self.ebpf, &enter)?.try_into()?;
        if let Err(error) = program_entered.attach() {
            // Half a pair would see waits end that never began.
            let program_left: &mut FExit = program(self.ebpf, &leave)?.try_into()?;
            program_left.detach(left)?;
            return Err(error.into());
        }
        Ok(())
    }

    fn by_tracepoint(&mut self, syscall: &'static str) -> anyhow::Result<()> {
        let left = self.on_tracepoint("wait_left", "sys_exit", syscall)?;
        if let Err(error) = self.on_tracepoint(entered(syscall), "sys_enter", syscall) {
            let program: &mut TracePoint = program(self.ebpf, "wait_left")?.try_into()?;
            program.detach(left)?;
            return Err(error);
        }
        Ok(())
    }

    fn on_tracepoint(
        &mut self,
        name: &str,
        event: &str,
        syscall: &str,
    ) -> anyhow::Result<TracePointLinkId> {
        match preflight::tracefs() {
            Tracefs::At(_) => {}
            missing => bail!("{missing}"),
        }
        self.loaded(name)?;
        let program: &mut TracePoint = program(self.ebpf, name)?.try_into()?;
        // Where fentry could be loaded and not attached.
        if program.fd().is_err() {
            program.load()?;
        }
        Ok(program.attach("syscalls", &format!("{event}_{syscall}"))?)
    }

    /// A wait without which no loop can be watched has no hook.
    fn no_wait(&self, syscall: &str, probe: &HookOutcome) -> Failure {
        let programs =
            [format!("leave_{syscall}"), "wait_left".to_owned(), entered(syscall).to_owned()];
        let log = programs.iter().find_map(|name| self.refused.get(name));
        let reason = probe.reason.as_deref().unwrap_or("not allowed");
        let is_event = reason.contains("perf_event_open");
        let help = preflight::perf_event_help().filter(|_| is_event);
        let help = help.map(|help| format!(": {help}")).unwrap_or_default();
        refusal::with_log(&format!("cannot hook {syscall}: {reason}{help}"), log)
    }
}
