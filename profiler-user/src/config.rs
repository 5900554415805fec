//! What was typed, to what it means on this machine; checked once, then never changed.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use crate::cli::{self, AttachArguments, StatsInterval};
use crate::error::{Exit, Failure};
use crate::report::fit::{LEAST_LINE_LIMIT_BYTES, Limits};
use crate::report::schema::session::StackCounts;
use crate::sink::settings::{ColourUse, Detail, Format, Settings, TextLook};
use crate::source::kernel::hooks::{SampleHooks, WaitHooks};

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

/// More labels than this would be most of each line.
const MAX_LABELS: usize = 32;

/// One attachment's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub threshold_ns: u64,
    pub error_threshold_ns: u64,
    pub duration: Option<Duration>,
    pub leave_within: Duration,
    pub output: Settings,
    pub wait_hooks: WaitHooks,
    pub sample_hooks: SampleHooks,
    pub watch_workers: bool,
    pub all_threads: bool,
    /// How often statistics are told, if they are.
    pub stats_interval: Option<Duration>,
    pub labels: BTreeMap<String, String>,
    /// Whether command lines of other processes than the target are told.
    pub show_commands: bool,
}

impl Config {
    pub fn new(attach: &AttachArguments, verbose: u8) -> Result<Self, Failure> {
        let threshold_ns = nanoseconds("--threshold", attach.threshold)?;
        let error_threshold_ns = match attach.error_threshold {
            Some(time) => nanoseconds("--error-threshold", time)?,
            None => threshold_ns.saturating_mul(10),
        };
        let terminal = attach.output.is_none() && std::io::stdout().is_terminal();
        let coloured = is_coloured(attach.color, terminal, |name| std::env::var(name).ok());
        let text = Format::Text(TextLook {
            colour: if coloured { ColourUse::Always } else { ColourUse::Never },
            detail: match verbose {
                0 => Detail::Brief,
                1 => Detail::More,
                _ => Detail::Everything,
            },
        });
        let format = match attach.format {
            cli::FormatChoice::Json => Format::Json,
            cli::FormatChoice::Text => text,
            cli::FormatChoice::Auto if terminal => text,
            cli::FormatChoice::Auto => Format::Json,
        };
        Ok(Self {
            threshold_ns,
            error_threshold_ns,
            duration: attach.duration,
            leave_within: Duration::from_nanos(nanoseconds("--leave-within", attach.leave_within)?),
            output: Settings { file: attach.output.clone(), format, limits: limits(attach)? },
            all_threads: attach.all_threads,
            stats_interval: stats_interval(attach.stats_interval, terminal)?,
            wait_hooks: match attach.wait_hooks {
                cli::WaitHooksChoice::Best => WaitHooks::Best,
                cli::WaitHooksChoice::Fentry => WaitHooks::Fentry,
                cli::WaitHooksChoice::Tracepoint => WaitHooks::Tracepoint,
            },
            sample_hooks: match attach.sample_hooks {
                cli::SampleHooksChoice::Best => SampleHooks::Best,
                cli::SampleHooksChoice::PerfEvent => SampleHooks::PerfEvent,
                cli::SampleHooksChoice::Timer => SampleHooks::Timer,
            },
            watch_workers: attach.watch_workers,
            labels: labels(&attach.labels)?,
            show_commands: attach.show_commands,
        })
    }
}

fn limits(attach: &AttachArguments) -> Result<Limits, Failure> {
    let line_bytes = (attach.line_limit > 0).then_some(attach.line_limit);
    if line_bytes.is_some_and(|bytes| bytes < LEAST_LINE_LIMIT_BYTES) {
        let message = format!(
            "--line-limit must be at least {LEAST_LINE_LIMIT_BYTES}, or 0 for no limit: a shorter line has no \
             room for cause and culprit"
        );
        return Err(Failure { exit: Exit::Usage, message });
    }
    let stacks = match attach.stacks {
        cli::StacksChoice::Full => StackCounts::Full,
        cli::StacksChoice::App => StackCounts::App,
        cli::StacksChoice::None => StackCounts::None,
    };
    Ok(Limits { line_bytes, stacks })
}

