//! The session's jobs to reports in the sink: unwinds, names, gathers, and says what a stall was.
//!
//! Runs in a thread of its own. It may be slow (a first look at a large binary takes a tenth of a
//! second): the event path does not wait for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use profiler_ebpf::python::PythonWalk;
use profiler_ebpf::record::{Registers, reason};

use crate::config::Config;
use crate::frame::{Frame, Language, Stack};
use crate::gap::Gap;
use crate::gathered::{Gathered, loop_kind};
use crate::job::{Job, KernelStack, Losses, PythonFrames, Verdict};
use crate::process::live::{LiveMemory, open_region};
use crate::process::modules::Modules;
use crate::process::target::Target;
use crate::report::facts::{Context, SessionFacts, ThreadFacts};
use crate::report::group::Tally;
use crate::report::schema::session::EndReason;
use crate::report::syscalls::{Operand, operand};
use crate::report::{Finish, Report};
use crate::runtime::cpython::{FrameKind, NamedFrame};
use crate::runtime::pool::{Pool, Posture, posture};
use crate::sink::Sink;
use crate::source::Captured;
use crate::symbolize::kernel::{KernelSymbols, parse_proc_stack};
use crate::symbolize::missing::missing;
use crate::symbolize::native::NativeSymbolizer;
use crate::turn::tracker::{Due, doing};
use crate::turn::{Awaited, Moment, Stall, ThreadState};
use crate::unwind::merge::{NamedNativeStack, PythonSpan, PythonStack, merge};
use crate::unwind::native::NativeUnwinder;

/// What the last line of a session needs.
#[derive(Debug)]
pub struct Ending {
    pub reason: EndReason,
    pub watched_ns: u64,
    pub turns: u64,
    pub losses: Losses,
}

/// Everything past the event path.
#[allow(missing_debug_implementations, reason = "sinks have none")]
pub struct Analyst {
    target: Arc<Target>,
    memory: LiveMemory,
    modules: Modules,
    unwinder: NativeUnwinder,
    symbolizer: NativeSymbolizer,
    /// Read when the first kernel stack is to be named.
    kernel: Option<Result<KernelSymbols, Gap>>,
    loops: BTreeMap<u32, Gathered>,
    verdicts: SyncSender<Verdict>,
    facts: SessionFacts,
    config: Config,
    tally: Tally,
    sink: Box<dyn Sink + Send>,
}

impl Analyst {
    pub fn new(
        target: Arc<Target>,
        facts: SessionFacts,
        config: Config,
        verdicts: SyncSender<Verdict>,
        sink: Box<dyn Sink + Send>,
    ) -> Self {
        let mut analyst = Self {
            memory: LiveMemory::new(target.pid()),
            target,
            modules: Modules::new(),
            unwinder: NativeUnwinder::new(),
            symbolizer: NativeSymbolizer::new(),
            kernel: None,
            loops: BTreeMap::new(),
            verdicts,
            facts,
            config,
            tally: Tally::default(),
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
            Job::Sample { captured, python, kernel, awaited } => {
                self.sample(&captured, &python, &kernel, awaited);
                Ok(())
            }
            Job::Look { captured, python } => {
                let (_, posture) = self.stack(&captured, &python);
                self.tell(&captured, posture);
                Ok(())
            }
            Job::Holder { loop_tid, turn_start_ns, tid, frames, walk } => {
                // Read from outside, so of the interpreter's frames alone.
                let stack = merge(NamedNativeStack::default(), python_stack(&frames, walk));
                let target = Arc::clone(&self.target);
                let holders = &mut self.gathered(loop_tid, turn_start_ns).holders;
                let holding = holders.entry(tid).or_default();
                holding.name = holding.name.take().or_else(|| target.thread_name(tid));
                holding.samples.tick(stack, ThreadState::RunningUser, Registers::default());
                Ok(())
            }
            Job::BlockEnded { captured } => {
                let gathered = self.gathered(captured.head.head.tid, captured.head.turn_start_ns);
                gathered.samples.block_ended(captured.head.at_ns, captured.head.blocked_ns);
                Ok(())
            }
            Job::Report { tid, due, losses } => self.report(tid, *due, &losses, now_ns),
        }
    }

    /// Does once what the first stall would otherwise wait for: reads unwind tables and symbols, a
    /// tenth of a second of work.
    fn warm_up(&mut self, captured: &[Captured]) {
        for captured in captured {
            self.stack(captured, &PythonFrames::NotPython);
        }
        // On a healthy target that may be all for days. Reading again takes 25 ms.
        self.rest();
    }

