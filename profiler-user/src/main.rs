//! Parses, runs, prints the error, chooses the exit code.

use std::process::ExitCode;

use clap::Parser;
use stalltrace::cli::{Cli, Command};
use stalltrace::{check, error, source, watch};

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(cli.verbose);
    // Before any thread exists: a mount namespace belongs to the thread that asks for it.
    if let Err(reason) = source::kernel::preflight::mount_tracefs_privately() {
        tracing::debug!("tracefs stays unmounted: {reason}");
    }
    let result = match &cli.command {
        Command::Attach(attach) => watch::attach(attach),
        Command::Check(check) => check::run(check.pid),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("stalltrace: {failure:#}");
            ExitCode::from(error::exit_code(&failure))
        }
    }
}

fn log_to_stderr(verbose: u8) {
    use std::io::IsTerminal;
    use tracing_subscriber::EnvFilter;
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter =
        EnvFilter::try_from_env("STALLTRACE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
