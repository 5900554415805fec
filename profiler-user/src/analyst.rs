//! The session's jobs to reports in the sink: unwinds, names, gathers, and says what a stall was.
//!
//! Runs in a thread of its own. It may be slow (a first look at a large binary takes a tenth of a
//! second): the event path does not wait for it.

mod behind;
mod calls;
mod contenders;
mod missing;
mod other_threads;
mod programs;
mod stacks;
mod stalls;
mod statistics;
mod threads;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use profiler_ebpf::record::reason;

use self::calls::Caller;
use crate::config::Config;
use crate::frame::{Counts, Frame, Stack};
use crate::gap::Gap;
use crate::job::{Ending, Job, KernelStack, Losses, ParkVerdict, Successor};
use crate::process::arguments::Arguments;
use crate::process::executables::{interpreter, is_interpreters};
use crate::process::kernel_stack;
use crate::process::live::LiveMemory;
use crate::process::modules::Modules;
use crate::process::queues::waiting;
use crate::process::target::Target;
use crate::report::advice::Peers;
use crate::report::facts::{Context, RuntimeFacts, SessionFacts};
use crate::report::group::Tally;
use crate::report::{Finish, Report};
use crate::runtime::RuntimeIdentity;
use crate::runtime::collector::is_collecting;
use crate::runtime::frames::Frames;
use crate::runtime::park::{ParkState, is_untold};
use crate::runtime::table;
use crate::sink::{self, Sink};
use crate::source::Captured;
use crate::stall_builder::StallBuilder;
use crate::symbolize::kernel::KernelSymbols;
use crate::symbolize::native::NativeSymbolizer;
use crate::symbolize::perf_map::PerfMap;
use crate::turn::alike::Was;
use crate::turn::samples::Length;
use crate::turn::tracker::{Due, doing};
use crate::turn::{Awaited, Moment, ThreadState};
use crate::unwind::native::NativeUnwinder;

/// Everything past the event path.
#[allow(missing_debug_implementations, reason = "sinks have none")]
pub struct Analyst {
    target: Arc<Target>,
    memory: LiveMemory,
    modules: Modules,
    unwinder: NativeUnwinder,
    symbolizer: NativeSymbolizer,
    perf_map: PerfMap,
    /// Read when the first kernel stack is to be named.
    kernel: Option<Result<KernelSymbols, Gap>>,
    loops: BTreeMap<u32, StallBuilder>,
    verdicts: SyncSender<ParkVerdict>,
    facts: SessionFacts,
    config: Config,
    tally: Tally,
    /// Ends of stalls that were told since the last line of statistics, by thread.
    stalls: BTreeMap<u32, u64>,
    /// What their runtime calls threads that had to do with a stall.
    names: BTreeMap<u32, String>,
    peers: Peers,
    /// How the frames of all stacks so far were had.
    counts: Counts,
    sink: Box<dyn Sink + Send>,
}

impl Analyst {
    pub fn new(
        target: Arc<Target>,
        facts: SessionFacts,
        config: Config,
        verdicts: SyncSender<ParkVerdict>,
        sink: Box<dyn Sink + Send>,
    ) -> Self {
        let program = facts.process.exe.clone().filter(|exe| interpreter(exe).is_none());
        let mut symbolizer = NativeSymbolizer::of_process(target.pid(), program);
        if !config.output.shows_all() {
            // What an interpreter does inside is told by its functions.
            symbolizer = symbolizer.without_lines_of(is_interpreters);
        }
        let mut analyst = Self {
            memory: LiveMemory::new(target.pid()),
            symbolizer,
            perf_map: PerfMap::of(&target),
            target,
            modules: Modules::of_program(facts.process.exe.clone()),
            unwinder: NativeUnwinder::new(),
            kernel: None,
            loops: BTreeMap::new(),
            verdicts,
            facts,
            config,
            tally: Tally::default(),
            stalls: BTreeMap::new(),
            names: BTreeMap::new(),
            peers: Peers::default(),
            counts: Counts::default(),
            sink,
        };
        analyst.update_modules();
        analyst
    }