fn labels(typed: &[(String, String)]) -> Result<BTreeMap<String, String>, Failure> {
    let usage = |message| Failure { exit: Exit::Usage, message };
    if typed.len() > MAX_LABELS {
        return Err(usage(format!("there may be at most {MAX_LABELS} labels")));
    }
    let mut labels = BTreeMap::new();
    for (key, value) in typed {
        if labels.insert(key.clone(), value.clone()).is_some() {
            return Err(usage(format!("--label {key} is given twice")));
        }
    }
    Ok(labels)
}

/// Whether text is coloured. What is asked for on the command line goes before the environment
/// (no-color.org); a terminal that is not named is taken for one that knows no colours.
pub fn is_coloured(
    asked: cli::Color,
    terminal: bool,
    environment: impl Fn(&str) -> Option<String>,
) -> bool {
    let is_unwanted = environment("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_dumb = environment("TERM").is_none_or(|name| name.is_empty() || name == "dumb");
    match asked {
        cli::Color::Always => true,
        cli::Color::Never => false,
        cli::Color::Auto => terminal && !is_unwanted && !is_dumb,
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
    use super::{Config, StackCounts};
    use crate::cli::{Cli, Command};
    use crate::error::Exit;
    use clap::Parser;

    fn config(arguments: &[&str]) -> Result<Config, Exit> {
        let typed = ["stalltrace", "attach", "7"].iter().chain(arguments);
        let Command::Attach(attach) = Cli::try_parse_from(typed).unwrap().command else {
            panic!("not attach")
        };
        Config::new(&attach, 0).map_err(|failure| failure.exit)
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

    /// Lines are short unless told otherwise, and no shorter than has room for cause and culprit.
    #[test]
    fn line_limits() {
        let limits = |arguments: &[&str]| config(arguments).map(|config| config.output.limits);
        let default = limits(&[]).unwrap();
        assert_eq!((default.line_bytes, default.stacks), (Some(8000), StackCounts::App));
        assert_eq!(limits(&["--line-limit", "0"]).unwrap().line_bytes, None);
        assert_eq!(limits(&["--line-limit", "4096"]).unwrap().line_bytes, Some(4096));
        assert_eq!(limits(&["--line-limit", "4095"]), Err(Exit::Usage));
        assert_eq!(limits(&["--stacks", "none"]).unwrap().stacks, StackCounts::None);
    }

    /// Labels are told each once.
    #[test]
    fn labels() {
        let labels = |arguments: &[&str]| config(arguments).map(|config| config.labels.len());
        assert_eq!(labels(&["--label", "a=1", "--label", "b=1"]), Ok(2));
        assert_eq!(labels(&["--label", "a=1", "--label", "a=2"]), Err(Exit::Usage));
        let many: Vec<String> =
            (0..33).flat_map(|n| ["--label".to_owned(), format!("a{n}=1")]).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!((labels(&many), labels(&many[..64])), (Err(Exit::Usage), Ok(32)));
    }

    /// Colour comes where a terminal can show it and nobody is against it, or where it is asked for.
    #[test]
    fn colours() {
        use crate::cli::Color::{Always, Auto, Never};
        let coloured = |asked, terminal, no_color: Option<&str>, term: Option<&str>| {
            super::is_coloured(asked, terminal, |name| match name {
                "NO_COLOR" => no_color.map(str::to_owned),
                "TERM" => term.map(str::to_owned),
                _ => None,
            })
        };
        let xterm = Some("xterm-256color");
        assert!(coloured(Auto, true, None, xterm));
        assert!(coloured(Auto, true, Some(""), xterm), "an empty NO_COLOR is none");
        assert!(!coloured(Auto, true, Some("1"), xterm));
        assert!(!coloured(Auto, true, None, Some("dumb")));
        assert!(!coloured(Auto, true, None, None));
        assert!(!coloured(Auto, false, None, xterm));
        assert!(coloured(Always, false, Some("1"), Some("dumb")));
        assert!(!coloured(Never, true, None, xterm));
    }

    /// Thresholds that make no sense are bad usage.
    #[test]
    fn thresholds_are_bounded() {
        assert_eq!(config(&["--threshold", "10us"]).unwrap_err(), Exit::Usage);
        assert_eq!(config(&["--threshold", "3days"]).unwrap_err(), Exit::Usage);
    }
}
