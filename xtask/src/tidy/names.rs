//! One name, one public type: who has learnt what a name means need not ask where it stands.

use std::collections::BTreeMap;

use super::code::Code;
use super::direction::is_of_tests;
use super::violation::Violation;

/// The packages whose types one reader has before them at a time.
const PACKAGES: [&str; 3] = ["profiler-user/src/", "profiler-ebpf/src/", "xtask/src/"];

/// What declares a type.
const DECLARE: [&str; 4] = ["struct", "enum", "trait", "type"];

/// Each public type whose name another file of its package has given to one before.
pub fn doubled(texts: &BTreeMap<String, String>) -> Vec<(String, Violation)> {
    PACKAGES.iter().flat_map(|package| doubled_in(package, texts)).collect()
}

fn doubled_in(package: &str, texts: &BTreeMap<String, String>) -> Vec<(String, Violation)> {
    let mut first: BTreeMap<String, &str> = BTreeMap::new();
    let mut found = Vec::new();
    let files = texts.iter().filter(|(path, _)| path.starts_with(package) && !is_of_tests(path));
    for (path, text) in files {
        for (line, name) in public_types(text) {
            match first.get(name.as_str()) {
                Some(other) => {
                    let rule = format!("calls a public type `{name}`, as {other} does another");
                    found.push((path.clone(), Violation { line, rule }));
                }
                None => {
                    first.insert(name, path);
                }
            }
        }
    }
    found
}

/// The public types that a file declares before its tests.
fn public_types(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (line, words) in Code::of(text).words() {
        match words[..] {
            ["mod", "tests"] => break,
            ["pub", kind, name, ..] if DECLARE.contains(&kind) => {
                found.push((line, name.to_owned()));
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::doubled;

    fn rules(texts: &[(&str, &str)]) -> Vec<(String, usize)> {
        let owned = texts.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
        let found = doubled(&owned.collect::<BTreeMap<_, _>>());
        found.into_iter().map(|(path, violation)| (path, violation.line)).collect()
    }

    /// The second of two is found, whatever kind of type it is.
    #[test]
    fn a_name_for_two() {
        let one = ("profiler-user/src/a.rs", "//! A.\npub struct Wait;\n");
        let other = ("profiler-user/src/b.rs", "//! B.\n\npub enum Wait {}\n");
        assert_eq!(rules(&[one, other]), [("profiler-user/src/b.rs".to_owned(), 3)]);
    }

    /// Private types, functions, types of tests, and those of another package may be called the same.
    #[test]
    fn names_that_nobody_confuses() {
        let one = ("profiler-user/src/a.rs", "//! A.\npub struct Wait;\n");
        let others = [
            "//! B.\nstruct Wait;\n",
            "//! B.\npub(crate) fn wait() {}\npub(super) struct Wait;\n",
            "//! B.\nmod tests {\n    pub struct Wait;\n}\n",
            "//! B.\n// pub struct Wait;\n",
        ];
        for other in others {
            assert_eq!(rules(&[one, ("profiler-user/src/b.rs", other)]), []);
        }
        assert_eq!(rules(&[one, ("profiler-ebpf/src/b.rs", "//! B.\npub struct Wait;\n")]), []);
        assert_eq!(rules(&[one, ("profiler-user/src/tests.rs", "//! B.\npub struct Wait;\n")]), []);
    }
}
