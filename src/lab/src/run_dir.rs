//! The folder of one lab, and how a lab that died without a word is found and removed.
//!
//! Every lab owns `BASE/PREFIX/`, with a `lock` file that its process keeps locked while it lives. The
//! kernel drops the lock with the process, so a folder whose lock can be taken belongs to nobody: the next lab to start
//! removes its processes, namespaces and files. A process number alone would not do, numbers come back.
//!
//! BASE is `/run/flatlan-lab` for root, and a folder of the user's in the temporary directory otherwise.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

use crate::error::LabError;
use crate::permission;
use crate::reaper;

/// Where `ip netns` keeps its names, and so do we.
pub(crate) const NETNS_DIR: &str = "/run/netns";

/// The folder of one living lab. Dropping it removes the folder, and everything that carries the lab's prefix.
#[derive(Debug)]
pub(crate) struct RunDir {
    prefix: String,
    path: PathBuf,
    // Held, never read: the lock says that this lab lives.
    _lock: File,
    keep: bool,
}

impl RunDir {
    /// Sweeps what dead labs left, then claims a folder for a new lab.
    pub(crate) fn claim(prefix: Option<&str>) -> Result<Self, LabError> {
        let base = base()?;
        let gate = gate(&base)?;
        sweep_in(&base)?;
        let prefix = prefix.map_or_else(fresh_prefix, str::to_owned);
        let path = base.join(&prefix);
        dir(&path)?;
        let file = path.join("lock");
        let mut lock = File::create(&file).map_err(LabError::io("create", &file))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::Error(source) => LabError::Io { action: "lock", path: file.clone(), source },
            TryLockError::WouldBlock => LabError::Io {
                action: "use, because another lab has the same prefix,",
                path: file.clone(),
                source: std::io::ErrorKind::AddrInUse.into(),
            },
        })?;
        writeln!(lock, "{}", std::process::id()).map_err(LabError::io("write", &file))?;
        dir(&path.join("log"))?;
        dir(&path.join("state"))?;
        drop(gate);
        Ok(Self { prefix, path, _lock: lock, keep: false })
    }

    /// The prefix of every namespace of this lab.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the files where they are when the lab goes; processes and namespaces go all the same.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        wipe(&self.prefix);
        reaper::forget(&self.prefix);
        if !self.keep {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes whatever labs of dead processes left behind. Every lab does this when it starts.
///
/// # Errors
/// Where the folder of the labs cannot be read or made.
pub fn sweep() -> Result<(), LabError> {
    let base = base()?;
    let _gate = gate(&base)?;
    sweep_in(&base)
}

/// Waits until the lab in this folder is gone, as long as a lab may take to go.
pub(crate) fn wait_free(folder: &Path) {
    let deadline = Instant::now() + KILL_WAIT * 2;
    while Instant::now() < deadline {
        match File::open(folder.join("lock")) {
            Ok(lock) if lock.try_lock().is_err() => std::thread::sleep(Duration::from_millis(5)),
            Ok(_) | Err(_) => return,
        }
    }
}

/// The folder that holds one folder per lab.
pub(crate) fn base() -> Result<PathBuf, LabError> {
    let base = match permission::rootless_owner() {
        None => PathBuf::from("/run/flatlan-lab"),
        Some(owner) => std::env::temp_dir().join(format!("flatlan-lab-{owner}")),
    };
    dir(&base)?;
    let meta = fs::symlink_metadata(&base).map_err(LabError::io("look at", &base))?;
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
        let source = std::io::ErrorKind::PermissionDenied.into();
        return Err(LabError::Io { action: "trust, because it belongs to another user,", path: base, source });
    }
    Ok(base)
}

/// Kills every process inside the namespaces of `prefix` and removes the namespaces.
///
/// A process inside a lab's namespace was started by that lab, so none can be killed by mistake.
pub(crate) fn wipe(prefix: &str) {
    let names = namespaces(prefix);
    let inodes: BTreeSet<(u64, u64)> = names.iter().filter_map(|path| inode(path)).collect();
    let deadline = Instant::now() + KILL_WAIT;
    loop {
        let pids = inhabitants(&inodes);
        for pid in &pids {
            let _ = rustix::process::kill_process(*pid, Signal::KILL);
        }
        if pids.is_empty() || Instant::now() > deadline {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    for path in names {
        forget(&path);
    }
}

/// Removes the name of one namespace.
pub(crate) fn forget(path: &Path) {
    let _ = rustix::mount::unmount(path, UnmountFlags::DETACH);
    let _ = fs::remove_file(path);
}

/// Makes a folder that only its owner can enter, unless it is there.
pub(crate) fn dir(path: &Path) -> Result<(), LabError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(LabError::io("create", path))
}

fn sweep_in(base: &Path) -> Result<(), LabError> {
    for entry in fs::read_dir(base).map_err(LabError::io("read", base))? {
        let entry = entry.map_err(LabError::io("read", base))?;
        let (path, name) = (entry.path(), entry.file_name());
        let Some(prefix) = name.to_str().filter(|_| path.is_dir()) else { continue };
        let abandoned = match File::open(path.join("lock")) {
            Ok(lock) => lock.try_lock().is_ok(),
            Err(_) => true,
        };
        if abandoned {
            tracing::debug!(prefix, "removing what a dead lab left");
            wipe(prefix);
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}

/// Serialises claiming and sweeping, so that nobody sweeps a folder between its making and its locking.
fn gate(base: &Path) -> Result<File, LabError> {
    let path = base.join(".gate");
    let file = File::create(&path).map_err(LabError::io("create", &path))?;
    file.lock().map_err(LabError::io("lock", &path))?;
    Ok(file)
}

fn fresh_prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("fl{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn namespaces(prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return Vec::new() };
    let start = format!("{prefix}-");
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&start)))
        .map(|entry| entry.path())
        .collect()
}

fn inhabitants(inodes: &BTreeSet<(u64, u64)>) -> Vec<Pid> {
    let own = std::process::id().cast_signed();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            inode(Path::new(&format!("/proc/{pid}/ns/net"))).is_some_and(|inode| inodes.contains(&inode))
                && !is_zombie(*pid)
        })
        .filter_map(Pid::from_raw)
        .collect()
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// How long killed processes may take to die.
const KILL_WAIT: Duration = Duration::from_secs(3);
