//! Every reader of the interpreter against memory that lies: whatever it holds, reading it ends, within bounds that have a name.

use std::path::PathBuf;

use profiler_ebpf::limits::{PYTHON_FRAMES, PYTHON_STRIDE, PYTHON_STRIDES};
use profiler_ebpf::python::{PythonFrame, PythonWalk};

use super::detect::{PythonImage, images};
use super::dict::MAX_ENTRIES;
use super::layout::CpythonLayout;
use super::lines::{LineTable, LineTableFormat};
use super::names::{CodeNames, MAX_LINE_TABLE_BYTES, MAX_STACK_TABLE_BYTES};
use super::object::MAX_BYTES;
use super::offsets::of_minor;
use super::published::{DEBUG_COOKIE, DEBUG_WORDS};
use super::strings::MAX_CHARACTERS;
use super::tasks::{MAX_CURRENT, Tasks};
use super::threading::Threading;
use super::threads::{self, MAX_INTERPRETERS, MAX_THREAD_STATES};
use super::{Python, frames, gil, version};
use crate::hostile::{
    HEAP, HostileMemory, Random, STYLES, damage, damaged_elf, file_of, libc, rounds,
};
use crate::process::maps::{Backing, Region};
use crate::runtime::frames::WorkPlace;

/// Two words of each interpreter, one structure of each thread, and where it all begins.
const MOST_LIST_READS: u64 = 1 + 2 * MAX_INTERPRETERS as u64 + MAX_THREAD_STATES as u64;

/// The innermost frame of a thread state is two words away, its kernel's number one of two words;
/// a thread is looked for by two witnesses.
const MOST_SEARCH_READS_PER_STATE: u64 = 6;

/// Two structures of each frame, a word of each that is passed over, and at the beginning the thread's identity
/// and two words.
const MOST_WALK_READS: u64 = 3 + (2 * PYTHON_FRAMES + PYTHON_STRIDE * PYTHON_STRIDES) as u64;

/// The code object, its check word before and after, two texts and the line table in two pieces each.
const MOST_NAME_READS: u64 = 3 + 3 * 2;

/// Bytes of structures and texts of one frame.
const MOST_NAME_BYTES: u64 = MOST_NAME_READS * MAX_BYTES as u64 + 2 * 4 * MAX_CHARACTERS as u64;

/// Two dictionaries, each entry of which has a text, and the current tasks.
const MOST_TASK_READS: u64 = 2 * (4 * MAX_ENTRIES + 16) + 16 * MAX_CURRENT as u64;

/// Bytes read to find a lock and its holder, in pieces.
const MOST_LOCK_READS: u64 = 4;

fn any_layout(random: &mut Random) -> CpythonLayout {
    of_minor(8 + random.below(8) as u8).expect("known")
}

fn any_memory(random: &mut Random) -> HostileMemory {
    let style = *random.pick(&STYLES);
    HostileMemory::new(style, random)
}

fn python(layout: CpythonLayout, runtime: u64, code_type: Option<u64>) -> Python {
    let image = PythonImage { path: PathBuf::new(), runtime, version: None, code_type };
    Python {
        image,
        version: String::new(),
        layout,
        names: CodeNames::default(),
        tasks: Tasks::default(),
        threading: Threading::default(),
    }
}

/// A text or a line table that begins as such, of whatever length.
fn plant_sized(
    memory: &mut HostileMemory,
    layout: &CpythonLayout,
    random: &mut Random,
) -> (u64, u64) {
    let (text, table) = (memory.place(random), memory.place(random));
    let kind = *random.pick(&[1_u32, 2, 4]);
    let ascii = u32::from(kind == 1 && random.once_in(2));
    memory.plant_u64(text + u64::from(layout.text.length), random.odd_number());
    let state = ascii << 6 | 1 << 5 | kind << 2;
    memory.plant(text + u64::from(layout.text.state), &state.to_le_bytes());
    let length = match random.below(3) {
        0 => random.odd_number(),
        1 => random.next() % (2 * MAX_LINE_TABLE_BYTES),
        _ => random.next() % 2000,
    };
    memory.plant_u64(table + u64::from(layout.bytes_length), length);
    (text, table)
}

/// Frames whose code objects look right at first sight.
fn plant_frames(
    memory: &mut HostileMemory,
    layout: &CpythonLayout,
    random: &mut Random,
) -> Vec<PythonFrame> {
    let mut planted = Vec::new();
    for _ in 0..random.below(24) {
        let code = memory.place(random);
        let (text, table) = plant_sized(memory, layout, random);
        memory.plant(code, &[0; 256]);
        for at in [layout.walk.code_name, layout.code_function, layout.code_filename] {
            memory.plant_u64(code + u64::from(at), text);
        }
        memory.plant_u64(code + u64::from(layout.walk.code_linetable), table);
        planted.push(PythonFrame {
            frame: memory.place(random),
            code,
            instruction: code.wrapping_add(random.odd_number()),
            check: frames::check_of(memory, &layout.walk, code).unwrap_or(0),
            owner: random.below(6) as u8,
            entry: random.below(2) as u8,
            reserved: 0,
        });
    }
    planted
}

