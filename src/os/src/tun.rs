//! The overlay's network device.
//!
//! Two backends behind one interface. *Offload* (`tun-rs`) moves whole TCP and UDP super-packets, each
//! behind a virtio header that says how it is to be cut. *Plain* (`tun-tap`) moves single packets on any
//! kernel; it is given a zero header here, so that whoever reads and writes sees one format. Which one
//! runs is settled when the device is made.
//!
//! A device belongs to the namespace of the thread that makes it. Order: make, set up (MTU, addresses, up),
//! then read and write without ever waiting. Cutting, joining and checksums are not done here.
#![expect(unsafe_code, reason = "both backends give a raw descriptor only; polling wants a borrowed one")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use ipnetwork::IpNetwork;
use rustix::{
    fs::Access,
    io::Errno,
    thread::{CapabilitySet, capabilities},
};

use crate::{
    ExitClass, Offload, Why,
    route::{self, Netlink, RouteError},
};

/// One queue of a TUN device; the device ends with its last queue.
pub struct Tun {
    backend: Backend,
    name: String,
    offloads: Offloads,
}

/// What device to make.
#[derive(Debug, Clone)]
pub struct TunConfig {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// How to move packets.
    pub backend: TunBackend,
    /// Whether to move super-packets.
    pub offload: Offload,
    /// How many queues there may be.
    pub queues: Queues,
    /// Its own addresses; a shorter prefix than the full one makes a route as well.
    pub addresses: Vec<IpNetwork>,
}

/// How packets are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunBackend {
    /// With offloads where the kernel has them, else plain.
    Auto,
    /// With offloads, or not at all.
    Offload,
    /// One packet at a time.
    Plain,
}

/// How many queues a device may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queues {
    /// More by [`Tun::queue`]. Not with the plain backend.
    Many,
    /// One.
    One,
}

/// Which super-packets the device takes and gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// TCP segmentation (TSO), and checksums.
    pub tcp: bool,
    /// UDP segmentation (USO; Linux 6.2).
    pub udp: bool,
}

enum Backend {
    Offload(tun_rs::SyncDevice),
    /// The same device, without the header.
    Single(tun_rs::SyncDevice),
    Plain(tun_tap::Iface),
}