    /// Does one job. An error is the sink's.
    pub fn handle(&mut self, job: Job, now_ns: u64) -> std::io::Result<()> {
        match job {
            Job::Begin { start, warm_up } => {
                self.warm_up(&warm_up);
                self.sink.accept(&Report::session_start(&self.facts, now_ns, *start))
            }
            Job::Sample {
                captured,
                frames,
                kernel,
                awaited,
                arguments,
                is_replaced,
                is_served,
            } => {
                let (stack, mut park_state) = self.stack(&captured, &frames);
                // A lock, too, may be the one under which threads take turns.
                let may_rest = is_served || is_replaced && is_untold(&stack.frames);
                if park_state == ParkState::Unknown && may_rest {
                    park_state = ParkState::OffDuty;
                }
                self.sample(&captured, (stack, park_state), &kernel, (awaited, arguments.as_ref()));
                Ok(())
            }
            Job::Look { captured, frames } => {
                let (_, park_state) = self.stack(&captured, &frames);
                self.tell(&captured, park_state);
                Ok(())
            }
            Job::Named { tid, name } => {
                self.loops.entry(tid).or_default().named(name);
                Ok(())
            }
            Job::Show { captured, frames } => {
                self.show(&captured, &frames);
                Ok(())
            }
            Job::Holder { sight, tid, seen, weight_ns } => {
                self.holder(sight, tid, seen.as_deref(), weight_ns);
                Ok(())
            }
            Job::Other { sights, captured, frames } => {
                self.other(&sights, &captured, &frames);
                Ok(())
            }
            Job::Woken(woken) => {
                self.woken(&woken);
                Ok(())
            }
            Job::Called { tid, name } => {
                self.called(tid, name);
                Ok(())
            }
            Job::Others(seen) => {
                self.others_seen(*seen);
                Ok(())
            }
            Job::Bystanders { loop_tid, turn_start_ns, still, moving, gaps } => {
                self.bystanders(loop_tid, turn_start_ns, &still, &moving, gaps);
                Ok(())
            }
            Job::CountQueues { tid, turn_start_ns } => {
                let pid = self.target.pid();
                let builder = self.builder(tid, turn_start_ns);
                // A worker accepts nothing.
                if builder.pool.is_none() {
                    let (queues, gap) = waiting(pid);
                    builder.queued(queues);
                    builder.miss(gap);
                }
                Ok(())
            }
            Job::BlockEnded { captured } => {
                let head = &captured.head;
                let builder = self.builder(head.head.tid, head.turn_start_ns);
                builder.samples.block_ended(head.at_ns, Length::of(head));
                builder.block_over(head.at_ns, head.blocked_ns);
                Ok(())
            }
            Job::Report { tid, due, mut losses } => {
                losses.push(self.unwritten());
                self.report(tid, *due, &losses, now_ns)
            }
            Job::Statistics(mut interval) => {
                interval.losses.push(self.unwritten());
                self.statistics(&interval, now_ns)
            }
            Job::Program(program) => {
                self.facts.learn(*program);
                Ok(())
            }
            Job::GaveWay(ending) => self.finish(&ending, now_ns),
            Job::Successor(next) => {
                self.turn_to(*next);
                Ok(())
            }
        }
    }

    /// Does once what the first stall would otherwise wait for: reads unwind tables and symbols, a
    /// tenth of a second of work.
    fn warm_up(&mut self, captured: &[Captured]) {
        for captured in captured {
            let (stack, _) = self.stack(captured, &Frames::default());
            self.recognise(&stack.frames);
        }
    }

    /// Gives back memory that can be had again by reading files: names that were found are kept. On a healthy target
    /// none are asked for in days. Reading again takes 25 ms.
    pub fn rest(&mut self) {
        self.symbolizer.release();
    }

    /// From now on all is about another program, of which nothing is known yet.
    fn turn_to(&mut self, next: Successor) {
        let Successor { target, facts, verdicts } = next;
        let sink = std::mem::replace(&mut self.sink, Box::new(sink::Nowhere));
        // The kernel is the same.
        let kernel = self.kernel.take();
        *self = Self::new(target, facts, self.config.clone(), verdicts, sink);
        self.kernel = kernel;
    }

    /// Lines that were made for nobody.
    fn unwritten(&self) -> (&'static str, u64) {
        ("lines_unwritten", self.sink.dropped())
    }

    /// Writes the session's last line.
    pub fn finish(&mut self, ending: &Ending, now_ns: u64) -> std::io::Result<()> {
        let mut losses = ending.losses.clone();
        losses.push(("files_not_open", self.modules.closed()));
        losses.push(self.unwritten());
        let finish = Finish {
            reason: ending.reason,
            watched_ns: ending.watched_ns,
            turns: ending.turns,
            tally: &self.tally,
            frames: &self.counts,
            losses: &losses,
        };
        self.sink.accept(&Report::session_end(&self.facts, now_ns, &finish))
    }

