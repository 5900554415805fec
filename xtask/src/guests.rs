//! The kernels that `cargo xtask test` boots, and the tests that run on each: what production has and this machine may not.

use crate::kernel::{Build, Choice};

/// A kernel in an emulated machine.
#[derive(Debug)]
pub struct Guest {
    /// What `cargo xtask test` calls it.
    pub name: &'static str,
    /// The suite of Debian whose kernel it is; `None` is this distribution's own.
    suite: Option<&'static str>,
    /// With two, the emulator loses now and then against a kernel that patches its own code on one while the other
    /// runs it: seen with preemptible ones. With one, others' work is the target's, too.
    pub cpus: u32,
    /// More of the kernel's command line.
    pub append: &'static str,
    pub tests: &'static [Tests],
}

/// A program of tests.
#[derive(Debug)]
pub struct Tests {
    pub program: &'static str,
    /// Those whose names contain one of these; all where there is none.
    pub only: &'static [&'static str],
}

const fn all(program: &'static str) -> Tests {
    Tests { program, only: &[] }
}

const fn some(program: &'static str, only: &'static [&'static str]) -> Tests {
    Tests { program, only }
}

/// What is tried on this distribution's own kernel, also by `cargo xtask vm` without a command.
pub const OWN: [Tests; 2] = [all("probes"), all("cgroup_v2")];

/// What a kernel must show that preempts the probes themselves, and of a loop that spins, which leaves an emulated CPU
/// for seconds to nobody. On two CPUs, and soon over: see [`Guest::cpus`].
const STRESS: [Tests; 2] = [all("preempt"), all("frozen")];

/// What else it must show. One line for each program.
const PREEMPTIBLE: [Tests; 3] = [
    all("gil"),
    // A session takes long to begin there: those with many of them are left to the machine itself.
    some("service", &["blocking_calls", "healthy_service"]),
    some("workers", &["gthread", "short_requests"]),
];

/// In the order in which they run.
pub const GUESTS: [Guest; 5] = [
    Guest { name: "own-kernel", suite: None, cpus: 2, append: "", tests: &OWN },
    Guest {
        name: "preemptible-stress",
        suite: Some("trixie"),
        cpus: 2,
        append: "preempt=full",
        tests: &STRESS,
    },
    Guest {
        name: "preemptible-kernel",
        suite: Some("trixie"),
        cpus: 1,
        append: "preempt=full",
        tests: &PREEMPTIBLE,
    },
    // Preempts lazily by itself.
    Guest { name: "newest-stress", suite: Some("sid"), cpus: 2, append: "", tests: &STRESS },
    Guest { name: "newest-kernel", suite: Some("sid"), cpus: 1, append: "", tests: &PREEMPTIBLE },
];

/// How many of them run at a time.
pub const AT_ONCE: usize = 2;

impl Guest {
    pub fn kernel(&self) -> Choice {
        let of_suite = |suite: &str| Choice::Suite { suite: suite.to_owned(), build: Build::Usual };
        self.suite.map_or(Choice::Own, of_suite)
    }
}
