//! What was typed, to what it means on this machine; checked once, then never changed.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use crate::cli::{self, Attach, StatsInterval};
use crate::error::{Exit, Failure};
use crate::source::kernel::attach::WaitHooks;

/// Below this every turn of a busy loop would be a stall, and the looking would cost more than it shows.
const LEAST_THRESHOLD: Duration = Duration::from_millis(1);

/// A day: beyond it a loop is not slow but abandoned, and arithmetic on it could overflow.
const GREATEST_THRESHOLD: Duration = Duration::from_secs(24 * 3600);

/// More often, lines would say more about chance than about the loop.
const LEAST_STATS_INTERVAL: Duration = Duration::from_millis(100);

/// A day: less often there is nobody who waits for it.
const GREATEST_STATS_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// Where a program reads, and nobody said how often.
const STATS_INTERVAL: Duration = Duration::from_secs(60);

/// One attachment's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub threshold_ns: u64,
    pub error_threshold_ns: u64,
    pub duration: Option<Duration>,
    pub output: Output,
    pub wait_hooks: WaitHooks,
    pub watch_workers: bool,
    pub all_threads: bool,
    /// How often statistics are told, if they are.
    pub stats_interval: Option<Duration>,
}

/// Where reports go and how they look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub file: Option<PathBuf>,
    pub format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Json,
    Text(Colour),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    Always,
    Never,
}

impl Config {
    pub fn new(attach: &Attach) -> Result<Self, Failure> {
        let threshold_ns = nanoseconds("--threshold", attach.threshold)?;
        let error_threshold_ns = match attach.error_threshold {
            Some(time) => nanoseconds("--error-threshold", time)?,
            None => threshold_ns.saturating_mul(10),
        };
        let terminal = attach.output.is_none() && std::io::stdout().is_terminal();
        let coloured =
            terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let text = Format::Text(if coloured { Colour::Always } else { Colour::Never });
        let format = match attach.format {
            cli::Format::Json => Format::Json,
            cli::Format::Text => text,
            cli::Format::Auto if terminal => text,
            cli::Format::Auto => Format::Json,
        };
        Ok(Self {
            threshold_ns,
            error_threshold_ns,
            duration: attach.duration,
            output: Output { file: attach.output.clone(), format },
            all_threads: attach.all_threads,
            stats_interval: stats_interval(attach.stats_interval, terminal)?,
            wait_hooks: match attach.wait_hooks {
                cli::WaitHooks::Best => WaitHooks::Best,
                cli::WaitHooks::Fentry => WaitHooks::Fentry,
                cli::WaitHooks::Tracepoint => WaitHooks::Tracepoint,
            },
            watch_workers: attach.watch_workers,
        })
    }
}

fn stats_interval(
    told: Option<StatsInterval>,
    terminal: bool,
) -> Result<Option<Duration>, Failure> {
    match told {
        Some(StatsInterval::Every(time))
            if !(LEAST_STATS_INTERVAL..=GREATEST_STATS_INTERVAL).contains(&time) =>
        {
            let message = "--stats-interval must lie between 100ms and 1day, or be off".to_owned();
            Err(Failure { exit: Exit::Usage, message })
        }
        Some(StatsInterval::Every(time)) => Ok(Some(time)),
        Some(StatsInterval::Off) => Ok(None),
        None => Ok((!terminal).then_some(STATS_INTERVAL)),
    }
}

fn nanoseconds(option: &str, time: Duration) -> Result<u64, Failure> {
    if !(LEAST_THRESHOLD..=GREATEST_THRESHOLD).contains(&time) {
        let message = format!("{option} must lie between 1ms and 1day");
        return Err(Failure { exit: Exit::Usage, message });
    }
    u64::try_from(time.as_nanos())
        .map_err(|_| Failure { exit: Exit::Usage, message: format!("{option} is too long") })
}

#[cfg(test)]
mod tests {
    use super::Config;
    use crate::cli::{Cli, Command};
    use crate::error::Exit;
    use clap::Parser;

    fn config(arguments: &[&str]) -> Result<Config, Exit> {
        let typed = ["stalltrace", "attach", "7"].iter().chain(arguments);
        let Command::Attach(attach) = Cli::try_parse_from(typed).unwrap().command else {
            panic!("not attach")
        };
        Config::new(&attach).map_err(|failure| failure.exit)
    }

    /// A stall is an error from ten thresholds on unless told otherwise.
    #[test]
    fn error_threshold_follows() {
        assert_eq!(config(&["--threshold", "20ms"]).unwrap().error_threshold_ns, 200_000_000);
        let told = config(&["--error-threshold", "3s"]).unwrap();
        assert_eq!(told.error_threshold_ns, 3_000_000_000);
    }

    /// Statistics come every minute unless a person looks, and as often as is asked for within reason.
    #[test]
    fn stats_intervals() {
        let interval = |arguments: &[&str]| config(arguments).map(|config| config.stats_interval);
        let every = |ms| Ok(Some(std::time::Duration::from_millis(ms)));
        assert_eq!(interval(&["--output", "x"]), every(60_000));
        assert_eq!(interval(&["--stats-interval", "100ms"]), every(100));
        assert_eq!(interval(&["--stats-interval", "off"]), Ok(None));
        assert_eq!(interval(&["--stats-interval", "99ms"]), Err(Exit::Usage));
        assert_eq!(interval(&["--stats-interval", "2days"]), Err(Exit::Usage));
        assert_eq!(super::stats_interval(None, true).unwrap(), None);
    }

    /// Thresholds that make no sense are bad usage.
    #[test]
    fn thresholds_are_bounded() {
        assert_eq!(config(&["--threshold", "10us"]).unwrap_err(), Exit::Usage);
        assert_eq!(config(&["--threshold", "3days"]).unwrap_err(), Exit::Usage);
    }
}
