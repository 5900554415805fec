//! A stall's stacks to their frames in the order in which they are given up, last the ones that never go.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::process::executables::{interpreter, is_interpreter_library};
use crate::report::schema::stall::{
    Culprit, ReportedFrame, ReportedLanguage, ReportedStack, ReportedState, Role, StallLine,
};

/// Frames at the inner end of a stack that never go: what the thread was in.
const INNERMOST: usize = 4;

/// Of the application's frames as many innermost and outermost ones are listed.
const OF_APPLICATION: usize = 8;

/// Other stacks that come before the frames which led to the culprit.
const FIRST_STACKS: usize = 8;

/// How much of a stack is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StackForm {
    /// The one frame to look at first.
    Line,
    /// What matters of it.
    Whole,
}

/// A stack that a line has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Stacks with the same are the same.
    pub key: u64,
    pub form: StackForm,
}

/// All that a line may have of its stacks, the dearest first.
#[derive(Debug)]
pub struct Outline<'a> {
    /// In the line's order.
    stacks: Vec<(&'a ReportedStack, Written)>,
    units: Vec<Unit>,
    /// Stacks that an earlier line had, and those that are not to be told.
    told: u64,
    unwanted: u64,
}

/// What is given up at once.
#[derive(Debug, Clone, Copy)]
struct Unit {
    worth: Worth,
    stack: usize,
    part: Part,
    bytes: usize,
}

/// The first is worth most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    NeverGoes,
    /// What the culprit called, the nearest to it first: that stands in its line.
    Called,
    InKernel,
    Stack,
    /// Interpreted frames that led to the culprit, the nearest first.
    LedThere,
    LightStack,
    /// The interpreter's own code below its innermost frame.
    OfInterpreter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A stack without frames.
    Bare,
    Kernel(usize),
    Frame(usize),
}

impl<'a> Outline<'a> {
    /// No stack at all.
    pub fn none(line: &'a StallLine) -> Self {
        let unwanted = line.stacks.len() as u64;
        Self { stacks: Vec::new(), units: Vec::new(), told: 0, unwanted }
    }

    /// Of the stack that the culprit is on what matters, of the others one frame each; but for those that have
    /// been told.
    pub fn of(line: &'a StallLine, is_told: impl Fn(u64, StackForm) -> bool) -> Self {
        let culprit = line.culprit.as_ref();
        let shown = shown(line);
        let (mut stacks, mut units, mut told, mut others) = (Vec::new(), Vec::new(), 0, 0);
        for (place, stack) in line.stacks.iter().enumerate() {
            let form = if place == shown { StackForm::Whole } else { StackForm::Line };
            let key = key(stack);
            if is_told(key, form) {
                told += 1;
                continue;
            }
            let number = stacks.len();
            stacks.push((stack, Written { key, form }));
            let parts = match form {
                StackForm::Whole => whole(stack, culprit),
                StackForm::Line => {
                    others += 1;
                    let is_first = others <= FIRST_STACKS;
                    let worth = if is_first { Worth::Stack } else { Worth::LightStack };
                    vec![(worth, first_look(stack))]
                }
            };
            units.extend(parts.into_iter().map(|(worth, part)| Unit {
                worth,
                stack: number,
                part,
                bytes: bytes(stack, part),
            }));
        }
        // Stable: within one worth, stacks come heaviest first and frames innermost first.
        units.sort_by_key(|unit| unit.worth);
        Self { stacks, units, told, unwanted: 0 }
    }

    /// Of how many things it consists.
    pub fn len(&self) -> usize {
        self.units.len()
    }

    /// How many of the first `count` are left where this number of bytes is too much.
    pub fn without(&self, count: usize, excess_bytes: usize) -> usize {
        let (mut left, mut gone_bytes) = (count, 0);
        while gone_bytes < excess_bytes
            && let Some(last) = left.checked_sub(1).and_then(|last| self.units.get(last))
            && last.worth != Worth::NeverGoes
        {
            gone_bytes += last.bytes;
            left -= 1;
        }
        left
    }

