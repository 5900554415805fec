//! Stripped programs whose symbols lie elsewhere: in a separate debug file, or compressed inside of them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Look, PROGRAM, Target, compile, from_inner_to_main};

/// What the names of our program's functions are, from inside outwards.
const OURS: [&str; 4] = ["inner", "middle", "outer", "main"];

fn run(program: &str, words: &[&str]) {
    let status = Command::new(program).args(words).status().unwrap();
    assert!(status.success(), "{program} {words:?}: {status}");
}

/// Moves a program's debug information to `.debug/NAME` beside it, with a link from the one to the other.
fn split(binary: &Path) -> PathBuf {
    let debug_folder = binary.parent().unwrap().join(".debug");
    fs::create_dir_all(&debug_folder).unwrap();
    let name = format!("{}.debug", binary.file_name().unwrap().to_str().unwrap());
    let debug = debug_folder.join(name);
    let (program, file) = (binary.to_str().unwrap(), debug.to_str().unwrap());
    run("objcopy", &["--only-keep-debug", program, file]);
    run("strip", &[program]);
    run("objcopy", &[&format!("--add-gnu-debuglink={file}"), program]);
    debug
}

fn look(binary: &Path) -> Look {
    let look = Target::start(&mut Command::new(binary)).unwrap().look();
    look.show(binary.file_name().unwrap().to_str().unwrap());
    assert_eq!(look.stack.truncated, None);
    look
}

fn must_be_nameless(look: &Look, binary: &Path) {
    let mut own = look.all().filter(|frame| frame.module.as_deref() == binary.to_str());
    assert!(own.all(|frame| frame.function.is_none() && frame.line.is_none()));
}

/// A debug file of the same build gives functions, inlined ones and lines: proven by the build id, or,
/// where there is none, by the checksum.
#[test]
fn separate_debug_file() {
    let flags =
        [("split", "-Wl,--build-id=sha1"), ("sum", "-Wl,--build-id=none"), ("zipped", "-gz")];
    for (name, flag) in flags {
        let Some(binary) = compile(name, &["-g", flag]) else { return };
        split(&binary);
        let look = look(&binary);
        let functions = look.functions();
        assert_eq!(from_inner_to_main(&functions)[..4], OURS, "{name}");
        let nap = functions.iter().position(|function| *function == "nap").unwrap();
        assert_eq!(functions[nap + 1], "inner");
        let nap = look.all().nth(nap).unwrap();
        let line = 1 + PROGRAM.lines().position(|line| line.contains("/* nap */")).unwrap();
        assert_eq!((nap.inlined, nap.line), (true, Some(line as u32)));
        assert!(nap.file.as_deref().unwrap().ends_with(&format!("{name}.c")));
    }
}

/// What several debug files have in common lies in one more file, to which they refer.
#[test]
fn common_debug_file() {
    let Some(binary) = compile("common-1", &["-g"]) else { return };
    let Some(other) = compile("common-2", &["-g", "-O1"]) else { return };
    let files = [split(&binary), split(&other)].map(|path| path.to_str().unwrap().to_owned());
    let common = format!("{}/.debug/common.debug", env!("CARGO_TARGET_TMPDIR"));
    match Command::new("dwz").args(["-m", &common, "-M", &common]).args(&files).status() {
        Ok(status) => assert!(status.success()),
        Err(error) => {
            println!("skipped: dwz: {error}");
            return;
        }
    }
    let whole = look(&binary);
    assert_eq!(from_inner_to_main(&whole.functions())[..4], OURS);
    let nap = whole.all().find(|frame| frame.function.as_deref() == Some("nap")).unwrap();
    assert!(nap.inlined && nap.line.is_some());

    // The symbols are whole without it.
    fs::remove_file(common).unwrap();
    assert_eq!(from_inner_to_main(&look(&binary).functions())[..4], OURS);
}

/// A debug file of another build is not used, and the report says so.
#[test]
fn debug_file_of_another_build() {
    for (name, flag) in [("other", "-Wl,--build-id=sha1"), ("other-sum", "-Wl,--build-id=none")] {
        let Some(binary) = compile(name, &["-g", flag]) else { return };
        let debug = split(&binary);
        let Some(another) = compile(&format!("{name}-2"), &["-g", "-O1", flag]) else { return };
        fs::copy(another, &debug).unwrap();
        let look = look(&binary);
        must_be_nameless(&look, &binary);
        let why = if name == "other" { "of another build" } else { "its checksum is not" };
        assert!(look.gaps.iter().any(|gap| gap.contains(why)), "{:?}", look.gaps);
    }
}

/// Writes `NAME.xz`.
fn compress(bytes: &[u8], name: &str) {
    let mut encoder = xz2::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    fs::write(format!("{name}.xz"), encoder.finish().unwrap()).unwrap();
}

/// Symbols that Fedora's way of stripping leaves behind, compressed, are found; absurd ones are refused.
#[test]
fn mini_debug_info() {
    let Some(binary) = compile("mini", &[]) else { return };
    let program = binary.to_str().unwrap();
    let symbols = format!("{program}.symbols");
    run("objcopy", &["--only-keep-debug", program, &symbols]);
    compress(&fs::read(&symbols).unwrap(), &symbols);
    run("strip", &[program]);
    let stripped = fs::read(&binary).unwrap();
    run("objcopy", &[&format!("--add-section=.gnu_debugdata={symbols}.xz"), program]);
    let functions = look(&binary);
    assert_eq!(from_inner_to_main(&functions.functions())[..4], OURS);

    compress(&vec![0; 40 << 20], &symbols);
    fs::write(&binary, stripped).unwrap();
    run("objcopy", &[&format!("--add-section=.gnu_debugdata={symbols}.xz"), program]);
    let look = look(&binary);
    must_be_nameless(&look, &binary);
    assert!(look.gaps.iter().any(|gap| gap.contains("more than")), "{:?}", look.gaps);
}

/// C++ and Rust names come out as people write them.
#[test]
fn mangled_names() {
    let Some(binary) = compile("mangled", &[]) else { return };
    let program = binary.to_str().unwrap();
    run("objcopy", &["--redefine-sym", "middle=_ZN4shop5Queue3popEi", program]);
    run("objcopy", &["--redefine-sym", "outer=_RNvNtC4shop5queue3pop", program]);
    let look = look(&binary);
    let functions = look.functions();
    let ours = from_inner_to_main(&functions);
    assert_eq!(ours[..4], ["inner", "shop::Queue::pop(int)", "shop::queue::pop", "main"]);
}

/// A symbol that does not say how far it reaches is no name for what lies behind it.
#[test]
fn symbols_without_size() {
    let Some(binary) = compile("sizeless", &[]) else { return };
    let program = binary.to_str().unwrap();
    // All that is left is a label at the beginning of the code.
    run("strip", &[program]);
    run("objcopy", &["--add-symbol", "label=.text:0,global", program]);
    must_be_nameless(&look(&binary), &binary);
}
