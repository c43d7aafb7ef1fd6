//! The hub's flags and config file, typed once for both binaries.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use flatlan_hub::{Limits, PeerHub, Quota};
use flatlan_os::{Offload, Why, WorkersChoice, located};
use flatlan_types::{HostPort, NetworkId, Workers};
use serde::{Deserialize, Serialize};

use crate::HubError;

/// `flatlan hub init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The hub's state directory
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
    pub state: PathBuf,
}

/// `flatlan hub run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The hub's state directory [default: /var/lib/flatlan-hub]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Where to take streams (TLS over TCP); default: port 443 of every address
    #[arg(long, value_name = "ADDR:PORT")]
    pub tls: Option<SocketAddr>,
    /// Where to take UDP [default: port 51820 of the same address]
    #[arg(long, value_name = "ADDR:PORT")]
    pub udp: Option<SocketAddr>,
    /// Packet threads: 1, 2, 4, 8 or 16 [default: 1]
    #[arg(long, value_name = "N")]
    pub workers: Option<u8>,
    /// A network to serve
    #[arg(long, value_name = "NETWORK_ID", num_args = 1.., conflicts_with = "allow_any")]
    pub allow: Vec<NetworkId>,
    /// Serve whatever network is published here
    #[arg(long)]
    pub allow_any: bool,
    /// A hub to dial, beside those of the networks served: KEY@HOST:PORT
    #[arg(long = "peer", value_name = "KEY@HOST:PORT")]
    pub peers: Vec<String>,
    /// A config file; flags override it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to serve /metrics, /healthz and the web page, such as 127.0.0.1:9105
    #[arg(long, value_name = "ADDR:PORT")]
    pub admin: Option<SocketAddr>,
    /// What to log: a level, or directives
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// How log lines look
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The file of `flatlan hub run --config`. Flags override it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HubFile {
    /// The state directory that `hub init` made.
    pub state: PathBuf,
    /// Where to take streams.
    pub tls: SocketAddr,
    /// Where to take UDP; absent: port 51820 of the same address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<SocketAddr>,
    /// `auto`, `on` or `off`: segmentation of UDP by the kernel.
    pub udp_gso: Offload,
    /// Packet threads: 1, 2, 4, 8 or 16.
    pub workers: WorkersChoice,
    /// Networks to serve.
    pub allow: Vec<NetworkId>,
    /// Serve whatever network is published here.
    pub allow_any: bool,
    /// Hubs to dial: KEY@HOST:PORT.
    pub peers: Vec<String>,
    /// Where to serve /metrics, /healthz and the web page; absent: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<SocketAddr>,
    /// What one node may send through this hub, packets a second; 0: no limit.
    pub node_packets: u64,
    /// The same in bytes a second.
    pub node_bytes: u64,
    /// What all nodes of one network may send together, packets a second; 0: no limit.
    pub network_packets: u64,
    /// The same in bytes a second.
    pub network_bytes: u64,
    /// Networks served that `allow` does not name: with `allow_any`.
    pub max_networks: usize,
    /// Bytes of their rosters, in memory and on disk.
    pub max_roster_bytes: usize,
    /// Certificate chain (PEM); empty: a self-signed one, made at each start. Nodes trust the hub's key, not this.
    pub certificate: PathBuf,
    /// Its private key (PEM).
    pub certificate_key: PathBuf,
}

impl Default for HubFile {
    fn default() -> Self {
        Self {
            state: PathBuf::from(DEFAULT_STATE),
            tls: SocketAddr::new(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), 443),
            udp: None,
            udp_gso: Offload::default(),
            workers: WorkersChoice::default(),
            allow: Vec::new(),
            allow_any: false,
            peers: Vec::new(),
            admin: None,
            node_packets: 0,
            node_bytes: 0,
            network_packets: 0,
            network_bytes: 0,
            max_networks: Limits::default().networks,
            max_roster_bytes: Limits::default().rosters,
            certificate: PathBuf::new(),
            certificate_key: PathBuf::new(),
        }
    }
}

/// What a hub runs with: file and flags put together and checked.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) state: PathBuf,
    pub(crate) tls: SocketAddr,
    pub(crate) udp: SocketAddr,
    pub(crate) udp_gso: Offload,
    pub(crate) workers: Workers,
    pub(crate) allow: flatlan_hub::Allow,
    pub(crate) peers: Vec<PeerHub>,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) limits: Limits,
    pub(crate) network_quota: Quota,
    pub(crate) certificate: Option<(PathBuf, PathBuf)>,
}

impl HubFile {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or says something that is not known.
    pub fn read(path: &Path) -> Result<Self, HubError> {
        let wrong = |why: String| HubError::Config { path: path.display().to_string(), why };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(Why(error).to_string()))?;
        toml::from_str(&text).map_err(|error| wrong(located(&text, error.span(), error.message())))
    }

    /// The hubs to dial.
    ///
    /// # Errors
    /// One is not written `KEY@HOST:PORT`.
    pub fn dialled(&self) -> Result<Vec<PeerHub>, HubError> {
        self.peers.iter().map(|text| parse_peer(text)).collect()
    }
}

