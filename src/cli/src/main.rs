//! The `flatlan` binary: the command line of the contract, and nothing that a library could not do.
//!
//! Every command is a function from its arguments to `Result<(), Failure>`. What a script reads goes to
//! stdout, everything else to stderr; a failure is one line `error: what: why: what to do` and an exit code
//! (0 done, 1 failed, 2 wrong command line or file, 3 not permitted, 4 not running or not reachable).

mod admin;
mod args;
mod client;
mod explain;
mod failure;
mod hub;
mod lab;
mod log;
mod netcheck;
mod node;
mod output;
mod usage;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // help and version are no errors
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            let failure = usage::wrong(&error, std::env::args());
            output::error(&failure);
            return failure.exit_code();
        }
    };
    let done = match cli.command {
        Command::Network(command) => admin::network(command),
        Command::Invite(command) => admin::invite(command),
        Command::Member(command) => admin::member(command),
        Command::Revoke(command) => admin::revoke(command),
        Command::Hub(command) => hub::run(command),
        Command::Join(command) => node::join(command),
        Command::Up(command) => node::up(command),
        Command::Status(command) => client::status(command),
        Command::Down(command) => client::down(command),
        Command::Leave(command) => node::leave(command),
        Command::Ping(command) => client::ping(command),
        Command::Nc(command) => client::nc(command),
        Command::Netcheck(command) => netcheck::run(command),
        Command::Explain(command) => explain::run(command),
        Command::Check(command) => admin::check(command),
        Command::Lab(command) => lab::run(command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::error(&failure);
            failure.exit_code()
        }
    }
}
