//! What is measured: flatlan, other overlays where they are installed, and the bare wire as control.
//!
//! Each is prepared (keys, configuration; not timed), started (timed until the first answer), and stopped. All of them
//! give A and B the same addresses and run with the settings that their documentation proposes for such a network; what
//! differs stands in their files.

pub(crate) mod flatlan;
mod nebula;
mod openvpn;
mod plain;
mod tinc;
mod wireguard;

use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, anyhow};
use flatlan_lab::Process;

use crate::arena::{Arena, Machine, Mode};

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    /// No overlay: the address is an alias, routed by the router.
    Plain,
    /// Ours.
    Flatlan,
    /// Mullvad's WireGuard in Rust.
    Gotatun,
    /// Cloudflare's WireGuard in Rust.
    Boringtun,
    /// WireGuard in Go; as packaged.
    WireguardGo,
    /// WireGuard in Go since 2023, with offloads on both sides, under this name.
    WireguardGoNew,
    /// Slack's overlay.
    Nebula,
    /// OpenVPN 2.6 without its kernel module.
    Openvpn,
    /// tinc 1.0.
    Tinc,
}

impl Peer {
    /// Every one, in the order of a round.
    pub(crate) const ALL: [Self; 9] = [
        Self::Plain,
        Self::Flatlan,
        Self::Gotatun,
        Self::Boringtun,
        Self::WireguardGo,
        Self::WireguardGoNew,
        Self::Nebula,
        Self::Openvpn,
        Self::Tinc,
    ];

    /// Its word on the command line and in tables.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Flatlan => "flatlan",
            Self::Gotatun => "gotatun",
            Self::Boringtun => "boringtun",
            Self::WireguardGo => "wireguard-go",
            Self::WireguardGoNew => "wireguard-go-new",
            Self::Nebula => "nebula",
            Self::Openvpn => "openvpn",
            Self::Tinc => "tinc",
        }
    }

    /// The programs that it needs on PATH.
    pub(crate) fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Plain | Self::Flatlan => &[],
            Self::Gotatun => &["gotatun", "wg"],
            Self::Boringtun => &["boringtun-cli", "wg"],
            Self::WireguardGo => &["wireguard-go", "wg"],
            Self::WireguardGoNew => &["wireguard-go-new", "wg"],
            Self::Nebula => &["nebula", "nebula-cert"],
            Self::Openvpn => &["openvpn", "openssl"],
            Self::Tinc => &["tincd"],
        }
    }

    /// How to get it.
    pub(crate) fn install(self) -> &'static str {
        match self {
            Self::Plain | Self::Flatlan => "nothing to install",
            Self::Gotatun => "cargo install --locked gotatun-cli; apt-get install wireguard-tools",
            Self::Boringtun => "cargo install --locked boringtun-cli; apt-get install wireguard-tools",
            Self::WireguardGo => "apt-get install wireguard-go wireguard-tools",
            Self::WireguardGoNew => {
                "a wireguard-go of 2023 or later, by this name on PATH; apt-get install wireguard-tools"
            }
            Self::Nebula => "apt-get install nebula",
            Self::Openvpn => "apt-get install openvpn openssl",
            Self::Tinc => "apt-get install tinc",
        }
    }

    /// Whether it can do the topology with what it has: the bare wire has no hubs, nebula's relays and OpenVPN's
    /// servers do not chain, WireGuard and nebula speak UDP only.
    pub(crate) fn supports(self, mode: Mode) -> bool {
        match self {
            Self::Plain => mode == Mode::Direct,
            Self::Flatlan | Self::Tinc => true,
            Self::Gotatun | Self::Boringtun | Self::WireguardGo | Self::WireguardGoNew => mode != Mode::Tls,
            Self::Nebula => matches!(mode, Mode::Direct | Mode::Hub),
            Self::Openvpn => mode != Mode::Hub2,
        }
    }

    /// What it says about its version: the first line.
    pub(crate) fn version(self, binary: &str) -> String {
        let (program, arg) = match self {
            Self::Plain => ("uname", "-r"),
            Self::Flatlan => (binary, "--version"),
            Self::Gotatun => ("gotatun", "--version"),
            Self::Boringtun => ("boringtun-cli", "--version"),
            Self::WireguardGo => ("wireguard-go", "--version"),
            Self::WireguardGoNew => ("wireguard-go-new", "--version"),
            Self::Nebula => ("nebula", "-version"),
            Self::Openvpn => ("openvpn", "--version"),
            Self::Tinc => ("tincd", "--version"),
        };
        let Ok(output) = Command::new(program).arg(arg).output() else { return "unknown".to_owned() };
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let words = text.lines().next().unwrap_or_default().split_whitespace().take(3).collect::<Vec<_>>().join(" ");
        words.trim_end_matches([',', ';']).to_owned()
    }

    /// Makes keys and configuration.
    pub(crate) fn prepare(self, arena: &Arena, mode: Mode, binary: &str) -> Result<()> {
        match self {
            Self::Plain => Ok(()),
            Self::Flatlan => flatlan::prepare(arena, mode, binary),
            Self::Gotatun | Self::Boringtun | Self::WireguardGo | Self::WireguardGoNew => {
                wireguard::prepare(arena, mode)
            }
            Self::Nebula => nebula::prepare(arena, mode),
            Self::Openvpn => openvpn::prepare(arena, mode),
            Self::Tinc => tinc::prepare(arena, mode),
        }
    }

    /// Starts every machine's part.
    pub(crate) fn start<'a>(self, arena: &'a Arena, mode: Mode, binary: &str) -> Result<Running<'a>> {
        let mut running = Running { arena, peer: self, processes: Vec::new() };
        match self {
            Self::Plain => plain::start(arena)?,
            Self::Flatlan => flatlan::start(&mut running, mode, binary)?,
            Self::Gotatun | Self::Boringtun | Self::WireguardGo | Self::WireguardGoNew => {
                wireguard::start(&mut running, self, mode)?
            }
            Self::Nebula => nebula::start(&mut running, mode)?,
            Self::Openvpn => openvpn::start(&mut running, mode)?,
            Self::Tinc => tinc::start(&mut running, mode)?,
        }
        Ok(running)
    }
}

impl FromStr for Peer {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        let known = || anyhow!("one of {}", Self::ALL.map(Self::word).join(", "));
        Self::ALL.into_iter().find(|peer| peer.word() == word).ok_or_else(known)
    }
}

/// What runs. Ended on drop, with whatever it left on the machines.
#[derive(Debug)]
pub(crate) struct Running<'a> {
    pub(crate) arena: &'a Arena,
    peer: Peer,
    processes: Vec<(Machine, Process)>,
}

impl Running<'_> {
    /// Its processes.
    pub(crate) fn processes(&self) -> impl Iterator<Item = (Machine, &Process)> {
        self.processes.iter().map(|(machine, process)| (*machine, process))
    }

    /// The last lines of every process.
    pub(crate) fn tails(&self) -> String {
        self.processes.iter().map(|(_, process)| format!("{}:\n{}", process.name(), process.tail(8))).collect()
    }

    fn add(&mut self, machine: Machine, process: Process) {
        self.processes.push((machine, process));
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        std::thread::scope(|scope| {
            for (_, process) in &self.processes {
                // one that does not end is killed, and that is all there is to do
                scope.spawn(|| process.stop(STOP_LIMIT));
            }
        });
        if self.peer == Peer::Plain {
            plain::stop(self.arena);
        }
    }
}

/// How long a process may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(3);
