//! The files of a node's state directory that the driver reads itself.
//!
//! | file | holds | mode |
//! |---|---|---|
//! | `seed` | the node's one secret, 32 bytes in hexadecimal | 0600 |
//! | `network.json` | which network: its id (which makes its keys known), and where to find hubs | 0600 |
//! | `version` | version of the directory's format | 0644 |
//!
//! The files that the control machine reads and writes are in [`flatlan_node::persist`].

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a missing file has another remedy, other errors speak for themselves"
)]

use std::path::Path;

use flatlan_node::persist::LaterVersion;
use flatlan_os::{
    file::{FileError, FileMode, Lock, Privacy, StateDir},
    secret,
};
use flatlan_types::{HostPort, NetworkId, NodeSeed};
use serde::{Deserialize, Serialize};

/// What a node is told when it joins: whom to trust, and where to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkFile {
    /// The network's id.
    pub network: NetworkId,
    /// Where hubs answer on TCP: hints for the first start.
    pub hubs: Vec<HostPort>,
}

/// A node's state directory, locked for this process.
#[derive(Debug)]
pub struct NodeState {
    dir: StateDir,
    _lock: Lock,
}

impl NodeState {
    /// Opens and locks the directory.
    ///
    /// # Errors
    /// It is missing, lax, in use, of a later version, or not permitted.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let dir = StateDir::open(path, Privacy::Private).map_err(|error| match error {
            FileError::MissingDirectory { path } => StateError::Missing { state: path.display().to_string() },
            error => StateError::File(error),
        })?;
        Self::locked(dir)
    }

    /// Opens and locks the directory, making it where it is missing.
    ///
    /// # Errors
    /// It is lax, in use, of a later version, or not permitted.
    pub fn create(path: &Path) -> Result<Self, StateError> {
        let dir = StateDir::create(path, Privacy::Private).map_err(StateError::File)?;
        Self::locked(dir)
    }

    fn locked(dir: StateDir) -> Result<Self, StateError> {
        let lock = dir.lock().map_err(StateError::File)?;
        if dir.check_version(VERSION).map_err(StateError::File)? == 0 {
            dir.set_version(VERSION).map_err(StateError::File)?;
        }
        Ok(Self { dir, _lock: lock })
    }

    /// The directory.
    pub fn dir(&self) -> &StateDir {
        &self.dir
    }

    /// The node's seed.
    ///
    /// # Errors
    /// There is none, it is lax, or damaged.
    pub fn seed(&self) -> Result<NodeSeed, StateError> {
        let text = self.dir.read_secret(SEED).map_err(|error| match error {
            FileError::MissingFile { path } => {
                StateError::NoSeed { file: path.display().to_string(), state: self.state() }
            }
            error => StateError::File(error),
        })?;
        let seed = secret::parse(&text).ok_or_else(|| self.damaged(SEED))?;
        Ok(NodeSeed::from_bytes(*seed))
    }

    /// The node's seed, made now where there was none.
    ///
    /// # Errors
    /// It is lax, damaged, or cannot be written.
    pub fn seed_or_new(&self) -> Result<NodeSeed, StateError> {
        if self.dir.exists(SEED).map_err(StateError::File)? {
            return self.seed();
        }
        let seed = NodeSeed::from_bytes(flatlan_os::entropy::bytes());
        let text = secret::to_text(seed.as_bytes());
        self.dir.write_new(SEED, text.as_bytes(), FileMode::Secret).map_err(StateError::File)?;
        Ok(seed)
    }

    /// Which network this node is of; `None` where it has not joined one.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn network(&self) -> Result<Option<NetworkFile>, StateError> {
        let Some(bytes) = self.dir.read(NETWORK).map_err(StateError::File)? else { return Ok(None) };
        let file = serde_json::from_slice(&bytes).map_err(|_| self.damaged(NETWORK))?;
        Ok(Some(file))
    }

    /// Remembers which network this node is of.
    ///
    /// # Errors
    /// The file cannot be written.
    #[expect(clippy::unwrap_in_result, reason = "keys and names are plain strings")]
    pub fn set_network(&self, network: &NetworkFile) -> Result<(), StateError> {
        let mut text = serde_json::to_vec_pretty(network).expect("keys and names are plain JSON strings");
        text.push(b'\n');
        self.dir.write(NETWORK, &text, FileMode::Secret).map_err(StateError::File)
    }

    fn damaged(&self, name: &str) -> StateError {
        StateError::Damaged { file: self.dir.path().join(name).display().to_string(), state: self.state() }
    }

    fn state(&self) -> String {
        self.dir.path().display().to_string()
    }
}

/// What is wrong with a state directory.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file's contents make no sense.
    #[error(
        "{file} is damaged: restore it from a copy, or empty the directory with `flatlan leave --state {state}` and join again with a token of `flatlan invite NAME --replace`"
    )]
    Damaged {
        /// Its path.
        file: String,
        /// The state directory.
        state: String,
    },
    /// A file or the directory cannot be used.
    #[error(transparent)]
    File(FileError),
    /// A later version was here.
    #[error(transparent)]
    Later(LaterVersion),
    /// There is no such directory.
    #[error(
        "state directory {state} does not exist: join a network first: `flatlan join TOKEN --state {state}`, or name the right one with --state DIR"
    )]
    Missing {
        /// The state directory.
        state: String,
    },
    /// The secret is gone, and with it who this node is.
    #[error(
        "{file} does not exist: restore it from a copy, or empty the directory with `flatlan leave --state {state}` and join again with a token of `flatlan invite NAME --replace`"
    )]
    NoSeed {
        /// Its path.
        file: String,
        /// The state directory.
        state: String,
    },
}

impl StateError {
    /// What it means to whoever started the program.
    pub fn exit_class(&self) -> flatlan_os::ExitClass {
        match self {
            Self::Damaged { .. } | Self::Later(_) | Self::Missing { .. } | Self::NoSeed { .. } => {
                flatlan_os::ExitClass::Wrong
            }
            Self::File(error) => error.exit_class(),
        }
    }
}

/// Version of the directory's format.
pub const VERSION: u32 = 1;
/// The file with the node's secret.
pub const SEED: &str = "seed";
/// The file that says of which network the node is.
pub const NETWORK: &str = "network.json";
/// The control socket.
pub const SOCKET: &str = "control.sock";

#[cfg(test)]
mod tests {
    use super::*;

    /// What a node of this version wrote when it joined is read for ever.
    #[test]
    fn the_network_file_is_read_as_in_the_golden_file() {
        let golden: NetworkFile = serde_json::from_str(include_str!("golden/network-v1.json")).unwrap();
        let hubs = ["hub-a.example:443", "[2001:db8::1]:443"].map(|hub| hub.parse().unwrap());
        assert_eq!(golden, NetworkFile { network: NetworkId::from_bytes([1; 32]), hubs: hubs.to_vec() });
    }
}
