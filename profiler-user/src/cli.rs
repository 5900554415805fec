//! What the user may type. Checks syntax only; what it means here is `config`'s to say.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Say which line of which function froze an event loop, while it is frozen.
///
/// Attaches to a running process from outside: no change to the application, no restart.
#[derive(Debug, Parser)]
#[command(name = "stalltrace", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Log more of stalltrace's own doings to standard error (repeat for more).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done: the target exited, the duration is over, or a signal asked us to stop
  1  something failed
  2  bad usage
  3  not permitted, or not supported on this machine or with this target
  4  no such process";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Report the stalls of a running process, from now until it exits or Ctrl-C.
    #[command(after_help = ATTACH_EXAMPLES)]
    Attach(Attach),
    /// Say what this machine, these privileges and a target allow, and what to do about the rest.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Check),
}

const ATTACH_EXAMPLES: &str = "\
Examples:
  stalltrace attach 4242                        readable reports on the terminal
  stalltrace attach $(pgrep -o uvicorn) | jq .  JSON lines, one a report
  stalltrace attach 4242 --threshold 20ms       turns of 20 ms and more
  stalltrace attach 4242 --duration 60s --output stalls.jsonl --format json
  stalltrace attach 4242 --watch-workers        requests that hold a thread of a pool, too
  stalltrace attach 4242 --all-threads          where all other threads were, too";

const CHECK_EXAMPLES: &str = "\
Examples:
  stalltrace check          this machine and these privileges
  stalltrace check 4242     and this process";

#[derive(Debug, Args)]
pub struct Attach {
    /// The process to watch.
    pub pid: u32,
    /// Report turns of the event loop that last at least this long.
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = humantime::parse_duration)]
    pub threshold: Duration,
    /// Call a stall an error from this length on [default: ten thresholds].
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub error_threshold: Option<Duration>,
    /// Stop after this time [default: when the target exits].
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// How reports look: by default text on a terminal, JSON lines elsewhere.
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    pub format: Format,
    /// Write reports to this file instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Also watch threads that are handed work (gunicorn's gthread, uWSGI's and tokio's workers, thread
    /// pools): report work that holds one past the threshold.
    #[arg(long)]
    pub watch_workers: bool,
    /// Report of each stall where all other threads of the process were, too.
    #[arg(long)]
    pub all_threads: bool,
    /// Also say how loops fare, stalls or not: a line of statistics every so often (at least 100ms), or
    /// `off` [default: off on a terminal, 60s elsewhere].
    #[arg(long, value_name = "TIME", value_parser = stats_interval)]
    pub stats_interval: Option<StatsInterval>,
    /// How waits are hooked. `best` tries fentry and falls back to syscall tracepoints.
    #[arg(long, value_enum, default_value_t = WaitHooks::Best)]
    pub wait_hooks: WaitHooks,
}

#[derive(Debug, Args)]
pub struct Check {
    /// A process to look at as well.
    pub pid: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Auto,
    Json,
    Text,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WaitHooks {
    Best,
    Fentry,
    Tracepoint,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatsInterval {
    Off,
    Every(Duration),
}

fn stats_interval(text: &str) -> Result<StatsInterval, humantime::DurationError> {
    match text {
        "off" => Ok(StatsInterval::Off),
        time => humantime::parse_duration(time).map(StatsInterval::Every),
    }
}

#[cfg(test)]
mod tests {
    use super::{Cli, Command, Format};
    use clap::{CommandFactory, Parser};
    use std::time::Duration;

    /// The definition itself holds together.
    #[test]
    fn definition() {
        Cli::command().debug_assert();
    }

    /// Times are typed with their unit, and the defaults are those of the manual.
    #[test]
    fn attach() {
        let cli = Cli::try_parse_from(["stalltrace", "attach", "7", "--duration", "1m"]).unwrap();
        let Command::Attach(attach) = cli.command else { panic!("not attach") };
        assert_eq!((attach.pid, attach.threshold), (7, Duration::from_millis(100)));
        assert_eq!((attach.duration, attach.format), (Some(Duration::from_secs(60)), Format::Auto));
        assert!(Cli::try_parse_from(["stalltrace", "attach", "7", "--threshold", "100"]).is_err());
        assert!(Cli::try_parse_from(["stalltrace", "attach", "seven"]).is_err());
    }
}
