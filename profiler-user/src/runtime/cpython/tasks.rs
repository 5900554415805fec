//! A thread's stack to the asyncio task that runs on it: asked of asyncio itself, proved by the stack.
//!
//! asyncio writes down which task runs: to 3.13 in `asyncio.tasks._current_tasks`, a dictionary by
//! loop, from 3.14 on in the thread's state. By the time it is read the thread may have gone on, so
//! a task counts only if its own coroutine is one of the frames that were captured. That holds for
//! uvloop as well, whose tasks are asyncio's, and for tasks that are started eagerly.

use profiler_ebpf::python::PythonFrame;

use super::dict::{self, Form};
use super::layout::Layout;
use super::names::{FrameKind, NamedFrame};
use super::strings;
use crate::gap::Gap;
use crate::process::{TargetMemory, Unreadable};
use crate::task::{Running, Task};

/// `PyThreadState.interp`, the same from 3.8 to 3.14.
const TSTATE_INTERPRETER: u64 = 16;

/// `PyModuleObject.md_dict`, the same from 3.8 to 3.14.
const MODULE_DICT: u64 = 16;

/// `PyTypeObject.tp_flags`, and what it says of subclasses of `int`, `str` and `dict`: public since 2.6.
const TYPE_FLAGS: u64 = 168;
const IS_INT: u64 = 1 << 24;
const IS_TEXT: u64 = 1 << 28;
const IS_DICT: u64 = 1 << 29;

/// An `int` of 3.12 and later: how many digits it has, and those, 30 bits each.
const INT_TAG: u64 = 16;
const INT_DIGITS: u64 = 24;
const DIGIT_BITS: u32 = 30;

/// Digits of a task's number, which is of 64 bits.
const MAX_DIGITS: u64 = 3;

/// Stacks with coroutines between two searches for a table that was not found: a search reads
/// through the names of all modules.
const SEARCH_EVERY: u32 = 100;

/// Where a version keeps what leads from a thread to its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskLayout {
    pub current: Current,
    /// `TaskObj.task_coro`. `task_name` is the word after it.
    pub task_coroutine: u32,
    pub frame: FrameOf,
    /// Names that nobody gave are numbers until somebody asks for them.
    pub lazy_names: bool,
}

/// Where asyncio keeps which task is current.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Current {
    /// In a dictionary of its module, found by way of the interpreter's `modules`, at this offset.
    Table { modules: u32, form: Form },
    /// In the thread's state, at this offset.
    Thread(u32),
}

/// How a coroutine object leads to its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameOf {
    /// A pointer, at this offset.
    Behind(u32),
    /// It lies inside, at this offset.
    Inside(u32),
}

/// Where the tasks of a process are to be found, once that is known.
#[derive(Debug, Default)]
pub struct Tasks {
    table: Option<Table>,
    /// Stacks seen since the last fruitless search.
    since_search: Option<u32>,
}

/// `_current_tasks` of one interpreter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Table {
    interpreter: u64,
    dict: u64,
    /// What it was of when it was found: memory that was freed since has another.
    kind: u64,
}

impl Tasks {
    /// What ran when these frames were captured: raw and named, in the same order. None where no
    /// coroutine did, as in a plain callback.
    pub fn running(
        &mut self,
        memory: &dyn TargetMemory,
        layout: &Layout,
        tstate: Option<u64>,
        raw: &[PythonFrame],
        named: &[NamedFrame],
    ) -> Option<Running> {
        let inside = named.iter().position(runs_callbacks).unwrap_or(named.len());
        let named = named.get(..inside)?;
        let raw = raw.get(..inside)?;
        let of_coroutine = |pair: &(&PythonFrame, &NamedFrame)| pair.1.is_coroutine;
        let coroutines = raw.iter().zip(named).filter(of_coroutine).map(|(raw, _)| raw.frame);
        let coroutines: Vec<u64> = coroutines.collect();
        if coroutines.is_empty() {
            return None;
        }
        let task = match tstate {
            Some(tstate) => self.prove(memory, layout, tstate, raw, named),
            None => Err(Gap::new("task", "the thread's interpreter state is not known")),
        };
        Some(Running { coroutines, task })
    }

    fn prove(
        &mut self,
        memory: &dyn TargetMemory,
        layout: &Layout,
        tstate: u64,
        raw: &[PythonFrame],
        named: &[NamedFrame],
    ) -> Result<Task, Gap> {
        let current = match layout.tasks.current {
            Current::Thread(offset) => {
                let task = memory.read_u64(tstate.wrapping_add(offset.into())).map_err(no_task)?;
                if task == 0 { Vec::new() } else { vec![task] }
            }
            Current::Table { modules, form } => {
                self.listed(memory, layout, tstate, modules, form)?
            }
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
            return Ok(Task { name, frame, root });
        }
        let why = match how_many {
            0 => "asyncio knew of no current task by the time it was asked",
            _ => {
                "by the time it was asked, asyncio's current task was none whose coroutine is on the stack"
            }
        };
        Err(Gap::new("task", why))
    }

