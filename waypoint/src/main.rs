//! `karst-waypoint`: parses the configuration, sets up logging and runs [`karst_waypoint::app`]. Nothing else
//! happens here.

use anyhow::Context as _;
use clap::Parser;
use karst_process::logging;
use karst_waypoint::app;
use karst_waypoint::args::{Args, Config};

/// HTTP/2 makes many small allocations, for which the C library's is slow.
#[cfg(target_arch = "x86_64")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    let config = Config::try_from(Args::parse())?;
    logging::init(config.log_format, &config.log_level)?;
    app::run(config).context("karst-waypoint cannot run")
}
