//! Doing a thing inside another network namespace.
//!
//! A socket or TUN belongs to the namespace of the thread that made it, and stays there. So a namespace is
//! entered on a helper thread that ends with the closure, and the rest of the process never moves.
#![expect(unsafe_code, reason = "unshare(2): the thread must be fresh and own its namespace alone")]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    panic, thread,
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

use crate::{ExitClass, Why};

/// A network namespace, held open: it lives at least as long as this.
#[derive(Debug)]
pub struct NetNs(OwnedFd);

impl NetNs {
    /// The one of the calling thread.
    ///
    /// # Errors
    /// Where /proc is not mounted.
    pub fn current() -> Result<Self, NetnsError> {
        open("/proc/thread-self/ns/net").map(Self).map_err(|e| NetnsError::Current(e.into()))
    }

    /// The one that `ip netns add NAME` made, at /run/netns/NAME.
    ///
    /// # Errors
    /// Where there is none of this name, or it may not be opened.
    pub fn named(name: &str) -> Result<Self, NetnsError> {
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return Err(NetnsError::BadName { name: name.to_owned() });
        }
        match open(&format!("{DIRECTORY}/{name}")) {
            Ok(fd) => Ok(Self(fd)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(NetnsError::Missing { name: name.to_owned() }),
            Err(e) => Err(NetnsError::Open { name: name.to_owned(), why: e.into() }),
        }
    }

    /// A new, empty one that has no name; it ends with the last thing that holds it.
    ///
    /// # Errors
    /// Where the process may not make namespaces.
    pub fn fresh() -> Result<Self, NetnsError> {
        on_thread(|| {
            // SAFETY: NEWNET alone shares no descriptors and no memory differently, and this thread ends here.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(|e| NetnsError::Enter(e.into()))?;
            Self::current()
        })?
    }

    /// Runs `f` inside, on a thread of its own, and returns what it returns. Threads started in there
    /// (a tokio runtime's, too) are inside as well.
    ///
    /// # Errors
    /// Where the namespace may not be entered; `f` did not run then.
    ///
    /// # Panics
    /// If `f` does.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        on_thread(|| {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|e| NetnsError::Enter(e.into()))?;
            Ok(f())
        })?
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn open(path: &str) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

fn on_thread<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, f)
            .map_err(|e| NetnsError::Thread(e.into()))?;
        Ok(thread.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked)))
    })
}

/// Where named namespaces are.
const DIRECTORY: &str = "/run/netns";

/// Why a network namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The name is no file name.
    #[error("`{name}` is no name of a network namespace: it must be a plain file name, without `/`")]
    BadName {
        /// As given.
        name: String,
    },
    /// The calling thread's own is not readable.
    #[error("cannot open this thread's network namespace: {0}: is /proc mounted?")]
    Current(Why),
    /// setns or unshare failed.
    #[error("cannot enter a network namespace: {0}: this needs root, or the capability CAP_SYS_ADMIN")]
    Enter(Why),
    /// There is none of this name.
    #[error("network namespace {name} does not exist: make it with `ip netns add {name}`")]
    Missing {
        /// As given.
        name: String,
    },
    /// It exists and cannot be opened.
    #[error("cannot open network namespace {name}: {why}")]
    Open {
        /// As given.
        name: String,
        /// The kernel's reason.
        why: Why,
    },
    /// No thread.
    #[error("cannot start a thread: {0}")]
    Thread(Why),
}

impl NetnsError {
    /// Which exit code it asks for.
    pub fn exit_class(&self) -> ExitClass {
        match self {
            Self::BadName { .. } | Self::Missing { .. } => ExitClass::Wrong,
            Self::Current(why) | Self::Enter(why) | Self::Open { why, .. } | Self::Thread(why) => ExitClass::of(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};

    use super::*;

    #[test]
    fn a_socket_made_inside_stays_inside() {
        let ns = NetNs::fresh().unwrap();
        // Nothing is up in a fresh namespace, so that loopback has no route in there.
        let inside = ns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        let outside = UdpSocket::bind("127.0.0.1:0").unwrap();
        let target: SocketAddr = outside.local_addr().unwrap();
        assert!(inside.send_to(b"x", target).is_err());
        outside.send_to(b"x", target).unwrap();
    }

    #[test]
    fn a_missing_name_says_how_to_make_it() {
        let error = NetNs::named("os-none").unwrap_err();
        assert_eq!(error.to_string(), "network namespace os-none does not exist: make it with `ip netns add os-none`");
        assert_eq!(error.exit_class(), ExitClass::Wrong);
        assert_eq!(
            NetNs::named("../x").unwrap_err().to_string(),
            "`../x` is no name of a network namespace: it must be a plain file name, without `/`"
        );
    }

    #[test]
    fn a_panic_inside_reaches_the_caller() {
        let ns = NetNs::current().unwrap();
        let caught = panic::catch_unwind(|| ns.run(|| panic!("inside")));
        assert_eq!(*caught.unwrap_err().downcast_ref::<&str>().unwrap(), "inside");
    }
}
