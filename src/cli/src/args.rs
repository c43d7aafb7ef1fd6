//! The command line, typed once.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use flatlan::TransportChoice;
use flatlan_os::stream::Proxy;
use flatlan_types::{HostPort, HubKey, Name, NetworkId, Prefix};

use crate::log::LogFormat;

/// One flat, encrypted virtual LAN over every site: no NAT, any number of hubs, all active at once.
#[derive(Debug, Parser)]
#[command(name = "flatlan", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create and publish networks (no root; works in a directory with network.toml)
    #[command(subcommand, after_help = "Example:\n  flatlan network create prod --range 10.77.0.0/16")]
    Network(NetworkCommand),
    /// Make a token by which one machine joins
    #[command(after_help = "Example:\n  flatlan invite site-a --route 192.168.10.0/24 --expires 2h")]
    Invite(InviteArgs),
    /// Add a member by its key
    #[command(subcommand, after_help = "Example:\n  flatlan member add site-a --key flnode1...")]
    Member(MemberCommand),
    /// Remove a member and publish
    #[command(after_help = "Example:\n  flatlan revoke site-a")]
    Revoke(RevokeArgs),
    /// Run a hub
    #[command(
        subcommand,
        after_help = "Example:\n  flatlan hub run --state /var/lib/flatlan-hub --tls 0.0.0.0:443 --allow-any"
    )]
    Hub(HubCommand),
    /// Join a network: redeem a token, or print this machine's key
    #[command(
        after_help = "Examples:\n  flatlan join - < token.txt\n  flatlan join --request\n  flatlan join --network flnet1... --hub hub-a.example:443"
    )]
    Join(JoinArgs),
    /// Bring this node up (in the foreground)
    #[command(after_help = "Example:\n  flatlan up --state /var/lib/flatlan")]
    Up(UpArgs),
    /// Show a running node's network, hubs, peers and paths
    #[command(after_help = "Example:\n  flatlan status --json | jq '.peers[].path'")]
    Status(StatusArgs),
    /// Stop a running node
    #[command(after_help = "Example:\n  flatlan down")]
    Down(StateArgs),
    /// Forget the network that this node has joined
    #[command(after_help = "Example:\n  flatlan leave --state /var/lib/flatlan")]
    Leave(StateArgs),
    /// Ping a member in the overlay and say which path each reply took
    #[command(after_help = "Example:\n  flatlan ping site-b -c 3")]
    Ping(PingArgs),
    /// Connect stdin and stdout to a TCP port in the overlay
    #[command(after_help = "Example:\n  ssh -o ProxyCommand='flatlan nc %h %p' root@site-b")]
    Nc(NcArgs),
    /// Say what this machine's network and settings allow: hubs, NAT, path MTU, traps of a gateway
    #[command(after_help = "Example:\n  flatlan netcheck --json | jq -r '.traps[].remedy'")]
    Netcheck(NetcheckArgs),
    /// Say which member, route and path a packet would meet, and what would drop it
    #[command(
        override_usage = "flatlan explain SRC DST PROTO [PORT]\n       flatlan explain DST   (from this node itself)",
        after_help = "Examples:\n  flatlan explain 10.77.0.1 10.77.0.2 tcp 22\n  flatlan explain 192.168.2.11"
    )]
    Explain(ExplainArgs),
    /// Check a config file or network.toml without touching the machine
    #[command(after_help = "Example:\n  flatlan check network.toml")]
    Check(CheckArgs),
    /// A whole internet in network namespaces on this machine
    #[command(after_help = "Examples:\n  flatlan lab demo\n  flatlan lab up && flatlan lab show")]
    Lab(LabArgs),
}