impl Tun {
    /// Whether this process may make a device at all, and the name could be one. So an operator is told at once,
    /// and not when the addresses are known.
    ///
    /// # Errors
    /// Where a permission or /dev/net/tun is missing, or the name is none.
    pub fn check(name: &str) -> Result<(), TunError> {
        Self::check_name(name)?;
        check_device_node()?;
        let may_open = rustix::fs::access(DEVICE, Access::READ_OK | Access::WRITE_OK);
        let may_set_up = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN));
        if may_open.is_err() || !may_set_up {
            return Err(TunError::NotPermitted { name: name.to_owned() });
        }
        Ok(())
    }

    /// Whether a device may have this name. Touches nothing.
    ///
    /// # Errors
    /// It may not.
    pub fn check_name(name: &str) -> Result<(), TunError> {
        let legal = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%');
        if name.is_empty() || name.len() > MOST_NAME || !name.chars().all(legal) || name.starts_with('.') {
            return Err(TunError::BadName { name: name.to_owned() });
        }
        Ok(())
    }

    /// Makes the device in the calling thread's network namespace and sets it up.
    ///
    /// # Errors
    /// Where a permission or /dev/net/tun is missing, or the name is taken.
    pub fn create(config: &TunConfig) -> Result<Self, TunError> {
        let name = &config.name;
        Self::check_name(name)?;
        let tun = match (config.backend, config.offload) {
            (TunBackend::Plain, Offload::On) => return Err(TunError::NoOffload { name: name.clone() }),
            (TunBackend::Plain, Offload::Auto | Offload::Off) => Self::open_plain(name, config.queues)?,
            (TunBackend::Offload, offload) | (TunBackend::Auto, offload @ Offload::On) => {
                Self::open_offload(name, config.queues, offload)?
            }
            (TunBackend::Auto, offload) => match Self::open_offload(name, config.queues, offload) {
                Err(TunError::Open { why, .. }) => {
                    tracing::warn!(reason = %why, "no offloads, using the plain TUN backend");
                    Self::open_plain(name, config.queues)?
                }
                done => done?,
            },
        };
        tun.set_up(config).map_err(|why| TunError::SetUp { name: tun.name.clone(), why })?;
        Ok(tun)
    }

    /// Another queue of the same device; the kernel spreads flows over them.
    ///
    /// # Errors
    /// Where the device was not made with [`Queues::Many`], or is plain.
    pub fn queue(&self) -> Result<Self, TunError> {
        let failed = |e| TunError::of(&self.name, e);
        let again = |device: &tun_rs::SyncDevice| {
            let device = device.try_clone().map_err(failed)?;
            device.set_nonblocking(true).map_err(failed).map(|()| device)
        };
        let backend = match &self.backend {
            Backend::Offload(device) => Backend::Offload(again(device)?),
            Backend::Single(device) => Backend::Single(again(device)?),
            Backend::Plain(_) => return Err(failed(Errno::OPNOTSUPP.into())),
        };
        Ok(Self { backend, name: self.name.clone(), offloads: self.offloads })
    }

    fn open_offload(name: &str, queues: Queues, offload: Offload) -> Result<Self, TunError> {
        check_device_node()?;
        let failed = |e| TunError::of(name, e);
        let device = tun_rs::DeviceBuilder::new()
            .name(name)
            .offload(offload != Offload::Off)
            .multi_queue(queues == Queues::Many)
            .inherit_enable_state()
            .build_sync()
            .map_err(failed)?;
        device.set_nonblocking(true).map_err(failed)?;
        let offloads = Offloads { tcp: device.tcp_gso(), udp: device.udp_gso() };
        let backend = if offload == Offload::Off { Backend::Single(device) } else { Backend::Offload(device) };
        Ok(Self { backend, name: name.to_owned(), offloads })
    }

    fn open_plain(name: &str, queues: Queues) -> Result<Self, TunError> {
        check_device_node()?;
        if queues == Queues::Many {
            return Err(TunError::OneQueue { name: name.to_owned() });
        }
        let failed = |e| TunError::of(name, e);
        let device = tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tun).map_err(failed)?;
        device.set_non_blocking().map_err(failed)?;
        let offloads = Offloads { tcp: false, udp: false };
        Ok(Self { backend: Backend::Plain(device), name: name.to_owned(), offloads })
    }

    fn set_up(&self, config: &TunConfig) -> Result<(), RouteError> {
        route::block_on(async {
            let netlink = Netlink::open()?;
            let link = netlink.link(&self.name).await?;
            netlink.quiet_ipv6(link).await?;
            netlink.set_mtu(link, config.mtu).await?;
            netlink.set_up(link).await?;
            netlink.set_addresses(link, &config.addresses).await.map(|_| ())
        })?
    }

    /// Reads one packet, or super-packet, behind a virtio header of [`VNET_LEN`] bytes; the length of both.
    /// `buffer` should hold [`RECV_LEN`] bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where nothing is there. [`is_gone`] tells a device that was deleted.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.backend {
            Backend::Offload(device) => device.recv(buffer),
            Backend::Single(device) => recv_bare(buffer, |packet| device.recv(packet)),
            Backend::Plain(device) => recv_bare(buffer, |packet| device.recv(packet)),
        }
    }

    /// Writes one packet, or super-packet, behind its virtio header.
    ///
    /// # Errors
    /// [`is_refused`] tells a super-packet that the kernel will not take: send its segments one by one.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        match &self.backend {
            Backend::Offload(device) => device.send(frame)?,
            Backend::Single(device) => device.send(bare(frame)?)?,
            Backend::Plain(device) => device.send(bare(frame)?)?,
        };
        Ok(())
    }

    /// Which super-packets it moves.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let raw: RawFd = match &self.backend {
            Backend::Offload(device) | Backend::Single(device) => device.as_raw_fd(),
            Backend::Plain(device) => device.as_raw_fd(),
        };
        // SAFETY: the backend owns this descriptor and closes it only when dropped; the borrow ends before.
        unsafe { BorrowedFd::borrow_raw(raw) }
    }
}

impl std::fmt::Debug for Tun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tun").field("name", &self.name).field("offloads", &self.offloads).finish_non_exhaustive()
    }
}

/// Reads from a device that gives no header: a zero one is put before the packet.
fn recv_bare(buffer: &mut [u8], recv: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
    let Some((header, packet)) = buffer.split_at_mut_checked(VNET_LEN) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let length = recv(packet)?;
    header.fill(0);
    Ok(VNET_LEN + length)
}

/// The packet, for a device that takes no header: it cannot cut, nor finish a checksum.
fn bare(frame: &[u8]) -> io::Result<&[u8]> {
    let Some((header, packet)) = frame.split_at_checked(VNET_LEN) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    if header.first().is_some_and(|flags| flags & NEEDS_CSUM != 0) || header.get(1) != Some(&0) {
        return Err(Errno::INVAL.into());
    }
    Ok(packet)
}

