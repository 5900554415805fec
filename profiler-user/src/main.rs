//! Parses, runs, prints the error, chooses the exit code.

use std::process::ExitCode;

use clap::Parser;
use stalltrace::cli::{Cli, Color, Command};
use stalltrace::{check, config, error, source, watch, whom};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let color = match &cli.command {
        Command::Attach(attach) => attach.color,
        Command::Check(_) => Color::Auto,
    };
    log_to_stderr(cli.verbose, color);
    // Before any thread exists: a mount namespace belongs to the thread that asks for it.
    if let Err(reason) = source::kernel::preflight::mount_tracefs_privately() {
        tracing::debug!("tracefs stays unmounted: {reason}");
    }
    let result = match &cli.command {
        Command::Attach(attach) => watch::attach(attach, cli.verbose),
        Command::Check(check) => whom::to_check(check).and_then(check::run),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("stalltrace: {failure:#}");
            ExitCode::from(error::exit_code(&failure))
        }
    }
}

fn log_to_stderr(verbose: u8, color: Color) {
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
    let terminal = std::io::stderr().is_terminal();
    let coloured = config::is_coloured(color, terminal, |name| std::env::var(name).ok());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(coloured)
        .init();
}
