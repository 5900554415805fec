//! Holds every source file against the rules that the repository has given itself.

mod circles;
mod code;
mod direction;
mod imports;
mod names;
mod violation;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::process::workspace;
use crate::report::{Colour, note, paint};
use code::Code;
use violation::Violation;

/// Non-test lines of a file; past this it has more than one job.
const MAX_LINES: usize = 400;

/// What in a file's first paragraph exempts it from the limit: uniform entries, one after another.
const CATALOGUE: &str = "a catalogue";

/// Names that say nothing about what is in a module, and so attract everything.
const NAMELESS: [&str; 7] = ["util", "utils", "helper", "helpers", "common", "misc", "types"];

/// The only folders that know the eBPF library: the loader, the probes (only the binary half of their
/// package), and what measures programs that are none of ours.
const KNOW_AYA: [&str; 3] =
    ["profiler-user/src/source/kernel/", "profiler-ebpf/src/", "tests/src/"];

/// The only files with unsafe code; each block in them says why it is sound.
const UNSAFE: [&str; 13] = [
    "profiler-ebpf/src/capture.rs",
    "profiler-ebpf/src/emit.rs",
    "profiler-ebpf/src/instance.rs",
    "profiler-ebpf/src/main.rs",
    "profiler-ebpf/src/maps.rs",
    "profiler-ebpf/src/sched.rs",
    "profiler-ebpf/src/other_threads.rs",
    "profiler-ebpf/src/park.rs",
    "profiler-ebpf/src/runnable.rs",
    "profiler-ebpf/src/sample.rs",
    "profiler-ebpf/src/task.rs",
    "profiler-ebpf/src/wait.rs",
    "profiler-user/src/source/kernel/table.rs",
];

/// The only files of the daemon with the crate `nix`. All others use `rustix`, which has none of these without unsafe
/// code: reads of another process's memory, the credentials of a peer that has no number here, and `unshare`.
const KNOW_NIX: [&str; 3] = [
    "profiler-user/src/process/borrowed.rs",
    "profiler-user/src/process/live.rs",
    "profiler-user/src/source/kernel/preflight.rs",
];

/// The only module of the daemon whose types become JSON, in one file or several.
const SERIALISES: &str = "profiler-user/src/report/schema";

/// What the same input gives the same answer of, at any time and on any machine.
const PURE: [&str; 2] = ["profiler-user/src/turn/", "profiler-user/src/report/"];

/// What would make it another answer: clocks, files, and the readers of /proc.
const IMPURE: [&str; 8] = [
    "fs",
    "env",
    "Instant",
    "SystemTime",
    "monotonic_ns",
    "clock_gettime",
    "thread_name",
    "LiveMemory",
];

/// Checks all sources; prints each violation as `file:line: rule`.
pub fn tidy() -> Result<()> {
    let mut files = Vec::new();
    for member in ["profiler-ebpf", "profiler-user", "xtask", "tests"] {
        sources_below(&workspace().join(member), &mut files)?;
    }
    let library = fs::read_to_string(workspace().join("profiler-ebpf/src/lib.rs"))?;
    let shared = modules(&Code::of(&library));
    let mut texts = BTreeMap::new();
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
        let path = file.strip_prefix(workspace())?.display().to_string();
        texts.insert(path, text);
    }
    let alone = texts.iter().flat_map(|(path, text)| {
        check(path, text, &shared).into_iter().map(|violation| (path.clone(), violation))
    });
    let violations: Vec<_> =
        alone.chain(circles::circles(&texts)).chain(names::doubled(&texts)).collect();
    for (path, Violation { line, rule }) in &violations {
        eprintln!("{}: {rule}", paint(Colour::Yellow, &format!("{path}:{line}")));
    }
    if !violations.is_empty() {
        bail!("{} places break the rules of the sources", violations.len());
    }
    note(&format!("{} files keep the rules of the sources", files.len()));
    Ok(())
}

