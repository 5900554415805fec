//! A process to what it runs: its C library, and the interpreter whose frames can be read, as far as they are there.
//!
//! A program that is only starting has neither mapped yet: see [`Lookout`](crate::lookout::Lookout).

use crate::gap::Gap;
use crate::process::executables::is_libc;
use crate::process::live::{LiveMemory, open_region};
use crate::process::maps::{Backing, Region};
use crate::process::target::Target;
use crate::report::facts::{Libc, ProgramFacts, RuntimeFacts};
use crate::runtime::runtimes::Runtimes;
use crate::runtime::table::{self, Detection};
use crate::runtime::{Process, RuntimeIdentity};

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
    /// Whether a look a moment later may tell more of the runtime that is there.
    is_early: bool,
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
        Self { runtimes: Runtimes::default(), is_early: false, facts, code: Vec::new() }
    }

    /// The same where it is known what is mapped.
    pub fn among(regions: &[Region], target: &Target, memory: &LiveMemory) -> Self {
        let (pid, exe, program) = (target.pid(), target.exe(), target.program());
        let open = |region: &Region| open_region(pid, region);
        let process = Process {
            memory,
            regions,
            exe: exe.as_deref(),
            program: program.as_ref(),
            open: &open,
        };
        let Detection { identity, gap, is_early, runtimes } = table::detect(&process);
        let facts_of =
            |RuntimeIdentity { name, version }| RuntimeFacts { name: name.to_owned(), version };
        let runtime = identity.map(facts_of);
        let has_lines = program.map(|program| program.debug_bytes() > 0);
        let facts = ProgramFacts { libc: libc(regions, has_lines), runtime, gap };
        Self { runtimes, is_early, facts, code: mapped_code(regions) }
    }

    /// Whether nothing better is to come: a runtime is there, and tells which one it is.
    pub fn is_settled(&self) -> bool {
        self.facts.runtime.is_some() && !self.is_early
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
