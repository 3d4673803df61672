//! Developer commands (`cargo xtask COMMAND`), one file each. Users never need this crate;
//! it ships with nothing. Start with the module of the command you want to change.

mod build_ebpf;
mod codegen;
mod lab;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Karst developer commands")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the eBPF programs (and with --verify load each into the running kernel's verifier).
    BuildEbpf(build_ebpf::Args),
    /// Regenerate checked-in generated code.
    Codegen(codegen::Args),
    /// Run a two-node mesh in network namespaces on this machine.
    Lab(lab::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::BuildEbpf(args) => build_ebpf::run(&args),
        Command::Codegen(args) => codegen::run(&args),
        Command::Lab(args) => lab::run(&args),
    }
}