impl RunArgs {
    /// File and flags put together.
    pub(crate) fn resolve(self) -> Result<Config, HubError> {
        let mut file = match &self.config {
            Some(path) => HubFile::read(path)?,
            None => HubFile::default(),
        };
        if let Some(state) = self.state {
            file.state = state;
        }
        if let Some(workers) = self.workers {
            file.workers = usize::from(workers).try_into().map_err(HubError::Workers)?;
        }
        if let Some(tls) = self.tls {
            file.tls = tls;
        }
        if file.allow_any && !file.allow.is_empty() {
            return Err(HubError::AllowTwice);
        }
        // each of the two takes the place of whichever the file has
        if !self.allow.is_empty() {
            (file.allow, file.allow_any) = (self.allow, false);
        } else if self.allow_any {
            (file.allow, file.allow_any) = (Vec::new(), true);
        }
        file.peers.extend(self.peers);
        let peers = file.dialled()?;
        let allow = if file.allow_any {
            flatlan_hub::Allow::Any
        } else if file.allow.is_empty() {
            return Err(HubError::NothingAllowed);
        } else {
            flatlan_hub::Allow::Networks(BTreeSet::from_iter(file.allow))
        };
        let certificate = match (file.certificate.as_os_str().is_empty(), file.certificate_key.as_os_str().is_empty()) {
            (true, true) => None,
            (false, false) => Some((file.certificate, file.certificate_key)),
            (true, false) | (false, true) => return Err(HubError::HalfCertificate),
        };
        Ok(Config {
            state: file.state,
            tls: file.tls,
            udp: self.udp.or(file.udp).unwrap_or_else(|| SocketAddr::new(file.tls.ip(), DEFAULT_UDP)),
            udp_gso: file.udp_gso,
            workers: file.workers.0,
            allow,
            peers,
            admin: self.admin.or(file.admin),
            limits: Limits {
                node: Quota { packets: file.node_packets, bytes: file.node_bytes },
                networks: file.max_networks,
                rosters: file.max_roster_bytes,
                ..Limits::default()
            },
            network_quota: Quota { packets: file.network_packets, bytes: file.network_bytes },
            certificate,
        })
    }
}

fn parse_peer(text: &str) -> Result<PeerHub, HubError> {
    let wrong = || HubError::Peer { text: text.to_owned() };
    let (key, at) = text.split_once('@').ok_or_else(wrong)?;
    let at: HostPort = at.parse().map_err(|_| wrong())?;
    Ok(PeerHub { key: key.parse().map_err(|_| wrong())?, at })
}

/// Where a hub's state is unless told otherwise.
pub(crate) const DEFAULT_STATE: &str = "/var/lib/flatlan-hub";
/// The UDP port unless told otherwise.
const DEFAULT_UDP: u16 = 51820;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunArgs,
    }

    fn args(file: &str, flags: &[&str]) -> (tempfile::TempDir, RunArgs) {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("hub.toml");
        std::fs::write(&path, file).unwrap();
        let path = path.display().to_string();
        let words = ["hub", "--config", &path].into_iter().chain(flags.iter().copied());
        (temp, Cli::try_parse_from(words).unwrap().run)
    }

    fn resolve(file: &str, flags: &[&str]) -> Result<Config, HubError> {
        let (_temp, args) = args(file, flags);
        args.resolve()
    }

    #[test]
    fn the_networks_of_a_flag_take_the_place_of_any_network_in_the_file_and_the_reverse() {
        let id = NetworkId::from_bytes([1; 32]);
        let config = resolve("allow_any = true", &["--allow", &id.full()]).unwrap();
        assert_eq!(config.allow, flatlan_hub::Allow::Networks([id].into()));
        let config = resolve(&format!("allow = [\"{}\"]", id.full()), &["--allow-any"]).unwrap();
        assert_eq!(config.allow, flatlan_hub::Allow::Any);
        let both = resolve(&format!("allow_any = true\nallow = [\"{}\"]", id.full()), &[]);
        assert!(matches!(both, Err(HubError::AllowTwice)));
    }

    #[test]
    fn rates_of_the_file_become_quotas_and_without_them_there_are_none() {
        let config = resolve("allow_any = true\nnode_packets = 5\nnetwork_bytes = 7\nmax_networks = 3", &[]).unwrap();
        assert_eq!(config.limits.node, Quota { packets: 5, bytes: 0 });
        assert_eq!(config.network_quota, Quota { packets: 0, bytes: 7 });
        assert_eq!(config.limits.networks, 3);
        let config = resolve("allow_any = true", &[]).unwrap();
        assert_eq!((config.limits, config.network_quota), (Limits::default(), Quota::default()));
    }
}
