//! The program's own log. It goes to standard error; standard output is the access log's.

use std::error::Error;
use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::args::LogFormat;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoggingError {
    /// The level is not a filter.
    #[error("--log-level")]
    Level(#[source] ParseError),
    /// The process has a log already.
    #[error("logging: {0}")]
    Init(Box<dyn Error + Send + Sync>),
}

/// Starts the log. `level` is a filter, as in `info,karst_waypoint=debug`.
///
/// # Errors
/// `level` is no filter, or this is the second call.
pub fn init(format: LogFormat, level: &str) -> Result<(), LoggingError> {
    let filter = EnvFilter::try_new(level).map_err(LoggingError::Level)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let outcome = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    outcome.map_err(LoggingError::Init)
}
