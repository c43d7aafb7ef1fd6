//! The `flatlan-hub` binary: a hub and nothing else. It cannot decrypt what it carries.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is where the program prints")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use flatlan_hubd::{HubError, InitArgs, RunArgs};
use flatlan_os::ExitClass;
use tracing_subscriber::EnvFilter;

/// A hub of a flatlan overlay: relays what it cannot read.
#[derive(Debug, Parser)]
#[command(name = "flatlan-hub", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the hub's key; prints it
    Init(InitArgs),
    /// Run the hub (in the foreground)
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
            let filter = args.log.as_deref().and_then(|filter| EnvFilter::try_new(filter).ok());
            tracing_subscriber::fmt()
                .with_env_filter(filter.unwrap_or_else(|| EnvFilter::new("info")))
                .with_writer(std::io::stderr)
                .with_target(false)
                .init();
            flatlan_hubd::run(args)
        }
    }
}
