//! The daemons' log: to stderr, as text or JSON.

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

use crate::failure::Failure;

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging. `filter` is a level, or `tracing`'s directives.
pub(crate) fn start(filter: Option<&str>, format: LogFormat) -> Result<(), Failure> {
    let filter = filter.unwrap_or("info");
    // boringtun logs ordinary events of a session as warnings and errors
    let filter = EnvFilter::try_new(format!("{filter},boringtun=off"))
        .map_err(|error| Failure::wrong(format!("--log {filter}: {error}: use a level such as info or debug")))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
