//! Where streams come in: a listening TCP socket that survives a shortage of descriptors.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use flatlan_types::Endpoint;
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    time,
};

use crate::{ExitClass, Why};

/// A listening socket.
#[derive(Debug)]
pub struct Listener(TcpListener);

impl Listener {
    /// Listens at `address`. The unspecified IPv6 address means both families, and IPv4 alone where the
    /// machine has no IPv6. Needs a tokio runtime.
    ///
    /// # Errors
    /// Where the port is taken or not allowed, or the address is not this machine's.
    pub fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        match Self::try_bind(address) {
            Err(e) if address.ip() == Ipv6Addr::UNSPECIFIED && Errno::from_io_error(&e) == Some(Errno::AFNOSUPPORT) => {
                let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
                Self::try_bind(v4).map_err(|e| ListenError::of(v4, e))
            }
            bound => bound.map_err(|e| ListenError::of(address, e)),
        }
    }

    fn try_bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        // So that a restart need not wait for old connections to be forgotten.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(Self(TcpListener::from_std(socket.into())?))
    }

    /// The next connection, and whence. Errors of a single connection are passed over; where the process has
    /// no descriptor left, waits for one. Safe to cancel.
    pub async fn accept(&self) -> (TcpStream, Endpoint) {
        loop {
            match self.0.accept().await {
                Ok((tcp, from)) => return (tcp, Endpoint::new(from)),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(reason = %Why(error), "cannot accept a connection, trying again");
                    time::sleep(SHORTAGE).await;
                }
            }
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

const BACKLOG: i32 = 1024;
const SHORTAGE: Duration = Duration::from_millis(100);

/// Why nothing can listen there.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Any other reason.
    #[error("cannot listen on TCP {address}: {why}")]
    Failed {
        /// Where.
        address: SocketAddr,
        /// The kernel's reason.
        why: Why,
    },
    /// The address is of another machine.
    #[error("cannot listen on TCP {address}: this machine has no address {}: use 0.0.0.0 or [::] for all", address.ip())]
    NotLocal {
        /// Where.
        address: SocketAddr,
    },
    /// A port below 1024.
    #[error(
        "cannot listen on TCP {address}: not permitted: ports below 1024 need root or the capability CAP_NET_BIND_SERVICE"
    )]
    NotPermitted {
        /// Where.
        address: SocketAddr,
    },
    /// Somebody has it.
    #[error("cannot listen on TCP {address}: the port is in use: stop what uses it (`ss -tlpn sport = {}` shows it), or choose another port", address.port())]
    Taken {
        /// Where.
        address: SocketAddr,
    },
}

impl ListenError {
    fn of(address: SocketAddr, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::Taken { address },
            io::ErrorKind::AddrNotAvailable => Self::NotLocal { address },
            io::ErrorKind::PermissionDenied => Self::NotPermitted { address },
            _ => Self::Failed { address, why: error.into() },
        }
    }

    /// Which exit code it asks for.
    pub fn exit_class(&self) -> ExitClass {
        match self {
            Self::Failed { why, .. } => ExitClass::of(why),
            Self::NotLocal { .. } => ExitClass::Wrong,
            Self::NotPermitted { .. } => ExitClass::NotPermitted,
            Self::Taken { .. } => ExitClass::Failed,
        }
    }
}
