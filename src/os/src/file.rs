//! The state directory: what must survive a restart, readable by nobody else.
//!
//! * A directory that others may enter, a secret that others may read, a symbolic link in a file's place:
//!   refused, with the command that repairs it. Everything is opened relative to the directory once opened,
//!   so that nothing can be swapped in between.
//! * A file is replaced whole or not at all: written beside, synced, renamed, the directory synced. Where
//!   that fails (a full disk) the old file is as it was.
//! * One process at a time holds the lock; a directory of a newer version is refused untouched.
//!
//! What the bytes mean is not known here.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, FlockOperation, Gid, Mode, OFlags, RenameFlags, Stat, Uid, chmodat, chownat,
        fchmod, fchown, flock, fstat, fsync, ftruncate, mkdirat, openat, renameat, renameat_with, statat, unlinkat,
    },
    io::Errno,
};
use zeroize::Zeroizing;

use crate::{ExitClass, Why};

/// A directory of ours, checked and held open.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    dir: OwnedFd,
    owner: (Uid, Gid),
}

/// Who else may look into a directory. Nobody else may ever change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privacy {
    /// Nobody: it holds a daemon's state. A group may pass through (0710).
    Private,
    /// Anybody: it is an operator's own working directory; its secrets are still private files.
    Readable,
}

/// Who else may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileMode {
    /// Anybody who may enter the directory (0644).
    Public,
    /// Nobody (0600).
    Secret,
}

/// Proof that no other process uses the directory. The lock ends with it, or with the process.
#[derive(Debug)]
pub struct Lock {
    _file: OwnedFd,
}