    /// Gives back memory that can be had again by reading files: names that were found are kept.
    pub fn rest(&mut self) {
        self.symbolizer.release();
    }

    /// Writes the session's last line.
    pub fn finish(&mut self, ending: &Ending, now_ns: u64) -> std::io::Result<()> {
        let finish = Finish {
            reason: ending.reason,
            watched_ns: ending.watched_ns,
            turns: ending.turns,
            tally: &self.tally,
            losses: &ending.losses,
        };
        self.sink.accept(&Report::session_end(&self.facts, now_ns, &finish))
    }

    fn sample(
        &mut self,
        captured: &Captured,
        python: &PythonFrames,
        kernel: &KernelStack,
        awaited: Awaited,
    ) {
        let (mut stack, posture) = self.stack(captured, python);
        self.tell(captured, posture);
        if posture.is_idle() {
            let head = &captured.head;
            self.gathered(head.head.tid, head.turn_start_ns).parked_ns = Some(head.at_ns);
            return;
        }
        stack.kernel = match kernel {
            KernelStack::Text(Some(text)) => parse_proc_stack(text),
            KernelStack::Text(None) => {
                let why = "/proc/PID/task/TID/stack cannot be read: it needs CAP_SYS_ADMIN";
                stack.gaps.push(Gap::new("kernel stack", why));
                Vec::new()
            }
            KernelStack::Captured => self.kernel_frames(&captured.kernel, &mut stack.gaps),
        };
        let loop_kind = loop_kind(&stack.frames);
        let (head, pid) = (&captured.head, self.target.pid());
        let gathered = self.gathered(head.head.tid, head.turn_start_ns);
        gathered.loop_kind = gathered.loop_kind.or(loop_kind);
        if head.reason == reason::TICK {
            let state = match head.in_user {
                1 => ThreadState::RunningUser,
                _ => ThreadState::RunningKernel,
            };
            gathered.samples.tick(stack, state, head.registers);
        } else {
            let blocked_ns = (head.blocked_ns > 0).then_some(head.blocked_ns);
            let registers = head.registers;
            if let Operand::Descriptor(fd) = operand(&registers) {
                gathered.describe(fd, pid);
            }
            gathered.samples.block(
                head.at_ns,
                blocked_ns,
                stack,
                doing(head.state),
                registers,
                awaited,
            );
        }
    }

    /// The captures of this turn; those of an earlier one are let go.
    fn gathered(&mut self, tid: u32, turn_start_ns: u64) -> &mut Gathered {
        let gathered = self.loops.entry(tid).or_default();
        gathered.keep_to(turn_start_ns);
        gathered
    }

    /// Lets the session know where a thread parks. A full queue drops it: the next park tells as well.
    fn tell(&mut self, captured: &Captured, posture: Posture) {
        let gathered = self.loops.entry(captured.head.head.tid).or_default();
        match posture {
            Posture::Parked(pool, _) | Posture::Working(pool) => gathered.pool = Some(pool),
            Posture::Looping { .. } => gathered.pool = None,
            Posture::Unknown => return,
        }
        let _ = self.verdicts.try_send(Verdict { head: captured.head, posture });
    }

    /// The stack, and what the thread is about if it sleeps on a futex.
    fn stack(&mut self, captured: &Captured, python: &PythonFrames) -> (Stack, Posture) {
        let registers = &captured.head.registers;
        let mut native = self.unwinder.unwind(&self.modules, registers, &captured.stack);
        // Code that nobody had mapped when we last looked: a library loaded since.
        if native.frames.iter().any(|frame| self.modules.find(frame.address).is_none())
            && self.update_modules()
        {
            native = self.unwinder.unwind(&self.modules, registers, &captured.stack);
        }
        let named = self.symbolizer.name_stack(&self.modules, &native);
        let missing = missing(&self.modules, &self.unwinder, &self.symbolizer, &native, &named);
        let posture = posture(registers, &native, &named, &captured.python, python);
        let mut stack = match python {
            PythonFrames::NotPython => merge(named, PythonStack::default()),
            PythonFrames::Missing(gap) => {
                let mut stack = merge(named, PythonStack::default());
                stack.gaps.push(gap.clone());
                stack
            }
            PythonFrames::Named { frames, walk } => {
                let mut stack = merge(named, python_stack(frames, *walk));
                stack.gaps.extend(frames.iter().filter_map(|frame| frame.gap.clone()));
                stack
            }
        };
        stack.gaps.extend(missing);
        (stack, posture)
    }