#[derive(Debug, Args)]
pub(crate) struct AdminDir {
    /// The network's directory; default: this one if it holds network.toml, else the only *.flatlan in it
    #[arg(long = "state", value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Make a network: its keys and its network.toml; prints the network id
    #[command(after_help = "Example:\n  flatlan network create prod --range 10.77.0.0/16")]
    Create {
        /// Its name
        name: Name,
        /// IPv4 range of its virtual IPs
        #[arg(long, default_value = "10.77.0.0/16")]
        range: Prefix,
        /// The directory to make; default: ./NAME.flatlan
        #[arg(long, value_name = "DIR")]
        state: Option<PathBuf>,
    },
    /// Add or remove a hub
    #[command(subcommand, after_help = "Example:\n  flatlan network hub add a --key flhub1... --tls hub-a.example:443")]
    Hub(NetworkHubCommand),
    /// Show what publishing would change
    #[command(after_help = "Example:\n  flatlan network plan")]
    Plan {
        #[command(flatten)]
        dir: AdminDir,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Sign network.toml and upload it to the hubs
    #[command(
        after_help = "Examples:\n  flatlan network publish\n  flatlan network publish --out roster.bin   (no network needed)"
    )]
    Publish {
        #[command(flatten)]
        dir: AdminDir,
        /// Only sign, into this file; `upload` takes it to the hubs
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Upload a signed roster (no key needed)
    #[command(after_help = "Example:\n  flatlan network upload roster.bin")]
    Upload {
        /// What `publish --out` wrote
        file: PathBuf,
        #[command(flatten)]
        dir: AdminDir,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Fold redeemed invites into network.toml
    #[command(after_help = "Example:\n  flatlan network pull")]
    Pull {
        #[command(flatten)]
        dir: AdminDir,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Replace a stolen or lost admin key
    #[command(after_help = "Example:\n  flatlan network recover --recovery-key /media/usb/recovery.key")]
    Recover {
        /// The recovery key that `create` made
        #[arg(long, value_name = "FILE")]
        recovery_key: PathBuf,
        #[command(flatten)]
        dir: AdminDir,
    },
    /// Give a route, a part of one, or one address to another member, and publish
    #[command(
        after_help = "Examples:\n  flatlan network move 192.168.10.5/32 --to site-b --dry-run\n  flatlan network move 192.168.10.5/32 --to site-b\n  flatlan network move --undo"
    )]
    Move {
        /// What moves: a member's route, or any part of it
        #[arg(required_unless_present = "undo", conflicts_with = "undo", requires = "to")]
        prefix: Option<Prefix>,
        /// Who carries it from here on
        #[arg(long, value_name = "MEMBER", requires = "prefix")]
        to: Option<Name>,
        /// Take the last move back
        #[arg(long)]
        undo: bool,
        /// Only show what would change
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        dir: AdminDir,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// The same members in another network
    #[command(hide = true)]
    Clone {
        /// Words of the contract
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkHubCommand {
    /// Add a hub
    #[command(
        after_help = "Example:\n  flatlan network hub add a --key flhub1... --tls hub-a.example:443 --udp hub-a.example:51820"
    )]
    Add {
        /// Its name
        name: Name,
        /// Its key, as `flatlan hub init` printed it
        #[arg(long)]
        key: HubKey,
        /// Where it takes streams
        #[arg(long, value_name = "HOST:PORT")]
        tls: HostPort,
        /// Where it takes UDP
        #[arg(long, value_name = "HOST:PORT")]
        udp: Option<HostPort>,
        /// Its region
        #[arg(long)]
        region: Option<Name>,
        /// Its weight among hubs that are equally near
        #[arg(long)]
        weight: Option<u16>,
        #[command(flatten)]
        dir: AdminDir,
    },
    /// Remove a hub
    #[command(after_help = "Example:\n  flatlan network hub remove a")]
    Remove {
        /// Its name
        name: Name,
        #[command(flatten)]
        dir: AdminDir,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InviteArgs {
    /// Name of the member that the token makes
    #[arg(required_unless_present_any = ["list", "cancel"])]
    pub(crate) name: Option<Name>,
    /// Its virtual IPs; default: the next free one
    #[arg(long = "ip", value_name = "IP")]
    pub(crate) ips: Vec<IpAddr>,
    /// A prefix of the LAN behind it
    #[arg(long = "route", value_name = "PREFIX")]
    pub(crate) routes: Vec<Prefix>,
    /// Members of one HA group may carry the same prefixes, and share their flows
    #[arg(long, value_name = "GROUP")]
    pub(crate) ha: Option<Name>,
    /// Of one HA group, those with the greatest have all flows while they answer; default: 0
    #[arg(long, value_name = "N", requires = "ha")]
    pub(crate) priority: Option<u16>,
    /// A group that it is of
    #[arg(long = "group", value_name = "G")]
    pub(crate) groups: Vec<Name>,
    /// Until when the token may be redeemed: 30m, 24h, 7d
    #[arg(long, default_value = "24h")]
    pub(crate) expires: flatlan_roster::Span,
    /// The hub that redeems it; default: of those that answer, the one of greatest weight
    #[arg(long)]
    pub(crate) hub: Option<Name>,
    /// A new key for an existing member; the old key is revoked when the token is redeemed
    #[arg(long)]
    pub(crate) replace: bool,
    /// Change network.toml only
    #[arg(long)]
    pub(crate) no_publish: bool,
    /// List open invites
    #[arg(long, conflicts_with_all = ["name", "cancel"])]
    pub(crate) list: bool,
    /// Take an invite back
    #[arg(long, value_name = "NAME")]
    pub(crate) cancel: Option<Name>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) dir: AdminDir,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// Add a member by its key: no token, no hub needed
    #[command(
        after_help = "Examples:\n  flatlan member add site-a --key flnode1...\n  flatlan member add phone --stock --key WIREGUARD_PUBLIC_KEY --via site-a"
    )]
    Add(MemberAddArgs),
}

