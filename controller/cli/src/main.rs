//! `karst`: the user's command line.
//!
//! `karst inspect` shows what is on a node: programs, links, maps and enrolled
//! pods straight from the kernel (also when the agent is dead), everything else
//! from the agent's or a waypoint's admin server, also through the API server. Objects and commands follow
//! bpftool: unique prefixes are enough, `list` is `show`, no command means `show`.
//!
//! `karst install`, `upgrade`, `uninstall` and `check` talk to a Kubernetes cluster, as its
//! administrator: they apply the chart that is embedded here, take it away again, and say what is
//! wrong. On a node they change nothing themselves; that is the agent's part.
//!
//! `karst explain` and `analyze` feed Kubernetes objects, of a cluster or of manifests ([`source`]), to the
//! controller's own index, and what comes out to the very code that decides in agents and proxies.
//!
//! `karst tap` and `top` follow what agents and waypoints see now.
//!
//! Start with [`inspect::run`], [`install::run`], [`check::run`], [`explain::run`], [`analyze::run`], [`tap::run`] or
//! [`top::run`].

mod admin;
mod analyze;
mod args;
mod bugreport;
mod check;
mod cluster;
mod diff;
mod explain;
mod failure;
mod input;
mod inspect;
mod inspect_conn;
mod install;
mod kernel;
mod log_level;
mod relay;
mod source;
mod style;
mod table;
mod tap;
#[cfg(test)]
mod testing;
mod top;
mod uninstall;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use failure::{Failure, Kind};
use install::Intent;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    let (outcome, json) = match cli.command {
        Command::Version => (Ok(format!("karst {}\n", env!("CARGO_PKG_VERSION"))), false),
        Command::Inspect(inspect) => return finish(&inspect::run(&inspect)),
        Command::LogLevel(args) => {
            let json = args.output.is_json();
            (log_level::run(&args), json)
        }
        Command::Install(args) => (install::run(&args, Intent::Install), false),
        Command::Upgrade(args) => (install::run(&args, Intent::Upgrade), false),
        Command::Uninstall(args) => (uninstall::run(&args), false),
        Command::Explain(args) => {
            let json = args.output.is_json();
            (explain::run(&args), json)
        }
        Command::Analyze(args) => {
            let json = args.output.is_json();
            (analyze::run(&args), json)
        }
        Command::Bugreport(args) => (bugreport::run(&args), false),
        Command::Tap(args) => {
            let json = args.output == args::TapOutput::Json;
            (tap::run(&args), json)
        }
        Command::Top(args) => (top::run(&args), false),
        Command::Relay(args) => (relay::run(&args), false),
        Command::Check(args) => {
            let json = args.output.is_json();
            (check::run(&args), json)
        }
    };
    match outcome {
        Ok(text) => {
            // A closed pipe (`| head`) is no failure.
            let _ = anstream::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(failure) => report(&failure, json),
    }
}

/// Prints what `inspect` says, and ends as it did.
fn finish(outcome: &inspect::Outcome) -> ExitCode {
    // A closed pipe (`| head`) is no failure.
    let _ = anstream::stdout().write_all(outcome.out.as_bytes());
    let _ = anstream::stderr().write_all(outcome.err.as_bytes());
    ExitCode::from(outcome.code)
}

/// Says what the command line should be. `analyze` has an exit code of its own for that.
fn misused(error: &clap::Error) -> ExitCode {
    // Standard error may be closed; there is nobody to tell then.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    let command = std::env::args().nth(1).unwrap_or_default();
    // Commands may be cut to a unique prefix, and no other begins with `a`.
    let kind = if !command.is_empty() && "analyze".starts_with(&command) {
        Kind::AnalyzeUsage
    } else {
        Kind::Usage
    };
    ExitCode::from(kind.exit_code())
}

fn report(failure: &Failure, json: bool) -> ExitCode {
    if matches!(
        failure.kind,
        Kind::Unhealthy | Kind::Denied | Kind::Differs | Kind::Findings
    ) {
        // The report is the answer, and not an error of the command.
        let _ = anstream::stdout().write_all(failure.message.as_bytes());
    } else if json {
        let object = serde_json::json!({"error": failure.message, "reason": failure.reason});
        let _ = writeln!(std::io::stdout(), "{object}");
    } else {
        let _ = writeln!(std::io::stderr(), "Error: {}", failure.message);
    }
    ExitCode::from(failure.kind.exit_code())
}
