//! `karst-node-agent`: parses the configuration, sets up logging and runs
//! [`karst_node_agent::app`]; or `karst-node-agent ready`, the probe of one that
//! runs; or [`karst_node_agent::cleanup`]. Nothing else happens here.

use std::env;

use anyhow::Context as _;
use clap::Parser;
use karst_node_agent::app;
use karst_node_agent::cleanup::{self, CleanupArgs};
use karst_node_agent::config::{Args, Config};
use karst_node_agent::presence::{self, ReadyArgs};
use karst_process::logging;

/// The word that makes it take everything off the node instead of running an agent.
const CLEANUP: &str = "cleanup";

/// The word that makes it ask a running agent instead.
const READY: &str = "ready";

fn main() -> anyhow::Result<()> {
    let mut words: Vec<_> = env::args_os().collect();
    if words.get(1).is_some_and(|word| word == CLEANUP) {
        words.remove(1);
        let args = CleanupArgs::parse_from(words);
        logging::init(args.log_format, &args.log_level)?;
        return cleanup::run(args).context("the node cannot be cleaned");
    }
    if words.get(1).is_some_and(|word| word == READY) {
        words.remove(1);
        return presence::ask(&ReadyArgs::parse_from(words).socket).context("not ready");
    }
    let config = Config::try_from(Args::parse())?;
    logging::init(config.log_format, &config.log_level)?;
    karst_datapath::memory::tune();
    app::run(config).context("karst-node-agent cannot run")
}
