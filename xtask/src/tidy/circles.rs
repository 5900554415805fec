//! Files of one program or library that import each other in a circle, however long.
//!
//! An import leads to the file of the deepest module that its path names; what a module hands on by
//! `pub use` leads to where it comes from. To declare a module is not to import it.

use std::collections::{BTreeMap, BTreeSet};

use super::imports::{Import, Imports};
use super::violation::Violation;

/// The first files of the programs and libraries that have no circles.
const ROOTS: [&str; 3] =
    ["profiler-user/src/lib.rs", "profiler-ebpf/src/lib.rs", "xtask/src/main.rs"];

/// How often an import may be handed on.
const MAX_HANDED_ON: usize = 8;

/// The names of a module, outermost first; none is the first file's.
type Module = Vec<String>;

/// A file, and what it names.
#[derive(Debug)]
struct File {
    path: String,
    imports: Imports,
}

/// The files of one program or library, by module.
#[derive(Debug, Default)]
struct Files(BTreeMap<Module, File>);

/// One file's imports of other files: to which, and the line of the first.
type Arrows<'a> = BTreeMap<&'a Module, (usize, String)>;

/// All circles.
pub fn circles(texts: &BTreeMap<String, String>) -> Vec<(String, Violation)> {
    let missing = ROOTS.iter().filter(|root| !texts.contains_key(**root)).map(|root| {
        let rule = format!("looks for circles below {root}, which is not there");
        (file!().to_owned(), Violation { line: 1, rule })
    });
    missing.chain(ROOTS.iter().flat_map(|root| below(root, texts))).collect()
}

/// The circles of the files below a first one, each by its first import.
fn below(root: &str, texts: &BTreeMap<String, String>) -> Vec<(String, Violation)> {
    let mut files = Files::default();
    let folder = root.rsplit_once('/').map_or("", |(folder, _)| folder);
    files.add(Module::new(), root.to_owned(), folder, texts);
    let arrows: BTreeMap<&Module, Arrows<'_>> =
        files.0.keys().map(|module| (module, files.arrows(module))).collect();
    let reached: BTreeMap<&Module, BTreeSet<&Module>> =
        arrows.keys().map(|module| (*module, reachable(module, &arrows))).collect();
    let mut told = BTreeSet::new();
    let mut found = Vec::new();
    for (module, others) in &reached {
        let circle: Vec<&Module> =
            others.iter().copied().filter(|other| reached[other].contains(module)).collect();
        if circle.len() > 1 && told.insert(circle.clone()) {
            found.push(files.circle(&circle, &arrows));
        }
    }
    found
}

/// What can be reached from a module by arrows.
fn reachable<'a>(from: &Module, arrows: &BTreeMap<&'a Module, Arrows<'a>>) -> BTreeSet<&'a Module> {
    let mut reached = BTreeSet::new();
    let mut ahead = vec![from];
    while let Some(module) = ahead.pop() {
        for other in arrows[module].keys() {
            if reached.insert(*other) {
                ahead.push(other);
            }
        }
    }
    reached
}

impl Files {
    /// A file and those of the modules that it declares; one that is not there is nobody's.
    fn add(
        &mut self,
        module: Module,
        path: String,
        folder: &str,
        texts: &BTreeMap<String, String>,
    ) {
        let Some(text) = texts.get(&path) else { return };
        let imports = Imports::of(text);
        for child in &imports.modules {
            let inner = format!("{folder}/{child}");
            let own = format!("{inner}.rs");
            let own = if texts.contains_key(&own) { own } else { format!("{inner}/mod.rs") };
            let module = module.iter().chain([child]).cloned().collect();
            self.add(module, own, &inner, texts);
        }
        self.0.insert(module, File { path, imports });
    }

