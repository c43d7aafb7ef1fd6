//! The hub's state directory: `hub.key` (the one secret, 32 bytes in hexadecimal) and, per network, one
//! file with its published roster and the greatest head seen. A file that does not hold is kept beside the
//! one that takes its place, one that cannot be read stays where it is; neither stops another network.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a missing directory has another remedy, other errors speak for themselves"
)]

use std::path::Path;

use flatlan_hub::{Allow, StoredNetwork};
use flatlan_os::{
    entropy,
    file::{FileError, FileMode, Lock, Privacy, StateDir},
    secret,
};
use flatlan_types::{HubSecret, NetworkId};

use crate::HubError;

/// A hub's state directory, locked for this process.
pub(crate) struct HubState {
    dir: StateDir,
    _lock: Lock,
}

impl HubState {
    pub(crate) fn create(path: &Path) -> Result<Self, HubError> {
        Self::locked(StateDir::create(path, Privacy::Private).map_err(HubError::File)?)
    }

    pub(crate) fn open(path: &Path) -> Result<Self, HubError> {
        let dir = StateDir::open(path, Privacy::Private).map_err(|error| match error {
            FileError::MissingDirectory { path } => HubError::Missing { path: path.display().to_string() },
            error => HubError::File(error),
        })?;
        let state = Self::locked(dir)?;
        if !state.dir.exists(KEY).map_err(HubError::File)? {
            return Err(HubError::NoKey { path: path.display().to_string() });
        }
        Ok(state)
    }

    fn locked(dir: StateDir) -> Result<Self, HubError> {
        let lock = dir.lock().map_err(|error| match error {
            FileError::InUse { path, pid } => HubError::InUse { path: path.display().to_string(), pid },
            error => HubError::File(error),
        })?;
        if dir.check_version(VERSION).map_err(HubError::File)? == 0 {
            dir.set_version(VERSION).map_err(HubError::File)?;
        }
        Ok(Self { dir, _lock: lock })
    }

    pub(crate) fn secret_or_new(&self) -> Result<HubSecret, HubError> {
        if self.dir.exists(KEY).map_err(HubError::File)? {
            return self.secret();
        }
        let secret = HubSecret::from_bytes(&entropy::bytes());
        let text = secret::to_text(&secret.to_bytes());
        self.dir.write_new(KEY, text.as_bytes(), FileMode::Secret).map_err(HubError::File)?;
        Ok(secret)
    }

    pub(crate) fn secret(&self) -> Result<HubSecret, HubError> {
        let text = self.dir.read_secret(KEY).map_err(HubError::File)?;
        let damaged = || HubError::DamagedKey { file: self.dir.path().join(KEY).display().to_string() };
        Ok(HubSecret::from_bytes(&*secret::parse(&text).ok_or_else(damaged)?))
    }

    /// What was stored of the networks that `allow` names.
    pub(crate) fn networks(&self, allow: &Allow) -> Result<Vec<(NetworkId, Found)>, HubError> {
        let mut networks = Vec::new();
        for name in self.dir.list().map_err(HubError::File)? {
            let Some(network) = name.strip_suffix(SUFFIX).and_then(|id| id.parse::<NetworkId>().ok()) else { continue };
            if allow.allows(&network) {
                let found = match self.dir.read(&name) {
                    Ok(Some(bytes)) => StoredNetwork::decode(network, &bytes).map_or(Found::CutOff, Found::Whole),
                    Ok(None) => continue,
                    Err(error) => Found::Unreadable(error),
                };
                networks.push((network, found));
            }
        }
        Ok(networks)
    }

    /// Keeps what was stored of a network under another name; which.
    pub(crate) fn set_aside(&self, network: &NetworkId) -> Result<String, HubError> {
        self.dir.set_aside(&file_name(network)).map_err(HubError::File)
    }

    /// Writes a network's file: all of it, or nothing.
    pub(crate) fn store(&self, network: &NetworkId, bundle: &[u8], ratchet: &[u8]) -> Result<(), HubError> {
        let bytes = StoredNetwork::encode(ratchet, bundle);
        self.dir.write(&file_name(network), &bytes, FileMode::Secret).map_err(HubError::File)
    }
}

/// What a network's file is like.
#[derive(Debug)]
pub(crate) enum Found {
    /// Its parts do not add up.
    CutOff,
    /// It may be good: begun without it, the network would take an older roster from anyone.
    Unreadable(FileError),
    /// Whether its parts are good, [`flatlan_hub::Hub::new`] says.
    Whole(StoredNetwork),
}

fn file_name(network: &NetworkId) -> String {
    format!("{}{SUFFIX}", network.full())
}

const KEY: &str = "hub.key";
const SUFFIX: &str = ".network";
const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_second_is_told_how_to_stop_the_hub_that_runs() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("hub");
        let _first = HubState::create(&path).unwrap();
        let told = HubState::create(&path).map(|_| ()).unwrap_err().to_string();
        assert!(told.contains(&format!("kill {}", std::process::id())) && !told.contains("flatlan down"), "{told}");
    }

    #[test]
    fn a_file_that_was_cut_off_is_set_aside_and_the_others_are_read() {
        let temp = tempfile::tempdir().unwrap();
        let state = HubState::create(&temp.path().join("hub")).unwrap();
        let [bad, good] = [2, 1].map(|n| NetworkId::from_bytes([n; 32]));
        state.store(&bad, b"roster", b"ratchet").unwrap();
        state.store(&good, b"roster", b"ratchet").unwrap();
        state.dir.write(&file_name(&bad), b"cut", FileMode::Secret).unwrap();
        let read = state.networks(&Allow::Any).unwrap();
        assert!(
            matches!(&read[..], [(one, Found::CutOff), (two, Found::Whole(_))] if *one == bad && *two == good),
            "{read:?}"
        );
        assert_eq!(state.networks(&Allow::Networks([good].into())).unwrap().len(), 1);
        let aside = state.set_aside(&bad).unwrap();
        assert_eq!(state.dir.read(&aside).unwrap().unwrap(), b"cut");
        assert_eq!(state.networks(&Allow::Any).unwrap().len(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_taken_for_damaged_and_says_what_to_do() {
        use std::os::unix::fs::PermissionsExt as _;
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("hub");
        let state = HubState::create(&path).unwrap();
        let [lax, good] = [2, 1].map(|n| NetworkId::from_bytes([n; 32]));
        state.store(&lax, b"roster", b"ratchet").unwrap();
        state.store(&good, b"roster", b"ratchet").unwrap();
        let file = path.join(file_name(&lax));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
        let read = state.networks(&Allow::Any).unwrap();
        let [(one, Found::Unreadable(error)), (two, Found::Whole(_))] = &read[..] else { panic!("{read:?}") };
        assert_eq!((*one, *two), (lax, good));
        assert!(error.to_string().contains("chmod go-w"), "{error}");
    }
}
