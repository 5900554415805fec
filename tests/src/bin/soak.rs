//! Watches the healthy twins of every runtime under load for minutes, a few at a time: exit code 1 if one was reported.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use profiler_tests::peace::{conclude, watch};
use profiler_tests::twins::{TWINS, Twin};

const EXAMPLES: &str = "\
Examples:
  soak                           every twin for five minutes
  soak --minutes 1 node redis    these two for one minute

STALLTRACE_BIN names the release binary of stalltrace.";

/// Keeps healthy programs at work and tells which of them were reported as stalled all the same.
#[derive(Debug, Parser)]
#[command(name = "soak", after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    /// For how long each is watched.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// How many are watched at the same time.
    #[arg(long, default_value_t = 4)]
    at_once: usize,
    /// Only these.
    names: Vec<String>,
}

fn main() -> ExitCode {
    match soak(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn soak(cli: &Cli) -> Result<()> {
    let twins = chosen(&cli.names)?;
    let duration = Duration::try_from_secs_f64(cli.minutes * 60.0)?;
    let mut all = Vec::new();
    for some in twins.chunks(cli.at_once.max(1)) {
        let names: Vec<&str> = some.iter().map(|twin| twin.name).collect();
        eprintln!("soak: {} for {} min", names.join(", "), cli.minutes);
        all.extend(watch(some, duration)?);
    }
    conclude(&all)
}

fn chosen(names: &[String]) -> Result<Vec<Twin>> {
    let known: Vec<&str> = TWINS.iter().map(|twin| twin.name).collect();
    for name in names {
        ensure!(known.contains(&name.as_str()), "{name} is none of {}", known.join(", "));
    }
    let is_chosen = |twin: &&Twin| names.is_empty() || names.iter().any(|name| name == twin.name);
    Ok(TWINS.iter().filter(is_chosen).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::chosen;

    /// All without a name, those that are named otherwise, and an error for one that nobody knows.
    #[test]
    fn twins_are_chosen_by_name() {
        assert!(chosen(&[]).unwrap().len() > 5);
        let two = chosen(&["redis".to_owned(), "node".to_owned()]).unwrap();
        assert_eq!(two.iter().map(|twin| twin.name).collect::<Vec<_>>(), ["node", "redis"]);
        assert!(chosen(&["nod".to_owned()]).is_err());
    }
}
