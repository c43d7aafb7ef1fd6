//! The namespaces that everything is measured in, and which of them reach each other.
//!
//! ```text
//!   A 10.77.0.1 --+         +-- H 10.77.0.3      every line a veth pair, MTU 1500; R is the lab's core router
//!                 +--- R ---+
//!   B 10.77.0.2 --+         +-- G 10.77.0.4      the addresses are those of every overlay
//! ```
//!
//! Every machine reaches every other while an overlay is prepared; [`Arena::enter`] then takes away what the mode
//! does not have. All machines, all programs and the router share the processors of this one.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, anyhow, bail};
use flatlan_lab::{Lab, Namespace, Process};
use rustix::mount::MountFlags;

/// The lab, and the folder where the overlays keep their keys and logs.
#[derive(Debug)]
pub(crate) struct Arena {
    lab: Lab,
}

/// A machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Machine {
    /// Where flows begin.
    A,
    /// Where they end.
    B,
    /// The second hub.
    G,
    /// The hub.
    H,
}

/// What the underlay allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// A and B reach each other.
    Direct,
    /// They reach hub H only.
    Hub,
    /// A reaches H, B reaches G, H and G reach each other.
    Hub2,
    /// They reach hub H only, and not by UDP.
    Tls,
}

impl Arena {
    /// Makes the machines.
    pub(crate) fn open() -> Result<Self> {
        let lab = Machine::ALL.into_iter().fold(Lab::builder(), |lab, machine| lab.bare(machine.word()));
        let arena = Self { lab: lab.build()? };
        // as Debian has it: what a machine prefers for itself would change every ratio
        for machine in Machine::ALL {
            arena.at(machine)?.sysctl("net/ipv4/tcp_congestion_control", CONGESTION_CONTROL)?;
        }
        // hubs of overlays that route in the kernel
        for machine in [Machine::H, Machine::G] {
            arena.at(machine)?.sysctl("net/ipv4/ip_forward", "1")?;
        }
        std::fs::create_dir_all(SOCKETS).with_context(|| format!("cannot create {SOCKETS}"))?;
        for machine in Machine::ALL {
            let private = || rustix::mount::mount("tmpfs", SOCKETS, "tmpfs", MountFlags::empty(), c"mode=0700");
            arena.at(machine)?.run(private).with_context(|| format!("cannot mount {SOCKETS}"))?;
        }
        Ok(arena)
    }

    /// Lets everybody reach everybody.
    pub(crate) fn leave(&self) -> Result<()> {
        self.lab.heal_all()?;
        Ok(())
    }

    /// Takes away what the mode does not have.
    pub(crate) fn enter(&self, mode: Mode) -> Result<()> {
        self.leave()?;
        for (one, other) in mode.severed() {
            self.lab.cut_between(one.word(), other.word())?;
        }
        if mode == Mode::Tls {
            self.lab.block_udp(Machine::H.word())?;
        }
        Ok(())
    }

    /// A machine's namespace.
    pub(crate) fn at(&self, machine: Machine) -> Result<&Namespace> {
        Ok(self.lab.bare(machine.word())?.namespace())
    }

    /// The router between all machines.
    pub(crate) fn router(&self) -> &Namespace {
        self.lab.core()
    }

    /// A machine that reaches all others in every mode.
    pub(crate) fn admin(&self) -> &Namespace {
        self.lab.admin()
    }

    /// A machine's address in the underlay.
    pub(crate) fn underlay(&self, machine: Machine) -> Result<IpAddr> {
        self.lab.bare(machine.word())?.addresses().first().copied().context("a machine without an address")
    }

    /// The router's address on the cable to a machine.
    pub(crate) fn router_before(&self, machine: Machine) -> Result<IpAddr> {
        match self.underlay(machine)? {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                Ok(Ipv4Addr::new(a, b, c, 1).into())
            }
            IpAddr::V6(_) => bail!("the underlay is IPv4"),
        }
    }

    /// An empty folder for keys and configuration.
    pub(crate) fn fresh_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(folder)
    }

    /// The folder of that name.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.lab.folder().join("state").join(name)
    }

    /// Starts a program on a machine.
    pub(crate) fn spawn<A: AsRef<OsStr>>(
        &self,
        machine: Machine,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Process> {
        let name = Path::new(program.as_ref()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = Namespace::command(program.as_ref());
        command.args(args);
        let log = self.lab.folder().join("log").join(format!("{name}-{}.log", machine.word()));
        Ok(self.at(machine)?.spawn(&format!("{name} on {}", machine.word()), command, &log)?)
    }
}

impl Machine {
    /// Every one.
    pub(crate) const ALL: [Self; 4] = [Self::A, Self::B, Self::G, Self::H];

    /// Its name in the lab.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::G => "g",
            Self::H => "h",
        }
    }

    /// The name of its interface in an overlay that asks for one.
    pub(crate) fn interface(self) -> String {
        format!("bench-{}", self.word())
    }

    /// Its address in every overlay.
    pub(crate) fn overlay(self) -> Ipv4Addr {
        let last = match self {
            Self::A => 1,
            Self::B => 2,
            Self::G => 4,
            Self::H => 3,
        };
        Ipv4Addr::new(10, 77, 0, last)
    }

    /// Whether it is a hub.
    pub(crate) fn is_hub(self) -> bool {
        match self {
            Self::A | Self::B => false,
            Self::G | Self::H => true,
        }
    }
}

impl Mode {
    /// Every mode.
    pub(crate) const ALL: [Self; 4] = [Self::Direct, Self::Hub, Self::Hub2, Self::Tls];

    /// Its word on the command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Hub => "hub",
            Self::Hub2 => "hub2",
            Self::Tls => "tls",
        }
    }

    /// What it is, for a heading.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Direct => "Direct",
            Self::Hub => "Over one hub",
            Self::Hub2 => "Over two hubs",
            Self::Tls => "Over one hub by TLS on TCP 443, UDP blocked",
        }
    }

    /// Its hubs.
    pub(crate) fn hubs(self) -> &'static [Machine] {
        match self {
            Self::Direct => &[],
            Self::Hub | Self::Tls => &[Machine::H],
            Self::Hub2 => &[Machine::H, Machine::G],
        }
    }

    /// The machines that take part, hubs first.
    pub(crate) fn machines(self) -> impl Iterator<Item = Machine> {
        self.hubs().iter().copied().chain([Machine::A, Machine::B])
    }

    fn severed(self) -> &'static [(Machine, Machine)] {
        match self {
            Self::Direct => &[],
            Self::Hub | Self::Tls => &[(Machine::A, Machine::B)],
            Self::Hub2 => &[(Machine::A, Machine::B), (Machine::A, Machine::G), (Machine::B, Machine::H)],
        }
    }
}

impl FromStr for Mode {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|mode| mode.word() == word).ok_or_else(|| anyhow!("direct, hub, hub2 or tls"))
    }
}

/// Where every WireGuard keeps its control sockets: each machine has its own here, which goes with it.
pub(crate) const SOCKETS: &str = "/run/wireguard";
/// Of every TCP in the machines: the kernel's own default, and Debian's.
pub(crate) const CONGESTION_CONTROL: &str = "cubic";
