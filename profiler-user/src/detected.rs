//! A process to what it runs: its C library, and the interpreter whose frames can be read, as far as they are there.
//!
//! A program that is only starting has neither mapped yet: see [`Lookout`](crate::lookout::Lookout).

use crate::gap::Gap;
use crate::process::executables::{interpreter, is_libc};
use crate::process::live::{LiveMemory, open_region};
use crate::process::maps::{Backing, Region};
use crate::process::target::Target;
use crate::report::facts::{Libc, ProgramFacts, RuntimeFacts};
use crate::runtime::cpython::Python;
use crate::runtime::go::{self, Go};
use crate::runtime::ruby::{self, Ruby};
use crate::runtime::runtimes::Runtimes;
use crate::runtime::v8::V8;

/// A file with code, at the place where it is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedCode {
    device: (u32, u32),
    inode: u64,
    start: u64,
}

/// What is there.
#[derive(Debug)]
pub struct Detected {
    pub runtimes: Runtimes,
    /// Whether what was found may be told better once the program has run for a moment.
    is_unborn: bool,
    pub facts: ProgramFacts,
    /// What was mapped as it was looked for.
    pub code: Vec<MappedCode>,
}

impl Detected {
    /// Looks into the files that a process has mapped.
    pub fn of(target: &Target, memory: &LiveMemory) -> Self {
        match target.regions() {
            Ok(regions) => Self::among(&regions, target, memory),
            Err(why) => Self::failed(why),
        }
    }

    /// Nothing, for this reason.
    pub fn failed(why: impl std::fmt::Display) -> Self {
        let gap = Some(Gap::new("runtime", why));
        let facts = ProgramFacts { gap, ..ProgramFacts::default() };
        Self { runtimes: Runtimes::default(), is_unborn: false, facts, code: Vec::new() }
    }

    /// The same where it is known what is mapped.
    pub fn among(regions: &[Region], target: &Target, memory: &LiveMemory) -> Self {
        let (pid, exe) = (target.pid(), target.exe());
        let open = |region: &Region| open_region(pid, region);
        let (python, python_gap) = found(Python::detect(memory, regions, &open));
        let (v8, v8_gap) = match python {
            Some(_) => (None, None),
            None => found(V8::detect(memory, regions, exe.as_deref(), &open)),
        };
        let program = target.program();
        let go = program.as_ref().and_then(Go::detect).filter(|_| python.is_none() && v8.is_none());
        let runtime = runtime(python.as_ref(), v8.as_ref(), go.as_ref());
        let ruby = ruby::detect(regions).filter(|_| runtime.is_none());
        let has_lines = program.map(|program| program.debug_bytes() > 0);
        let foreign = exe.as_deref().and_then(|exe| exe.to_str()).and_then(interpreter);
        let foreign = foreign.or(ruby.as_ref().map(|_| ruby::NAME));
        let foreign = foreign.filter(|_| runtime.is_none()).map(|name| {
            let why = "only those of CPython and V8 are read";
            Gap::new(&format!("frames that {name} interprets"), why)
        });
        let is_ruby = ruby.is_some();
        let of_ruby = |version| RuntimeFacts { name: ruby::NAME.to_owned(), version };
        let runtime = runtime.or_else(|| ruby.map(of_ruby));
        let gap = python_gap.or(v8_gap).or_else(|| go.map(|_| Go::gap())).or(foreign);
        let facts = ProgramFacts { libc: libc(regions, has_lines), runtime, gap };
        let is_unborn = |v8: &V8| v8.is_node() && v8.version().starts_with("V8 ");
        let is_unborn = v8.as_ref().is_some_and(is_unborn);
        let mut runtimes = Runtimes::default();
        python.into_iter().for_each(|python| runtimes.add("CPython", Box::new(python)));
        v8.into_iter().for_each(|v8| runtimes.add("V8", Box::new(v8)));
        if is_ruby {
            runtimes.add("Ruby", Box::new(Ruby));
        }
        Self { runtimes, is_unborn, facts, code: mapped_code(regions) }
    }

    /// Whether nothing better is to come: a runtime is there, and tells which one it is.
    pub fn is_settled(&self) -> bool {
        self.facts.runtime.is_some() && !self.is_unborn
    }
}

/// Every file with code that is mapped.
pub fn mapped_code(regions: &[Region]) -> Vec<MappedCode> {
    let is_code =
        |region: &&Region| region.executable && matches!(region.backing, Backing::File(_));
    let code = regions.iter().filter(is_code);
    code.map(|region| MappedCode {
        device: region.device,
        inode: region.inode,
        start: region.start,
    })
    .collect()
}

fn found<T>(detected: Result<Option<T>, Gap>) -> (Option<T>, Option<Gap>) {
    match detected {
        Ok(found) => (found, None),
        Err(gap) => (None, Some(gap)),
    }
}

fn runtime(python: Option<&Python>, v8: Option<&V8>, go: Option<&Go>) -> Option<RuntimeFacts> {
    let facts = |name: &str, version: &str| RuntimeFacts {
        name: name.to_owned(),
        version: Some(version.to_owned()),
    };
    let python = python.map(|python| facts("cpython", python.version()));
    let go =
        || go.map(|go| RuntimeFacts { name: go::NAME.to_owned(), version: go.version.clone() });
    python.or_else(|| v8.map(|v8| facts(v8.name(), v8.version()))).or_else(go)
}

/// Where the C library's code is: in the executable, if no file of its own is mapped. Of an executable that can be
/// read it is known whether it has lines.
fn libc(regions: &[Region], has_lines: Option<bool>) -> Libc {
    let is_shared = regions.iter().any(|region| match &region.backing {
        Backing::File(path) => path.to_str().is_some_and(is_libc),
        Backing::Special(_) | Backing::Anonymous => false,
    });
    match has_lines {
        Some(has_lines) if !is_shared => Libc::Linked { has_lines },
        _ => Libc::Shared,
    }
}

#[cfg(test)]
mod tests {
    use super::{Detected, libc, mapped_code};
    use crate::process::live::LiveMemory;
    use crate::process::target::Target;
    use crate::report::facts::Libc;

    /// This very process runs no interpreter, and its C library has a file of its own.
    #[test]
    fn own_process() {
        let target = Target::open(std::process::id()).unwrap();
        let detected = Detected::of(&target, &LiveMemory::new(target.pid()));
        assert!(detected.runtimes.is_empty() && !detected.is_settled());
        assert_eq!((detected.facts.libc, &detected.facts.gap), (Libc::Shared, &None));
        assert_eq!(detected.code, mapped_code(&target.regions().unwrap()));
    }

    /// Without a mapped C library it is the executable's own; where nothing is known of that, it is not said.
    #[test]
    fn where_the_c_library_is() {
        assert_eq!(libc(&[], Some(true)), Libc::Linked { has_lines: true });
        assert_eq!(libc(&[], None), Libc::Shared);
    }
}