/// Lists of threads, and the search for one among them.
#[test]
fn thread_lists() {
    rounds(60, |random| {
        let (layout, memory) = (any_layout(random), any_memory(random));
        let runtime = memory.place(random);
        let (states, _) = threads::list(&memory, &layout, runtime);
        assert!(states.len() <= MAX_THREAD_STATES);
        let (reads, bytes) = memory.counts();
        assert!(reads <= MOST_LIST_READS, "{reads} reads");
        assert!(bytes <= reads * MAX_BYTES as u64, "{bytes} bytes");

        memory.forget_counts();
        let fsbase = random.once_in(2).then(|| {
            if states.is_empty() { random.next() } else { random.pick(&states).thread_id }
        });
        threads::of_thread(&memory, &layout, &states, random.next() as u32, fsbase);
        let (reads, _) = memory.counts();
        assert!(reads <= MOST_SEARCH_READS_PER_STATE * states.len() as u64, "{reads} reads");
    });
}

/// Chains of frames, and the names of what was found.
#[test]
fn frames_and_names() {
    rounds(150, |random| {
        let (layout, mut memory) = (any_layout(random), any_memory(random));
        let code_type = random.once_in(4).then(|| memory.place(random));
        let mut python = python(layout, memory.place(random), code_type);
        let thread_id = random.once_in(8).then(|| random.next());
        let (mut frames, _) = python.walk(&memory, memory.place(random), thread_id);
        assert!(frames.len() <= PYTHON_FRAMES);
        let (reads, bytes) = memory.counts();
        assert!(reads <= MOST_WALK_READS, "{reads} reads");
        assert!(bytes <= reads * MAX_BYTES as u64, "{bytes} bytes");

        frames.extend(plant_frames(&mut memory, &layout, random));
        memory.forget_counts();
        let named = python.decode(&memory, &frames);
        assert_eq!(named.len(), frames.len(), "one for each");
        for frame in named.iter().filter(|frame| frame.kind == super::FrameKind::Shown) {
            let whole = frame.function.is_some() && frame.line.is_some();
            assert!(whole || frame.gap.is_some(), "what is missing has its reason: {frame:?}");
        }
        let (reads, bytes) = memory.counts();
        let most = MAX_STACK_TABLE_BYTES + frames.len() as u64 * MOST_NAME_BYTES;
        assert!(reads <= frames.len() as u64 * MOST_NAME_READS, "{reads} reads");
        assert!(bytes <= most, "{bytes} bytes");
        for frame in &frames {
            WorkPlace { at: frame.frame, tags: 3 }.read(&memory);
        }
    });
}

/// The search for the task that runs, once for each stack: through the names of all modules, and the
/// variables of one.
#[test]
fn running_tasks() {
    rounds(60, |random| {
        let (layout, mut memory) = (any_layout(random), any_memory(random));
        let mut python = python(layout, memory.place(random), None);
        let raw = plant_frames(&mut memory, &layout, random);
        let mut named = python.decode(&memory, &raw);
        for frame in &mut named {
            frame.is_coroutine = random.once_in(2);
        }
        let walk =
            *random.pick(&[PythonWalk::Complete, PythonWalk::TooDeep, PythonWalk::Shortened(9)]);
        let tstate = random.once_in(2).then(|| memory.place(random));
        for _ in 0..3 {
            memory.forget_counts();
            let running = python.running(&memory, &raw, &named, walk, tstate);
            let ran = running.is_some_and(|running| running.task.is_ok());
            assert!(!ran || named.iter().any(|frame| frame.is_coroutine), "a task of nobody's");
            let (reads, _) = memory.counts();
            assert!(reads <= MOST_TASK_READS, "{reads} reads");
        }
    });
}

/// The names of threads: through the names of all modules, of one module, and all threads.
#[test]
fn thread_names() {
    rounds(60, |random| {
        let (layout, memory) = (any_layout(random), any_memory(random));
        let mut python = python(layout, memory.place(random), None);
        let tstate = memory.place(random);
        for _ in 0..3 {
            memory.forget_counts();
            let _ = python.thread_name(&memory, tstate);
            let (reads, _) = memory.counts();
            assert!(reads <= MOST_TASK_READS, "{reads} reads");
        }
    });
}

