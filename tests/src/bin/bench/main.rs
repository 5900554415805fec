//! The benchmark: what being watched costs, with and without by turns, as one table.

mod arms;
mod attach;
mod cpu;
mod echo;
mod empty;
mod events;
mod healthy;
mod paired;
mod redis;
mod stalls;
mod stats;
mod syscalls;
mod table;
mod uvicorn;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use profiler_tests::scenario::require_root;
use serde_json::json;

use crate::table::{Measured, Section};

const EXAMPLES: &str = "\
Figures are taken with and without by turns; a result is the median over the rounds of the ratio
(or difference) within a round, its quartiles beside it. Nothing else should be busy meanwhile.

Examples:
  bench                          everything, in about five minutes
  bench --quick                  the same in about one, with wider quartiles
  bench --only redis --only probes
  bench --json bench.json        every figure of every round

STALLTRACE_BIN names the release binary of stalltrace, STALLTRACE_VENV the virtual environment
with uvicorn and FastAPI. Exit code 1 if something could not be measured; an aim that is missed
is told, not failed.";

/// Measures what stalltrace costs those that it watches, everybody else, and itself.
#[derive(Debug, Parser)]
#[command(name = "bench", after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    /// Fewer and shorter rounds.
    #[arg(long)]
    quick: bool,
    /// Only this measurement; may be given several times.
    #[arg(long, value_enum, value_name = "NAME")]
    only: Vec<Measurement>,
    /// Write every figure to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What this program is for itself.
#[derive(Debug, Subcommand)]
enum Role {
    #[command(name = echo::COMMAND, hide = true)]
    Echo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measurement {
    Redis,
    Uvicorn,
    Probes,
    Syscalls,
    Daemon,
    Attach,
    Stalls,
}

impl Measurement {
    fn title(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Uvicorn => "uvicorn and FastAPI",
            Self::Probes => "probes",
            Self::Syscalls => "unrelated syscalls",
            Self::Daemon => "the daemon on a healthy service",
            Self::Attach => "attaching, by threads",
            Self::Stalls => "telling stalls",
        }
    }

    fn measure(self, quick: bool) -> Result<Measured> {
        let rounds = |full, fewer| if quick { fewer } else { full };
        let milliseconds = |full, less| Duration::from_millis(if quick { less } else { full });
        match self {
            Self::Redis => redis::measure(rounds(9, 3), milliseconds(1500, 700)),
            Self::Uvicorn => {
                let loops: &[&str] = if quick { &["uvloop"] } else { &["asyncio", "uvloop"] };
                uvicorn::measure(rounds(7, 3), milliseconds(2000, 1000), loops)
            }
            Self::Probes => events::measure(rounds(7, 3), milliseconds(1000, 400)),
            Self::Syscalls => syscalls::measure(rounds(9, 3), milliseconds(300, 150)),
            Self::Daemon => healthy::measure(milliseconds(20_000, 8_000)),
            Self::Attach => attach::measure(rounds(20, 5)),
            Self::Stalls => stalls::measure(rounds(12, 4)),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.role {
        Some(Role::Echo) => echo::run().map(|()| ExitCode::SUCCESS),
        None => bench(&cli),
    };
    done.unwrap_or_else(|error| {
        eprintln!("bench: {error:#}");
        ExitCode::FAILURE
    })
}

fn bench(cli: &Cli) -> Result<ExitCode> {
    require_root()?;
    let start = Instant::now();
    let mut sections: Vec<Section> = Vec::new();
    for measurement in Measurement::value_variants() {
        if !cli.only.is_empty() && !cli.only.contains(measurement) {
            continue;
        }
        let title = measurement.title();
        eprintln!("[{:>3} s] {title}", start.elapsed().as_secs());
        let before = stats::probes_loaded();
        let (mut measured, failure) = match measurement.measure(cli.quick) {
            Ok(measured) => (measured, None),
            Err(error) => (Measured::default(), Some(format!("{error:#}"))),
        };
        if before + stats::probes_loaded() > 0 {
            let note = "somebody else had a stalltrace attached: `off` is not without its hooks";
            measured.notes.push(note.to_owned());
        }
        sections.push(Section { title, measured, failure });
    }
    let (kernel, cpus) = (cpu::kernel_release()?, cpu::allowed());
    println!("kernel {kernel}, {cpus} CPUs\n\n{}", table::text(&sections));
    if let Some(path) = &cli.json {
        let quick = cli.quick;
        let all = json!({ "kernel": kernel, "cpus": cpus, "quick": quick, "sections": sections });
        let text = serde_json::to_string_pretty(&all)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let all_measured = sections.iter().all(|section| section.failure.is_none());
    Ok(if all_measured { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
