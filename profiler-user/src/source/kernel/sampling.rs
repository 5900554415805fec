//! The sampling of running threads: at each CPU's clock, there only while a turn is suspected.

use std::collections::BTreeSet;

use anyhow::{Context, anyhow};
use aya::programs::perf_event::{
    PerfEvent, PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy, SoftwareEvent,
};
use aya::programs::tp_btf::BtfTracePointLinkId;
use aya::programs::{BtfTracePoint, Program};
use aya::{Btf, Ebpf};

use super::hooks::{HookOutcome, SampleHooks};
use super::load::{LoadTask, Refused};
use super::object::program;
use super::preflight;
use super::refusal::why;

/// Samples per second of CPU time. 99 Hz were measured to cost others 0.1 %, 999 Hz 1.7 %.
pub const FREQUENCY_HZ: u64 = 99;

/// The tracepoint at which a CPU's timers expire: its tick, too, which comes 100 to 1000 times a second
/// while the CPU is busy.
const TIMER: &str = "hrtimer_expire_entry";

/// The program for samples by perf events, and the one for those by timers.
const TICK: &str = "tick";
const TIMER_EXPIRES: &str = "timer_expires";

/// The samples, on or off.
#[derive(Debug)]
pub struct Sampler {
    hook: Hook,
}

/// What this kernel and these privileges allow, and what of it is on.
#[derive(Debug)]
enum Hook {
    /// A perf event on each CPU.
    PerfEvents(Vec<PerfEventLinkId>),
    /// The tracepoint of timers.
    Timer(Option<BtfTracePointLinkId>),
    /// Nothing, and why.
    Refused(String),
}

impl Sampler {
    /// The samples that can be taken, by what was refused as the programs for them were loaded.
    pub fn new(refused: &Refused, wanted: SampleHooks) -> (Self, HookOutcome) {
        let probe = |hook, reason| HookOutcome { name: "cpu-clock", hook, reason };
        let mut reason = None;
        if wanted != SampleHooks::Timer {
            match refused.get(TICK) {
                None => {
                    let ticks = Self { hook: Hook::PerfEvents(Vec::new()) };
                    return (ticks, probe(Some("perf-event"), None));
                }
                Some(error) => reason = Some(refusal(error)),
            }
        }
        if wanted != SampleHooks::PerfEvent {
            match refused.get(TIMER_EXPIRES) {
                None => {
                    let reason = reason
                        .map(|why| format!("{why}; samples are taken at the kernel's timer ticks"));
                    let ticks = Self { hook: Hook::Timer(None) };
                    return (ticks, probe(Some("timer-tick"), reason));
                }
                Some(error) => {
                    let before = reason.map(|why| why + "; ").unwrap_or_default();
                    reason = Some(format!("{before}{TIMER}: {}", why(error)));
                }
            }
        }
        let reason = reason.unwrap_or_default();
        let ticks = Self { hook: Hook::Refused(reason.clone()) };
        (ticks, probe(None, Some(reason)))
    }

    pub fn are_on(&self) -> bool {
        match &self.hook {
            Hook::PerfEvents(links) => !links.is_empty(),
            Hook::Timer(link) => link.is_some(),
            Hook::Refused(_) => false,
        }
    }

    pub fn switch_on(&mut self, ebpf: &mut Ebpf) -> anyhow::Result<()> {
        match &mut self.hook {
            Hook::PerfEvents(links) => {
                let program = perf_program(ebpf)?;
                for cpu in cpus()? {
                    links.push(open(program, cpu)?);
                }
            }
            Hook::Timer(link) => *link = Some(timer_program(ebpf)?.attach()?),
            Hook::Refused(why) => return Err(anyhow!("{why}")),
        }
        Ok(())
    }

    pub fn switch_off(&mut self, ebpf: &mut Ebpf) -> anyhow::Result<()> {
        match &mut self.hook {
            Hook::PerfEvents(links) => {
                let program = perf_program(ebpf)?;
                for link in links.drain(..) {
                    program.detach(link)?;
                }
            }
            Hook::Timer(link) => {
                if let Some(link) = link.take() {
                    timer_program(ebpf)?.detach(link)?;
                }
            }
            Hook::Refused(_) => {}
        }
        Ok(())
    }
}

/// What is loaded for the samples that are wanted. The kernel allows loading where it refuses the event: only opening
/// one shows.
pub fn tasks(btf: &Btf, wanted: SampleHooks) -> Vec<LoadTask<'_>> {
    let event = || LoadTask::new(TICK, |program: &mut Program| try_perf_event(program.try_into()?));
    let timer = || {
        LoadTask::new(TIMER_EXPIRES, |program: &mut Program| {
            let program: &mut BtfTracePoint = program.try_into()?;
            Ok(program.load(TIMER, btf)?)
        })
    };
    match wanted {
        SampleHooks::Best => vec![event().or([timer()])],
        SampleHooks::PerfEvent => vec![event()],
        SampleHooks::Timer => vec![timer()],
    }
}

/// Opens the event of one CPU, and closes it again.
fn try_perf_event(program: &mut PerfEvent) -> anyhow::Result<()> {
    program.load()?;
    let first = cpus()?.into_iter().next().context("no CPU is online")?;
    let link = open(program, first)?;
    Ok(program.detach(link)?)
}

/// Why perf events are refused, with what helps.
fn refusal(error: &anyhow::Error) -> String {
    let help = preflight::perf_event_help().map(|help| format!(": {help}")).unwrap_or_default();
    format!("perf events are refused ({}){help}", why(error))
}

fn open(program: &mut PerfEvent, cpu: u32) -> anyhow::Result<PerfEventLinkId> {
    Ok(program.attach(
        PerfEventConfig::Software(SoftwareEvent::CpuClock),
        PerfEventScope::AllProcessesOneCpu { cpu },
        SamplePolicy::Frequency(FREQUENCY_HZ),
        false,
    )?)
}

fn cpus() -> anyhow::Result<BTreeSet<u32>> {
    Ok(aya::util::online_cpus().map_err(|(_, error)| error)?.into_iter().collect())
}

fn perf_program(ebpf: &mut Ebpf) -> anyhow::Result<&mut PerfEvent> {
    Ok(program(ebpf, TICK)?.try_into()?)
}

fn timer_program(ebpf: &mut Ebpf) -> anyhow::Result<&mut BtfTracePoint> {
    Ok(program(ebpf, TIMER_EXPIRES)?.try_into()?)
}