/// Tables each as long as is allowed are not read for a whole stack of frames.
#[test]
fn line_tables_of_one_stack() {
    let mut memory = HostileMemory::new(STYLES[0], &mut Random::new(1));
    let layout = of_minor(12).expect("known");
    let raw: Vec<_> = (0..PYTHON_FRAMES as u64)
        .map(|number| {
            let code = HEAP + number * 0x1000;
            memory.plant(code, &[0; 256]);
            for at in [layout.code_function, layout.code_filename] {
                memory.plant_u64(code + u64::from(at), HEAP + (1 << 32));
            }
            memory.plant_u64(code + u64::from(layout.walk.code_linetable), HEAP + (2 << 32));
            let check = frames::check_of(&memory, &layout.walk, code).expect("it was put there");
            PythonFrame { code, check, ..PythonFrame::default() }
        })
        .collect();
    memory.plant_u64(HEAP + (1 << 32) + u64::from(layout.text.length), 1);
    let ascii = 1_u32 << 6 | 1 << 5 | 1 << 2;
    memory.plant(HEAP + (1 << 32) + u64::from(layout.text.state), &ascii.to_le_bytes());
    let table = HEAP + (2 << 32) + u64::from(layout.bytes_length);
    memory.plant_u64(table, MAX_LINE_TABLE_BYTES);
    let mut python = python(layout, 0, None);
    memory.forget_counts();
    let named = python.decode(&memory, &raw);
    let refused = |gap: &crate::gap::Gap| gap.0.contains("those of one stack");
    let read = named.iter().filter(|frame| frame.function.is_some()).count() as u64;
    assert_eq!(read, MAX_STACK_TABLE_BYTES / MAX_LINE_TABLE_BYTES);
    assert!(named.last().and_then(|frame| frame.gap.as_ref()).is_some_and(refused));
    // The next stack begins anew.
    assert!(python.decode(&memory, &raw[raw.len() - 1..])[0].function.is_some());
}

/// The lock and its holder, whose stack is read besides.
#[test]
fn locks() {
    rounds(60, |random| {
        let (layout, memory) = (any_layout(random), any_memory(random));
        let python = python(layout, memory.place(random), None);
        let lock = gil::locate(&memory, &layout, python.image.runtime);
        let Some(lock) = lock else { return };
        lock.contains(random.odd_number());
        python.holder(&memory, &lock);
        let (reads, _) = memory.counts();
        let most = 2 * MOST_LOCK_READS + 2 * MOST_WALK_READS + MOST_LIST_READS + 2;
        assert!(reads <= most, "{reads} reads");
    });
}

/// Versions and the interpreter's own table of offsets: refused, or good for a walk that ends.
#[test]
fn versions_and_offsets() {
    rounds(300, |random| {
        let mut memory = any_memory(random);
        let runtime = memory.place(random);
        let mut words = vec![0; DEBUG_COOKIE.len() + 8 * DEBUG_WORDS];
        words[..DEBUG_COOKIE.len()].copy_from_slice(&DEBUG_COOKIE);
        for word in words[DEBUG_COOKIE.len()..].chunks_exact_mut(8) {
            let value = if random.once_in(60) { random.odd_number() } else { random.next() % 1024 };
            word.copy_from_slice(&value.to_le_bytes());
        }
        let version =
            0x0300_00f0 | (random.below(17) as u64) << 16 | (random.below(20) as u64) << 8;
        let version = if random.once_in(8) { random.next() } else { version };
        words[8..16].copy_from_slice(&version.to_le_bytes());
        words[16..24].copy_from_slice(&u64::from(random.once_in(8)).to_le_bytes());
        if !random.once_in(4) {
            memory.plant(runtime, &words);
        }
        let path = PathBuf::from(*random.pick(&["/usr/bin/python3.9", "/opt/app", "/python3.13"]));
        let at = random.once_in(2).then(|| runtime + DEBUG_COOKIE.len() as u64);
        let image = PythonImage { path, runtime, version: at, code_type: None };
        let Ok((_, layout)) = version::of(&memory, &image) else { return };
        let mut python = python(layout, runtime, None);
        let (raw, _) = python.walk(&memory, memory.place(random), None);
        assert_eq!(python.decode(&memory, &raw).len(), raw.len());
    });
}

/// Files with any contents under names of interpreters.
#[test]
fn damaged_files() {
    let whole = libc();
    rounds(60, |random| {
        let mut bytes = damaged_elf(random, &whole);
        damage(random, &mut bytes);
        let region = Region {
            start: random.odd_number(),
            end: random.odd_number(),
            executable: true,
            writable: false,
            offset: random.odd_number(),
            device: (8, 1),
            inode: 1,
            backing: Backing::File(PathBuf::from(*random.pick(&["/bin/python3.9", "/bin/app"]))),
        };
        let found = images(&[region], &|_| Ok(file_of(&bytes)));
        assert!(found.is_err() || found == Ok(Vec::new()), "it is no interpreter: {found:?}");
    });
}

/// Line tables of any bytes have no more lines than bytes, and an answer for every offset.
#[test]
fn line_tables() {
    rounds(1000, |random| {
        let length = random.below(300);
        let bytes = random.bytes(length);
        for format in [LineTableFormat::Lnotab, LineTableFormat::Ranges, LineTableFormat::Locations]
        {
            let table = LineTable::parse(format, random.odd_number() as u32, &bytes);
            let most = size_of::<LineTable>() + (length + 1) * 12;
            assert!(table.bytes() <= most, "{} bytes of {length}", table.bytes());
            for offset in [random.odd_number().cast_signed(), -1, 0, i64::MAX] {
                let _ = table.line_at(offset);
            }
        }
    });
}