fn sources_below(folder: &Path, files: &mut Vec<std::path::PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources_below(&path, files)?;
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

/// The modules that a file declares.
fn modules(code: &Code) -> Vec<String> {
    let mut found = Vec::new();
    for (_, words) in code.words() {
        let pairs = words.windows(2).filter(|pair| pair[0] == "mod");
        found.extend(pairs.map(|pair| pair[1].to_owned()));
    }
    found
}

/// All rules on one file. `shared` names the modules of the probes' library half.
fn check(path: &str, text: &str, shared: &[String]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut broken = |line, rule: String| violations.push(Violation { line, rule });

    if !text.starts_with("//! ") {
        broken(1, "begins with one `//!` sentence that says what the file is".to_owned());
    }
    let own = text.lines().take_while(|line| line.trim() != "#[cfg(test)]").count();
    let is_exempt = is_test(path) || first_paragraph(text).contains(CATALOGUE);
    if own > MAX_LINES && !is_exempt {
        broken(
            MAX_LINES + 1,
            format!("has {own} lines before its tests; {MAX_LINES} are the most"),
        );
    }
    for name in path.trim_end_matches(".rs").split('/').filter(|name| NAMELESS.contains(name)) {
        broken(1, format!("is called `{name}`, which says nothing; name the thing"));
    }

    let knows_aya =
        KNOW_AYA.iter().any(|folder| path.starts_with(folder)) && !is_library_half(path, shared);
    let is_pure =
        PURE.iter().any(|folder| path.starts_with(folder)) && !direction::is_of_tests(path);
    let code = Code::of(text);
    for (line, words) in code.words() {
        let is_pure = is_pure && line <= own;
        for (position, word) in words.iter().enumerate() {
            let declares = position > 0 && words[position - 1] == "mod";
            match *word {
                "unsafe" if !UNSAFE.contains(&path) => {
                    broken(
                        line,
                        "has unsafe code and is not on the list of files with it".to_owned(),
                    );
                }
                "Serialize"
                    if path.starts_with("profiler-user/src") && !path.starts_with(SERIALISES) =>
                {
                    broken(line, format!("serialises; only {SERIALISES} does"));
                }
                name if is_pure && IMPURE.contains(&name) => {
                    broken(
                        line,
                        format!("names `{name}`: what is below here reads nothing but its input"),
                    );
                }
                "nix" if path.starts_with("profiler-user/src") && !KNOW_NIX.contains(&path) => {
                    broken(line, "names the crate `nix`: `rustix` does the same here".to_owned());
                }
                name if declares && NAMELESS.contains(&name) => {
                    broken(
                        line,
                        format!("declares `mod {name}`, which says nothing; name the thing"),
                    );
                }
                name if is_aya(name) && !knows_aya => {
                    broken(
                        line,
                        format!(
                            "names `{name}`, which only the probes, their loader and the benchmark know"
                        ),
                    );
                }
                _ => {}
            }
        }
    }
    violations.extend(direction::against(path, text));
    violations
}

/// Whether a file holds nothing but tests: `tests.rs`, or below a package's own `tests`.
fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

fn first_paragraph(text: &str) -> String {
    let lines = text.lines().map_while(|line| line.strip_prefix("//! "));
    lines.collect::<Vec<_>>().join(" ")
}

/// Whether a file is what kernel side and user side share.
fn is_library_half(path: &str, shared: &[String]) -> bool {
    path.strip_prefix("profiler-ebpf/src/").is_some_and(|file| {
        let module = file.split('/').next().unwrap_or(file).trim_end_matches(".rs");
        module == "lib" || shared.iter().any(|name| name == module)
    })
}

fn is_aya(word: &str) -> bool {
    word == "aya" || word.starts_with("aya_")
}

#[cfg(test)]
mod tests {
    use super::{MAX_LINES, check};

    fn rules(path: &str, text: &str) -> Vec<(usize, String)> {
        let found = check(path, text, &["turn".to_owned()]);
        found.into_iter().map(|violation| (violation.line, violation.rule)).collect()
    }

    /// The line and a part of the rule of the one violation in a text.
    fn only(path: &str, text: &str, line: usize, part: &str) {
        let found = rules(path, text);
        assert!(found.len() == 1 && found[0].0 == line && found[0].1.contains(part), "{found:?}");
    }

    /// A file that says what it is and does nothing odd keeps all rules.
    #[test]
    fn plain_file_passes() {
        assert_eq!(rules("profiler-user/src/turn/mod.rs", "//! Does things.\nfn f() {}\n"), []);
    }

    /// A file without its sentence is found.
    #[test]
    fn sentence_is_missing() {
        only("xtask/src/vm.rs", "fn f() {}\n", 1, "sentence");
    }

    /// Lines are counted up to the tests, and not in a catalogue.
    #[test]
    fn long_files() {
        let lines = "fn f() {}\n".repeat(MAX_LINES);
        only("a.rs", &format!("//! Long.\n{lines}"), MAX_LINES + 1, "401 lines");
        assert_eq!(rules("a.rs", &format!("//! Long.\n//! It is a catalogue.\n{lines}")), []);
        assert_eq!(rules("a.rs", &format!("//! Short.\n#[cfg(test)]\n{lines}")), []);
        let tests = format!("//! Tests.\n{lines}");
        assert_eq!(rules("tests/tests/redis.rs", &tests), []);
        assert_eq!(rules("profiler-user/src/turn/tests.rs", &tests), []);
        only("tests/src/redis.rs", &tests, MAX_LINES + 1, "401 lines");
    }

    /// The eBPF library is known to the loader and to the probes, not to what both sides share.
    #[test]
    fn who_knows_aya() {
        let text = "//! Uses it.\nuse aya::Ebpf;\n";
        only("profiler-user/src/session.rs", text, 2, "`aya`");
        only("profiler-ebpf/src/turn.rs", "//! It.\nuse aya_ebpf::maps;\n", 2, "`aya_ebpf`");
        assert_eq!(rules("profiler-user/src/source/kernel/mod.rs", text), []);
        assert_eq!(rules("profiler-ebpf/src/maps.rs", text), []);
    }

    /// Rules and reports read no clock and no file; their tests may.
    #[test]
    fn what_reads_nothing() {
        let text = "//! Reads.\nfn f() { std::fs::read(\"/proc/stat\") }\n";
        only("profiler-user/src/report/mod.rs", text, 2, "`fs`");
        only("profiler-user/src/turn/samples.rs", text, 2, "`fs`");
        assert_eq!(rules("profiler-user/src/process/target.rs", text), []);
        let tests = "//! Tests.\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
        assert_eq!(rules("profiler-user/src/report/mod.rs", tests), []);
    }

    /// One of the two crates of system calls is known to the files that cannot do without.
    #[test]
    fn who_knows_nix() {
        let text = "//! Uses it.\nuse nix::unistd::gettid;\n";
        only("profiler-user/src/process/thread.rs", text, 2, "`nix`");
        assert_eq!(rules("profiler-user/src/process/live.rs", text), []);
        assert_eq!(rules("tests/src/target.rs", text), []);
    }

    /// Words in comments and texts are not code.
    #[test]
    fn words_are_not_code() {
        let text = "//! Says it.\n// unsafe aya\nconst A: &str = \"unsafe aya::Ebpf\";\n";
        assert_eq!(rules("profiler-user/src/session.rs", text), []);
    }

    /// Unsafe code is found outside the listed files, attributes included.
    #[test]
    fn unsafe_code() {
        let text = "//! Dares.\nfn f() { unsafe { g() } }\n";
        only("profiler-user/src/session.rs", text, 2, "unsafe");
        assert_eq!(rules("profiler-ebpf/src/maps.rs", text), []);
    }

    /// Only the schema becomes JSON; the tests' own types may.
    #[test]
    fn who_serialises() {
        let text = "//! Speaks.\n#[derive(Debug, Serialize)]\nstruct S;\n";
        only("profiler-user/src/turn/mod.rs", text, 2, "serialises");
        assert_eq!(rules("profiler-user/src/report/schema/stall.rs", text), []);
        assert_eq!(rules("tests/src/bench.rs", text), []);
    }

    /// Modules whose names say nothing are found by file and by declaration.
    #[test]
    fn nameless_modules() {
        only("profiler-user/src/turn/util.rs", "//! Has it all.\n", 1, "`util`");
        only("tests/src/lib.rs", "//! Has them.\npub mod helpers;\n", 2, "`mod helpers`");
    }
}
