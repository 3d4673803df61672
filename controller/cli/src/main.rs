//! `karst`: the user's command line.
//!
//! `karst inspect` shows what is on a node: programs, links, maps and enrolled
//! pods straight from the kernel (also when the agent is dead), everything else
//! from the agent's admin socket. Objects and commands follow bpftool: unique
//! prefixes are enough, `list` is `show`, no command means `show`.
//!
//! It changes nothing on a node. Start with [`inspect::run`].

mod admin;
mod args;
mod failure;
mod inspect;
mod kernel;
mod table;
mod words;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (outcome, json) = match cli.command {
        Command::Version => (Ok(format!("karst {}\n", env!("CARGO_PKG_VERSION"))), false),
        Command::Inspect(inspect) => {
            let json = inspect.output.is_json();
            (inspect::run(&inspect), json)
        }
    };
    match outcome {
        Ok(text) => {
            // A closed pipe (`| head`) is no failure.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(failure) => report(&failure, json),
    }
}

fn report(failure: &Failure, json: bool) -> ExitCode {
    if json {
        let object = serde_json::json!({"error": failure.message, "reason": failure.reason});
        let _ = writeln!(std::io::stdout(), "{object}");
    } else {
        let _ = writeln!(std::io::stderr(), "Error: {}", failure.message);
    }
    ExitCode::from(failure.kind.exit_code())
}
