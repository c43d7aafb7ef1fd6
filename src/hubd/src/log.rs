//! The hub's log: to stderr, as text or JSON.

use tracing_subscriber::EnvFilter;

use crate::{HubError, LogFormat, RunArgs};

/// Starts logging as the flags say.
///
/// # Errors
/// The filter cannot be read.
pub fn start_log(args: &RunArgs) -> Result<(), HubError> {
    let filter = args.log.as_deref().unwrap_or("info");
    let wrong = |why: tracing_subscriber::filter::ParseError| HubError::LogFilter {
        filter: filter.to_owned(),
        why: why.to_string(),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter).map_err(wrong)?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match args.log_format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