    /// The current tasks of all loops, by the table that is known, or else is searched for.
    fn listed(
        &mut self,
        memory: &dyn TargetMemory,
        layout: &Layout,
        tstate: u64,
        modules: u32,
        form: Form,
    ) -> Result<Vec<u64>, Gap> {
        let interpreter =
            memory.read_u64(tstate.wrapping_add(TSTATE_INTERPRETER)).map_err(no_task)?;
        let holds = |table: &Table| {
            let kind = memory.read_u64(table.dict.wrapping_add(layout.object_type.into()));
            table.interpreter == interpreter && kind == Ok(table.kind)
        };
        self.table = self.table.filter(holds);
        if self.table.is_none() {
            self.table = self.search(memory, layout, interpreter, modules, form)?;
        }
        let table = self.table.ok_or_else(not_found)?;
        let pairs = dict::entries(memory, form, table.dict).map_err(no_task)?;
        Ok(pairs.into_iter().map(|(_, task)| task).collect())
    }

    fn search(
        &mut self,
        memory: &dyn TargetMemory,
        layout: &Layout,
        interpreter: u64,
        modules: u32,
        form: Form,
    ) -> Result<Option<Table>, Gap> {
        if let Some(since) = &mut self.since_search {
            *since += 1;
            if *since < SEARCH_EVERY {
                return Ok(None);
            }
        }
        self.since_search = Some(0);
        let value_of =
            |dict, name| dict::value_of(memory, form, &layout.text, dict, name).map_err(no_task);
        let modules = memory.read_u64(interpreter.wrapping_add(modules.into())).map_err(no_task)?;
        let Some(module) = value_of(modules, "asyncio.tasks")? else { return Ok(None) };
        let names = memory.read_u64(module.wrapping_add(MODULE_DICT)).map_err(no_task)?;
        let Some(dict) = value_of(names, "_current_tasks")? else { return Ok(None) };
        let (kind, flags) = type_of(memory, layout, dict).map_err(no_task)?;
        if flags & IS_DICT == 0 {
            return Ok(None);
        }
        self.since_search = None;
        Ok(Some(Table { interpreter, dict, kind }))
    }
}

/// `Handle._run`: what lies further out called the loop, perhaps from another one's coroutine.
fn runs_callbacks(frame: &NamedFrame) -> bool {
    let (Some(function), Some(file)) = (&frame.function, &frame.file) else { return false };
    (function == "Handle._run" || function == "_run") && file.ends_with("asyncio/events.py")
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

/// An object's type, and that type's flags.
fn type_of(
    memory: &dyn TargetMemory,
    layout: &Layout,
    object: u64,
) -> Result<(u64, u64), Unreadable> {
    let kind = memory.read_u64(object.wrapping_add(layout.object_type.into()))?;
    Ok((kind, memory.read_u64(kind.wrapping_add(TYPE_FLAGS))?))
}

/// A task's name: a text, or the number that `Task-N` will be made of.
fn name(memory: &dyn TargetMemory, layout: &Layout, object: u64) -> Result<String, Gap> {
    const WHAT: &str = "task.name";
    let unreadable = |error: Unreadable| Gap::new(WHAT, error);
    let (_, flags) = type_of(memory, layout, object).map_err(unreadable)?;
    if flags & IS_TEXT != 0 {
        return strings::read(memory, &layout.text, object, WHAT);
    }
    if layout.tasks.lazy_names && flags & IS_INT != 0 {
        let number = number(memory, object).map_err(unreadable)?;
        let number = number.ok_or_else(|| Gap::new(WHAT, "its number makes no sense"))?;
        return Ok(format!("Task-{number}"));
    }
    Err(Gap::new(WHAT, "it is neither a text nor a number"))
}

/// A positive `int`. None where it is not one of 64 bits.
fn number(memory: &dyn TargetMemory, object: u64) -> Result<Option<u64>, Unreadable> {
    let tag = memory.read_u64(object.wrapping_add(INT_TAG))?;
    // The lowest bits are the sign, of which 0 is plus; the third is a flag.
    let (count, sign) = (tag >> 3, tag & 3);
    if !(1..=MAX_DIGITS).contains(&count) || sign != 0 {
        return Ok(None);
    }
    let mut number = 0_u128;
    for place in (0..count).rev() {
        let digit = memory.read_u32(object.wrapping_add(INT_DIGITS + 4 * place))?;
        number = number << DIGIT_BITS | u128::from(digit);
    }
    Ok(u64::try_from(number).ok())
}
