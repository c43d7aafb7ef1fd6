//! A machine that can come up at two sites, as one that a DR provider replicates: wherever it is switched on, it has the same
//! address, and believes in the same router. Its neighbours and its clients are told nothing.

#![allow(dead_code, reason = "every program takes what it needs")]

use std::net::IpAddr;

use flatlan_lab::{Lab, Namespace};

/// The machine: the first host of its home's LAN, and a machine on another site's LAN that is kept ready.
#[derive(Debug)]
pub(crate) struct Twin<'a> {
    home: &'a Namespace,
    away: &'a Namespace,
    ip: IpAddr,
    /// Its address with its prefix's length.
    address: String,
    /// The gateway of its home.
    router: String,
}

impl<'a> Twin<'a> {
    /// It runs at home, and the machine at the other site is off.
    pub(crate) fn new(lab: &'a Lab, home: &str, away: &str) -> Self {
        let (home, away) = (lab.site(home).unwrap(), lab.site(away).unwrap());
        let host = home.hosts().first().unwrap();
        let ([ip, _], [router, _]) = (host.addresses(), home.lan_addresses());
        let twin = Self {
            home: host.namespace(),
            away: away.hosts().first().unwrap().namespace(),
            ip,
            address: format!("{ip}/{}", home.prefixes().first().unwrap().prefix()),
            router: router.to_string(),
        };
        Self::switch_off(twin.away);
        twin.switch_on(twin.home);
        twin
    }

    /// Its IPv4 address.
    pub(crate) fn ip(&self) -> IpAddr {
        self.ip
    }

    /// The machine at home.
    pub(crate) fn home(&self) -> &'a Namespace {
        self.home
    }

    /// The machine at the other site.
    pub(crate) fn away(&self) -> &'a Namespace {
        self.away
    }

    /// It dies at one place in silence and comes up at the other.
    pub(crate) fn fail_over(&self, from: &Namespace, to: &Namespace) {
        Self::switch_off(from);
        self.switch_on(to);
    }

    fn switch_off(machine: &Namespace) {
        machine.exec("ip", ["link", "set", "eth0", "down"]).unwrap();
    }

    fn switch_on(&self, machine: &Namespace) {
        for words in [
            "address flush dev eth0",
            "link set eth0 up",
            &format!("address add {} dev eth0", self.address),
            &format!("route replace default via {}", self.router),
        ] {
            machine.exec("ip", words.split(' ')).unwrap();
        }
    }
}
