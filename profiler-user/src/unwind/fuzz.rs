//! Unwinding and merging what a hostile target has: forged tables, forged stacks, stacks that fit nothing.

use object::{Object, ObjectSection};
use profiler_ebpf::limits::STACK_BYTES;
use profiler_ebpf::record::Registers;

use super::merge::{NamedNativeStack, PythonSpan, PythonStack, merge};
use super::native::{MAX_FRAMES, NativeUnwinder};
use super::pairs::EvalRun;
use super::pairs::Hole;
use crate::frame::{Frame, Language};
use crate::hostile::{MAPPED_AT, Random, damage, damaged_elf, libc, mapped, rounds};
use crate::process::image::Image;
use crate::process::modules::Modules;

const STACK_AT: u64 = 0x7ffc_0000_0000;

/// Registers and a stack full of what leads somewhere: code, other places of the stack, odd numbers.
fn any_stack(random: &mut Random, code: &[std::ops::Range<u64>]) -> (Registers, Vec<u8>) {
    let sp = if random.once_in(8) { random.odd_number() } else { STACK_AT };
    let most = if random.once_in(4) { STACK_BYTES / 8 } else { 300 };
    let words = random.below(most);
    let mut stack = Vec::with_capacity(8 * words);
    for _ in 0..words {
        let word = match random.below(4) {
            0 => random.odd_number(),
            1 => sp.wrapping_add(random.below(8 * words + 64) as u64 & !7),
            _ => address(random, code),
        };
        stack.extend_from_slice(&word.to_le_bytes());
    }
    let ip = if random.once_in(8) { random.odd_number() } else { address(random, code) };
    let bp = match random.below(3) {
        0 => random.odd_number(),
        _ => sp.wrapping_add(random.below(8 * words + 8) as u64 & !7),
    };
    (Registers { ip, sp, bp, ..Registers::default() }, stack)
}

fn address(random: &mut Random, code: &[std::ops::Range<u64>]) -> u64 {
    let range = random.pick(code);
    range.start + random.next() % (range.end - range.start).max(1)
}

fn unwind(
    unwinder: &mut NativeUnwinder,
    modules: &Modules,
    code: &[std::ops::Range<u64>],
    random: &mut Random,
) {
    let (registers, stack) = any_stack(random, code);
    let found = unwinder.unwind(modules, &registers, &stack);
    assert!((1..=MAX_FRAMES).contains(&found.frames.len()));
    assert!(found.truncated.as_ref().is_none_or(|why| !why.is_empty()));
}

/// Frames in the middle that are left out, now and then.
fn any_hole(random: &mut Random, spans: usize) -> Option<Hole> {
    let at = random.below(spans + 1);
    let may_go_on = at > 0 && random.once_in(2);
    random.once_in(3).then_some(Hole { at, may_go_on, left_out: 64 })
}

/// Any stack over tables as they are: the walk ends, and where it did not end at the outermost frame
/// it says so.
#[test]
fn stacks_over_intact_tables() {
    let whole = libc();
    let modules = mapped(&whole);
    let code = [code(&Image::from_memory(whole, 0).expect("an image"))];
    let mut unwinder = NativeUnwinder::new();
    rounds(2000, |random| unwind(&mut unwinder, &modules, &code, random));
}

/// Where the code of a file of [`mapped`] lies.
fn code(image: &Image) -> std::ops::Range<u64> {
    let text = image.text().expect("code").address.clone();
    MAPPED_AT + text.start..MAPPED_AT + text.end
}

/// Tables with damage anywhere: refused, or good for walks that end.
#[test]
fn damaged_tables() {
    let whole = libc();
    let image = Image::from_memory(whole.clone(), 0).expect("an image");
    let code = [code(&image)];
    let sections = [image.eh_frame(), image.eh_frame_hdr()].map(|found| found.expect("a table"));
    rounds(60, |random| {
        let mut bytes = if random.once_in(3) { damaged_elf(random, &whole) } else { whole.clone() };
        for section in sections {
            let range = section.file.start as usize..section.file.end as usize;
            let Some(table) = bytes.get(range.clone()) else { continue };
            let mut table = table.to_vec();
            // Often enough for most functions to be hit.
            for _ in 0..random.below(200) {
                damage(random, &mut table);
            }
            table.resize(range.len(), 0);
            bytes[range].copy_from_slice(&table);
        }
        let modules = mapped(&bytes);
        let mut unwinder = NativeUnwinder::new();
        for _ in 0..10 {
            unwind(&mut unwinder, &modules, &code, random);
        }
    });
}