    /// The stacks with the first `count` things, and how much of what is left out.
    pub fn first(&self, count: usize) -> (Vec<ReportedStack>, Vec<(&'static str, u64)>) {
        let units = self.units.get(..count).unwrap_or(&self.units);
        let (mut stacks, mut left_out) = (Vec::new(), 0);
        for (number, (stack, _)) in self.stacks.iter().enumerate() {
            let mut parts = units.iter().filter(|unit| unit.stack == number).peekable();
            if parts.peek().is_none() {
                continue;
            }
            let (mut kernel, mut frames) = (Vec::new(), Vec::new());
            for unit in parts {
                match unit.part {
                    Part::Bare => {}
                    Part::Kernel(at) => kernel.push(at),
                    Part::Frame(at) => frames.push(at),
                }
            }
            left_out += stack.kernel.len() - kernel.len() + stack.frames.len() - frames.len();
            stacks.push(listed(stack, kernel, frames));
        }
        let missing = self.stacks.len() - stacks.len();
        let omitted = vec![
            ("frames", left_out as u64),
            ("stacks", missing as u64 + self.told + self.unwanted),
            ("stacks_told", self.told),
        ];
        (stacks, omitted)
    }

    /// The stacks that the first `count` things are of.
    pub fn written(&self, count: usize) -> Vec<Written> {
        let units = self.units.get(..count).unwrap_or(&self.units);
        let is_listed = |number: usize| units.iter().any(|unit| unit.stack == number);
        let stacks = self.stacks.iter().enumerate();
        stacks.filter(|(number, _)| is_listed(*number)).map(|(_, (_, written))| *written).collect()
    }
}

/// The stack that the culprit is on, else the heaviest.
fn shown(line: &StallLine) -> usize {
    let culprit = line.culprit.as_ref();
    let has_line = |stack: &ReportedStack| stack.frames.iter().any(|frame| is(culprit, frame));
    let has_function =
        |stack: &ReportedStack| stack.frames.iter().any(|frame| is_of(culprit, frame));
    let place = line.stacks.iter().position(has_line);
    place.or_else(|| line.stacks.iter().position(has_function)).unwrap_or_default()
}

fn is(culprit: Option<&Culprit>, frame: &ReportedFrame) -> bool {
    is_of(culprit, frame) && culprit.is_some_and(|culprit| culprit.line == frame.line)
}

fn is_of(culprit: Option<&Culprit>, frame: &ReportedFrame) -> bool {
    culprit.is_some_and(|culprit| {
        culprit.function == frame.function
            && culprit.file == frame.file
            && culprit.module == frame.module
    })
}

/// What is the same stack however much time it stands for by now.
fn key(stack: &ReportedStack) -> u64 {
    let mut hasher = DefaultHasher::new();
    (stack.thread.tid, stack.role == Role::Loop, stack.state == ReportedState::Running)
        .hash(&mut hasher);
    for frame in stack.kernel.iter().chain([&NONE]).chain(&stack.frames) {
        (&frame.function, &frame.file, frame.line, &frame.module).hash(&mut hasher);
    }
    hasher.finish()
}

/// Stands between the kernel's frames and the others.
const NONE: ReportedFrame = ReportedFrame {
    function: None,
    file: None,
    line: None,
    module: None,
    language: ReportedLanguage::Kernel,
    inlined: false,
    in_app: false,
    address: None,
    module_offset: None,
    left_out: 0,
};

/// The parts of the stack that is shown.
fn whole(stack: &ReportedStack, culprit: Option<&Culprit>) -> Vec<(Worth, Part)> {
    let frames = &stack.frames;
    let of_culprit = frames.iter().position(|frame| is(culprit, frame));
    let of_culprit = of_culprit.or_else(|| frames.iter().position(|frame| is_of(culprit, frame)));
    let of_culprit = of_culprit.or_else(|| frames.iter().position(|frame| frame.in_app));
    let interpreted = frames.iter().position(is_interpreted);
    let own = frames.iter().enumerate().filter(|(_, frame)| frame.in_app).map(|(at, _)| at);
    let own: Vec<usize> = own.collect();
    let is_kept = |at: &usize| {
        let place = own.binary_search(at);
        place.is_ok_and(|place| place < OF_APPLICATION || place + OF_APPLICATION >= own.len())
    };
    let worth = |at: usize| {
        let frame = frames.get(at)?;
        let is_inside = of_culprit.is_none_or(|culprit| at <= culprit);
        let is_between = interpreted.is_some_and(|innermost| at > innermost);
        match () {
            () if at < INNERMOST || Some(at) == of_culprit || is_kept(&at) => {
                Some(Worth::NeverGoes)
            }
            () if frame.in_app => None,
            () if is_of_interpreter(frame) => {
                (is_inside && !is_between).then_some(Worth::OfInterpreter)
            }
            () if is_inside => Some(Worth::Called),
            () if is_interpreted(frame) => Some(Worth::LedThere),
            () => None,
        }
    };
    let of_kernel = |at: usize| {
        let worth = if at < INNERMOST { Worth::NeverGoes } else { Worth::InKernel };
        (worth, Part::Kernel(at))
    };
    let kernel = (0..stack.kernel.len()).map(of_kernel);
    let frames = (0..frames.len()).filter_map(|at| Some((worth(at)?, Part::Frame(at))));
    let mut parts: Vec<_> = kernel.chain(frames).collect();
    // Behind each other they are given up from the end.
    let (called, others): (Vec<_>, _) =
        parts.into_iter().partition(|(worth, _)| *worth == Worth::Called);
    parts = others;
    parts.extend(called.into_iter().rev());
    if parts.is_empty() {
        parts.push((Worth::NeverGoes, Part::Bare));
    }
    parts
}

/// The frame to look at first.
fn first_look(stack: &ReportedStack) -> Part {
    let is_named = |frame: &ReportedFrame| frame.function.is_some();
    let own = stack.frames.iter().position(|frame| frame.in_app && is_named(frame));
    let place = own.or_else(|| stack.frames.iter().position(is_named));
    match place.or((!stack.frames.is_empty()).then_some(0)) {
        Some(at) => Part::Frame(at),
        None if stack.kernel.is_empty() => Part::Bare,
        None => Part::Kernel(0),
    }
}

fn is_interpreted(frame: &ReportedFrame) -> bool {
    matches!(frame.language, ReportedLanguage::Python | ReportedLanguage::JavaScript)
}

/// Also of modules of the standard library that are written in C.
fn is_of_interpreter(frame: &ReportedFrame) -> bool {
    let of = |module: &String| {
        interpreter(module).is_some()
            || is_interpreter_library(module)
            || module.contains("/lib-dynload/")
    };
    frame.language == ReportedLanguage::Native && frame.module.as_ref().is_some_and(of)
}

/// The stack with these of its frames.
fn listed(stack: &ReportedStack, kernel: Vec<usize>, frames: Vec<usize>) -> ReportedStack {
    let (kernel, frames) = (picked(&stack.kernel, kernel), picked(&stack.frames, frames));
    let left_out = u32::try_from(stack.frames.len() - frames.len()).unwrap_or(u32::MAX);
    ReportedStack {
        thread: stack.thread.clone(),
        role: stack.role,
        state: stack.state,
        samples: stack.samples,
        time_ns: stack.time_ns,
        kernel,
        frames,
        truncated: stack.truncated.clone(),
        left_out: stack.left_out.saturating_add(left_out),
    }
}

/// These of the frames, each with how many are missing behind it.
fn picked(frames: &[ReportedFrame], mut places: Vec<usize>) -> Vec<ReportedFrame> {
    places.sort_unstable();
    let next = places.iter().skip(1).copied().chain([frames.len()]);
    let pairs = places.iter().zip(next);
    pairs
        .filter_map(|(at, next)| {
            let left_out = u32::try_from(next - at - 1).unwrap_or(u32::MAX);
            frames.get(*at).map(|frame| ReportedFrame { left_out, ..plain(frame) })
        })
        .collect()
}

/// The frame without its addresses; where it has no name, its place in the file is what there is.
fn plain(frame: &ReportedFrame) -> ReportedFrame {
    let nameless = frame.function.is_none();
    ReportedFrame {
        function: frame.function.clone(),
        file: frame.file.clone(),
        line: frame.line,
        module: frame.module.clone(),
        language: frame.language,
        inlined: frame.inlined,
        in_app: frame.in_app,
        address: None,
        module_offset: frame.module_offset.clone().filter(|_| nameless),
        left_out: frame.left_out,
    }
}

/// Bytes that go with a part, about.
fn bytes(stack: &ReportedStack, part: Part) -> usize {
    let frame = match part {
        Part::Bare => None,
        Part::Kernel(at) => stack.kernel.get(at),
        Part::Frame(at) => stack.frames.get(at),
    };
    let json = frame.and_then(|frame| serde_json::to_string(&plain(frame)).ok());
    json.map_or(0, |json| json.len()) + 1
}
