//! The program's own log. It goes to standard error; standard output is the access log's.
//!
//! Its level can be changed while the program runs ([`control`], [`page`]), for a time if one likes. The same event
//! again and again is held back and then summed up ([`repeats`]). What libraries say about bytes and headers that they
//! send never gets here, whatever the level: there may be tokens in it ([`level`]).

mod control;
mod level;
mod page;
mod repeats;

use std::error::Error;
use std::io;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt, reload};

pub use control::{Change, Control, LevelState, NotSet, control};
pub use level::BadLevel;
pub use page::page;

use crate::args::LogFormat;
use repeats::Repeats;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoggingError {
    /// The level is not a filter.
    #[error("--log-level: {0}")]
    Level(BadLevel),
    /// The process has a log already.
    #[error("logging: {0}")]
    Init(Box<dyn Error + Send + Sync>),
}

/// Whether a level can be used, and why not.
///
/// # Errors
/// What is wrong with it.
pub fn check(level: &str) -> Result<(), BadLevel> {
    level::filter(level).map(drop)
}

/// Starts the log. `level` is a filter, as in `info,karst_waypoint=debug`.
///
/// # Errors
/// `level` is no filter, or this is the second call.
pub fn init(format: LogFormat, level: &str) -> Result<(), LoggingError> {
    let filter = level::filter(level).map_err(LoggingError::Level)?;
    let (filter, handle) = reload::Layer::new(filter);
    let (repeats, summaries) = Repeats::new();
    let lines = fmt::layer().with_writer(io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    Registry::default()
        .with(filter)
        .with(repeats)
        .with(lines)
        .try_init()
        .map_err(|error| LoggingError::Init(error.into()))?;
    control::install(handle, level);
    summaries
        .start()
        .map_err(|error| LoggingError::Init(error.into()))
}