/// Whether a read or write failed because the device was deleted.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::BADFD | Errno::BADF | Errno::NODEV))
}

/// Whether a write failed because the kernel will not take this super-packet (some kernels refuse correct
/// ones). Its segments may still be written, each with a zero header.
pub fn is_refused(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::INVAL)
}

/// tun-rs would make the node itself where it is missing; a program should not change /dev.
fn check_device_node() -> Result<(), TunError> {
    match rustix::fs::stat(DEVICE) {
        Err(Errno::NOENT) => Err(TunError::NoDevice),
        _ => Ok(()),
    }
}

/// The length of the virtio header before each packet (`struct virtio_net_hdr`).
pub const VNET_LEN: usize = 10;
/// What a read buffer should hold: the header and the longest packet.
pub const RECV_LEN: usize = VNET_LEN + 65535;
/// The first byte of the header: the packet's checksum is to be finished.
const NEEDS_CSUM: u8 = 1;
const DEVICE: &str = "/dev/net/tun";
/// IFNAMSIZ without its zero.
const MOST_NAME: usize = 15;

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// Not a name for a network device.
    #[error(
        "cannot create TUN device `{name}`: a name has 1 to 15 characters, no blanks, `/`, `:` or `%`: choose another with --tun NAME"
    )]
    BadName {
        /// As given.
        name: String,
    },
    /// Somebody has it.
    #[error(
        "cannot create TUN device {name}: another process uses it: stop that process, or choose another name with --tun NAME"
    )]
    Busy {
        /// Its name.
        name: String,
    },
    /// /dev/net/tun does not exist.
    #[error(
        "cannot create a TUN device: /dev/net/tun does not exist: `modprobe tun`, or in a container pass --device /dev/net/tun"
    )]
    NoDevice,
    /// Offloads are to be on, and the device that is asked for has none.
    #[error(
        "cannot create TUN device {name}: tun_offload = on, but the plain backend moves single packets: set tun_backend = \"auto\" or tun_offload = \"auto\""
    )]
    NoOffload {
        /// Its name.
        name: String,
    },
    /// /dev/net/tun may not be opened, or TUNSETIFF is not allowed.
    #[error(
        "cannot create TUN device {name}: not permitted: this needs root, or the capability CAP_NET_ADMIN and access to /dev/net/tun"
    )]
    NotPermitted {
        /// Its name.
        name: String,
    },
    /// The plain backend has one queue, and several were wanted.
    #[error(
        "cannot create TUN device {name}: without offloads it has one queue, for one worker: set workers = 1, or another tun_backend"
    )]
    OneQueue {
        /// Its name.
        name: String,
    },
    /// Any other reason.
    #[error("cannot create TUN device {name}: {why}")]
    Open {
        /// Its name.
        name: String,
        /// The kernel's reason.
        why: Why,
    },
    /// It was made, and could not be given its addresses.
    #[error("cannot set up TUN device {name}: {why}")]
    SetUp {
        /// Its name.
        name: String,
        /// What netlink said.
        why: RouteError,
    },
    /// A device of another kind has this name.
    #[error(
        "cannot create TUN device {name}: the name belongs to a network device of another kind: choose another with --tun NAME"
    )]
    Taken {
        /// Its name.
        name: String,
    },
}

impl TunError {
    fn of(name: &str, error: io::Error) -> Self {
        let name = name.to_owned();
        match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => Self::Busy { name },
            Some(Errno::PERM | Errno::ACCESS) => Self::NotPermitted { name },
            Some(Errno::NODEV | Errno::NXIO) => Self::NoDevice,
            // TUNSETIFF on a name that exists and is no TUN device, or one with other flags.
            Some(Errno::INVAL) if device_exists(&name) => Self::Taken { name },
            _ => Self::Open { name, why: error.into() },
        }
    }

    /// Which exit code it asks for.
    pub fn exit_class(&self) -> ExitClass {
        match self {
            Self::BadName { .. } | Self::NoOffload { .. } | Self::OneQueue { .. } => ExitClass::Wrong,
            Self::Busy { .. } | Self::Taken { .. } => ExitClass::Failed,
            Self::NoDevice | Self::NotPermitted { .. } => ExitClass::NotPermitted,
            Self::Open { why, .. } => ExitClass::of(why),
            Self::SetUp { why, .. } => why.exit_class(),
        }
    }
}

fn device_exists(name: &str) -> bool {
    route::block_on(async { Netlink::open()?.link(name).await }).is_ok_and(|link| link.is_ok())
}

#[cfg(test)]
mod tests;