#[derive(Debug, Args)]
pub(crate) struct MemberAddArgs {
    /// Its name
    pub(crate) name: Name,
    /// Its key: what `flatlan join --request` printed, or with --stock a WireGuard public key
    #[arg(long)]
    pub(crate) key: String,
    /// Its virtual IPs; default: the next free one
    #[arg(long = "ip", value_name = "IP")]
    pub(crate) ips: Vec<IpAddr>,
    /// A prefix of the LAN behind it
    #[arg(long = "route", value_name = "PREFIX")]
    pub(crate) routes: Vec<Prefix>,
    /// Members of one HA group may carry the same prefixes, and share their flows
    #[arg(long, value_name = "GROUP", conflicts_with = "stock")]
    pub(crate) ha: Option<Name>,
    /// Of one HA group, those with the greatest have all flows while they answer; default: 0
    #[arg(long, value_name = "N", requires = "ha")]
    pub(crate) priority: Option<u16>,
    /// A group that it is of
    #[arg(long = "group", value_name = "G")]
    pub(crate) groups: Vec<Name>,
    /// Where it is always reachable by UDP
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) endpoint: Option<HostPort>,
    /// A plain WireGuard peer
    #[arg(long, requires = "via")]
    pub(crate) stock: bool,
    /// The member that terminates a plain WireGuard peer
    #[arg(long, requires = "stock")]
    pub(crate) via: Option<Name>,
    #[command(flatten)]
    pub(crate) dir: AdminDir,
}

#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    /// The member
    pub(crate) name: Name,
    /// Change network.toml only
    #[arg(long)]
    pub(crate) no_publish: bool,
    #[command(flatten)]
    pub(crate) dir: AdminDir,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// A config of `up` or `hub run`, or network.toml
    pub(crate) file: PathBuf,
    /// Where FILE is, if it is not named from the current directory
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HubCommand {
    /// Make a hub's key; prints it
    #[command(after_help = "Example:\n  flatlan hub init --state /var/lib/flatlan-hub")]
    Init(flatlan_hubd::InitArgs),
    /// Run a hub (in the foreground)
    #[command(
        after_help = "Example:\n  flatlan hub run --state /var/lib/flatlan-hub --tls 0.0.0.0:443 --allow flnet1..."
    )]
    Run(flatlan_hubd::RunArgs),
}

