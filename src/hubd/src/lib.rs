//! Runs a hub: driver, configuration, admin page.
//!
//! A hub relays what it cannot open. This crate joins the control machine and the data plane of
//! [`flatlan_hub`] to sockets, files and the clock: [`init`] makes the hub's key, [`run`] serves until it
//! is told to stop. `flatlan hub ...` and the `flatlan-hub` binary are both thin shells around it. Nothing
//! that decrypts is in its dependency tree.

mod admin;
mod args;
mod driver;
mod lobby;
mod log;
mod moderation;
mod packet_loop;
mod state;
mod streams;

pub use args::{HubFile, InitArgs, LogFormat, RunArgs};
pub use driver::{HubError, RunningHub};
pub use log::start_log;

use flatlan_types::HubKey;

/// Makes a hub's state directory and its key, or reads the key that is there.
///
/// # Errors
/// The directory cannot be used.
pub fn init(args: &InitArgs) -> Result<HubKey, HubError> {
    let state = state::HubState::create(&args.state)?;
    Ok(state.secret_or_new()?.public())
}

/// Runs a hub in the foreground until SIGTERM or SIGINT: then it tells its nodes to leave, waits a moment,
/// and ends.
///
/// # Errors
/// It cannot start, or its packet thread ended.
pub fn run(args: RunArgs) -> Result<(), HubError> {
    let config = args.resolve()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("hub-control")
        .enable_all()
        .build()
        .map_err(|error| HubError::Runtime(error.into()))?;
    runtime.block_on(driver::serve(config))
}