impl StateDir {
    /// Opens a directory, making it (0700) where it is missing.
    ///
    /// # Errors
    /// As [`open`](Self::open), and where it cannot be made.
    pub fn create(path: &Path, privacy: Privacy) -> Result<Self, FileError> {
        let mode = match privacy {
            Privacy::Private => Mode::from_raw_mode(0o700),
            Privacy::Readable => Mode::from_raw_mode(0o755),
        };
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(|e| FileError::of(Action::CreateDirectory, path, e.into()))?;
        }
        match mkdirat(CWD, path, mode) {
            Ok(()) | Err(Errno::EXIST) => Self::open(path, privacy),
            Err(e) => Err(FileError::of(Action::CreateDirectory, path, e.into())),
        }
    }

    /// Opens a directory that exists.
    ///
    /// # Errors
    /// Where it is missing, somebody else's, or open to others.
    pub fn open(path: &Path, privacy: Privacy) -> Result<Self, FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, path, flags, Mode::empty()).map_err(|e| match e {
            Errno::NOENT => FileError::MissingDirectory { path: path.to_owned() },
            e => FileError::of(Action::OpenDirectory, path, e.into()),
        })?;
        let stat = fstat(&dir).map_err(|e| FileError::of(Action::OpenDirectory, path, e.into()))?;
        let me = rustix::process::geteuid();
        if stat.st_uid != me.as_raw() && !me.is_root() {
            return Err(FileError::ForeignDirectory { path: path.to_owned(), owner: stat.st_uid, me: me.as_raw() });
        }
        let (forbidden, repair) = match privacy {
            // a group may pass through to a socket in it, and see nothing
            Privacy::Private => (0o067, "700"),
            Privacy::Readable => (0o022, "go-w"),
        };
        let mode = stat.st_mode & 0o7777;
        if mode & forbidden != 0 {
            return Err(FileError::LaxDirectory { path: path.to_owned(), mode, repair });
        }
        let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        Ok(Self { path: path.to_owned(), dir, owner })
    }

    /// Takes the lock.
    ///
    /// # Errors
    /// Where another process has it, or the file cannot be made.
    pub fn lock(&self) -> Result<Lock, FileError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = openat(&self.dir, LOCK, flags, Mode::from_raw_mode(0o600))
            .map_err(|e| self.failed(Action::Write, LOCK, e.into()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut pid = [0; 20];
                let length = rustix::io::pread(&file, &mut pid, 0).unwrap_or(0);
                let pid = pid.get(..length).and_then(|p| str::from_utf8(p).ok()).and_then(|p| p.trim().parse().ok());
                return Err(FileError::InUse { path: self.path.clone(), pid: pid.unwrap_or(0) });
            }
            Err(e) => return Err(self.failed(Action::Lock, LOCK, e.into())),
        }
        // Only a help for whoever is refused: a full disk must not keep a node from starting.
        let _ = ftruncate(&file, 0);
        let _ = rustix::io::pwrite(&file, format!("{}\n", std::process::id()).as_bytes(), 0);
        self.give_to_owner(&file);
        Ok(Lock { _file: file })
    }

    /// Refuses a directory that a newer version wrote, before anything in it is read or changed. A new
    /// directory gets `version`; an older one keeps its number until [`set_version`](Self::set_version).
    ///
    /// # Errors
    /// Where the directory is newer than `version`, or its number is unreadable.
    pub fn check_version(&self, version: u32) -> Result<u32, FileError> {
        let Some(bytes) = self.read(VERSION)? else {
            self.set_version(version)?;
            return Ok(version);
        };
        let text = str::from_utf8(&bytes).ok().map(str::trim);
        let Some(found) = text.and_then(|text| text.parse().ok()) else {
            return Err(FileError::BadVersion { path: self.path.join(VERSION) });
        };
        if found > version {
            return Err(FileError::Newer { path: self.path.clone(), found, known: version });
        }
        Ok(found)
    }

    /// Writes the version that the directory has now.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn set_version(&self, version: u32) -> Result<(), FileError> {
        self.write(VERSION, format!("{version}\n").as_bytes(), FileMode::Public)
    }

    /// The bytes of a file; `None` where it is missing.
    ///
    /// # Errors
    /// Where it is no plain file, others may change it, or it is too long or unreadable.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, FileError> {
        let Some((file, stat)) = self.open_file(name)? else { return Ok(None) };
        let mode = stat.st_mode & 0o7777;
        if mode & 0o022 != 0 {
            return Err(FileError::LaxFile { path: self.path.join(name), mode });
        }
        let mut bytes = Vec::new();
        self.read_all(name, &file, &stat, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// The bytes of a secret; zeroed when dropped.
    ///
    /// # Errors
    /// Where it is missing, no plain file, open to others, somebody else's, too long or unreadable.
    pub fn read_secret(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, FileError> {
        let path = || self.path.join(name);
        let (file, stat) = self.open_file(name)?.ok_or_else(|| FileError::MissingFile { path: path() })?;
        let me = rustix::process::geteuid().as_raw();
        if ![me, 0, self.owner.0.as_raw()].contains(&stat.st_uid) {
            return Err(FileError::ForeignSecret { path: path(), owner: stat.st_uid });
        }
        let mode = stat.st_mode & 0o7777;
        if mode & 0o077 != 0 {
            return Err(FileError::LaxSecret { path: path(), mode });
        }
        // Room for all at once: growing would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MOST_SECRET + 1));
        self.read_all(name, &file, &stat, &mut bytes)?;
        Ok(bytes)
    }

    fn open_file(&self, name: &str) -> Result<Option<(OwnedFd, Stat)>, FileError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&self.dir, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(FileError::NotPlain { path: self.path.join(name) }),
            Err(e) => return Err(self.failed(Action::Read, name, e.into())),
        };
        let stat = fstat(&file).map_err(|e| self.failed(Action::Read, name, e.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(FileError::NotPlain { path: self.path.join(name) });
        }
        Ok(Some((file, stat)))
    }

    fn read_all(&self, name: &str, file: &OwnedFd, stat: &Stat, bytes: &mut Vec<u8>) -> Result<(), FileError> {
        let most = if bytes.capacity() > 0 { bytes.capacity() - 1 } else { MOST_FILE };
        let length = usize::try_from(stat.st_size).unwrap_or(usize::MAX);
        if length > most {
            return Err(FileError::TooLong { path: self.path.join(name), most });
        }
        bytes.resize(length, 0);
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match rustix::io::read(file, rest) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(self.failed(Action::Read, name, e.into())),
            }
        }
        bytes.truncate(filled);
        Ok(())
    }

    /// Replaces a file, whole or not at all.
    ///
    /// # Errors
    /// Where it could not be written; the old file is as it was.
    pub fn write(&self, name: &str, bytes: &[u8], mode: FileMode) -> Result<(), FileError> {
        self.write_beside(name, bytes, mode)?;
        let renamed = renameat(&self.dir, temporary(name), &self.dir, name);
        self.finish(name, renamed)
    }

    /// Writes a file that does not exist yet.
    ///
    /// # Errors
    /// As [`write`](Self::write), and where it exists: it is as it was then.
    pub fn write_new(&self, name: &str, bytes: &[u8], mode: FileMode) -> Result<(), FileError> {
        if self.exists(name)? {
            return Err(FileError::Exists { path: self.path.join(name) });
        }
        self.write_beside(name, bytes, mode)?;
        let renamed = match renameat_with(&self.dir, temporary(name), &self.dir, name, RenameFlags::NOREPLACE) {
            // Not every file system can; whoever writes new files holds the lock.
            Err(Errno::INVAL | Errno::NOSYS) => renameat(&self.dir, temporary(name), &self.dir, name),
            done => done,
        };
        self.finish(name, renamed)
    }

    fn write_beside(&self, name: &str, bytes: &[u8], mode: FileMode) -> Result<(), FileError> {
        let temporary = temporary(name);
        // What a crash may have left.
        let _ = unlinkat(&self.dir, &temporary, AtFlags::empty());
        let written = self.write_temporary(&temporary, bytes, mode);
        written.map_err(|e| {
            let _ = unlinkat(&self.dir, &temporary, AtFlags::empty());
            self.failed(Action::Write, name, e.into())
        })
    }

    fn write_temporary(&self, temporary: &str, bytes: &[u8], mode: FileMode) -> rustix::io::Result<()> {
        let mode = match mode {
            FileMode::Public => Mode::from_raw_mode(0o644),
            FileMode::Secret => Mode::from_raw_mode(0o600),
        };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.dir, temporary, flags, Mode::from_raw_mode(0o600))?;
        let mut rest = bytes;
        while !rest.is_empty() {
            match rustix::io::write(&file, rest) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        self.give_to_owner(&file);
        // The umask may have taken more than was asked.
        fchmod(&file, mode)?;
        fsync(&file)
    }

    fn finish(&self, name: &str, renamed: rustix::io::Result<()>) -> Result<(), FileError> {
        renamed.map_err(|e| {
            let _ = unlinkat(&self.dir, temporary(name), AtFlags::empty());
            match e {
                Errno::EXIST => FileError::Exists { path: self.path.join(name) },
                e => self.failed(Action::Write, name, e.into()),
            }
        })?;
        fsync(&self.dir).map_err(|e| self.failed(Action::Write, name, e.into()))
    }

    /// Where root works in a user's directory, the files stay the user's.
    fn give_to_owner(&self, file: &OwnedFd) {
        let (uid, gid) = self.owner;
        if rustix::process::geteuid().is_root() && !uid.is_root() {
            let _ = fchown(file, Some(uid), Some(gid));
        }
    }

    /// Gives a socket in the directory to the directory's owner, and to the members of `group`, who may then
    /// pass through the directory (0710); where there is no such group, or it is not ours to give, to the
    /// owner alone.
    ///
    /// # Errors
    /// Its mode or owner cannot be set.
    pub fn share_socket(&self, name: &str, group: &str) -> Result<(), FileError> {
        let failed = |e: Errno| self.failed(Action::Write, name, e.into());
        let (uid, _) = self.owner;
        if rustix::process::geteuid() != uid {
            chownat(&self.dir, name, Some(uid), None, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        }
        let gid = nix::unistd::Group::from_name(group).ok().flatten().map(|group| Gid::from_raw(group.gid.as_raw()));
        let shared = gid.is_some_and(|gid| {
            let ours =
                |dir: &OwnedFd| fchown(dir, None, Some(gid)).and_then(|()| fchmod(dir, Mode::from_raw_mode(0o710)));
            ours(&self.dir).is_ok() && chownat(&self.dir, name, None, Some(gid), AtFlags::SYMLINK_NOFOLLOW).is_ok()
        });
        let mode = Mode::from_raw_mode(if shared { 0o660 } else { 0o600 });
        chmodat(&self.dir, name, mode, AtFlags::empty()).map_err(failed)
    }

    /// Whether there is anything of this name.
    ///
    /// # Errors
    /// Where the directory cannot be searched.
    pub fn exists(&self, name: &str) -> Result<bool, FileError> {
        match statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(self.failed(Action::Read, name, e.into())),
        }
    }

    /// Removes a file; that it was missing is no error.
    ///
    /// # Errors
    /// Where it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), FileError> {
        match unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) => fsync(&self.dir).map_err(|e| self.failed(Action::Remove, name, e.into())),
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(self.failed(Action::Remove, name, e.into())),
        }
    }

    /// Gives a file a name that nothing has, beginning with its own and `.damaged`: it stays for whoever wants
    /// to look into it. The name.
    ///
    /// # Errors
    /// Where it cannot be renamed.
    pub fn set_aside(&self, name: &str) -> Result<String, FileError> {
        let mut aside = format!("{name}.damaged");
        let mut count = 1;
        while self.exists(&aside)? {
            count += 1;
            aside = format!("{name}.damaged-{count}");
        }
        let failed = |e: Errno| self.failed(Action::Write, name, e.into());
        renameat(&self.dir, name, &self.dir, &aside).map_err(failed)?;
        fsync(&self.dir).map_err(failed)?;
        Ok(aside)
    }

    /// The names of all files, sorted; half-written and hidden ones are left out.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn list(&self) -> Result<Vec<String>, FileError> {
        let failed = |e: Errno| FileError::of(Action::OpenDirectory, &self.path, e.into());
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let Ok(name) = entry.file_name().to_str().map(str::to_owned)
                && !name.starts_with('.')
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// A directory in this one, made where it is missing.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn subdirectory(&self, name: &str, privacy: Privacy) -> Result<Self, FileError> {
        let sub = Self::create(&self.path.join(name), privacy)?;
        if rustix::process::geteuid().is_root() && !self.owner.0.is_root() {
            let _ = fchown(&sub.dir, Some(self.owner.0), Some(self.owner.1));
        }
        Ok(Self { owner: self.owner, ..sub })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn failed(&self, action: Action, name: &str, why: Why) -> FileError {
        FileError::of(action, &self.path.join(name), why)
    }
}

