//! Debian's keepalived beside flatlan: which of a site's gateways has the address that the hosts have for a router (VRRP, RFC
//! 9568), and whether it still reaches the other site through the overlay (BFD, RFC 5880).

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;

use flatlan_lab::{Lab, Namespace, Process, Site, TUN};

use crate::PATIENCE;

/// keepalived on one gateway. It ends when it is dropped, and gives its address away.
#[derive(Debug)]
pub(crate) struct Keepalived<'a> {
    machine: &'a Namespace,
    process: Process,
}

impl<'a> Keepalived<'a> {
    /// Runs it on the gateway of a site. It says by BFD that it is there to the gateways of `others`, through the overlay;
    /// and where it has a part in a router's address, it has that by VRRP.
    pub(crate) fn start(lab: &'a Lab, site: &str, others: &[&str], router: Option<Router>) -> Self {
        let site = lab.site(site).unwrap();
        let file = |end: &str| lab.folder().join(format!("{}-keepalived.{end}", site.name()));
        let others: Vec<&Site> = others.iter().map(|other| lab.site(other).unwrap()).collect();
        fs::write(file("conf"), configuration(site, &others, router)).unwrap();
        let mut command = Namespace::command("keepalived");
        command.args(["--dont-fork", "--log-console", "--use-file"]).arg(file("conf"));
        for (flag, end) in [("--pid", "pid"), ("--vrrp_pid", "vrrp.pid"), ("--bfd_pid", "bfd.pid")] {
            command.arg(flag).arg(file(end));
        }
        let process = site.gateway().spawn(&format!("{} keepalived", site.name()), command, &file("log")).unwrap();
        Self { machine: site.gateway(), process }
    }

    /// Whether its machine has an address.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        let said = self.machine.exec("ip", ["-4", "-oneline", "address", "show", "dev", "lan0"]).unwrap_or_default();
        said.contains(&format!("inet {address}/"))
    }

    /// Whether the gateway of another site says by BFD that it is there, so often that its silence is noticed at once: for a
    /// second after it came up it speaks slowly (RFC 5880, section 6.8.3).
    pub(crate) fn reaches(&self, other: &str) -> bool {
        let lines = self.process.lines();
        let last = |said: &str, wanted: &str| {
            lines.iter().rfind(|line| line.text.contains(said)).is_some_and(|line| line.text.contains(wanted))
        };
        let state = format!("({other}) Entering ");
        last(&state, &format!("{state}Up")) && last("Detection time is", &format!("is {DETECTION} us"))
    }

    /// What it said last.
    pub(crate) fn tail(&self) -> String {
        self.process.tail(20)
    }
}

impl Drop for Keepalived<'_> {
    fn drop(&mut self) {
        // it ends its own children, which a kill does not
        let _ = self.process.stop(PATIENCE);
    }
}

/// A part in the address that hosts have for a router.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Router {
    pub(crate) address: IpAddr,
    /// The greatest one has it.
    pub(crate) priority: u8,
}

/// What an operator writes to keepalived.conf.
fn configuration(site: &Site, others: &[&Site], router: Option<Router>) -> String {
    let mut text = format!(
        "\
global_defs {{
    router_id {}
    vrrp_version 3
    dynamic_interfaces
}}
",
        site.name()
    );
    for other in others {
        let _ = write!(
            text,
            "\
bfd_instance {} {{
    neighbor_ip {}
    source_ip {}
    min_rx {EACH}
    min_tx {EACH}
    idle_tx 200
    multiplier {MISSED}
}}
",
            other.name(),
            other.virtual_ip(),
            site.virtual_ip()
        );
    }
    let Some(Router { address, priority }) = router else { return text };
    let reached: String = others.iter().map(|other| format!("        {} weight -60\n", other.name())).collect();
    let _ = write!(
        text,
        "\
vrrp_instance lan {{
    state BACKUP
    interface lan0
    virtual_router_id 51
    priority {priority}
    advert_int 0.05
    virtual_ipaddress {{
        {address}
    }}
    track_interface {{
        {TUN}
    }}
    track_bfd {{
{reached}    }}
}}
"
    );
    text
}

/// Milliseconds between two packets of BFD, how many may be missed, and how long that is in microseconds.
const EACH: u32 = 50;
const MISSED: u32 = 4;
const DETECTION: u32 = EACH * MISSED * 1000;
