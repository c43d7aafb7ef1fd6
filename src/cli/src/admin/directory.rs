//! A network's directory: network.toml, the admin key, and the roster signed last.
//!
//! | file | holds | mode |
//! |---|---|---|
//! | `network.toml` | who is in the network; the one source of truth | 0644 |
//! | `admin.key` | the secret that signs | 0600 |
//! | `recovery.key` | the secret that replaces it; to be moved away | 0600 |
//! | `published/roster` | the roster signed or pulled last: what the next one follows | 0644 |
//! | `last-move.json` | what `network move --undo` takes back | 0644 |
//! | `.gitignore` | keeps keys out of git | 0644 |
//!
//! A roster is kept there before it is uploaded: whoever signed one and forgot it would sign another of the
//! same number, and fork the network.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use flatlan_os::file::{FileError, FileMode, Lock, Privacy, StateDir};
use flatlan_roster::{Ratchet, Source, VerifiedRoster};
use flatlan_types::AdminSecret;

use super::key;
use crate::failure::Failure;

/// A network's directory, read.
pub(super) struct NetworkDir {
    /// What network.toml says; changed here first, then written.
    pub(super) source: Source,
    /// The roster signed or pulled last.
    pub(super) published: Option<VerifiedRoster>,
    dir: StateDir,
    given: Option<PathBuf>,
    _lock: Option<Lock>,
}

/// What a command will do with the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Read and write: no other command may, meanwhile.
    Change,
    /// Read only.
    Read,
}

impl NetworkDir {
    /// Opens `given`, or else the network of the current directory.
    pub(super) fn open(given: Option<&Path>, access: Access) -> Result<Self, Failure> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => find()?,
        };
        let dir = StateDir::open(&path, Privacy::Readable)?;
        if !dir.exists(NETWORK)? {
            return Err(no_network(&path));
        }
        let lock = match access {
            Access::Change => Some(lock(&dir)?),
            Access::Read => None,
        };
        let bytes = dir.read(NETWORK)?.unwrap_or_default();
        let file = dir.path().join(NETWORK);
        let text = String::from_utf8(bytes)
            .map_err(|_| Failure::wrong(format!("{}: it is no text: restore it from a copy", file.display())))?;
        let source = Source::parse(&text).map_err(|error| Failure::wrong(format!("{}: {error}", file.display())))?;
        let published = read_published(&dir, &source)?;
        Ok(Self { source, published, dir, given: given.map(Path::to_owned), _lock: lock })
    }

    /// The admin key, which must be the one that signs.
    pub(super) fn admin_secret(&self) -> Result<AdminSecret, Failure> {
        let path = self.dir.path().join(ADMIN_KEY);
        let secret = key::parse(&self.dir.read_secret(ADMIN_KEY)?, &path)?;
        if secret.public() != *self.source.authority().admin() {
            let why = flatlan_roster::SignError::NotAdminKey;
            return Err(Failure::wrong(format!("cannot sign with {}: {why}", path.display())));
        }
        Ok(secret)
    }

    /// Replaces the admin key.
    pub(super) fn write_admin_secret(&self, secret: &AdminSecret) -> Result<(), Failure> {
        Ok(self.dir.write(ADMIN_KEY, key::to_text(secret).as_bytes(), FileMode::Secret)?)
    }

    /// Writes network.toml.
    pub(super) fn write_source(&self) -> Result<(), Failure> {
        Ok(self.dir.write(NETWORK, self.source.to_string().as_bytes(), FileMode::Public)?)
    }

    /// Whether network.toml says what [`source`](Self::source) does.
    pub(super) fn is_written(&self) -> Result<bool, Failure> {
        Ok(self.dir.read(NETWORK)?.as_deref() == Some(self.source.to_string().as_bytes()))
    }

    /// Keeps the roster that the next one follows.
    pub(super) fn keep_published(&mut self, roster: VerifiedRoster) -> Result<(), Failure> {
        let dir = self.dir.subdirectory(PUBLISHED, Privacy::Readable)?;
        dir.write(ROSTER, &roster.encode(), FileMode::Public)?;
        self.published = Some(roster);
        Ok(())
    }

    /// Where the roster is kept.
    pub(super) fn roster_path(&self) -> PathBuf {
        self.dir.path().join(PUBLISHED).join(ROSTER)
    }

    /// Keeps what `network move` did, so that it can be undone.
    pub(super) fn keep_move(&self, rehoming: &[u8]) -> Result<(), Failure> {
        Ok(self.dir.write(LAST_MOVE, rehoming, FileMode::Public)?)
    }

    /// There is nothing to undo any more.
    pub(super) fn forget_move(&self) -> Result<(), Failure> {
        Ok(self.dir.remove(LAST_MOVE)?)
    }

    /// What `network move` did last, as it was kept.
    pub(super) fn kept_move(&self) -> Result<Option<Vec<u8>>, Failure> {
        Ok(self.dir.read(LAST_MOVE)?)
    }

    /// Where that is kept.
    pub(super) fn kept_move_path(&self) -> PathBuf {
        self.dir.path().join(LAST_MOVE)
    }

    /// The ratchet after the roster kept here.
    pub(super) fn ratchet(&self) -> Ratchet {
        let mut ratchet = Ratchet::new(self.source.network_id());
        if let Some(published) = &self.published {
            let _ = ratchet.advance(published);
        }
        ratchet
    }

    /// What a command printed for the operator must say to find this directory again.
    pub(super) fn state_flag(&self) -> String {
        super::state_flag(self.given.as_deref())
    }
}

