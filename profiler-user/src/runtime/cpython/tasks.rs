//! A thread's stack to the asyncio task that runs on it: asked of asyncio itself, proved by the stack.
//!
//! asyncio writes down which task runs: to 3.13 in `asyncio.tasks._current_tasks`, a dictionary by
//! loop, from 3.14 on in the thread's state. By the time it is read the thread may have gone on, so
//! a task counts only if its own coroutine is one of the frames that were captured. That holds for
//! uvloop as well, whose tasks are asyncio's, and for tasks that are started eagerly.

use profiler_ebpf::python::{PythonFrame, PythonWalk};

use super::dict;
use super::layout::{CpythonLayout, Current, FrameOf, TaskLayout};
use super::modules::ModuleDict;
use super::names::{FrameKind, NamedFrame};
use super::object::{IS_INT, IS_TEXT, type_of};
use super::strings;
use crate::gap::Gap;
use crate::process::{TargetMemory, Unreadable};
use crate::task::{Running, Task};

/// An `int` of 3.12 and later: how many digits it has, and those, 30 bits each.
const INT_TAG: u64 = 16;
const INT_DIGITS: u64 = 24;
const DIGIT_BITS: u32 = 30;

/// Digits of a task's number, which is of 64 bits.
const MAX_DIGITS: u64 = 3;

/// Parameters of one function looked at.
const MAX_PARAMETERS: u32 = 16;

/// Current tasks looked at: there is one a loop, and a loop has a thread of its own.
pub const MAX_CURRENT: usize = 1024;

/// Where the tasks of a process are to be found.
#[derive(Debug)]
pub struct Tasks {
    table: ModuleDict,
}

impl Default for Tasks {
    fn default() -> Self {
        Self { table: ModuleDict::new("asyncio.tasks", "_current_tasks") }
    }
}

/// The frames of one capture.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    pub raw: &'a [PythonFrame],
    /// The same, in the same order.
    pub named: &'a [NamedFrame],
    pub walk: PythonWalk,
}

impl Tasks {
    /// What ran when these frames were captured. None where no coroutine did, as in a plain callback.
    pub fn running(
        &mut self,
        memory: &dyn TargetMemory,
        layout: &CpythonLayout,
        tstate: Option<u64>,
        seen: &Seen<'_>,
    ) -> Option<Running> {
        let &Seen { raw, named, walk } = seen;
        let inside = named.iter().position(runs_callbacks).unwrap_or(named.len());
        let named = named.get(..inside)?;
        let raw = raw.get(..inside)?;
        let of_coroutine = |pair: &(&PythonFrame, &NamedFrame)| pair.1.is_coroutine;
        let coroutines = raw.iter().zip(named).filter(of_coroutine).map(|(raw, _)| raw.frame);
        let coroutines: Vec<u64> = coroutines.collect();
        // Further out than the walk went there may be coroutines still.
        let is_cut = walk != PythonWalk::Complete && inside == seen.named.len();
        if coroutines.is_empty() && !is_cut {
            return None;
        }
        let task = match tstate {
            Some(tstate) => self.prove(memory, layout, tstate, raw, named),
            None => Err(no_task("the thread's interpreter state is not known")),
        };
        let cut = |_| no_task("the stack is cut before it shows whose coroutine it is");
        let task = if is_cut { task.map_err(cut) } else { task };
        Some(Running { coroutines, task })
    }

