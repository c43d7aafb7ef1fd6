//! What a machine must allow for a lab, and how a user without root gets it.
//!
//! A lab makes network and mount namespaces and opens `/dev/net/tun`. Root may. Anybody else may inside a user
//! namespace of their own, where the machine allows those and the TUN device is open to them: [`enter`] runs the
//! program again inside one. Where neither works, the error says what is missing.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;

use crate::error::LabError;
use crate::run_dir::NETNS_DIR;

/// What the machine does not allow.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// Neither root nor user namespaces.
    #[error(
        "no network namespaces: this needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN), or user namespaces \
         (sysctl kernel.unprivileged_userns_clone=1 and user.max_user_namespaces above 0; none can be made in a chroot)"
    )]
    Namespaces(#[source] io::Error),
    /// Mounts inside cannot be kept from being seen outside.
    #[error(
        "the root directory is no mount point, as in a plain chroot: run `mount --bind DIR DIR` on it, then enter it again"
    )]
    Root(#[source] io::Error),
    /// The TUN device is not there, or closed to this user.
    #[error("/dev/net/tun cannot be opened: load the module `tun`, or pass the device into this container")]
    Tun(#[source] io::Error),
    /// The user namespace was made, but a mount in it failed.
    #[error("cannot mount {target} in this user namespace")]
    UserMount {
        /// Where.
        target: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Checks that this process may make namespaces and TUN devices.
///
/// # Errors
/// [`LabError::NotPermitted`] with what is missing.
pub fn check() -> Result<(), LabError> {
    let tried = std::thread::spawn(|| unshare(UnshareFlags::NEWNET | UnshareFlags::NEWNS)).join();
    tried.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())).map_err(namespaces)?;
    tun()
}

/// Makes sure that this process may make a lab, by running it again inside a user namespace if it is not root.
///
/// Call it first thing in `main`: for a user without root it does not return on success, the program starts
/// over with the same arguments as the root of its own user namespace, where it returns at once.
///
/// # Errors
/// [`LabError::NotPermitted`] with what is missing.
pub fn enter() -> Result<(), LabError> {
    if std::env::var_os(INSIDE).is_some() {
        prepare_user_namespace()?;
        return check();
    }
    if rustix::process::geteuid().is_root() {
        return check();
    }
    tun()?;
    let probe = Command::new("unshare").args(UNSHARE).arg("true").output();
    match probe {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(namespaces(io::Error::new(io::ErrorKind::PermissionDenied, text)));
        }
        Err(source) => return Err(namespaces(source)),
    }
    let program = std::env::current_exe().map_err(LabError::io("find", "/proc/self/exe"))?;
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let source = Command::new("unshare").args(UNSHARE).arg(program).args(args).env(INSIDE, "1").exec();
    Err(namespaces(source))
}

/// The user outside, where this process is the root of a user namespace, or is no root at all. `None` for real root.
pub(crate) fn rootless_owner() -> Option<u32> {
    let euid = rustix::process::geteuid();
    if !euid.is_root() {
        return Some(euid.as_raw());
    }
    let map = fs::read_to_string("/proc/self/uid_map").ok()?;
    let mut fields = map.split_whitespace();
    let (inside, outside, count) = (fields.next()?, fields.next()?, fields.next()?);
    let whole = inside == "0" && outside == "0" && count == u32::MAX.to_string();
    if whole { None } else { outside.parse().ok() }
}

/// Leaves the namespaces that this thread shares with the process.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    #[expect(deprecated, reason = "deprecated because of UnshareFlags::FILES, which is never used here")]
    let result = rustix::thread::unshare(flags);
    Ok(result?)
}

/// In a user namespace `/run` belongs to somebody else: an empty one is put over it, seen by this lab only.
fn prepare_user_namespace() -> Result<(), LabError> {
    let failed = |target| {
        move |source: rustix::io::Errno| LabError::NotPermitted(Missing::UserMount { target, source: source.into() })
    };
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    rustix::mount::mount_change("/", private).map_err(failed("/"))?;
    let target = if Path::new(NETNS_DIR).is_dir() { NETNS_DIR } else { "/run" };
    rustix::mount::mount("tmpfs", target, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0755")
        .map_err(failed(target))
}

fn tun() -> Result<(), LabError> {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    opened.map(drop).map_err(|source| LabError::NotPermitted(Missing::Tun(source)))
}

fn namespaces(source: io::Error) -> LabError {
    LabError::NotPermitted(Missing::Namespaces(source))
}

/// Set in the environment of the program that runs inside the user namespace.
const INSIDE: &str = "FLATLAN_LAB_INSIDE";

/// The user namespace: this user is root in it, and it has its own network and mounts.
const UNSHARE: [&str; 4] = ["--user", "--map-root-user", "--mount", "--net"];
