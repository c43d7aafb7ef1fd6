//! The `flatlan-hub` binary: a hub and nothing else. It cannot decrypt what it carries.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is where the program prints")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use flatlan_hubd::{HubError, InitArgs, RunArgs};
use flatlan_os::ExitClass;

/// A hub of a flatlan overlay: relays what it cannot read.
#[derive(Debug, Parser)]
#[command(name = "flatlan-hub", version, disable_help_subcommand = true)]
#[command(after_help = "Example:\n  flatlan-hub init && flatlan-hub run --allow flnet1...")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the hub's key; prints it
    #[command(after_help = "Example:\n  flatlan-hub init --state /var/lib/flatlan-hub")]
    Init(InitArgs),
    /// Run the hub (in the foreground)
    #[command(
        after_help = "Examples:\n  flatlan-hub run --config /etc/flatlan/hub.toml\n  flatlan-hub run --state /var/lib/flatlan-hub --tls 0.0.0.0:443 --allow flnet1..."
    )]
    Run(RunArgs),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(match error.exit_class() {
                ExitClass::Failed => 1,
                ExitClass::Wrong => 2,
                ExitClass::NotPermitted => 3,
                ExitClass::Unreachable => 4,
            })
        }
    }
}

fn run(command: Command) -> Result<(), HubError> {
    match command {
        Command::Init(args) => {
            println!("{}", flatlan_hubd::init(&args)?.full());
            Ok(())
        }
        Command::Run(args) => {
            flatlan_hubd::start_log(&args)?;
            flatlan_hubd::run(args)
        }
    }
}