fn temporary(name: &str) -> String {
    format!(".{name}.new")
}

const LOCK: &str = "lock";
const VERSION: &str = "version";
/// A roster of 100,000 members has some 30 MB.
const MOST_FILE: usize = 256 << 20;
const MOST_SECRET: usize = 64 << 10;

/// What was tried on a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Make a directory.
    CreateDirectory,
    /// Take a lock.
    Lock,
    /// Open or list a directory.
    OpenDirectory,
    /// Read a file.
    Read,
    /// Remove a file.
    Remove,
    /// Write a file.
    Write,
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::CreateDirectory => "create directory",
            Self::Lock => "lock",
            Self::OpenDirectory => "open directory",
            Self::Read => "read",
            Self::Remove => "remove",
            Self::Write => "write",
        })
    }
}

/// Why a file or directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The version file holds no number.
    #[error("cannot read {}: it holds no version number: restore the directory from a copy, or use another --state", path.display())]
    BadVersion {
        /// The file.
        path: PathBuf,
    },
    /// A file that must be new is there.
    #[error("cannot write {}: it exists already: move it away first", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Any other reason.
    #[error("cannot {action} {}: {why}", path.display())]
    Failed {
        /// What was tried.
        action: Action,
        /// On what.
        path: PathBuf,
        /// The kernel's reason.
        why: Why,
    },
    /// The directory is somebody else's.
    #[error("state directory {} belongs to user {owner}, not to this user ({me}): run as that user, or use another --state", path.display())]
    ForeignDirectory {
        /// The directory.
        path: PathBuf,
        /// Whose.
        owner: u32,
        /// Who asks.
        me: u32,
    },
    /// A secret is somebody else's.
    #[error("{} belongs to user {owner}, who could change it: chown it to the owner of its directory", path.display())]
    ForeignSecret {
        /// The file.
        path: PathBuf,
        /// Whose.
        owner: u32,
    },
    /// ENOSPC or EDQUOT.
    #[error("cannot write {}: no space left on its disk: free some space and try again; the file is as it was", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// Another process has the lock.
    #[error("state directory {} is in use by another process (pid {pid}): stop it with `flatlan down --state {}`, or use another --state", path.display(), path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process; zero where it is not known.
        pid: u32,
    },
    /// Others may enter or change the directory.
    #[error("state directory {} is open to others (mode {mode:04o}): run `chmod {repair} {}`", path.display(), path.display())]
    LaxDirectory {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What mode to give it.
        repair: &'static str,
    },
    /// Others may change the file.
    #[error("{} can be changed by others (mode {mode:04o}): run `chmod go-w {}`", path.display(), path.display())]
    LaxFile {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Others may read the secret.
    #[error("secret {} can be read by others (mode {mode:04o}): run `chmod 600 {}`, and replace the key if someone may have read it", path.display(), path.display())]
    LaxSecret {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// There is no such directory.
    #[error("state directory {} does not exist: name the right one with --state DIR", path.display())]
    MissingDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// There is no such file.
    #[error("{} does not exist: name the right directory with --state DIR, or restore the file from a copy", path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// The directory is of a version to come.
    #[error("state directory {} was written by a newer flatlan (format {found}, this one knows {known}): install that version, or use another --state; nothing was changed", path.display())]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// A symbolic link, a directory, a device.
    #[error("{} is no plain file: symbolic links and devices are refused here: put the file itself in its place", path.display())]
    NotPlain {
        /// The file.
        path: PathBuf,
    },
    /// EACCES, EPERM or a read-only file system.
    #[error("cannot {action} {}: {why}: run as a user who may, or use another directory with --state DIR", path.display())]
    NotPermitted {
        /// What was tried.
        action: Action,
        /// On what.
        path: PathBuf,
        /// The kernel's reason.
        why: Why,
    },
    /// No file of ours is this long.
    #[error("cannot read {}: it is longer than {most} bytes, so it is none of ours: restore it from a copy", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The most that is read.
        most: usize,
    },
}

impl FileError {
    fn of(action: Action, path: &Path, why: Why) -> Self {
        let path = path.to_owned();
        match why.0.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::NotPermitted { action, path, why }
            }
            _ => Self::Failed { action, path, why },
        }
    }

    /// Which exit code it asks for.
    pub fn exit_class(&self) -> ExitClass {
        match self {
            Self::BadVersion { .. }
            | Self::Exists { .. }
            | Self::ForeignSecret { .. }
            | Self::LaxDirectory { .. }
            | Self::LaxFile { .. }
            | Self::LaxSecret { .. }
            | Self::MissingDirectory { .. }
            | Self::MissingFile { .. }
            | Self::Newer { .. }
            | Self::NotPlain { .. }
            | Self::TooLong { .. } => ExitClass::Wrong,
            Self::ForeignDirectory { .. } | Self::NotPermitted { .. } => ExitClass::NotPermitted,
            Self::Failed { .. } | Self::Full { .. } | Self::InUse { .. } => ExitClass::Failed,
        }
    }
}

#[cfg(test)]
mod tests;