#[derive(Debug, Args)]
pub(crate) struct StateArgs {
    /// The node's state directory
    #[arg(long, value_name = "DIR", default_value = flatlan::config::DEFAULT_STATE)]
    pub(crate) state: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ProxyArgs {
    /// HTTP proxy by which hubs are dialled: http://[user@]HOST:PORT
    #[arg(long, value_name = "URL")]
    pub(crate) proxy: Option<Proxy>,
    /// File with the proxy's password
    #[arg(long, value_name = "FILE", requires = "proxy")]
    pub(crate) proxy_password_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// The token; `-` reads it from stdin (a token in argv can be seen by others on this machine)
    #[arg(required_unless_present_any = ["token_file", "request", "network"])]
    pub(crate) token: Option<String>,
    /// File with the token
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    pub(crate) token_file: Option<PathBuf>,
    /// Make this node's key and print it, for `flatlan member add --key`
    #[arg(long, conflicts_with_all = ["token", "token_file", "network"])]
    pub(crate) request: bool,
    /// Join a network whose admin has added this node by its key
    #[arg(long, value_name = "NETWORK_ID", requires = "hubs", conflicts_with_all = ["token", "token_file"])]
    pub(crate) network: Option<NetworkId>,
    /// With --network: where a hub takes streams
    #[arg(long = "hub", value_name = "HOST:PORT")]
    pub(crate) hubs: Vec<HostPort>,
    #[command(flatten)]
    pub(crate) proxy: ProxyArgs,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// The node's state directory [default: /var/lib/flatlan]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Name of the TUN device [default: flatlan]
    #[arg(long, value_name = "NAME")]
    pub(crate) tun: Option<String>,
    /// UDP port; 0: any [default: 51820]
    #[arg(long, value_name = "UDP")]
    pub(crate) port: Option<u16>,
    /// A config file; flags override it
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) proxy: ProxyArgs,
    /// Which underlay may be used [default: auto]
    #[arg(long, value_enum)]
    pub(crate) transport: Option<Transport>,
    /// How packets get to the kernel [default: auto]
    #[arg(long, value_enum)]
    pub(crate) tun_backend: Option<Backend>,
    /// Packet threads: 1, 2, 4, 8 or 16 [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// No TUN: a TCP/IP stack of our own
    #[arg(long, hide = true)]
    pub(crate) userspace: bool,
    /// Put the TUN into this network namespace
    #[arg(long, value_name = "NAME", hide = true)]
    pub(crate) netns: Option<String>,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// UDP where it passes, TLS over TCP where it does not
    Auto,
    /// UDP only, for data
    Udp,
    /// TLS over TCP only
    Tcp,
}

impl From<Transport> for TransportChoice {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Auto => Self::Auto,
            Transport::Udp => Self::Udp,
            Transport::Tcp => Self::Tcp,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// With offloads where the kernel has them
    Auto,
    /// With offloads, or not at all
    Offload,
    /// One packet at a time
    Plain,
}

impl From<Backend> for flatlan::config::TunBackendChoice {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Auto => Self::Auto,
            Backend::Offload => Self::Offload,
            Backend::Plain => Self::Plain,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// What to log: a level, or directives such as info,flatlan_node=debug
    #[arg(long, value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// How log lines look
    #[arg(long, value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PingArgs {
    /// A member's name or virtual IP
    pub(crate) target: String,
    /// How many; default: until Ctrl-C
    #[arg(short, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: Option<u32>,
    /// Seconds between two
    #[arg(short, default_value = "1", value_parser = seconds)]
    pub(crate) interval: Duration,
    /// Print JSON: one object for each ping
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

fn seconds(text: &str) -> Result<Duration, &'static str> {
    let why = "not a number of seconds from 0.01 to 3600";
    let seconds: f64 = text.parse().map_err(|_| why)?;
    if (0.01..=3600.0).contains(&seconds) { Ok(Duration::from_secs_f64(seconds)) } else { Err(why) }
}