    fn arrows(&self, from: &Module) -> Arrows<'_> {
        let mut arrows = Arrows::new();
        let imports = &self.0[from].imports;
        for import in &imports.all {
            let is_used = |name| imports.words.contains(name);
            let is_handed_on = import.is_public && !import.name.as_ref().is_some_and(is_used);
            if is_handed_on {
                continue;
            }
            let Some((to, item)) = self.target(from, &import.path, MAX_HANDED_ON) else { continue };
            // The name of a module alone; what is used of it says so in its own place.
            let is_module = item == 0 && import.name.is_some();
            if to != from && !is_module {
                let first = || (import.line, import.path.join("::"));
                arrows.entry(to).or_insert_with(first);
            }
        }
        arrows
    }

    /// The module that a path leads to, and how many of its names are of the item there.
    fn target(&self, from: &[String], path: &[String], left: usize) -> Option<(&Module, usize)> {
        let (first, mut rest) = path.split_first()?;
        let left = left.checked_sub(1)?;
        let mut at = match first.as_str() {
            "crate" => Module::new(),
            "self" => from.to_vec(),
            "super" => from[..from.len().checked_sub(1)?].to_vec(),
            _ if self.0.contains_key(&child(from, first)) => child(from, first),
            _ => {
                // A name that this file has imported: of a module, or of a type with items below it.
                let import = self.named(from, first)?;
                let path: Vec<String> = import.path.iter().chain(rest).cloned().collect();
                return self.target(from, &path, left);
            }
        };
        while let Some((name, after)) = rest.split_first() {
            let inner = child(&at, name);
            if name == "super" {
                at.pop()?;
            } else if self.0.contains_key(&inner) {
                at = inner;
            } else if let Some(import) = self.named(&at, name).filter(|import| import.is_public) {
                let path: Vec<String> = import.path.iter().chain(after).cloned().collect();
                return self.target(&at, &path, left);
            } else {
                break;
            }
            rest = after;
        }
        self.0.get_key_value(&at).map(|(module, _)| (module, rest.len()))
    }

    /// The import that gives a file this name.
    fn named(&self, module: &[String], name: &str) -> Option<&Import> {
        let imports = &self.0.get(module)?.imports;
        // A path that begins with the name it gives is of another package.
        imports.all.iter().find(|import| {
            import.name.as_deref() == Some(name) && import.path.first().is_some_and(|f| f != name)
        })
    }

    /// A circle, with one import for each of its arrows.
    fn circle(
        &self,
        modules: &[&Module],
        arrows: &BTreeMap<&Module, Arrows<'_>>,
    ) -> (String, Violation) {
        let mut rule = format!("{} files import each other in a circle:", modules.len());
        let mut first = None;
        for from in modules {
            for (to, (line, path)) in arrows[from].iter().filter(|(to, _)| modules.contains(to)) {
                let (from, to) = (&self.0[*from].path, &self.0[*to].path);
                rule.push_str(&format!("\n    {from}:{line}: `{path}` is of {to}"));
                first = first.or(Some(*line));
            }
        }
        let path = modules.first().map(|module| self.0[*module].path.clone());
        (path.unwrap_or_default(), Violation { line: first.unwrap_or(1), rule })
    }
}