    fn prove(
        &mut self,
        memory: &dyn TargetMemory,
        layout: &CpythonLayout,
        tstate: u64,
        raw: &[PythonFrame],
        named: &[NamedFrame],
    ) -> Result<Task, Gap> {
        let current = match layout.tasks.current {
            Current::Thread(offset) => {
                let task = memory.read_u64(tstate.wrapping_add(offset.into())).map_err(no_task)?;
                if task == 0 { Vec::new() } else { vec![task] }
            }
            Current::Table => self.listed(memory, layout, tstate)?,
        };
        let how_many = current.len();
        for task in current {
            // Of a task that ended while it was read, nothing may be left.
            let Ok(found) = words_of(memory, &layout.tasks, task) else { continue };
            let Ok(frame) = frame_of(memory, layout.tasks.frame, found.coroutine) else { continue };
            let Some(at) = raw.iter().position(|seen| seen.frame == frame) else { continue };
            let name = name(memory, layout, found.name);
            if words_of(memory, &layout.tasks, task) != Ok(found) {
                continue;
            }
            let inner = named.get(..at).unwrap_or_default();
            let root = inner.iter().filter(|frame| frame.kind == FrameKind::Shown).count();
            let middleware = middleware(memory, layout, raw, named, root);
            return Ok(Task { name, frame, root, middleware });
        }
        let why = match how_many {
            0 => "asyncio knew of no current task by the time it was asked",
            _ => {
                "by the time it was asked, asyncio's current task was none whose coroutine is on the stack"
            }
        };
        Err(Gap::new("task", why))
    }

    /// The current tasks of all loops.
    fn listed(
        &mut self,
        memory: &dyn TargetMemory,
        layout: &CpythonLayout,
        tstate: u64,
    ) -> Result<Vec<u64>, Gap> {
        let table = self.table.locate(memory, layout, tstate).map_err(no_task)?;
        let table = table.ok_or_else(not_found)?;
        let pairs = dict::entries(memory, layout.dict, table).map_err(no_task)?;
        Ok(pairs.into_iter().map(|(_, task)| task).take(MAX_CURRENT).collect())
    }
}

/// Which of the shown frames up to the root are middleware. Other frameworks have frames of their own
/// between middleware and handlers. aiohttp has none: it gives each middleware what to call next, as
/// the argument `handler`.
fn middleware(
    memory: &dyn TargetMemory,
    layout: &CpythonLayout,
    raw: &[PythonFrame],
    named: &[NamedFrame],
    root: usize,
) -> Vec<usize> {
    let of_aiohttp = |frame: &NamedFrame| {
        frame.file.as_deref().is_some_and(|file| file.contains("/aiohttp/web_"))
    };
    if !named.iter().any(of_aiohttp) {
        return Vec::new();
    }
    let pairs = raw.iter().zip(named).filter(|(_, named)| named.kind == FrameKind::Shown);
    let inside = pairs.take(root + 1).enumerate();
    let takes_handler = |raw: &PythonFrame, named: &NamedFrame| {
        named.is_coroutine && has_parameter(memory, layout, raw.code, "handler") == Ok(true)
    };
    inside.filter(|(_, (raw, named))| takes_handler(raw, named)).map(|(at, _)| at).collect()
}

