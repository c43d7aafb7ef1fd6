//! A network's beginning, and its second beginning: `network create` and `network recover`.

use std::path::{Path, PathBuf};

use flatlan_roster::Source;
use flatlan_types::{Name, Prefix, RecoveryKey};
use zeroize::Zeroizing;

use super::{
    cannot,
    directory::{self, ADMIN_KEY, Access, EXTENSION, NETWORK, NetworkDir, RECOVERY_KEY},
    key, state_flag,
};
use crate::{failure::Failure, output};

/// `flatlan network create`.
pub(super) fn create(name: &Name, range: Prefix, state: Option<&Path>) -> Result<(), Failure> {
    let path = state.map_or_else(|| PathBuf::from(format!("{name}.{EXTENSION}")), Path::to_owned);
    let (admin, recovery) = (key::make(), key::make());
    let source = Source::create(name, range, &admin.public(), &RecoveryKey::of(&recovery))
        .map_err(|e| Failure::wrong(format!("cannot create network {name}: {}", e.problem)))?;
    directory::create(&path, &source, &admin, &recovery)?;
    let shown = path.display();
    output::say(format!("made {shown}: {NETWORK}, {ADMIN_KEY}, {RECOVERY_KEY}"));
    output::say(format!(
        "move {shown}/{RECOVERY_KEY} away now, to a safe place off this machine: it replaces a stolen or lost {ADMIN_KEY}"
    ));
    let flag = state_flag(state);
    output::say(format!("next: flatlan network hub add NAME --key HUBKEY --tls HOST:PORT{flag}"));
    output::result(source.network_id().full());
    Ok(())
}

/// `flatlan network recover`.
pub(super) fn recover(dir: Option<&Path>, recovery_key: &Path) -> Result<(), Failure> {
    let mut network = NetworkDir::open(dir, Access::Change)?;
    let bytes = std::fs::read(recovery_key).map(Zeroizing::new).map_err(|error| {
        let why = flatlan_os::Why(error);
        Failure::wrong(format!(
            "cannot read {}: {why}: name the {RECOVERY_KEY} that `flatlan network create` made",
            recovery_key.display()
        ))
    })?;
    let recovery = key::parse(&bytes, recovery_key)?;
    let admin = key::make();
    let authority = network
        .source
        .authority()
        .recover(admin.public(), &recovery)
        .map_err(|error| Failure::wrong(format!("cannot recover with {}: {error}", recovery_key.display())))?;
    network.source.set_authority(&authority).map_err(|e| cannot("recover", &e))?;
    // Where this ends between the two files, the same command again makes another key.
    network.write_admin_secret(&admin)?;
    network.write_source()?;
    output::say(format!("new {ADMIN_KEY} of key epoch {}: the old one signs nothing any more", authority.key_epoch()));
    output::say(format!(
        "next: flatlan network publish{}; until then the old key counts. Look at `flatlan network plan` first, and move {RECOVERY_KEY} away again",
        network.state_flag()
    ));
    Ok(())
}
