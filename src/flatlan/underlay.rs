//! The network that this machine is in: looked at when the kernel says that something changed, told only
//! when it is something that a path could depend on.
//!
//! A machine with containers or dial-up lines changes something every moment. What counts here are the
//! addresses under which others reach us, on devices that are up, and the routes that leave by a gateway.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use flatlan_os::{
    clock,
    route::{Changes, GatewayRoute, HostAddress, Netlink, RouteError},
};

/// See the module.
pub(crate) struct Underlay {
    changes: Changes,
    /// Something changed; when to look.
    due: Option<Instant>,
    known: View,
}

#[derive(Clone, PartialEq, Eq)]
struct View {
    hosts: Vec<HostAddress>,
    gateways: BTreeSet<GatewayRoute>,
}

impl View {
    async fn now(netlink: &Netlink) -> Result<Self, RouteError> {
        Ok(Self { hosts: netlink.host_addresses().await?, gateways: netlink.gateway_routes().await? })
    }
}

impl Underlay {
    /// Watches from here on.
    pub(crate) async fn watch(netlink: &Netlink) -> Result<Self, RouteError> {
        let changes = Changes::watch(&[])?;
        Ok(Self { changes, due: None, known: View::now(netlink).await? })
    }

    /// The addresses under which this machine may be reached.
    pub(crate) fn hosts(&self) -> &[HostAddress] {
        &self.known.hosts
    }

    /// Returns a moment after something changed in the kernel's tables: whatever comes with it is in by
    /// then. Safe to cancel.
    pub(crate) async fn changed(&mut self) {
        if self.due.is_none() {
            self.changes.changed().await;
        }
        let due = *self.due.get_or_insert_with(|| clock::now() + SETTLE);
        tokio::time::sleep(clock::until(due)).await;
        self.due = None;
    }

    /// Looks again. Whether it is another network now.
    pub(crate) async fn look(&mut self, netlink: &Netlink) -> Result<bool, RouteError> {
        let view = View::now(netlink).await?;
        let differs = view != self.known;
        self.known = view;
        Ok(differs)
    }
}

/// How long changes are gathered.
const SETTLE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::process::Command;

    use flatlan_lab::Namespace;

    use super::*;

    fn ip(words: &str) {
        let status = Command::new("ip").args(words.split(' ')).status().unwrap();
        assert!(status.success(), "ip {words}");
    }

    #[test]
    fn only_what_a_path_could_depend_on_is_another_network() {
        flatlan_lab::enter().unwrap();
        let machine = Namespace::create("underlay", None).unwrap();
        machine.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let netlink = Netlink::open().unwrap();
                ip("link add eth type veth peer name far");
                ip("link set eth up");
                ip("link set far up");
                ip("addr add 192.0.2.1/24 dev eth");
                let mut underlay = Underlay::watch(&netlink).await.unwrap();
                // (what happens, whether it is another network)
                let steps: [(&[&str], bool); 7] = [
                    // a container comes, and goes
                    (&["link add c type veth peer name d", "addr add 198.51.100.1/32 dev c", "link set c up"], false),
                    (&["link del c"], false),
                    (&["route add 203.0.113.0/24 dev eth"], false),
                    (&["route add default via 192.0.2.254"], true),
                    (&["addr add 192.0.2.2/24 dev eth"], true),
                    (&["link set far down"], true),
                    (&["link set far up"], true),
                ];
                for (commands, another) in steps {
                    commands.iter().for_each(|words| ip(words));
                    let (mut differs, mut patience) = (false, Duration::from_secs(10));
                    while tokio::time::timeout(patience, underlay.changed()).await.is_ok() {
                        differs |= underlay.look(&netlink).await.unwrap();
                        patience = Duration::from_millis(300);
                    }
                    assert!(patience < Duration::from_secs(1), "nothing was told of {commands:?}");
                    assert_eq!(differs, another, "{commands:?}");
                }
            });
        });
    }
}
