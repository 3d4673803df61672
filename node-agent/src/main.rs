//! `karst-node-agent`: parses the configuration, sets up logging and runs
//! [`karst_node_agent::app`]; or `karst-node-agent ready`, the probe of one that
//! runs; or [`karst_node_agent::cleanup`]. Nothing else happens here.

use std::{env, io};

use anyhow::Context as _;
use clap::Parser;
use karst_node_agent::app;
use karst_node_agent::cleanup::{self, CleanupArgs};
use karst_node_agent::config::{Args, Config, LogFormat};
use karst_node_agent::presence::{self, ReadyArgs};
use tracing_subscriber::EnvFilter;

/// The word that makes it take everything off the node instead of running an agent.
const CLEANUP: &str = "cleanup";

/// The word that makes it ask a running agent instead.
const READY: &str = "ready";

fn main() -> anyhow::Result<()> {
    let mut words: Vec<_> = env::args_os().collect();
    if words.get(1).is_some_and(|word| word == CLEANUP) {
        words.remove(1);
        let args = CleanupArgs::parse_from(words);
        init_logging(args.log_format, &args.log_level)?;
        return cleanup::run(args).context("the node cannot be cleaned");
    }
    if words.get(1).is_some_and(|word| word == READY) {
        words.remove(1);
        return presence::ask(&ReadyArgs::parse_from(words).socket).context("not ready");
    }
    let config = Config::try_from(Args::parse())?;
    init_logging(config.log_format, &config.log_level)?;
    karst_datapath::memory::tune();
    app::run(config).context("karst-node-agent cannot run")
}

/// The agent's log goes to standard error; standard output is the access log's.
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
