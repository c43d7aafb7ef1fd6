//! The admin's commands: `network`, `invite`, `member`, `revoke` and `check`.
//!
//! They work in a directory, need no root, and know no daemon. A command that publishes does this, in this
//! order, so that nothing is half done where it fails early:
//!
//! 1. read the directory ([`NetworkDir`]) and the admin key;
//! 2. ask every hub what it holds, all at once ([`survey::Survey`]), and refuse where that is not what this directory
//!    published last;
//! 3. fold the claims that the hubs have, change network.toml, sign;
//! 4. write network.toml, then the signed roster: once it is out, it must not be forgotten;
//! 5. upload to all at once, and say which hub has stored it and which was not reached.
//!
//! What a roster is, and what may follow what, is decided in [`flatlan_roster`].

mod check;
mod create;
mod directory;
mod invite;
mod key;
mod member;
mod publish;
mod rehome;
mod survey;

use std::path::Path;

use flatlan_roster::source::{Place, SourceError, new_hub};
use flatlan_types::Name;

pub(crate) use check::check;
pub(crate) use invite::invite;
pub(crate) use member::{member, revoke};

use self::directory::{Access, NetworkDir};
use crate::{
    args::{NetworkCommand, NetworkHubCommand},
    failure::Failure,
    output,
};

/// `flatlan network`.
pub(crate) fn network(command: NetworkCommand) -> Result<(), Failure> {
    match command {
        NetworkCommand::Create { name, range, state } => create::create(&name, range, state.as_deref()),
        NetworkCommand::Hub(command) => hub(command),
        NetworkCommand::Plan { dir, json } => publish::plan(dir.dir.as_deref(), json),
        NetworkCommand::Publish { dir, out: Some(file), json } => publish::sign(dir.dir.as_deref(), &file, json),
        NetworkCommand::Publish { dir, out: None, json } => publish::publish(dir.dir.as_deref(), json),
        NetworkCommand::Upload { file, dir, json } => publish::upload(dir.dir.as_deref(), &file, json),
        NetworkCommand::Pull { dir, json } => publish::pull(dir.dir.as_deref(), json),
        NetworkCommand::Recover { recovery_key, dir } => create::recover(dir.dir.as_deref(), &recovery_key),
        NetworkCommand::Move { prefix, to, undo: _, dry_run, dir, json } => {
            let what = match (prefix, to) {
                (Some(prefix), Some(to)) => rehome::Move::To(prefix, to),
                // the command line has both, or --undo
                (None, _) | (_, None) => rehome::Move::Undo,
            };
            let really = if dry_run { rehome::Really::DryRun } else { rehome::Really::Publish };
            rehome::rehome(dir.dir.as_deref(), &what, really, json)
        }
        NetworkCommand::Clone { .. } => Err(Failure::not_in_this_version("network clone")),
    }
}

fn hub(command: NetworkHubCommand) -> Result<(), Failure> {
    match command {
        NetworkHubCommand::Add { name, key, tls, udp, region, weight, dir } => {
            let mut network = NetworkDir::open(dir.dir.as_deref(), Access::Change)?;
            let mut hub = new_hub(name.clone(), key, tls);
            (hub.udp, hub.region) = (udp, region);
            hub.weight = weight.unwrap_or(hub.weight);
            network.source.add_hub(&hub).map_err(|e| cannot(&format!("add hub {name}"), &e))?;
            network.write_source()?;
            output::say(format!("added hub {name}; next: flatlan network publish"));
        }
        NetworkHubCommand::Remove { name, dir } => {
            let mut network = NetworkDir::open(dir.dir.as_deref(), Access::Change)?;
            network.source.remove_hub(&name).map_err(|e| cannot(&format!("remove hub {name}"), &e))?;
            network.write_source()?;
            output::say(format!("removed hub {name}; next: flatlan network publish"));
        }
    }
    Ok(())
}

/// A change of network.toml that was asked for and cannot be: the command line asks for the wrong thing.
fn cannot(what: &str, error: &SourceError) -> Failure {
    let place = match &error.place {
        Place::Hub(name) | Place::Member(name) => name.as_str(),
        Place::File | Place::Network => "",
    };
    // said already
    if what.split(' ').next_back() == Some(place) {
        return Failure::wrong(format!("cannot {what}: {}", error.problem));
    }
    Failure::wrong(format!("cannot {what}: {error}"))
}

/// Names in a sentence.
fn listed<'a>(names: impl IntoIterator<Item = &'a Name>) -> String {
    names.into_iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

/// What `--state` must be for another command to find `dir` again; nothing where the default finds it.
fn state_flag(dir: Option<&Path>) -> String {
    dir.map_or_else(String::new, |dir| format!(" --state {}", dir.display()))
}
