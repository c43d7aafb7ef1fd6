//! How a node is run: typed once, from a file or from flags.

use std::{
    net::{AddrParseError, IpAddr},
    path::PathBuf,
};

use flatlan_os::{Offload, WorkersChoice, stream::Proxy, tun::TunBackend};
use flatlan_path::Spread;
use flatlan_types::Workers;
use serde::{Deserialize, Serialize};

/// What a node needs to know that its state directory does not hold.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The state directory that `join` made.
    pub state: PathBuf,
    /// Name of the TUN device, at most 15 bytes.
    pub tun: String,
    /// UDP port for direct paths and for binding at hubs; 0: any.
    pub port: u16,
    /// How packets get to the kernel.
    pub tun_backend: TunBackend,
    /// Whether super-packets are exchanged with the TUN.
    pub tun_offload: Offload,
    /// Whether runs of datagrams are exchanged with the kernel as one.
    pub udp_gso: Offload,
    /// Whether the underlay sees the packets' DSCP.
    pub dscp: Dscp,
    /// Whether the flows of a pair of nodes are shared out over several hubs.
    pub spread: SpreadChoice,
    /// Which underlay may be used.
    pub transport: TransportChoice,
    /// The HTTP proxy by which hubs are dialled.
    pub proxy: Option<Proxy>,
    /// How many packet threads there are.
    pub workers: Workers,
    /// The device of the site's LAN, where it is not plain which one that is.
    pub lan: Option<String>,
    /// Without answers of this machine, the site's LAN counts as lost.
    pub lan_probe: Option<IpAddr>,
}

/// Which underlay may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportChoice {
    /// UDP where it passes, TLS over TCP where it does not.
    #[default]
    Auto,
    /// TLS over TCP only: nothing leaves by UDP.
    Tcp,
    /// UDP only for data; the control streams are TLS over TCP all the same.
    Udp,
}

impl From<TransportChoice> for flatlan_node::Transport {
    fn from(choice: TransportChoice) -> Self {
        match choice {
            TransportChoice::Auto => Self::Auto,
            TransportChoice::Tcp => Self::Tcp,
            TransportChoice::Udp => Self::Udp,
        }
    }
}

/// The file of `flatlan up --config`. Flags override it.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct NodeFile {
    /// The state directory that `join` made.
    pub state: PathBuf,
    /// Name of the TUN device, at most 15 bytes.
    pub tun: String,
    /// UDP port for direct paths; 0: any.
    pub port: u16,
    /// `auto`, `udp` or `tcp`.
    pub transport: TransportChoice,
    /// `auto`, `offload` or `plain`.
    pub tun_backend: TunBackendChoice,
    /// `auto`, `on` or `off`: super-packets between the kernel's TCP and UDP and the node.
    pub tun_offload: Offload,
    /// `auto`, `on` or `off`: segmentation of UDP by the kernel.
    pub udp_gso: Offload,
    /// `copy` or `zero`: the DSCP of the datagrams.
    pub dscp: Dscp,
    /// `off` or `on`: the flows to one peer by several hubs at once.
    pub spread: SpreadChoice,
    /// `http://[user@]HOST:PORT` of a proxy that allows CONNECT; empty: none.
    pub proxy: String,
    /// File with the proxy's password; empty: none.
    pub proxy_password_file: PathBuf,
    /// Packet threads: 1, 2, 4, 8 or 16. All that goes to or comes from one peer stays in one thread.
    pub workers: WorkersChoice,
    /// Device of the site's LAN, for addresses that moved here; empty: where this member's own routes are.
    pub lan: String,
    /// Address of a machine of the site's LAN that answers ICMP echo requests; empty: the device alone tells whether the
    /// LAN is reached.
    pub lan_probe: String,
}

impl NodeFile {
    /// The machine that tells whether the LAN is reached, where one is named.
    ///
    /// # Errors
    /// It is no IP address.
    pub fn lan_probe(&self) -> Result<Option<IpAddr>, AddrParseError> {
        if self.lan_probe.is_empty() { Ok(None) } else { self.lan_probe.parse().map(Some) }
    }
}

impl Default for NodeFile {
    fn default() -> Self {
        Self {
            state: PathBuf::from(DEFAULT_STATE),
            tun: DEFAULT_TUN.to_owned(),
            port: DEFAULT_PORT,
            transport: TransportChoice::default(),
            tun_backend: TunBackendChoice::default(),
            tun_offload: Offload::default(),
            udp_gso: Offload::default(),
            dscp: Dscp::default(),
            spread: SpreadChoice::default(),
            proxy: String::new(),
            proxy_password_file: PathBuf::new(),
            workers: WorkersChoice::default(),
            lan: String::new(),
            lan_probe: String::new(),
        }
    }
}

/// How packets get to the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunBackendChoice {
    /// With offloads where the kernel has them, else plain.
    #[default]
    Auto,
    /// With offloads, or not at all.
    Offload,
    /// One packet at a time.
    Plain,
}

impl From<TunBackendChoice> for TunBackend {
    fn from(choice: TunBackendChoice) -> Self {
        match choice {
            TunBackendChoice::Auto => Self::Auto,
            TunBackendChoice::Offload => Self::Offload,
            TunBackendChoice::Plain => Self::Plain,
        }
    }
}

/// Whether the underlay sees the DSCP of the packets inside (RFC 2983). Theirs stays as its sender wrote it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dscp {
    /// Each datagram has the one of its packet.
    #[default]
    Copy,
    /// Every datagram has zero.
    Zero,
}

/// Whether the flows to one peer go by several hubs at once. It is said by each node for what it sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpreadChoice {
    /// By one; another one stands by.
    #[default]
    Off,
    /// Each flow by one of up to three.
    On,
}

impl From<SpreadChoice> for Spread {
    fn from(choice: SpreadChoice) -> Self {
        match choice {
            SpreadChoice::Off => Self::Off,
            SpreadChoice::On => Self::On,
        }
    }
}

/// Where a node's state is unless told otherwise.
pub const DEFAULT_STATE: &str = "/var/lib/flatlan";
/// The TUN device's name unless told otherwise.
pub const DEFAULT_TUN: &str = "flatlan";
/// The UDP port unless told otherwise.
pub const DEFAULT_PORT: u16 = 51820;