/// The expression by which linkers tell where callers' frames are for all of `.plt`, made to jump to
/// itself: the walk stops and says why. Evaluated, it would never end.
#[test]
fn endless_expression() {
    const OF_THE_LINKER: [u8; 11] = [0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22];
    const ENDLESS: [u8; 3] = [0x2f, 0xfd, 0xff];
    let mut bytes = libc();
    let places: Vec<_> = (0..bytes.len() - OF_THE_LINKER.len())
        .filter(|at| bytes[*at..].starts_with(&OF_THE_LINKER))
        .collect();
    assert!(!places.is_empty(), "the C library calls functions through .plt");
    for at in places {
        bytes[at..at + ENDLESS.len()].copy_from_slice(&ENDLESS);
    }
    let file = object::File::parse(bytes.as_slice()).expect("an image");
    let plt = file.section_by_name(".plt").expect("it is there");
    let ip = MAPPED_AT + plt.address() + 32;
    let registers = Registers { ip, sp: STACK_AT, bp: 0, ..Registers::default() };
    let found = NativeUnwinder::new().unwind(&mapped(&bytes), &registers, &[0; 64]);
    assert!(found.truncated.is_some_and(|why| why.contains("jumps back")));
}

/// The headers of a damaged file never lead outside of what is bounded.
#[test]
fn damaged_headers() {
    let whole = libc();
    rounds(200, |random| {
        let mut bytes = damaged_elf(random, &whole);
        if random.once_in(2) {
            damage(random, &mut bytes);
        }
        let Ok(image) = Image::from_memory(bytes, 0) else { return };
        image.address_of(random.odd_number());
        image.lowest_address();
        for section in [image.eh_frame(), image.eh_frame_hdr(), image.text(), image.got()] {
            let read = section.map(|section| (section, image.read(section)));
            if let Some((section, Ok(bytes))) = read {
                assert_eq!(bytes.len() as u64, section.file.end - section.file.start);
            }
        }
    });
}

fn any_frame(random: &mut Random, language: Language) -> Frame {
    let names = ["_PyEval_EvalFrameDefault", "_PyEval_EvalFrameDefault.cold", "f", ""];
    Frame {
        function: (!random.once_in(4)).then(|| (*random.pick(&names)).into()),
        file: None,
        line: None,
        module: None,
        language,
        inlined: random.once_in(2),
        address: Some(random.odd_number()),
        module_offset: None,
    }
}

/// Whatever two stacks are put together, no Python frame is lost, every native one stays or was
/// replaced by what it ran, and a stack that is not whole says so.
#[test]
fn merged_stacks() {
    rounds(2000, |random| {
        let cut = |random: &mut Random| random.once_in(3).then(|| "cut".to_owned());
        let native: Vec<Vec<Frame>> = (0..random.below(12))
            .map(|_| (0..random.below(3)).map(|_| any_frame(random, Language::Native)).collect())
            .collect();
        let spans: Vec<PythonSpan> = (0..random.below(6))
            .map(|_| {
                let frames = 0..random.below(4);
                let frames = frames.map(|_| any_frame(random, Language::Python)).collect();
                let anchor = random.once_in(2).then(|| random.below(2000) as u64);
                let may_wait = random.once_in(3);
                PythonSpan { frames, ran: EvalRun { anchor, may_wait } }
            })
            .collect();
        let natives = native.iter().map(Vec::len).sum::<usize>();
        let pythons: Vec<_> = spans.iter().flat_map(|span| span.frames.clone()).collect();
        let stack_pointers = (0..native.len() as u64).map(|place| place * 100).collect();
        let native = NamedNativeStack { frames: native, stack_pointers, truncated: cut(random) };
        let python =
            PythonStack { hole: any_hole(random, spans.len()), spans, truncated: cut(random) };
        let (native_cut, python_cut) = (native.truncated.clone(), python.truncated.is_some());
        let merged = merge(native, python);

        let is_python = |frame: &&Frame| frame.language == Language::Python;
        let left: Vec<_> = merged.frames.iter().filter(is_python).cloned().collect();
        assert_eq!(left, pythons, "all of them, in order");
        let gone = natives - (merged.frames.len() - pythons.len());
        assert!(gone <= pythons.len(), "each eval call that is gone ran something");
        assert_eq!(merged.truncated, native_cut);
        assert!(!python_cut || !merged.gaps.is_empty());
    });
}
