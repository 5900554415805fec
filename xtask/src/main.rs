//! The commands of `cargo xtask`: what cargo alone cannot do, one line on each.

mod apt;
mod build;
mod debian;
mod free_threaded;
mod guests;
mod hogs;
mod initrd;
mod kernel;
mod lanes;
mod node;
mod process;
mod programs;
mod python;
mod report;
mod rsyslog;
mod setup;
mod suite;
mod skips;
mod test;
mod tidy;
mod toolchain;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  cargo xtask demo
  cargo xtask test --fast
  sudo -E env PATH=\"$PATH\" cargo xtask test
  cargo xtask bench -- --quick
  cargo xtask soak --minutes 5 node redis
  cargo xtask setup probes vm
  cargo xtask vm -- 'uname -r; ls /sys/kernel/btf'";

/// Sets up, builds, tests and shows stalltrace.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install whatever is missing; does nothing where all is there.
    Setup {
        /// Only these groups.
        groups: Vec<setup::Group>,
    },
    /// Build target/release/stalltrace with the probes inside.
    Build,
    /// Build, then attach to a sample service that stalls in known ways, and show the reports.
    Demo,
    /// Run all tests; as root also those against real targets and in a virtual machine.
    Test {
        /// Only what needs neither root nor set-up.
        #[arg(long)]
        fast: bool,
        /// Beside so many threads that compute, as on a crowded machine.
        #[arg(long, default_value_t = 0)]
        hogs: usize,
    },
    /// Measure what being watched costs, as ratios within one run (see `cargo xtask bench -- --help`).
    Bench {
        /// For the benchmark itself.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Watch the healthy twin of every runtime for minutes (see `cargo xtask soak -- --help`).
    Soak {
        /// For how long each is watched.
        #[arg(long)]
        minutes: Option<f64>,
        /// Only these twins.
        names: Vec<String>,
        /// More for the program itself.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Run a command as root on another kernel, with this machine's files (its changes are lost).
    Vm(vm::Vm),
    /// Check the rules that the sources keep.
    Tidy,
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup { groups } => setup::setup(&groups).map(|()| ExitCode::SUCCESS),
        Task::Build => build::release().map(|_| ExitCode::SUCCESS),
        Task::Demo => build::demo(),
        Task::Test { fast, hogs } => test::test(fast, hogs),
        Task::Soak { minutes, names, arguments } => build::soak(minutes, &names, &arguments),
        Task::Bench { arguments } => build::bench(&arguments),
        Task::Vm(vm) => vm.run(),
        Task::Tidy => tidy::tidy().map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        report::failure(&error);
        ExitCode::FAILURE
    })
}