    fn sample(
        &mut self,
        captured: &Captured,
        (mut stack, park_state): (Stack, ParkState),
        kernel: &KernelStack,
        (awaited, arguments): (Awaited, Option<&Arguments>),
    ) {
        self.tell(captured, park_state);
        if park_state.is_idle() {
            let head = &captured.head;
            self.builder(head.head.tid, head.turn_start_ns).idle_since(head.at_ns);
            return;
        }
        stack.kernel = match kernel {
            KernelStack::Text(Some(text)) => kernel_stack::frames(text),
            KernelStack::Text(None) => {
                let why = "/proc/PID/task/TID/stack cannot be read: it needs CAP_SYS_ADMIN";
                stack.gaps.push(Gap::new("kernel stack", why));
                Vec::new()
            }
            KernelStack::Captured => self.kernel_frames(&captured.kernel, &mut stack.gaps),
        };
        self.recognise(&stack.frames);
        let loop_kind = table::loop_kind(&stack.frames);
        let (head, pid) = (&captured.head, self.target.pid());
        let at_wall_ns = self.facts.anchor.wall_ns(head.at_ns);
        // Descriptors of another program are others. Of a process that has exited, what was read of the call is left.
        let is_tick = head.reason == reason::TICK;
        let is_there = !is_tick && (self.target.has_exited() || self.target.runs_same_program());
        let builder = self.builder(head.head.tid, head.turn_start_ns);
        builder.loop_kind = builder.loop_kind.or(loop_kind);
        if builder.is_idle_at(head.at_ns) {
            return;
        }
        if is_tick {
            if is_collecting(head, &stack) {
                builder.samples.collecting();
            }
            builder.samples.tick(head.at_ns, stack, tick_state(head.in_user), head.registers);
        } else {
            let registers = head.registers;
            let tid = head.head.tid;
            let caller = Caller { pid, tid, registers: &registers, at_wall_ns, stack: &stack };
            let call = is_there.then(|| caller.look(arguments, &mut builder.known)).flatten();
            let (state, task_state) = (doing(head.state), head.task_state);
            let awaited = table::awaited(awaited, &stack.frames);
            let was = Was { state, registers, awaited, task_state, call };
            builder.samples.block(head.at_ns, Length::of(head), stack, was);
            if head.blocked_ns > 0 {
                builder.block_over(head.at_ns, head.blocked_ns);
            }
        }
    }

    /// The captures of this turn; those of an earlier one are let go.
    fn builder(&mut self, tid: u32, turn_start_ns: u64) -> &mut StallBuilder {
        let builder = self.loops.entry(tid).or_default();
        builder.keep_to(turn_start_ns);
        builder
    }

    /// A runtime that is known by its frames, unless one is known already.
    fn recognise(&mut self, frames: &[Frame]) {
        if self.facts.runtime.is_none()
            && let Some(RuntimeIdentity { name, version }) = table::recognise(frames)
        {
            self.facts.runtime = Some(RuntimeFacts { name: name.to_owned(), version });
        }
    }

    /// Lets the session know where a thread parks. A full queue drops it: the next park tells as well.
    fn tell(&mut self, captured: &Captured, park_state: ParkState) {
        let builder = self.loops.entry(captured.head.head.tid).or_default();
        match park_state {
            ParkState::Parked(pool, _) | ParkState::Working(pool) => builder.pool = Some(pool),
            ParkState::OffDuty => {}
            ParkState::Looping { .. } => builder.pool = None,
            ParkState::Unknown => return,
        }
        let _ = self.verdicts.try_send(ParkVerdict { head: captured.head, park_state });
    }

    fn report(&mut self, tid: u32, due: Due, losses: &Losses, now_ns: u64) -> std::io::Result<()> {
        let moment = due.moment;
        let threshold_ns = self.config.threshold_ns;
        let due = self.builder(tid, due.turn.start_ns).within_turn(due, threshold_ns);
        let Some(due) = due.filter(|due| self.is_wanted(tid) && self.is_turn(tid, due)) else {
            return Ok(());
        };
        let is_work = due.is_work;
        let stall = self.stall(tid, due);
        let (mut thread, gaps) = self.thread_facts(tid);
        thread.is_worker |= is_work;
        let descriptors = self.loops.get(&tid).map(StallBuilder::descriptors).unwrap_or_default();
        let context = Context {
            session: &self.facts,
            now_ns,
            thread: &thread,
            threshold_ns: self.config.threshold_ns,
            error_threshold_ns: self.config.error_threshold_ns,
            descriptors: &descriptors,
            losses,
            peers: &self.peers,
            gaps: &gaps,
        };
        let report = Report::stall(moment, &stall, &context);
        if moment == Moment::End {
            self.tally.observe(&report);
            *self.stalls.entry(tid).or_default() += 1;
            self.peers.observe(&report);
            self.builder(tid, 0);
        }
        self.sink.accept(&report)
    }
}

/// What a tick found.
fn tick_state(in_user: u32) -> ThreadState {
    match in_user {
        1 => ThreadState::RunningUser,
        _ => ThreadState::RunningKernel,
    }
}
