//! What the user may type. Checks syntax only; what it means here is `config`'s to say.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::report::fit::LINE_LIMIT_BYTES;

/// Of a label, as Kubernetes has it.
const MAX_KEY_BYTES: usize = 63;

/// Each line repeats it.
const MAX_VALUE_BYTES: usize = 256;

/// Say which line of which function froze an event loop, while it is frozen.
///
/// Attaches to a running process from outside: no change to the application, no restart.
#[derive(Debug, Parser)]
#[command(name = "stalltrace", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Say more: in text reports exact times, libraries' frames, other stacks and what is missing; on
    /// standard error what stalltrace itself does. Twice: everything.
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
    Attach(AttachArguments),
    /// Say what this machine, these privileges and a target allow, and what to do about the rest.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArguments),
}

const ATTACH_EXAMPLES: &str = "\
Examples:
  stalltrace attach 4242                        readable reports on the terminal
  stalltrace attach $(pgrep -o uvicorn) | jq .  JSON lines, one a report
  stalltrace attach 4242 --threshold 20ms       turns of 20 ms and more
  stalltrace attach 4242 --duration 60s --output stalls.jsonl --format json
  stalltrace attach 4242 --watch-workers        requests that hold a thread of a pool, too
  stalltrace attach 4242 --all-threads          where all other threads were, too
  stalltrace attach 4242 -v                     more of each stall";

const CHECK_EXAMPLES: &str = "\
Examples:
  stalltrace check          this machine and these privileges
  stalltrace check 4242     and this process";

#[derive(Debug, Args)]
pub struct AttachArguments {
    /// The process to watch, by its number.
    #[arg(value_name = "PID", required_unless_present = "pid", conflicts_with = "pid")]
    pub target: Option<String>,
    /// The same as an option.
    #[arg(long, value_name = "PID")]
    pub pid: Option<String>,
    /// Watch the process itself although it only starts workers that serve.
    #[arg(long)]
    pub master: bool,
    /// Report turns of the event loop that last at least this long.
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = humantime::parse_duration)]
    pub threshold: Duration,
    /// Call a stall an error from this length on [default: ten thresholds].
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub error_threshold: Option<Duration>,
    /// Stop after this time [default: when the target exits].
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// End so soon once it is to end, whatever whoever reads the output does. Lines that are not written by then are
    /// counted.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    pub leave_within: Duration,
    /// How reports look: by default text on a terminal, JSON lines elsewhere.
    #[arg(long, value_enum, default_value_t = FormatChoice::Auto)]
    pub format: FormatChoice,
    /// Whether text is coloured: `auto` does it on a terminal, unless NO_COLOR is set or TERM is dumb.
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Color::Auto)]
    pub color: Color,
    /// Write reports to this file instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The most bytes of a JSON line, with its line feed; what goes first is counted in `omitted`. At least 4096, or
    /// 0 for no limit.
    #[arg(long, value_name = "BYTES", default_value_t = LINE_LIMIT_BYTES)]
    pub line_limit: usize,
    /// How much of stacks JSON lines have: all frames, those of the application and what they called, or none.
    #[arg(long, value_enum, default_value_t = StacksChoice::App)]
    pub stacks: StacksChoice,
    /// Put this into `process.labels` of each JSON line (may be repeated).
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Also show the command lines of other processes, which may hold secrets: by default their names and numbers.
    #[arg(long)]
    pub show_commands: bool,
    /// Also watch threads that are handed work (gunicorn's gthread, uWSGI's and tokio's workers, Node's
    /// worker threads, thread pools): report work that holds one past the threshold.
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
    #[arg(long, value_enum, default_value_t = WaitHooksChoice::Best)]
    pub wait_hooks: WaitHooksChoice,
    /// How running threads are sampled. `best` tries perf events and falls back to the kernel's timer ticks.
    #[arg(long, value_enum, default_value_t = SampleHooksChoice::Best)]
    pub sample_hooks: SampleHooksChoice,
}

#[derive(Debug, Args)]
pub struct CheckArguments {
    /// A process to look at as well, by its number.
    #[arg(value_name = "PID")]
    pub target: Option<String>,
    /// The same as an option.
    #[arg(long, value_name = "PID", conflicts_with = "target")]
    pub pid: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatChoice {
    Auto,
    Json,
    Text,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StacksChoice {
    Full,
    App,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WaitHooksChoice {
    Best,
    Fentry,
    Tracepoint,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SampleHooksChoice {
    Best,
    PerfEvent,
    Timer,
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

/// Names as metrics and Kubernetes have them, so that whatever reads the lines can take them.
fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it has no `=`")?;
    let is_usual =
        |character: char| character.is_ascii_alphanumeric() || "_-./".contains(character);
    if key.is_empty() || key.len() > MAX_KEY_BYTES || !key.chars().all(is_usual) {
        return Err(format!(
            "a key has 1 to {MAX_KEY_BYTES} letters, digits, `_`, `-`, `.` and `/`"
        ));
    }
    if value.len() > MAX_VALUE_BYTES {
        return Err(format!("a value has at most {MAX_VALUE_BYTES} bytes"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::{Cli, Command, FormatChoice};
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
        assert_eq!(attach.target.as_deref(), Some("7"));
        assert_eq!(attach.threshold, Duration::from_millis(100));
        assert_eq!(
            (attach.duration, attach.format),
            (Some(Duration::from_secs(60)), FormatChoice::Auto)
        );
        assert!(Cli::try_parse_from(["stalltrace", "attach", "7", "--threshold", "100"]).is_err());
        assert!(Cli::try_parse_from(["stalltrace", "attach"]).is_err());
        let cli = Cli::try_parse_from(["stalltrace", "attach", "--pid", "7"]).unwrap();
        let Command::Attach(attach) = cli.command else { panic!("not attach") };
        assert_eq!((attach.target, attach.pid.as_deref()), (None, Some("7")));
        assert!(Cli::try_parse_from(["stalltrace", "attach", "7", "--pid", "7"]).is_err());
    }

    /// A label is a key, `=` and any value; what is none is bad usage.
    #[test]
    fn labels() {
        let typed = |text: &str| {
            let cli = Cli::try_parse_from(["stalltrace", "attach", "7", "--label", text]);
            cli.map(|cli| match cli.command {
                Command::Attach(attach) => attach.labels,
                Command::Check(_) => panic!("not attach"),
            })
        };
        let label = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
        assert_eq!(typed("team=billing").unwrap(), label("team", "billing"));
        assert_eq!(
            typed("app.kubernetes.io/name=a=b").unwrap(),
            label("app.kubernetes.io/name", "a=b")
        );
        assert_eq!(typed("stage=").unwrap(), label("stage", ""));
        let (long_key, long_value) = ("k".repeat(64) + "=v", "k=".to_owned() + &"v".repeat(257));
        for bad in ["team", "=billing", "a b=c", "ä=c", &long_key, &long_value] {
            assert_eq!(typed(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}