/// Whether a function has a parameter of that name.
fn has_parameter(
    memory: &dyn TargetMemory,
    layout: &CpythonLayout,
    code: u64,
    wanted: &str,
) -> Result<bool, Unreadable> {
    let count = code.wrapping_add(layout.tasks.code_parameters.into());
    let positional = memory.read_u32(count)?;
    let by_keyword = memory.read_u32(count.wrapping_add(8))?;
    let names = memory.read_u64(code.wrapping_add(layout.tasks.code_names.into()))?;
    for place in 0..positional.saturating_add(by_keyword).min(MAX_PARAMETERS) {
        let item = u64::from(layout.tuple_items) + 8 * u64::from(place);
        let name = memory.read_u64(names.wrapping_add(item))?;
        if dict::is_text(memory, &layout.text, name, wanted) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `Handle._run`: what lies further out called the loop, perhaps from another one's coroutine.
fn runs_callbacks(frame: &NamedFrame) -> bool {
    let (Some(function), Some(file)) = (&frame.function, &frame.file) else { return false };
    matches!(&**function, "Handle._run" | "_run") && file.ends_with("asyncio/events.py")
}

fn no_task(why: impl std::fmt::Display) -> Gap {
    Gap::new("task", why)
}

fn not_found() -> Gap {
    no_task("asyncio's table of current tasks was not found")
}

/// What is read of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Words {
    coroutine: u64,
    name: u64,
}

fn words_of(
    memory: &dyn TargetMemory,
    layout: &TaskLayout,
    task: u64,
) -> Result<Words, Unreadable> {
    let coroutine = task.wrapping_add(layout.task_coroutine.into());
    let name = coroutine.wrapping_add(size_of::<u64>() as u64);
    Ok(Words { coroutine: memory.read_u64(coroutine)?, name: memory.read_u64(name)? })
}

fn frame_of(memory: &dyn TargetMemory, frame: FrameOf, coroutine: u64) -> Result<u64, Unreadable> {
    match frame {
        FrameOf::Behind(offset) => memory.read_u64(coroutine.wrapping_add(offset.into())),
        FrameOf::Inside(offset) => Ok(coroutine.wrapping_add(offset.into())),
    }
}

/// A task's name: a text, or the number that `Task-N` will be made of.
fn name(memory: &dyn TargetMemory, layout: &CpythonLayout, object: u64) -> Result<String, Gap> {
    const WHAT: &str = "task.name";
    let unreadable = |error: Unreadable| Gap::new(WHAT, error);
    let (_, flags) = type_of(memory, layout, object).map_err(unreadable)?;
    if flags & IS_TEXT != 0 {
        return strings::read(memory, &layout.text, object, WHAT);
    }
    if layout.tasks.lazy_names && flags & IS_INT != 0 {
        let number = number(memory, layout, object).map_err(unreadable)?;
        let number = number.ok_or_else(|| Gap::new(WHAT, "its number makes no sense"))?;
        return Ok(format!("Task-{number}"));
    }
    Err(Gap::new(WHAT, "it is neither a text nor a number"))
}

/// A positive `int`. None where it is not one of 64 bits.
fn number(
    memory: &dyn TargetMemory,
    layout: &CpythonLayout,
    object: u64,
) -> Result<Option<u64>, Unreadable> {
    let tag = memory.read_u64(object.wrapping_add(layout.in_object(INT_TAG)))?;
    // The lowest bits are the sign, of which 0 is plus; the third is a flag.
    let (count, sign) = (tag >> 3, tag & 3);
    if !(1..=MAX_DIGITS).contains(&count) || sign != 0 {
        return Ok(None);
    }
    let mut number = 0_u128;
    for place in (0..count).rev() {
        let digit =
            memory.read_u32(object.wrapping_add(layout.in_object(INT_DIGITS + 4 * place)))?;
        number = number << DIGIT_BITS | u128::from(digit);
    }
    Ok(u64::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::python::{PythonFrame, PythonWalk};

    use super::{Current, FrameOf, Seen, Tasks};
    use crate::runtime::cpython::dict::tests::{put_dict, put_text};
    use crate::runtime::cpython::layout::CpythonLayout;
    use crate::runtime::cpython::modules::SEARCH_EVERY;
    use crate::runtime::cpython::names::{FrameKind, NamedFrame};
    use crate::runtime::cpython::object::{IS_DICT, IS_INT, IS_TEXT};
    use crate::runtime::cpython::offsets::of_minor;
    use crate::runtime::cpython::pages::CopiedPages;
    use crate::task::{Running, Task};

    const TSTATE: u64 = 0x1_0000;
    const INTERPRETER: u64 = 0x2_0000;
    const MODULES: u64 = 0x3_0000;
    const NAMES: u64 = 0x4_0000;
    const CURRENT: u64 = 0x5_0000;
    const MODULE: u64 = 0x6_0000;
    const TEXTS: u64 = 0x7_0000;
    const TYPES: u64 = 0x8_0000;
    const TASK: u64 = 0x9_0000;
    const COROUTINE: u64 = 0xa_0000;

    /// A process in which one task is current, and whose name is an object that a test puts there.
    struct Target {
        minor: u8,
        layout: CpythonLayout,
        pages: CopiedPages,
        walk: PythonWalk,
    }

    impl Target {
        fn new(minor: u8) -> Self {
            let layout = of_minor(minor).expect("known");
            let mut target =
                Self { minor, layout, pages: CopiedPages::default(), walk: PythonWalk::Complete };
            for (place, flags) in [(0, IS_TEXT), (1, IS_INT), (2, IS_DICT)] {
                target.pages.put_u64(TYPES + place * 0x1000 + 168, flags);
            }
            target.pages.put_u64(TSTATE + 16, INTERPRETER);
            match layout.tasks.current {
                Current::Thread(offset) => target.pages.put_u64(TSTATE + u64::from(offset), TASK),
                Current::Table => target.put_table(),
            }
            target.put_task(TASK, COROUTINE, "billing");
            target
        }

        fn put_table(&mut self) {
            let Self { pages, minor, layout, .. } = self;
            let form = layout.dict;
            pages.put_u64(INTERPRETER + u64::from(layout.modules), MODULES);
            let texts = ["sys", "asyncio.tasks", "all_tasks", "_current_tasks"];
            let [sys, tasks, other, current] = [0, 1, 2, 3].map(|at| TEXTS + at * 0x100);
            for (address, text) in [sys, tasks, other, current].into_iter().zip(texts) {
                put_text(pages, *minor, address, text);
            }
            put_dict(pages, form, 0, MODULES, &[(sys, 0xdead), (tasks, MODULE)]);
            pages.put_u64(MODULE + 16, NAMES);
            put_dict(pages, form, 0, NAMES, &[(other, 0xdead), (current, CURRENT)]);
            put_dict(pages, form, 0, CURRENT, &[(0x1111, 0xbad0_0000), (0x2222, TASK)]);
            pages.put_u64(CURRENT + 8, TYPES + 0x2000);
        }

        fn put_task(&mut self, task: u64, coroutine: u64, name: &str) {
            let at = task + u64::from(self.layout.tasks.task_coroutine);
            self.pages.put_u64(at, coroutine);
            self.pages.put_u64(at + 8, task + 0x800);
            put_text(&mut self.pages, self.minor, task + 0x800, name);
            self.pages.put_u64(task + 0x808, TYPES);
            if let FrameOf::Behind(offset) = self.layout.tasks.frame {
                self.pages.put_u64(coroutine + u64::from(offset), frame_of(self, coroutine));
            }
        }

        /// Which task ran on these frames: those whose names begin with `co_` are coroutines.
        fn running(&self, tasks: &mut Tasks, frames: &[(&str, u64)]) -> Option<Running> {
            let raw = |frame| PythonFrame { frame, ..PythonFrame::default() };
            let raw: Vec<_> = frames.iter().map(|(_, at)| raw(*at)).collect();
            let named: Vec<_> = frames.iter().map(|(name, _)| named(name)).collect();
            let seen = Seen { raw: &raw, named: &named, walk: self.walk };
            tasks.running(&self.pages, &self.layout, Some(TSTATE), &seen)
        }

        fn task(&self, frames: &[(&str, u64)]) -> Result<Task, String> {
            let running = self.running(&mut Tasks::default(), frames).expect("a coroutine runs");
            running.task.map_err(|gap| gap.0)
        }
    }

    /// Where the frame of a coroutine lies.
    fn frame_of(target: &Target, coroutine: u64) -> u64 {
        match target.layout.tasks.frame {
            FrameOf::Behind(_) => coroutine + 0x400,
            FrameOf::Inside(offset) => coroutine + u64::from(offset),
        }
    }

    fn named(name: &str) -> NamedFrame {
        let file = match name {
            "Handle._run" => "/usr/lib/python3.11/asyncio/events.py",
            "co__handle" => "/v/site-packages/aiohttp/web_app.py",
            _ => "/srv/app.py",
        };
        NamedFrame {
            address: 0,
            is_resumable: false,
            kind: if name == "shim" { FrameKind::CallBoundary } else { FrameKind::Shown },
            function: Some(name.into()),
            file: Some(file.into()),
            line: Some(1),
            first_line: Some(1),
            is_coroutine: name.starts_with("co_"),
            ends_eval: true,
            gap: None,
        }
    }

    /// In every version the task is found whose coroutine is on the stack, with its name, and where
    /// its coroutine is among the frames that are shown.
    #[test]
    fn every_version() {
        for minor in 8..=15 {
            let target = Target::new(minor);
            let root = frame_of(&target, COROUTINE);
            let frames =
                [("sleep", 1), ("co_inner", 2), ("shim", 3), ("co_root", root), ("Handle._run", 5)];
            let running = target.running(&mut Tasks::default(), &frames).expect("coroutines run");
            assert_eq!(running.coroutines, [2, root], "3.{minor}");
            let name = Ok("billing".to_owned());
            let expected = Task { name, frame: root, root: 2, middleware: Vec::new() };
            assert_eq!(running.task, Ok(expected), "3.{minor}");
        }
    }

    /// A loop that has gone on to another task proves nothing, nor does one that runs none.
    #[test]
    fn another_task() {
        for minor in [9, 12, 14] {
            let target = Target::new(minor);
            let gap = target.task(&[("co_root", 0x77), ("Handle._run", 5)]).expect_err("another's");
            assert!(gap.contains("none whose coroutine is on the stack"), "{gap}");
        }
        let mut target = Target::new(14);
        target.pages.put_u64(TSTATE + 872, 0);
        let gap = target.task(&[("co_root", 0x77)]).expect_err("none");
        assert!(gap.contains("no current task"), "{gap}");
    }

    /// A plain callback has no task, whatever coroutine called a loop further out.
    #[test]
    fn callbacks() {
        let target = Target::new(12);
        let outside = frame_of(&target, COROUTINE);
        let frames = [("retry", 1), ("Handle._run", 2), ("co_outside", outside)];
        assert_eq!(target.running(&mut Tasks::default(), &frames), None);
    }

    /// A walk that ended early may have missed the coroutine; it has not where it came to the loop.
    #[test]
    fn cut() {
        let mut target = Target::new(12);
        target.walk = PythonWalk::TooDeep;
        for frames in [&[("f", 1), ("co_inner", 2)][..], &[("f", 1)]] {
            let gap = target.task(frames).expect_err("its root is not there");
            assert!(gap.contains("the stack is cut"), "{gap}");
        }
        let callback = [("retry", 1), ("Handle._run", 2), ("f", 3)];
        assert_eq!(target.running(&mut Tasks::default(), &callback), None);
        assert!(target.task(&[("co_root", frame_of(&target, COROUTINE)), ("f", 2)]).is_ok());
    }

    /// A task that was started eagerly runs inside the coroutine that started it: it is the one that
    /// asyncio says, and not the outermost.
    #[test]
    fn eager() {
        let target = Target::new(12);
        let eager = frame_of(&target, COROUTINE);
        let frames = [("co_eager", eager), ("create_task", 2), ("co_creator", 3)];
        assert_eq!(target.task(&frames).map(|task| task.root), Ok(0));
    }

    /// Names that were never asked for are numbers from 3.12 on.
    #[test]
    fn numbered() {
        let numbers: [(u64, &[u32], Result<&str, &str>); 5] = [
            (1 << 3, &[7], Ok("Task-7")),
            (2 << 3, &[1, 2], Ok("Task-2147483649")),
            (3 << 3, &[0, 0, 16], Err("makes no sense")),
            (1 << 3 | 2, &[7], Err("makes no sense")),
            (4 << 3, &[1, 1, 1, 1], Err("makes no sense")),
        ];
        for (tag, digits, expected) in numbers {
            let mut target = Target::new(13);
            target.pages.put_u64(TASK + 0x808, TYPES + 0x1000);
            target.pages.put_u64(TASK + 0x810, tag);
            for (place, digit) in digits.iter().enumerate() {
                target.pages.put(TASK + 0x818 + 4 * place as u64, &digit.to_le_bytes());
            }
            let task = target.task(&[("co_root", frame_of(&target, COROUTINE))]).expect("proved");
            match expected {
                Ok(name) => assert_eq!(task.name.as_deref(), Ok(name)),
                Err(why) => assert!(task.name.expect_err("no number").0.contains(why)),
            }
        }
    }

    /// A name that is no name leaves the task without one, and a number is none before 3.12.
    #[test]
    fn nameless() {
        for (minor, kind) in [(11, 0x1000), (12, 0x2000)] {
            let mut target = Target::new(minor);
            target.pages.put_u64(TASK + 0x808, TYPES + kind);
            target.pages.put_u64(TASK + 0x810, 1 << 3);
            let task = target.task(&[("co_root", frame_of(&target, COROUTINE))]).expect("proved");
            assert!(task.name.is_err_and(|gap| gap.0.starts_with("task.name: ")), "3.{minor}");
        }
    }

    /// The table is searched for once; where it is not found, again only after many more stacks; and
    /// one whose memory has become something else is searched for again.
    #[test]
    fn table_is_remembered() {
        let mut target = Target::new(11);
        let root = frame_of(&target, COROUTINE);
        let mut tasks = Tasks::default();
        let proved = |target: &Target, tasks: &mut Tasks| {
            let running = target.running(tasks, &[("co_root", root)]);
            running.expect("a coroutine runs").task.is_ok()
        };
        assert!(proved(&target, &mut tasks));
        // Without the modules it could not be found any more.
        target.pages.put_u64(INTERPRETER + 888, 0xbad0_0000);
        assert!(proved(&target, &mut tasks));
        target.pages.put_u64(CURRENT + 8, TYPES);
        assert!(!proved(&target, &mut tasks));
        target.pages.put_u64(CURRENT + 8, TYPES + 0x2000);
        target.pages.put_u64(INTERPRETER + 888, MODULES);
        for _ in 1..SEARCH_EVERY {
            assert!(!proved(&target, &mut tasks));
        }
        assert!(proved(&target, &mut tasks));
    }

    /// aiohttp's middleware is told by its parameter, and only below aiohttp's own frames.
    #[test]
    fn middleware() {
        let mut target = Target::new(12);
        let root = frame_of(&target, COROUTINE);
        let (code, names, text) = (0xb_0000, 0xb_1000, 0xb_2000);
        target.pages.put(code + 52, &1_u32.to_le_bytes());
        target.pages.put(code + 60, &1_u32.to_le_bytes());
        target.pages.put_u64(code + 96, names);
        target.pages.put_u64(names + 24, 0xdead);
        target.pages.put_u64(names + 32, text);
        put_text(&mut target.pages, 12, text, "handler");
        let of = |frames: &[(&str, u64, u64)]| {
            let raw = |frame, code| PythonFrame { frame, code, ..PythonFrame::default() };
            let raw: Vec<_> = frames.iter().map(|&(_, frame, code)| raw(frame, code)).collect();
            let named: Vec<_> = frames.iter().map(|(name, ..)| named(name)).collect();
            let mut tasks = Tasks::default();
            let seen = Seen { raw: &raw, named: &named, walk: PythonWalk::Complete };
            let running = tasks.running(&target.pages, &target.layout, Some(TSTATE), &seen);
            running.expect("coroutines run").task.expect("proved").middleware
        };
        let frames =
            [("co_pay", 1, 1), ("shim", 2, code), ("co_auth", 3, code), ("co__handle", root, 1)];
        assert_eq!(of(&frames), [1]);
        let elsewhere = [("co_auth", 3, code), ("co_main", root, 1)];
        assert!(of(&elsewhere).is_empty());
    }

    /// Whatever a hostile target has in its tables, nothing is made up and nothing panics.
    #[test]
    fn hostile() {
        for address in [TSTATE + 16, MODULE + 16, CURRENT + 32, TASK + 136, TASK + 144] {
            for value in [0, 8, u64::MAX, u64::MAX - 7] {
                let mut target = Target::new(12);
                target.pages.put_u64(address, value);
                let task = target.task(&[("co_root", frame_of(&target, COROUTINE))]);
                let named = task.is_ok_and(|task| task.name.is_ok());
                assert!(!named, "{value:#x} at {address:#x}");
            }
        }
    }
}