fn child(module: &[String], name: &str) -> Module {
    module.iter().map(String::as_str).chain([name]).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{ROOTS, below, circles};

    /// Each package is looked at from its first file, and one that is not there is said to be missing.
    #[test]
    fn all_packages() {
        let circle = "use crate::a::A;\nmod a;\n";
        let mut texts: BTreeMap<_, _> =
            ROOTS.iter().map(|root| ((*root).to_owned(), circle.to_owned())).collect();
        for root in ROOTS {
            let (folder, _) = root.rsplit_once('/').unwrap();
            texts.insert(format!("{folder}/a.rs"), "use crate::B;\n".to_owned());
        }
        assert_eq!(circles(&texts).len(), ROOTS.len());
        texts.remove(ROOTS[0]);
        let found = circles(&texts);
        assert!(found[0].1.rule.contains("not there") && found.len() == ROOTS.len(), "{found:?}");
    }

    /// The lines of what is said of these files, the first of each circle with its place.
    fn said(files: &[(&str, &str)]) -> Vec<String> {
        let path = |name: &str| format!("p/src/{name}");
        let texts = files.iter().map(|(name, text)| (path(name), (*text).to_owned())).collect();
        let found = below("p/src/lib.rs", &texts)
            .into_iter()
            .map(|(path, violation)| format!("{path}:{}: {}", violation.line, violation.rule));
        let lines = found.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
        lines.map(|line| line.trim().to_owned()).collect()
    }

    /// A chain is none, however often its ends are imported, and however it is written.
    #[test]
    fn a_chain() {
        let files = [
            ("lib.rs", "pub mod a;\nmod b;\nmod c;\nuse a::A;\n"),
            ("a.rs", "use crate::b::{B, C};\nfn f() { super::c::g() }\n"),
            ("b.rs", "use super::c;\nuse std::fmt;\nfn f() { c::g() }\n"),
            ("c.rs", "use std::collections::BTreeMap;\n"),
        ];
        assert_eq!(said(&files), [""; 0]);
    }

    /// Two files, one of which names the other in place.
    #[test]
    fn two() {
        let files = [
            ("lib.rs", "mod a;\nmod b;\n"),
            ("a.rs", "\nuse crate::b::B;\n"),
            ("b.rs", "fn f() {\n    crate::a::g();\n}\n"),
        ];
        let expected = [
            "p/src/a.rs:2: 2 files import each other in a circle:",
            "p/src/a.rs:2: `crate::b::B` is of p/src/b.rs",
            "p/src/b.rs:2: `crate::a::g` is of p/src/a.rs",
        ];
        assert_eq!(said(&files), expected);
    }

    /// Three files, by names that they have imported, and one beside them that only looks on.
    #[test]
    fn three() {
        let files = [
            ("lib.rs", "mod a;\nmod b;\nmod c;\nmod d;\n"),
            ("a.rs", "use crate::b::inner;\nfn f() -> inner::B {}\n"),
            ("b/mod.rs", "pub mod inner;\n"),
            ("b/inner.rs", "use super::super::c as third;\nfn f() { third::g() }\n"),
            ("c.rs", "use crate::{a::A, d};\n"),
            ("d.rs", "use crate::a::A;\n"),
        ];
        let expected = [
            "p/src/a.rs:2: 3 files import each other in a circle:",
            "p/src/a.rs:2: `inner::B` is of p/src/b/inner.rs",
            "p/src/b/inner.rs:2: `third::g` is of p/src/c.rs",
            "p/src/c.rs:1: `crate::a::A` is of p/src/a.rs",
        ];
        assert_eq!(said(&files), expected);
    }

    /// A module and one below it are a circle where each uses the other, not where one is declared.
    #[test]
    fn parent_and_child() {
        let child = ("a/b.rs", "use super::A;\n");
        let declares = [("lib.rs", "mod a;\n"), ("a.rs", "mod b;\nstruct A;\n"), child];
        assert_eq!(said(&declares), [""; 0]);
        let uses =
            [("lib.rs", "mod a;\n"), ("a.rs", "mod b;\nstruct A;\nfn f(b: b::B) {}\n"), child];
        assert_eq!(said(&uses).len(), 3);
    }

    /// What is handed on is of the file that it comes from.
    #[test]
    fn handed_on() {
        let lib = ("lib.rs", "mod a;\n");
        let above = "mod b;\nmod c;\npub use self::c::C;\npub struct A;\n";
        let b = ("a/b.rs", "use super::C;\n");
        let c = ("a/c.rs", "use super::A;\n");
        assert_eq!(said(&[lib, ("a/mod.rs", above), b, c]), [""; 0]);
        let uses = format!("{above}fn f(c: C) {{}}\n");
        assert_eq!(said(&[lib, ("a/mod.rs", &uses), b, c]).len(), 3);
        let hidden = above.replace("pub use", "use");
        assert_eq!(said(&[lib, ("a/mod.rs", &hidden), b, c]).len(), 3);
    }

    /// Tests may import what they test, and what is below it.
    #[test]
    fn tests_may() {
        let tests = "#[cfg(test)]\nmod tests {\n    use super::super::a::A;\n}\n";
        let files =
            [("lib.rs", "mod a;\nmod b;\n"), ("a.rs", "use crate::b::B;\n"), ("b.rs", tests)];
        assert_eq!(said(&files), [""; 0]);
    }
}
