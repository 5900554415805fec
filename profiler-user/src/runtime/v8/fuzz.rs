//! The readers of V8's objects against memory that lies: whatever it holds, reading it ends, within bounds that have a name.

use profiler_ebpf::record::Registers;

use super::frames::{MAX_FRAMES, candidates};
use super::heap::{BLOCK_BYTES, MAX_DEPTH, MAX_PIECES};
use super::layout::V8Layout;
use super::names::{FunctionNames, MAX_NAME, MAX_PATH, MAX_SOURCE};
use super::sample::layout;
use crate::hostile::{HostileMemory, Random, STYLES, rounds};

/// Words of one string that is in as many pieces as may be: three of each string below it.
const MOST_STRING_READS: u64 = 4 * (MAX_PIECES * MAX_DEPTH) as u64;

/// The words that lead from a function to its script, and its variables.
const MOST_WORDS: u64 = 128;

/// Of one frame: the function's name or two made up ones, and the script's.
const MOST_FRAME_READS: u64 = MOST_WORDS + 4 * (MOST_STRING_READS + MAX_PIECES as u64);
const MOST_FRAME_BYTES: u64 = 8 * MOST_FRAME_READS + 2 * (3 * MAX_NAME + MAX_PATH);

/// Of one stack besides: the sources of its scripts, in blocks.
const MOST_SOURCE_BYTES: u64 = 2 * (2 * MAX_SOURCE);
const MOST_SOURCE_READS: u64 = MOST_SOURCE_BYTES / BLOCK_BYTES + (MAX_FRAMES * MAX_PIECES) as u64;

/// Puts objects there that look like what is read, of whatever type and length.
fn plant_objects(memory: &mut HostileMemory, layout: &V8Layout, random: &mut Random) -> Vec<u64> {
    let types = [
        *layout.functions.start(),
        layout.shared_type,
        layout.scope_type,
        layout.script_type,
        layout.strings.cons,
        layout.strings.thin,
        layout.strings.sliced,
        layout.strings.external,
        layout.strings.sequential | layout.strings.one_byte,
    ];
    let objects: Vec<(u64, u16)> =
        (0..24).map(|_| (memory.place(random) & !7, *random.pick(&types))).collect();
    for (address, kind) in &objects {
        let map = memory.place(random) & !7;
        memory.plant(map + layout.map_type, &kind.to_le_bytes());
        memory.plant_u64(*address, map | 1);
        for slot in 1..12 {
            // Mostly to one another, so that much is followed.
            let word = match random.below(4) {
                0 => random.odd_number(),
                1 => (random.next() % 3000) << 32,
                _ => random.pick(&objects).0 | 1,
            };
            memory.plant_u64(address + 8 * slot, word);
        }
    }
    objects.iter().map(|(address, _)| address | 1).collect()
}

/// A copied stack whose frames lead to such objects.
fn any_stack(memory: &HostileMemory, objects: &[u64], sp: u64, random: &mut Random) -> Vec<u8> {
    let word = |random: &mut Random, at: u64| match random.below(6) {
        0 => random.next(),
        1 => memory.place(random) | 1,
        2 => at + 8 * random.below(64) as u64,
        _ => *random.pick(objects),
    };
    let words = random.below(8192) as u64;
    (0..words).flat_map(|index| word(random, sp + 8 * index).to_le_bytes()).collect()
}

/// Stacks over memory of every kind: every function that is found has a name, of bounded size.
#[test]
fn stacks_and_names() {
    rounds(150, |random| {
        let layout = V8Layout { fixed_positions: random.once_in(2), ..layout() };
        let style = *random.pick(&STYLES);
        let mut memory = HostileMemory::new(style, random);
        let objects = plant_objects(&mut memory, &layout, random);
        let sp = memory.place(random) & !7;
        let stack = any_stack(&memory, &objects, sp, random);
        let found = candidates(&layout.slots, &Registers { sp, ..Registers::default() }, &stack);
        assert!(found.len() <= MAX_FRAMES);

        let mut names = FunctionNames::default();
        names.begin_stack();
        for candidate in &found {
            memory.forget_counts();
            names.function(&memory, &layout, candidate.function);
            names.is_bytecode(&memory, &layout, candidate.bytecode_array);
            let (reads, bytes) = memory.counts();
            assert!(reads <= MOST_FRAME_READS + MOST_SOURCE_READS, "{reads} reads");
            assert!(bytes <= MOST_FRAME_BYTES + MOST_SOURCE_BYTES, "{bytes} bytes");
        }
    });
}

/// One stack with many huge scripts: their sources are looked through up to a bound for all of them.
#[test]
fn huge_sources() {
    rounds(3, |random| {
        let layout = layout();
        let mut memory = HostileMemory::new(STYLES[0], random);
        let mut map = |memory: &mut HostileMemory, kind: u16| {
            let map = memory.place(random) & !0xfff;
            memory.plant(map + layout.map_type, &kind.to_le_bytes());
            map | 1
        };
        let sequential = layout.strings.sequential | layout.strings.one_byte;
        let kinds = [*layout.functions.start(), layout.shared_type, layout.script_type, sequential];
        let [function_map, shared_map, script_map, string_map] =
            kinds.map(|kind| map(&mut memory, kind));
        // Further apart than a source is long.
        let place = |number: u64| 0x1000_0000_0000 + (number << 32);
        let length = (MAX_SOURCE / 3) as u32;
        let mut functions = Vec::new();
        for number in 0..16 {
            let [function, shared, script, source] =
                [0, 1, 2, 3].map(|part| place(number) + part * 0x1000);
            let words = [
                (function, function_map),
                (function + layout.function_shared, shared | 1),
                (shared, shared_map),
                (shared + layout.shared_name, source | 1),
                (shared + layout.shared_script, script | 1),
                (script, script_map),
                (script + layout.script_name, source | 1),
                (script + layout.script_source, source | 1),
                (source, string_map),
            ];
            words.iter().for_each(|(address, word)| memory.plant_u64(*address, *word));
            memory.plant(source + layout.string_length, &length.to_le_bytes());
            functions.push(function | 1);
        }
        let mut names = FunctionNames::default();
        names.begin_stack();
        let found = |names: &mut FunctionNames, memory: &HostileMemory| {
            let named = functions.iter().map(|tagged| names.function(memory, &layout, *tagged));
            named.flatten().count()
        };
        assert_eq!(found(&mut names, &memory), 3, "as many as there is room for");
        let (_, bytes) = memory.counts();
        assert!(bytes <= MOST_SOURCE_BYTES, "{bytes} bytes");
        names.begin_stack();
        assert_eq!(found(&mut names, &memory), 6, "the next stack begins anew");
    });
}
