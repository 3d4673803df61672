//! `karst-waypoint`: parses the configuration, sets up logging and runs [`karst_waypoint::app`]. Nothing else
//! happens here.

use std::io;

use anyhow::Context as _;
use clap::Parser;
use karst_waypoint::app;
use karst_waypoint::args::{Args, Config, LogFormat};
use tracing_subscriber::EnvFilter;

fn main() -> anyhow::Result<()> {
    let config = Config::try_from(Args::parse())?;
    init_logging(config.log_format, &config.log_level)?;
    app::run(config).context("karst-waypoint cannot run")
}

/// The program's log goes to standard error; standard output is the access log's.
fn init_logging(format: LogFormat, level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(level).context("--log-level")?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let outcome = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    outcome.map_err(|error| anyhow::anyhow!("logging: {error}"))
}