    /// False where the process is gone: what we know of it is all there will be.
    fn update_modules(&mut self) -> bool {
        let regions = self.target.regions();
        if regions.is_empty() {
            return false;
        }
        let pid = self.target.pid();
        self.modules.update(&regions, &|region| open_region(pid, region), &self.memory);
        true
    }

    fn kernel_frames(&mut self, addresses: &[u64], gaps: &mut Vec<Gap>) -> Vec<Frame> {
        if addresses.is_empty() {
            return Vec::new();
        }
        match self.kernel.get_or_insert_with(KernelSymbols::read) {
            Ok(symbols) => symbols.name(addresses),
            Err(gap) => {
                gaps.push(gap.clone());
                Vec::new()
            }
        }
    }

    fn report(&mut self, tid: u32, due: Due, losses: &Losses, now_ns: u64) -> std::io::Result<()> {
        let moment = due.moment;
        if self.gathered(tid, due.turn.start_ns).is_idle_at(due.at_ns) || !self.is_wanted(tid) {
            return Ok(());
        }
        let stall = self.stall(tid, due);
        let (thread, gaps) = self.thread_facts(tid);
        let descriptors = self.loops.get(&tid).map(Gathered::descriptors).unwrap_or_default();
        let context = Context {
            session: &self.facts,
            now_ns,
            thread: &thread,
            threshold_ns: self.config.threshold_ns,
            error_threshold_ns: self.config.error_threshold_ns,
            descriptors: &descriptors,
            losses,
            gaps: &gaps,
        };
        let report = Report::stall(moment, &stall, &context);
        if moment == Moment::End {
            self.tally.observe(&report);
            self.gathered(tid, 0);
        }
        self.sink.accept(&report)
    }

    fn stall(&mut self, tid: u32, due: Due) -> Stall {
        let gathered = self.gathered(tid, due.turn.start_ns);
        let (ticks_user, ticks_kernel) = gathered.samples.ticks();
        let mut gaps = due.gaps;
        if gathered.samples.dropped > 0 {
            let why = format!(
                "{} captures showed more different ones than are kept",
                gathered.samples.dropped
            );
            gaps.push(Gap::new("stacks", why));
        }
        let stacks = gathered.samples.stacks(due.turn.running_ns, due.at_ns);
        let holders = gathered.holders(&stacks);
        Stall {
            tid,
            turn: due.turn,
            end: due.end,
            now: due.now,
            ticks_user,
            ticks_kernel,
            stacks,
            holders,
            ready_events: due.ready_events,
            gaps,
        }
    }

    /// Work that a pool was handed may take its time, unless the user says otherwise.
    fn is_wanted(&self, tid: u32) -> bool {
        let pool = self.loops.get(&tid).and_then(|gathered| gathered.pool);
        self.config.watch_workers || pool != Some(Pool::Python)
    }

    fn thread_facts(&self, tid: u32) -> (ThreadFacts, Vec<Gap>) {
        let name = self.target.thread_name(tid);
        let mut gaps = Vec::new();
        if name.is_none() {
            gaps.push(Gap::new("thread.name", "the thread has exited"));
        }
        let gathered = self.loops.get(&tid);
        let kind = gathered.and_then(Gathered::kind).unwrap_or("epoll");
        let is_worker = gathered.is_some_and(|gathered| gathered.pool.is_some());
        let tid_in_container = self.target.tid_in_container(tid);
        (ThreadFacts { tid, tid_in_container, name, loop_kind: kind.to_owned(), is_worker }, gaps)
    }
}

/// The interpreter's frames in the pieces that one C-level call of the interpreter ran each.
fn python_stack(frames: &[NamedFrame], walk: PythonWalk) -> PythonStack {
    let mut spans = Vec::new();
    let mut span = PythonSpan { frames: Vec::new() };
    let mut begun = false;
    for named in frames {
        begun = true;
        if named.kind == FrameKind::Shown {
            span.frames.push(python_frame(named));
        }
        if named.ends_eval {
            spans.push(std::mem::replace(&mut span, PythonSpan { frames: Vec::new() }));
            begun = false;
        }
    }
    if begun {
        spans.push(span);
    }
    let truncated = match walk {
        PythonWalk::TooDeep => Some("the interpreter has more frames than are walked".to_owned()),
        PythonWalk::Unreadable => Some("a frame of the interpreter could not be read".to_owned()),
        _ => None,
    };
    PythonStack { spans, truncated }
}

fn python_frame(named: &NamedFrame) -> Frame {
    Frame {
        function: named.function.clone(),
        file: named.file.clone(),
        line: named.line,
        module: None,
        language: Language::Python,
        inlined: false,
        address: None,
        module_offset: None,
    }
}