#[derive(Debug, Args)]
pub(crate) struct NcArgs {
    /// A member's name or an address in the overlay
    pub(crate) host: String,
    /// TCP port
    pub(crate) port: u16,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct NetcheckArgs {
    /// HTTP proxy by which hubs are dialled
    #[arg(long, value_name = "URL", hide = true)]
    pub(crate) proxy: Option<Proxy>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Source address; where it is the only one, the destination
    #[arg(value_name = "SRC")]
    pub(crate) first: IpAddr,
    /// Destination address
    #[arg(value_name = "DST", requires = "proto")]
    pub(crate) second: Option<IpAddr>,
    /// tcp, udp, icmp or a number
    pub(crate) proto: Option<String>,
    /// Destination port
    pub(crate) port: Option<u16>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LabArgs {
    #[command(subcommand)]
    pub(crate) command: LabCommand,
    /// Taken as by every command, without effect: all that a lab has lies in its own folder, see `flatlan lab show`
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// The whole story in under two minutes
    #[command(after_help = "Example:\n  flatlan lab demo")]
    Demo,
    /// Make a lab that stays
    #[command(after_help = "Example:\n  flatlan lab up --sites 3 --hubs 2 --nat symmetric")]
    Up {
        /// Sites
        #[arg(long, default_value_t = 3)]
        sites: u8,
        /// Hubs
        #[arg(long, default_value_t = 2)]
        hubs: u8,
        /// Kind of the sites' routers
        #[arg(long, default_value = "cone")]
        nat: String,
    },
    /// The process that keeps a lab up
    #[command(hide = true)]
    Keep {
        /// The lab's name
        #[arg(long)]
        name: String,
        /// Sites
        #[arg(long)]
        sites: u8,
        /// Hubs
        #[arg(long)]
        hubs: u8,
        /// Kind of the sites' routers
        #[arg(long)]
        nat: String,
    },
    /// List its machines and the faults in force
    #[command(after_help = "Example:\n  flatlan lab show")]
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a command on one of its machines
    #[command(
        after_help = "Examples:\n  flatlan lab exec a -- ping -c 3 10.77.0.2\n  flatlan lab exec h1 -- tcpdump -ni eth0"
    )]
    Exec {
        /// The machine: a hub (h1), a site's gateway (a), its router (a-nat), its host (a-1), inet, admin
        host: String,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Cut a hub or a site off at the router, silently
    #[command(
        after_help = "Examples:\n  flatlan lab cut h1\n  flatlan lab cut a/h1     (those two from each other)\n  flatlan lab cut direct   (all sites from each other: only hubs are left)"
    )]
    Cut {
        /// A hub (h1), a site (a), two of them (a/h1), or `direct`
        what: String,
    },
    /// Undo cuts, let what is frozen go on, run again what was killed
    #[command(
        after_help = "Examples:\n  flatlan lab heal h1\n  flatlan lab heal a/h1\n  flatlan lab heal direct\n  flatlan lab heal all"
    )]
    Heal {
        /// A hub (h1), a site (a), two of them (a/h1), `direct`, or `all`
        what: String,
    },
    /// Kill a hub's or node's process
    #[command(after_help = "Example:\n  flatlan lab kill h1")]
    Kill {
        /// A hub (h1) or a site (a)
        what: String,
    },
    /// Freeze a hub's or node's process
    #[command(after_help = "Example:\n  flatlan lab freeze h1")]
    Freeze {
        /// A hub (h1) or a site (a)
        what: String,
    },
    /// Remove the lab
    #[command(after_help = "Example:\n  flatlan lab down")]
    Down,
}
