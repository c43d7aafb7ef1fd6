//! `flatlan hub ...`: the same code as the `flatlan-hub` binary.

use crate::{args::HubCommand, failure::Failure, output};

/// `flatlan hub`.
pub(crate) fn run(command: HubCommand) -> Result<(), Failure> {
    match command {
        HubCommand::Init(args) => {
            let key = flatlan_hubd::init(&args)?;
            output::result(key.full());
            Ok(())
        }
        HubCommand::Run(args) => {
            flatlan_hubd::start_log(&args)?;
            Ok(flatlan_hubd::run(args)?)
        }
    }
}
