//! `karst-node-agent`: parses the configuration, sets up logging and runs
//! [`karst_node_agent::app`]; or `karst-node-agent ready`, the probe of one that
//! runs. Nothing else happens here.

use std::io;

use anyhow::Context as _;
use clap::Parser;
use karst_node_agent::app;
use karst_node_agent::config::{Args, Config, LogFormat};
use karst_node_agent::presence::{self, ReadyArgs};
use tracing_subscriber::EnvFilter;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os();
    if arguments.nth(1).is_some_and(|first| first == "ready") {
        let program = std::ffi::OsString::from("karst-node-agent ready");
        let args = ReadyArgs::parse_from(std::iter::once(program).chain(arguments));
        return presence::ask(&args.socket).context("not ready");
    }
    let config = Config::try_from(Args::parse())?;
    init_logging(&config)?;
    karst_datapath::memory::tune();
    app::run(config).context("karst-node-agent cannot run")
}

/// The agent's log goes to standard error; standard output is the access log's.
fn init_logging(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log_level).context("--log-level")?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let outcome = match config.log_format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    outcome.map_err(|error| anyhow::anyhow!("logging: {error}"))
}
