//! Naming addresses by the symbols and debug information of files that lie.

use std::process::{Command, Stdio};

use super::kernel::KernelSymbols;
use super::native::NativeSymbolizer;
use crate::hostile::{MAPPED_AT, Random, damage, damaged_elf, mapped, rounds};
use crate::process::image::Image;
use crate::process::kernel_stack;
use crate::unwind::native::{NativeFrame, Reached};

/// Functions within functions, on several lines.
const PROGRAM: &str = "
static inline __attribute__((always_inline)) int a(int n) { return n * 3 + 1; }
static inline __attribute__((always_inline)) int b(int n) { return a(n) ^ a(n + 1); }
int c(int n) { return b(n) + b(2 * n); }
int main(int n, char **words) { return c(n) + (words[0][0]); }
";

/// What the compiler makes of that, with debug information.
fn program(how: &str) -> Vec<u8> {
    use std::io::Write;
    let path = std::env::temp_dir().join(format!("stalltrace-fuzz-{}{how}", std::process::id()));
    let mut compiler = Command::new("cc")
        .args(["-g", "-O2", how, "-x", "c", "-", "-o"])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("Rust programs are linked by it");
    let mut source = compiler.stdin.take().expect("a pipe");
    source.write_all(PROGRAM.as_bytes()).expect("it reads");
    drop(source);
    assert!(compiler.wait().expect("it ends").success());
    let bytes = std::fs::read(&path).expect("it was made");
    std::fs::remove_file(&path).expect("it was made");
    bytes
}

fn frames<'a>(
    random: &'a mut Random,
    modules: &crate::process::modules::Modules,
    code: &'a std::ops::Range<u64>,
) -> impl Iterator<Item = NativeFrame> + 'a {
    let module = modules.iter().next().map(|module| module.id);
    (0..20).map(move |_| {
        let offset = match random.below(4) {
            0 => random.odd_number(),
            _ => code.start + random.next() % (code.end - code.start),
        };
        NativeFrame {
            address: MAPPED_AT.wrapping_add(offset),
            is_return_address: random.once_in(2),
            module,
            file_offset: Some(offset),
            stack_pointer: 0,
            reached: Reached::Registers,
            frame_pointer: 0,
        }
    })
}

fn damaged_files(how: &str) {
    let whole = program(how);
    let image = Image::from_memory(whole.clone(), 0).expect("an image");
    let code = image.text().expect("code").file.clone();
    let mut seen = 0;
    rounds(500, |random| {
        let mut bytes = whole.clone();
        if random.once_in(2) {
            bytes = damaged_elf(random, &bytes);
        }
        // Behind the code lie the debug information and the symbols.
        let tables = bytes.split_off((code.end as usize).min(bytes.len()));
        let mut tables = tables;
        for _ in 0..random.below(20) {
            damage(random, &mut tables);
        }
        bytes.append(&mut tables);
        let modules = mapped(&bytes);
        let mut symbolizer = NativeSymbolizer::new();
        for frame in frames(random, &modules, &code) {
            let names = symbolizer.name(&modules, &frame);
            assert!(names.iter().all(|name| name.address == Some(frame.address)));
            assert!(!names.is_empty(), "a frame without a name is still a frame");
            seen += usize::from(names.iter().any(|name| name.function.is_some()));
        }
    });
    assert!(seen > 0, "not everything was damaged beyond recognition");
}

#[test]
fn damaged_debug_information() {
    damaged_files("-gdwarf-5");
    damaged_files("-gdwarf-4");
}

#[test]
fn damaged_compressed_debug_information() {
    damaged_files("-gz");
}

/// Texts of the kernel's form with anything in them.
#[test]
fn kernel_texts() {
    let symbols = b"ffffffff81000000 T _stext\nffffffff82000000 t nf_hook\t[nf_tables]\n";
    let stack = b"[<0>] hrtimer_nanosleep+0xa9/0x150\n[<ffffffff810a5c31>] f+0x1/0x2 [m]\n";
    rounds(500, |random| {
        let (mut symbols, mut stack) = (symbols.to_vec(), stack.to_vec());
        damage(random, &mut symbols);
        damage(random, &mut stack);
        if let Ok(symbols) = KernelSymbols::parse(symbols.as_slice()) {
            let addresses = [random.odd_number(), 0xffff_ffff_8100_0010, u64::MAX, 0];
            assert_eq!(symbols.name(&addresses).len(), addresses.len());
        }
        kernel_stack::frames(&String::from_utf8_lossy(&stack));
    });
}