/// Makes the files of a new network, or none that another attempt would stumble over.
pub(super) fn create(path: &Path, source: &Source, admin: &AdminSecret, recovery: &AdminSecret) -> Result<(), Failure> {
    let dir = StateDir::create(path, Privacy::Readable)?;
    let _lock = lock(&dir)?;
    if dir.exists(NETWORK)? {
        return Err(FileError::Exists { path: path.join(NETWORK) }.into());
    }
    let (admin, recovery) = (key::to_text(admin), key::to_text(recovery));
    if !dir.exists(GITIGNORE)? {
        dir.write_new(GITIGNORE, b"*.key\n/lock\n", FileMode::Public)?;
    }
    let files: [(&str, &[u8], FileMode); 3] = [
        (ADMIN_KEY, admin.as_bytes(), FileMode::Secret),
        (RECOVERY_KEY, recovery.as_bytes(), FileMode::Secret),
        (NETWORK, &source.to_string().into_bytes(), FileMode::Public),
    ];
    let mut made = Vec::new();
    for (name, bytes, mode) in files {
        if let Err(error) = dir.write_new(name, bytes, mode) {
            for name in made {
                let _ = dir.remove(name);
            }
            return Err(error.into());
        }
        made.push(name);
    }
    dir.subdirectory(PUBLISHED, Privacy::Readable)?;
    Ok(())
}

fn find() -> Result<PathBuf, Failure> {
    let here = Path::new(".");
    if here.join(NETWORK).exists() {
        return Ok(here.to_owned());
    }
    let cannot = |error: &std::io::Error| Failure::failed(format!("cannot list the current directory: {error}"));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(here).map_err(|e| cannot(&e))? {
        let entry = entry.map_err(|e| cannot(&e))?;
        let path = PathBuf::from(entry.file_name());
        if path.extension().is_some_and(|extension| extension == EXTENSION) && path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    match found.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Failure::wrong(
            "no network here: this directory holds neither network.toml nor a *.flatlan directory: name the network's directory with --state DIR, or make a network: flatlan network create NAME",
        )),
        several => {
            let names: Vec<_> = several.iter().map(|path| path.display().to_string()).collect();
            let names = names.join(", ");
            Err(Failure::wrong(format!("several networks here: {names}: name one of them with --state DIR")))
        }
    }
}

fn no_network(path: &Path) -> Failure {
    let path = path.display();
    Failure::wrong(format!(
        "{path} holds no network.toml: name the network's directory with --state DIR, or make a network there: flatlan network create NAME --state {path}"
    ))
}

/// Waits for another command in the same directory: scripts run several at once.
fn lock(dir: &StateDir) -> Result<Lock, Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        match dir.lock() {
            Err(FileError::InUse { .. }) if Instant::now() < until => std::thread::sleep(PAUSE),
            Err(FileError::InUse { path, pid }) => {
                let path = path.display();
                return Err(Failure::failed(format!(
                    "cannot change {path}: another command (pid {pid}) is at work in it: try again when it has ended"
                )));
            }
            done => return Ok(done?),
        }
    }
}

fn read_published(dir: &StateDir, source: &Source) -> Result<Option<VerifiedRoster>, Failure> {
    if !dir.exists(PUBLISHED)? {
        return Ok(None);
    }
    let published = StateDir::open(&dir.path().join(PUBLISHED), Privacy::Readable)?;
    let Some(bytes) = published.read(ROSTER)? else { return Ok(None) };
    VerifiedRoster::verify(&bytes, &Ratchet::new(source.network_id()), None).map(Some).map_err(|error| {
        let path = published.path().join(ROSTER);
        let path = path.display();
        Failure::wrong(format!(
            "{path} cannot be used: {}: remove it, then get the published one: flatlan network pull",
            chain(&error)
        ))
    })
}

/// An error with the reasons behind it, as one part of a sentence.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let reason = error.to_string();
        // transparent errors repeat their source
        if !text.ends_with(&reason) {
            text = format!("{text}: {reason}");
        }
        source = error.source();
    }
    text
}

pub(super) const ADMIN_KEY: &str = "admin.key";
pub(super) const EXTENSION: &str = "flatlan";
pub(super) const NETWORK: &str = "network.toml";
pub(super) const RECOVERY_KEY: &str = "recovery.key";
const LAST_MOVE: &str = "last-move.json";
const GITIGNORE: &str = ".gitignore";
const PUBLISHED: &str = "published";
const ROSTER: &str = "roster";
/// How long to wait for another command.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(50);
